"""Where the files of a data set are found, and by which ids."""

import os

import pytest

from amess_hf.data.dataset_files import find_clips, fingerprint


@pytest.mark.parametrize(
    ("name", "clip_id"),
    [
        ("raw_data/S05/E16/329.mp4", "S05_E16_329"),
        ("raw_data/train/S05/E16/329.mp4", "S05_E16_329"),
        ("MIntRec/raw_data/S05/E16/329.mkv", "S05_E16_329"),
        ("in-scope/raw/dia0_utt3.mp4", "dia0_utt3"),
        ("raw_data/hello.wav", "hello"),
        ("hello.wav", "hello"),
        ("x/notes.txt", None),
    ],
)
def test_clip_ids(tmp_path, name, clip_id):
    """A clip has the same id whether it is looked for in the folder of the data set or in that of the clips."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    expected = {} if clip_id is None else {clip_id: path}
    assert find_clips(tmp_path) == expected
    if "raw_data" in path.parts:
        assert find_clips(tmp_path / name.partition("raw_data")[0] / "raw_data") == expected


def test_no_folder_has_no_clips(tmp_path):
    assert find_clips(tmp_path / "raw_data") == {}


def test_fingerprint_notices_a_change_in_a_folder(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a").write_text("x")
    before = fingerprint([tmp_path / "shards"])
    assert fingerprint([tmp_path / "shards"]) == before
    (tmp_path / "shards" / "a").write_text("xy")
    assert fingerprint([tmp_path / "shards"]) != before


class TestFingerprint:
    @pytest.mark.parametrize("size", [10, 2**21])
    def test_content_decides_not_the_time(self, tmp_path, size):
        """As an unpacked archive, `cp -p` or `rsync -t` leaves it: other content, the same size and time."""
        path = tmp_path / "train.tsv"
        path.write_bytes(bytes(size))
        status, before = path.stat(), fingerprint([path])
        with path.open("r+b") as file:
            file.seek(size // 3)  # between the blocks that are looked at of a large file
            file.write(b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == size
        assert fingerprint([path]) != before

    def test_a_small_file_that_is_touched_is_the_same(self, tmp_path):
        (tmp_path / "train.tsv").write_text("x")
        before = fingerprint([tmp_path / "train.tsv"])
        os.utime(tmp_path / "train.tsv", (1, 1))
        assert fingerprint([tmp_path / "train.tsv"]) == before

    def test_a_large_file_that_is_replaced(self, tmp_path):
        (tmp_path / "a").write_bytes(bytes(2**21))
        before = fingerprint([tmp_path / "a"])
        (tmp_path / "b").write_bytes(bytes(2**20) + b"x" + bytes(2**20 - 1))
        os.replace(tmp_path / "b", tmp_path / "a")
        assert fingerprint([tmp_path / "a"]) != before

    @pytest.mark.parametrize("given", ["", "features.safetensors.index.json"])
    def test_shards_of_an_index_and_subfolders_count(self, tmp_path, given):
        (tmp_path / "features.safetensors.index.json").write_text("{}")
        (tmp_path / "a.safetensors").write_text("x")
        before = fingerprint([tmp_path / given])
        (tmp_path / "a.safetensors").write_text("y")
        assert fingerprint([tmp_path / given]) != before
