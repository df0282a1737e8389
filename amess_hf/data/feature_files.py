"""Feature files: frame features of many clips, read safely and a clip at a time.

A feature file maps clip ids to features [frames, dim]. Three forms are read:

- **safetensors**: one file, or a folder of shards with an index. Clips are read one by one, on demand.
- **npy**: one file for each clip.
- **pickle**, as the MIntRec archives are published, by a reader that runs no code. A pickle can only be read from its
  start to its end, so it is rewritten as safetensors once.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers.utils import logging

from .safe_pickle import first_line, read_pickled_arrays


logger = logging.get_logger(__name__)

INDEX_NAME = "features.safetensors.index.json"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth")
DTYPES = ("float32", "float16")
SHARD_BYTES = 256 * 2**20


def as_frames(value: np.ndarray, clip_id: str, path: Path) -> np.ndarray:
    """Return features as [frames, dim].

    Args:
        value (`np.ndarray`): Array [frames, dim] or [frames, 1, dim]; an empty array of one axis is a clip of zero
            frames.
        clip_id (`str`): The clip, for the message.
        path (`Path`): The file, for the message.

    Raises:
        ValueError: For any other shape.
    """
    if value.ndim == 3 and value.shape[1] == 1:
        return value[:, 0]
    if value.ndim == 2:
        return value
    if value.ndim == 1 and value.size == 0:
        return value.reshape(0, 0)
    raise ValueError(
        f"{path}: clip {clip_id} has features of shape {list(value.shape)}; expected [frames, dim] or [frames, 1, dim]"
    )


def _of_width(frames: np.ndarray, feature_size: int | None, clip_id: str, path: Path) -> np.ndarray:
    """Return `frames` if they are `feature_size` wide; a clip of zero frames, which may have any width, made so."""
    if not len(frames):
        return np.empty((0, feature_size or 0), np.float32)
    if frames.shape[1] != feature_size:
        raise ValueError(f"{path}: clip {clip_id} is {frames.shape[1]} wide, other clips are {feature_size} wide")
    return frames


def read_pickle(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, features [frames, dim]) from a pickled dict of features; see `read_pickled_arrays`."""
    path = Path(path)
    for clip_id, value in read_pickled_arrays(path):
        yield clip_id, as_frames(value, clip_id, path)


class NumpyFeatures:
    """Features of clips that have a `.npy` file each, read on demand.

    Args:
        paths (`dict[str, Path]`): {clip: `.npy` file [frames, dim]}; clips may go by any name.

    Attributes:
        feature_size (`int`, *optional*): Width of the features, None if no clip has a frame.

    Raises:
        ValueError: If a file is not an array of numbers [frames, dim].
    """

    def __init__(self, paths: dict[str, Path]):
        self.paths = paths
        shapes = (self._load(clip_id).shape for clip_id in paths)
        self.feature_size = next((shape[1] for shape in shapes if shape[0]), None)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.paths

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        frames = np.array(self._load(clip_id), dtype=np.float32)
        return _of_width(frames, self.feature_size, clip_id, self.paths[clip_id])

    def _load(self, clip_id: str) -> np.ndarray:
        path = self.paths[clip_id]
        try:
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable .npy file of numbers ({error})") from None
        return as_frames(frames, clip_id, path)


