"""MIntRec, MIntRec2.0 and custom data as a `datasets.DatasetDict`.

MIntRec: Zhang et al., "MIntRec: A New Dataset for Multimodal Intent Recognition", ACM MM 2022.
MIntRec2.0: Zhang et al., "MIntRec2.0: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and
Out-of-scope Detection in Conversations", ICLR 2024.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.config import DATASET_INFO_FILENAME
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from transformers.utils import logging

from ..configuration_amess import FEATURE_MODALITIES, OUT_OF_SCOPE_ID
from ..recipe_amess import DATASET_NAMES, dataset_name
from .annotations import (
    Clip,
    add_context,
    check_unique,
    first_of,
    read_mintrec,
    read_mintrec2,
    resolve_labels,
    warn_of_shared_ids,
    warn_of_unseen_labels,
)
from .custom_data import CLIP_COLUMNS, FEATURE_COLUMNS, label_names, read_custom_table
from .dataset_files import NO_FEATURES, SCOPES, DatasetFiles, find_dataset_files, fingerprint
from .feature_files import DTYPES, NumpyFeatures, cast_frames, open_features
from .labels import COARSE_LABELS, LABELS, coarse_label
from .safe_pickle import first_line


logger = logging.get_logger(__name__)

# Part of the cache's path: increase it whenever the rows that the builder writes change.
VERSION = datasets.Version("1.0.0")

GRANULARITIES = ("fine", "coarse")

_FIELD_TYPES = {
    "speaker": "string",
    "source": "string",
    "dialogue_id": "string",
    "utterance_id": "string",
    "start": "float64",
    "end": "float64",
    "clip": "string",
    "audio": "string",
    "video": "string",
}


@dataclass
class MIntRecConfig(datasets.BuilderConfig):
    """What to read, and how; see [`load_mintrec`]."""

    version: datasets.Version = VERSION
    scope: str = "in"
    label_granularity: str = "fine"
    audio_features: str | None = None
    video_features: str | None = None
    context_turns: int = 0
    allow_missing_features: bool = False
    allow_missing_clips: bool = False
    dtype: str = "float32"

    def find_files(self) -> DatasetFiles:
        """Check the arguments and find the files; see [`find_dataset_files`]."""
        allowed = {"name": DATASET_NAMES, "scope": SCOPES, "label_granularity": GRANULARITIES, "dtype": DTYPES}
        for argument, values in allowed.items():
            value = getattr(self, argument)
            if value not in values:
                raise ValueError(f"`{argument}` is {value!r}; choose one of {', '.join(values)}")
        if self.context_turns < 0:
            raise ValueError(f"`context_turns` is {self.context_turns}; give 0 or more")
        if self.name == "folder" and self.label_granularity == "coarse":
            raise ValueError("`label_granularity='coarse'` is known for mintrec and mintrec2.0 only; use 'fine'")
        if self.data_dir is None:
            raise ValueError("`data_dir` is missing; give the folder that holds the annotation tables")
        chosen = {modality: getattr(self, f"{modality}_features") for modality in FEATURE_MODALITIES}
        return find_dataset_files(Path(self.data_dir), self.name, self.scope, chosen)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache of this configuration; a changed file changes the name."""
        files = self.find_files()
        paths = files.paths()
        if self.name == "folder":
            clips = read_clips(files, self.name, self.allow_missing_clips)
            paths += [clip.fields[column] for clip in clips for column in FEATURE_COLUMNS if column in clip.fields]
        state = [fingerprint(paths), sorted(files.clips.items())]
        return super().create_config_id({**config_kwargs, "fingerprint": Hasher.hash(state)}, custom_features)


@dataclass
class BuildPlan:
    """What the builder writes.

    Attributes:
        splits (`dict[str, list[Clip]]`): Clips by split.
        labels (`list[str]`): Names of the label ids.
        features (`dict[str, ChainedFeatures]`): Features by modality.
        columns (`list[str]`): Columns that only some data sets have.
    """

    splits: dict[str, list[Clip]]
    labels: list[str]
    features: dict[str, "ChainedFeatures"] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    @property
    def clips(self) -> list[Clip]:
        """The clips of all splits."""
        return [clip for clips in self.splits.values() for clip in clips]


def read_clips(files: DatasetFiles, name: str, allow_missing_clips: bool = False) -> list[Clip]:
    """Read all annotation tables of the data set `name`."""
    return [clip for split, path in files.tables for clip in read_table(path, name, split, allow_missing_clips)]


