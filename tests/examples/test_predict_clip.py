"""predict_clip.py from the command line."""

import json

import numpy as np
import pytest
from PIL import Image
from utils import LABELS, save_clip_model, save_noise_clip


av = pytest.importorskip("av")

import predict_clip
from clip_writer import write_clip


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
    assert (
        answer["label"] == "UNK"
        and answer["in_scope"] is False
        and len(answer["predictions"]) == 5
        and answer["score"] >= 0.5
    )
    assert all(0.2 <= anchor["start"] < 0.8 for anchor in answer["anchors"]["video"])


def test_described_intents_without_a_clip(model, capsys):
    intents = ["--intent", "Negotiate=help me with this box", "--intent", "Leave=never", "--intent", "Leave=no"]
    predict_clip.main(["--text", "hello you", "--model", model, "--json", *intents])
    answer = json.loads(capsys.readouterr().out)
    assert {one["label"] for one in answer["predictions"]} == {"Negotiate", "Leave", "none of these"}
    with pytest.raises(ValueError, match="`--intent` 'Leave': write NAME=DESCRIPTION"):
        predict_clip.main(["--text", "hello", "--model", model, "--intent", "Leave"])


@pytest.mark.parametrize("size", [(160, 90), (90, 160), (120, 160), (1, 200)])
def test_thumbnails_are_not_stretched(size):
    """All of them are two to three, whatever the video's proportions, and the middle of the frame."""
    rows, columns = np.indices(size)
    thumbnail = predict_clip._fitted(np.stack([rows, columns], axis=-1))
    height, width = thumbnail.shape[:2]
    assert (height, width) == (1, 1) if min(size) == 1 else abs(width / height - 2 / 3) < 0.02
    np.testing.assert_allclose(thumbnail.mean((0, 1)), (np.array(size) - 1) / 2, atol=0.5)


@pytest.mark.parametrize("kind", ["clip", "sound", "mute"])
def test_plot(model, clip, tmp_path, kind):
    pytest.importorskip("matplotlib")
    if kind == "sound":
        clip = tmp_path / "voice.wav"
        write_clip(clip, sound=np.random.default_rng(0).uniform(-0.5, 0.5, 16000))
    elif kind == "mute":
        clip = tmp_path / "mute.mp4"
        write_clip(clip, [np.full((32, 32, 3), 200, dtype=np.uint8)] * 10, frame_rate=10)
    target = tmp_path / "clip.png"
    predict_clip.main([str(clip), "--text", "hello you", "--model", model, "--plot", str(target)])
    with Image.open(target) as picture:
        assert picture.size == (1100, 429)
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def test_plot_with_names_that_look_like_formulas(clip, tmp_path):
    pytest.importorskip("matplotlib")
    args = predict_clip.parse_arguments([clip, "--model", "x", "--plot", str(tmp_path / "clip.png")])
    anchors = {"text": [], "audio": [], "video": []}
    label = {"label": "$\\frac{$\nnew line", "score": 0.5}
    answer = {
        **label,
        "in_scope": False,
        "text": "that is $\\bad{$ of you",
        "predictions": [label],
        "anchors": anchors,
    }
    predict_clip.plot(args, answer)
    with Image.open(tmp_path / "clip.png") as picture:
        assert picture.size == (1100, 429)


def test_usage_errors(model, tmp_path, capsys):
    for arguments in (["--model", model], ["--text", "hello", "--model", model, "--plot", "x.png"]):
        with pytest.raises(SystemExit):
            predict_clip.main(arguments)
    assert "give a clip, --text, or both" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nowhere.mp4 does not exist"):
        predict_clip.main([str(tmp_path / "nowhere.mp4"), "--model", model])


def test_mistakes_are_known_before_a_model_is_loaded(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict_clip, "pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    words = ["--text", "hello", "--model", "org/model"]
    for wrong in (["--top_k", "0"], ["--threshold", "2"]):
        with pytest.raises(SystemExit):
            predict_clip.main([*words, *wrong])
        assert f"{wrong[0]} is {wrong[1]}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        predict_clip.main([clip, *words, "--plot", str(tmp_path / "nowhere" / "clip.png")])
    with pytest.raises(ValueError, match="`--intent` 'Leave'"):
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


def test_merged_spans():
    anchors = [{"frame": n, "start": n / 10, "end": (n + 1) / 10, "score": 0.5} for n in (7, 2, 3, 1)]
    assert predict_clip.merged_spans(anchors) == [(0.1, 0.4), (0.7, 0.8)]
    assert predict_clip.merged_spans([{"frame": 3, "score": 0.5}]) == []
