"""What a training step sees: clips, the same for any number of processes, and sentences that describe labels."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DynamoBackend
from datasets import Dataset
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_amess import (
    FEATURE_MODALITIES,
    IGNORED_LABEL_ID,
    MODALITIES,
    OUT_OF_SCOPE_ID,
    TRAINING_SENTENCES,
    AMESSConfig,
    text_positions,
)
from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import encode_texts
from .arguments import AMESSTrainingArguments


logger = logging.get_logger(__name__)

# Batches that are sorted together: enough to find clips of similar length, few enough for batches to differ between
# epochs.
BATCHES_PER_POOL = 16
# Tokens of a description in training.
MAX_SENTENCE_LENGTH = 64
# Labels that are encoded together. A pass over few sentences costs as much as one over several: its backward pass
# writes the gradient of every weight.
LABELS_AT_A_TURN = 10


@dataclass(eq=False)
class ClipBatchSampler(Sampler):
    """Batches of clip indices for one process of several.

    Together, the processes' batches of a step are the batch that one process with `num_processes * batch_size` clips
    would take at that step, even if the last one is shorter.

    The order depends only on the seed and the epoch: a resumed run sees the same batches as an uninterrupted one.

    Args:
        num_clips (`int`): Clips in the data set.
        batch_size (`int`): Clips of a step on each process.
        seed (`int`): Seed of the order.
        num_processes (`int`), process_index (`int`): How many processes there are, and which this is.
        lengths (`np.ndarray` of shape `(num_clips,)`, *optional*):
            Length of each clip. If given, clips of similar length are batched together, which pads less.
        shuffle (`bool`): Whether to shuffle the clips in each epoch.
        drop_last (`bool`): Whether to leave out a last batch that is not full.
    """

    num_clips: int
    batch_size: int
    seed: int
    num_processes: int = 1
    process_index: int = 0
    lengths: np.ndarray | None = None
    shuffle: bool = True
    drop_last: bool = False
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch `epoch`."""
        self.epoch = epoch

    def __len__(self):
        full, rest = divmod(self.num_clips, self.batch_size * self.num_processes)
        return full + bool(rest and not self.drop_last)

    def __iter__(self):
        """Yield lists of indices; an empty one means that the process has no clip in the last step."""
        for batch in self._batches()[: len(self)]:
            yield batch[self.process_index :: self.num_processes].tolist()

    def _batches(self):
        """The batches of all processes together, in their order."""
        size = self.batch_size * self.num_processes
        draw = np.random.default_rng((self.seed, self.epoch))
        order = draw.permutation(self.num_clips) if self.shuffle else np.arange(self.num_clips)
        if self.lengths is not None:
            # The noise avoids the same neighbors in every epoch.
            keys = -self.lengths * draw.uniform(0.9, 1.1, self.num_clips)
            pools = np.split(order, range(size * BATCHES_PER_POOL, len(order), size * BATCHES_PER_POOL))
            order = np.concatenate([pool[keys[pool].argsort()] for pool in pools])
        batches = np.split(order, range(size, len(order), size))
        if self.lengths is not None:
            # The batch that may be short stays last.
            batches = [batches[index] for index in (*draw.permutation(len(batches) - 1), len(batches) - 1)]
        return batches


def _clip_lengths(dataset: Any, tokenizer: PreTrainedTokenizerBase, config: AMESSConfig):
    """How many tokens and frames each clip brings to a batch, each modality at most its configured maximum."""
    return sum(np.minimum(*lengths) for lengths in _lengths(dataset, tokenizer, config).values())


def _lengths(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, config: AMESSConfig, context: bool = True
) -> dict[str, tuple[Any, int]]:
    """{field of the configuration: (tokens or frames of each clip, their maximum)}."""
    columns = dataset.column_names if isinstance(dataset, Dataset) else list(dataset[0])

    def column(name: str):
        return list(dataset[name]) if isinstance(dataset, Dataset) else [row[name] for row in dataset]

    texts = [text or "" for text in column("text")]
    if context and "context" in columns:
        texts = [" ".join([*turns, text]) for turns, text in zip(column("context"), texts, strict=True)]
    tokens = np.array([len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]])
    lengths = {"max_text_length": (tokens, config.max_text_length)}
    for modality, features in config.feature_configs.items():
        if f"{modality}_features" in columns:
            frames = _num_frames(dataset, f"{modality}_features")
            lengths[f"{modality}_config.max_length"] = frames, features.max_length
    return lengths


