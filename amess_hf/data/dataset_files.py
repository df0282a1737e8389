"""Where a MIntRec folder keeps what: annotation tables, feature files and raw clips."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from transformers.utils import logging

from ..constants_amess import CLIP_SUFFIXES
from .annotations import SPLIT_FILES, find_split_files
from .feature_files import INDEX_NAME, PICKLE_SUFFIXES


logger = logging.get_logger(__name__)

SCOPES = ("in", "out", "all")
NO_FEATURES = "none"
FOLDER_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class Layout:
    """The files that one call of `load_mintrec` reads.

    Attributes:
        tables: (split, annotation table) in the order of reading.
        turn_tables: {split: table} from which dialogue context may come beside `tables`.
        features: {`"audio"` or `"video"`: feature files}; the first one that holds a clip counts. A modality that is
            not used is absent.
        clips: {clip id: path of the raw clip}; empty where there are none.
    """

    tables: list[tuple[str, Path]]
    turn_tables: dict[str, Path] = field(default_factory=dict)
    features: dict[str, list[Path]] = field(default_factory=dict)
    clips: dict[str, Path] = field(default_factory=dict)


def find_layout(root: Path, name: str, scope: str, audio_features: str | None, video_features: str | None) -> Layout:
    """Find the files of the data set `name` under `root`.

    Args:
        root: Folder of the data set.
        name: `"mintrec"`, `"mintrec2.0"` or `"folder"`.
        scope: `"in"`, `"out"` or `"all"`.
        audio_features: Name (`"wavlm_feats"`) or path of the audio features, `"none"` to leave them out, None for
            the ones that are there.
        video_features: The same for video.

    Raises:
        ValueError: If `root` is no folder, holds no annotation table, or there are several feature files to choose
            from and none is chosen, or not the chosen one.
    """
    if not root.is_dir():
        raise ValueError(f"`data_dir` {root} is no folder; give the folder that holds the annotation tables.")
    suffixes = FOLDER_SUFFIXES if name == "folder" else (".tsv",)
    folders = _table_folders(root, name, scope)
    tables = [(split, path) for folder in folders for split, path in find_split_files(folder, suffixes).items()]
    if not tables:
        raise ValueError(_no_tables(root, folders, scope, suffixes))
    layout = Layout(tables)
    if name == "mintrec2.0":
        layout.turn_tables = find_split_files(root / "total")
    for modality, chosen in (("audio", audio_features), ("video", video_features)):
        paths = _feature_files([*folders, root], f"{modality}_data", f"{modality}_features", chosen, root)
        if paths:
            layout.features[modality] = paths
    for folder in dict.fromkeys([root, *folders]):
        layout.clips.update(_raw_clips(folder / "raw_data"))
    return layout


def _no_tables(root: Path, folders: list[Path], scope: str, suffixes: tuple[str, ...]) -> str:
    looked = ", ".join(str(folder) for folder in folders) or str(root)
    wanted = ", ".join(stems[0] for stems in SPLIT_FILES.values())
    return f"no {wanted} ({', '.join(suffixes)}) for scope={scope!r} in {looked}; `data_dir` has to hold at least one."


def _table_folders(root: Path, name: str, scope: str) -> list[Path]:
    """Return the folders whose tables together hold the clips of `scope`."""
    if name == "folder":
        return [root]
    if name == "mintrec":
        inside, outside, everything = root, _mintrec_out_of_scope(root), None
    else:
        inside, outside = root / "in-scope", _mintrec2_out_of_scope(root / "out-of-scope")
        inside = inside if find_split_files(inside) else root
        everything = root / "total"
    if scope == "all":
        choices = [[everything], [inside, outside], [inside], [outside]]
    else:
        choices = [[inside if scope == "in" else outside], [everything]]
    for folders in choices:
        if all(folder is not None and find_split_files(folder) for folder in folders):
            return folders
    return [root]


def _mintrec_out_of_scope(root: Path) -> Path | None:
    """Return the folder of out-of-scope clips inside or beside that of MIntRec."""
    candidates = [root / "MIntRec-OOD", root.parent / f"{root.name}-OOD", root.parent / "MIntRec-OOD"]
    return next((folder for folder in candidates if find_split_files(folder)), None)


def _mintrec2_out_of_scope(folder: Path) -> Path | None:
    """Return the folder with tables among `folder` and those in it."""
    if not folder.is_dir():
        return None
    candidates = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [candidate for candidate in candidates if find_split_files(candidate)]
    if len(found) > 1:
        names = ", ".join(candidate.name for candidate in found)
        raise ValueError(f"{folder} holds several data sets: {names}; leave one of them there.")
    return found[0] if found else None


def _feature_files(
    folders: list[Path], subfolder: str, argument: str, chosen: str | None, root: Path
) -> list[Path] | None:
    """Return the files of one modality, one from each of `folders` that has one."""
    if chosen == NO_FEATURES:
        return None
    if chosen is not None:
        for path in (Path(chosen).expanduser(), root / chosen):
            if path.is_file() or (path / INDEX_NAME).is_file():
                return [path.resolve()]
    available = [_named_features(folder / subfolder) for folder in dict.fromkeys(folders)]
    names = sorted({name for by_name in available for name in by_name})
    if chosen is None and len(names) > 1:
        raise ValueError(f"{root} has several {subfolder}: {', '.join(names)}; choose one with `{argument}`.")
    if chosen is not None and chosen not in names:
        there = ", ".join(names) or "none"
        raise ValueError(f"`{argument}` {chosen!r} is neither a file nor in {subfolder} of {root}; there: {there}.")
    if not names:
        return None
    name = chosen or names[0]
    return [by_name[name] for by_name in available if name in by_name]


def _named_features(folder: Path) -> dict[str, Path]:
    """Return {name: path} of the feature files in `folder`, safetensors before the pickle of the same name."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=_preference):
        if (path / INDEX_NAME).is_file():
            found.setdefault(path.name, path)
        elif path.suffix == ".safetensors" or path.suffix in PICKLE_SUFFIXES:
            preferred = found.setdefault(path.stem, path)
            if path.stat().st_mtime > preferred.stat().st_mtime:
                logger.warning(f"{preferred} is read, but {path} is newer: convert it again or remove one of them.")
    return found


def _preference(path: Path) -> tuple[int, str]:
    order = (path.is_dir(), path.suffix == ".safetensors", path.suffix in PICKLE_SUFFIXES)
    return (order.index(True) if True in order else len(order), path.name)


def _raw_clips(folder: Path) -> dict[str, Path]:
    """Return {clip id: path}: `S05/E16/329.mp4` is the clip `S05_E16_329`, `train/dia0_utt3.mp4` is `dia0_utt3`."""
    clips = {}
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in CLIP_SUFFIXES:
                parts = path.relative_to(folder).with_suffix("").parts
                clips[parts[-1] if "_" in parts[-1] else "_".join(parts)] = path
    return clips


def fingerprint(files: Iterable[Path]) -> str:
    """Return a digest that changes when one of `files`, or a file in one of them that is a folder, changes.

    Feature files are large: path, size and time of change stand for their content.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        members = sorted(path.iterdir()) if path.is_dir() else [path]
        for member in members:
            status = member.stat()
            digest.update(f"{member}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
