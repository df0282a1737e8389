"""Which label descriptions to encode with gradient at a training step."""

import math
import random
from collections.abc import Callable

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedTokenizerBase

from ..configuration_amess import TRAINING_SENTENCES, AMESSConfig, text_positions
from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import encode_texts
from .arguments import AMESSTrainingArguments


# Tokens of a sentence in training.
MAX_SENTENCE_LENGTH = 64

# Labels that are encoded together. A pass over few sentences costs as much as one over several: its backward pass
# writes the gradient of every weight.
LABELS_AT_A_TURN = 10


def label_turns(num_labels: int, period: int) -> list[int]:
    """Return for each label the step of a period (in steps) at which it is encoded."""
    turns = min(period, max(1, num_labels // LABELS_AT_A_TURN))
    return [(index * turns // num_labels) * period // turns for index in range(num_labels)]


class LabelDescriptionSampler:
    """Draw, for each step, the labels to encode and one of the first `TRAINING_SENTENCES` sentences of each.

    Every label is encoded once in `period` steps, together with `LABELS_AT_A_TURN` - 1 others or a few more, spread
    evenly over the period. The draw depends only on the seed and the step, so that all processes draw the same, and so
    does a resumed run.

    Args:
        label_descriptions (`dict[str, list[str]]`): Sentences for each label, in the order of the labels' ids.
        tokenizer: The text encoder's tokenizer.
        period (`int`): Steps between two encodings of the same label; 1 means every label at every step.
        seed (`int`): Seed of the draw.
        max_length (`int`): Maximum number of tokens of a sentence.
        prefix (`str`, *optional*): Text in front of each sentence.
    """

    def __init__(
        self,
        label_descriptions: dict[str, list[str]],
        tokenizer: PreTrainedTokenizerBase,
        period: int,
        seed: int,
        max_length: int = MAX_SENTENCE_LENGTH,
        prefix: str | None = None,
    ):
        self.sentences = [sentences[:TRAINING_SENTENCES] for sentences in label_descriptions.values()]
        self.tokenizer = tokenizer
        self.period = period
        self.seed = seed
        self.max_length = max_length
        self.prefix = prefix or ""
        self.turns = label_turns(len(self.sentences), period)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """Return the model's description inputs at a step, an empty dict if no label is encoded.

        Args:
            step (`int`): Optimizer steps taken so far.

        Returns:
            `dict[str, torch.Tensor]`: `description_input_ids` and `description_attention_mask`, both
            (descriptions, text_length), and `description_indices` (descriptions,).
        """
        indices = [index for index, turn in enumerate(self.turns) if turn == step % self.period]
        if not indices:
            return {}
        draw = random.Random(f"{self.seed} {step}")
        batch = encode_texts(
            self.tokenizer,
            [self.prefix + draw.choice(self.sentences[index]) for index in indices],
            max_length=self.max_length,
        )
        return {
            "description_input_ids": batch["input_ids"],
            "description_attention_mask": batch["attention_mask"],
            "description_indices": batch["input_ids"].new_tensor(indices),
        }


def update_label_embeds(model: AMESSForIntentClassification, tokenizer: PreTrainedTokenizerBase) -> None:
    """Embed the model's descriptions again, even if FSDP has sharded the model's weights."""
    if isinstance(model, FSDPModule):
        # Bypasses the model's `forward`, at which FSDP would gather the weights.
        register_fsdp_forward_method(model, "_encode_sentences")
    model.update_label_embeds(tokenizer)


def start_label_embeds(model: AMESSForIntentClassification, tokenizer: PreTrainedTokenizerBase) -> None:
    """Embed the descriptions of a model that stores no embeddings yet: clips are compared with these until a label is encoded."""
    if model.config.label_descriptions is not None and not model.label_embeds.any():
        model.update_label_embeds(tokenizer)


def description_sampler(
    config: AMESSConfig, tokenizer: PreTrainedTokenizerBase, args: AMESSTrainingArguments, batches_per_epoch: int
) -> Callable[[int], dict[str, torch.Tensor]]:
    """Return the source of each training step's description inputs.

    That is a [`LabelDescriptionSampler`], or a function that returns none if the model has no descriptions or their
    losses have no weight.

    Args:
        config ([`AMESSConfig`]): Labels, descriptions and loss weights.
        tokenizer: The text encoder's tokenizer.
        args ([`AMESSTrainingArguments`]): `label_update`, the accumulation steps and the seed.
        batches_per_epoch (`int`): Batches that a process takes in an epoch.
    """
    if config.label_descriptions is None or not (
        config.label_triplet_loss_weight or config.label_contrastive_loss_weight
    ):
        return lambda step: {}
    names = [config.id2label[index] for index in range(config.num_labels)]
    period = args.label_update_period(math.ceil(batches_per_epoch / args.gradient_accumulation_steps))
    descriptions = {name: config.label_descriptions[name] for name in names}
    max_length = min(text_positions(config.text_config), MAX_SENTENCE_LENGTH)
    return LabelDescriptionSampler(descriptions, tokenizer, period, args.seed, max_length, config.description_prefix)
