"""Stand-ins for what a pickled feature file may name: numpy arrays, torch tensors, bytes and dicts.

Nothing here is imported or called because a file says so: `ADMITTED` maps the names that numpy and torch write to
functions of this module, which check every number before they work with it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


NUMBER_CODES = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
BFLOAT16 = "bfloat16"

# numpy dtypes of torch's storages; numpy has no bfloat16.
STORAGE_CODES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": BFLOAT16,
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "b1",
}

# Features have two or three axes. Shapes with more axes, or more numbers, are refused before they are multiplied.
MOST_AXES = 8
MOST_NUMBERS = 2**48


class RefusedError(Exception):
    """The pickle holds something that does not belong in a feature file."""


class Dtype:
    """A numpy dtype while it is being built: its code, then its byte order."""

    def __init__(self, code: Any):
        if type(code) is not str or code.lstrip("<>=|") not in NUMBER_CODES:
            found = repr(code[:20]) if type(code) is str else f"that is a {type(code).__name__}"
            raise RefusedError(f"a numpy array of dtype {found}, which holds more than numbers")
        self.value = np.dtype(code)

    def build(self, state: tuple) -> None:
        """Set the state that the pickle gives."""
        if len(state) > 1 and state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class Array:
    """A numpy array while it is being built; `value` is None until its state has come."""

    value: np.ndarray | None = None

    def build(self, state: tuple) -> None:
        """Set the state that the pickle gives."""
        shape, dtype, fortran, data = state[-4:]
        self.value = _array_from_bytes(data, dtype, shape, "F" if fortran else "C")


def _shape_size(shape: Any) -> int:
    """Return how many numbers an array of `shape` has, after checking the sizes: huge ones take hours to multiply."""
    if not isinstance(shape, (tuple, list)) or len(shape) > MOST_AXES:
        raise RefusedError("an array whose shape is damaged")
    if not all(type(size) is int and 0 <= size < MOST_NUMBERS for size in shape):
        raise RefusedError("an array whose shape is damaged")
    if math.prod(max(size, 1) for size in shape) >= MOST_NUMBERS:
        raise RefusedError("an array whose shape is damaged")
    return math.prod(shape)


def _array_from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(dtype, Dtype):
        raise RefusedError("a numpy array without a dtype")
    if not isinstance(data, (bytes, bytearray, str)):
        raise RefusedError(f"a numpy array whose data are a {type(data).__name__}, not bytes")
    # Python 2 wrote bytes as text.
    if order not in ("C", "F") or _shape_size(shape) * dtype.value.itemsize != len(data):
        raise RefusedError("a numpy array whose shape does not fit its data")
    data = data.encode("latin-1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _empty_array(subtype: Any, shape: Any, type_code: Any) -> Array:
    return Array()


def _dtype(code: Any, *flags: Any) -> Dtype:
    return Dtype(code)


def _scalar(dtype: Any, data: Any) -> float | int:
    return _array_from_bytes(data, dtype, (), "C").item()


def _latin1_bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes. Only this codec: others, such as zip, expand their input."""
    if type(text) is not str or encoding != "latin1":
        raise RefusedError("bytes in a codec other than latin1")
    return text.encode("latin-1")


def _empty_bytes() -> bytes:
    """How protocol 2 writes the data of a clip of zero frames."""
    return b""


def _ordered_dict() -> dict:
    return {}


@dataclass(eq=False)
class Storage:
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
        if type(self.count) is not int or not 0 <= self.count < MOST_NUMBERS:
            raise RefusedError("a torch storage whose size is damaged")

    @property
    def dtype(self) -> np.dtype:
        """How the numbers are stored."""
        return np.dtype("u2" if self.code == BFLOAT16 else self.code)

    @property
    def nbytes(self) -> int:
        """How many bytes the numbers take."""
        return self.count * self.dtype.itemsize

    def numbers(self) -> np.ndarray:
        """Return the numbers, without a copy."""
        if not self.count:
            return np.empty(0, self.dtype)
        return np.frombuffer(self.buffer, self.dtype, self.count, self.offset)


class StorageType:
    """The class of a storage, as a torch file names it."""

    def __init__(self, code: str):
        self.code = code


@dataclass(eq=False)
class Tensor:
    """A torch tensor, computed on demand."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    @property
    def value(self) -> np.ndarray:
        """The tensor as an array; bfloat16 becomes float32."""
        numbers = self.storage.numbers()
        strides = [stride * numbers.itemsize for stride in self.strides]
        array = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        if self.storage.code == BFLOAT16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *flags: Any) -> Tensor:
    if not isinstance(storage, Storage):
        raise RefusedError("a torch tensor without a storage")
    if not isinstance(stride, (tuple, list)):
        raise RefusedError("a torch tensor whose shape is damaged")
    count = _shape_size(size)
    numbers = (offset, *stride) if len(stride) == len(size) else (None,)
    if not all(type(number) is int and 0 <= number < MOST_NUMBERS for number in numbers):
        raise RefusedError("a torch tensor whose shape is damaged")
    if len(flags) > 2 and flags[2]:
        raise RefusedError("a negated or conjugated view of a torch tensor")
    if count > storage.count:
        raise RefusedError("a torch tensor larger than its storage")
    strides = tuple(step if length > 1 else 0 for length, step in zip(size, stride, strict=True))
    last = offset + sum((length - 1) * step for length, step in zip(size, strides, strict=True))
    if count and last >= storage.count:
        raise RefusedError("a torch tensor that reaches beyond its storage")
    return Tensor(storage, offset if count else 0, tuple(size), strides if count else (0,) * len(size))


def _parameter(tensor: Any, *flags: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise RefusedError("a torch parameter without a tensor")
    return tensor


# Marks the loading of a storage inside a pickle; only the machine that reads the pickle can do it.
STORAGE_FROM_BYTES = object()

# Everything that a feature file may name, and its stand-in here. Nothing is ever imported by name.
ADMITTED: dict[str, Any] = {
    "numpy ndarray": object(),
    "numpy dtype": _dtype,
    "_codecs encode": _latin1_bytes,
    "__builtin__ bytes": _empty_bytes,
    "builtins bytes": _empty_bytes,
    "collections OrderedDict": _ordered_dict,
    "torch.storage _load_from_bytes": STORAGE_FROM_BYTES,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    ADMITTED[f"{_core}.multiarray _reconstruct"] = _empty_array
    ADMITTED[f"{_core}.multiarray scalar"] = _scalar
    ADMITTED[f"{_core}.numeric _frombuffer"] = _array_from_bytes
for _name, _code in STORAGE_CODES.items():
    ADMITTED[f"torch {_name}Storage"] = StorageType(_code)

FUNCTIONS = frozenset(value for value in ADMITTED.values() if callable(value))


def finished(value: Any) -> Any:
    """Return the array that `value` stands for, and anything else as it is."""
    return value.value if isinstance(value, (Array, Tensor)) else value


def is_clip(value: Any) -> bool:
    """Whether `value` is complete features of a clip."""
    return isinstance(value, (np.ndarray, list, Tensor)) or (isinstance(value, Array) and value.value is not None)


def data_bytes(value: Any) -> int:
    """Count the bytes of data that `value` keeps in memory, without its items."""
    if isinstance(value, Array):
        value = value.value
    if isinstance(value, Tensor):
        value = value.storage
    if isinstance(value, Storage):
        value = value.buffer
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (bytes, bytearray, str)) else 0
