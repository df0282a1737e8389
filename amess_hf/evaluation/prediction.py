"""A model's outputs for a whole split, with any modalities masked, and the predictions as a file."""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..configuration_amess import MODALITIES
from ..processing_amess import written_aside
from .metrics import compute_classification_metrics


logger = logging.get_logger(__name__)

_MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "video": "video_attention_mask"}
# Fields of the model's output that have one row for each clip and are kept.
CLIP_OUTPUTS = ("logits", "pooler_output", "multimodal_embeds", "anchor_indices", "anchor_scores")


@dataclass
class ClipOutputs:
    """A model's outputs for the clips of a split, on the CPU.

    Attributes:
        ids (`list[str]`): Clip ids.
        texts (`list[str]`): What is said in each clip.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope.
        logits (`np.ndarray` of shape `(clips, num_labels)`): float32.
        pooler_output (`np.ndarray` of shape `(clips, width)`): float32; the classifier's input.
        multimodal_embeds (`np.ndarray` of shape `(clips, projection_dim)`): float32, unit length.
        label_embeds (`np.ndarray` of shape `(num_labels, projection_dim)`, *optional*):
            float32; `None` if the model has no descriptions.
        anchor_indices, anchor_scores (`np.ndarray` of shape `(clips, 3, num_anchors)`, *optional*):
            `None` if the model chooses no anchors.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    logits: np.ndarray
    pooler_output: np.ndarray
    multimodal_embeds: np.ndarray
    label_embeds: np.ndarray | None = None
    anchor_indices: np.ndarray | None = None
    anchor_scores: np.ndarray | None = None

    @classmethod
    def from_predictions(cls, dataset: Any, **outputs: Any) -> "ClipOutputs":
        """Build the outputs from what a `Trainer` gathers.

        Args:
            dataset (`datasets.Dataset`, or examples one after another): The clips, with `id`, `text` and `label`.
            outputs (`np.ndarray` or `torch.Tensor`):
                `logits`, `pooler_output`, `multimodal_embeds`, `label_embeds`, `anchor_indices`, `anchor_scores`, with
                one row for each clip (`label_embeds` for each label).

        Returns:
            [`ClipOutputs`]: The outputs, floating-point values as float32.

        Raises:
            ValueError: If an output does not have one row for each clip.
        """
        if not hasattr(dataset, "__len__"):  # a stream
            dataset = [{name: row[name] for name in ("id", "text", "label")} for row in dataset]
        arrays = {name: _to_numpy(value) for name, value in outputs.items() if value is not None}
        for name, values in arrays.items():
            if name in CLIP_OUTPUTS and len(values) != len(dataset):
                raise ValueError(f"`{name}` has {len(values)} rows for {len(dataset)} clips; give one for each clip")
        ids, texts, labels = (_column(dataset, name) for name in ("id", "text", "label"))
        return cls(ids=ids, texts=texts, labels=np.array(labels), **arrays)

    def __len__(self):
        return len(self.ids)

    @property
    def predictions(self) -> np.ndarray:
        """The best known label's id for each clip, of shape `(clips,)`."""
        return self.logits.argmax(-1)

    def as_model_outputs(self) -> dict[str, np.ndarray]:
        """Return the same as a `dict`, as [`OutOfScopeDetector`] takes it."""
        names = ("logits", "pooler_output", "multimodal_embeds", "label_embeds")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def select(self, rows: np.ndarray) -> "ClipOutputs":
        """Return the clips where `rows`, of shape `(clips,)`, is true."""
        numbers = np.flatnonzero(rows)
        chosen = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = [value[number] for number in numbers]
            elif value is not None and field.name != "label_embeds":
                value = value[numbers]
            chosen[field.name] = value
        return ClipOutputs(**chosen)


def _column(dataset: Any, name: str):
    return list(dataset[name]) if hasattr(dataset, "column_names") else [row[name] for row in dataset]


def _to_numpy(value: Any):
    value = torch.as_tensor(value).detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


def model_modalities(config: Any) -> tuple[str, ...]:
    """Return the modalities that a model with this configuration uses, in the order text, audio, video."""
    if config.fusion_type == "text":
        return ("text",)
    sizes = {"text": True, "audio": config.audio_config, "video": config.video_config}
    return tuple(name for name in MODALITIES if sizes[name])


