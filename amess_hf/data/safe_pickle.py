"""A reader of pickled features that runs no code, streams, and limits what a file may expand to.

A restricted `pickle.Unpickler` (`find_class` with a list of admitted names) keeps a file from importing other names, but it
still calls the admitted numpy and torch functions with whatever arguments the file gives, returns only when the whole
dict is in memory, and has no limit on what a small file expands to. This reader yields one clip after another, so a
file of any size needs the memory of a few clips; it counts how far the file expands before allocating memory, and
refuses a pickle bomb.

A pickle is a program: it names functions and calls them. `_PickleMachine` knows the instructions that build containers,
numbers, numpy arrays and torch tensors, and refuses every other one. It also reads the pickle inside a file of
`torch.save`, whose storages are parts of the mapped file.
"""

import io
import itertools
import mmap
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .pickled_objects import (
    ADMITTED,
    FUNCTIONS,
    STORAGE_FROM_BYTES,
    Array,
    Dtype,
    RefusedError,
    Storage,
    StorageType,
    data_bytes,
    finished,
    is_clip,
)


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

_ZIP_MAGIC = b"PK\x03\x04"
# The first object of a file of torch.save before version 1.6: the number 0x1950A86A20F9469CFC6C.
_TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


class _EvictedError(Exception):
    """A value that was dropped from the memo is requested again."""


class _Evicted:
    """Placeholder in the memo for a value that has been yielded and dropped."""


class _Unset:
    """Placeholder in the memo for a value that was never stored."""


_NO_EFFECT = ("PROTO", "FRAME")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES "
    "SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8".split()
)


class _Room:
    """The bytes that a file of `size` bytes may still expand to."""

    def __init__(self, size: int):
        self.left = UNFOLD_LIMIT * size + UNFOLD_SLACK

    def take(self, size: int) -> None:
        """Count `size` bytes, before they are allocated if they are many."""
        self.left -= size
        if self.left < 0:
            raise RefusedError(f"what expands to more than {UNFOLD_LIMIT} times the file's size, a pickle bomb")


