"""A reader of pickled features that runs no code, streams, and limits what a file may expand to.

A restricted `pickle.Unpickler` (`find_class` with a list of admitted names) keeps a file from importing other names, but it
still calls the admitted numpy and torch functions with whatever arguments the file gives, returns only when the whole
dict is in memory, and has no limit on what a small file expands to. This reader yields one clip after another, so a
file of any size needs the memory of a few clips; it counts how far the file expands before allocating memory, and
refuses a pickle bomb.

A pickle is a program: it names functions and calls them. Here a name stands for an entry of `ADMITTED`, a stand-in for
what numpy and torch would have made that checks every number before it works with it; nothing is imported or called
because a file says so. `_PickleMachine` knows the instructions that build containers, numbers, numpy arrays and torch
tensors, and refuses every other one. It also reads the pickle inside a file of `torch.save`, whose storages are parts of
the mapped file.
"""

import io
import itertools
import math
import mmap
import os
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .errors import first_line


# A file may expand to this many times its own size (shared rows, float16 widened to float32). More is a bomb.
UNFOLD_LIMIT = 16
UNFOLD_SLACK = 2**20

# Memory of an empty container, and of one item in it.
CONTAINER_BYTES = 64
PLACE_BYTES = 8
# Marks open at once: a dict of clips, lists of frames and arguments need four.
MOST_MARKS = 64

# Characters of a clip id.
LONGEST_ID = 1000

# Values of the machine that are larger than this, and lists, are dropped from its memo once their clip is yielded.
MEMO_BYTES = 1024

# Features have two or three axes. Shapes with more axes, or more numbers, are refused before they are multiplied.
MOST_AXES = 8
MOST_NUMBERS = 2**48

NUMBER_CODES = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 b1".split())
BFLOAT16 = "bfloat16"  # numpy has none
# numpy dtypes of torch's storages.
STORAGE_CODES = {
    **{"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": BFLOAT16, "Bool": "b1"},
    **{"Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1"},
}

_ZIP_MAGIC = b"PK\x03\x04"
# The first object of a file of torch.save before version 1.6: the number 0x1950A86A20F9469CFC6C.
_TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


# Placeholders in the memo: for a value that has been yielded and dropped, and for one that was never stored.
_EVICTED, _UNSET = object(), object()


class _RefusedError(Exception):
    """The pickle holds something that does not belong in a feature file."""


class _EvictedError(Exception):
    """A value that was dropped from the memo is requested again."""


def _expect(condition: Any, found: str) -> None:
    """Refuse the file, which contains what `found` says, unless `condition` holds."""
    if not condition:
        raise _RefusedError(found)


def _name(value: Any) -> str:
    return type(value).__name__


# Stand-ins for what numpy and torch would have made


class _Dtype:
    """A numpy dtype while it is being built: its code, then its byte order."""

    def __init__(self, code: Any, *flags: Any):
        found = repr(code[:20]) if type(code) is str else f"that is a {_name(code)}"
        known = type(code) is str and code.lstrip("<>=|") in NUMBER_CODES
        _expect(known, f"a numpy array of dtype {found}, which holds more than numbers")
        self.value = np.dtype(code)

    def build(self, state: tuple) -> None:
        """Set the state that the pickle gives."""
        if len(state) > 1 and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A numpy array while it is being built; `value` is None until its state has come."""

    value: np.ndarray | None = None

    def __init__(self, subtype: Any, shape: Any, type_code: Any):
        pass

    def build(self, state: tuple) -> None:
        """Set the state that the pickle gives."""
        shape, dtype, fortran, data = state[-4:]
        self.value = _array_from_bytes(data, dtype, shape, "F" if fortran else "C")


def _are_sizes(values: Any) -> bool:
    return all(type(value) is int and 0 <= value < MOST_NUMBERS for value in values)


def _shape_size(shape: Any) -> int:
    """Return how many numbers an array of `shape` has, after checking the sizes: huge ones take hours to multiply."""
    sound = isinstance(shape, (tuple, list)) and len(shape) <= MOST_AXES and _are_sizes(shape)
    sound = sound and math.prod(max(size, 1) for size in shape) < MOST_NUMBERS
    _expect(sound, "an array whose shape is damaged")
    return math.prod(shape)


def _array_from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    _expect(isinstance(dtype, _Dtype), "a numpy array without a dtype")
    # Python 2 wrote bytes as text.
    _expect(isinstance(data, (bytes, bytearray, str)), f"a numpy array whose data are a {_name(data)}, not bytes")
    fits = order in ("C", "F") and _shape_size(shape) * dtype.value.itemsize == len(data)
    _expect(fits, "a numpy array whose shape does not fit its data")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _latin1_bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes. Only this codec: others, such as zip, expand their input."""
    _expect(type(text) is str and encoding == "latin1", "bytes in a codec other than latin1")
    return text.encode("latin-1")