def warn_of_cuts(dataset: Any, tokenizer: PreTrainedTokenizerBase, config: AMESSConfig) -> None:
    """Say how many training clips are longer than the model reads.

    Args:
        dataset (`Dataset` or `list[dict]`): The training clips.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's tokenizer.
        config ([`AMESSConfig`]): The model's configuration.
    """
    lengths = _lengths(dataset, tokenizer, config, context=False)
    shares = {f"`{field}` ({limit})": (found > limit).mean() for field, (found, limit) in lengths.items()}
    cut = [f"{share:.1%} beyond {field}" for field, share in shares.items() if share]
    if cut:
        logger.warning(f"training clips are cut: {', '.join(cut)}")


def _num_frames(dataset: Any, name: str):
    """Frames of each clip; features are not read, as Arrow knows how many there are."""
    if not isinstance(dataset, Dataset):
        return np.array([0 if row[name] is None else len(row[name]) for row in dataset])
    chunks = dataset.data.column(name).chunks
    storages = [chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk for chunk in chunks]
    frames = np.concatenate([pc.fill_null(pc.list_value_length(chunk), 0).to_numpy() for chunk in storages])
    return frames if dataset._indices is None else frames[dataset._indices.column(0).to_numpy()]


class _Fill:
    """A collator that makes a batch of one ignored row if the process has no clip in the last step."""

    def __init__(self, collator: Callable, dataset: Any):
        self.collator = collator
        self.dataset = dataset

    def __call__(self, rows: list[dict[str, Any]]):
        return self.collator(rows or [{**self.dataset[0], "label": IGNORED_LABEL_ID}])


def training_dataloader(
    dataset: Any,
    collator: Callable,
    args: AMESSTrainingArguments,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    config: AMESSConfig,
) -> DataLoader:
    """Return the loader of training batches of this process, on the device of `accelerator`.

    Args:
        dataset (`datasets.Dataset`, or a sequence of examples): The training clips.
        collator ([`AMESSDataCollator`]): Makes a batch of examples.
        args ([`AMESSTrainingArguments`]): Batch size, seed, workers, `train_sampling_strategy`.
        accelerator (`accelerate.Accelerator`): The run's processes and devices.
        tokenizer: The text encoder's tokenizer.
        config ([`AMESSConfig`]): The model's configuration.

    Returns:
        `DataLoader`: with `set_epoch`; each process takes the same number of batches.

    Raises:
        ValueError: If there are too few clips for a batch.
    """
    strategy = args.train_sampling_strategy
    sampler = ClipBatchSampler(
        len(dataset),
        args.train_batch_size,
        args.seed if args.data_seed is None else args.data_seed,
        accelerator.num_processes,
        accelerator.process_index,
        _clip_lengths(dataset, tokenizer, config) if strategy == "group_by_length" else None,
        shuffle=strategy != "sequential",
        drop_last=args.dataloader_drop_last,
    )
    if len(sampler) == 0:
        raise ValueError(f"{len(dataset)} training clips make no batch: give more clips, or a smaller batch size")
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=_Fill(collator, dataset),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        # A separate random generator: what a step draws does not depend on how its batch was loaded.
        generator=torch.Generator().manual_seed(args.seed),
    )
    # The sampler has already split the clips: accelerate only moves batches to the device.
    alone = {"num_processes": 1, "process_index": 0}
    pinned = args.dataloader_pin_memory
    return prepare_data_loader(loader, accelerator.device, **alone, put_on_device=True, non_blocking=pinned)


