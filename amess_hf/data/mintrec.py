"""MIntRec, MIntRec2.0 and custom data as a `datasets.DatasetDict`.

To add a data set, see [`DatasetSpec`] in `datasets_amess.py`; nothing has to be written here.

MIntRec: Zhang et al., "MIntRec: A New Dataset for Multimodal Intent Recognition", ACM MM 2022.
MIntRec2.0: Zhang et al., "MIntRec2.0: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and
Out-of-scope Detection in Conversations", ICLR 2024.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
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
from ..datasets_amess import DATASET_NAMES, DATASETS, DatasetSpec
from .annotations import CLIP_COLUMNS, FEATURE_COLUMNS, Clip, read_annotations, read_clips
from .dataset_files import NO_FEATURES, DatasetFiles, find_dataset_files, fingerprint
from .errors import first_line, first_of, require
from .feature_files import DTYPES, NumpyFeatures, cast_frames, open_features


logger = logging.get_logger(__name__)

# Part of the cache's path: increase it whenever the rows that the builder writes change.
VERSION = datasets.Version("1.0.0")

COARSE_LABELS = ["Emotion", "Goal"]

# What each argument of `load_mintrec` may be.
_CHOICES = {
    "name": DATASET_NAMES,
    "scope": ("in", "out", "all"),
    "label_granularity": ("fine", "coarse"),
    "dtype": DTYPES,
    "on_error": ("raise", "skip"),
}
_FIELD_TYPES = {
    **dict.fromkeys(("speaker", "source", "dialogue_id", "utterance_id"), "string"),
    **dict.fromkeys(("start", "end"), "float64"),
    **dict.fromkeys(("clip", "audio", "video"), "string"),
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
    on_error: str = "raise"
    dtype: str = "float32"

    @property
    def spec(self) -> DatasetSpec | None:
        """The data set; None for custom data."""
        return DATASETS.get(self.name)

    def find_files(self) -> DatasetFiles:
        """Check the arguments and find the files; see [`find_dataset_files`]."""
        for argument, values in _CHOICES.items():
            value = getattr(self, argument)
            require(value in values, f"`{argument}` is {value!r}; choose one of {', '.join(values)}")
        require(self.context_turns >= 0, f"`context_turns` is {self.context_turns}; give 0 or more")
        known = self.label_granularity == "fine" or (self.spec and self.spec.emotions)
        names = " and ".join(name for name, spec in DATASETS.items() if spec.emotions)
        require(known, f"`label_granularity='coarse'` is known for {names} only; use 'fine'")
        require(self.data_dir, "`data_dir` is missing; give the folder that holds the annotation tables")
        chosen = {modality: getattr(self, f"{modality}_features") for modality in FEATURE_MODALITIES}
        return find_dataset_files(Path(self.data_dir), self.spec, self.scope, chosen)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache of this configuration; a changed file changes the name."""
        files = self.find_files()
        paths = files.paths()
        if self.spec is None:
            clips = [clip for split, path in files.tables for clip in read_clips(path, split, None, self.on_error)]
            paths += [clip.fields[column] for clip in clips for column in FEATURE_COLUMNS if column in clip.fields]
        state = [fingerprint(paths), sorted(files.clips.items())]
        return super().create_config_id({**config_kwargs, "fingerprint": Hasher.hash(state)}, custom_features)


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
        config, files = self.config, self.config.find_files()
        self.clips, labels = read_annotations(
            files.tables, config.spec, config.scope, config.context_turns, files.turn_tables, config.on_error
        )
        self.labels = COARSE_LABELS if config.label_granularity == "coarse" else labels
        clips = [clip for members in self.clips.values() for clip in members]
        self.features = _open_modalities(files, clips, Path(self._cache_dir_root) / "amess_features")
        if not config.allow_missing_features:
            _check_features_present(self.features, clips)
        for clip in clips:
            own = next((clip.fields[column] for column in CLIP_COLUMNS if column in clip.fields), None)
            if path := own or files.clips.get(clip.id):
                clip.fields["clip"] = path
        present = {name for clip in clips for name in clip.fields}
        self.columns = [name for name in _FIELD_TYPES if name in present]
        self.info.features = self._columns()
        return [datasets.SplitGenerator(name=split, gen_kwargs={"split": split}) for split in self.clips]

    def _columns(self) -> datasets.Features:
        columns = {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=self.labels),
            "label_name": datasets.Value("string"),
            "in_scope": datasets.Value("bool"),
        }
        columns.update({name: datasets.Value(_FIELD_TYPES[name]) for name in self.columns})
        if self.config.context_turns:
            columns["context"] = datasets.Sequence(datasets.Value("string"))
        for modality, features in self.features.items():
            # The first axis varies. Rows of this type are returned as numpy arrays without going through lists.
            columns[f"{modality}_features"] = datasets.Array2D((None, features.feature_size), self.config.dtype)
        return datasets.Features(columns)

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, clip in enumerate(self.clips[split]):
            yield number, self._example(clip)

    def _example(self, clip: Clip) -> dict[str, Any]:
        label_name = clip.label
        if clip.in_scope and self.config.label_granularity == "coarse":
            label_name = COARSE_LABELS[clip.label not in self.config.spec.emotions]
        label = self.labels.index(label_name) if clip.in_scope else OUT_OF_SCOPE_ID
        example = {"id": clip.id, "text": clip.text, "label": label, "label_name": label_name}
        example["in_scope"] = clip.in_scope
        for name in self.columns:
            value = clip.fields.get(name)
            example[name] = str(value) if isinstance(value, Path) else value
        if self.config.context_turns:
            example["context"] = clip.context
        for modality, features in self.features.items():
            example[f"{modality}_features"] = cast_frames(
                features[clip], self.config.dtype, clip.id, features.parts[0][1].source
            )
        return example