def read_table(path: Path, name: str, split: str, allow_missing_clips: bool = False) -> list[Clip]:
    """Read one annotation table of the data set `name`; every clip knows its split."""
    readers = {"mintrec": read_mintrec, "mintrec2.0": read_mintrec2}
    clips = readers[name](path) if name in readers else read_custom_table(path, split, allow_missing_clips)
    for clip in clips:
        clip.split = split
    return clips


def make_plan(config: MIntRecConfig, cache_dir: Path) -> BuildPlan:
    """Read the annotation tables, check them, and open the feature files.

    Args:
        config ([`MIntRecConfig`]): What to read.
        cache_dir (`Path`): Where the converted forms of pickled features are kept.

    Raises:
        ValueError: If anything is wrong with the files, naming file and row.
    """
    files = config.find_files()
    clips = read_clips(files, config.name, config.allow_missing_clips)
    labels = LABELS[config.name] if config.name in LABELS else label_names(clips)
    resolve_labels(clips, labels)
    splits = {split: [clip for clip in clips if clip.split == split] for split, _ in files.tables}
    for split, members in splits.items():
        check_unique(members)
        if config.context_turns:
            turn_table = files.turn_tables.get(split)
            turns = read_table(turn_table, config.name, split) if turn_table else []
            add_context(members, turns + members, config.context_turns)
        wanted = {"in": [True], "out": [False], "all": [True, False]}[config.scope]
        splits[split] = [clip for clip in members if clip.in_scope in wanted]
    splits = {split: members for split, members in splits.items() if members}
    warn_of_shared_ids(splits)
    warn_of_unseen_labels(splits)
    if not splits:
        raise ValueError(f"{config.data_dir}: no clip of scope={config.scope!r} in its tables; choose another `scope`")
    plan = BuildPlan(splits, COARSE_LABELS if config.label_granularity == "coarse" else labels)
    plan.features = open_modalities(files, plan.clips, cache_dir)
    if not config.allow_missing_features:
        check_features_present(plan)
    for clip in plan.clips:
        own = next((clip.fields[column] for column in CLIP_COLUMNS if column in clip.fields), None)
        if path := own or files.clips.get(clip.id):
            clip.fields["clip"] = path
    present = {name for clip in plan.clips for name in clip.fields}
    plan.columns = [name for name in _FIELD_TYPES if name in present]
    return plan


def open_modalities(files: DatasetFiles, clips: list[Clip], cache_dir: Path) -> dict[str, "ChainedFeatures"]:
    """Return {modality: features of the clips} for the modalities that the data set has."""

    def cached(path: Path) -> Path:
        return cache_dir / "amess_features" / f"{path.stem}-{fingerprint([path])}"

    features = {}
    for modality in FEATURE_MODALITIES:
        column = f"{modality}_features"
        # A clip's own file belongs to its row: two splits may number their clips alike.
        own_files = {clip.where: clip.fields[column] for clip in clips if column in clip.fields}
        parts = [(path, "id", open_features(path, cached)) for path in files.features.get(modality, [])]
        if own_files:
            parts.append((files.tables[0][1], "where", NumpyFeatures(own_files)))
        chained = ChainedFeatures(parts)
        if chained.feature_size:
            features[modality] = chained
        elif parts:
            logger.warning(f"{parts[0][0]}: no clip has a frame of {modality}; the modality is left out")
    return features


class ChainedFeatures:
    """Features of several files as one; the first file that holds a clip counts.

    Args:
        parts (`list[tuple[Path, str, Any]]`): (path to name in errors, attribute of a clip that is its key there,
            features that map the key to [frames, dim] and know their `feature_size`).

    Attributes:
        feature_size (`int`): Width of the features, 0 if no clip has a frame.

    Raises:
        ValueError: If two files have features of different width.
    """

    def __init__(self, parts: list[tuple[Path, str, Any]]):
        widths = {path: part.feature_size for path, _, part in parts if part.feature_size}
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{path}: {width}" for path, width in widths.items())
            raise ValueError(f"features of different width ({found}); choose files of one kind")
        self.parts = parts
        self.feature_size = next(iter(widths.values()), 0)

    def __contains__(self, clip: Clip) -> bool:
        return any(getattr(clip, key) in part for _, key, part in self.parts)

    def __getitem__(self, clip: Clip) -> np.ndarray:
        """Return float32 [frames, feature_size], of zero frames for a clip that has none.

        Raises:
            ValueError: If a number is NaN or infinite.
        """
        for path, key, part in self.parts:
            if getattr(clip, key) in part:
                return _finite(part[getattr(clip, key)], clip.id, path)
        return np.empty((0, self.feature_size), np.float32)