@dataclass(eq=False)
class _Storage:
    """The numbers of torch tensors, a part of a buffer that is read when a tensor is requested.

    Attributes:
        code (`str`): numpy dtype, or `"bfloat16"`.
        count (`int`): How many numbers.
        buffer (`bytes` or `mmap`, *optional*): Where they are; None until that is known.
        offset (`int`): Where they begin in `buffer`.
    """

    code: str
    count: int
    buffer: Any = None
    offset: int = 0

    def __post_init__(self):
        _expect(_are_sizes([self.count]), "a torch storage whose size is damaged")
        self.dtype = np.dtype("u2" if self.code == BFLOAT16 else self.code)
        self.nbytes = self.count * self.dtype.itemsize

    def numbers(self) -> np.ndarray:
        """Return the numbers, without a copy."""
        buffer = self.buffer if self.count else b""
        return np.frombuffer(buffer, self.dtype, self.count, self.offset if self.count else 0)


class _StorageType(str):
    """The class of a storage, as a torch file names it: the numpy dtype."""


class _Tensor:
    """A torch tensor, computed on demand."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *flags: Any):
        _expect(isinstance(storage, _Storage), "a torch tensor without a storage")
        count = _shape_size(size)
        sound = isinstance(stride, (tuple, list)) and len(stride) == len(size) and _are_sizes([offset, *stride])
        _expect(sound, "a torch tensor whose shape is damaged")
        _expect(len(flags) < 3 or not flags[2], "a negated or conjugated view of a torch tensor")
        _expect(count <= storage.count, "a torch tensor larger than its storage")
        strides = [step if length > 1 else 0 for length, step in zip(size, stride, strict=True)]
        last = offset + sum((length - 1) * step for length, step in zip(size, strides, strict=True))
        _expect(not count or last < storage.count, "a torch tensor that reaches beyond its storage")
        self.storage, self.shape = storage, tuple(size)
        self.offset, self.strides = (offset, strides) if count else (0, [0] * len(size))

    @property
    def value(self) -> np.ndarray:
        """The tensor as an array; bfloat16 becomes float32."""
        numbers = self.storage.numbers()
        strides = [stride * numbers.itemsize for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        if self.storage.code == BFLOAT16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def _parameter(tensor: Any, *flags: Any) -> _Tensor:
    _expect(isinstance(tensor, _Tensor), "a torch parameter without a tensor")
    return tensor


# Marks the loading of a storage inside a pickle; only the machine that reads the pickle can do it.
_STORAGE_FROM_BYTES = object()

# Everything that a feature file may name, and its stand-in.
ADMITTED: dict[str, Any] = {
    "numpy ndarray": object(),
    "numpy dtype": _Dtype,
    "_codecs encode": _latin1_bytes,
    "__builtin__ bytes": bytes,  # how protocol 2 writes the data of a clip of zero frames
    "builtins bytes": bytes,
    "collections OrderedDict": dict,
    "torch.storage _load_from_bytes": _STORAGE_FROM_BYTES,
    "torch._utils _rebuild_tensor": _Tensor,
    "torch._utils _rebuild_tensor_v2": _Tensor,
    "torch._utils _rebuild_parameter": _parameter,
    **{f"torch {name}Storage": _StorageType(code) for name, code in STORAGE_CODES.items()},
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    ADMITTED[f"{_core}.multiarray _reconstruct"] = _Array
    ADMITTED[f"{_core}.multiarray scalar"] = lambda dtype, data: _array_from_bytes(data, dtype, (), "C").item()
    ADMITTED[f"{_core}.numeric _frombuffer"] = _array_from_bytes

_FUNCTIONS = frozenset(value for value in ADMITTED.values() if callable(value))
# These would make what their arguments say; a file has no need to give any.
_WITHOUT_ARGUMENTS = (bytes, dict)


def _admitted(name: str) -> Any:
    _expect(name in ADMITTED, f"the name {name.replace(' ', '.')[:80]!r}")
    return ADMITTED[name]


def _finished(value: Any) -> Any:
    """Return the array that `value` stands for, and anything else as it is."""
    return value.value if isinstance(value, (_Array, _Tensor)) else value


def _is_clip(value: Any) -> bool:
    """Whether `value` is complete features of a clip."""
    return isinstance(value, (np.ndarray, list, _Tensor)) or (isinstance(value, _Array) and value.value is not None)


def _is_large(value: Any) -> bool:
    """Whether the memo would keep a clip in memory with `value`: its data, a row, or the arguments they came in."""
    parts = value if isinstance(value, tuple) else [value]
    long = isinstance(value, list) or len(parts) * PLACE_BYTES > MEMO_BYTES
    return long or any(_data_bytes(part) > MEMO_BYTES for part in parts)


def _data_bytes(value: Any) -> int:
    """Count the bytes of data that `value` keeps in memory, without its items."""
    if isinstance(value, (_Tensor, _Storage)):
        value = getattr(value, "storage", value).buffer
    value = value.value if isinstance(value, _Array) else value
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (bytes, bytearray, str)) else 0


# The machine


class _Room:
    """The bytes that a file of `size` bytes may still expand to."""

    def __init__(self, size: int):
        self.left = UNFOLD_LIMIT * size + UNFOLD_SLACK

    def take(self, size: int) -> None:
        """Count `size` bytes, before they are allocated if they are many."""
        self.left -= size
        if self.left < 0:
            raise _RefusedError(f"what expands to more than {UNFOLD_LIMIT} times the file's size, a pickle bomb")


class _BoundedReader:
    """A file that never allocates more than it has left, however large a damaged length is."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def _take(self, size: int) -> None:
        if not 0 <= size <= self.left:
            raise EOFError
        self.left -= size

    def read(self, size: int) -> bytes:
        self._take(size)
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        return line

    def skip(self, size: int) -> None:
        """Skip ahead without reading."""
        self._take(size)
        self.file.seek(size, io.SEEK_CUR)


