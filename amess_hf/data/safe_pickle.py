"""A reader of pickled features that runs no code, streams, and bounds what a file may unfold to.

A restricted `pickle.Unpickler` (`find_class` with a list of admitted names) keeps a file from importing other names, but it
still calls the admitted numpy and torch functions with whatever arguments the file gives, returns only when the whole
dict is in memory, and has no limit on what a small file unfolds to. This reader hands out one clip after another, so a
file of any size needs the memory of a few clips; it counts what the file makes of its bytes and refuses a pickle bomb;
X.

A pickle is a program: it names functions and calls them. `_PickleMachine` knows the instructions that build containers,
numbers, numpy arrays and torch tensors, and refuses every other one.
"""

import io
import itertools
import math
import pickletools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch


# A file may unfold to this many times its own size (shared rows, float16 widened to float32). More is a bomb.
UNFOLD_LIMIT = 16
UNFOLD_SLACK = 2**20

# Values of the machine that are larger than this, and lists, are dropped from its memo once their clip is out.
MEMO_BYTES = 1024

_ZIP_MAGIC = b"PK\x03\x04"
# The first object of a file of torch.save before version 1.6: the number 0x1950A86A20F9469CFC6C.
_TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

NUMBER_CODES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])


class _RefusedError(Exception):
    """The pickle holds something that a feature file has no use for."""


class _EvictedError(Exception):
    """A value that was dropped from the memo is asked for again."""


class _Evicted:
    """Stands in the memo for a value that has been handed out and dropped."""


class _Dtype:
    """A numpy dtype while it is being built: its code, then its byte order."""

    def __init__(self, code: Any):
        if type(code) is not str or code.lstrip("<>=|") not in NUMBER_CODES:
            found = repr(code[:20]) if type(code) is str else f"that is a {type(code).__name__}"
            raise _RefusedError(f"a numpy array of dtype {found}, which holds more than numbers")
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
        raise _RefusedError("a numpy array without a dtype")
    if isinstance(data, str):  # bytes as Python 2 wrote them
        data = data.encode("latin-1")
    if not isinstance(data, (bytes, bytearray)):
        raise _RefusedError(f"a numpy array whose data are a {type(data).__name__}, not bytes")
    if order not in ("C", "F") or not all(type(size) is int and size >= 0 for size in shape):
        raise _RefusedError("a numpy array whose shape is damaged")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise _RefusedError("a numpy array whose shape does not fit its data")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _empty_array(subtype: Any, shape: Any, type_code: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *flags: Any) -> _Dtype:
    return _Dtype(code)


def _scalar(dtype: Any, data: Any) -> float | int:
    return _array_from_bytes(data, dtype, (), "C").item()


def _latin1_bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes. Only this one codec: others, such as zip, compute."""
    if type(text) is not str or encoding != "latin1":
        raise _RefusedError("bytes in a codec other than latin1")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    """How protocol 2 writes the data of a clip of zero frames."""
    return b""


def _ordered_dict() -> dict:
    return {}


def _torch_storage(data: Any) -> torch.Tensor:
    """The storage inside a tensor is a pickle of its own; torch's weights-only reader takes it. As a flat tensor."""
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise _RefusedError(
            f"a torch storage that torch's weights-only reader refuses ({first_line(error)})"
        ) from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise _RefusedError(f"a {type(storage).__name__} in place of a torch storage")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        return torch.tensor([], dtype=storage.dtype).set_(storage.untyped())


