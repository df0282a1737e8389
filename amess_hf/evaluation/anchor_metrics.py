"""How often anchors lie on the evidence, for clips where its place is known, such as simulated ones."""

import csv
import os
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from ..configuration_amess import FEATURE_MODALITIES, MODALITIES
from .prediction import ClipOutputs


def read_evidence_spans(path: str | os.PathLike) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Read where the evidence of clips lies.

    Args:
        path (`str`):
            A tab-separated table with the columns `id`, `modality` (`audio` or `video`), `first` (frame), `end` (the frame
            after the last) and `frames` (of the clip); other columns are ignored.

    Returns:
        `dict`: modality -> clip id -> (first, end, frames).

    Raises:
        ValueError: If the file is missing, or a row cannot be read; the message names file and line.
    """
    spans = defaultdict(dict)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            for row in rows:
                try:
                    span = int(row["first"]), int(row["end"]), int(row["frames"])
                    spans[row["modality"]][row["id"]] = span
                except (KeyError, TypeError, ValueError):
                    raise ValueError(
                        f"{path}:{rows.line_num}: not a span of evidence; write id, modality, first, end and frames"
                    ) from None
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); give the table of the spans of evidence"
        ) from error
    return dict(spans)


def compute_anchor_metrics(
    outputs: ClipOutputs, spans: Mapping[str, Mapping[str, tuple[int, int, int]]]
) -> dict[str, dict[str, float]]:
    """Compare anchors with spans of evidence.

    Args:
        outputs ([`ClipOutputs`]): The clips, with their anchors.
        spans (`dict`): What [`read_evidence_spans`] gives; clips that are not in it are left out.

    Returns:
        `dict`: modality -> `clips` (how many count), `best_anchor` (share of clips whose best anchor lies in the span),
        `all_anchors` (share of all anchors that do) and `chance` (mean share of the frames that do); a modality that no
        clip with anchors has a span for is left out.

    Raises:
        ValueError: If the model chooses no anchors.
    """
    if outputs.anchor_indices is None:
        raise ValueError("the model chooses no anchors; evidence spans need `fusion_type='anchor'`")
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