class _PickleMachine:
    """Runs a pickle of {clip id: features} with the few instructions that such a file needs.

    Args:
        file (`_BoundedReader`): The pickle.
        room (`_Room`): What it may expand to.
        evict (`bool`): Drop large values from the memo once their clip has been yielded. A file that refers to such a
            value again raises `_EvictedError`.
        storages (`Callable`, *optional*): In a file of `torch.save`: gives the storage of a (key, dtype code, count).
    """

    def __init__(self, file: _BoundedReader, room: _Room, evict: bool, storages: Callable | None = None):
        self.file, self.room, self.evict, self.storages = file, room, evict, storages
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: list[Any] = []
        self.looked_at = 0  # this much of the memo has been searched for large values
        self.top: dict | None = None
        self.ready: list[tuple[Any, Any]] = []

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Yield (key, raw value) of the outermost dict in the order of the file."""
        for _ in self._run():
            yield from self.ready
            self._forget()
        found = _name(self.stack[-1]) if self.stack else "nothing"
        alone = len(self.stack) == 1 and self.stack[0] is self.top
        _expect(alone and self.top is not None, f"a {found} in place of a dict of clip id to features")

    def value(self) -> Any:
        """Return the one value that the pickle holds."""
        for _ in self._run():
            self._forget()
        return self.stack.pop()

    def _run(self) -> Iterator[None]:
        """Run the pickle; stop whenever clips are ready."""
        name = None
        for opcode, argument, _ in pickletools.genops(self.file):
            name = opcode.name
            if name in _LITERALS:
                self._push_literal(argument)
            else:
                self._execute(name, argument)
            self._take_finished_clips()
            if self.ready:
                yield
        if name != "STOP":
            raise EOFError

    def _execute(self, name: str, argument: Any) -> None:
        """Run one instruction; [`pickletools`] describes them."""
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append(_CONSTANTS[name])
            case "MARK":
                _expect(len(self.marks) < MOST_MARKS, f"containers that are nested more than {MOST_MARKS} deep")
                self.marks.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self._pop_mark()
            case "EMPTY_DICT" | "DICT":
                items = self._pop_mark() if name == "DICT" else []
                self._push({})
                self._store(self.stack[-1], items)
            case "EMPTY_LIST" | "EMPTY_TUPLE":
                self._push([] if name == "EMPTY_LIST" else ())
            case "LIST" | "TUPLE":
                items = self._pop_mark()
                self._push(items if name == "LIST" else tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(self._pop(int(name[-1]))))
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._pop_mark()
                self._store(self.stack[-1], items)
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._pop_mark()
                _expect(type(self.stack[-1]) is list, f"items appended to a {_name(self.stack[-1])}")
                self.stack[-1].extend(items)
            case "MEMOIZE":
                self._remember(len(self.memo))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "GET" | "BINGET" | "LONG_BINGET":
                self._recall(argument)
            case "GLOBAL" | "STACK_GLOBAL":
                names = argument.split(" ") if name == "GLOBAL" else self._pop(2)
                _expect(all(type(part) is str for part in names), "a name that is not text")
                self.stack.append(_admitted(" ".join(names)))
            case "REDUCE":
                self._push(self._call(*self._pop(2)))
            case "BUILD":
                self._build(self._pop(1)[0], self.stack[-1])
            case "BINPERSID":
                self._push(self._storage(self._pop(1)[0]))
            case _:
                raise _RefusedError(f"the pickle instruction {name}")

    def _push_literal(self, value: Any) -> None:
        if type(value) is int:
            _expect(-(2**63) <= value < 2**64, "a number of more than 64 bits")
        # Python caches small numbers.
        small = type(value) is int and -5 <= value <= 256
        self.room.take(PLACE_BYTES if small else PLACE_BYTES + sys.getsizeof(value))
        self.stack.append(value)

    def _push(self, value: Any) -> None:
        if type(value) is dict and self.top is None and not self.stack and not self.marks:
            self.top = value
        self.room.take(CONTAINER_BYTES + PLACE_BYTES)
        self.stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _take_finished_clips(self) -> None:
        """Move a clip out of the pending items of the outermost dict as soon as the next key has been read.

        Pickles write a thousand items before the instruction that stores them. Waiting for it would keep a thousand
        clips in memory.
        """
        if len(self.stack) != 3 or len(self.marks) != 1 or len(self.marks[0]) != 1 or self.marks[0][0] is not self.top:
            return
        key, value, next_key = self.stack
        if type(key) is type(next_key) is str and _is_clip(value):
            self.ready.append((key, value))
            del self.stack[:2]

    def _forget(self) -> None:
        self.ready = []
        if self.evict:
            for index in range(self.looked_at, len(self.memo)):
                if _is_large(self.memo[index]):
                    self.memo[index] = _EVICTED
        self.looked_at = len(self.memo)

    def _store(self, target: Any, items: list[Any]) -> None:
        _expect(isinstance(target, dict), f"items stored in a {_name(target)}")
        _expect(len(items) % 2 == 0, "a dict with a key that has no value")
        self.room.take(CONTAINER_BYTES * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            _expect(type(key) in (str, int), f"a dict key that is a {_name(key)}, not a clip id")
            if target is self.top:
                self.ready.append((key, value))
            else:
                target[key] = value

    def _remember(self, index: int) -> None:
        _expect(index >= 0, "a negative index in the memo")
        missing = index + 1 - len(self.memo)
        if missing > 0:
            self.room.take(PLACE_BYTES * missing)
            self.memo.extend([_UNSET] * missing)
        self.memo[index] = self.stack[-1]

    def _recall(self, index: int) -> None:
        value = self.memo[index] if index >= 0 else _UNSET
        if value is _UNSET:
            raise LookupError(f"nothing at index {index} of the memo")
        if value is _EVICTED:
            raise _EvictedError
        self.room.take(PLACE_BYTES)
        self.stack.append(value)

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is tuple and function is _STORAGE_FROM_BYTES:
            return self._storage_from_bytes(*arguments)
        known = type(arguments) is tuple and callable(function) and function in _FUNCTIONS
        _expect(known, f"a call of a {_name(function)}")
        _expect(function not in _WITHOUT_ARGUMENTS or not arguments, f"a {_name(function)} made of arguments")
        # A call may turn text into as many bytes; its result is smaller for anything else.
        self.room.take(sum(len(part) for part in arguments if type(part) is str))
        return function(*arguments)

    def _storage_from_bytes(self, data: Any) -> _Storage:
        """Return the storage inside a pickled tensor, which is itself a file of torch.save."""
        inside_tensor = isinstance(data, (bytes, bytearray)) and self.storages is None
        _expect(inside_tensor, "a torch storage inside something other than a tensor")
        storage = _torch_content(bytes(data), self.room, _PickleMachine.value)
        _expect(isinstance(storage, _Storage), f"a {_name(storage)} in place of a torch storage")
        return storage

    def _build(self, state: Any, target: Any) -> None:
        known = isinstance(target, (_Array, _Dtype)) and type(state) is tuple
        _expect(known, f"a state set on a {_name(target)}")
        self.room.take(sum(len(part) for part in state if type(part) is str))
        target.build(state)

    def _storage(self, name: Any) -> _Storage:
        """Return the storage that a tensor in a file of torch.save refers to."""
        known = self.storages is not None and type(name) is tuple and len(name) >= 5 and not any(name[5:])
        _expect(known, "a reference to something outside the pickle")
        kind, storage_type, key, _, count = name[:5]
        known = kind == "storage" and isinstance(storage_type, _StorageType) and type(key) is str
        _expect(known, "a torch storage of a kind that features are not stored in")
        return self.storages(key, str(storage_type), count)


# Files of torch.save


def _torch_content(data: Any, room: _Room, read: Callable[[_PickleMachine], Any]) -> Any:
    """Return what `read` makes of the pickle in a file of torch.save, given as `bytes` or `mmap`."""
    if data[: len(_ZIP_MAGIC)] == _ZIP_MAGIC:
        return read(_torch_zip(data, room))
    is_legacy = data[: len(_TORCH_LEGACY_MAGIC)] == _TORCH_LEGACY_MAGIC
    _expect(is_legacy, "a torch storage that torch did not write")
    return _torch_legacy(data, room, read)


def _torch_zip(data: Any, room: _Room) -> _PickleMachine:
    """Return a machine for the pickle in a zip file of torch.save, whose other members are storages."""
    with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as archive:
        members = {member.filename: member for member in archive.infolist()}

    def place(name: str) -> tuple[int, int]:
        """Where the bytes of a member begin, and how many there are."""
        member = members[name]
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        _expect(stored, f"the compressed record {name[:80]!r}, which torch.save does not write")
        lengths = struct.unpack("<HH", data[member.header_offset + 26 : member.header_offset + 30])
        begin = member.header_offset + 30 + sum(lengths)
        if begin + member.file_size > len(data):
            raise EOFError
        return begin, member.file_size

    prefix = next((name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")), None)
    _expect(prefix is not None, "no record data.pkl, so torch.save did not write it")
    if f"{prefix}byteorder" in members:
        begin, size = place(f"{prefix}byteorder")
        is_big = data[begin : begin + min(size, 8)] == b"big"
        _expect(not is_big, "numbers in the byte order of another kind of machine")

    def storage(key: str, code: str, count: int) -> _Storage:
        begin, size = place(f"{prefix}data/{key}")
        found = _Storage(code, count, data, begin)
        _expect(found.nbytes <= size, "a torch storage that is larger than its record")
        return found

    begin, size = place(f"{prefix}data.pkl")
    file = _BoundedReader(io.BytesIO(data[begin : begin + size]), size)
    return _PickleMachine(file, room, evict=False, storages=storage)


def _torch_legacy(data: Any, room: _Room, read: Callable[[_PickleMachine], Any]) -> Any:
    """Return what `read` makes of a file of torch.save before version 1.6: pickles, then the bytes of the storages."""
    file = _BoundedReader(io.BytesIO(data) if isinstance(data, bytes) else data, len(data))
    for _ in range(3):  # a magic number, a version, and facts about the machine
        for _ in pickletools.genops(file):
            pass
    storages: dict[str, _Storage] = {}

    def storage(key: str, code: str, count: int) -> _Storage:
        found = storages.setdefault(key, _Storage(code, count))
        _expect((found.code, found.count) == (code, count), "one torch storage with two sizes")
        return found

    content = read(_PickleMachine(file, room, evict=False, storages=storage))
    # Tensors are computed on demand, which is after this.
    for key in [argument for _, argument, _ in pickletools.genops(file) if type(argument) is str]:
        count = struct.unpack("<q", file.read(8))
        _expect(count == (storages[key].count,), "a torch storage whose size is damaged")
        storages[key].buffer, storages[key].offset = data, len(data) - file.left
        file.skip(storages[key].nbytes)
    if any(found.buffer is None for found in storages.values()):
        raise EOFError
    return content


# Files of features


def read_pickled_arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (clip id, array) from a pickled dict, clip by clip, in the order of the file.

    Values may be numpy arrays (pickled by numpy 1 or 2), torch tensors, or nested lists of numbers. Files written with
    `torch.save` are read in the same way; only the needed parts of the file are read for their tensors.

    Args:
        path (`Path`): The pickle.

    Raises:
        ValueError: If the file holds anything else, is truncated, or expands to far more than its size. The message
            names the file and what was found. Nothing that the file names has been imported or called.
    """
    try:
        yield from _arrays(path, path.stat().st_size)
    except _RefusedError as error:
        found = (
            f"refused, it contains {error}; a feature file maps each clip id to an array, a tensor or lists of numbers"
        )
        raise ValueError(f"{path}: {found}") from None
    except (
        *(ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError, OSError, struct.error),
        *(zipfile.BadZipFile, RuntimeError),
    ) as error:
        raise ValueError(f"{path}: truncated or not a pickle ({first_line(error)}); download the file again") from None


