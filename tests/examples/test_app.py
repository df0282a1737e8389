"""The app, driven in Debian's Chromium as a visitor would use it, and the HTML that it shows."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import app_view
import numpy as np
import pytest
from browser import Browser, missing_programs


EXAMPLES = Path(__file__).parents[2] / "examples"

av = pytest.importorskip("av", reason='pip install "amess_hf[video]"')
pytest.importorskip("PIL", reason='pip install "amess_hf[video]"')

import app_clips


class TestView:
    def test_bars_are_sorted_and_as_long_as_their_share(self):
        html = app_view.answer_html({"Thank": 0.2, "Care": 0.7, "Joke": 0.1}, in_scope=True, added={"Joke"})
        bars = re.findall(r'data-intent="(\w+)".*?width:([\d.]+)%', html)
        assert bars == [("Care", "70.0"), ("Thank", "20.0"), ("Joke", "10.0")]
        assert '<div class="headline">Care</div>' in html
        assert html.count('class="row added') == 1

    def test_out_of_scope_has_the_last_word(self):
        html = app_view.answer_html({"Thank": 0.9, "Care": 0.1}, in_scope=False, added=set())
        assert f'<div class="headline">{app_view.NONE_OF_THESE}</div>' in html
        assert "Nearest: Thank" in html
        assert html.count('class="row none') == 2

    def test_what_a_visitor_types_is_no_html(self):
        evil = '<script>alert("x")</script>'
        html = app_view.answer_html({evil: 1.0}, None, {evil})
        html += app_view.timeline_html(0.0, [], np.zeros(0), [(evil, 0.5)], [], [])
        html += app_view.plain(evil) + app_view.empty_html(evil)
        assert "<script" not in html
        assert "&lt;script&gt;" in html

    def test_anchors_stand_where_they_are_in_time(self):
        html = app_view.timeline_html(4.0, [], np.ones(10), [("hm", 0.0)], [(1.0, 2.0, 0.5)], [(3.0, 3.001, 1.0)])
        marks = re.findall(r'<rect class="anchor" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)
        width = app_view.RIGHT - app_view.LEFT
        # The picture's anchor comes first; one millisecond would not be seen and is widened.
        assert [float(x) for x, _ in marks] == pytest.approx(
            [app_view.LEFT + 0.75 * width, app_view.LEFT + 0.25 * width], abs=0.1
        )
        assert float(marks[0][1]) == 6.0
        assert float(marks[1][1]) == pytest.approx(width / 4, abs=0.1)

    def test_without_a_clip_there_are_only_words(self):
        html = app_view.timeline_html(0.0, [], np.zeros(0), [("oh", 0.4), ("great", 0.0)], [], [])
        assert "Words" in html and "Sound" not in html and "Picture" not in html
        assert html.count('class="anchor"') == 1

    def test_words_that_would_not_fit_are_squeezed(self):
        words = [("extraordinarily", 0.0)] * 20
        html = app_view.timeline_html(0.0, [], np.zeros(0), words, [], [])
        edges = [(float(x), float(width)) for x, width in re.findall(r'<rect x="([\d.]+)" .*? width="([\d.]+)"', html)]
        assert max(x + width for x, width in edges[:20]) <= app_view.RIGHT + 1


class TestClips:
    def test_scene_is_a_clip_that_browsers_play(self, tmp_path):
        path = app_clips.write_scene(tmp_path / "scene.mp4", app_clips.EXAMPLES[0])
        with av.open(path) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.audio[0].codec_context.name == "aac"
            duration = container.duration / 1e6
        assert duration == pytest.approx(app_clips.SECONDS, abs=0.2)

    @pytest.mark.parametrize("voice", ["rise", "fall", "laugh"])
    def test_voice_stands_out_at_its_moment(self, voice):
        scene = app_clips.Scene("", voice, "still", moment=0.25)
        loudness = np.abs(app_clips.voice_samples(scene)).reshape(24, -1).mean(1)
        told = round(0.25 * 24)
        assert loudness[told - 2 : told + 2].mean() > 2 * loudness[12:].mean()
        flat = np.abs(app_clips.voice_samples(app_clips.Scene("", "flat", "still"))).reshape(24, -1).mean(1)
        assert flat.max() < 1.6 * flat.min()

    def test_head_moves_only_at_its_moment(self):
        scene = app_clips.Scene("", "flat", "shake", moment=0.75)
        frames = [app_clips.draw_frame(scene, time, 0.0, smooth=False) for time in (0.0, 0.3, 1.6)]
        assert np.array_equal(frames[0], frames[1])
        assert (frames[0] != frames[2]).mean() > 0.05

    def test_examples_say_the_same_with_other_voices(self):
        first, second, _ = app_clips.EXAMPLES
        assert first.text == second.text
        assert (first.voice, first.movement) != (second.voice, second.movement)


@pytest.mark.slow
def test_words_are_written_down_from_the_clips_own_sound(tmp_path):
    """The speech recogniser gets the clip's sound at the rate that it takes."""
    app = pytest.importorskip("app", reason='pip install "amess_hf[app]"')
    heard = []

    class Listener:
        feature_extractor = SimpleNamespace(sampling_rate=8000)

        def __call__(self, inputs):
            heard.append(inputs)
            return {"text": " oh great, you again "}

    recognizer = SimpleNamespace(transcriber=Listener())
    scene = app_clips.EXAMPLES[1]
    clip = app_clips.write_scene(tmp_path / "clip.mp4", scene)
    recognizer.transcribe = lambda path: app.Recognizer.transcribe(recognizer, path)
    assert app.transcribe(recognizer, clip) == "oh great, you again"
    assert heard[0]["sampling_rate"] == 8000
    assert len(heard[0]["raw"]) == pytest.approx(app_clips.SECONDS * 8000, rel=0.1)
    with pytest.raises(ValueError, match="no clip"):
        app.transcribe(recognizer, None)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser on the app with a small model, trained on the app's own clips; and the paths of the example clips."""
    pytest.importorskip("gradio", reason='pip install "amess_hf[app]"')
    if missing := missing_programs():
        pytest.skip(f"no browser: apt-get install {' '.join(missing)}")
    from unittest import mock

    import app
    from app_model import train_model

    folder = tmp_path_factory.mktemp("app")
    model = train_model(folder / "model")
    clips = [app_clips.write_scene(folder / f"{i}.mp4", scene) for i, scene in enumerate(app_clips.EXAMPLES)]
    examples = [(clip, scene.text) for clip, scene in zip(clips, app_clips.EXAMPLES, strict=True)]
    with mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1,localhost", "GRADIO_ANALYTICS_ENABLED": "False"}):
        blocks = app.build_app(app.Recognizer(model), examples)
        _, url, _ = app.launch(
            blocks,
            server_name="127.0.0.1",
            server_port=None,
            prevent_thread_lock=True,
            quiet=True,
            allowed_paths=[str(folder)],
        )
        try:
            with Browser(tmp_path_factory.mktemp("profile")) as browser:
                browser.open(url)
                browser.wait("return document.querySelector('#ask') !== null")
                browser.clips = clips
                yield browser
        finally:
            blocks.close(verbose=False)


