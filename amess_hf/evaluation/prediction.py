"""A model's outputs for a split, and what follows from them: predictions' file, modality table, anchors and evidence."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..configuration_amess import FEATURE_MODALITIES, IGNORED_LABEL_ID, MODALITIES, OUT_OF_SCOPE_LABEL
from ..processing_amess import plain_cell, written_aside
from .metrics import compute_classification_metrics, compute_oos_metrics


logger = logging.get_logger(__name__)

_MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "video": "video_attention_mask"}
# Fields of the model's output that have one row for each clip and are kept.
CLIP_OUTPUTS = (
    *("logits", "pooler_output", "multimodal_embeds"),
    *("anchor_indices", "anchor_scores", "evidence", "modality_mask"),
)


@dataclass
class ClipOutputs:
    """A model's outputs for the clips of a split, on the CPU.

    Attributes:
        ids (`list[str]`): Clip ids.
        texts (`list[str]`): What is said in each clip.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope, -100 where the clips have none.
        logits (`np.ndarray` of shape `(clips, num_labels)`): float32.
        pooler_output (`np.ndarray` of shape `(clips, width)`): float32; the classifier's input.
        multimodal_embeds (`np.ndarray` of shape `(clips, projection_dim)`): float32, unit length.
        label_embeds (`np.ndarray` of shape `(num_labels, projection_dim)`, *optional*):
            float32; `None` if the model has no descriptions.
        anchor_indices, anchor_scores (`np.ndarray` of shape `(clips, 3, num_anchors)`, *optional*):
            `None` if the model chooses no anchors.
        evidence (`np.ndarray` of shape `(clips, 2, num_labels)`, *optional*):
            What audio and video add to the logits, before calibration; `None` if the fusion has none.
        modality_mask (`np.ndarray` of shape `(clips, 3)`, bool, *optional*): Which modalities a clip has.
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
    evidence: np.ndarray | None = None
    modality_mask: np.ndarray | None = None

    @classmethod
    def from_predictions(cls, dataset: Any, **outputs: Any) -> "ClipOutputs":
        """Build the outputs from what a `Trainer` gathers.

        Args:
            dataset (`datasets.Dataset`, or examples one after another): The clips, with `id`, `text` and `label`.
            outputs (`np.ndarray` or `torch.Tensor`): The other attributes, floating-point values of any type.
        """
        if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):  # a list, or a stream
            rows = [(row["id"], row["text"], row.get("label", IGNORED_LABEL_ID)) for row in dataset]
            ids, texts, labels = map(list, zip(*rows, strict=True))
        else:
            ids, texts = list(dataset["id"]), list(dataset["text"])
            labels = dataset["label"] if "label" in dataset.column_names else [IGNORED_LABEL_ID] * len(dataset)
        arrays = {name: _to_numpy(value) for name, value in outputs.items() if value is not None}
        return cls(ids, texts, np.array(labels), **arrays)

    def __len__(self):
        return len(self.ids)

    @property
    def predictions(self) -> np.ndarray:
        """The best known label's id for each clip, of shape `(clips,)`."""
        return self.logits.argmax(-1)

    def confidence(self) -> np.ndarray:
        """Return the probability of each clip's best label, of shape `(clips,)`."""
        from scipy.special import softmax

        return softmax(self.logits.astype(np.float64), axis=-1).max(-1)

    def as_model_outputs(self) -> dict[str, np.ndarray]:
        """Return the same as a `dict`, as [`OutOfScopeDetector`] takes it."""
        names = ("logits", "pooler_output", "multimodal_embeds", "label_embeds", "modality_mask")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def select(self, rows: np.ndarray) -> "ClipOutputs":
        """Return the clips where `rows`, of shape `(clips,)`, is true."""
        names = ("labels", *CLIP_OUTPUTS)
        arrays = {name: getattr(self, name)[rows] for name in names if getattr(self, name) is not None}
        ids, texts = (
            [value for value, kept in zip(values, rows, strict=True) if kept] for values in (self.ids, self.texts)
        )
        return replace(self, ids=ids, texts=texts, **arrays)


def _to_numpy(value: Any):
    value = torch.as_tensor(value).detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()


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
    outputs = defaultdict(list)
    masked = [_MASKS[modality] for modality in MODALITIES if modality not in keep_modalities]
    loader = DataLoader(dataset, batch_size, collate_fn=data_collator)
    try:
        for batch in logging.tqdm(loader, desc=description, unit="batch", leave=False):
            # Without labels: no loss is needed, and -1 is not a label id.
            batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            batch |= {name: torch.zeros_like(batch[name]) for name in masked if name in batch}
            with torch.no_grad():
                result = model(**batch)
            for name in CLIP_OUTPUTS:
                if result.get(name) is not None:
                    outputs[name].append(result[name].cpu())
    finally:
        model.train(training)
    arrays = {name: torch.cat(values) for name, values in outputs.items()}
    return ClipOutputs.from_predictions(dataset, label_embeds=result.get("label_embeds"), **arrays)


def predict_masked(
    model: Any, dataset: Any, data_collator: Callable, batch_size: int = 32
) -> Iterator[tuple[tuple[str, ...], ClipOutputs]]:
    """Yield each set of modalities but all and none, larger ones first, and the outputs with only these.

    The arguments are those of [`predict_clips`].
    """
    modalities = model.config.modalities
    for size in range(len(modalities) - 1, 0, -1):
        for kept in combinations(modalities, size):
            yield kept, predict_clips(model, dataset, data_collator, batch_size, kept, f"Only {' and '.join(kept)}")


