"""predict_clip.py from the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from utils import LABELS, save_clip_model, save_noise_clip


av = pytest.importorskip("av")

import predict_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    return save_clip_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_noise_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def test_table(model, clip, capsys):
    predict_clip.main([clip, "--text", "hello you", "--model", model, "--top_k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "“hello you”"
    shown = [line.split("  ")[1].strip() for line in lines[1:4]]
    assert len(set(shown)) == 3 and set(shown) <= set(LABELS)
    assert all("%" in line for line in lines[1:4])
    assert any(line.startswith("audio:") and line.endswith(" s") for line in lines)


def test_json_and_threshold(model, clip, capsys):
    arguments = [clip, "--model", model, "--json", "--threshold", "0.999", "--start", "0.2", "--end", "0.8"]
    predict_clip.main(arguments)
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == "UNK" and answer["in_scope"] is False
    assert len(answer["predictions"]) == 5 and answer["score"] >= 0.5
    assert all(0.2 <= anchor["start"] < 0.8 for anchor in answer["anchors"]["video"])


def test_described_intents_without_a_clip(model, capsys):
    intents = ["--intent", "Negotiate=help me with this box", "--intent", "Leave=never", "--intent", "Leave=no"]
    predict_clip.main(["--text", "hello you", "--model", model, "--json", *intents])
    answer = json.loads(capsys.readouterr().out)
    assert {one["label"] for one in answer["predictions"]} == {"Negotiate", "Leave", "none of these"}


def test_plot(model, clip, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "clip.png"
    predict_clip.main([clip, "--text", "hello you", "--model", model, "--plot", str(target)])
    with Image.open(target) as picture:
        assert picture.size == (1100, 429)
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_mistakes_are_known_before_a_model_is_loaded(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_clip, "pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ["--text", "hello", "--model", "org/model"]
    for wrong in (["--top_k", "0"], ["--threshold", "2"]):
        with pytest.raises(SystemExit):
            predict_clip.main([*words, *wrong])
        assert f"{wrong[0]} is {wrong[1]}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        predict_clip.main([clip, *words, "--plot", str(tmp_path / "nowhere" / "clip.png")])
    with pytest.raises(ValueError, match="`--intent` 'Leave': write NAME=DESCRIPTION"):
        predict_clip.main([*words, "--intent", "Leave"])


def test_model_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="`--model` .*nowhere cannot be loaded: .*; give the folder") as error:
        predict_clip.main(["--text", "hello", "--model", str(tmp_path / "nowhere")])
    assert "\n" not in str(error.value)


def test_windows(model, clip, capsys):
    predict_clip.main([clip, "--model", model, "--window_s", "0.5", "--stride_s", "0.25"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("–")[0].strip() for line in lines] == ["0.00", "0.25", "0.50"][: len(lines)] and len(lines) > 1
    predict_clip.main([clip, "--model", model, "--window_s", "0.5", "--json"])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["start"] for answer in answers] == [0.0, 0.5] and all("anchors" in answer for answer in answers)
    for wrong, message in (
        ([clip, "--window_s", "0"], "--window_s is 0.0"),
        ([clip, "--text", "hello", "--window_s", "1"], "without --text and --plot"),
        ([clip, "--window_s", "1", "--stride_s", "2"], "--stride_s is 2.0"),
    ):
        with pytest.raises(SystemExit):
            predict_clip.main([*wrong, "--model", model])
        assert message in capsys.readouterr().err
