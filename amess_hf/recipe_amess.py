"""What a data set requires of a model: labels, feature widths, usual lengths, and whether there is anything to fuse.

The rest of the training recipe is the defaults of [`AMESSConfig`] and [`AMESSTrainingArguments`].
"""

from collections.abc import Iterable
from typing import Any

from transformers.utils import logging

from .constants_amess import FEATURE_MODALITIES
from .processing_amess import LABELS


logger = logging.get_logger(__name__)

# What `load_mintrec` calls the data sets.
DATASET_NAMES = (*LABELS, "folder")

# Tokens and frames that the published experiments on each data set keep.
USUAL_LIMITS = {
    "mintrec": {"max_text_length": 30, "max_audio_length": 480, "max_video_length": 230},
    "mintrec2.0": {"max_text_length": 50, "max_audio_length": 400, "max_video_length": 180},
}


# What suits the features of a front end: a filterbank keeps how loud a frame is, which says much about a tone of
# voice, and has no local pattern before a convolution reads it; nor has a grid of histograms, whose patterns lie
# side by side.
FRONT_END_FIELDS = {
    ("audio", "log-mel"): {
        "audio_feature_norm": "clip",
        "audio_band_shift": 3,
        "num_audio_conv_layers": 2,
        "audio_pooling": "statistics",
    },
    ("video", "hog-grid"): {"video_grid_side": 15, "video_grid_shift": 1},
}
# Any other encoder of sound is pretrained: its states, averaged over time, tell a tone of voice.
PRETRAINED_FIELDS = {"audio": {"audio_pooling": "statistics"}, "video": {}}


def front_end_fields(**encoders: str | None) -> dict[str, Any]:
    """Return the fields of [`AMESSConfig`] that suit the encoders of sound and picture.

    Args:
        encoders (`str`, *optional*): `audio` and `video`: what makes the features, as in [`AMESSConfig`].
    """
    fields = {}
    for modality, encoder in encoders.items():
        if encoder is not None:
            fields |= FRONT_END_FIELDS.get((modality, encoder), PRETRAINED_FIELDS[modality])
    return fields


def label_names(dataset: Any) -> list[str]:
    """Return the names of the labels of `dataset`, in the order of their ids.

    Args:
        dataset (`datasets.Dataset`): Clips with the column `label`, a `ClassLabel`.

    Raises:
        ValueError: If `label` is missing or is not a `ClassLabel`.
    """
    names = getattr(dataset.features.get("label"), "names", None)
    if names is None:
        raise ValueError(
            "the column `label` of `dataset` is not a `ClassLabel`; load it with `load_mintrec`, or use "
            '`dataset.class_encode_column("label")`'
        )
    return list(names)


def dataset_name(split: Any) -> str | None:
    """Return which data set the rows of `split` came from: `"mintrec"`, `"mintrec2.0"` or `"folder"`.

    [`load_mintrec`] leaves the name in `split.info.config_name`, where selected, filtered, mapped and saved rows keep it,
    and the Hub after `push_to_hub(repo, config_name=name)`. Parquet files and a plain `push_to_hub` do not keep it;
    MIntRec and MIntRec2.0 are then recognised by their official label lists.

    Args:
        split (`datasets.Dataset`): One split.

    Returns:
        `str`, *optional*: None for rows of several data sets, and where nothing identifies the data set.
    """
    if split.info.config_name in DATASET_NAMES:
        return split.info.config_name
    names = getattr((split.features or {}).get("label"), "names", None)
    return next((name for name, labels in LABELS.items() if names == labels), None)


def feature_sizes(dataset: Any) -> dict[str, int]:
    """Return the widths of the features of `dataset`: `audio_feature_size` and `video_feature_size`, as far as it has them."""
    return {
        f"{modality}_feature_size": _width(dataset, f"{modality}_features")
        for modality in FEATURE_MODALITIES
        if f"{modality}_features" in dataset.column_names
    }


def _width(dataset: Any, column: str) -> int:
    shape = getattr(dataset.features[column], "shape", None)
    return shape[-1] if shape else next(len(row[column][0]) for row in dataset if len(row[column]))


def usual_limits(names: Iterable[str | None], context_turns: int = 0) -> dict[str, int]:
    """Return the largest of the usual lengths of several data sets; each turn of context has as much room as the utterance.

    Args:
        names (`Iterable[str]`): Names of data sets; those without published lengths are skipped.
        context_turns (`int`): Earlier turns of the dialogue that are read too.
    """
    known = [USUAL_LIMITS[name] for name in names if name in USUAL_LIMITS]
    limits = {field: max(limit[field] for limit in known) for field in (known[0] if known else ())}
    if limits:
        limits["max_text_length"] *= 1 + context_turns
    return limits


def config_fields_for(dataset: Any, context_turns: int | None = None) -> dict[str, Any]:
    """Return the fields of [`AMESSConfig`] that follow from a training split.

    Args:
        dataset (`datasets.Dataset`):
            The clips, as [`load_mintrec`] gives them: features with their widths, earlier turns in the column `context`,
            and where several data sets were merged the name of each clip's in the column `dataset`.
        context_turns (`int`, *optional*): Earlier turns to read; by default as many as the clips have.

    Returns:
        `dict[str, Any]`: `context_turns`, `max_text_length` and the other lengths where they are published,
        `audio_feature_size` and `video_feature_size`; `fusion_type="text"` where there are words alone.
    """
    columns = dataset.column_names
    if context_turns is None:
        context_turns = max(map(len, dataset["context"]), default=0) if "context" in columns else 0
    names = dict.fromkeys(dataset["dataset"]) if "dataset" in columns else [dataset_name(dataset)]
    fields = {"context_turns": context_turns, **usual_limits(names, context_turns)}
    sizes = feature_sizes(dataset)
    if not sizes:
        raw = [column for column in ("clip", "audio", "video") if column in columns]
        unread = f" (the clips in the column `{raw[0]}` are not read: " if raw else ""
        options = (
            "give `--audio_encoder log-mel --video_encoder hog`, or the name of a model on the Hub)" if raw else ""
        )
        logger.warning(
            f"words alone{unread}{options}: there is nothing to fuse, so `fusion_type` is text unless given"
        )
        sizes = {"fusion_type": "text"}
    return {**fields, **sizes}


__all__ = [
    "DATASET_NAMES",
    "USUAL_LIMITS",
    "config_fields_for",
    "dataset_name",
    "feature_sizes",
    "front_end_fields",
    "label_names",
    "usual_limits",
]