def mark_dynamic_lengths(batch: dict[str, torch.Tensor], accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Tell `torch.compile`, if it is used, that batches differ in clips, tokens and frames, before it compiles.

    Args:
        batch (`dict[str, torch.Tensor]`): A batch on its device.
        accelerator (`accelerate.Accelerator`): Knows whether the model is compiled.

    Returns:
        `dict[str, torch.Tensor]`: the same batch.
    """
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        for value in batch.values():
            for axis in range(min(2, value.dim())):
                torch._dynamo.maybe_mark_dynamic(value, axis)
    return batch


def count_loss_items(batches: list[dict[str, torch.Tensor]], accelerator: Accelerator) -> torch.Tensor | None:
    """Count the clips that the losses of an update are means over, as the model's `num_items_in_batch`.

    With them, batches whose gradients are accumulated weigh each clip as one batch of all would.

    Args:
        batches (`list[dict[str, torch.Tensor]]`): The batches of this process; every process must call it.
        accelerator (`accelerate.Accelerator`): The run's processes.

    Returns:
        `torch.Tensor` of shape `(5,)`, the means over batches and processes in the order of `LOSS_ITEMS`; `None` for a
        single batch, whose clips the model counts itself.
    """
    if len(batches) < 2 or "labels" not in batches[0]:
        return None
    counts = torch.stack([_loss_items(batch) for batch in batches]).mean(0)
    return accelerator.reduce(counts.to(accelerator.device), "mean")


def _loss_items(batch: dict[str, torch.Tensor]):
    labels = batch["labels"]
    masks = {name: batch.get(f"{name}_attention_mask") for name in FEATURE_MODALITIES}
    masks["text"] = batch.get("utterance_mask", batch.get("attention_mask"))
    nowhere = torch.zeros_like(labels, dtype=torch.bool)
    present = [nowhere if masks[name] is None else masks[name].bool().any(1) for name in MODALITIES]
    items = [labels >= 0, labels == OUT_OF_SCOPE_ID, *((labels >= 0) & there for there in present)]
    return torch.stack([item.sum() for item in items]).float()


def label_turns(num_labels: int, period: int) -> list[int]:
    """Return for each label the step of a period (in steps) at which it is encoded."""
    turns = min(period, max(1, num_labels // LABELS_AT_A_TURN))
    return [(index * turns // num_labels) * period // turns for index in range(num_labels)]


@dataclass
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

    label_descriptions: dict[str, list[str]]
    tokenizer: PreTrainedTokenizerBase
    period: int
    seed: int
    max_length: int = MAX_SENTENCE_LENGTH
    prefix: str | None = None

    def __post_init__(self):
        self.sentences = [sentences[:TRAINING_SENTENCES] for sentences in self.label_descriptions.values()]
        self.turns = label_turns(len(self.sentences), self.period)

    @classmethod
    def for_model(
        cls,
        config: AMESSConfig,
        tokenizer: PreTrainedTokenizerBase,
        args: AMESSTrainingArguments,
        batches_per_epoch: int,
    ) -> Callable[[int], dict[str, torch.Tensor]]:
        """Return the sampler of a model, or a function that draws none if no loss with a weight needs descriptions.

        Args:
            config ([`AMESSConfig`]): Labels, descriptions and loss weights.
            tokenizer: The text encoder's tokenizer.
            args ([`AMESSTrainingArguments`]): `label_update`, the accumulation steps and the seed.
            batches_per_epoch (`int`): Batches that a process takes in an epoch.
        """
        weight = config.label_triplet_loss_weight or config.label_contrastive_loss_weight
        if config.label_descriptions is None or not weight:
            return lambda step: {}
        names = [config.id2label[index] for index in range(config.num_labels)]
        period = args.label_update_period(math.ceil(batches_per_epoch / args.gradient_accumulation_steps))
        descriptions = {name: config.label_descriptions[name] for name in names}
        max_length = min(text_positions(config.text_config), MAX_SENTENCE_LENGTH)
        return cls(descriptions, tokenizer, period, args.seed, max_length, config.description_prefix)

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
        sentences = [(self.prefix or "") + draw.choice(self.sentences[index]) for index in indices]
        batch = encode_texts(self.tokenizer, sentences, max_length=self.max_length)
        return {
            "description_input_ids": batch["input_ids"],
            "description_attention_mask": batch["attention_mask"],
            "description_indices": batch["input_ids"].new_tensor(indices),
        }


def update_label_embeds(
    model: AMESSForIntentClassification, tokenizer: PreTrainedTokenizerBase, missing_only: bool = False
) -> None:
    """Embed the descriptions of a model, if it has any, even if FSDP has sharded its weights.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        tokenizer: The text encoder's tokenizer.
        missing_only (`bool`): Whether a model that stores embeddings keeps them; clips are compared with these until a
            label is encoded.
    """
    if model.config.label_descriptions is None or (missing_only and model.label_embeds.any()):
        return
    if isinstance(model, FSDPModule):
        # Bypasses the model's `forward`, at which FSDP would gather the weights.
        register_fsdp_forward_method(model, "_encode_sentences")
    model.update_label_embeds(tokenizer)
