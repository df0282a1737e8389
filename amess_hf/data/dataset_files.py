"""The files of a data set: where its folder keeps annotation tables, feature files and raw clips."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from transformers.utils import logging

from ..configuration_amess import CLIP_SUFFIXES
from ..datasets_amess import DatasetSpec
from .annotations import READERS
from .errors import require
from .feature_files import INDEX_NAME, PICKLE_SUFFIXES


logger = logging.get_logger(__name__)

NO_FEATURES = "none"
RAW_CLIPS_FOLDER = "raw_data"

# The file that holds each split: official names first, then common ones.
SPLIT_FILES = {"train": ("train",), "validation": ("dev", "validation", "valid", "val"), "test": ("test",)}

# Files up to this size are hashed completely.
HASHED_WHOLE = 2**20


@dataclass
class DatasetFiles:
    """The files that one call of `load_mintrec` reads.

    Attributes:
        tables (`list[tuple[str, Path]]`): (split, annotation table) in the order of reading.
        turn_tables (`dict[str, Path]`): {split: table} that dialogue context may come from, in addition to `tables`.
        features (`dict[str, list[Path]]`): {`"audio"` or `"video"`: feature files}; the first one that holds a clip
            counts. A modality that is not used is absent.
        clips (`dict[str, Path]`): {clip id: raw clip}; empty where there are none.
    """

    tables: list[tuple[str, Path]]
    turn_tables: dict[str, Path] = field(default_factory=dict)
    features: dict[str, list[Path]] = field(default_factory=dict)
    clips: dict[str, Path] = field(default_factory=dict)

    def paths(self) -> list[Path]:
        """Return the files whose content ends up in the rows; of a raw clip only the path does."""
        tables = [path for _, path in self.tables]
        features = [path for paths in self.features.values() for path in paths]
        return [*tables, *self.turn_tables.values(), *features]


def find_dataset_files(
    root: Path, spec: DatasetSpec | None, scope: str, chosen_features: dict[str, str | None]
) -> DatasetFiles:
    """Find the files of a data set in the folder `root`.

    Args:
        root (`Path`): Folder of the data set.
        spec ([`DatasetSpec`], *optional*): The data set; None for custom data.
        scope (`str`): `"in"`, `"out"` or `"all"`.
        chosen_features (`dict[str, str | None]`): {modality: name (`"wavlm_feats"`) or path of its features, `"none"`
            to leave them out, None for the only ones in the folder}.

    Raises:
        ValueError: If `root` is not a folder or holds no annotation table, if a modality has several feature files
            and none is chosen, or the chosen one does not exist.
    """
    require(root.is_dir(), f"`data_dir` {root} is not a folder; give the folder that holds the annotation tables")
    suffixes = (".tsv",) if spec else tuple(READERS)
    folders = _table_folders(root, spec, scope) if spec else [root]
    tables = [(split, path) for folder in folders for split, path in _find_split_files(folder, suffixes).items()]
    wanted = ", ".join(stems[0] for stems in SPLIT_FILES.values())
    places = ", ".join(map(str, folders))
    missing = f"no {wanted} ({', '.join(suffixes)}) for scope={scope!r} in {places}"
    own = not tables and any(_find_split_files(folder, READERS) for folder in folders)
    next_step = "`name='folder'` reads tables of your own" if own else "`data_dir` must hold at least one"
    require(tables, f"{missing}; {next_step}")
    files = DatasetFiles(tables)
    everything = _folder_with_tables(root, spec.folders["all"]) if spec else None
    files.turn_tables = _find_split_files(everything) if everything else {}
    for modality, chosen in chosen_features.items():
        paths = _feature_files([*folders, root], modality, chosen, root)
        if paths:
            files.features[modality] = paths
    for folder in dict.fromkeys([root, *folders]):
        files.clips.update(find_clips(folder / RAW_CLIPS_FOLDER))
    return files


def _find_split_files(folder: Path, suffixes: Iterable[str] = (".tsv",)) -> dict[str, Path]:
    """Return {split: file} for the annotation tables directly in `folder`."""
    found = {}
    for split, stems in SPLIT_FILES.items():
        paths = [folder / (stem + suffix) for stem in stems for suffix in suffixes]
        paths = [path for path in paths if path.is_file()]
        names = ", ".join(path.name for path in paths)
        require(len(paths) < 2, f"{folder} holds several files for the split {split}: {names}; keep one of them")
        if paths:
            found[split] = paths[0]
    return found


def _table_folders(root: Path, spec: DatasetSpec, scope: str) -> list[Path]:
    """Return the folders whose tables together hold the clips of `scope`."""
    inside, outside, everything = (_folder_with_tables(root, spec.folders[part]) for part in ("in", "out", "all"))
    if scope == "all":
        choices = [[everything], [inside, outside], [inside], [outside]]
    else:
        choices = [[inside if scope == "in" else outside], [everything]]
    return next((folders for folders in choices if all(folders)), [root])


def _folder_with_tables(root: Path, patterns: list[str]) -> Path | None:
    """Return the folder with tables that the first of `patterns` finds."""
    for pattern in patterns:
        pattern = pattern.format(folder=glob.escape(root.name))
        paths = [Path(os.path.normpath(path)) for path in glob.glob(os.path.join(glob.escape(str(root)), pattern))]
        found = sorted(path for path in paths if _find_split_files(path))
        names = ", ".join(path.name for path in found)
        require(len(found) < 2, f"{root / pattern} holds several data sets: {names}; keep one of them")
        if found:
            return found[0]
    return None


def _feature_files(folders: list[Path], modality: str, chosen: str | None, root: Path) -> list[Path]:
    """Return the files of one modality, one from each of `folders` that has any."""
    if chosen == NO_FEATURES:
        return []
    if chosen is not None:
        for path in (Path(chosen).expanduser(), root / chosen):
            if path.is_file() or (path / INDEX_NAME).is_file():
                return [path.resolve()]
    subfolder, argument = f"{modality}_data", f"{modality}_features"
    available = [_named_features(folder / subfolder) for folder in dict.fromkeys(folders)]
    names = sorted({name for by_name in available for name in by_name})
    found = ", ".join(names) or "none"
    one = chosen is not None or len(names) < 2
    require(one, f"{root} has several {subfolder}: {found}; choose one with `{argument}`")
    missing = f"`{argument}` {chosen!r} is neither a file nor in {subfolder} of {root}; found: {found}"
    require(chosen is None or chosen in names, missing)
    return [by_name[name] for name in names if chosen in (None, name) for by_name in available if name in by_name]


def _named_features(folder: Path) -> dict[str, Path]:
    """Return {name: path} of the feature files in `folder`, safetensors before the pickle of the same name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=_preference) if folder.is_dir() else []:
        if (path / INDEX_NAME).is_file():
            found.setdefault(path.name, path)
        elif path.suffix == ".safetensors" or path.suffix in PICKLE_SUFFIXES:
            preferred = found.setdefault(path.stem, path)
            if path.stat().st_mtime > preferred.stat().st_mtime:
                logger.warning(f"{preferred} is read, but {path} is newer; convert it again or remove one of them")
    return found


