"""Feature files: frame features of many clips, read safely and a clip at a time.

A feature file maps clip ids to features [frames, dim]. Two forms are read:

- **safetensors**: one file, or a folder of shards with an index. Clips are read one by one, on demand.
- **pickle**, as the MIntRec archives are published, by a reader that runs no code. A pickle cannot be read at any
  place but its start, so it is rewritten as safetensors once.
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
        value: Array [frames, dim] or [frames, 1, dim]; an empty array of one axis is a clip of zero frames.

    Raises:
        ValueError: For any other shape, naming the file and the clip.
    """
    if value.ndim == 3 and value.shape[1] == 1:
        return value[:, 0]
    if value.ndim == 2:
        return value
    if value.ndim == 1 and value.size == 0:
        return value.reshape(0, 0)
    raise ValueError(
        f"{path}: clip {clip_id} has features of shape {list(value.shape)}; expected [frames, dim] or [frames, 1, dim]."
    )


def read_pickle(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, features [frames, dim]) from a pickled dict of features; see [`read_pickled_arrays`]."""
    path = Path(path)
    for clip_id, value in read_pickled_arrays(path):
        yield clip_id, as_frames(value, clip_id, path)


class SafetensorsFeatures:
    """Features of clips in safetensors, read a clip at a time.

    Args:
        path: A `.safetensors` file whose tensors are named by clip id, a folder with shards and an index, or the
            index itself.

    Attributes:
        feature_size: Width of the features, None if no clip has a frame.

    Raises:
        ValueError: If a file is missing, damaged, or holds a tensor that is no [frames, dim] of one width.
    """

    # Pages of a mapped file count as memory of this process until it is closed, so files are closed now and then.
    REOPEN_BYTES = 32 * 2**20

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / INDEX_NAME
        self._shard_of = self._read_index() if self.path.suffix == ".json" else self._read_names()
        self.feature_size = self._read_width()
        self._open_files: dict[Path, Any] = {}
        self._bytes_read = 0

    def _read_index(self) -> dict[str, Path]:
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            return {clip_id: self.path.parent / shard for clip_id, shard in index["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: not a readable index of shards ({first_line(error)}).") from None

    def _read_names(self) -> dict[str, Path]:
        with self._opened(self.path) as file:
            return dict.fromkeys(file.keys(), self.path)

    def _opened(self, shard: Path) -> Any:
        try:
            return safe_open(shard, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{shard}: not a readable safetensors file ({first_line(error)}); convert the features again."
            ) from None

    def _read_width(self) -> int | None:
        """Return the width of the first clip that has frames, from the headers alone."""
        for shard, clip_ids in self._by_shard().items():
            with self._opened(shard) as file:
                for clip_id in clip_ids:
                    shape = file.get_slice(clip_id).get_shape()
                    if shape[0] and len(shape) > 1:
                        return shape[-1]
        return None

    def _by_shard(self) -> dict[Path, list[str]]:
        by_shard: dict[Path, list[str]] = {}
        for clip_id, shard in self._shard_of.items():
            by_shard.setdefault(shard, []).append(clip_id)
        return by_shard

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the features of a clip, float32 [frames, feature_size]."""
        shard = self._shard_of[clip_id]
        if self._bytes_read > self.REOPEN_BYTES:
            self._open_files, self._bytes_read = {}, 0
        if shard not in self._open_files:
            self._open_files[shard] = self._opened(shard)
        try:
            tensor = self._open_files[shard].get_tensor(clip_id)
        except SafetensorError as error:
            raise ValueError(f"{shard}: clip {clip_id} cannot be read ({first_line(error)}).") from None
        self._bytes_read += tensor.nbytes
        frames = as_frames(tensor.float().numpy(), clip_id, shard)
        if not len(frames):
            return np.empty((0, self.feature_size or 0), np.float32)
        if frames.shape[1] != self.feature_size:
            raise ValueError(
                f"{shard}: clip {clip_id} is {frames.shape[1]} wide, other clips are {self.feature_size} wide."
            )
        return frames


def write_features(
    entries: Iterable[tuple[str, np.ndarray]],
    out: str | os.PathLike,
    *,
    source: Path,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write features as safetensors shards with an index, holding one shard in memory at a time.

    The folder gets its name only when it is complete: a process that dies leaves no `out` behind.

    Args:
        entries: (clip id, features [frames, dim]).
        out: Folder to write; must not exist, or be empty.
        source: File that the features come from, for messages and the index.
        dtype: `"float32"`, or `"float16"` for half the size.
        shard_bytes: Most bytes of a shard.

    Returns:
        The path of the folder.

    Raises:
        ValueError: If `out` is there already, a clip has another width than those before it, or its values do not
            fit into `dtype`.
    """
    out = Path(out)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out}: is there already; choose another name or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    try:
        _write_shards(entries, partial, source, np.dtype(dtype), shard_bytes)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _write_shards(
    entries: Iterable[tuple[str, np.ndarray]], folder: Path, source: Path, dtype: np.dtype, shard_bytes: int
) -> None:
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    width = None
    total = 0

    def flush() -> None:
        save_file(pending, folder / f"{len(shards):05d}.safetensors")
        shards.append(list(pending))
        pending.clear()

    size = 0
    for clip_id, frames in entries:
        if len(frames):
            width = width or frames.shape[1]
            if frames.shape[1] != width:
                raise ValueError(
                    f"{source}: clip {clip_id} is {frames.shape[1]} wide, clips before it are {width} wide."
                )
        pending[clip_id] = _cast(frames, dtype, clip_id, source)
        size += pending[clip_id].nbytes
        if size >= shard_bytes:
            flush()
            total, size = total + size, 0
    if pending or not shards:
        flush()
        total += size
    _write_index(
        shards, folder, {"total_size": total, "feature_size": width, "dtype": dtype.name, "source": source.name}
    )


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
    for name in set(weight_map.values()):
        # The safetensors library writes files that only their owner may read.
        shutil.copymode(index_path, folder / name)


def _cast(frames: np.ndarray, dtype: np.dtype, clip_id: str, source: Path) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(frames.astype(dtype))
    if np.isinf(cast).any() and not np.isinf(frames).any():
        raise ValueError(f"{source}: clip {clip_id} has values too large for {dtype.name}; write a wider dtype.")
    return cast


def convert_pickle(
    path: str | os.PathLike, out: str | os.PathLike, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> Path:
    """Rewrite a pickled feature file as safetensors shards with an index; see [`read_pickle`] and [`write_features`]."""
    path = Path(path)
    entries = tqdm(read_pickle(path), desc=f"Reading {path.name}", unit=" clips", disable=not progress_bars())
    return write_features(entries, out, source=path, dtype=dtype, shard_bytes=shard_bytes)


def progress_bars() -> bool:
    """Whether progress bars are wanted, as transformers is set."""
    return logging.is_progress_bar_enabled()


def open_features(path: str | os.PathLike, cache: Callable[[Path], Path]) -> SafetensorsFeatures:
    """Open a feature file of either form.

    Args:
        path: safetensors file, folder of shards, index, or pickle.
        cache: Says in which folder the converted form of a pickle belongs.
    """
    path = Path(path)
    if path.suffix not in PICKLE_SUFFIXES:
        return SafetensorsFeatures(path)
    converted = cache(path)
    converted.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{converted}.lock"):
        if not converted.exists():
            logger.warning(f"{path} is a pickle: rewriting it once as safetensors in {converted}.")
            convert_pickle(path, converted)
    return SafetensorsFeatures(converted)
