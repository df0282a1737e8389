"""The app, driven in Debian's Chromium as a visitor would use it, and the HTML that it shows."""

import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import app_view
import numpy as np
import pytest
from browser import Browser, missing_programs
from utils import FRONT_ENDS, LABELS, tiny_model

from amess_hf import OutOfScopeDetector, save_for_hub
from amess_hf.datasets_amess import merge_fields


pytest.importorskip("av", reason='pip install "amess_hf[video]"')
pytest.importorskip("PIL", reason='pip install "amess_hf[video]"')
app = pytest.importorskip("app", reason='pip install "amess_hf[app]"')

WORDS = "thanks you are so kind"


class TestView:
    def test_bars_are_sorted_and_as_long_as_their_share(self):
        html = app_view.answer_html({"Thank": 0.2, "Care": 0.7, "Joke": 0.1}, in_scope=True, added={"Joke"})
        bars = re.findall(r'data-intent="(\w+)".*?width:([\d.]+)%', html)
        assert bars == [("Care", "70.0"), ("Thank", "20.0"), ("Joke", "10.0")]
        assert '<div class="headline">Care</div>' in html
        assert html.count('class="row added') == 1

    def test_none_of_these_has_the_last_word_and_no_bar(self):
        html = app_view.answer_html({"Thank": 0.97, "Care": 0.03}, in_scope=False, added=set())
        assert f'<div class="headline">{app_view.NONE_OF_THESE}</div>' in html
        assert 'class="row' not in html and "%" not in html
        assert re.findall(r'class="chip">(\w+)<', html) == ["Thank", "Care"]

    def test_what_a_visitor_types_is_no_html(self):
        evil = '<script>alert("x")</script>'
        html = app_view.answer_html({evil: 1.0}, None, {evil}) + app_view.answer_html({evil: 1.0}, False, set())
        html += app_view.timeline_html(0.0, [], np.zeros(0), [(evil, 0.5)], [], [])
        html += app_view.plain(evil) + app_view.empty_html(evil) + app_view.error_html(evil)
        assert "<script" not in html
        assert "&lt;script&gt;" in html


