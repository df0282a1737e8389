"""Feature files: frame features of many clips, read safely and a clip at a time.

A feature file maps clip ids to features [frames, dim]. Two forms are read:

- **safetensors**: one file, or a folder of shards with an index. Clips are read one by one, on demand.
- **pickle**, as the MIntRec archives are published. A pickle is a program, so Python's unpickler is never run.
  [`read_pickle`] is a small machine of its own that executes only the instructions that build containers, numbers,
  numpy arrays and torch tensors, and refuses every other one before anything has happened. It yields clip by clip, so
  that a file of any size is read in little memory.
"""

import io
import json
import math
import os
import pickletools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers.utils import logging


logger = logging.get_logger(__name__)

INDEX_NAME = "features.safetensors.index.json"
PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth")
DTYPES = ("float32", "float16")
SHARD_BYTES = 256 * 2**20

# A file may unfold to this many times its own size (shared rows, float16 widened to float32). More is a bomb.
UNFOLD_LIMIT = 16
UNFOLD_SLACK = 2**20

# Values of the unpickling machine that are larger than this are dropped from its memo once their clip is out.
MEMO_BYTES = 1024

NUMBER_CODES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])


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


# ---------------------------------------------------------------------------------------------------------- pickles


class _EvictedError(Exception):
    """A value that was dropped from the memo is asked for again."""


class _Evicted:
    """Stands in the memo for a value that has been handed out and dropped."""


class _Dtype:
    """A numpy dtype while it is being built: its code, then its byte order."""

    def __init__(self, code: Any):
        code = str(code).lstrip("<>=|")
        if code not in NUMBER_CODES:
            raise ValueError(f"a numpy array of dtype {code[:20]!r}, which holds more than numbers")
        self.value = np.dtype(code)

    def build(self, state: tuple) -> None:
        if len(state) > 1 and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A numpy array while it is being built; `value` is None until its state has come."""

    value: np.ndarray | None = None

    def build(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _array_from_bytes(data, dtype, shape, "F" if fortran else "C")


def _array_from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise ValueError("a numpy array without a dtype")
    if isinstance(data, str):  # bytes as Python 2 wrote them
        data = data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError(f"a numpy array whose data are a {type(data).__name__}, not bytes")
    if order not in ("C", "F") or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a numpy array whose shape is damaged")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError("a numpy array whose shape does not fit its data")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _empty_array(subtype: Any, shape: Any, type_code: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *flags: Any) -> _Dtype:
    return _Dtype(code)


def _scalar(dtype: Any, data: Any) -> float | int:
    return _array_from_bytes(data, dtype, (), "C").item()


def _latin1_bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes. Only this one codec: others, such as zip, compute."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the codec {str(encoding)[:20]!r}")
    return text.encode("latin-1")


def _ordered_dict() -> dict:
    return {}


def _torch_storage(data: Any) -> Any:
    """The storage inside a tensor is a pickle of its own; torch's weights-only reader takes it."""
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"a torch storage that torch's weights-only reader refuses ({_first_line(error)})") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise ValueError(f"a {type(storage).__name__} in place of a torch storage")
    return storage


def _torch_tensor(storage: Any, offset: Any, size: Any, stride: Any, *flags: Any) -> np.ndarray:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise ValueError("a torch tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a torch tensor whose shape is damaged")
    if math.prod(size) > storage.size():
        raise ValueError("a torch tensor larger than its storage")
    flat = torch.tensor([], dtype=storage.dtype).set_(storage.untyped())
    try:
        tensor = flat.as_strided(size, stride, offset)
    except RuntimeError:
        raise ValueError("a torch tensor that reaches beyond its storage") from None
    if tensor.is_complex():
        raise ValueError("a torch tensor of complex numbers")
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _torch_parameter(tensor: Any, *flags: Any) -> np.ndarray:
    return tensor


_NDARRAY = object()

