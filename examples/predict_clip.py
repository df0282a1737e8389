#!/usr/bin/env python3
"""
Name the intent of a clip.

    python examples/predict_clip.py clip.mp4 --text "oh great, you again" --model runs/mintrec2 --plot clip.png

Prints the most likely intents; `--json` prints everything, anchors included; `--plot` draws the clip's time line with the
words, sounds and frames that decided. `--window_s 5` answers for every five seconds of a long clip.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from transformers import pipeline
from transformers.utils import logging

import amess_hf  # noqa: F401  (registers the Auto classes and the pipeline)
from amess_hf.clips_amess import clip_durations, read_audio, read_frames


# Okabe-Ito colours, which colour-blind people can tell apart too.
COLOURS = {"video": "#009E73", "audio": "#0072B2", "text": "#D55E00"}
THUMBNAILS = 12
SOUND_RATE = 8000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", nargs="?", help="video or sound file, or an address; may be left out with --text")
    parser.add_argument("--text", help="what is said")
    parser.add_argument("--context", action="append", help="an earlier turn of the dialogue; oldest first, repeatable")
    parser.add_argument("--model", required=True, help="folder or Hub repository")
    parser.add_argument("--start", type=float, help="second of the clip at which the utterance begins")
    parser.add_argument("--end", type=float, help="second at which it ends")
    parser.add_argument("--top_k", type=int, default=5, help="number of intents to print")
    parser.add_argument("--threshold", type=float, help="probability below which the answer is UNK")
    parser.add_argument(
        "--intent",
        action="append",
        metavar="NAME=DESCRIPTION",
        help="choose among these described intents; repeatable",
    )
    parser.add_argument("--window_s", type=float, help="answer for each window of this many seconds of a long clip")
    parser.add_argument(
        "--stride_s", type=float, help="seconds from one window to the next, as long as a window by default"
    )
    parser.add_argument("--asr_model", help="speech recogniser that transcribes the clip if --text is not given")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", type=Path, help="draw the time line into this file (png, svg, pdf)")
    args = parser.parse_args(arguments)
    if args.clip is None and args.text is None:
        parser.error("give a clip, --text, or both")
    if args.plot is not None and args.clip is None:
        parser.error("--plot draws a clip: give one")
    if args.window_s is not None and (args.clip is None or args.text is not None or args.plot is not None):
        parser.error("--window_s splits a clip: give one, without --text and --plot")
    if args.window_s is not None and args.window_s <= 0:
        parser.error(f"--window_s is {args.window_s}; it must be above 0")
    if args.stride_s is not None and not 0 < args.stride_s <= (args.window_s or 0):
        parser.error(f"--stride_s is {args.stride_s}; it must be above 0 and at most --window_s")
    if args.top_k < 1:
        parser.error(f"--top_k is {args.top_k}; it must be at least 1")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold is {args.threshold}; it must be between 0 and 1")
    return args


def check_inputs(args: argparse.Namespace) -> None:
    """Check the arguments before a model is loaded: the clip, the intents, where the plot goes."""
    candidates(args.intent)
    if args.clip is not None:
        clip_durations(args.clip)
    if args.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError('`--plot` needs matplotlib: pip install "amess_hf[report]"')
        if not args.plot.absolute().parent.is_dir():
            raise ValueError(f"`--plot` {args.plot}: there is no folder {args.plot.parent}")


def candidates(intents: list[str] | None) -> dict[str, list[str]] | None:
    """`NAME=DESCRIPTION` arguments as {name: sentences}."""
    if intents is None:
        return None
    described: dict[str, list[str]] = {}
    for intent in intents:
        name, equals, description = intent.partition("=")
        if not equals or not name.strip() or not description.strip():
            raise ValueError(f"`--intent` {intent!r}: write NAME=DESCRIPTION")
        described.setdefault(name.strip(), []).append(description.strip())
    return described


def recognise(args: argparse.Namespace) -> dict | list[dict]:
    """The pipeline's full answer, or with `--window_s` one for each window."""
    try:
        recogniser = pipeline(
            "intent-recognition",
            model=args.model,
            asr_model=args.asr_model,
            trust_remote_code=args.trust_remote_code or None,
        )
    except OSError as error:
        models = f"`--model` {args.model}" + (f" or `--asr_model` {args.asr_model}" if args.asr_model else "")
        raise ValueError(
            f"{models} cannot be loaded: {str(error).splitlines()[0].rstrip('.')}; give the folder of a saved model or "
            "its name on the Hub"
        ) from error
    inputs = {"clip": args.clip, "text": args.text, "context": args.context, "start": args.start, "end": args.end}
    windows = {} if args.window_s is None else {"window_s": args.window_s, "stride_s": args.stride_s}
    return recogniser(
        inputs,
        **windows,
        top_k=args.top_k,
        threshold=args.threshold,
        candidate_labels=candidates(args.intent),
        return_anchors=True,
    )


