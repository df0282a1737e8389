"""Feature files in safetensors: written in shards, read one clip at a time, never half-written."""

import json
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from amess_hf.data import feature_files
from amess_hf.data.feature_files import (
    INDEX_NAME,
    NumpyFeatures,
    SafetensorsFeatures,
    convert_pickle,
    open_features,
    read_pickle,
    write_features,
)


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    lengths = [4, 0, 1, 9, 30, 2]
    return {f"clip{number}": rng.standard_normal((length, 3), np.float32) for number, length in enumerate(lengths)}


def write(clips, out, **options):
    return write_features(clips.items(), out, source=out.with_suffix(".pkl"), **options)


def assert_equal(features, clips, atol=0.0):
    assert list(features) == list(clips) and len(features) == len(clips)
    for clip_id, frames in clips.items():
        assert clip_id in features
        read = features[clip_id]
        assert read.dtype == np.float32 and read.shape == (len(frames), 3)
        np.testing.assert_allclose(read, frames, rtol=0, atol=atol)
    assert "elsewhere" not in features


class TestWriteAndRead:
    @pytest.mark.parametrize("shard_bytes", [1, 60, 10**9])
    def test_round_trip(self, tmp_path, clips, shard_bytes):
        out = write(clips, tmp_path / "wavlm_feats", shard_bytes=shard_bytes)
        features = SafetensorsFeatures(out)
        assert features.feature_size == 3
        assert_equal(features, clips)
        assert_equal(SafetensorsFeatures(out / INDEX_NAME), clips)

    def test_shards(self, tmp_path, clips):
        """A shard is full at the clip that reaches the limit: 48 bytes, 0 + 12 + 108, 360, and 24 are left."""
        out = write(clips, tmp_path / "wavlm_feats", shard_bytes=48)
        names = [f"features-0000{number}-of-00004.safetensors" for number in range(1, 5)]
        assert sorted(path.name for path in out.iterdir()) == [*names, INDEX_NAME]
        assert [sorted(load_file(out / name)) for name in names] == [
            ["clip0"],
            ["clip1", "clip2", "clip3"],
            ["clip4"],
            ["clip5"],
        ]
        index = json.loads((out / INDEX_NAME).read_text())
        assert index["metadata"] == {
            "total_size": 46 * 3 * 4,
            "feature_size": 3,
            "dtype": "float32",
            "source": "wavlm_feats.pkl",
        }

    def test_float16(self, tmp_path, clips):
        out = write(clips, tmp_path / "half", dtype="float16")
        assert_equal(SafetensorsFeatures(out), clips, atol=2e-3)
        single = load_file(out / "features-00001-of-00001.safetensors")
        assert {tensor.dtype for tensor in single.values()} == {np.dtype("float16")}

    def test_no_clip_and_no_frame(self, tmp_path):
        assert len(SafetensorsFeatures(write({}, tmp_path / "none"))) == 0
        features = SafetensorsFeatures(write({"a": np.empty((0, 0))}, tmp_path / "empty"))
        assert features.feature_size is None and features["a"].shape == (0, 0)

    def test_single_file_and_middle_axis(self, tmp_path, clips):
        save_file({clip_id: frames[:, None] for clip_id, frames in clips.items()}, tmp_path / "one.safetensors")
        features = SafetensorsFeatures(tmp_path / "one.safetensors")
        assert {clip_id: features[clip_id].tolist() for clip_id in features} == {
            clip_id: frames.tolist() for clip_id, frames in clips.items()
        }

    def test_bfloat16(self, tmp_path):
        frames = torch.tensor([[1.5, -2.0, 0.25]])
        save_torch_file({"a": frames.bfloat16()}, tmp_path / "one.safetensors")
        np.testing.assert_array_equal(SafetensorsFeatures(tmp_path / "one.safetensors")["a"], frames.numpy())


