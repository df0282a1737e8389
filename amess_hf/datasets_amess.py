"""The data sets that the package knows, and what a data set requires of a model: labels, feature widths, usual lengths.

To add one, add a [`DatasetSpec`] to `DATASETS`; with descriptions of its intents, which are optional, in
`data/label_descriptions/<name>.json`. `load_mintrec(folder, name)` then reads it, a model gets its usual lengths and the
descriptions, and a model card says what it is. Data with the columns `text` and `label` need no entry:
`load_mintrec(folder, "folder")`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import logging

from .configuration_amess import FEATURE_MODALITIES
from .encoders_amess import encoder_class


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class DatasetSpec:
    """One data set, as its authors publish it.

    Attributes:
        title (`str`): Its name as people write it.
        labels (`list[str]`): The intents, in the order of their ids.
        id_columns (`tuple[str, ...]`): Columns (lower case) of its tables that identify a clip.
        id_format (`str`): The id of a clip, made of `id_columns`, as it stands in feature files.
        folders (`dict[str, list[str]]`): Where the tables of clips `"in"` scope, `"out"` of scope and of `"all"` are: glob
            patterns relative to the folder of the data set (`{folder}`: its name), of which the first with tables counts.
        max_lengths (`dict[str, int]`): Tokens of `"text"`, and frames of each modality, that published experiments keep.
        emotions (`frozenset[str]`): The labels whose coarse label is `"Emotion"`; all others are `"Goal"`.
        described (`bool`): Whether descriptions of its intents are shipped.
        description (`str`): A sentence or two, with the license of the annotations.
        license (`str`, *optional*): For models trained on it, as the Hub names it, if the annotations are share-alike.
        citation (`str`): BibTeX.
    """

    title: str
    labels: list[str]
    id_columns: tuple[str, ...]
    id_format: str
    folders: dict[str, list[str]]
    max_lengths: dict[str, int] = field(default_factory=dict)
    emotions: frozenset[str] = frozenset()
    described: bool = False
    description: str = ""
    license: str | None = None
    citation: str = ""


# Labels that "express emotions or attitudes"; all others serve to "achieve goals".
_EMOTIONS = frozenset("Complain Praise Apologise Thank Criticize Care Agree Taunt Flaunt Joke Oppose".split())

DATASETS = {
    "mintrec": DatasetSpec(
        title="MIntRec",
        labels=(
            "Complain,Praise,Apologise,Thank,Criticize,Agree,Taunt,Flaunt,Joke,Oppose,Comfort,Care,Inform,Advise,Arrange,"
            "Introduce,Leave,Prevent,Greet,Ask for help"
        ).split(","),
        id_columns=("season", "episode", "clip"),
        id_format="{season}_{episode}_{clip}",
        folders={"in": ["."], "out": ["MIntRec-OOD", "../{folder}-OOD", "../MIntRec-OOD"], "all": []},
        max_lengths={"text": 30, "audio": 480, "video": 230},
        emotions=_EMOTIONS,
        described=True,
        description=(
            "MIntRec: 2,224 clips of one television series, 1,334 for training, 445 for development and 445 for testing, with "
            "20 intents. The annotations are published under the MIT license at github.com/thuiar/MIntRec."
        ),
        citation="""\
@inproceedings{zhang2022mintrec,
  title     = {{MIntRec}: A New Dataset for Multimodal Intent Recognition},
  author    = {Zhang, Hanlei and Xu, Hua and Wang, Xin and Zhou, Qianrui and Zhao, Shaojie and Teng, Jiayan},
  booktitle = {Proceedings of the 30th ACM International Conference on Multimedia},
  year      = {2022}
}""",
    ),
    "mintrec2.0": DatasetSpec(
        title="MIntRec2.0",
        labels=(
            "Acknowledge,Advise,Agree,Apologise,Arrange,Ask for help,Asking for opinions,Care,Comfort,Complain,Confirm,"
            "Criticize,Doubt,Emphasize,Explain,Flaunt,Greet,Inform,Introduce,Invite,Joke,Leave,Oppose,Plan,Praise,Prevent,"
            "Refuse,Taunt,Thank,Warn"
        ).split(","),
        id_columns=("dialogue_id", "utterance_id"),
        id_format="dia{dialogue_id}_utt{utterance_id}",
        folders={"in": ["in-scope", "."], "out": ["out-of-scope", "out-of-scope/*"], "all": ["total"]},
        max_lengths={"text": 50, "audio": 400, "video": 180},
        emotions=_EMOTIONS | {"Doubt", "Acknowledge", "Refuse", "Warn", "Emphasize"},
        described=True,
        description=(
            "MIntRec2.0: clips of three television series in 1,245 dialogues; in scope 6,165 for training, 1,106 for "
            "development and 2,033 for testing, with 30 intents. The annotations are published under CC BY-NC-SA 4.0 at "
            "github.com/thuiar/MIntRec2.0: not for commercial use."
        ),
        license="cc-by-nc-sa-4.0",
        citation="""\
@inproceedings{zhang2024mintrec,
  title     = {{MIntRec2.0}: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and Out-of-scope
               Detection in Conversations},
  author    = {Zhang, Hanlei and Wang, Xin and Xu, Hua and Zhou, Qianrui and Gao, Kai and Su, Jianhua and Zhao, Jinyue
               and Li, Wenrui and Chen, Yanting},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}""",
    ),
}

# Tokens of text, unless an official data set or longer training text asks for more: the default of [`AMESSConfig`].
LEAST_TEXT_LENGTH = 30

# What `load_mintrec` takes as `name`.
DATASET_NAMES = (*DATASETS, "folder")

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
        ValueError: If `label` is missing or is not a `ClassLabel`, or if these are several splits.
    """
    if isinstance(dataset, dict):
        raise ValueError(f"`dataset` has the splits {', '.join(dataset)}; give the one to train on")
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
    MIntRec and MIntRec2.0 are then recognized by their official label lists.

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


def text_length_for(dataset: Any, tokenizer: Any, context_turns: int = 0) -> int:
    """Return how many tokens hold the text of 99 of 100 clips, at least 30; each turn of context has as much room.

    Args:
        dataset (`datasets.Dataset`): Training clips with the column `text`.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's tokenizer.
        context_turns (`int`): Earlier turns of the dialogue that are read too.
    """
    lengths = sorted(len(ids) for ids in tokenizer(list(dataset["text"]), verbose=False)["input_ids"])
    return max(LEAST_TEXT_LENGTH, lengths[(99 * len(lengths) - 1) // 100]) * (1 + context_turns)


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