def table(answer: dict) -> str:
    """The intents as bars, and the anchors that decided."""
    lines = [f"“{answer['text']}”"] if answer["text"] else []
    if answer["in_scope"] is False:
        lines.append(f"{answer['label']}: none of the intents that the model knows. The nearest are:")
    width = max(len(prediction["label"]) for prediction in answer["predictions"])
    for prediction in answer["predictions"]:
        bar = "█" * round(30 * prediction["score"])
        lines.append(f"  {prediction['label']:<{width}}  {prediction['score']:6.1%}  {bar}".rstrip())
    anchors = answer["anchors"]
    if anchors["text"]:
        lines.append("words:  " + ", ".join(anchor["word"] for anchor in anchors["text"]))
    for modality, name in (("audio", "sound:  "), ("video", "picture:")):
        spans = merged_spans(anchors[modality])
        if spans:
            lines.append(f"{name} " + ", ".join(f"{begin:.2f}–{end:.2f} s" for begin, end in spans))
    return "\n".join(lines)


def timed_table(answers: list[dict]) -> str:
    """A line for each window: time, answer and confidence."""
    return "\n".join(
        f"{answer['start']:7.2f}–{answer['end']:.2f} s  {answer['label']}  {answer['score']:.1%}" for answer in answers
    )


def merged_spans(anchors: list[dict]) -> list[tuple[float, float]]:
    """Seconds of anchors in temporal order, with neighbours merged."""
    spans: list[tuple[float, float]] = []
    for anchor in sorted((a for a in anchors if "start" in a), key=lambda a: a["start"]):
        if spans and anchor["start"] <= spans[-1][1] + 1e-6:
            spans[-1] = spans[-1][0], max(anchor["end"], spans[-1][1])
        else:
            spans.append((anchor["start"], anchor["end"]))
    return spans


def plot(args: argparse.Namespace, answer: dict) -> None:
    """Draw pictures, sound and words on one time axis, the anchors marked in each."""
    import matplotlib

    # A dollar sign in a word or in the name of a file or an intent does not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        _plot(args, answer)


def _plot(args: argparse.Namespace, answer: dict) -> None:
    from matplotlib.figure import Figure

    begin = args.start or 0.0
    end = args.end or max(*clip_durations(args.clip).values(), begin + 0.1)
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    best = answer["predictions"][0]
    note = "" if answer["in_scope"] is not False else f" (nearest: {best['label']})"
    title = " ".join(f"{Path(args.clip).name}: {answer['label']} {answer['score']:.0%}{note}".split())
    figure.suptitle(title, fontsize=13)
    pictures, sound, words = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    for axes, name in ((pictures, "picture"), (sound, "sound"), (words, "words")):
        axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=10)
        axes.set_yticks([])
        axes.set_xlim(begin, end)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    _draw_pictures(pictures, args.clip, begin, end, answer["anchors"]["video"])
    _draw_sound(sound, args.clip, begin, end, answer["anchors"]["audio"])
    _draw_words(words, answer, begin, end)
    words.set_xlabel("time (s); anchors are marked, stronger ones more")
    figure.savefig(args.plot, dpi=110)