class SafetensorsFeatures:
    """Features of clips in safetensors, read a clip at a time.

    Args:
        path (`str` or `os.PathLike`): A `.safetensors` file whose tensors are named by clip id, a folder with shards
            and an index, or the index itself.

    Attributes:
        feature_size (`int`, *optional*): Width of the features, None if no clip has a frame.

    Raises:
        ValueError: If a file is missing or damaged; on reading, if the tensor of a clip is not [frames, dim] of the
            same width as the others.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / INDEX_NAME
        self._shard_of = self._read_index() if self.path.suffix == ".json" else self._read_names()
        self.feature_size = self._read_width()
        self._open_files: dict[Path, Any] = {}

    def _read_index(self) -> dict[str, Path]:
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            return {clip_id: self.path.parent / shard for clip_id, shard in index["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: not a readable index of shards ({first_line(error)})") from None

    def _read_names(self) -> dict[str, Path]:
        with self._opened(self.path) as file:
            return dict.fromkeys(file.keys(), self.path)

    def _opened(self, shard: Path) -> Any:
        try:
            return safe_open(shard, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{shard}: not a readable safetensors file ({first_line(error)}); convert the features again"
            ) from None

    def _read_width(self) -> int | None:
        """Return the width of the first clip that has frames, from the headers alone."""
        by_shard: dict[Path, list[str]] = {}
        for clip_id, shard in self._shard_of.items():
            by_shard.setdefault(shard, []).append(clip_id)
        for shard, clip_ids in by_shard.items():
            with self._opened(shard) as file:
                for clip_id in clip_ids:
                    shape = file.get_slice(clip_id).get_shape()
                    if shape[0] and len(shape) > 1:
                        return shape[-1]
        return None

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        shard = self._shard_of[clip_id]
        if shard not in self._open_files:
            self._open_files[shard] = self._opened(shard)
        try:
            tensor = self._open_files[shard].get_tensor(clip_id)
        except SafetensorError as error:
            raise ValueError(f"{shard}: clip {clip_id} cannot be read ({first_line(error)})") from None
        return _of_width(as_frames(tensor.float().numpy(), clip_id, shard), self.feature_size, clip_id, shard)


def write_features(
    entries: Iterable[tuple[str, np.ndarray]],
    out: str | os.PathLike,
    *,
    source: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> Path:
    """Write features as safetensors shards with an index, holding one shard in memory at a time.

    The folder gets its name only when it is complete: a process that dies leaves what was there before.

    Args:
        entries (iterable of `(str, np.ndarray)`): (clip id, features [frames, dim]); may be read from `out` itself.
        out (`str` or `os.PathLike`): Folder to write.
        source (`Path`): File that the features come from, for messages and the index.
        dtype (`str`): `"float32"`, or `"float16"` for half the size.
        shard_bytes (`int`): A shard is complete with the clip that makes it this large.
        replace (`bool`): Whether `out` may exist and not be empty; call [`recover_folder`] first.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: If `out` exists and must not be replaced, a clip has another width than those before it, or its
            values do not fit into `dtype`.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if not replace and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: already exists; choose another name or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        _write_shards(entries, partial, source, np.dtype(dtype), shard_bytes)
        if replace and out.exists():
            os.rename(out, _old(out))
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(_old(out), ignore_errors=True)
    return out


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def recover_folder(folder: Path) -> None:
    """Undo what a process that was killed in [`write_features`] left of `folder`; no other process may be writing it."""
    if _old(folder).exists() and not folder.exists():
        os.rename(_old(folder), folder)
    for leftover in (_old(folder), *folder.parent.glob(f".{folder.name}.*.partial")):
        shutil.rmtree(leftover, ignore_errors=True)


def _write_shards(
    entries: Iterable[tuple[str, np.ndarray]], folder: Path, source: Path, dtype: np.dtype, shard_bytes: int
) -> None:
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    width = None
    total = size = 0

    def flush() -> None:
        save_file(pending, folder / f"{len(shards):05d}.safetensors")
        shards.append(list(pending))
        pending.clear()

    for clip_id, frames in entries:
        if len(frames):
            width = width or frames.shape[1]
            _of_width(frames, width, clip_id, source)
        pending[clip_id] = _cast(frames, dtype, clip_id, source)
        size += pending[clip_id].nbytes
        if size >= shard_bytes:
            flush()
            total, size = total + size, 0
    if pending or not shards:
        flush()
    metadata = {"total_size": total + size, "feature_size": width, "dtype": dtype.name, "source": source.name}
    _write_index(shards, folder, metadata)


def _write_index(shards: list[list[str]], folder: Path, metadata: dict[str, Any]) -> None:
    """Give the shards of `folder` their final names and write which clip is in which of them."""
    index_path = folder / INDEX_NAME
    weight_map = {}
    for number, clip_ids in enumerate(shards):
        name = f"features-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"{number:05d}.safetensors", folder / name)
        weight_map.update(dict.fromkeys(clip_ids, name))
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, ensure_ascii=False)
    index_path.write_text(index, encoding="utf-8")
    for shard in folder.glob("*.safetensors"):
        # The safetensors library writes files that only their owner may read.
        shutil.copymode(index_path, shard)


def _cast(frames: np.ndarray, dtype: np.dtype, clip_id: str, source: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(frames.astype(dtype))
    if np.isinf(cast).any() and not np.isinf(frames).any():
        raise ValueError(f"{source}: clip {clip_id} has values too large for {dtype.name}; write a wider dtype")
    return cast


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
    hidden = not logging.is_progress_bar_enabled()
    entries = tqdm(read_pickle(path), desc=f"Reading {path.name}", unit=" clips", disable=hidden)
    return write_features(entries, out, source=path, dtype=dtype)


def open_features(path: str | os.PathLike, cache: Callable[[Path], Path]) -> SafetensorsFeatures:
    """Open a feature file of either form.

    Args:
        path (`str` or `os.PathLike`): safetensors file, folder of shards, index, or pickle.
        cache (`Callable[[Path], Path]`): Says in which folder the converted form of a pickle belongs.

    Raises:
        ValueError: If the file cannot be read.
    """
    path = Path(path)
    if path.suffix not in PICKLE_SUFFIXES:
        return SafetensorsFeatures(path)
    converted = cache(path)
    converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock"):
        if not converted.exists():
            logger.warning(f"{path} is a pickle; rewriting it once as safetensors in {converted}")
            convert_pickle(path, converted)
    return SafetensorsFeatures(converted)
