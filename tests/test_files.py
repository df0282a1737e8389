import pytest

from amess_hf.processing_amess import folder_written_aside, write_json, write_text, written_aside


def test_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "scores.txt"
    with written_aside(path) as partial:
        with open(partial, "w") as file:
            file.write("0.7")
        assert not path.exists()
    assert path.read_text() == "0.7"
    assert [found.name for found in tmp_path.iterdir()] == ["scores.txt"]


def test_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.txt"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_json(path, {"score": object()})
    with pytest.raises(RuntimeError), written_aside(path) as partial:
        open(partial, "w").close()
        raise RuntimeError
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["scores.txt"]


@pytest.mark.parametrize("exists", [False, True])
def test_folder_gets_its_name_when_it_is_complete(tmp_path, exists):
    folder = tmp_path / "new" / "corpus"
    if exists:
        folder.mkdir(parents=True)
    with folder_written_aside(folder) as partial:
        (partial / "train.csv").write_text("id,text\n")
        assert not (folder / "train.csv").exists()
    assert (folder / "train.csv").read_text() == "id,text\n"
    assert [found.name for found in folder.parent.iterdir()] == ["corpus"]


def test_error_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), folder_written_aside(tmp_path / "corpus") as partial:
        (partial / "train.csv").write_text("id,text\n")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_folder_with_content_and_file_are_refused(tmp_path):
    write_text(tmp_path / "a.txt", "a")
    for taken in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="exists and is not empty"), folder_written_aside(taken):
            pass
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]
