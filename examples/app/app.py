"""
What does the speaker intend? A page on which people try an A-MESS model: `python examples/app/app.py --model FOLDER_OR_REPO`.

Record or upload a clip, type the words, and see the intents as bars and the anchors on the clip's time line; "none of
these" where the model's out-of-scope detector says so. A box takes intents that the model has never seen, described in a
sentence or shown by clips that the visitor keeps as examples. Without `--model`, the page uses the model that `make demo` writes
to `demo_output/model`. A Space takes the files of this folder and `clip_writer.py`, `demo_clips.py` and `demo_examples.py` from
`examples/demo`, and the model's name in the variable `MODEL_ID`.
"""

import argparse
import json
import logging
import os
import re
import sys
import tempfile
from concurrent import futures
from functools import partial
from html import escape
from pathlib import Path

import app_view as view
import gradio as gr
import numpy as np
from transformers import pipeline

import amess_hf  # noqa: F401  (registers the Auto classes and the pipeline)
from amess_hf.clips_amess import clip_durations, iter_frames, read_audio, read_frames


sys.path.append(str(Path(__file__).parents[1] / "demo"))

from demo_clips import write_scene
from demo_examples import EXAMPLES


logger = logging.getLogger("amess_hf.app")

DEMO_MODEL = Path("demo_output", "model")

# What a visitor may ask for: bytes and seconds of a clip, characters of the words, own intents with their names and
# descriptions, and seconds until an answer, the wait for others included. `ANSWERS_AT_ONCE` visitors are served at a time.
MAX_BYTES, MAX_SECONDS, MAX_CHARACTERS = 50 * 2**20, 120, 2000
MAX_ADDED, MAX_SHOWN, MAX_NAME, MAX_DESCRIPTION = 20, 16, 60, 500
MAX_WAITING, MAX_WAIT, ANSWERS_AT_ONCE = 32, 60, 2
WORKERS = futures.ThreadPoolExecutor(ANSWERS_AT_ONCE)
THUMBNAILS, SOUND_BARS, SOUND_RATE = 8, 160, 8000
INVITATION = "Record or upload a clip, or choose an example; write what is said, and ask."
NOTHING = "There is nothing to ask about yet: record or upload a clip, or write what is said."
BUSY = "Many people are asking at the moment. Try again in a minute."
SLOW = f"This takes longer than {MAX_WAIT} seconds. Try a shorter clip."
FAILED = "Something went wrong. Try another clip, or ask the owner of this page to check its log."
CHANGED = "Ask again to see what this one means."
# Run in the browser, not on the server, so that an old answer is gone before a new question can be sent.
FORGET = f"() => [{json.dumps(view.empty_html(CHANGED))}, '']"
SHOW = "() => document.querySelector('#answer')?.scrollIntoView({block: 'nearest', behavior: 'smooth'})"


class Recognizer:
    """
    A model behind the page: clips and words in, HTML out. What a visitor teaches belongs to the visitor's session, not to the
    model: intent → sentences and examples, as `extra_labels` of the pipeline takes them.

    Args:
        model (`str`): Folder or Hub repository of an A-MESS model.
        asr_model (`str`, *optional*): Folder or Hub repository of a speech recognizer.
    """

    def __init__(self, model: str, asr_model: str | None = None):
        self.pipeline = pipeline("intent-recognition", model=model)
        self.transcriber = pipeline("automatic-speech-recognition", model=asr_model) if asr_model else None

    def transcribe(self, clip: str) -> str:
        rate = self.transcriber.feature_extractor.sampling_rate
        samples = read_audio(clip, rate, end=MAX_SECONDS)
        return self.transcriber({"raw": samples, "sampling_rate": rate})["text"].strip()

    def __call__(self, clip: str | None, text: str, added: dict[str, list]) -> tuple[str, str]:
        """
        Returns:
            `tuple`: the answer and the time line, as HTML.

        Raises:
            `ValueError`: if there is neither a clip nor words, or the clip cannot be used.
        """
        inputs = {"text": text} | ({"clip": clip} if clip else {})
        answer = self.pipeline(inputs, extra_labels=added or None, return_anchors=True, top_k=None)
        scores = {entry["label"]: entry["score"] for entry in answer["predictions"] if entry["label"] != "UNK"}
        new = set(added) - set(self.intents)
        return view.answer_html(scores, answer["in_scope"], new), timeline(clip, text, answer["anchors"])

    @property
    def intents(self) -> list[str]:
        """The intents that the model knows."""
        return sorted(self.pipeline.model.config.label2id)


