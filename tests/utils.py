"""Helpers of the tests: a tiny vocabulary, tiny configurations and models, random batches."""

import csv

import numpy as np
import torch
from transformers import BertConfig, DistilBertConfig, RobertaConfig, set_seed

from amess_hf import AMESSConfig, AMESSForIntentClassification, AMESSProcessor
from amess_hf.datasets_amess import merge_fields


WORDS = "the speaker says hello thanks you are so kind late again please help me with this box no never yes".split()
LABELS = ["Greet", "Thank", "Complain", "Ask for help"]
DESCRIPTIONS = {
    "Greet": ["the speaker says hello", "hello you"],
    "Thank": ["the speaker says thanks", "thanks you are so kind"],
    "Complain": ["late again", "the speaker says no never"],
    "Ask for help": ["please help me with this box"],
}
TEXT_SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def text_config(model_type="bert"):
    """A text encoder's configuration of a few thousand weights."""
    if model_type == "distilbert":
        sizes = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
        return DistilBertConfig(**sizes, max_position_embeddings=48)
    config_class = {"bert": BertConfig, "roberta": RobertaConfig}[model_type]
    return config_class(**TEXT_SIZES, intermediate_size=48, max_position_embeddings=48)


def tiny_config(**fields):
    """A configuration for text, audio (6 wide) and video (5 wide); `fields` override, those of features one by one."""
    defaults = {
        "text_config": text_config(),
        "audio_config": {"feature_size": 6, "max_length": 20},
        "video_config": {"feature_size": 5, "max_length": 15},
        "max_text_length": 16,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_anchors": 3,
        "projection_dim": 12,
        "id2label": dict(enumerate(LABELS)),
        "label_descriptions": DESCRIPTIONS,
    }
    return AMESSConfig(**merge_fields(defaults, fields))


# what makes a model one for clips, with encoders that need no download
FRONT_ENDS = {
    "audio_config": {"feature_size": 80, "encoder": "log-mel", "max_length": 60},
    "video_config": {"feature_size": 580, "encoder": "hog", "max_length": 12},
}


def tiny_model(seed=0, **fields):
    """A model with random weights and random label embeddings, in evaluation mode."""
    set_seed(seed)
    model = AMESSForIntentClassification(tiny_config(**fields))
    embeds = torch.randn(model.label_embeds.shape)
    model.label_embeds.copy_(torch.nn.functional.normalize(embeds, dim=-1))
    # Away from their initial values, so that no part of the model is idle.
    with torch.no_grad():
        for parameter in model.amess.fusion.parameters() if model.amess.fusion is not None else ():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def save_clip_model(folder, tokenizer):
    """Save a tiny model for clips with its processor; gives the folder's path."""
    tiny_model(**FRONT_ENDS).save_pretrained(folder)
    AMESSProcessor.for_model(tiny_config(**FRONT_ENDS), tokenizer).save_pretrained(folder)
    return str(folder)


def save_noise_clip(path):
    """Write a second of noise in sound and picture; gives the path."""
    from clip_writer import write_clip  # needs PyAV

    generator = np.random.default_rng(0)
    frames = generator.integers(0, 255, (25, 48, 64, 3), dtype=np.uint8)
    write_clip(path, frames, generator.uniform(-0.5, 0.5, 16000))
    return str(path)


def random_batch(config, text=(5, 3, 7), audio=(9, 4, 1), video=(6, 8, 2), seed=0, labels=True):
    """A padded batch with the given lengths; 0 is a clip without that modality, `None` a batch without it."""
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    if text is not None:
        batch["attention_mask"] = length_mask(text)
        shape = batch["attention_mask"].shape
        batch["input_ids"] = torch.randint(5, 64, shape, generator=generator) * batch["attention_mask"]
    for name, lengths in (("audio", audio), ("video", video)):
        if lengths is not None and name in config.feature_configs:
            width = config.feature_configs[name].feature_size
            mask = length_mask(lengths)
            batch[f"{name}_features"] = torch.randn(*mask.shape, width, generator=generator)
            batch[f"{name}_attention_mask"] = mask
    if labels:
        count = len(next(lengths for lengths in (text, audio, video) if lengths is not None))
        batch["labels"] = torch.randint(0, config.num_labels, (count,), generator=generator)
    return batch


def rows_of(batch, rows):
    """A batch of some rows of another, each modality cut to their own longest."""
    cut = {name: value[rows] for name, value in batch.items()}
    for mask, names in (
        ("attention_mask", ("input_ids", "attention_mask")),
        ("audio_attention_mask", ("audio_features", "audio_attention_mask")),
        ("video_attention_mask", ("video_features", "video_attention_mask")),
    ):
        if mask in cut:
            length = max(1, int(cut[mask].sum(1).max()))
            for name in names:
                cut[name] = cut[name][:, :length]
    return cut


def length_mask(lengths):
    """(batch, longest) of 1 up to each length, then 0."""
    return (torch.arange(max(1, *lengths)) < torch.tensor(lengths)[:, None]).long()


def write_table_folder(folder, **splits):
    """Write a folder of one's own data, of words alone: split → (text, label) rows."""
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    return folder