def modality_table(
    model: Any,
    dataset: Any,
    data_collator: Callable,
    batch_size: int = 32,
    complete: ClipOutputs | None = None,
    detector: Any = None,
) -> list[dict]:
    """Measure what each modality adds: in-scope metrics with each non-empty set of modalities, the others masked.

    A clip that has none of the kept modalities is answered without input, as in use.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        dataset (`datasets.Dataset`): Rows as for [`predict_clips`]; clips with label -1 count for the detector alone.
        data_collator (`Callable`): From a list of rows to a batch.
        batch_size (`int`, *optional*, defaults to 32): Clips at a time.
        complete ([`ClipOutputs`], *optional*): The outputs with all modalities, if they are already available.
        detector ([`OutOfScopeDetector`], *optional*): A calibrated one, to measure too where `dataset` has out-of-scope clips.

    Returns:
        `list[dict]`: all modalities first, then by size, each with `modalities` (list of names), `accuracy`,
        `weighted_f1`, `changed`, the share of clips whose answer differs from that with all modalities, and of the detector
        `oos_auroc`, `kept_in_scope` and `caught_out_of_scope`.
    """
    if complete is None:
        complete = predict_clips(model, dataset, data_collator, batch_size)
    in_scope = complete.labels >= 0
    table = []
    masked = predict_masked(model, dataset, data_collator, batch_size)
    for kept, outputs in chain([(model.config.modalities, complete)], masked):
        metrics = compute_classification_metrics(outputs.predictions[in_scope], complete.labels[in_scope])
        row = {"modalities": list(kept)} | {name: metrics[name] for name in ("accuracy", "weighted_f1")}
        row["changed"] = float((outputs.predictions != complete.predictions)[in_scope].mean())
        if detector is not None and not in_scope.all():
            found = outputs.as_model_outputs()
            accepted = detector.predict(found).numpy()
            row["oos_auroc"] = compute_oos_metrics(detector.score(found).numpy(), in_scope)["auroc"]
            row["kept_in_scope"] = float(accepted[in_scope].mean())
            row["caught_out_of_scope"] = float(1 - accepted[~in_scope].mean())
        table.append(row)
    return table


def write_predictions(
    path: str | os.PathLike, outputs: ClipOutputs, names: Mapping[int, str], in_scope: np.ndarray | None = None
) -> None:
    """Write `id`, `label`, `prediction`, `score` (the probability) and `text` of each clip as tab-separated text.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.

    Args:
        path (`str`): The file.
        outputs ([`ClipOutputs`]): The clips and their scores.
        names (`dict[int, str]`): Names of the label ids.
        in_scope (`np.ndarray` of shape `(clips,)`, bool, *optional*): A detector's decisions; other clips are answered
            `UNK`.
    """
    labels = [names.get(int(label), OUT_OF_SCOPE_LABEL) for label in outputs.labels]
    predictions = outputs.predictions if in_scope is None else np.where(in_scope, outputs.predictions, -1)
    answers = [names.get(int(prediction), OUT_OF_SCOPE_LABEL) for prediction in predictions]
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        # Like MIntRec's own tables: nothing is quoted, quotation marks are literal, white space becomes one space.
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", "score", "text"])
        scores = (f"{score:.6f}" for score in outputs.confidence())
        for row in zip(outputs.ids, labels, answers, scores, outputs.texts, strict=True):
            writer.writerow(plain_cell(" ".join(str(cell).split())) for cell in row)


def read_evidence_spans(path: str | os.PathLike) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Read where the evidence of clips lies, where it is known, as for simulated clips.

    Args:
        path (`str`):
            A tab-separated table with the columns `id`, `modality` (`audio` or `video`), `first` (frame), `end` (the frame
            after the last) and `frames` (of the clip); other columns are ignored.

    Returns:
        `dict`: modality -> clip id -> (first, end, frames).

    Raises:
        ValueError: If the table cannot be read.
    """
    import pandas

    columns = {"id": str, "modality": str, "first": int, "end": int, "frames": int}
    form = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    try:
        table = pandas.read_csv(path, usecols=list(columns), dtype=columns, **form)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no table of spans ({error}); give {', '.join(columns)}") from error
    spans = defaultdict(dict)
    for row in table.itertuples():
        spans[row.modality][row.id] = (row.first, row.end, row.frames)
    return dict(spans)


def compute_anchor_metrics(
    outputs: ClipOutputs, spans: Mapping[str, Mapping[str, tuple[int, int, int]]]
) -> dict[str, dict[str, float]]:
    """Compare anchors with spans of evidence.

    Args:
        outputs ([`ClipOutputs`]): The clips, of a model that chooses anchors.
        spans (`dict`): What [`read_evidence_spans`] gives; clips that are not in it are left out.

    Returns:
        `dict`: modality -> `clips` (how many count), `best_anchor` (share of clips whose best anchor lies in the span),
        `all_anchors` (share of all anchors that do) and `chance` (mean share of the frames that do); a modality that no
        clip with anchors has a span for is left out.
    """
    metrics = {}
    for modality in FEATURE_MODALITIES:
        known = spans.get(modality, {})
        indices = outputs.anchor_indices[:, MODALITIES.index(modality)]
        rows = [row for row, clip in enumerate(outputs.ids) if clip in known and indices[row, 0] >= 0]
        if not rows:
            continue
        indices, bounds = indices[rows], np.array([known[outputs.ids[row]] for row in rows])
        inside = (indices >= bounds[:, :1]) & (indices < bounds[:, 1:2])
        metrics[modality] = {
            "clips": len(rows),
            "best_anchor": float(inside[:, 0].mean()),
            "all_anchors": float(inside[indices >= 0].mean()),
            "chance": float(((bounds[:, 1] - bounds[:, 0]) / bounds[:, 2]).mean()),
        }
    return metrics