def _finite(frames: np.ndarray, clip_id: str, path: Path) -> np.ndarray:
    finite = np.isfinite(frames).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{path}: clip {clip_id} has NaN or infinite features, first in frame {int(np.argmin(finite))}; "
            "extract the clip again"
        )
    return frames


def check_features_present(plan: BuildPlan) -> None:
    """Raise `ValueError`, listing clips, if some have no features of a modality that the data set has."""
    for modality, features in plan.features.items():
        missing = [clip.id for clip in plan.clips if clip not in features]
        if missing:
            raise ValueError(
                f"{features.parts[0][0]}: no {modality} features for {len(missing)} clips: {first_of(missing)}; "
                "set `allow_missing_features` to treat the modality as absent there"
            )


class MIntRec(datasets.GeneratorBasedBuilder):
    """Builds the Arrow data set that [`load_mintrec`] returns, a few clips in memory at a time."""

    VERSION = VERSION
    BUILDER_CONFIG_CLASS = MIntRecConfig
    DEFAULT_WRITER_BATCH_SIZE = 32

    def _info(self) -> datasets.DatasetInfo:
        # The columns depend on the folder, which is only read if there is no cache to use.
        return datasets.DatasetInfo(description=f"{self.config.name} for multimodal intent recognition")

    def _build_cache_dir(self) -> str:
        """Return where the built data set is kept; remove the metadata of a damaged one."""
        folder = super()._build_cache_dir()
        if os.path.exists(os.path.join(folder, DATASET_INFO_FILENAME)):
            try:
                datasets.DatasetInfo.from_directory(folder)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                logger.warning(f"the cache {folder} is damaged ({first_line(error)}); it is built again")
                shutil.rmtree(folder)
        return folder

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        self.plan = make_plan(self.config, Path(self._cache_dir_root))
        self.info.features = self._features()
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.plan.splits]

    def _features(self) -> datasets.Features:
        columns = {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=self.plan.labels),
            "label_name": datasets.Value("string"),
            "in_scope": datasets.Value("bool"),
        }
        columns.update({name: datasets.Value(_FIELD_TYPES[name]) for name in self.plan.columns})
        if self.config.context_turns:
            columns["context"] = datasets.Sequence(datasets.Value("string"))
        for modality, features in self.plan.features.items():
            # The first axis varies. Rows of this type are returned as numpy arrays without going through lists.
            columns[f"{modality}_features"] = datasets.Array2D((None, features.feature_size), self.config.dtype)
        return datasets.Features(columns)

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, clip in enumerate(self.plan.splits[split]):
            yield number, self._example(clip)

    def _example(self, clip: Clip) -> dict[str, Any]:
        label_name = clip.label
        if clip.in_scope and self.config.label_granularity == "coarse":
            label_name = coarse_label(clip.label)
        label = self.plan.labels.index(label_name) if clip.in_scope else OUT_OF_SCOPE_ID
        example = {"id": clip.id, "text": clip.text, "label": label, "label_name": label_name}
        example["in_scope"] = clip.in_scope
        for name in self.plan.columns:
            value = clip.fields.get(name)
            example[name] = str(value) if isinstance(value, Path) else value
        if self.config.context_turns:
            example["context"] = clip.context
        for modality, features in self.plan.features.items():
            frames, path = features[clip], features.parts[0][0]
            example[f"{modality}_features"] = cast_frames(frames, self.config.dtype, clip.id, path)
        return example


