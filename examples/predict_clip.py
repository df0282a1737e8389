#!/usr/bin/env python3
"""
Name the intent of a clip.

    python examples/predict_clip.py clip.mp4 --text "oh great, you again" --model runs/mintrec2 --plot clip.png

Prints the most likely intents; `--json` prints everything, anchors included; `--plot` draws the clip's time line with the
words, sounds and frames that decided. A long clip gets one answer; `--window_s 1` gives one for every second.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
from command_line import one_line_errors
from transformers import pipeline
from transformers.utils import logging

import amess_hf  # noqa: F401  (registers the Auto classes and the pipeline)
from amess_hf.clips_amess import clip_durations, read_audio, read_frames


# Okabe-Ito colors, which color-blind people can tell apart too.
COLORS = {"video": "#009E73", "audio": "#0072B2", "text": "#D55E00"}
THUMBNAILS = 12
AUDIO_RATE = 8000


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("clip", nargs="?", help="video or audio file, or an address; may be left out with --text")
    add("--text", help="what is said")
    add("--context", action="append", help="an earlier turn of the dialogue; oldest first, repeatable")
    add("--model", required=True, help="folder or Hub repository")
    add("--start", type=float, help="second of the clip at which the utterance begins")
    add("--end", type=float, help="second at which it ends")
    add("--top_k", type=int, default=5, help="number of intents to print")
    add("--threshold", type=float, help="probability below which the answer is UNK")
    add(
        "--intent",
        action="append",
        metavar="NAME=DESCRIPTION",
        help="choose among these described intents; repeatable",
    )
    add("--window_s", type=float, help="answer for each window of this many seconds of a long clip")
    add("--stride_s", type=float, help="seconds from one window to the next, as long as a window by default")
    add("--asr_model", help="speech recognizer that transcribes the clip if --text is not given")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--plot", type=Path, help="draw the time line into this file (png, svg, pdf)")
    args = parser.parse_args(arguments)
    mistakes = {
        "give a clip, --text, or both": args.clip is None and args.text is None,
        "--plot draws a clip: give one": args.plot is not None and args.clip is None,
        "--window_s splits a clip: give one, without --text and --plot": args.window_s is not None
        and (args.clip is None or args.text is not None or args.plot is not None),
        f"--top_k is {args.top_k}; it must be at least 1": args.top_k < 1,
        f"--threshold is {args.threshold}; it must be between 0 and 1": not 0 <= (args.threshold or 0) <= 1,
        f"--window_s is {args.window_s}; it must be above 0": args.window_s is not None and args.window_s <= 0,
        f"--stride_s is {args.stride_s}; it must be above 0 and at most --window_s": args.stride_s is not None
        and not 0 < args.stride_s <= (args.window_s or 0),
    }
    for mistake, is_made in mistakes.items():
        if is_made:
            parser.error(mistake)
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
    described: dict[str, list[str]] = {}
    for intent in intents or ():
        name, _, description = intent.partition("=")
        if not name.strip() or not description.strip():
            raise ValueError(f"`--intent` {intent!r}: write NAME=DESCRIPTION")
        described.setdefault(name.strip(), []).append(description.strip())
    return described or None


def recognize(args: argparse.Namespace) -> dict | list[dict]:
    """The pipeline's full answer, or with `--window_s` one for each window."""
    try:
        trusted = args.trust_remote_code or None
        recognizer = pipeline("intent-recognition", args.model, asr_model=args.asr_model, trust_remote_code=trusted)
    except OSError as error:
        models = f"`--model` {args.model}" + (f" or `--asr_model` {args.asr_model}" if args.asr_model else "")
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"{models} cannot be loaded: {reason}; give the folder of a model or its name") from error
    inputs = {name: getattr(args, name) for name in ("clip", "text", "context", "start", "end")}
    options = {name: getattr(args, name) for name in ("window_s", "stride_s", "top_k", "threshold")}
    return recognizer(inputs, candidate_labels=candidates(args.intent), return_anchors=True, **options)


def table(answer: dict) -> str:
    """The intents as bars, and the anchors that decided."""
    lines = [f"“{answer['text']}”"] if answer["text"] else []
    if answer["in_scope"] is False:
        lines.append("None of the intents. The nearest are below.")
    width = max(len(prediction["label"]) for prediction in answer["predictions"])
    for prediction in answer["predictions"]:
        bar = "█" * round(30 * prediction["score"])
        lines.append(f"  {prediction['label']:<{width}}  {prediction['score']:6.1%}  {bar}".rstrip())
    anchors = answer["anchors"]
    parts = {"text": ", ".join(anchor["word"] for anchor in anchors["text"])}
    for modality in ("audio", "video"):
        parts[modality] = ", ".join(f"{begin:.2f}–{end:.2f} s" for begin, end in merged_spans(anchors[modality]))
    lines += [f"{modality}: {found}" for modality, found in parts.items() if found]
    return "\n".join(lines)


def timed_table(answers: list[dict]) -> str:
    """A line for each window: time, answer and confidence."""
    return "\n".join(
        f"{answer['start']:7.2f}–{answer['end']:.2f} s  {answer['label']}  {answer['score']:.1%}" for answer in answers
    )