def modality_sets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every non-empty set of these modalities, all of them first, then by size, each in the given order."""
    return [kept for size in range(len(modalities), 0, -1) for kept in combinations(modalities, size)]


def predict_clips(
    model: Any,
    dataset: Any,
    data_collator: Callable,
    batch_size: int = 32,
    keep_modalities: Sequence[str] = MODALITIES,
    description: str = "Predicting",
) -> ClipOutputs:
    """Run a model over a split, in evaluation mode and without gradients.

    Args:
        model ([`AMESSForIntentClassification`]): It stays on its device and returns to its previous mode.
        dataset (`datasets.Dataset`): Rows as `load_mintrec` gives them (`id`, `text`, `label`, and features).
        data_collator (`Callable`): From a list of rows to a batch, e.g. [`AMESSDataCollator`].
        batch_size (`int`, *optional*, defaults to 32): Clips at a time.
        keep_modalities (`Sequence[str]`, *optional*): Modalities that the model may see; the others are masked.
        description (`str`, *optional*): The label of the progress bar.

    Returns:
        [`ClipOutputs`]: The outputs, in the order of the rows.

    Raises:
        ValueError: If the data set has no clip.
    """
    if not len(dataset):
        raise ValueError("there is no clip to evaluate; the split is empty")
    training = model.training
    model.eval()
    loader = DataLoader(dataset, batch_size, collate_fn=data_collator)
    outputs = {name: [] for name in CLIP_OUTPUTS}
    try:
        for batch in logging.tqdm(loader, desc=description, unit="batch", leave=False):
            # Without labels: no loss is needed, and -1 is not a label id.
            batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            for modality in set(MODALITIES) - set(keep_modalities):
                if _MASKS[modality] in batch:
                    batch[_MASKS[modality]] = torch.zeros_like(batch[_MASKS[modality]])
            with torch.no_grad():
                result = model(**batch)
            for name, values in outputs.items():
                if result.get(name) is not None:
                    values.append(result[name].cpu())
    finally:
        model.train(training)
    outputs = {name: torch.cat(values) for name, values in outputs.items() if values}
    return ClipOutputs.from_predictions(dataset, label_embeds=result.get("label_embeds"), **outputs)


def modality_table(
    model: Any,
    dataset: Any,
    data_collator: Callable,
    batch_size: int = 32,
    complete: ClipOutputs | None = None,
) -> list[dict]:
    """Measure what each modality adds, by masking the others.

    The in-scope metrics with each non-empty set of the model's modalities kept. A clip that has none of the kept
    modalities is answered without input, as in use.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        dataset (`datasets.Dataset`): Rows as for [`predict_clips`]; clips with label -1 are left out.
        data_collator (`Callable`): From a list of rows to a batch.
        batch_size (`int`, *optional*, defaults to 32): Clips at a time.
        complete ([`ClipOutputs`], *optional*): The outputs with all modalities, if they are already available.

    Returns:
        `list[dict]`: all modalities first, each with `modalities` (list of names), `accuracy`, `weighted_f1`, and
        `changed`, the share of clips whose answer differs from that with all modalities.
    """
    modalities = model_modalities(model.config)
    if complete is None:
        complete = predict_clips(model, dataset, data_collator, batch_size)
    in_scope = complete.labels >= 0
    labels, reference = complete.labels[in_scope], complete.predictions[in_scope]
    table = []
    for kept in modality_sets(modalities):
        predictions = reference
        if kept != modalities:
            masked = predict_clips(model, dataset, data_collator, batch_size, kept, f"Only {' and '.join(kept)}")
            predictions = masked.predictions[in_scope]
        metrics = compute_classification_metrics(predictions, labels)
        table.append(
            {
                "modalities": list(kept),
                "accuracy": metrics["accuracy"],
                "weighted_f1": metrics["weighted_f1"],
                "changed": float((predictions != reference).mean()),
            }
        )
    return table


def answers(logits: np.ndarray, names: Mapping[int, str]) -> tuple[list[str], np.ndarray]:
    """Return the name and the probability of each clip's best label.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        names (`dict[int, str]`): Names of the label ids.

    Returns:
        `tuple` of `list[str]` and `np.ndarray` of shape `(clips,)`.
    """
    from scipy.special import softmax

    probabilities = softmax(logits.astype(np.float64), axis=-1)
    return [names[index] for index in logits.argmax(-1)], probabilities.max(-1)


def write_predictions(
    path: str | os.PathLike,
    ids: Sequence[str],
    labels: Sequence[str],
    predictions: Sequence[str],
    scores: Sequence[float],
) -> None:
    """Write `id`, `label`, `prediction` and `score` as tab-separated text.

    Args:
        path (`str`): The file.
        ids (`list[str]`): Clip ids.
        labels (`list[str]`): Names of the true intents.
        predictions (`list[str]`): Names of the predicted intents.
        scores (`list[float]`): Probability of each prediction.
    """
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        # Like MIntRec's own tables: nothing is quoted, quotation marks are literal, white space becomes one space.
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", "score"])
        for *names, score in zip(ids, labels, predictions, scores, strict=True):
            writer.writerow([*(" ".join(str(name).split()) for name in names), f"{score:.6f}"])