def timeline(clip: str | None, text: str, anchors: dict) -> str:
    """The clip's pictures, sound and words with the anchors marked, as HTML."""
    spans = {
        name: [(anchor["start"], anchor["end"], anchor["score"]) for anchor in anchors.get(name, ())]
        for name in ("audio", "video")
    }
    marked = {anchor["start"]: anchor["score"] for anchor in anchors.get("text", ())}
    words = [(match.group(), marked.get(match.start(), 0.0)) for match in re.finditer(r"\S+", text)]
    if clip is None:
        return view.timeline_html(0.0, [], np.zeros(0), words, [], [])
    seconds = clip_durations(clip)
    pictures = list(iter_frames(clip, num_frames=THUMBNAILS, size=96)) if "video" in seconds else []
    loudness = sound_bars(clip) if "audio" in seconds else np.zeros(0)
    return view.timeline_html(max(seconds.values()), pictures, loudness, words, spans["audio"], spans["video"])


def sound_bars(clip: str) -> np.ndarray:
    """Loudness of the clip at `SOUND_BARS` equal distances, the loudest 1."""
    samples = np.abs(read_audio(clip, SOUND_RATE, end=MAX_SECONDS))
    bars = np.array([part.max(initial=0.0) for part in np.array_split(samples, SOUND_BARS)])
    return bars / max(float(bars.max(initial=0.0)), 1e-4)


def draw_examples(folder: str | os.PathLike) -> list[dict[str, str]]:
    """The examples as clips in the folder, each with `name`, `clip`, `text` and `picture`, a still of it."""
    from PIL import Image

    drawn = []
    for number, example in enumerate(EXAMPLES):
        clip = write_scene(Path(folder, f"example-{number}.mp4"), example.scene, (320, 240), 20)
        picture = Path(folder, f"example-{number}.png")
        middle = sum(example.scene.face_span) / 2
        Image.fromarray(read_frames(clip, num_frames=1, start=middle)[0]).save(picture)
        drawn.append({"name": example.name, "clip": clip, "text": example.text, "picture": str(picture)})
    return drawn


