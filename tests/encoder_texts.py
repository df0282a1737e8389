"""Tiny text encoders of every family with random weights, and tokenizers to go with them."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast
from utils import WORDS


SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
POSITIONS = {**SIZES, "max_position_embeddings": 48}
GROUPED = {
    **POSITIONS,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "pad_token_id": None,
    "bos_token_id": 2,
    "eos_token_id": 3,
}

TEXT_ENCODERS = {
    "bert": POSITIONS,
    "roberta": POSITIONS,
    "xlm-roberta": POSITIONS,
    "distilbert": {
        "vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 48
    },
    "electra": {**POSITIONS, "embedding_size": 16},
    "albert": {**POSITIONS, "embedding_size": 16},
    "mpnet": POSITIONS,
    "deberta": {**POSITIONS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        **POSITIONS, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    },
    "modernbert": {**POSITIONS, "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2,
                   "eos_token_id": 3, "local_attention": 8},
    "t5": {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "bos_token_id": 3,
             "eos_token_id": 3},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "llama": GROUPED,
    "mistral": GROUPED,
    "gemma": GROUPED,
    "gemma2": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "sliding_window": 8},
}  # fmt: skip
DECODERS = ("gpt2", "qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text")


def text_encoder_config(model_type):
    """A configuration of a few thousand weights."""
    return AutoConfig.for_model(model_type, **TEXT_ENCODERS[model_type])


def word_tokenizer(kind):
    """A word-level tokenizer over `WORDS`: `bert` (start, separator), `llama` (start alone, pads on the left, no padding
    token) or `gpt2` (nothing around the words, no padding token)."""
    vocabulary = ["[PAD]", "[UNK]", "<s>", "</s>", *WORDS, *"abcdefghijklmnopqrstuvwxyz:?"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = {
        "bert": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "llama": ("<s> $A", "<s> $A <s>:1 $B:1"),
        "gpt2": None,
    }[kind]
    if around is not None:
        special = [("<s>", 2), ("</s>", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around[0], pair=around[1], special_tokens=special
        )
    names = {"unk_token": "[UNK]", "eos_token": "</s>"}
    names |= {"bert": {"pad_token": "[PAD]", "sep_token": "</s>"}, "llama": {"padding_side": "left"}, "gpt2": {}}[kind]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