# Everything that a feature file may name, and what stands for it here. Nothing is ever imported by name.
ADMITTED: dict[str, Any] = {
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _dtype,
    "_codecs encode": _latin1_bytes,
    "collections OrderedDict": _ordered_dict,
    "torch.storage _load_from_bytes": _torch_storage,
    "torch._utils _rebuild_tensor": _torch_tensor,
    "torch._utils _rebuild_tensor_v2": _torch_tensor,
    "torch._utils _rebuild_parameter": _torch_parameter,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    ADMITTED[f"{_core}.multiarray _reconstruct"] = _empty_array
    ADMITTED[f"{_core}.multiarray scalar"] = _scalar
    ADMITTED[f"{_core}.numeric _frombuffer"] = _array_from_bytes

_NO_EFFECT = ("PROTO", "FRAME")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)


class _BoundedReader:
    """A file that never allocates more than it has left, however much a damaged length asks for."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        if size > self.left:
            raise EOFError
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        return line


class _PickleMachine:
    """Runs a pickle of {clip id: features} by the few instructions that such a file needs.

    Args:
        file: The pickle, with `read` and `readline`.
        evict: Drop large values from the memo once their clip has been handed out. A file that refers to such a
            value again raises `_EvictedError`.
    """

    def __init__(self, file: _BoundedReader, evict: bool):
        self.file = file
        self.evict = evict
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.fresh: list[int] = []
        self.top: dict | None = None
        self.ready: list[tuple[Any, Any]] = []

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Yield (key, raw value) of the outermost dict in the order of the file."""
        finished = False
        for opcode, argument, _ in pickletools.genops(self.file):
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "STOP":
                finished = True
            elif name not in _NO_EFFECT:
                handler = getattr(self, f"_op_{name.lower()}", None)
                if handler is None:
                    raise ValueError(f"the pickle instruction {name}")
                handler(argument)
            self._take_finished_arrays()
            if self.ready:
                yield from self.ready
                self._forget()
        if not finished:
            raise EOFError
        if self.top is None or len(self.stack) != 1 or self.stack[0] is not self.top:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise ValueError(f"a {found} in place of a dict of clip id to features")

    # Handing out

    def _take_finished_arrays(self) -> None:
        """Move clips out of the pending items of the outermost dict as soon as the next key is there.

        Pickles write a thousand items before the instruction that stores them. Waiting for it would keep a thousand
        clips in memory.
        """
        if len(self.marks) != 1 or len(self.stack) < 3 or self.marks[0] != [self.top]:
            return
        if isinstance(_finished(self.stack[1]), np.ndarray) and isinstance(self.stack[2], str):
            self.ready.append((self.stack[0], self.stack[1]))
            del self.stack[:2]

    def _forget(self) -> None:
        self.ready = []
        if self.evict:
            for index in self.fresh:
                if _is_large(self.memo.get(index)):
                    self.memo[index] = _Evicted
        self.fresh = []

    def _store(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise ValueError(f"items stored in a {type(target).__name__}")
        if len(items) % 2:
            raise ValueError("a dict with a key that has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError(f"a dict key that is a {type(key).__name__}, not a clip id")
            if target is self.top:
                self.ready.append((key, value))
            else:
                target[key] = value

    # Instructions

    def _op_mark(self, argument):
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _op_pop(self, argument):
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _op_pop_mark(self, argument):
        self._pop_mark()

    def _op_empty_dict(self, argument):
        self._push_dict({})

    def _push_dict(self, value: dict) -> None:
        if self.top is None and not self.stack and not self.marks:
            self.top = value
        self.stack.append(value)

    def _op_dict(self, argument):
        items = self._pop_mark()
        self._push_dict({})
        self._store(self.stack[-1], items)

    def _op_setitem(self, argument):
        value, key = self.stack.pop(), self.stack.pop()
        self._store(self.stack[-1], [key, value])

    def _op_setitems(self, argument):
        items = self._pop_mark()
        self._store(self.stack[-1], items)

    def _op_empty_list(self, argument):
        self.stack.append([])

    def _op_list(self, argument):
        items = self._pop_mark()
        self.stack.append(items)

    def _op_append(self, argument):
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self, argument):
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError(f"items appended to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _op_empty_tuple(self, argument):
        self.stack.append(())

    def _op_tuple(self, argument):
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def _op_tuple1(self, argument):
        self._tuple(1)

    def _op_tuple2(self, argument):
        self._tuple(2)

    def _op_tuple3(self, argument):
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def _op_memoize(self, argument):
        self._remember(len(self.memo))

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]
        self.fresh.append(index)

    _op_put = _op_binput = _op_long_binput = lambda self, argument: self._remember(argument)

    def _recall(self, index: int) -> None:
        value = self.memo[index]
        if value is _Evicted:
            raise _EvictedError
        self.stack.append(value)

    _op_get = _op_binget = _op_long_binget = lambda self, argument: self._recall(argument)

    def _op_global(self, argument):
        self.stack.append(_admitted(argument))

    def _op_stack_global(self, argument):
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_admitted(f"{module} {name}"))

    def _op_reduce(self, argument):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or not any(function is admitted for admitted in ADMITTED.values()):
            raise ValueError(f"a call of a {type(function).__name__}")
        if function is _ordered_dict:
            self._push_dict(_ordered_dict(*arguments))
        else:
            self.stack.append(function(*arguments))

    def _op_build(self, argument):
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (_Array, _Dtype)) or type(state) is not tuple:
            raise ValueError(f"a state set on a {type(target).__name__}")
        target.build(state)


