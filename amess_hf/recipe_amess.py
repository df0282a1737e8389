"""What a data set requires of a model: labels, feature widths, usual lengths, and whether there is anything to fuse.

The rest of the training recipe is the defaults of [`AMESSConfig`] and [`AMESSTrainingArguments`].
"""

from collections.abc import Iterable
from typing import Any

from transformers.utils import logging

from .configuration_amess import FEATURE_MODALITIES
from .datasets_amess import DATASET_NAMES, DATASETS
from .encoders_amess import encoder_class


logger = logging.get_logger(__name__)

FEATURE_CONFIGS = ("audio_config", "video_config")


def merge_fields(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two sets of fields of [`AMESSConfig`], feature configurations field by field; `second` takes precedence."""
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], dict) and isinstance(second[name], dict) and name in FEATURE_CONFIGS:
            merged[name] = {**first[name], **second[name]}
    return merged


def front_end_fields(
    audio: str | None = None, video: str | None = None, audio_layer: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return the fields of `audio_config` and `video_config` that suit the encoders which make the features."""
    fields = {}
    for modality, encoder in (("audio", audio), ("video", video)):
        if encoder is not None:
            fields[f"{modality}_config"] = {"encoder": encoder, **encoder_class(modality, encoder).config_fields}
    if audio_layer is not None and audio is not None:
        fields["audio_config"]["encoder_layer"] = audio_layer
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
    return next((name for name, spec in DATASETS.items() if names == spec.labels), None)


def feature_sizes(dataset: Any) -> dict[str, int]:
    """Return the widths of the features of `dataset` by modality, as far as it has them."""
    columns = {name: f"{name}_features" for name in FEATURE_MODALITIES}
    return {name: _width(dataset, column) for name, column in columns.items() if column in dataset.column_names}


def _width(dataset: Any, column: str) -> int:
    shape = getattr(dataset.features[column], "shape", None)
    return shape[-1] if shape else next(len(row[column][0]) for row in dataset if len(row[column]))


def usual_limits(names: Iterable[str | None], context_turns: int = 0) -> dict[str, int]:
    """Return the largest of the usual lengths of several data sets; each turn of context has as much room as the utterance.

    Args:
        names (`Iterable[str]`): Names of data sets; those without published lengths are skipped.
        context_turns (`int`): Earlier turns of the dialogue that are read too.
    """
    known = [DATASETS[name].max_lengths for name in names if name in DATASETS]
    limits = {name: max(limit[name] for limit in known) for name in (known[0] if known else ())}
    if limits:
        limits["text"] *= 1 + context_turns
    return limits


def config_fields_for(dataset: Any, context_turns: int | None = None) -> dict[str, Any]:
    """Return the fields of [`AMESSConfig`] that follow from a training split.

    Args:
        dataset (`datasets.Dataset`):
            The clips, as [`load_mintrec`] gives them: features with their widths, earlier turns in the column `context`,
            and where several data sets were merged the name of each clip's in the column `dataset`.
        context_turns (`int`, *optional*): Earlier turns to read; by default as many as the clips have.

    Returns:
        `dict[str, Any]`: `context_turns`, `max_text_length` where it is published, `audio_config` and `video_config` with
        `feature_size` and the published `max_length`; `fusion_type="text"` where there is text alone.
    """
    columns = dataset.column_names
    if context_turns is None:
        context_turns = max(map(len, dataset["context"]), default=0) if "context" in columns else 0
    names = dict.fromkeys(dataset["dataset"]) if "dataset" in columns else [dataset_name(dataset)]
    limits = usual_limits(names, context_turns)
    fields: dict[str, Any] = {"context_turns": context_turns}
    if "text" in limits:
        fields["max_text_length"] = limits.pop("text")
    sizes = feature_sizes(dataset)
    for name, size in sizes.items():
        fields[f"{name}_config"] = {"feature_size": size} | ({"max_length": limits[name]} if name in limits else {})
    if not sizes:
        raw = [column for column in ("clip", "audio", "video") if column in columns]
        unread = f" (the clips in the column `{raw[0]}` are not read: " if raw else ""
        options = (
            "give `--audio_encoder log-mel --video_encoder hog`, or the name of a model on the Hub)" if raw else ""
        )
        logger.warning(f"no audio or video features{unread}{options}; using fusion_type='text'")
        fields["fusion_type"] = "text"
    return fields


__all__ = [
    "config_fields_for",
    "dataset_name",
    "feature_sizes",
    "front_end_fields",
    "label_names",
    "merge_fields",
    "usual_limits",
]
