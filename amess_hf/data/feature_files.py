"""Feature files: frame features of many clips, read safely and one clip at a time.

A feature file maps clip ids to features [frames, dim]. Three forms are read:

- **safetensors**: one file, or a folder of shards with an index. Clips are read one by one, on demand.
- **npy**: one file for each clip.
- **pickle**, as the MIntRec archives are published, by a reader that runs no code. A pickle can only be read from
  start to end, so it is rewritten as safetensors once.

[`open_features`] is the door. What is read from an opened file is float32 [frames, feature_size] and finite.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from .errors import first_line, require
from .safe_pickle import read_pickled_arrays


logger = logging.get_logger(__name__)

INDEX_NAME = "features.safetensors.index.json"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth")
DTYPES = ("float32", "float16")
SHARD_BYTES = 256 * 2**20

# Allowed types of the tensors in a safetensors file.
NUMBER_DTYPES = frozenset("F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split())
_NOT_IN_NUMPY = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def _frames_and_width(shape: Sequence[int], clip_id: str, path: Path) -> tuple[int, int]:
    """Return how many frames features of `shape` have, and how wide they are; an empty axis alone is no frame."""
    found = list(shape)
    if len(shape) == 3 and shape[1] == 1:
        shape = (shape[0], shape[2])
    if len(shape) == 1 and shape[0] == 0:
        shape = (0, 0)
    sound = len(shape) == 2 and (shape[1] or not shape[0])
    require(sound, f"{path}: clip {clip_id} has features of shape {found}; expected [frames, dim] or [frames, 1, dim]")
    return shape[0], shape[1]


def _as_frames(value: np.ndarray, clip_id: str, path: Path) -> np.ndarray:
    """Return an array [frames, dim] or [frames, 1, dim] as [frames, dim]."""
    return value.reshape(_frames_and_width(value.shape, clip_id, path))


def cast_frames(frames: np.ndarray, dtype: str | np.dtype, clip_id: str, path: Path) -> np.ndarray:
    """Return `frames` as `dtype`, contiguous in memory.

    Raises:
        ValueError: If a finite number becomes infinite.
    """
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(frames, dtype=dtype)
    fits = not np.isinf(cast).any() or np.isinf(frames).any()
    require(fits, f"{path}: clip {clip_id} has values too large for {cast.dtype.name}; use a wider dtype")
    return cast


def _check_width(frames: np.ndarray, feature_size: int | None, clip_id: str, path: Path) -> None:
    wide = f"{path}: clip {clip_id} is {frames.shape[1]} wide, other clips are {feature_size} wide"
    require(not len(frames) or frames.shape[1] == feature_size, wide)


def _checked(value: np.ndarray, feature_size: int | None, clip_id: str, path: Path) -> np.ndarray:
    """Return float32 [frames, feature_size]; a clip of zero frames, which may have any width, gets that width."""
    frames = _as_frames(value, clip_id, path)
    if not len(frames):
        return np.empty((0, feature_size or 0), np.float32)
    _check_width(frames, feature_size, clip_id, path)
    frames = cast_frames(frames, "float32", clip_id, path)
    finite = np.isfinite(frames).all(axis=1)
    found = f"{path}: clip {clip_id} has NaN or infinite features, first in frame {int(np.argmin(finite))}"
    require(finite.all(), f"{found}; extract the clip again")
    return frames


def read_pickle(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, features [frames, dim]) from a pickled dict of features; see `read_pickled_arrays`."""
    path = Path(path)
    for clip_id, value in read_pickled_arrays(path):
        yield clip_id, _as_frames(value, clip_id, path)


class NumpyFeatures:
    """Features of clips that have a `.npy` file each, read on demand.

    Args:
        paths (`dict[str, Path]`): {clip: `.npy` file [frames, dim]}; clips may have any name.
        source (`Path`, *optional*): What names the files.

    Attributes:
        feature_size (`int`, *optional*): Width of the features, None if no clip has a frame.

    Raises:
        ValueError: If a file is not an array of numbers [frames, dim]; on reading, see [`SafetensorsFeatures`].
    """

    def __init__(self, paths: dict[str, Path], source: Path | None = None):
        self.paths, self.source = paths, source
        shapes = (_frames_and_width(self._load(clip_id).shape, clip_id, path) for clip_id, path in paths.items())
        self.feature_size = next((width for frames, width in shapes if frames), None)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.paths

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        return _checked(self._load(clip_id, mapped=False), self.feature_size, clip_id, self.paths[clip_id])

    def _load(self, clip_id: str, mapped: bool = True) -> np.ndarray:
        path = self.paths[clip_id]
        try:
            array = np.lib.format.open_memmap(path, mode="r")
            require(array.dtype.kind in "fiub", f"its dtype is {array.dtype}")
            # Of a mapped file, only the header is read: reading what has been cut off since would end the process.
            return array if mapped else np.load(path, allow_pickle=False)
        except Exception as error:  # numpy raises many kinds of errors
            raise ValueError(f"{path}: not a readable .npy file of numbers ({first_line(error)})") from None