class _BoundedReader:
    """A file that never allocates more than it has left, however large a damaged length is."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise EOFError
        self.left -= size
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline()
        self.left -= len(line)
        return line

    def skip(self, size: int) -> None:
        """Skip ahead without reading."""
        if size > self.left:
            raise EOFError
        self.left -= size
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

    def __init__(
        self,
        file: _BoundedReader,
        room: _Room,
        evict: bool,
        storages: Callable[[str, str, int], Storage] | None = None,
    ):
        self.file = file
        self.room = room
        self.evict = evict
        self.storages = storages
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
        if self.top is None or len(self.stack) != 1 or self.stack[0] is not self.top:
            found = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise RefusedError(f"a {found} in place of a dict of clip id to features")

    def value(self) -> Any:
        """Return the one value that the pickle holds."""
        for _ in self._run():
            self._forget()
        return self.stack.pop()

    def _run(self) -> Iterator[None]:
        """Run the pickle; stop whenever clips are ready."""
        complete = False
        for opcode, argument, _ in pickletools.genops(self.file):
            name = opcode.name
            if name in _LITERALS:
                self._push_literal(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "STOP":
                complete = True
            elif name not in _NO_EFFECT:
                handler = getattr(self, f"_op_{name.lower()}", None)
                if handler is None:
                    raise RefusedError(f"the pickle instruction {name}")
                handler(argument)
            self._take_finished_clips()
            if self.ready:
                yield
        if not complete:
            raise EOFError

    def _push_literal(self, value: Any) -> None:
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise RefusedError("a number of more than 64 bits")
        # Python caches small numbers.
        small = type(value) is int and -5 <= value <= 256
        self.room.take(PLACE_BYTES if small else PLACE_BYTES + sys.getsizeof(value))
        self.stack.append(value)

    # Yielding clips

    def _take_finished_clips(self) -> None:
        """Move a clip out of the pending items of the outermost dict as soon as the next key has been read.

        Pickles write a thousand items before the instruction that stores them. Waiting for it would keep a thousand
        clips in memory.
        """
        if len(self.stack) != 3 or len(self.marks) != 1 or len(self.marks[0]) != 1 or self.marks[0][0] is not self.top:
            return
        key, value, next_key = self.stack
        if type(key) is type(next_key) is str and is_clip(value):
            self.ready.append((key, value))
            del self.stack[:2]

    def _forget(self) -> None:
        self.ready = []
        if self.evict:
            for index in range(self.looked_at, len(self.memo)):
                if _is_large(self.memo[index]):
                    self.memo[index] = _Evicted
        self.looked_at = len(self.memo)

    def _store(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise RefusedError(f"items stored in a {type(target).__name__}")
        if len(items) % 2:
            raise RefusedError("a dict with a key that has no value")
        self.room.take(CONTAINER_BYTES * len(items))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise RefusedError(f"a dict key that is a {type(key).__name__}, not a clip id")
            if target is self.top:
                self.ready.append((key, value))
            else:
                target[key] = value

    # Instructions

    def _op_mark(self, argument: Any):
        if len(self.marks) == MOST_MARKS:
            raise RefusedError(f"containers that are nested more than {MOST_MARKS} deep")
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

    def _push_container(self, value: Any) -> None:
        self.room.take(CONTAINER_BYTES + PLACE_BYTES)
        self.stack.append(value)

    def _op_empty_dict(self, argument: Any):
        self._push_dict({})

    def _push_dict(self, value: dict) -> None:
        if self.top is None and not self.stack and not self.marks:
            self.top = value
        self._push_container(value)

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
        self._push_container([])

    def _op_list(self, argument: Any):
        items = self._pop_mark()
        self._push_container(items)

    def _op_append(self, argument: Any):
        item = self.stack.pop()
        self._extend([item])

    def _op_appends(self, argument: Any):
        items = self._pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise RefusedError(f"items appended to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def _op_empty_tuple(self, argument: Any):
        self._push_container(())

    def _op_tuple(self, argument: Any):
        items = self._pop_mark()
        self._push_container(tuple(items))

    def _op_tuple1(self, argument: Any):
        self._tuple(1)

    def _op_tuple2(self, argument: Any):
        self._tuple(2)

    def _op_tuple3(self, argument: Any):
        self._tuple(3)

    def _tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError
        items = tuple(self.stack[-size:])
        del self.stack[-size:]
        self._push_container(items)

    def _op_memoize(self, argument: Any):
        self._remember(len(self.memo))

    def _remember(self, index: int) -> None:
        if index < 0:
            raise RefusedError("a negative index in the memo")
        missing = index + 1 - len(self.memo)
        if missing > 0:
            self.room.take(PLACE_BYTES * missing)
            self.memo.extend([_Unset] * missing)
        self.memo[index] = self.stack[-1]

    _op_put = _op_binput = _op_long_binput = lambda self, argument: self._remember(argument)

    def _recall(self, index: int) -> None:
        value = self.memo[index] if index >= 0 else _Unset
        if value is _Unset:
            raise LookupError(f"nothing at index {index} of the memo")
        if value is _Evicted:
            raise _EvictedError
        self.room.take(PLACE_BYTES)
        self.stack.append(value)

    _op_get = _op_binget = _op_long_binget = lambda self, argument: self._recall(argument)

    def _op_global(self, argument: Any):
        self.stack.append(_admitted(argument))

    def _op_stack_global(self, argument: Any):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise RefusedError("a name that is not text")
        self.stack.append(_admitted(f"{module} {name}"))

    def _op_reduce(self, argument: Any):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is tuple and function is STORAGE_FROM_BYTES:
            return self._push_container(self._storage_from_bytes(*arguments))
        if type(arguments) is not tuple or not callable(function) or function not in FUNCTIONS:
            raise RefusedError(f"a call of a {type(function).__name__}")
        # A call may turn text into as many bytes; its result is smaller for anything else.
        self.room.take(sum(len(part) for part in arguments if type(part) is str))
        made = function(*arguments)
        return self._push_dict(made) if type(made) is dict else self._push_container(made)

    def _storage_from_bytes(self, data: Any) -> Storage:
        """Return the storage inside a pickled tensor, which is itself a file of torch.save."""
        if not isinstance(data, (bytes, bytearray)) or self.storages is not None:
            raise RefusedError("a torch storage inside something other than a tensor")
        storage = _torch_content(bytes(data), self.room, _PickleMachine.value)
        if not isinstance(storage, Storage):
            raise RefusedError(f"a {type(storage).__name__} in place of a torch storage")
        return storage

    def _op_build(self, argument: Any):
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, (Array, Dtype)) or type(state) is not tuple:
            raise RefusedError(f"a state set on a {type(target).__name__}")
        self.room.take(sum(len(part) for part in state if type(part) is str))
        target.build(state)

    def _op_binpersid(self, argument: Any):
        name = self.stack.pop()
        if self.storages is None or type(name) is not tuple or len(name) < 5 or any(name[5:]):
            raise RefusedError("a reference to something outside the pickle")
        kind, storage_type, key, _, count = name[:5]
        if kind != "storage" or not isinstance(storage_type, StorageType) or type(key) is not str:
            raise RefusedError("a torch storage of a kind that features are not stored in")
        self._push_container(self.storages(key, storage_type.code, count))


def _admitted(name: str) -> Any:
    if name not in ADMITTED:
        raise RefusedError(f"the name {name.replace(' ', '.')[:80]!r}")
    return ADMITTED[name]


def _is_large(value: Any) -> bool:
    """Whether the memo would keep a clip in memory with `value`: its data, a row, or the arguments they came in."""
    if isinstance(value, tuple) and len(value) * 8 > MEMO_BYTES:
        return True
    parts = value if isinstance(value, tuple) else [value]
    return isinstance(value, list) or any(data_bytes(part) > MEMO_BYTES for part in parts)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


# Files of torch.save


def _torch_content(data: Any, room: _Room, read: Callable[[_PickleMachine], Any]) -> Any:
    """Return what `read` makes of the pickle in a file of torch.save, given as `bytes` or `mmap`."""
    if data[: len(_ZIP_MAGIC)] == _ZIP_MAGIC:
        return read(_torch_zip(data, room))
    if data[: len(_TORCH_LEGACY_MAGIC)] == _TORCH_LEGACY_MAGIC:
        return _torch_legacy(data, room, read)
    raise RefusedError("a torch storage that torch did not write")


def _torch_zip(data: Any, room: _Room) -> _PickleMachine:
    """Return a machine for the pickle in a zip file of torch.save, whose other members are storages."""
    with zipfile.ZipFile(io.BytesIO(data) if isinstance(data, bytes) else data) as archive:
        members = {member.filename: member for member in archive.infolist()}

    def place(name: str) -> tuple[int, int]:
        """Where the bytes of a member begin, and how many there are."""
        member = members[name]
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise RefusedError(f"the compressed record {name[:80]!r}, which torch.save does not write")
        lengths = struct.unpack("<HH", data[member.header_offset + 26 : member.header_offset + 30])
        begin = member.header_offset + 30 + sum(lengths)
        if begin + member.file_size > len(data):
            raise EOFError
        return begin, member.file_size

    prefix = next((name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")), None)
    if prefix is None:
        raise RefusedError("no record data.pkl, so torch.save did not write it")
    if f"{prefix}byteorder" in members:
        begin, size = place(f"{prefix}byteorder")
        if data[begin : begin + min(size, 8)] == b"big":
            raise RefusedError("numbers in the byte order of another kind of machine")

    def storage(key: str, code: str, count: int) -> Storage:
        begin, size = place(f"{prefix}data/{key}")
        found = Storage(code, count, data, begin)
        if found.nbytes > size:
            raise RefusedError("a torch storage that is larger than its record")
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
    storages: dict[str, Storage] = {}

    def storage(key: str, code: str, count: int) -> Storage:
        found = storages.setdefault(key, Storage(code, count))
        if (found.code, found.count) != (code, count):
            raise RefusedError("one torch storage with two sizes")
        return found

    content = read(_PickleMachine(file, room, evict=False, storages=storage))
    # Tensors are computed on demand, which is after this.
    for key in [argument for _, argument, _ in pickletools.genops(file) if type(argument) is str]:
        if struct.unpack("<q", file.read(8)) != (storages[key].count,):
            raise RefusedError("a torch storage whose size is damaged")
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
    size = path.stat().st_size
    budget = UNFOLD_LIMIT * size + UNFOLD_SLACK
    done: set[str] = set()
    for key, value in _guarded_entries(path, size):
        clip_id = str(key)
        if len(clip_id) > LONGEST_ID or not clip_id.isprintable():
            raise ValueError(f"{path}: a clip id is {clip_id[:40]!r} ...; give clips short, printable names")
        if clip_id in done:
            raise ValueError(f"{path}: clip id {clip_id} appears twice; write the file again with one entry per clip")
        done.add(clip_id)
        value = finished(value)
        budget -= 4 * _count_numbers(value, clip_id, path)
        if budget < 0:
            raise ValueError(f"{path}: expands to more than {UNFOLD_LIMIT} times its size; refused as a pickle bomb")
        yield clip_id, _to_array(value, clip_id, path)


def _guarded_entries(path: Path, size: int) -> Iterator[tuple[Any, Any]]:
    """Yield the raw entries of the file, with the name of the file and a next step in errors."""
    try:
        yield from _raw_entries(path, size)
    except RefusedError as error:
        raise ValueError(
            f"{path}: refused, it contains {error}; a feature file holds only arrays, tensors and lists of numbers"
        ) from None
    except (
        *(ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError, OSError, struct.error),
        *(zipfile.BadZipFile, RuntimeError),
    ) as error:
        raise ValueError(f"{path}: truncated or not a pickle ({first_line(error)}); download the file again") from None


def _raw_entries(path: Path, size: int) -> Iterator[tuple[Any, Any]]:
    with path.open("rb") as file:
        magic = file.read(len(_TORCH_LEGACY_MAGIC))
        if magic == _TORCH_LEGACY_MAGIC or magic.startswith(_ZIP_MAGIC):
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            yield from _torch_content(data, _Room(size), lambda machine: list(machine.entries()))
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


def _count_numbers(value: Any, clip_id: str, path: Path) -> int:
    """Count the numbers and rows of `value`; a repeated row is checked once."""
    if isinstance(value, np.ndarray):
        return value.size
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{path}: clip {clip_id} holds a {type(value).__name__}, not features [frames, dim]")
    sizes: dict[int, int] = {}
    for row in value:
        if id(row) not in sizes:
            cells = row if isinstance(row, (list, tuple)) else [row]
            sizes[id(row)] = 1 + sum(_length(finished(cell)) for cell in cells)
    return sum(sizes[id(row)] for row in value)


def _length(cell: Any) -> int:
    if isinstance(cell, np.ndarray):
        return max(cell.size, 1)
    return max(len(cell), 1) if isinstance(cell, (list, tuple)) else 1


def _to_array(value: Any, clip_id: str, path: Path) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    rows = [_plain_row(row) for row in value]
    if any(row is None for row in rows) or len({len(row) for row in rows}) > 1:
        raise ValueError(f"{path}: clip {clip_id} holds rows of different lengths, or that are not numbers")
    try:
        with np.errstate(over="raise"):
            return np.array(rows, dtype=np.float32).reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)
    except (OverflowError, FloatingPointError):
        raise ValueError(f"{path}: clip {clip_id} holds numbers too large for float32") from None


def _plain_row(row: Any) -> Any:
    """Return one frame, [dim] or [1, dim], as a list or array of numbers; None if it is anything else."""
    row = finished(row)
    if isinstance(row, (list, tuple)) and len(row) == 1 and type(row[0]) not in (int, float, bool):
        row = finished(row[0])
    if isinstance(row, np.ndarray):
        return row.reshape(-1)
    if isinstance(row, (list, tuple)) and all(type(number) in (int, float, bool) for number in row):
        return row
    return None