def build_app(recognizer: Recognizer, examples: list[dict[str, str]]) -> gr.Blocks:
    """
    The page.

    Args:
        recognizer ([`Recognizer`]): The model.
        examples (`list[dict[str, str]]`): What `draw_examples` gives.
    """
    with gr.Blocks(title="A-MESS: what does the speaker intend?", analytics_enabled=False, fill_width=True) as app:
        gr.Markdown(
            "# What does the speaker intend?\nA-MESS listens to the words, the voice and the face, and shows the few "
            "moments that decided.",
            elem_id="title",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                clip = gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip")
                limits = {"lines": 2, "max_length": MAX_CHARACTERS}
                words = gr.Textbox(label="What is said", placeholder="oh great, you again", elem_id="words", **limits)
                with gr.Row():
                    ask = gr.Button("What is meant?", variant="primary", elem_id="ask", scale=2)
                    if recognizer.transcriber is not None:
                        write = gr.Button("Transcribe the words", elem_id="transcribe")
                        write.click(partial(transcribe, recognizer), clip, words)
                gr.HTML("Examples, drawn and voiced by this app", elem_id="examples-title", padding=False)
                with gr.Row(elem_id="examples"):
                    chosen = [gr.Button(example["name"], icon=example["picture"], size="sm") for example in examples]
            with gr.Column(scale=7, min_width=320):
                answer = gr.HTML(view.empty_html(INVITATION), elem_id="answer-box", padding=False)
                line = gr.HTML(elem_id="timeline-box", padding=False)
                with gr.Accordion(f"The {len(recognizer.intents)} intents of this model", open=False, elem_id="known"):
                    gr.HTML(view.chips_html(recognizer.intents), padding=False)
                added = own_intents(recognizer, clip, words)

        shown = [answer, line]
        asked = {"fn": partial(answered, recognizer), "inputs": [clip, words, added], "outputs": shown}
        asked |= {"concurrency_limit": MAX_WAITING, "concurrency_id": "answers"}
        for ask_now in (ask.click, words.submit):
            ask_now(**asked).success(None, js=SHOW)
        added.change(**asked | {"fn": partial(answered, recognizer, nothing=view.empty_html(INVITATION))})
        gr.on([words.input, clip.upload, clip.clear, clip.start_recording], None, None, shown, js=FORGET)
        for button, example in zip(chosen, examples, strict=True):
            fill = partial(tuple, (example["clip"], example["text"]))
            button.click(fill, None, [clip, words]).then(**asked).success(None, js=SHOW)
    return app


def own_intents(recognizer: Recognizer, clip: gr.Video, words: gr.Textbox) -> gr.State:
    """The part of the page in which a visitor teaches intents; name → sentences and examples."""
    added = gr.State({})
    with gr.Accordion("Teach an intent", open=False, elem_id="add"):
        name = gr.Textbox(label="Name", placeholder="Negotiate", max_length=MAX_NAME, elem_id="intent-name")
        question, example = (
            "What does a speaker with this intent do?",
            "The speaker bargains over the terms of a deal.",
        )
        limits = {"lines": 2, "max_length": MAX_DESCRIPTION}
        description = gr.Textbox(label=question, placeholder=example, elem_id="intent-description", **limits)
        with gr.Row():
            add = gr.Button("Add the description", elem_id="intent-add")
            keep = gr.Button("Keep this clip as an example", elem_id="intent-keep")
            remove = gr.Button("Remove all added", elem_id="intent-remove")
        own = gr.Markdown(listed({}), elem_id="intent-list")
    form = [name, description, added]
    add.click(partial(add_intent, recognizer), form, [*form, own])
    keep.click(partial(add_intent, recognizer), [*form, clip, words], [*form, own])
    remove.click(lambda: ({}, listed({})), None, [added, own])
    return added


def without_folders(message: str) -> str:
    """The message with file names instead of paths."""
    return re.sub(r"(?:[A-Za-z]:)?[\\/](?:[^\s\\/'\"`:]+[\\/])+", "", message)


def check_size(clip: str | None, words: str) -> None:
    """Refuse a clip or words beyond the limits."""
    if len(words) > MAX_CHARACTERS:
        raise ValueError(f"The words are longer than {MAX_CHARACTERS:,} characters; shorten them")
    if clip and os.path.getsize(clip) > MAX_BYTES:
        raise ValueError(f"This clip is larger than {MAX_BYTES // 2**20} MB; cut out the utterance")
    if clip and max(clip_durations(clip).values()) > MAX_SECONDS:
        raise ValueError(f"This clip is longer than {MAX_SECONDS} seconds; cut out the utterance")


def in_time(function, *arguments):
    """What `function` returns, or a `ValueError` when it takes too long, or waits too long for others."""
    task = WORKERS.submit(function, *arguments)
    try:
        return task.result(MAX_WAIT)
    except futures.TimeoutError:
        raise ValueError(BUSY if task.cancel() else SLOW) from None


def answered(
    recognizer: Recognizer, clip: str | None, words: str | None, added: dict[str, list], nothing: str | None = None
) -> tuple[str, str]:
    """
    The answer and the time line as HTML; on an error, what the visitor can fix, without the server's paths. `nothing` is
    shown where there is neither a clip nor words.
    """
    words = (words or "").strip()
    if not clip and not words:
        return view.error_html(NOTHING) if nothing is None else nothing, ""
    try:
        check_size(clip, words)
        return in_time(recognizer, clip, words, added)
    except ValueError as error:
        return view.error_html(without_folders(str(error))), ""
    except Exception:
        logger.exception("a visitor's request failed")
        return view.error_html(FAILED), ""


def transcribe(recognizer: Recognizer, clip: str | None):
    if not clip:
        gr.Warning("There is no clip to listen to")
        return gr.skip()
    try:
        check_size(clip, "")
        return in_time(recognizer.transcribe, clip)
    except ValueError as error:
        gr.Warning(escape(without_folders(str(error))))
        return gr.skip()


def add_intent(recognizer: Recognizer, name: str, description: str, added: dict[str, list], *example: str | None):
    """
    The emptied form; the intents with what is new; and their list, which an error message replaces. With a clip and its words
    as `example`, a description is not needed, and the intent may be one that the model knows.
    """
    kept = name, description, added
    name, description = (name or "").strip(), (description or "").strip()
    shown = {key: value for key, value in zip(("clip", "text"), example, strict=False) if (value or "").strip()}
    known = {known.lower(): known for known in recognizer.intents}
    if example and not shown:
        return *kept, f"**{NOTHING}**"
    if not name or not (description or shown):
        return *kept, "**An intent needs a name and a sentence that describes it.**"
    if len(name) > MAX_NAME or len(description) > MAX_DESCRIPTION:
        return *kept, f"**A name has at most {MAX_NAME} characters, a description {MAX_DESCRIPTION}.**"
    if len(added) >= MAX_ADDED and name not in added:
        return *kept, f"**There are {MAX_ADDED} intents of your own already; remove them to add others.**"
    if name.lower() in known and not shown:
        return *kept, f"**The model already knows the intent “{view.plain(name)}”; choose another name.**"
    name = known.get(name.lower(), name)
    examples = [part for part in added.get(name, ()) if isinstance(part, dict)]
    if shown and len(examples) >= MAX_SHOWN:
        return *kept, f"**“{view.plain(name)}” has {MAX_SHOWN} examples already.**"
    try:
        check_size(shown.get("clip"), shown.get("text", ""))
    except ValueError as error:
        return *kept, f"**{view.plain(without_folders(str(error)))}**"
    sentences = [description] if description else [part for part in added.get(name, ()) if isinstance(part, str)]
    added = {**added, name: [*sentences, *examples, *([shown] if shown else [])]}
    return "", "", added, listed(added)


def listed(added: dict[str, list]) -> str:
    if not added:
        return "*None yet. An intent is recognized by its description and its examples, without training.*"
    lines = []
    for name, parts in added.items():
        sentences = [view.plain(part) for part in parts if isinstance(part, str)]
        examples = len(parts) - len(sentences)
        counted = [f"{examples} example{'s' if examples > 1 else ''}"] if examples else []
        lines.append(f"- **{view.plain(name)}**: {'; '.join(sentences + counted)}")
    return "\n".join(lines)


def launch(app: gr.Blocks, **options):
    """`app.launch` with the page's look; fonts come from the visitor's own machine, nothing from other hosts."""
    fonts = {"font": ["system-ui", "DejaVu Sans", "sans-serif"], "font_mono": ["monospace"]}
    theme = gr.themes.Soft(primary_hue="blue", **fonts)
    app.queue(max_size=MAX_WAITING)
    return app.launch(max_file_size=MAX_BYTES, theme=theme, css=view.CSS, footer_links=[], show_error=True, **options)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add, given = parser.add_argument, os.environ.get
    add("--model", default=given("MODEL_ID"), help="folder of a model, or its name on the Hub")
    add("--asr_model", default=given("ASR_MODEL_ID"), help="a speech recognizer: folder or Hub repository")
    add("--port", type=int, default=int(given("GRADIO_SERVER_PORT", 7860)))
    options = parser.parse_args(arguments)
    if options.model is None:
        if not DEMO_MODEL.is_dir():
            parser.error(f"no --model is given and there is no {DEMO_MODEL}; give one, or let `make demo` make it")
        options.model = str(DEMO_MODEL)
    return options


def load(options: argparse.Namespace) -> Recognizer:
    try:
        return Recognizer(options.model, options.asr_model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        sys.exit(f"app.py: --model {options.model} cannot be loaded: {reason}; give the folder of a model or its name")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    recognizer = load(options)
    with tempfile.TemporaryDirectory() as folder:
        launch(build_app(recognizer, draw_examples(folder)), server_port=options.port, allowed_paths=[folder])


if __name__ == "__main__":
    main()