def _torch_tensor(storage: Any, offset: Any, size: Any, stride: Any, *flags: Any) -> np.ndarray:
    if not isinstance(storage, torch.Tensor):
        raise _RefusedError("a torch tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise _RefusedError("a torch tensor whose shape is damaged")
    try:
        tensor = storage.as_strided(size, stride, offset)
    except RuntimeError:
        raise _RefusedError("a torch tensor that reaches beyond its storage") from None
    return _tensor_to_array(tensor)


def _tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise _RefusedError("a torch tensor that is sparse, complex or quantized")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise _RefusedError("a torch tensor larger than its storage")
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _torch_parameter(tensor: Any, *flags: Any) -> np.ndarray:
    return tensor


_NDARRAY = object()

# Everything that a feature file may name, and what stands for it here. Nothing is ever imported by name.
ADMITTED: dict[str, Any] = {
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _dtype,
    "_codecs encode": _latin1_bytes,
    "__builtin__ bytes": _empty_bytes,
    "builtins bytes": _empty_bytes,
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
        file (`_BoundedReader`): The pickle.
        evict (`bool`): Drop large values from the memo once their clip has been handed out. A file that refers to such a
            value again raises `_EvictedError`.
    """

    def __init__(self, file: _BoundedReader, evict: bool):
        self.file = file
        self.evict = evict
        self.room = UNFOLD_LIMIT * file.left + UNFOLD_SLACK  # bytes that calls may still make
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
                    raise _RefusedError(f"the pickle instruction {name}")
                handler(argument)
            self._take_finished_clips()
            if self.ready:
                yield from self.ready
                self._forget()
        if not finished:
            raise EOFError
        if self.top is None or len(self.stack) != 1 or self.stack[0] is not self.top:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise _RefusedError(f"a {found} in place of a dict of clip id to features")

    # Handing out

    def _take_finished_clips(self) -> None:
        """Move clips out of the pending items of the outermost dict as soon as the next key is there.

        Pickles write a thousand items before the instruction that stores them. Waiting for it would keep a thousand
        clips in memory.
        """
        if len(self.marks) != 1 or len(self.stack) < 3 or len(self.marks[0]) != 1 or self.marks[0][0] is not self.top:
            return
        key, value, next_key = self.stack[:3]
        if type(key) is type(next_key) is str and isinstance(_finished(value), (np.ndarray, list)):
            self.ready.append((key, value))
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
            raise _RefusedError(f"items stored in a {type(target).__name__}")
        if len(items) % 2:
            raise _RefusedError("a dict with a key that has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise _RefusedError(f"a dict key that is a {type(key).__name__}, not a clip id")
            if target is self.top:
                self.ready.append((key, value))
            else:
                target[key] = value

    # Instructions

    def _op_mark(self, argument: Any):
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _op_pop(self, argument: Any):
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _op_pop_mark(self, argument: Any):
        self._pop_mark()

    def _op_empty_dict(self, argument: Any):
        self._push_dict({})

    def _push_dict(self, value: dict) -> None:
        if self.top is None and not self.stack and not self.marks:
            self.top = value
        self.stack.append(value)

    def _op_dict(self, argument: Any):
        items = self._pop_mark()
        self._push_dict({})
        self._store(self.stack[-1], items)

    def _op_setitem(self, argument: Any):
        value, key = self.stack.pop(), self.stack.pop()
        self._store(self.stack[-1], [key, value])

    def _op_setitems(self, argument: Any):
        items = self._pop_mark()
        self._store(self.stack[-1], items)

    def _op_empty_list(self, argument: Any):
        self.stack.append([])

    def _op_list(self, argument: Any):
        items = self._pop_mark()
        self.stack.append(items)

    def _op_append(self, argument: Any):
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self, argument: Any):
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise _RefusedError(f"items appended to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _op_empty_tuple(self, argument: Any):
        self.stack.append(())

    def _op_tuple(self, argument: Any):
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def _op_tuple1(self, argument: Any):
        self._tuple(1)

    def _op_tuple2(self, argument: Any):
        self._tuple(2)

    def _op_tuple3(self, argument: Any):
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def _op_memoize(self, argument: Any):
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

    def _op_global(self, argument: Any):
        self.stack.append(_admitted(argument))

    def _op_stack_global(self, argument: Any):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise _RefusedError("a name that is not text")
        self.stack.append(_admitted(f"{module} {name}"))

    def _op_reduce(self, argument: Any):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or not any(function is admitted for admitted in ADMITTED.values()):
            raise _RefusedError(f"a call of a {type(function).__name__}")
        if function is _ordered_dict:
            self._push_dict(_ordered_dict(*arguments))
        else:
            made = function(*arguments)
            self._charge(made)
            self.stack.append(made)

    def _charge(self, made: Any) -> None:
        """Count what a call made of bytes that may stand in the file only once, before more is made of them."""
        self.room -= _data_bytes(made)
        if self.room < 0:
            raise _RefusedError(f"more than {UNFOLD_LIMIT} times the file's size made by calls, a pickle bomb")

    def _op_build(self, argument: Any):
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (_Array, _Dtype)) or type(state) is not tuple:
            raise _RefusedError(f"a state set on a {type(target).__name__}")
        target.build(state)


def _admitted(name: str) -> Any:
    if name not in ADMITTED:
        raise _RefusedError(f"the name {name.replace(' ', '.')[:80]!r}")
    return ADMITTED[name]


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


def _data_bytes(value: Any) -> int:
    """Count the bytes of data that are `value` itself; what its items hold does not count."""
    value = _finished(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return value.nbytes
    return len(value) if isinstance(value, (bytes, bytearray, str)) else 0


def _is_large(value: Any) -> bool:
    """Whether the memo would keep a clip in memory with `value`: its data, a row, or the arguments they came in."""
    if isinstance(value, tuple) and len(value) * 8 > MEMO_BYTES:
        return True
    parts = value if isinstance(value, tuple) else [value]
    return isinstance(value, list) or any(_data_bytes(part) > MEMO_BYTES for part in parts)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def read_pickled_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, array) from a pickled dict, clip by clip, in the order of the file.

    Values may be numpy arrays (pickled by numpy 1 or 2), torch tensors, or nested lists of numbers. Files written with
    `torch.save` are read by torch's weights-only reader.

    Args:
        path (`Path`): The pickle.

    Raises:
        ValueError: If the file holds anything else, is truncated, or unfolds to far more than its size. The message
            names the file and what was found. Nothing that the file names has been imported or called.
    """
    size = path.stat().st_size
    budget = UNFOLD_LIMIT * size + UNFOLD_SLACK
    done: set[str] = set()
    for key, value in _raw_entries(path, size):
        clip_id = str(key)
        if clip_id in done:
            raise ValueError(f"{path}: clip id {clip_id} twice; write the file again with one entry a clip")
        done.add(clip_id)
        value = _finished(value)
        budget -= 4 * _count_numbers(value, clip_id, path)
        if budget < 0:
            raise ValueError(f"{path}: unfolds to more than {UNFOLD_LIMIT} times its size; refused as a pickle bomb")
        yield clip_id, _to_array(value, clip_id, path)


def _raw_entries(path: Path, size: int) -> Iterator[tuple[Any, Any]]:
    with path.open("rb") as file:
        magic = file.read(len(_TORCH_LEGACY_MAGIC))
        if magic == _TORCH_LEGACY_MAGIC or magic.startswith(_ZIP_MAGIC):
            yield from _torch_file_entries(path, mapped=magic.startswith(_ZIP_MAGIC))
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
            yield from itertools.islice(entries, yielded, None)


def _guarded(path: Path, machine: _PickleMachine) -> Iterator[tuple[Any, Any]]:
    """Run `machine`, giving its errors the name of the file and a next step."""
    try:
        yield from machine.entries()
    except _RefusedError as error:
        raise ValueError(
            f"{path}: refused, it contains {error}; a feature file holds only arrays, tensors and lists of numbers"
        ) from None
    except (ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: truncated or not a pickle ({first_line(error)}); fetch the file again") from None


def _torch_file_entries(path: Path, mapped: bool) -> Iterator[tuple[Any, Any]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{path}: refused by torch's weights-only reader ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of clip id to features")
    for key, value in content.items():
        try:
            yield key, _tensor_to_array(value) if isinstance(value, torch.Tensor) else value
        except _RefusedError as error:
            raise ValueError(f"{path}: refused, clip {key} is {error}") from None


def _count_numbers(value: Any, clip_id: str, path: Path) -> int:
    """Count the numbers of `value` from the lengths of its rows; a row that occurs often is looked at once."""
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{path}: clip {clip_id} holds a {type(value).__name__}, not features [frames, dim]")
    sizes: dict[int, int] = {}
    for row in value:
        if id(row) not in sizes:
            cells = row if isinstance(row, (list, tuple)) else [row]
            sizes[id(row)] = sum(_length(_finished(cell)) for cell in cells)
    return sum(sizes[id(row)] for row in value)


def _length(cell: Any) -> int:
    if isinstance(cell, np.ndarray):
        return cell.size
    return len(cell) if isinstance(cell, (list, tuple)) else 1


def _to_array(value: Any, clip_id: str, path: Path) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    rows = [_plain_row(row) for row in value]
    if any(row is None for row in rows) or len({len(row) for row in rows}) > 1:
        raise ValueError(f"{path}: clip {clip_id} holds rows that are not of one length or not of numbers")
    try:
        return np.array(rows, dtype=np.float32).reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)
    except OverflowError:
        raise ValueError(f"{path}: clip {clip_id} holds numbers too large for float32") from None


def _plain_row(row: Any) -> Any:
    """Return one frame, [dim] or [1, dim], as a list or array of numbers; None if it is anything else."""
    row = _finished(row)
    if isinstance(row, (list, tuple)) and len(row) == 1 and type(row[0]) not in (int, float, bool):
        row = _finished(row[0])
    if isinstance(row, np.ndarray):
        return row.reshape(-1)
    if isinstance(row, (list, tuple)) and all(type(number) in (int, float, bool) for number in row):
        return row
    return None