class TestStreaming:
    """Features larger than memory can be written and read."""

    @pytest.mark.parametrize("pickled", [False, True])
    def test_writes_a_shard_at_a_time(self, tmp_path, pickled):
        clips = {str(number): np.full((64, 64), number, np.float32) for number in range(400)}
        path, size = tmp_path / "clips.pkl", sum(frames.nbytes for frames in clips.values())
        path.write_bytes(pickle.dumps(clips))
        clips = None
        entries = read_pickle(path) if pickled else ((str(n), np.full((64, 64), n, np.float32)) for n in range(400))
        tracemalloc.start()
        write_features(entries, tmp_path / "out", source=path, shard_bytes=size // 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size / 2

    def test_reads_the_asked_for_clip_only(self, tmp_path, clips, monkeypatch):
        """Opening a file reads names and shapes; each clip is read when it is asked for."""
        out = write(clips, tmp_path / "wavlm_feats")
        read = []

        class Recorder:
            def __init__(self, file):
                self.file = file

            def get_slice(self, name):
                return self.file.get_slice(name)

            def get_tensor(self, name):
                read.append(name)
                return self.file.get_tensor(name)

        real = SafetensorsFeatures._opened
        features = SafetensorsFeatures(out)
        monkeypatch.setattr(SafetensorsFeatures, "_opened", lambda self, shard: Recorder(real(self, shard)))
        for clip_id in ("clip4", "clip0"):
            np.testing.assert_array_equal(features[clip_id], clips[clip_id])
        assert read == ["clip4", "clip0"]


class TestWriting:
    def test_width(self, tmp_path):
        clips = {"a": np.zeros((2, 3)), "empty": np.zeros((0, 7)), "b": np.zeros((2, 4))}
        with pytest.raises(ValueError, match="out.pkl: clip b is 4 wide, other clips are 3 wide"):
            write(clips, tmp_path / "out")

    def test_too_large_for_float16_and_dtype(self, tmp_path):
        with pytest.raises(ValueError, match="clip b has values too large for float16"):
            write({"a": np.ones((1, 2)), "b": np.full((1, 2), 7e4)}, tmp_path / "out", dtype="float16")
        with pytest.raises(ValueError, match="`dtype` is 'int8'; choose one of float32, float16"):
            write({}, tmp_path / "out", dtype="int8")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_overwritten(self, tmp_path, clips):
        out = write(clips, tmp_path / "out")
        with pytest.raises(ValueError, match="out: already exists"):
            write({}, out)
        assert_equal(SafetensorsFeatures(out), clips)
        (tmp_path / "empty").mkdir()
        assert_equal(SafetensorsFeatures(write(clips, tmp_path / "empty")), clips)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
    def test_nothing_half_written(self, tmp_path, clips, error):
        def stopped():
            yield from clips.items()
            raise error

        with pytest.raises((KeyboardInterrupt, OSError)):
            write_features(stopped(), tmp_path / "out", source=tmp_path / "x.pkl", shard_bytes=1)
        assert list(tmp_path.iterdir()) == []


class TestOpenFeatures:
    def test_converts_a_pickle_once(self, tmp_path, clips, monkeypatch):
        path = tmp_path / "wavlm_feats.pkl"
        path.write_bytes(pickle.dumps(clips))
        conversions = []
        real = feature_files.convert_pickle
        monkeypatch.setattr(feature_files, "convert_pickle", lambda *args: conversions.append(args) or real(*args))
        for _ in range(2):
            assert_equal(open_features(path, tmp_path / "cache" / path.stem), clips)
        assert conversions == [(path, tmp_path / "cache" / "wavlm_feats")]

    def test_safetensors_are_read_in_place(self, tmp_path, clips):
        out = write(clips, tmp_path / "out")
        assert_equal(open_features(out, tmp_path / "nothing to convert"), clips)

    def test_a_bad_pickle_leaves_nothing(self, tmp_path, clips):
        path = tmp_path / "wavlm_feats.pkl"
        path.write_bytes(pickle.dumps(clips)[:-20])
        with pytest.raises(ValueError, match="wavlm_feats.pkl: truncated"):
            convert_pickle(path, tmp_path / "out")
        assert [entry.name for entry in tmp_path.iterdir()] == ["wavlm_feats.pkl"]


class TestRefusedFeatures:
    """Anything but features [frames, dim] is refused in one line that names the file."""

    def error(self, read, *args):
        with pytest.raises(ValueError) as error:
            read(*args)
        assert "\n" not in str(error.value)
        return str(error.value)

    @pytest.mark.parametrize(
        "shard",
        [
            "../out.safetensors",
            "/etc/hostname",
            "a/b.safetensors",
            "",
            ".",
            "..",
            "a\0b",
            "\ud800",
            3,
            None,
            ["a"],
            {},
        ],
    )
    def test_shards_elsewhere(self, tmp_path, clips, shard):
        save_file(clips, tmp_path / "out.safetensors")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / INDEX_NAME).write_text(json.dumps({"weight_map": {"clip0": shard}}))
        message = self.error(SafetensorsFeatures, tmp_path / "folder")
        assert f"{INDEX_NAME}: names the shard {shard!r}; a shard is a file in the folder" in message

    def test_a_shard_that_is_a_link(self, tmp_path, clips):
        """As the cache of the Hub stores files."""
        out = write(clips, tmp_path / "out")
        shard = next(out.glob("*.safetensors"))
        shard.rename(tmp_path / "blob")
        shard.symlink_to(tmp_path / "blob")
        assert_equal(SafetensorsFeatures(out), clips)

    def test_shard_missing_or_without_a_clip(self, tmp_path, clips):
        shard = write(clips, tmp_path / "out") / "features-00001-of-00001.safetensors"
        save_file({"clip0": clips["clip0"]}, shard)
        message = self.error(SafetensorsFeatures, shard.parent)
        assert f"{shard}: has no clip clip1, which {INDEX_NAME} names" in message
        shard.unlink()
        assert f"{shard}: not a readable safetensors" in self.error(SafetensorsFeatures, shard.parent)

    @pytest.mark.parametrize(
        "content",
        ["[]", '{"weight_map": 3}', '{"other": {}}', '{"weight_map": [1]}', '{"weight_map": ' + "9" * 5000 + "}"]
        + ["[" * 100_000, '{"weight_map": ' + '{"a":' * 5000],
        ids=range(7),
    )
    def test_index(self, tmp_path, content):
        (tmp_path / INDEX_NAME).write_text(content)
        assert f"{INDEX_NAME}: not a readable index of shards" in self.error(SafetensorsFeatures, tmp_path)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e8m0fnu])
    def test_dtypes_of_safetensors(self, tmp_path, dtype):
        save_torch_file({"a": torch.ones(2, 3).to(dtype)}, tmp_path / "one.safetensors")
        features = SafetensorsFeatures(tmp_path / "one.safetensors")
        assert "one.safetensors: clip a holds " in self.error(features.__getitem__, "a")

    @pytest.mark.parametrize("shape", [(), (3,), (5, 0), (2, 2, 2), (5, 1, 0), (1, 1, 1, 3)])
    def test_shapes(self, tmp_path, shape):
        """Of the first clip, whose width is that of all."""
        found, array = f"clip a has features of shape {list(shape)}", np.ones(shape, np.float32)
        save_file({"a": array, "b": np.ones((1, 2))}, tmp_path / "one.safetensors")
        assert f"one.safetensors: {found}" in self.error(SafetensorsFeatures, tmp_path / "one.safetensors")
        (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": array}))
        assert f"x.pkl: {found}" in self.error(list, read_pickle(tmp_path / "x.pkl"))
        np.save(tmp_path / "a.npy", array)
        assert f"a.npy: {found}" in self.error(NumpyFeatures, {"a": tmp_path / "a.npy"})

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (np.zeros((2, 4)), "is 4 wide, other clips are 3 wide"),
            (np.full((2, 3), 1e300), "has values too large for float32"),
            (np.array([[1, 2, 3], [1, 2, np.nan]]), "has NaN or infinite features, first in frame 1"),
        ],
        ids=["width", "large", "nan"],
    )
    def test_values(self, tmp_path, second, message):
        clips = {"a": np.ones((2, 3)), "b": second}
        save_file(clips, tmp_path / "one.safetensors")
        paths = {name: tmp_path / f"{name}.npy" for name in clips}
        for name, path in paths.items():
            np.save(path, clips[name])
        for features, name in (
            (SafetensorsFeatures(tmp_path / "one.safetensors"), "one.safetensors"),
            (NumpyFeatures(paths), "b.npy"),
        ):
            assert features["a"].tolist() == [[1, 1, 1]] * 2
            assert f"{name}: clip b {message}" in self.error(features.__getitem__, "b")

    @pytest.mark.parametrize(
        "array",
        [np.zeros((2, 3), dtype=[("x", "f4")]), np.array([["1"]]), np.array([[b"1"]]), np.zeros((2, 2), "V4")]
        + [np.zeros((2, 2), "M8[s]"), np.ones((2, 2), complex), np.array([{}], dtype=object)],
        ids=lambda array: str(array.dtype),
    )
    def test_dtypes_of_numpy(self, tmp_path, array):
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        message = self.error(NumpyFeatures, {"a": tmp_path / "a.npy"})
        assert "a.npy: not a readable .npy file of numbers (" in message

    def test_cut_after_it_was_opened(self, tmp_path):
        """What is mapped is not read: that would end the process."""
        clips = {name: np.ones((50, 300), np.float32) for name in "ab"}
        save_file(clips, tmp_path / "one.safetensors")
        np.save(tmp_path / "a.npy", clips["a"])
        torch.save({name: torch.from_numpy(frames) for name, frames in clips.items()}, tmp_path / "x.pt")
        shards, arrays = SafetensorsFeatures(tmp_path / "one.safetensors"), NumpyFeatures({"a": tmp_path / "a.npy"})
        tensors = read_pickle(tmp_path / "x.pt")
        assert shards["a"].shape == arrays["a"].shape == next(tensors)[1].shape
        for path in tmp_path.iterdir():
            os.truncate(path, path.stat().st_size // 2)
        assert "one.safetensors: not a readable safetensors" in self.error(shards.__getitem__, "b")
        assert "a.npy: not a readable .npy file" in self.error(arrays.__getitem__, "a")
        assert "x.pt: truncated" in self.error(next, tensors)

    def test_npz_for_npy(self, tmp_path):
        np.savez(tmp_path / "a.npz", a=np.ones((2, 3)))
        (tmp_path / "a.npz").rename(tmp_path / "a.npy")
        message = self.error(NumpyFeatures, {"a": tmp_path / "a.npy"})
        assert "a.npy: not a readable .npy file of numbers (the magic string" in message


class TestOrphans:
    """What a killed conversion leaves is removed by the next; what another process is writing stays."""

    KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from amess_hf.data.feature_files import write_features

def clips():
    yield "a", np.ones((2, 3))
    os.kill(os.getpid(), 9)

write_features(clips(), Path(sys.argv[1]), source=Path("x"), shard_bytes=1)
"""

    @pytest.mark.slow
    def test_killed(self, tmp_path, clips):
        result = subprocess.run([sys.executable, "-c", self.KILLED, str(tmp_path / "out")])
        assert result.returncode == -9
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".partial"]
        assert_equal(SafetensorsFeatures(write(clips, tmp_path / "other")), clips)
        assert [path.name for path in tmp_path.iterdir()] == ["other"]

    def test_another_process_is_writing(self, tmp_path, clips):
        begun = write_features_in_steps(clips, tmp_path / "out")
        next(begun)
        write(clips, tmp_path / "other")
        assert len(list(tmp_path.glob(".out.*.partial/*.safetensors"))) == 1
        for _ in begun:
            pass
        assert_equal(SafetensorsFeatures(tmp_path / "out"), clips)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def write_features_in_steps(clips, out):
    """Write in a thread, a clip at each step."""
    asked, given = threading.Semaphore(0), threading.Semaphore(0)

    def entries():
        for item in clips.items():
            yield item
            given.release()
            asked.acquire()

    thread = threading.Thread(target=write_features, args=(entries(), out), kwargs={"source": out, "shard_bytes": 1})
    thread.start()
    for _ in clips:
        given.acquire()
        yield
        asked.release()
    thread.join()
