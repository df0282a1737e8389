"""Statistics of the training clips' features, with which evidence by statistics is standardized."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers.utils import logging

from ..anchor_embedding_amess import AMESSStatisticsEvidence
from ..modeling_amess import AMESSForIntentClassification


BATCH_SIZE = 32
# Of a stream, whose length is unknown, the first clips stand for all.
STREAMED_BATCHES = 64
INPUTS = ("audio_features", "audio_attention_mask", "video_features", "video_attention_mask")


@torch.no_grad()
def standardize_statistics(model: AMESSForIntentClassification, dataset: Any, collator: Callable) -> None:
    """Standardize a new model's evidence by statistics with those of its training clips; other models stay as they are.

    Args:
        model ([`AMESSForIntentClassification`]): The model, before training.
        dataset (`datasets.Dataset`): Training clips; of a stream, the first 2,048. Without any (`None`), nothing is done.
        collator (`Callable`): Makes batches of them.
    """
    fusion = model.amess.fusion
    # Statistics of fixed features, as far as there are none of training clips yet.
    layers = [
        layer
        for name, layer in getattr(fusion, "evidence", {}).items()
        if isinstance(layer, AMESSStatisticsEvidence) and name not in fusion.grids and not layer.is_standardized
    ]
    if not layers or dataset is None:
        return
    found = {layer: [] for layer in layers}

    def keep(layer: AMESSStatisticsEvidence, inputs: tuple[torch.Tensor, ...]):
        frames, mask = inputs[:2]
        found[layer].append(layer.frame_statistics(frames, mask)[mask.any(1)].cpu())

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    was_training = model.training
    model.eval()
    # A generator of its own, so that it draws nothing from that of the training.
    batches = DataLoader(dataset, BATCH_SIZE, collate_fn=collator, generator=torch.Generator())
    try:
        progress = logging.tqdm(batches, desc="Statistics of the training clips", unit="batch", leave=False)
        for batch in itertools.islice(progress, STREAMED_BATCHES if isinstance(dataset, IterableDataset) else None):
            inputs = {name: batch[name].to(model.device) for name in INPUTS if name in batch}
            if inputs:
                model.amess(**inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    for layer, statistics in found.items():
        if sum(map(len, statistics)) > 1:
            layer.standardize(torch.cat(statistics))