def load_mintrec(
    data_dir: str | os.PathLike,
    name: str = "mintrec",
    scope: str = "in",
    *,
    label_granularity: str = "fine",
    audio_features: str | None = None,
    video_features: str | None = None,
    context_turns: int = 0,
    allow_missing_features: bool = False,
    allow_missing_clips: bool = False,
    dtype: str = "float32",
    cache_dir: str | os.PathLike | None = None,
) -> datasets.DatasetDict:
    """Load MIntRec, MIntRec2.0 or custom data.

    Args:
        data_dir (`str` or `os.PathLike`): Folder in the layout of the published archive. For `"mintrec"` the tsv
            files, `audio_data/` and `video_data/`, with out-of-scope clips in a folder `MIntRec-OOD` inside or next
            to it; for `"mintrec2.0"` `in-scope/`, `out-of-scope/<name>/` and `total/`, or the tsv files directly; for
            `"folder"` tables `train.csv`, `dev.csv`, `test.csv` (or tsv, jsonl, parquet) with the columns `text` and
            `label`.
        name (`str`): `"mintrec"`, `"mintrec2.0"` or `"folder"`; [`dataset_name`] reads it back.
        scope (`str`): Which clips: `"in"` scope, `"out"` of scope, or `"all"`.
        label_granularity (`str`): `"fine"` (20 or 30 intents), or `"coarse"`: `Emotion` and `Goal`.
        audio_features (`str`, *optional*): Name (`"wavlm_feats"`) or path of the audio features; `"none"` leaves them
            out. By default the only ones in the folder.
        video_features (`str`, *optional*): The same for video (`"swin_roi"`, `"swin_feats"`, `"video_feats"`).
        context_turns (`int`): Number of earlier turns of the dialogue to give as the column `context`.
        allow_missing_features (`bool`): Treat a clip without features as one of zero frames; otherwise it is an error.
        allow_missing_clips (`bool`): Keep paths of raw clips that do not exist; otherwise they are an error.
        dtype (`str`): How features are stored, `"float32"` or `"float16"` (half the space; rows come back as float32).
        cache_dir (`str` or `os.PathLike`, *optional*): Where the built data set is kept; by default in the cache of
            `datasets`.

    Returns:
        `datasets.DatasetDict`: Splits `train`, `validation` and `test`, as far as they are in the folder. A row has
        `id`, `text`, `label` (-1 out of scope), `label_name` (`"UNK"` out of scope), `in_scope`; `audio_features` and
        `video_features`, float32 arrays [frames, dim] (zero frames: absent for this clip), where the data set has
        them; and as far as the tables have them `speaker`, `source`, `dialogue_id`, `utterance_id`, `start`, `end`
        (seconds), `clip`. Rows are read from mapped files, so their number is not limited by memory.

    Raises:
        ValueError: If anything is wrong with the arguments or the files, naming file and row.

    Example:
        >>> dataset = load_mintrec("path/to/MIntRec2.0", "mintrec2.0", context_turns=2)
        >>> dataset["train"][0]["text"]
    """
    arguments = {
        "config_name": name,
        "data_dir": str(Path(data_dir).expanduser().resolve()),
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "scope": scope,
        "label_granularity": label_granularity,
        "audio_features": audio_features,
        "video_features": video_features,
        "context_turns": context_turns,
        "allow_missing_features": allow_missing_features,
        "allow_missing_clips": allow_missing_clips,
        "dtype": dtype,
    }
    try:
        builder, dataset = _build(arguments, datasets.DownloadMode.REUSE_DATASET_IF_EXISTS)
    except _DamagedCacheError as error:
        logger.warning(f"the cache of {data_dir} is damaged ({first_line(error)}); it is built again")
        builder, dataset = _build(arguments, datasets.DownloadMode.FORCE_REDOWNLOAD)
    if not _feature_columns(builder.info.features) and NO_FEATURES not in (audio_features, video_features):
        has_clips = {"video", "audio"} & set(builder.info.features)
        next_step = "; `add_clip_features` makes features of its clips" if has_clips else ""
        logger.warning_once(f"{data_dir} has no feature files; using text only{next_step}")
    return with_feature_arrays(dataset)


class _DamagedCacheError(ValueError):
    """The built data set cannot be read, or is incomplete."""


def _build(arguments: dict[str, Any], mode: datasets.DownloadMode) -> tuple["MIntRec", datasets.DatasetDict]:
    """Build the data set, or read it from the cache of an earlier call.

    Raises:
        ValueError: See [`load_mintrec`].
        _DamagedCacheError: The cache is damaged.
    """
    builder = MIntRec(**arguments)
    try:
        builder.download_and_prepare(download_mode=mode)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    try:
        dataset = builder.as_dataset()
    except (pa.ArrowException, OSError) as error:
        raise _DamagedCacheError(str(error)) from None
    counts = {split: len(rows) for split, rows in dataset.items()}
    expected = {split: info.num_examples for split, info in builder.info.splits.items()}
    if counts != expected:
        raise _DamagedCacheError(f"it has {counts} rows of {expected}")
    return builder, dataset


def with_feature_arrays(dataset: datasets.DatasetDict) -> datasets.DatasetDict:
    """Return `dataset` with features given as numpy arrays, and everything else as plain Python values.

    This is how [`load_mintrec`] returns it. Plain `datasets.load_dataset` gives features as nested lists, which take
    about eight times as long to read.

    Args:
        dataset (`datasets.DatasetDict`): All splits have the same columns.
    """
    columns = _feature_columns(next(iter(dataset.values())).features)
    return dataset.with_format("numpy", columns=columns, output_all_columns=True) if columns else dataset


def _feature_columns(features: datasets.Features) -> list[str]:
    return [column for column in FEATURE_COLUMNS if column in features]


__all__ = ["MIntRec", "MIntRecConfig", "dataset_name", "load_mintrec", "with_feature_arrays"]