def _draw_pictures(axes, clip: str, begin: float, end: float, anchors: list[dict]) -> None:
    frames = read_frames(clip, num_frames=THUMBNAILS, start=begin, end=end, size=160)
    axes.set_ylim(-0.12, 1.12)
    if not len(frames):
        axes.text((begin + end) / 2, 0.5, "no picture", ha="center", va="center", color="0.4")
    width = (end - begin) / THUMBNAILS
    for index, frame in enumerate(frames):
        left = begin + index * width
        axes.imshow(_fitted(frame), extent=(left, left + 0.97 * width, 0, 1), aspect="auto")
    for anchor in anchors:
        _mark(axes, anchor, COLOURS["video"], (-0.12, 1.12))
    axes.set_xlim(begin, end)


def _fitted(frame: np.ndarray) -> np.ndarray:
    """The middle of a frame, cropped to the proportions of its place, about 3 wide to 4 high."""
    height, width = frame.shape[:2]
    wanted = max(1, round(height * 3 / 4))
    left = max(0, (width - wanted) // 2)
    return frame[:, left : left + wanted]


def _draw_sound(axes, clip: str, begin: float, end: float, anchors: list[dict]) -> None:
    samples = np.abs(read_audio(clip, SOUND_RATE, begin, end))
    axes.set_ylim(-1.1, 1.1)
    if not len(samples):
        axes.text((begin + end) / 2, 0, "no sound", ha="center", va="center", color="0.4")
        return
    bars = np.array([part.max(initial=0.0) for part in np.array_split(samples, min(400, len(samples)))])
    bars = bars / max(bars.max(), 1e-4)
    times = np.linspace(begin, begin + len(samples) / SOUND_RATE, len(bars), endpoint=False)
    axes.fill_between(times, -bars, bars, color="0.55", linewidth=0, step="post")
    for anchor in anchors:
        _mark(axes, anchor, COLOURS["audio"], (-1.1, 1.1))


def _mark(axes, anchor: dict, colour: str, limits: tuple[float, float]) -> None:
    if "start" in anchor:
        span = axes.axvspan(
            anchor["start"], anchor["end"], color=colour, alpha=0.15 + 0.3 * anchor["score"], linewidth=0
        )
        span.set_zorder(3)
        middle = (anchor["start"] + anchor["end"]) / 2
        axes.plot(
            middle, limits[1], marker="v", color=colour, markersize=4 + 4 * anchor["score"], clip_on=False, zorder=4
        )


def _draw_words(axes, answer: dict, begin: float, end: float) -> None:
    """Words have no times: they are spread over the clip in proportion to their letters."""
    axes.set_ylim(0, 1)
    text = answer["text"]
    if not text.strip():
        axes.text((begin + end) / 2, 0.5, "no words", ha="center", va="center", color="0.4")
        return
    marked = {anchor["start"]: anchor["score"] for anchor in answer["anchors"]["text"]}
    size = min(11.0, 11 * 90 / max(len(text), 1))
    position = 0
    for word in text.split():
        position = text.index(word, position)
        middle = begin + (end - begin) * (position + len(word) / 2) / len(text)
        score = marked.get(position)
        style = {"color": "0.35"} if score is None else {"color": COLOURS["text"], "weight": "bold"}
        axes.text(middle, 0.5, word, ha="center", va="center", fontsize=size, **style)
        position += len(word)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check_inputs(args)
    answer = recognise(args)
    if args.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        print(table(answer) if args.window_s is None else timed_table(answer))
    if args.plot is not None:
        plot(args, answer)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError) as error:
        sys.exit(f"predict_clip.py: {error}")