class SafetensorsFeatures:
    """Features of clips in safetensors, read a clip at a time.

    Args:
        path (`str` or `os.PathLike`): A `.safetensors` file whose tensors are named by clip id, a folder with shards
            and an index, or the index itself.
        source (`Path`, *optional*): The file that these features were made of, for messages.

    Attributes:
        feature_size (`int`, *optional*): Width of the features, None if no clip has a frame.
        metadata (`dict[str, Any]`): Metadata of the index.

    Raises:
        ValueError: If a file is missing or damaged, or the index names a file elsewhere or a missing clip; on reading,
            if the tensor of a clip is not [frames, dim] of the same width as the others, or not finite.
    """

    def __init__(self, path: str | os.PathLike, source: Path | None = None):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / INDEX_NAME
        self.source = source or self.path
        self.metadata: dict[str, Any] = {}
        self._open_files: dict[Path, Any] = {}
        self._shard_of = self._read_index() if self.path.suffix == ".json" else self._read_names()
        self.feature_size = self._read_width()
        self._open_files.clear()

    def _read_index(self) -> dict[str, Path]:
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            shard_of = dict(index["weight_map"])
            self.metadata = dict(index.get("metadata", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.path}: not a readable index of shards ({first_line(error)})") from None
        for shard in shard_of.values():
            # A shard lies next to its index. Otherwise an index could name any file on this machine.
            beside = isinstance(shard, str) and shard not in ("", "..") and Path(shard).name == shard
            found = f"{self.path}: names the shard {repr(shard)[:80]}; a shard is a file in the folder of the index"
            require(beside and shard.isprintable(), found)
        return {clip_id: self.path.parent / shard for clip_id, shard in shard_of.items()}

    def _read_names(self) -> dict[str, Path]:
        return dict.fromkeys(self._opened(self.path).keys(), self.path)

    def _opened(self, shard: Path) -> Any:
        try:
            size = shard.stat().st_size
            if shard not in self._open_files:
                self._open_files[shard] = safe_open(shard, framework="pt"), size
            file, opened_size = self._open_files[shard]
            # The file is mapped: reading what has been cut off would end the process.
            require(size == opened_size, "it has changed since it was opened")
        except (OSError, SafetensorError, ValueError) as error:
            found = f"{shard}: not a readable safetensors file ({first_line(error)})"
            raise ValueError(f"{found}; convert the features again") from None
        return file

    def _read_width(self) -> int | None:
        """Return the width of the first clip that has frames, from the headers alone.

        Raises:
            ValueError: If the index names a clip that its shard does not have.
        """
        by_shard: dict[Path, list[str]] = {}
        for clip_id, shard in self._shard_of.items():
            require(clip_id.isprintable(), f"{shard}: a clip id is {ascii(clip_id)[:40]}; give clips printable names")
            by_shard.setdefault(shard, []).append(clip_id)
        width = None
        for shard, clip_ids in by_shard.items():
            file = self._opened(shard)
            missing = sorted(set(clip_ids) - set(file.keys()))
            found = f"{shard}: has no clip {''.join(missing[:1])}, which {self.path.name} names; convert the features again"
            require(not missing, found)
            shapes = (_frames_and_width(file.get_slice(clip).get_shape(), clip, shard) for clip in clip_ids)
            width = width or next((wide for count, wide in shapes if count), None)
        return width

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        file = self._opened(self._shard_of[clip_id])
        dtype = file.get_slice(clip_id).get_dtype()
        found = f"{self.source}: clip {clip_id} holds {dtype}, which features are not stored in"
        require(dtype in NUMBER_DTYPES, found)
        tensor = file.get_tensor(clip_id)
        value = tensor.float().numpy() if tensor.dtype in _NOT_IN_NUMPY else tensor.numpy()
        return _checked(value, self.feature_size, clip_id, self.source)


def open_features(path: str | os.PathLike, converted: Path) -> SafetensorsFeatures:
    """Open a feature file of any form.

    Args:
        path (`str` or `os.PathLike`): safetensors file, folder of shards, index, or pickle.
        converted (`Path`): The folder for the converted form of a pickle.

    Raises:
        ValueError: If the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in PICKLE_SUFFIXES:
        return SafetensorsFeatures(path)
    converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock"):
        try:
            if converted.exists():
                return SafetensorsFeatures(converted, path)
            logger.warning(f"{path} is a pickle; rewriting it once as safetensors in {converted}")
        except ValueError as error:
            logger.warning(f"{first_line(error)}; {path} is converted again")
            shutil.rmtree(converted)
        convert_pickle(path, converted)
    return SafetensorsFeatures(converted, path)


def convert_pickle(path: str | os.PathLike, out: str | os.PathLike, *, dtype: str = "float32") -> Path:
    """Rewrite a pickled feature file as safetensors shards with an index.

    Args:
        path (`str` or `os.PathLike`): The pickle; see [`read_pickle`].
        out (`str` or `os.PathLike`): Folder to write; see [`write_features`].
        dtype (`str`): `"float32"` or `"float16"`.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: See `read_pickled_arrays` and [`write_features`].
    """
    path = Path(path)
    entries = logging.tqdm(read_pickle(path), desc=f"Reading {path.name}", unit=" clips")
    return write_features(entries, out, source=path, dtype=dtype)


def write_features(
    entries: Iterable[tuple[str, np.ndarray]],
    out: str | os.PathLike,
    *,
    source: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write features as safetensors shards with an index, holding one shard in memory at a time.

    The folder gets its name only when it is complete: a process that dies leaves the earlier folder untouched.

    Args:
        entries (iterable of `(str, np.ndarray)`): (clip id, features [frames, dim]); may be read from `out` itself.
        out (`str` or `os.PathLike`): Folder to write.
        source (`Path`): File that the features come from, for messages and the index.
        dtype (`str`): `"float32"`, or `"float16"` for half the size.
        shard_bytes (`int`): A shard ends with the clip that makes it at least this large.
        replace (`bool`): Whether `out` may exist and not be empty; call [`recover_folder`] first.
        metadata (`dict[str, str]`, *optional*): Further metadata for the index.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If `out` exists and must not be replaced, a clip has another width than those before it, or its
            values do not fit into `dtype`.
    """
    out = Path(out)
    require(dtype in DTYPES, f"`dtype` is {dtype!r}; choose one of {', '.join(DTYPES)}")
    free = replace or not out.exists() or (out.is_dir() and not any(out.iterdir()))
    require(free, f"{out}: already exists; choose another name or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_orphans(out.parent)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    with FileLock(_lock_of(partial)):
        try:
            partial.mkdir()
            shards, facts = _write_shards(entries, partial, np.dtype(dtype), shard_bytes, source)
            _write_index(partial, shards, {**facts, **(metadata or {})})
            if replace and out.exists():
                os.rename(out, _old(out))
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _lock_of(partial).unlink(missing_ok=True)
    shutil.rmtree(_old(out), ignore_errors=True)
    return out


def _lock_of(partial: Path) -> Path:
    """Return the lock file of the process that writes `partial`; the lock ends with the process."""
    return partial.with_name(f"{partial.name}.lock")


def _remove_orphans(parent: Path) -> None:
    """Remove the half-written folders in `parent` whose process was killed."""
    partials = {path for path in parent.glob(".*.partial") if path.is_dir()}
    for partial in partials | {lock.with_suffix("") for lock in parent.glob(".*.partial.lock")}:
        with suppress(Timeout), FileLock(_lock_of(partial), timeout=0):
            shutil.rmtree(partial, ignore_errors=True)
            _lock_of(partial).unlink(missing_ok=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def recover_folder(folder: Path) -> None:
    """Recover `folder` after a process was killed in [`write_features`]; no other process may be writing it."""
    if _old(folder).exists() and not folder.exists():
        os.rename(_old(folder), folder)
    shutil.rmtree(_old(folder), ignore_errors=True)
    _remove_orphans(folder.parent)


def _write_shards(
    entries: Iterable[tuple[str, np.ndarray]], folder: Path, dtype: np.dtype, shard_bytes: int, source: Path
) -> tuple[list[list[str]], dict[str, Any]]:
    """Write numbered shards; return the clips of each and facts about all."""
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    facts = {"total_size": 0, "feature_size": None, "dtype": dtype.name, "source": source.name}

    def flush() -> None:
        facts["total_size"] += sum(frames.nbytes for frames in pending.values())
        save_file(pending, folder / f"{len(shards):05d}.safetensors")
        shards.append(list(pending))
        pending.clear()

    size = 0
    for clip_id, frames in entries:
        facts["feature_size"] = facts["feature_size"] or (frames.shape[1] if len(frames) else None)
        _check_width(frames, facts["feature_size"], clip_id, source)
        pending[clip_id] = cast_frames(frames, dtype, clip_id, source)
        size += pending[clip_id].nbytes
        if size >= shard_bytes:
            flush()
            size = 0
    if pending or not shards:
        flush()
    return shards, facts


def _write_index(folder: Path, shards: list[list[str]], metadata: dict[str, Any]) -> None:
    """Give the shards of `folder` their final names and write an index of the clips in each."""
    index_path = folder / INDEX_NAME
    weight_map = {}
    for number, clip_ids in enumerate(shards):
        name = f"features-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"{number:05d}.safetensors", folder / name)
        weight_map.update(dict.fromkeys(clip_ids, name))
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, ensure_ascii=False)
    index_path.write_text(index, encoding="utf-8")
    for shard in folder.glob("*.safetensors"):
        # The safetensors library writes files that only their owner can read.
        shutil.copymode(index_path, shard)
