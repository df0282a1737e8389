"""Which clips make a training batch, on each process of a run."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DynamoBackend
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from ..configuration_amess import FEATURE_MODALITIES, IGNORED_LABEL_ID, AMESSConfig
from .arguments import AMESSTrainingArguments


# Batches that are sorted together: enough to find clips of similar length, few enough for batches to differ between
# epochs.
BATCHES_PER_POOL = 16


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

    def __init__(
        self,
        num_clips: int,
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        lengths: np.ndarray | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
    ):
        self.num_clips = num_clips
        self.batch_size = batch_size
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.lengths = lengths
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.epoch = 0

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
            # The noise avoids the same neighbours in every epoch.
            keys = -self.lengths * draw.uniform(0.9, 1.1, self.num_clips)
            pools = np.split(order, range(size * BATCHES_PER_POOL, len(order), size * BATCHES_PER_POOL))
            order = np.concatenate([pool[keys[pool].argsort()] for pool in pools])
        batches = np.split(order, range(size, len(order), size))
        if self.lengths is not None:
            # The batch that may be short stays last.
            batches = [batches[index] for index in (*draw.permutation(len(batches) - 1), len(batches) - 1)]
        return batches


def clip_lengths(dataset: Any, tokenizer: PreTrainedTokenizerBase, config: AMESSConfig) -> np.ndarray:
    """Return how many tokens and frames each clip brings to a batch, each modality at most its configured maximum.

    Features are not read: Arrow knows how many frames there are.

    Args:
        dataset (`datasets.Dataset`, or a sequence of examples): The clips.
        tokenizer: The text encoder's tokenizer.
        config ([`AMESSConfig`]): The limits, and which modalities the model takes.

    Returns:
        `np.ndarray` of shape `(clips,)`.
    """
    columns = dataset.column_names if isinstance(dataset, Dataset) else list(dataset[0])
    texts = list(dataset["text"]) if isinstance(dataset, Dataset) else [row["text"] for row in dataset]
    if "context" in columns:
        turns = dataset["context"] if isinstance(dataset, Dataset) else [row["context"] for row in dataset]
        texts = [" ".join([*context, text]) for context, text in zip(turns, texts, strict=True)]
    tokens = np.array([len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]])
    total = np.minimum(tokens, config.max_text_length)
    for modality in FEATURE_MODALITIES:
        name = f"{modality}_features"
        if name in columns and modality in config.feature_configs:
            total = total + np.minimum(_num_frames(dataset, name), config.feature_configs[modality].max_length)
    return total


def _num_frames(dataset: Any, name: str):
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
        if rows:
            return self.collator(rows)
        return self.collator([{**self.dataset[0], "label": IGNORED_LABEL_ID}])


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
        ValueError: If there is no clip, or `train_sampling_strategy` would not treat processes alike.
    """
    strategies = ("random", "sequential", "group_by_length")
    strategy = args.train_sampling_strategy
    if strategy not in strategies:
        raise ValueError(f"`train_sampling_strategy` is {strategy!r}; it must be one of {', '.join(strategies)}")
    sampler = ClipBatchSampler(
        len(dataset),
        args.train_batch_size,
        args.seed if args.data_seed is None else args.data_seed,
        accelerator.num_processes,
        accelerator.process_index,
        lengths=clip_lengths(dataset, tokenizer, config) if strategy == "group_by_length" else None,
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
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        non_blocking=args.dataloader_pin_memory,
    )


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
