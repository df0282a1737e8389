"""Where the files of a data set are found, and by which ids."""

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