def merged_spans(anchors: list[dict]) -> list[tuple[float, float]]:
    """Seconds of anchors in temporal order, with neighbors merged."""
    spans: list[tuple[float, float]] = []
    for anchor in sorted((a for a in anchors if "start" in a), key=lambda a: a["start"]):
        if spans and anchor["start"] <= spans[-1][1] + 1e-6:
            spans[-1] = spans[-1][0], max(anchor["end"], spans[-1][1])
        else:
            spans.append((anchor["start"], anchor["end"]))
    return spans


def plot(args: argparse.Namespace, answer: dict) -> None:
    """Draw video, audio and text on one time axis, the anchors marked in each."""
    import matplotlib

    # A dollar sign in a word or in the name of a file or an intent does not start a formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        _plot(args, answer)


def _plot(args: argparse.Namespace, answer: dict) -> None:
    from matplotlib.figure import Figure

    from amess_hf.evaluation.plots import find_fonts, readable

    begin = args.start or 0.0
    end = args.end or max(*clip_durations(args.clip).values(), begin + 0.1)
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    nearest = [one["label"] for one in answer["predictions"][1:2]]
    note = f" (nearest: {nearest[0]})" if answer["in_scope"] is False and nearest else ""
    title = f"{Path(args.clip).name}: {answer['label']} {answer['score']:.0%}{note}"
    figure.suptitle(readable(title), fontsize=13)
    rows = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    heights = {"video": (-0.12, 1.12), "audio": (-1.1, 1.1), "text": (0, 1)}
    draw = {"video": _draw_video, "audio": _draw_audio, "text": _draw_text}
    for axes, (name, height) in zip(rows, heights.items(), strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=10)
        axes.set_yticks([])
        axes.set_ylim(*height)
        axes.spines[["top", "right", "left"]].set_visible(False)
        if not draw[name](axes, args.clip if name != "text" else answer, begin, end):
            axes.text((begin + end) / 2, sum(height) / 2, f"no {name}", ha="center", va="center", color="0.4")
        for anchor in answer["anchors"][name] if name != "text" else ():
            _mark(axes, anchor, COLORS[name], height[1])
        axes.set_xlim(begin, end)
    rows[-1].set_xlabel("time (s); anchors are marked, stronger ones more")
    find_fonts(figure)
    figure.savefig(args.plot, dpi=110)


def _draw_video(axes, clip: str, begin: float, end: float) -> bool:
    frames = read_frames(clip, num_frames=THUMBNAILS, start=begin, end=end, size=160)
    width = (end - begin) / THUMBNAILS
    for index, frame in enumerate(frames):
        left = begin + index * width
        axes.imshow(_fitted(frame), extent=(left, left + 0.97 * width, 0, 1), aspect="auto")
    return len(frames) > 0


def _fitted(frame: np.ndarray) -> np.ndarray:
    """The middle of a frame, cropped to the proportions of its place, about 2 wide to 3 high."""
    height, width = frame.shape[:2]
    wide, high = max(1, min(width, round(height * 2 / 3))), max(1, min(height, round(width * 3 / 2)))
    top, left = (height - high) // 2, (width - wide) // 2
    return frame[top : top + high, left : left + wide]


def _draw_audio(axes, clip: str, begin: float, end: float) -> bool:
    samples = np.abs(read_audio(clip, AUDIO_RATE, begin, end))
    bars = np.array([part.max(initial=0.0) for part in np.array_split(samples, max(min(400, len(samples)), 1))])
    bars = bars / max(bars.max(), 1e-4)
    times = np.linspace(begin, begin + len(samples) / AUDIO_RATE, len(bars), endpoint=False)
    axes.fill_between(times, -bars, bars, color="0.55", linewidth=0, step="post")
    return len(samples) > 0


def _mark(axes, anchor: dict, color: str, top: float) -> None:
    if "start" in anchor:
        score, begin, end = anchor["score"], anchor["start"], anchor["end"]
        axes.axvspan(begin, end, color=color, alpha=0.15 + 0.3 * score, linewidth=0, zorder=3)
        middle = (begin + end) / 2
        axes.plot(middle, top, marker="v", color=color, markersize=4 + 4 * score, clip_on=False, zorder=4)


def _draw_text(axes, answer: dict, begin: float, end: float) -> bool:
    """Words have no times: they are spread over the clip in proportion to their letters."""
    from amess_hf.evaluation.plots import readable

    text, position = answer["text"], 0
    marked = {anchor["start"] for anchor in answer["anchors"]["text"]}
    size = min(11.0, 11 * 90 / max(len(text), 1))
    for word in text.split():
        position = text.index(word, position)
        middle = begin + (end - begin) * (position + len(word) / 2) / len(text)
        style = {"color": COLORS["text"], "weight": "bold"} if position in marked else {"color": "0.35"}
        axes.text(middle, 0.5, readable(word), ha="center", va="center", fontsize=size, **style)
        position += len(word)
    return position > 0


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check_inputs(args)
    answer = recognize(args)
    if args.json:
        print(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        print(table(answer) if args.window_s is None else timed_table(answer))
    if args.plot is not None:
        plot(args, answer)


if __name__ == "__main__":
    with one_line_errors():
        main()