def _open_modalities(files: DatasetFiles, clips: list[Clip], cache_dir: Path) -> dict[str, "_ChainedFeatures"]:
    """Return {modality: features of the clips} for the modalities that the data set has."""
    opened = {}
    for modality in FEATURE_MODALITIES:
        column = f"{modality}_features"
        paths = files.features.get(modality, [])
        parts = [("id", open_features(path, cache_dir / f"{path.stem}-{fingerprint([path])}")) for path in paths]
        # A clip's own file belongs to its row: two splits may number their clips alike.
        own_files = {clip.where: clip.fields[column] for clip in clips if column in clip.fields}
        parts += [("where", NumpyFeatures(own_files, files.tables[0][1]))] if own_files else []
        chained = _ChainedFeatures(parts)
        if chained.feature_size:
            opened[modality] = chained
        elif parts:
            logger.warning(f"{parts[0][1].source}: no clip has a frame of {modality}; the modality is left out")
    return opened


class _ChainedFeatures:
    """Features of several files as one; the first file that holds a clip counts.

    Args:
        parts (`list[tuple[str, Any]]`): (attribute of a clip that is its key in the file, opened feature file).

    Attributes:
        feature_size (`int`): Width of the features, 0 if no clip has a frame.

    Raises:
        ValueError: If two files have features of different width.
    """

    def __init__(self, parts: list[tuple[str, Any]]):
        widths = {part.source: part.feature_size for _, part in parts if part.feature_size}
        found = ", ".join(f"{path}: {width}" for path, width in widths.items())
        require(len(set(widths.values())) < 2, f"features of different width ({found}); choose files of one kind")
        self.parts = parts
        self.feature_size = next(iter(widths.values()), 0)

    def __contains__(self, clip: Clip) -> bool:
        return any(getattr(clip, key) in part for key, part in self.parts)

    def __getitem__(self, clip: Clip) -> np.ndarray:
        """Return float32 [frames, feature_size], of zero frames for a clip that has none."""
        part = next(((key, part) for key, part in self.parts if getattr(clip, key) in part), None)
        return np.empty((0, self.feature_size), np.float32) if part is None else part[1][getattr(clip, part[0])]


def _check_features_present(opened: dict[str, _ChainedFeatures], clips: list[Clip]) -> None:
    """Raise `ValueError`, listing clips, if some have no features of a modality that the data set has."""
    for modality, features in opened.items():
        missing = [clip.id for clip in clips if clip not in features]
        found = f"{features.parts[0][1].source}: no {modality} features for {len(missing)} clips: {first_of(missing)}"
        require(not missing, f"{found}; set `allow_missing_features` to treat the modality as absent there")


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
    on_error: str = "raise",
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
        on_error (`str`): `"raise"` where a raw clip does not exist, or `"skip"`: its path is kept, and
            `add_clip_features` leaves the clip out.
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
        "data_dir": os.path.realpath(Path(data_dir).expanduser()),
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "scope": scope,
        "label_granularity": label_granularity,
        "audio_features": audio_features,
        "video_features": video_features,
        "context_turns": context_turns,
        "allow_missing_features": allow_missing_features,
        "on_error": on_error,
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


def _build(arguments: dict[str, Any], mode: datasets.DownloadMode) -> tuple[MIntRec, datasets.DatasetDict]:
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


__all__ = ["MIntRec", "MIntRecConfig", "load_mintrec", "with_feature_arrays"]