def _arrays(path: Path, size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the (clip id, array) of a file of `size` bytes, as it is stored."""
    room, done = _Room(size), set()
    for key, value in _raw_entries(path, size):
        clip_id = str(key)
        named = len(clip_id) <= LONGEST_ID and clip_id.isprintable()
        _expect(named, f"the clip id {clip_id[:40]!r} ..., which is long or not printable")
        _expect(clip_id not in done, f"clip id {clip_id} twice")
        done.add(clip_id)
        value = _finished(value)
        known = isinstance(value, (np.ndarray, list, tuple))
        _expect(known, f"clip {clip_id}, which holds a {_name(value)}, not features [frames, dim]")
        if isinstance(value, np.ndarray):
            room.take(4 * value.size)
        yield clip_id, value if isinstance(value, np.ndarray) else _array_of_rows(value, clip_id, room)


def _raw_entries(path: Path, size: int) -> Iterator[tuple[Any, Any]]:
    with path.open("rb") as file:
        magic = file.read(len(_TORCH_LEGACY_MAGIC))
        if magic == _TORCH_LEGACY_MAGIC or magic.startswith(_ZIP_MAGIC):
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for entry in _torch_content(data, _Room(size), lambda machine: list(machine.entries())):
                # Reading what has been cut off since would end the process.
                if os.fstat(file.fileno()).st_size < size:
                    raise EOFError
                yield entry
            return
        yielded = 0
        try:
            file.seek(0)
            for entry in _PickleMachine(_BoundedReader(file, size), _Room(size), evict=True).entries():
                yielded += 1
                yield entry
        except _EvictedError:
            # Two clips share an array. Restart with a memo that keeps everything.
            file.seek(0)
            entries = _PickleMachine(_BoundedReader(file, size), _Room(size), evict=False).entries()
            yield from itertools.islice(entries, yielded, None)


def _array_of_rows(rows: list | tuple, clip_id: str, room: _Room) -> np.ndarray:
    by_id = {id(row): _plain_row(row) for row in rows}  # a repeated row is looked at once
    alike = all(row is not None for row in by_id.values()) and len({len(row) for row in by_id.values()}) <= 1
    _expect(alike, f"clip {clip_id}, which holds rows of different lengths, or that are not numbers")
    room.take(4 * len(rows) * (1 + max(map(len, by_id.values()), default=0)))
    plain = [by_id[id(row)] for row in rows]
    try:
        with np.errstate(over="raise"):
            return np.array(plain, dtype=np.float32).reshape(len(plain), -1) if plain else np.empty((0, 0), np.float32)
    except (OverflowError, FloatingPointError):
        raise _RefusedError(f"clip {clip_id}, which holds numbers too large for float32") from None


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
