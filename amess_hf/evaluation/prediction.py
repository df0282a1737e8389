"""A model's outputs for a whole split, with any modalities masked."""

from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..constants_amess import MODALITIES
from .metrics import compute_classification_metrics


logger = logging.get_logger(__name__)

_MASKS = {"text": "attention_mask", "audio": "audio_attention_mask", "video": "video_attention_mask"}
_OUTPUT_FIELDS = ("logits", "pooler_output", "multimodal_embeds", "anchor_indices", "anchor_scores")


@dataclass
class ClipOutputs:
    """
    What a model gives for the clips of a split, on the CPU.

    Attributes:
        ids, texts: lists, one entry for each clip.
        labels: (clips,) label ids, -1 for out of scope.
        input_ids: list of lists, the tokens of each clip without padding.
        logits: (clips, num_labels) float32.
        pooler_output: (clips, width) float32; what the classifier sees.
        multimodal_embeds: (clips, projection_dim) float32, unit length.
        label_embeds: (num_labels, projection_dim) float32, or None where the model has no descriptions.
        anchor_indices, anchor_scores: (clips, 3, num_anchors), or None where the model chooses no anchors.
    """

    ids: list
    texts: list
    labels: np.ndarray
    input_ids: list
    logits: np.ndarray
    pooler_output: np.ndarray
    multimodal_embeds: np.ndarray
    label_embeds: np.ndarray | None = None
    anchor_indices: np.ndarray | None = None
    anchor_scores: np.ndarray | None = None

    def __len__(self):
        return len(self.ids)

    @property
    def predictions(self):
        """(clips,) ids of the best known label."""
        return self.logits.argmax(-1)

    def as_model_outputs(self):
        """The same as a `dict`, as `OutOfScopeDetector` takes it."""
        names = ("logits", "pooler_output", "multimodal_embeds", "label_embeds")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def select(self, rows):
        """The clips where `rows` (clips,) is true."""
        numbers = np.flatnonzero(rows)
        chosen = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name == "label_embeds":
                chosen[field.name] = value
            else:
                chosen[field.name] = (
                    [value[number] for number in numbers] if isinstance(value, list) else value[numbers]
                )
        return ClipOutputs(**chosen)


def model_modalities(config):
    """The modalities that a model with this configuration looks at, in the order text, audio, video."""
    if config.fusion_type == "text":
        return ("text",)
    sizes = {"text": True, "audio": config.audio_feature_size, "video": config.video_feature_size}
    return tuple(name for name in MODALITIES if sizes[name])


def modality_sets(modalities):
    """Every non-empty set of these modalities, all of them first, then by size, each in the given order."""
    return [
        kept for size in range(len(modalities), 0, -1) for kept in combinations(modalities, size)
    ]  # seven for three modalities


def predict_clips(model, dataset, data_collator, batch_size=32, keep_modalities=MODALITIES, description="Predicting"):
    """
    Runs the model over a split, in evaluation mode and without gradient.

    Args:
        model (`AMESSForIntentClassification`): it stays on its device and comes back in the mode that it was in.
        dataset: rows as `load_mintrec` gives them (`id`, `text`, `label`, and features).
        data_collator: from a list of rows to a batch, e.g. `AMESSDataCollator`.
        batch_size: clips at a time.
        keep_modalities: modalities that the model may see; the others are masked.
        description: what the progress bar says.

    Returns:
        `ClipOutputs`.

    Raises:
        ValueError: the data set has no clip.
    """
    if not len(dataset):
        raise ValueError("there is no clip to evaluate: the split is empty")
    training = model.training
    model.eval()
    loader = DataLoader(dataset, batch_size, collate_fn=lambda rows: (rows, data_collator(rows)))
    rows_seen, input_ids, outputs = [], [], {name: [] for name in _OUTPUT_FIELDS}
    try:
        for rows, batch in logging.tqdm(loader, desc=description, unit="batch", leave=False):
            # without labels: no loss is wanted, and -1 is none of the labels
            batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
            for tokens, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
                input_ids.append([token for token, there in zip(tokens, mask, strict=True) if there])
            for modality in set(MODALITIES) - set(keep_modalities):
                if _MASKS[modality] in batch:
                    batch[_MASKS[modality]] = torch.zeros_like(batch[_MASKS[modality]])
            with torch.no_grad():
                result = model(**batch)
            for name, values in outputs.items():
                if result.get(name) is not None:
                    value = result[name].float() if result[name].is_floating_point() else result[name]
                    values.append(value.cpu().numpy())
            # the features stay behind: over a large split they would fill the memory
            rows_seen.extend({name: row[name] for name in ("id", "text", "label")} for row in rows)
    finally:
        model.train(training)
    label_embeds = result.get("label_embeds")
    return ClipOutputs(
        ids=[row["id"] for row in rows_seen],
        texts=[row["text"] for row in rows_seen],
        labels=np.array([row["label"] for row in rows_seen]),
        input_ids=input_ids,
        label_embeds=None if label_embeds is None else label_embeds.float().cpu().numpy(),
        **{name: np.concatenate(values) if values else None for name, values in outputs.items()},
    )


def modality_table(model, dataset, data_collator, batch_size=32, complete=None):
    """
    What each modality adds: the in-scope figures with each non-empty set of the model's modalities kept and the others
    masked. A clip that has none of the kept modalities is answered from nothing, as in use.

    Args:
        model, dataset, data_collator, batch_size: as for `predict_clips`; clips with label -1 are left out.
        complete (`ClipOutputs`, *optional*): the outputs with all modalities, where they are at hand already.

    Returns:
        list of `dict`, all modalities first: `modalities` (list of names), `accuracy`, `weighted_f1`, and `changed`, the
        share of clips whose answer differs from that with all modalities.
    """
    modalities = model_modalities(model.config)
    table = []
    for kept in modality_sets(modalities):
        if complete is None or kept != modalities:
            outputs = predict_clips(
                model, dataset, data_collator, batch_size, kept, description=f"Only {' and '.join(kept)}"
            )
        else:
            outputs = complete
        in_scope = outputs.labels >= 0
        predictions, labels = outputs.predictions[in_scope], outputs.labels[in_scope]
        if kept == modalities:
            reference = predictions
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
