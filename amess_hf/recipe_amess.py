"""What a data set asks of a model: labels, feature widths, usual lengths, and whether there is anything to fuse.

The rest of the training recipe is the defaults of [`AMESSConfig`] and [`AMESSTrainingArguments`].
"""

from collections.abc import Iterable
from typing import Any

from transformers.utils import logging

from .constants_amess import FEATURE_MODALITIES


logger = logging.get_logger(__name__)

# Tokens and frames that the published experiments on each data set keep.
USUAL_LIMITS = {
    "mintrec": {"max_text_length": 30, "max_audio_length": 480, "max_video_length": 230},
    "mintrec2.0": {"max_text_length": 50, "max_audio_length": 400, "max_video_length": 180},
}


# What suits the features of a front end: a filterbank keeps how loud a frame is, which says much of a tone of voice, and has
# no local pattern before a convolution reads it.
FRONT_END_FIELDS = {
    ("audio", "log-mel"): {"audio_feature_norm": "clip", "num_audio_conv_layers": 2, "audio_pooling": "statistics"},
}


def front_end_fields(**encoders: str | None) -> dict[str, Any]:
    """Return the fields of [`AMESSConfig`] that suit the encoders of sound and picture.

    Args:
        encoders (`str`, *optional*): `audio` and `video`: what makes the features, as in [`AMESSConfig`].
    """
    return {
        field: value
        for modality, encoder in encoders.items()
        for field, value in FRONT_END_FIELDS.get((modality, encoder), {}).items()
    }


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


def usual_limits(names: Iterable[str], context_turns: int = 0) -> dict[str, int]:
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
    names = dict.fromkeys(dataset["dataset"]) if "dataset" in columns else [dataset.info.config_name]
    fields = {"context_turns": context_turns, **usual_limits(names, context_turns)}
    sizes = feature_sizes(dataset)
    if not sizes:
        logger.warning("words alone: there is nothing to fuse, so `fusion_type` is text unless given")
        sizes = {"fusion_type": "text"}
    return {**fields, **sizes}


__all__ = [
    "USUAL_LIMITS",
    "config_fields_for",
    "feature_sizes",
    "front_end_fields",
    "label_names",
    "usual_limits",
]