def _admitted(name: Any) -> Any:
    if name not in ADMITTED:
        raise ValueError(f"the name {name.replace(' ', '.')[:80]!r}")
    return ADMITTED[name]


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _is_large(value: Any) -> bool:
    value = _finished(value)
    if isinstance(value, np.ndarray):
        return value.nbytes > MEMO_BYTES
    return isinstance(value, (bytes, bytearray, list, str, tuple)) and len(value) * 8 > MEMO_BYTES


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def read_pickle(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, features [frames, dim]) from a pickled dict, clip by clip, in the order of the file.

    Values may be numpy arrays (pickled by numpy 1 or 2), torch tensors, or nested lists of numbers, [frames, dim] or
    [frames, 1, dim]. Files written with `torch.save` are read by torch's weights-only reader.

    Raises:
        ValueError: If the file holds anything else, is truncated, or unfolds to far more than its size. The message
            names the file and what was found. Nothing that the file names has been imported or called.
    """
    path = Path(path)
    size = path.stat().st_size
    budget = UNFOLD_LIMIT * size + UNFOLD_SLACK
    done: set[str] = set()
    for key, value in _raw_entries(path, size):
        clip_id = str(key)
        if clip_id in done:
            raise ValueError(f"{path}: clip id {clip_id} twice; write the file again with one entry a clip.")
        done.add(clip_id)
        value = _finished(value)
        budget -= 4 * _count_numbers(value, clip_id, path)
        if budget < 0:
            raise ValueError(f"{path}: unfolds to more than {UNFOLD_LIMIT} times its size; refused as a pickle bomb.")
        yield clip_id, as_frames(_to_array(value, clip_id, path), clip_id, path)


def _raw_entries(path: Path, size: int) -> Iterator[tuple[Any, Any]]:
    with path.open("rb") as file:
        magic = file.read(16)
        if magic.startswith(b"PK\x03\x04") or magic.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"):
            yield from _torch_file_entries(path)
            return
        yielded = 0
        try:
            file.seek(0)
            for entry in _guarded(path, _PickleMachine(_BoundedReader(file, size), evict=True)):
                yielded += 1
                yield entry
        except _EvictedError:
            # Two clips share an array. Start again with a memo that keeps everything.
            file.seek(0)
            entries = _guarded(path, _PickleMachine(_BoundedReader(file, size), evict=False))
            for number, entry in enumerate(entries):
                if number >= yielded:
                    yield entry


def _guarded(path: Path, machine: _PickleMachine) -> Iterator[tuple[Any, Any]]:
    """Run `machine`, giving its errors the name of the file and a next step."""
    try:
        yield from machine.entries()
    except (EOFError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise ValueError(
            f"{path}: truncated or not a pickle ({type(error).__name__}); fetch the file again."
        ) from None
    except ValueError as error:
        problem = _first_line(error)
        if "pickletools" in problem or "exhausted" in problem or "opcode" in problem or "bytes" in problem[:9]:
            raise ValueError(f"{path}: truncated or not a pickle ({problem}); fetch the file again.") from None
        raise ValueError(
            f"{path}: refused, it contains {problem}; a feature file holds only arrays, tensors and lists of numbers."
        ) from None


def _torch_file_entries(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{path}: refused by torch's weights-only reader ({_first_line(error)}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of clip id to features.")
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().float().numpy()
        yield key, value


def _count_numbers(value: Any, clip_id: str, path: Path) -> int:
    """Count the numbers of `value` from the lengths of its rows, without unfolding shared ones."""
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{path}: clip {clip_id} holds a {type(value).__name__}, not features [frames, dim].")
    total = 0
    for row in map(_finished, value):
        if isinstance(row, np.ndarray):
            total += row.size
        elif isinstance(row, (list, tuple)):
            total += sum(len(cell) if isinstance(cell, (list, tuple)) else 1 for cell in row)
        else:
            raise ValueError(
                f"{path}: clip {clip_id} holds a list of {type(row).__name__}, not features [frames, dim]."
            )
    return total


def _to_array(value: Any, clip_id: str, path: Path) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    rows = [_finished(row) for row in value]
    rows = [_plain_row(row[0]) if len(row) == 1 and not np.isscalar(row[0]) else _plain_row(row) for row in rows]
    if any(row is None for row in rows) or len({len(row) for row in rows}) > 1:
        raise ValueError(f"{path}: clip {clip_id} holds rows that are not of one length or not of numbers.")
    return np.array(rows, dtype=np.float32).reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)


def _plain_row(row: Any) -> Any:
    """Return one frame as a list or array of numbers, None if it is anything else."""
    row = _finished(row)
    if isinstance(row, np.ndarray):
        return row.reshape(-1)
    if isinstance(row, (list, tuple)) and all(type(number) in (int, float, bool) for number in row):
        return row
    return None


# ------------------------------------------------------------------------------------------------------ safetensors


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

    # Mapped pages count as memory of this process until the file is closed, so files are opened anew now and then.
    REOPEN_BYTES = 64 * 2**20

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / INDEX_NAME
        self._shard_of = self._read_index() if self.path.suffix == ".json" else self._read_names()
        self.feature_size = self._read_width()
        self._open_path: Path | None = None
        self._open_file: Any = None
        self._bytes_read = 0

    def _read_index(self) -> dict[str, Path]:
        try:
            index = json.loads(self.path.read_text(encoding="utf-8"))
            return {clip_id: self.path.parent / shard for clip_id, shard in index["weight_map"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: not a readable index of shards ({_first_line(error)}).") from None

    def _read_names(self) -> dict[str, Path]:
        with self._opened(self.path) as file:
            return dict.fromkeys(file.keys(), self.path)

    def _opened(self, shard: Path) -> Any:
        try:
            return safe_open(shard, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{shard}: not a readable safetensors file ({_first_line(error)}); convert the features again."
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
        if shard != self._open_path or self._bytes_read > self.REOPEN_BYTES:
            self._open_file, self._open_path, self._bytes_read = self._opened(shard), shard, 0
        try:
            tensor = self._open_file.get_tensor(clip_id)
        except SafetensorError as error:
            raise ValueError(f"{shard}: clip {clip_id} cannot be read ({_first_line(error)}).") from None
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
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write_shards(entries, partial, source, np.dtype(dtype), shard_bytes)
        partial.chmod(0o755)
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
    weight_map = {}
    for number, clip_ids in enumerate(shards):
        name = f"features-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"{number:05d}.safetensors", folder / name)
        weight_map.update(dict.fromkeys(clip_ids, name))
    metadata = {"total_size": total, "feature_size": width, "dtype": dtype.name, "source": source.name}
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, ensure_ascii=False)
    (folder / INDEX_NAME).write_text(index, encoding="utf-8")


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
    if not converted.exists():
        logger.warning(f"{path} is a pickle: rewriting it once as safetensors in {converted}.")
        convert_pickle(path, converted)
    return SafetensorsFeatures(converted)
