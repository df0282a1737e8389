"""Utterances that have none of the intents, written for this package: for outlier exposure where a data set has none."""

import json
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..constants_amess import OUT_OF_SCOPE_ID, OUT_OF_SCOPE_LABEL
from ..recipe_amess import feature_sizes


OUTLIERS_FILE = Path(__file__).parent / "outlier_utterances.json"


def outlier_utterances() -> list[str]:
    """Return small talk, facts, half sentences and the like; the file says who wrote them and what was asked for."""
    return json.loads(OUTLIERS_FILE.read_text(encoding="utf-8"))["utterances"]


def with_outliers(split: Dataset) -> Dataset:
    """Return a training split with the outlier utterances behind its clips, as clips of words alone with label -1.

    Args:
        split (`datasets.Dataset`): Clips as [`load_mintrec`] gives them.

    Raises:
        ValueError: If the clips have sound or picture, which the utterances lack: that alone would tell them apart.
    """
    if feature_sizes(split):
        raise ValueError(
            "the outlier utterances have no sound and no picture, by which a model would know them; train with "
            "`--audio_features none --video_features none`"
        )
    row = dict.fromkeys(split.column_names) | {"label": OUT_OF_SCOPE_ID}
    row |= {"label_name": OUT_OF_SCOPE_LABEL, "in_scope": False} if "in_scope" in row else {}
    row |= {name: [] for name in ("context",) if name in row}
    if "candidate_mask" in row:
        row["candidate_mask"] = [True] * split.features["label"].num_classes
    rows = [row | {"id": f"outlier-{index}", "text": text} for index, text in enumerate(outlier_utterances())]
    return concatenate_datasets([split, Dataset.from_list(rows, features=split.features)])


__all__ = ["outlier_utterances", "with_outliers"]