def _preference(path: Path) -> tuple[bool, bool, str]:
    return (not path.is_dir(), path.suffix != ".safetensors", path.name)


def find_clips(folder: str | Path) -> dict[str, Path]:
    """Return {clip id: path} for the raw clips anywhere below `folder`.

    A name with an underscore is the id (`train/dia0_utt3.mp4` is `dia0_utt3`). Otherwise the names of at most two
    folders are prepended, as in MIntRec (`S05/E16/329.mp4` is `S05_E16_329`): those below `raw_data` where the path
    has such a folder, else those below `folder`.

    Args:
        folder (`str` or `Path`): Folder of the clips or of the data set; it may be missing.
    """
    clips = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() in CLIP_SUFFIXES:
            *parents, name = path.relative_to(folder).with_suffix("").parts
            if RAW_CLIPS_FOLDER in parents:
                parents = parents[parents.index(RAW_CLIPS_FOLDER) + 1 :]
            clips[name if "_" in name else "_".join([*parents[-2:], name])] = path
    return clips


def fingerprint(files: Iterable[Path]) -> str:
    """Return a digest that changes when the content of one of `files` changes, regardless of its time stamps.

    A small file is hashed completely; of a large one its beginning, its size, its inode and its inode change time, which
    no copying program can set back. A folder stands for the files in it, an index for the shards next to it.
    """
    digest = xxhash.xxh3_128()
    for member in (member for path in sorted(files) for member in _members(path)):
        status = member.stat()
        digest.update(f"\0{member}\0{status.st_size}\0".encode("utf-8", "surrogateescape"))
        if status.st_size > HASHED_WHOLE:
            digest.update(f"{status.st_ino}\0{status.st_ctime_ns}".encode())
        with member.open("rb") as file:
            digest.update(file.read(HASHED_WHOLE))
    return digest.hexdigest()[:16]


def _members(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(member for member in path.rglob("*") if member.is_file())
    return [path, *sorted(path.parent.glob("*.safetensors"))] if path.suffix == ".json" else [path]