HEADLINE = "return (document.querySelector('#answer .headline') || {}).textContent"
INTENTS = "return [...document.querySelectorAll('#answer .row')].map(row => row.dataset.intent)"


def ask(page, clip, words):
    """Gives a clip (or none) and words, asks, and returns the headline of the answer."""
    page.run("const answer = document.querySelector('#answer'); if (answer) answer.remove()")
    if page.run("return document.querySelector('#clip video') !== null"):
        page.click("#clip button[aria-label='Clear']")
    if clip is not None:
        page.wait("return document.querySelector('#clip input[type=file]') !== null")
        page.type("#clip input[type=file]", clip)
        # Only when the clip has come back from the server has it been uploaded.
        page.wait("const video = document.querySelector('#clip video'); return video !== null && video.readyState > 1")
    page.type("#words textarea, #words input", words)
    page.click("#ask")
    return page.wait(HEADLINE)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestPage:
    def test_same_words_mean_different_things(self, page):
        words = app_clips.EXAMPLES[0].text
        assert ask(page, page.clips[0], words) == "Praise"
        assert ask(page, page.clips[1], words) == "Taunt"
        assert page.run("return document.querySelectorAll('#timeline image').length") == 8
        assert page.run("return document.querySelectorAll('#timeline rect.anchor').length") >= 8

    def test_what_is_unlike_the_training_is_none_of_these(self, page):
        assert ask(page, page.clips[2], app_clips.EXAMPLES[2].text) == app_view.NONE_OF_THESE

    def test_words_alone_are_enough_to_ask(self, page):
        assert ask(page, None, "can you help me with this box") == "Ask for help"
        assert page.run("return document.querySelectorAll('#timeline image').length") == 0

    def test_described_intent_is_among_the_answers(self, page):
        ask(page, page.clips[1], app_clips.EXAMPLES[1].text)
        page.click("#add button")
        page.wait("return document.querySelector('#intent-description textarea') !== null")
        page.type("#intent-name textarea, #intent-name input", "Negotiate")
        page.type("#intent-description textarea", "The speaker bargains over the terms of a deal.")
        page.click("#intent-add")
        page.wait("return document.querySelectorAll('#intent-list li').length === 1")
        page.wait(
            "return document.querySelector('#answer [data-intent=Negotiate]') !== null || "
            + INTENTS[7:]
            + ".length > 5"
        )
        screenshot = Path(os.environ.get("AMESS_SCREENSHOTS", page.profile)) / "app.png"
        page.screenshot(screenshot)
        assert screenshot.stat().st_size > 50_000
        page.click("#intent-remove")
        page.wait("return document.querySelectorAll('#intent-list li').length === 0")

    def test_mistakes_of_the_visitor_are_said(self, page):
        page.type("#intent-name textarea, #intent-name input", "taunt")
        page.type("#intent-description textarea", "Something else.")
        page.click("#intent-add")
        message = page.wait(
            "return [...document.querySelectorAll('.toast-messages')].map(t => t.textContent).join(' ')"
        )
        assert "already knows" in message