class TestStart:
    def test_without_a_model_it_says_what_to_do(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("MODEL_ID", raising=False)
        with pytest.raises(SystemExit):
            app.parse_arguments([])
        assert "`make demo`" in capsys.readouterr().err
        app.DEMO_MODEL.mkdir(parents=True)
        assert app.parse_arguments([]).model == str(app.DEMO_MODEL)

    def test_errors_name_no_folder_of_the_server(self):
        cleaned = app.without_folders(
            "/srv/gradio/0a1b/clip.mp4: is no clip; `C:\\Temp\\clip.mp4` and a/b stay, 1/2 too"
        )
        assert cleaned == "clip.mp4: is no clip; `clip.mp4` and a/b stay, 1/2 too"


def test_words_are_written_down_from_the_clips_own_sound(clips):
    """The speech recognizer gets the clip's sound at the rate that it takes."""
    heard = []

    class Listener:
        feature_extractor = SimpleNamespace(sampling_rate=8000)

        def __call__(self, inputs):
            heard.append(inputs)
            return {"text": " oh great, you again "}

    recognizer = SimpleNamespace(transcriber=Listener())
    recognizer.transcribe = lambda path: app.Recognizer.transcribe(recognizer, path)
    assert app.transcribe(recognizer, clips[1]["clip"]) == "oh great, you again"
    assert heard[0]["sampling_rate"] == 8000
    assert len(heard[0]["raw"]) == pytest.approx(2.2 * 8000, rel=0.1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return app.draw_examples(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory, tokenizer):
    """A small model with random weights, and a detector that lets everything pass."""
    folder = tmp_path_factory.mktemp("model")
    detector = OutOfScopeDetector("msp")
    detector.threshold, detector.keep, detector.calibration_clips = 0.0, 1.0, 1
    save_for_hub(
        folder,
        tiny_model(
            **merge_fields(FRONT_ENDS, {"audio_config": {"max_length": 150}, "video_config": {"max_length": 30}})
        ),
        tokenizer,
        detector,
    )
    return app.Recognizer(str(folder))


@pytest.fixture
def nothing_in_scope(recognizer):
    """For one test the detector rejects everything."""
    recognizer.pipeline.detector.threshold = 2.0
    yield
    recognizer.pipeline.detector.threshold = 0.0


class TestAnswers:
    def test_none_of_these_stays_with_added_intents(self, recognizer, nothing_in_scope):
        added = {"Negotiate": "zzz"}
        html, _ = app.answered(recognizer, None, WORDS, {})
        assert app_view.NONE_OF_THESE in html
        html, _ = app.answered(recognizer, None, WORDS, added)
        answer = recognizer.pipeline({"text": WORDS}, extra_labels=added)
        assert (app_view.NONE_OF_THESE in html) == (answer[0]["label"] not in added)

    def test_special_tokens_are_no_anchors(self, recognizer, clips):
        _, line = app.answered(recognizer, clips[0]["clip"], WORDS, {})
        words = re.findall(r"<span[^>]*>([^<]+)</span>", line.split("Words")[1].split("legend")[0])
        assert words == WORDS.split() and "[CLS]" not in line and "[SEP]" not in line

    def test_mistakes_are_told_in_place_of_an_answer(self, recognizer, tmp_path):
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no clip" * 100)
        html, line = app.answered(recognizer, str(broken), "", {})
        assert "broken.mp4" in html and str(tmp_path) not in html and "headline" not in html and line == ""
        html, _ = app.answered(SimpleNamespace(), None, "hello", {})  # whatever else fails
        assert app.FAILED in html

    def test_limits_are_told_in_a_line(self, recognizer, clips, tmp_path, monkeypatch):
        def told(clip, words):
            html, _ = app.answered(recognizer, clip, words, {})
            return re.search('<div class="mistake">(.*)</div></div>', html).group(1)

        assert told(None, " ") == app.NOTHING == told("", None)
        assert "longer than 2,000 characters" in told(None, "a" * 2001)
        large = tmp_path / "large.mp4"
        with large.open("wb") as file:
            file.truncate(app.MAX_BYTES + 1)
        assert told(str(large), "") == "This clip is larger than 50 MB; cut out the utterance"
        monkeypatch.setattr(app, "MAX_SECONDS", 2)
        assert told(clips[0]["clip"], "") == "This clip is longer than 2 seconds; cut out the utterance"
        assert app.answered(recognizer, None, "", {}, nothing="ask")[0] == "ask"

    def test_waiting_has_an_end(self, monkeypatch):
        release = threading.Event()
        monkeypatch.setattr(app, "MAX_WAIT", 0.2)
        monkeypatch.setattr(app, "WORKERS", app.futures.ThreadPoolExecutor(1))
        try:
            html, _ = app.answered(lambda *_: release.wait(60), None, WORDS, {})
            assert app.SLOW in html
            html, _ = app.answered(lambda *_: ("", ""), None, WORDS, {})  # the only worker is still at work
            assert app.BUSY in html
        finally:
            release.set()

    def test_added_intents(self, recognizer):
        *form, message = app.add_intent(recognizer, " greet ", "Something.", {})
        assert form == [" greet ", "Something.", {}] and "already knows" in message
        assert "needs a name" in app.add_intent(recognizer, "", "x", {})[3]
        assert app.add_intent(recognizer, "New", "x", {})[:3] == ("", "", {"New": ["x"]})
        for name, text in (("n" * 61, "x"), ("New", "x" * 501)):
            assert "at most 60 characters, a description 500" in app.add_intent(recognizer, name, text, {})[3]
        many = {f"n{number}": ["x"] for number in range(app.MAX_ADDED)}
        assert "20 intents of your own already" in app.add_intent(recognizer, "New", "x", many)[3]

    def test_the_loop_of_ask_keep_and_ask_again(self, recognizer, clips):
        """An example teaches a new intent and one that the model knows, for this visitor alone."""
        clip, words = clips[0]["clip"], clips[0]["text"]
        before = app.answered(recognizer, clip, words, {})[0]
        _, _, added, message = app.add_intent(recognizer, "Wave", "", {}, clip, words)
        assert added == {"Wave": [{"clip": clip, "text": words}]} and "1 example" in message
        taught = app.answered(recognizer, clip, words, added)[0]
        assert 'data-intent="Wave"' in taught and app.answered(recognizer, clip, words, {})[0] == before
        *_, added, message = app.add_intent(recognizer, "Wave", "The speaker waves.", added, None, words)
        assert added["Wave"] == ["The speaker waves.", {"clip": clip, "text": words}, {"text": words}]
        assert "The speaker waves\\.; 2 examples" in message
        known = recognizer.intents[0]
        *_, added, _ = app.add_intent(recognizer, known.upper(), "", added, clip, "")
        assert added[known] == [{"clip": clip}] and app.answered(recognizer, clip, words, added)[1]
        assert "nothing to ask about" in app.add_intent(recognizer, "Wave", "x", {}, None, " ")[3]
        full = {"Wave": [{"text": "x"}] * app.MAX_SHOWN}
        assert "16 examples already" in app.add_intent(recognizer, "Wave", "", full, clip, "")[3]


@pytest.fixture(scope="module")
def page(tmp_path_factory, recognizer, clips):
    """A browser on the app."""
    if missing := missing_programs():
        pytest.skip(f"no browser: apt-get install {' '.join(missing)}")
    from unittest import mock

    with mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1,localhost", "GRADIO_ANALYTICS_ENABLED": "False"}):
        blocks = app.build_app(recognizer, clips)
        _, url, _ = app.launch(
            blocks,
            server_name="127.0.0.1",
            server_port=None,
            prevent_thread_lock=True,
            quiet=True,
            allowed_paths=[str(Path(clips[0]["clip"]).parent)],
        )
        try:
            with Browser(tmp_path_factory.mktemp("profile")) as browser:
                browser.open(url)
                browser.wait("return document.querySelector('#ask') !== null")
                yield browser
        finally:
            blocks.close(verbose=False)


HEADLINE = "return (document.querySelector('#answer .headline') || {}).textContent"
WORDS_FIELD = "#words textarea, #words input"


def ask(page, clip, words):
    """Gives a clip (or none) and words, asks, and returns the headline of the answer."""
    if page.run("return document.querySelector('#clip video') !== null"):
        page.click("#clip button[aria-label='Clear']")
    if clip is not None:
        page.wait("return document.querySelector('#clip input[type=file]') !== null")
        page.type("#clip input[type=file]", clip)
        # Only when the clip has come back from the server has it been uploaded.
        page.wait("const video = document.querySelector('#clip video'); return video !== null && video.readyState > 1")
    page.type(WORDS_FIELD, words)
    page.wait("return document.querySelector('#answer') === null")  # what was answered before is gone
    page.click("#ask")
    return page.wait(HEADLINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestPage:
    def test_example_is_answered_at_a_click(self, page, recognizer, clips):
        page.click("#examples button:nth-of-type(3)")
        inputs = {"clip": clips[2]["clip"], "text": clips[2]["text"]}
        assert page.wait(HEADLINE) == recognizer.pipeline(inputs)[0]["label"]
        assert page.run("return document.querySelectorAll('#timeline img').length") == 8
        assert page.run("return document.querySelectorAll('#timeline .anchor').length") >= 4
        assert page.run("return document.querySelectorAll('#answer .row').length") == len(LABELS)

    def test_broken_clip_is_said_without_a_path(self, page, tmp_path):
        ask(page, None, WORDS)
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no clip" * 100)
        page.wait("return document.querySelector('#clip input[type=file]') !== null")
        page.type("#clip input[type=file]", str(broken))
        page.wait("return document.querySelector('#clip input[type=file]') === null")
        page.click("#ask")
        message = page.wait("return (document.querySelector('#mistake') || {}).textContent")
        assert "broken.mp4" in message and "/" not in message
        page.click("#clip button[aria-label='Clear']")

    def test_described_intent_is_among_the_answers(self, page):
        ask(page, None, WORDS)
        page.click("#add button")
        page.wait("return document.querySelector('#intent-description textarea') !== null")
        page.type("#intent-name textarea, #intent-name input", "greet")
        page.type("#intent-description textarea", "help me with this box")
        page.click("#intent-add")
        page.wait("return document.querySelector('#intent-list').textContent.includes('already knows')")
        page.type("#intent-name textarea, #intent-name input", "Negotiate")
        page.click("#intent-add")
        page.wait("return document.querySelectorAll('#intent-list li').length === 1")
        page.wait("return document.querySelector('#answer [data-intent=Negotiate]') !== null")
        screenshot = Path(os.environ.get("AMESS_SCREENSHOTS", page.profile)) / "app.png"
        page.screenshot(screenshot)
        assert screenshot.stat().st_size > 50_000
        page.type("#intent-name textarea, #intent-name input", "Wave")
        page.click("#intent-keep")
        page.wait("return document.querySelector('#intent-list').textContent.includes('1 example')")
        page.wait("return document.querySelector('#answer [data-intent=Wave]') !== null")
        page.click("#intent-remove")
        page.wait("return document.querySelectorAll('#intent-list li').length === 0")
        page.wait("return document.querySelector('#answer [data-intent=Negotiate]') === null")
