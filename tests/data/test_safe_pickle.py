"""The reader of pickled features: valid files of every kind are read, malicious ones are refused without effect."""

import builtins
import collections
import functools
import io
import os
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from amess_hf.data import safe_pickle
from amess_hf.data.feature_files import read_pickle


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return {
        "dia0_utt3": rng.standard_normal((7, 5), dtype=np.float32),
        "dia0_utt4": rng.standard_normal((400, 5), dtype=np.float32),
        "dia1_utt0": np.empty((0, 5), np.float32),
        "dia1_utt1": rng.standard_normal((1, 5), dtype=np.float32),
    }


def write(tmp_path, content, name="features.pkl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def assert_reads(path, clips, **tolerance):
    read = dict(read_pickle(path))
    assert list(read) == list(clips)
    for clip_id, frames in clips.items():
        assert len(read[clip_id]) == len(frames)
        if len(frames):
            np.testing.assert_allclose(read[clip_id], frames, **(tolerance or {"rtol": 0}))


def as_numpy1(pickled):
    """The bytes that numpy 1 writes: the same with the package called numpy.core (frames, being optional, left out)."""
    for name in ("multiarray", "numeric"):
        new, old = f"numpy._core.{name}".encode(), f"numpy.core.{name}".encode()
        for opcode, size in ((b"\x8c", "<B"), (b"X", "<I")):  # the one-byte and the four-byte length of a string
            lengths = struct.pack(size, len(new)), struct.pack(size, len(old))
            pickled = pickled.replace(opcode + lengths[0] + new, opcode + lengths[1] + old)
        pickled = pickled.replace(b"c" + new + b"\n", b"c" + old + b"\n")
    return pickled


class TestHonestFiles:
    @pytest.mark.parametrize("protocol", range(6))
    def test_numpy(self, tmp_path, clips, protocol):
        pickled = pickle.dumps(clips, protocol)
        assert_reads(write(tmp_path, pickled), clips)
        numpy1 = as_numpy1(pickled)
        assert b"numpy.core" in numpy1 and b"numpy._core" not in numpy1
        assert_reads(write(tmp_path, numpy1), clips)

    def test_python2(self, tmp_path, clips):
        """What numpy under Python 2 wrote: bytes in the instructions for text."""
        frames = clips["dia0_utt3"]
        pickled = (
            b"\x80\x02}U\x09dia0_utt3cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
            b"K\x07K\x05\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            b"\x89U" + bytes([frames.nbytes]) + frames.tobytes() + b"tbs."
        )
        assert_reads(write(tmp_path, pickled), {"dia0_utt3": frames})

    @pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int8", "uint16"])
    @pytest.mark.parametrize("protocol", [2, 5])
    def test_dtypes(self, tmp_path, dtype, protocol):
        rng = np.random.default_rng(1)
        clips = {"a": (100 * rng.random((6, 3))).astype(dtype)}
        assert_reads(write(tmp_path, pickle.dumps(clips, protocol)), clips)

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_column_order_and_views(self, tmp_path, protocol):
        frames = np.random.default_rng(2).standard_normal((4, 6))
        clips = {"fortran": np.asfortranarray(frames), "transposed": frames.T, "strided": frames[::2]}
        assert_reads(write(tmp_path, pickle.dumps(clips, protocol)), clips)

    def test_squeezes_the_middle_axis(self, tmp_path, clips):
        with_axis = {clip_id: frames[:, None] for clip_id, frames in clips.items()}
        assert_reads(write(tmp_path, with_axis), clips)

    def test_nested_lists(self, tmp_path, clips):
        assert_reads(write(tmp_path, {key: value.tolist() for key, value in clips.items()}), clips, rtol=1e-6)
        assert_reads(write(tmp_path, {key: value[:, None].tolist() for key, value in clips.items()}), clips, rtol=1e-6)
        assert_reads(write(tmp_path, {key: list(value) for key, value in clips.items()}), clips)
        assert_reads(write(tmp_path, {"one wide": [[1.0], [2.0]]}), {"one wide": np.array([[1.0], [2.0]])})

    def test_ordered_dict_and_number_keys(self, tmp_path, clips):
        assert_reads(write(tmp_path, collections.OrderedDict(clips)), clips)
        assert_reads(write(tmp_path, {7: clips["dia0_utt3"]}), {"7": clips["dia0_utt3"]})

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    def test_torch_tensors(self, tmp_path, clips, protocol):
        tensors = {clip_id: torch.from_numpy(frames) for clip_id, frames in clips.items()}
        assert_reads(write(tmp_path, pickle.dumps(tensors, protocol)), clips)

    def test_old_tensors_and_new_storages(self, tmp_path, clips):
        """Tensors as torch 0.3 wrote them, and storages in the zip format."""
        frames = clips["dia0_utt3"]
        storage = torch.from_numpy(frames)._typed_storage()
        zipped = io.BytesIO()
        torch.save(storage, zipped)
        old = Call(REBUILD, storage, 0, (7, 5), (5, 1))
        stored = Call(torch.storage._load_from_bytes, zipped.getvalue())
        new = Call(torch._utils._rebuild_tensor_v2, stored, 0, (7, 5), (5, 1), False, collections.OrderedDict())
        assert_reads(write(tmp_path, {"old": old, "new": new}), {"old": frames, "new": frames})

    @pytest.mark.parametrize("protocol", [2, 5])
    def test_shared_arrays(self, tmp_path, protocol):
        """A second clip with the same array refers back to what has been handed out already."""
        rng = np.random.default_rng(3)
        shared = rng.standard_normal((300, 4))
        clips = {"first": shared, "between": rng.standard_normal((5, 4)), "again": shared}
        assert_reads(write(tmp_path, pickle.dumps(clips, protocol)), clips)

    def test_hands_out_clip_by_clip(self, tmp_path, monkeypatch):
        """The first clip comes long before the end of the file has been read."""
        clips = {str(number): np.full((50, 40), number, np.float32) for number in range(500)}
        path = write(tmp_path, clips)
        machine_reads = []

        class Recorder(safe_pickle._BoundedReader):
            def read(self, size):
                machine_reads.append(size)
                return super().read(size)

        monkeypatch.setattr(safe_pickle, "_BoundedReader", Recorder)
        entries = read_pickle(path)
        for number in range(250):
            assert next(entries)[0] == str(number)
        assert sum(machine_reads) < 0.52 * path.stat().st_size

    @pytest.mark.parametrize("protocol", [2, 4, 5])
    @pytest.mark.parametrize("kind", ["numpy", "torch", "list"])
    def test_read_clips_are_not_held(self, tmp_path, kind, protocol):
        """Nothing that the memo of the machine still knows keeps a clip in memory that has been handed out."""
        convert = {"numpy": np.asarray, "torch": torch.from_numpy, "list": np.ndarray.tolist}[kind]
        clips = {str(number): convert(np.random.default_rng(number).random((40, 50))) for number in range(60)}
        path = write(tmp_path, pickle.dumps(clips, protocol))
        del clips
        list(read_pickle(path))  # imports what reading needs
        tracemalloc.start()
        count = sum(1 for _ in read_pickle(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 60 and peak < path.stat().st_size / 3


REBUILD = torch._utils._rebuild_tensor


class Call:
    """Pickles as a call of `function`; what hostile files are made of."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def nested_references(depth):
    """A tuple in a tuple, each twice: 2 ** depth when written out."""
    value = ("x", "x")
    for _ in range(depth):
        value = (value, value)
    return value


NESTED = pickle.dumps(nested_references(40), 2)[2:-1]


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def encoded_again(times):
    """A clip that holds bytes of the same megabyte of text, made again each time."""
    once = text("x" * 2**20) + b"q\x00" + text("latin1") + b"q\x01"
    return b"\x80\x02}" + text("a") + b"](" + once + b"c_codecs\nencode\nh\x00h\x01\x86R" * times + b"es."


def hostile_files(target):
    """{name: (bytes, what the message has to name)}; any of them that runs creates the file `target`."""
    command = f"touch {target}"
    code = f"open({str(target)!r}, 'w').close()"
    array_of_objects = np.empty(1, object)
    array_of_objects[0] = Call(os.system, command)
    code_in_storage = Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, command), 2))
    four = torch.zeros(4)._typed_storage()
    good = np.ones((2, 3), np.float32)
    return damaged_files(command) | {
        "os.system": (pickle.dumps({"a": Call(os.system, command)}), "system"),
        "eval": (pickle.dumps({"a": Call(builtins.eval, code)}), "builtins.eval"),
        "exec, protocol 0": (pickle.dumps({"a": Call(builtins.exec, code)}, 0), "exec"),
        "partial": (pickle.dumps({"a": Call(functools.partial(os.system, command))}), "functools.partial"),
        "after good clips": (pickle.dumps({"good": good, "a": Call(os.system, command)}), "system"),
        "as a key": (pickle.dumps({Call(os.system, command): good}), "system"),
        "outermost": (pickle.dumps(Call(os.system, command)), "system"),
        "object array": (pickle.dumps({"a": array_of_objects}), "dtype 'O8'"),
        "object array of lists": (pickle.dumps({"a": np.array([[1], [2, 3]], dtype=object)}), "O8"),
        "structured array": (pickle.dumps({"a": np.zeros(2, dtype=[("x", "f4")])}), "V4"),
        "getattr chain": (pickle.dumps({"a": Call(getattr, np.ndarray, "tofile")}), "getattr"),
        "numpy.load": (pickle.dumps({"a": Call(np.load, "x.npy", None, True)}), "numpy.load"),
        "torch.load": (pickle.dumps({"a": Call(torch.load, "x.pt")}), "torch"),
        "code in a storage": (pickle.dumps({"a": code_in_storage}), "did not write"),
        "code in a tensor's storage": (
            pickle.dumps({"a": Call(REBUILD, code_in_storage, 0, (1,), (1,))}),
            "did not write",
        ),
        "tensor beyond its storage": (pickle.dumps({"a": Call(REBUILD, four, 0, (9, 9), (9, 1))}), "tensor"),
        "strides beyond its storage": (pickle.dumps({"a": Call(REBUILD, four, 0, (2, 2), (9, 1))}), "reaches beyond"),
        "tensor of 10 ** 12 numbers": (
            pickle.dumps({"a": Call(REBUILD, four, 0, (10**6, 10**6), (0, 0))}),
            "larger than its storage",
        ),
    }


def damaged_files(command):
    """The same for pickles written by hand, bombs and files that are something else."""
    good, huge = np.ones((2, 3), np.float32), [1.0] * 50_000
    return {
        "zip codec": (
            b"\x80\x02}" + text("a") + b"c_codecs\nencode\n" + text("x") + text("zip") + b"\x86Rs.",
            "codec",
        ),
        "bytes of a size": (
            b"\x80\x02}" + text("a") + b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85Rs.",
            "made of arguments",
        ),
        "INST": (b"(S'" + command.encode() + b"'\nios\nsystem\n.", "INST"),
        "OBJ": (b"(cos\nsystem\nS'" + command.encode() + b"'\no.", "os.system"),
        "NEWOBJ": (b"\x80\x02cnumpy\nndarray\nK\x01\x85\x81.", "NEWOBJ"),
        "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
        "state set on a dict": (b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.", "a state set on a dict"),
        "a call of a text": (b"\x80\x02X\x01\x00\x00\x00aK\x01\x85R.", "a call of a str"),
        "sets": (pickle.dumps({"a": {1, 2}}), "SET"),
        "name that is a bomb": (b"\x80\x04" + NESTED + text("a") + b"\x93.", "not text"),
        "key that is a bomb": (pickle.dumps({nested_references(3): good}), "tuple"),
        "huge list repeated": (pickle.dumps({str(number): [huge] * 50 for number in range(40)}), "bomb"),
        "huge list in many clips": (pickle.dumps({str(number): [huge] for number in range(4000)}), "bomb"),
        "rows of rows of one list": (pickle.dumps({"a": [[huge] * 20_000] * 20_000}), "not numbers"),
        "array repeated in a list": (pickle.dumps({"a": [np.ones(100_000)] * 100_000}), "bomb"),
        "text encoded over and over": (encoded_again(300), "bomb"),
        "a list, not a dict": (pickle.dumps([good]), "a list in place of a dict"),
        "text as features": (pickle.dumps({"a": "text"}), "holds a str"),
        "None as features": (pickle.dumps({"a": None}), "holds a NoneType"),
        "list of texts": (pickle.dumps({"a": [["1.0", "2.0"]]}), "that are not numbers"),
        "ragged list": (pickle.dumps({"a": [[1.0, 2.0], [1.0]]}), "rows of different lengths"),
        "dict of dicts": (pickle.dumps({"a": {"b": good}}), "holds a dict"),
        "wrong magic": (b"GIF89a" + bytes(100), "not a pickle"),
        "a text file": (b"season\tepisode\tclip\n", "not a pickle"),
        "an empty file": (b"", "truncated"),
        "a length of 2 ** 60 bytes": (b"\x80\x04}\x8e" + struct.pack("<Q", 2**60) + b"x", "truncated"),
        "endless memo index": (b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff.", "bomb"),
    }


@pytest.mark.parametrize("name", list(hostile_files("x")))
def test_hostile_files_are_refused(tmp_path, name):
    target = tmp_path / "ran"
    content, named = hostile_files(target)[name]
    path = write(tmp_path, content)
    modules = set(sys.modules)
    started = time.process_time()
    with pytest.raises(ValueError) as error:
        for _ in read_pickle(path):
            pass
    assert str(path) in str(error.value) and named in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(path))
    assert not target.exists()
    assert set(sys.modules) == modules
    assert time.process_time() - started < 20


# A numpy array of the shape that is on the stack: name, then the state but the shape.
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"
UNBUILT = b"\x80\x02}(cnumpy.core.multiarray\n_reconstruct\nq\x00NNN\x87q\x010"
AGAIN = ARRAY + b"(K\x01J\x00\x00\x04\x00\x85" + DTYPE + b"\x89h\x01tb"


def array_of_shape(shape):
    return b"\x80\x04}" + text("a") + ARRAY + b"(K\x01" + shape + DTYPE + b"\x89C\x04abcdtbs."


@functools.cache
def zipped_storage():
    """A storage of zeros of 8 MB, as torch would write it, then deflated."""
    stored = io.BytesIO()
    torch.save(torch.zeros(2**21)._typed_storage(), stored)
    return deflated(stored)


def deflated(stored):
    """The bytes of the zip file `stored` with its members deflated."""
    packed = io.BytesIO()
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member.filename))
    return packed.getvalue()


def storages_in_storages(depth):
    """A storage whose pickle calls for a storage, and so on."""
    inner = b"\x80\x02N."
    for _ in range(depth):
        call = b"\x80\x04ctorch.storage\n_load_from_bytes\n" + b"B" + struct.pack("<I", len(inner)) + inner
        inner = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}." + call + b"\x85R.\x80\x02]."
    return {"a": Call(torch.storage._load_from_bytes, inner)}


@functools.cache
def greedy_files():
    """{name: bytes} of files that would take hours or many times their size, were they not refused first."""
    huge = b"\x8b" + struct.pack("<I", 7000) + b"\x7f" * 7000
    long = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
    empty = b"h\x00)R"
    once = text("x" * 2**20) + b"q\x01"
    stored = Call(torch.storage._load_from_bytes, zipped_storage())
    return {
        "a huge number many times in a shape": array_of_shape(b"(" + huge + b"q\x00" + b"h\x00" * 3000 + b"t"),
        "a large number many times in a shape": array_of_shape(b"(" + long + b"q\x00" + b"h\x00" * 30_000 + b"t"),
        "a shape of nothing and large numbers": array_of_shape(b"(K\x00" + (long + b"\x94") * 2 + b"t"),
        "marks": b"\x80\x02}" + b"(" * 30_000 + b".",
        "empty lists": b"\x80\x02}(" + b"]" * 30_000 + b"u.",
        "empty dicts": b"\x80\x02}(" + b"}" * 30_000 + b"u.",
        "lists in lists": b"\x80\x02}(" + b"]" * 30_000 + b"a" * 30_000 + b"u.",
        "tuples of nothing": b"\x80\x02}(" + b"N\x85" * 30_000 + b"u.",
        "memo of nothing": b"\x80\x04}(N" + b"\x94" * 30_000 + b"u.",
        "dicts by calls": b"\x80\x02}(ccollections\nOrderedDict\nq\x00" + empty * 30_000 + b"u.",
        "arrays that are never built": UNBUILT + b"h\x00h\x01R" * 30_000 + b"u.",
        "text of Python 2 made bytes again in every array": b"\x80\x02}("
        + text("a")
        + once
        + b"0]("
        + AGAIN * 300
        + b"eu.",
        "a deflated storage": pickle.dumps(
            {str(number): Call(REBUILD, stored, 0, (2, 2), (2, 1)) for number in range(20)}
        ),
        "storages in storages": pickle.dumps(storages_in_storages(500)),
        "rows of nothing": b"\x80\x02}(" + text("a") + b"](" + b"]" * 5000 + b"eq\x00" + repeated_clips(20000) + b"u.",
        "a call of a bomb": b"\x80\x04" + NESTED + b")R.",
        "pending clips finished all at once": pending_clips(20_000),
        "a clip id of a megabyte": pickle.dumps({"x" * 2**20: np.ones((1, 1))}),
        "lines in a clip id": pickle.dumps({"a\nb": np.ones((1, 1))}),
        "a number as a clip id": pickle.dumps({10**5000: np.ones((1, 1))}),
    }


def repeated_clips(count):
    """Clips that are all the list at place 0 of the memo."""
    return b"".join(text(str(number)) + b"h\x00" for number in range(count))


def pending_clips(count):
    """Clips that are all one array, which gets its data after the last of them."""
    built = b"(K\x01K\x01\x85" + DTYPE + b"\x89C\x04abcdtb"
    return b"\x80\x04}(" + text("a") + ARRAY + b"q\x00" + repeated_clips(count)[:-2] + b"h\x00" + built + b"N0" * count


@pytest.mark.parametrize("name", list(greedy_files()))
def test_greedy_files_are_refused_before_the_work(tmp_path, name):
    path = write(tmp_path, greedy_files()[name])
    tracemalloc.start()
    with pytest.raises(ValueError) as error:
        for _ in read_pickle(path):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert peak < 20 * path.stat().st_size + 2 * 2**20


NOT_FEATURES = {
    "scalar": lambda ones: torch.tensor(1.0),
    "meta": lambda ones: ones.to("meta"),
    "fp8": lambda ones: ones.to(torch.float8_e4m3fn),
    "nested": lambda ones: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda ones: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "negated": torch._neg_view,
    "sparse": torch.Tensor.to_sparse,
    "complex": lambda ones: ones.to(torch.complex64),
    "quantized": lambda ones: torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8),
    "text": lambda ones: "text",
}


class TestTorchFiles:
    """Files of torch.save, in both formats."""

    def saved(self, tmp_path, content, zipped):
        torch.save(content, tmp_path / "features.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "features.pt"

    @pytest.mark.parametrize("zipped", [True, False])
    def test_views_and_dtypes(self, tmp_path, zipped):
        base = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
        tensors = {"rows": base[2:5], "columns": base[:, 1:3], "transposed": base.t(), "half": base.half()}
        tensors |= {"bfloat16": base.bfloat16(), "int": base.int(), "double": base.double(), "bool": base > 0}
        tensors |= {"parameter": torch.nn.Parameter(base.clone()), "gradient": base.clone().requires_grad_()}
        tensors |= {"nothing": torch.empty(0, 6)}
        expected = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
        assert_reads(self.saved(tmp_path, tensors, zipped), expected)
        assert_reads(write(tmp_path, tensors), expected)
        assert_reads(self.saved(tmp_path, {"list": base.tolist()}, zipped), {"list": base.numpy()}, rtol=1e-6)

    def test_the_file_is_mapped(self, tmp_path):
        path = self.saved(tmp_path, {str(number): torch.zeros(500, 500) for number in range(20)}, True)
        tracemalloc.start()
        assert sum(frames.size for _, frames in read_pickle(path)) == 20 * 500 * 500
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < path.stat().st_size / 10

    def test_deflated_records(self, tmp_path):
        path = self.saved(tmp_path, {"a": torch.arange(6000.0).reshape(2000, 3)}, True)
        path.write_bytes(deflated(path))
        with pytest.raises(ValueError, match="features.pt: refused, it contains the compressed record"):
            list(read_pickle(path))

    def test_a_record_that_unfolds_to_a_thousand_times_its_size(self, tmp_path):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x/data.pkl", b"\x80\x02X" + struct.pack("<I", 2**25) + bytes(2**25) + b".")
        path = write(tmp_path, packed.getvalue(), "features.pt")
        tracemalloc.start()
        with pytest.raises(ValueError, match="features.pt: refused, it contains the compressed record"):
            list(read_pickle(path))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("name", list(NOT_FEATURES))
    @pytest.mark.filterwarnings("ignore")
    def test_what_features_are_not(self, tmp_path, name, zipped):
        made = NOT_FEATURES[name](torch.ones(2, 3))
        for path in (self.saved(tmp_path, {"a": made}, zipped), write(tmp_path, pickle.dumps({"a": made}))):
            with pytest.raises(ValueError) as error:
                list(read_pickle(path))
            assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)

    def test_hostile_torch_files(self, tmp_path):
        """Code, a storage larger than its record, and names of records that do not exist."""
        target = tmp_path / "ran"
        torch.save({"a": torch.ones(2, 3)}, tmp_path / "honest.pt")
        with zipfile.ZipFile(tmp_path / "honest.pt") as archive:
            members = {member.split("/", 1)[1]: archive.read(member) for member in archive.namelist()}
        code = pickle.dumps({"a": Call(os.system, f"touch {target}")}, 2)
        changed = [
            (members | {"data.pkl": code}, "system"),
            (members | {"data/0": bytes(8)}, "larger than its record"),
            (members | {"data.pkl": members["data.pkl"].replace(b"FloatStorage", b"ComplexFloatStorage")}, "Complex"),
            (members | {"byteorder": b"big"}, "byte order"),
            ({name: content for name, content in members.items() if name != "data/0"}, "truncated"),
            ({name: content for name, content in members.items() if name != "data.pkl"}, "no record data.pkl"),
        ]
        for content, named in changed:
            path = tmp_path / "changed.pt"
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in content.items():
                    archive.writestr(f"changed/{name}", data)
            with pytest.raises(ValueError, match=f"changed.pt: .*{named}"):
                list(read_pickle(path))
        assert not target.exists()


def test_hostile_files_are_hostile(tmp_path):
    """The files above do run their code in Python's own unpickler; otherwise they would prove nothing."""
    for name in ("os.system", "eval", "partial", "object array", "INST", "OBJ"):
        target = tmp_path / name
        pickle.loads(hostile_files(str(target).replace(" ", "_"))[name][0])
        assert (tmp_path / name.replace(" ", "_")).exists(), name
