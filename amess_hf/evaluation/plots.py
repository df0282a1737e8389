"""The plots of reports and experiments, in one style: `plot_*` draws a `Figure`, `save_figure` writes it.

The same input gives the same bytes. Colors are those of Okabe and Ito (jfly.uni-koeln.de/color), which people with
any color vision can tell apart; color is never the only cue. Sizes are in inches at 100 dots to an inch, so that no
text is below 11 pixels at 1x. Intents come by name in id order, shares from 0 to 1.
"""

import functools
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike
from transformers.utils import logging

from .metrics import NUM_BINS


try:
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker
    from matplotlib.text import Text
    from matplotlib.ticker import PercentFormatter
except ImportError as error:
    raise ImportError('the plots need matplotlib; pip install "amess_hf[report]"') from error


logger = logging.get_logger(__name__)

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GRAY, PALE = "#595959", "#D9D9D9"
_COLORS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GRAY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2)))
_MODALITY_COLORS = {"text": BLUE, "audio": ORANGE, "video": GREEN}

_LONGEST_NAME = 40
_LINE_OF_WORDS = 110  # letters
_FONT = "DejaVu Sans"  # ships with matplotlib: the same everywhere
_STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "font.family": _FONT,
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 10,
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,  # a dollar sign in an intent's name or in an utterance does not start a formula
}


def _style():
    """Context in which plots have the common style, even if the user has set another one."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"})


@contextmanager
def _styled_figure(width: float, height: float, title: str | None = None) -> Iterator[Figure]:
    """Yield a figure of this size in inches; everything drawn on it inside the block has the common style."""
    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(readable(title), x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG without date or version metadata."""
    find_fonts(figure)
    with _style():
        figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def find_fonts(figure: Figure) -> None:
    """Let letters of a figure that the plots' font lacks come from the other fonts of the machine."""
    texts = figure.findobj(Text)
    families = dict.fromkeys(
        [_FONT, *filter(None, (_font_with(letter) for text in texts for letter in text.get_text()))]
    )
    for text in texts if len(families) > 1 else ():
        text.set_fontfamily(list(families))


@functools.cache
def _font_with(letter: str):
    """Return the family that draws a letter, the plots' own if it does; `None` if no font of this machine has it."""
    fonts = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.weight == 400]
    fonts.sort(key=lambda font: (font.name != _FONT, font.name))
    return next((font.name for font in fonts if letter == "\n" or ord(letter) in _letters_of(font.fname)), None)


@functools.cache
def _letters_of(path: str):
    font = font_manager.get_font(path)
    return {} if "Last Resort" in font.family_name else font.get_charmap()  # which draws boxes


def readable(text: str) -> str:
    """Return a text, which may be a user's, on one line, with letters that no font here has transliterated."""
    text = " ".join(text.split())
    if all(map(_font_with, text)):
        return text
    logger.warning_once("letters for which this machine has no font are transliterated in the plots")
    return "".join(letter if _font_with(letter) else _transliterated(letter) for letter in text)


def _transliterated(letter: str):
    """`bi` for HIRAGANA LETTER BI, nothing for a mark on another letter, `<U+559C>` for what is named by no sound."""
    sound = re.search(r" (?:LETTER|SYLLABLE|VOWEL SIGN|CHARACTER) (?:SMALL )?(\S+)", unicodedata.name(letter, ""))
    mark = unicodedata.category(letter).startswith("M")
    return sound[1].lower() if sound else "" if mark else f"<U+{ord(letter):04X}>"


def _plot_name(name: str):
    """Return a name as plots show it, shortened if it is long."""
    name = readable(name)
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f" {name}" if name.startswith("_") else name  # Matplotlib omits names like `_name` from legends.


def _draw_bars(axes: Axes, values: Sequence[float], color: str, notes: Sequence[str], xlabel: str):
    """Draw horizontal bars of percentages, the first on top, each with a note."""
    positions = range(len(values))
    axes.barh(positions, values, height=0.7, color=color)
    for position, value, note in zip(positions, values, notes, strict=True):
        axes.text(value + 1.5, position, note, va="center", fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 0.5})
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 116), ylim=(len(values) - 0.4, -0.6), xlabel=xlabel, xticks=range(0, 101, 20))
    axes.grid(axis="x")


def plot_intent_f1(per_class: Mapping[str, Mapping]) -> Figure:
    """Draw a bar for the F1 of each intent.

    Args:
        per_class (`dict[str, dict]`): Name -> `f1`, `support`; intents without support are left out.

    Returns:
        `Figure`: The plot.
    """
    rows = [(values["f1"], name, values["support"]) for name, values in per_class.items() if values["support"]]
    shares, names, supports = zip(*sorted(rows, reverse=True), strict=True)
    with _styled_figure(8, 1.3 + 0.27 * len(rows)) as figure:
        axes = figure.add_subplot()
        notes = [f"{100 * share:.0f}  ({support})" for share, support in zip(shares, supports, strict=True)]
        _draw_bars(axes, [100 * share for share in shares], BLUE, notes, "F1 (%)")
        axes.set_yticks(range(len(rows)), map(_plot_name, names))
        axes.set_title("F1 of each intent (number of clips)")
    return figure


def _confusion_order(matrix: np.ndarray):
    """Order intents so that those that are confused are neighbors: leaves of an average-linkage tree, best rotated."""
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return list(range(len(matrix)))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    distances = squareform(distances, checks=False)
    return leaves_list(optimal_leaf_ordering(linkage(distances, "average"), distances)).tolist()


def plot_confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix, colored by the share of the true intent's clips; confused intents are neighbors.

    Args:
        matrix (`np.ndarray` of shape `(intents, intents)`): Numbers of clips, true intents in rows.
        names (`list[str]`): The intents.

    Returns:
        `Figure`: The plot.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    order, size = _confusion_order(matrix), len(names)
    matrix, names = matrix[np.ix_(order, order)], [_plot_name(names[row]) for row in order]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.5, 0.27 * size + 2.6)
    with _styled_figure(side + 0.9, side + 0.3) as figure:
        axes = figure.add_subplot()
        display = ConfusionMatrixDisplay(100 * shares, display_labels=names).plot(
            cmap="Blues", xticks_rotation="vertical", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 100}
        )
        for text, count, share in zip(display.text_.flat, matrix.flat, shares.flat, strict=True):
            text.set(text=count or "", fontsize=8, color="white" if share > 0.55 else BLACK)
        axes.set_xticks(np.arange(-0.5, size), minor=True)
        axes.set_yticks(np.arange(-0.5, size), minor=True)
        axes.grid(which="minor", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted intent", ylabel="true intent")
        axes.set_title("Confusion matrix (number of clips)", loc="right" if size < 8 else "left")
        color_bar = figure.colorbar(display.im_, ax=axes, shrink=0.5 if size > 12 else 0.9, aspect=25, pad=0.02)
        color_bar.set_label("share of the true intent's clips (%)")
        color_bar.outline.set_visible(False)
    return figure


def plot_modalities(table: Sequence[Mapping]) -> Figure:
    """Draw what each modality adds: accuracy, and how many answers change.

    Args:
        table (`list[dict]`): What `modality_table` returns.

    Returns:
        `Figure`: The plot.
    """
    with _styled_figure(8.5, 1.5 + 0.42 * len(table), "What each modality adds") as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for axes, key, color, xlabel in (
            (left, "accuracy", BLUE, "accuracy (%); dashed: all modalities"),
            (right, "changed", ORANGE, "answers that change (%)"),
        ):
            values = [100 * row[key] for row in table]
            _draw_bars(axes, values, color, [f"{value:.1f}" for value in values], xlabel)
        left.set_yticks(range(len(table)), [" + ".join(row["modalities"]) for row in table])
        left.axvline(100 * table[0]["accuracy"], color=GRAY, linestyle="--", linewidth=1)
    return figure


def plot_calibration(series: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Draw a reliability diagram with the number of clips in each bin.

    Args:
        series (`dict`):
            Name of each of one or two curves -> whether each answer is right and its probability, both of shape `(clips,)`.

    Returns:
        `Figure`: The plot.
    """
    from sklearn.calibration import CalibrationDisplay

    looks = ((BLUE, BLUE, "o", "-"), (VERMILION, "none", "s", ":"))
    with _styled_figure(6.5, 6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1, label="perfectly calibrated")
        for (name, (correct, values)), (color, fill, marker, line) in zip(series.items(), looks, strict=False):
            style = {"color": color, "marker": marker, "linestyle": line}
            CalibrationDisplay.from_predictions(
                correct, values, n_bins=NUM_BINS, pos_label=True, ref_line=False, ax=upper, name=name, **style
            )
            counts, edges = np.histogram(values, np.linspace(0, 1, NUM_BINS + 1))
            middles, style = (edges[:-1] + edges[1:]) / 2, {"linestyle": line, "linewidth": 1.5}
            lower.bar(
                middles[counts > 0], counts[counts > 0], 0.9 / NUM_BINS, facecolor=fill, edgecolor=color, **style
            )
        upper.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=None, ylabel="accuracy (%)")
        upper.set_title("Reliability diagram")
        upper.grid()
        upper.get_legend().remove()  # made by `CalibrationDisplay`, over the curves
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        for axis in (upper.yaxis, lower.xaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=None))
        lower.set(xlabel="confidence (%)", ylabel="clips")
        lower.grid(axis="y")
    return figure


def plot_oos_scores(scores: ArrayLike, in_scope: ArrayLike, method: str, threshold: float | None = None) -> Figure:
    """Draw the histograms of an out-of-scope score for both kinds of clips.

    Args:
        scores (`np.ndarray` of shape `(clips,)`): Higher = in scope.
        in_scope (`np.ndarray` of shape `(clips,)`): `bool`.
        method (`str`): The score's name.
        threshold (`float`, *optional*): The detector's threshold, if it has one.

    Returns:
        `Figure`: The plot.
    """
    edges = np.histogram_bin_edges(scores, 30)
    with _styled_figure(7, 4) as figure:
        axes = figure.add_subplot()
        for rows, color, hatch, name in (
            (in_scope, BLUE, None, "in scope"),
            (~in_scope, VERMILION, "////", "out of scope"),
        ):
            shares = 100 * np.histogram(scores[rows], edges)[0] / max(rows.sum(), 1)
            axes.stairs(
                shares, edges, fill=True, facecolor=color, edgecolor=color, linewidth=0, alpha=0.35, hatch=hatch
            )
            axes.stairs(shares, edges, color=color, linewidth=1.8, label=f"{name} ({rows.sum()} clips)")
        if threshold is not None:
            axes.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.5, label=f"threshold {threshold:.3g}")
        axes.set(xlabel=f"score: {method} (higher = in scope)", ylabel="share of its clips (%)")
        axes.set_title("Out-of-scope score")
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
        axes.grid(axis="y")
        axes.legend(loc="upper left", ncols=3, frameon=True, framealpha=1, edgecolor="none")
    return figure


def plot_roc(scores_by_method: Mapping[str, ArrayLike], in_scope: ArrayLike) -> Figure:
    """Draw the ROC curves of out-of-scope scores.

    Args:
        scores_by_method (`dict[str, np.ndarray]`):
            Name -> scores of shape `(clips,)`, higher = in scope; the first one is drawn on top, in bold.
        in_scope (`np.ndarray` of shape `(clips,)`): `bool`.

    Returns:
        `Figure`: The plot.
    """
    from sklearn.metrics import RocCurveDisplay

    with _styled_figure(6.5, 6) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        for number, (name, scores) in enumerate(scores_by_method.items()):
            display = RocCurveDisplay.from_predictions(in_scope, scores, ax=axes)
            display.line_.set(
                color=_COLORS[number % 7],
                linestyle=_LINES[number % 7],
                linewidth=1.5 if number else 2.8,
                zorder=2 if number else 3,
                label=f"{name}: AUROC {100 * display.roc_auc:.1f} %",
            )
        axes.axhline(0.95, color=GRAY, linewidth=1, linestyle=":")
        axes.text(1, 0.94, "95 % kept", ha="right", va="top", fontsize=9, color=GRAY)
        axes.set(xlabel="out-of-scope clips let in (%)", ylabel="in-scope clips kept (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set_title("ROC curves of out-of-scope detection")
        axes.grid()
        axes.legend(loc="lower right")
    return figure


def _embed_in_plane(points: np.ndarray):
    """Project at least 4 vectors to a plane with t-SNE, deterministically."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = points.astype(np.float64)
    if not np.ptp(points, axis=0).any():
        return np.zeros((len(points), 2))  # All points are equal: there is nothing to lay out.
    # One thread: the order, and so the last digit, of the sum over points depends on the threads.
    with threadpool_limits(1):
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)


def plot_embeddings(
    embeds: np.ndarray, labels: np.ndarray, names: Sequence[str], label_embeds: np.ndarray | None = None
) -> Figure:
    """Draw a map of clips and label descriptions, each description as a large mark with the number of its intent.

    Args:
        embeds (`np.ndarray` of shape `(clips, width)`): At least 4 in all, with `label_embeds`.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope.
        names (`list[str]`): The intents.
        label_embeds (`np.ndarray` of shape `(intents, width)`, *optional*): If the model has descriptions.

    Returns:
        `Figure`: The plot.
    """
    described = label_embeds is not None
    plane = _embed_in_plane(np.concatenate([embeds, label_embeds]) if described else embeds)
    clips, descriptions = plane[: len(embeds)], plane[len(embeds) :]
    shown = "Clips and label descriptions" if described else "Clips"
    with _styled_figure(10, 7.2, f"{shown} (t-SNE of their embeddings)") as figure:
        axes = figure.add_subplot()
        axes.scatter(*clips[labels < 0].T, s=16, marker="x", color=GRAY, linewidth=0.8, label="(out of scope)")
        for number, name in enumerate(map(_plot_name, names)):
            # 49 combinations; those of neighbors differ in color and mark
            style = {"color": _COLORS[number % 7], "marker": _MARKERS[(number + number // 7) % 7]}
            label = f"{number + 1} {name}" if described else name
            axes.scatter(*clips[labels == number].T, s=20, alpha=0.65, linewidth=0, **style, label=label)
            if described:
                marker = style["marker"]
                axes.scatter(
                    *descriptions[number], s=280, fc="white", ec=style["color"], lw=2, zorder=3, marker=marker
                )
                style = {"ha": "center", "va": "center", "fontsize": 9, "fontweight": "bold", "zorder": 4}
                axes.text(*descriptions[number], number + 1, **style)
        axes.set(xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_visible(True)
        handles, texts = axes.get_legend_handles_labels()
        first = 0 if (labels < 0).any() else 1
        figure.legend(handles[first:], texts[first:], loc="outside right upper", markerscale=1.5, handletextpad=0.2)
        if described:
            axes.set_xlabel("small mark: clip     large mark with a number: description of the intent")
    return figure


def plot_anchors(
    title: str, words: Sequence[tuple[str, float | None]], tracks: Sequence[Mapping], duration: float | None = None
) -> Figure:
    """Draw a clip's words, and its audio and video on one time axis, with the anchors marked in each.

    Args:
        title (`str`): E.g. the clip's id and intents.
        words (`list[tuple]`):
            (word, score) pairs; the score is the anchor's, from 0 to 1, or `None` for a word that is not an anchor.
        tracks (`list[dict]`):
            Audio and video, if the clip has them: `modality`, `frames` of shape `(frames, width)`, `anchors` (as
            `anchor_spans` gives them, on the axis of the plot).
        duration (`float`, *optional*): The clip's length in seconds; without it the axis is in percent of the clip.

    Returns:
        `Figure`: The plot.
    """
    length, unit = (duration, "time (s)") if duration else (100.0, "position in the clip (%)")
    lines = _lines_of_words(words)
    heights = [0.3 + 0.3 * len(lines)] + [1.1] * len(tracks)
    with _styled_figure(9, 0.9 + sum(heights), title) as figure:
        rows = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, modality in zip(rows, ("text", *(track["modality"] for track in tracks)), strict=True):
            axes.set_ylabel(modality, rotation=0, ha="right", va="center", labelpad=8)
            axes.set(xlim=(0, length), xticks=[], yticks=[], ylim=(0, 1.35))
            axes.spines["left"].set_visible(False)
        rows[0].spines["bottom"].set_visible(False)
        _draw_words(rows[0], lines)
        for axes, track in zip(rows[1:], tracks, strict=True):
            _draw_track(axes, track, length)
        if tracks:
            rows[-1].xaxis.set_major_locator(matplotlib.ticker.AutoLocator())
            rows[-1].set_xlabel(
                f"{unit}\nmarked: anchors     gray line: how far a frame is from the clip's mean frame"
            )
    return figure


def _lines_of_words(words: Sequence[tuple[str, float | None]]):
    lines, room = [[]], _LINE_OF_WORDS
    for word, score in words:
        room -= len(word) + 2
        if room < 0 and lines[-1]:
            lines.append([])
            room = _LINE_OF_WORDS - len(word) - 2
        lines[-1].append((word, score))
    return lines


def _draw_words(axes: Axes, lines: Sequence[Sequence[tuple[str, float | None]]]):
    def area(word: str, score: float | None):
        box = {"fc": SKY, "alpha": 0.25 + 0.6 * (score or 0), "ec": BLUE, "pad": 1.5}
        return TextArea(
            readable(word),
            textprops={"fontsize": 9} | ({"fontweight": "bold", "bbox": box} if score is not None else {}),
        )

    packed = [HPacker(children=[area(*pair) for pair in line], pad=0, sep=6) for line in lines if line]
    packed = packed or [TextArea("none in this clip", textprops={"color": GRAY})]
    column = VPacker(children=packed, pad=0, sep=6)
    axes.add_artist(AnchoredOffsetbox("center left", child=column, pad=0, borderpad=0, frameon=False))


def _draw_track(axes: Axes, track: Mapping, length: float):
    color, frames = _MODALITY_COLORS[track["modality"]], np.asarray(track["frames"], dtype=np.float64)
    if not len(frames):
        axes.text(length / 2, 0.6, "none in this clip", ha="center", va="center", color=GRAY)
        return
    distance = np.linalg.norm(frames - frames.mean(0), axis=-1)
    edges = np.linspace(0, length, len(frames) + 1)
    axes.stairs(distance / max(distance.max(), 1e-12), edges, baseline=None, color=GRAY, linewidth=1.2)
    for anchor in track["anchors"]:
        start, end, score = anchor["start"], anchor["end"], anchor["score"]
        axes.axvspan(start, end, color=color, alpha=0.25 + 0.55 * score, linewidth=0)
        axes.plot((start + end) / 2, 1.12, marker="v", color=color, markersize=4 + 5 * score, clip_on=False)


def plot_learning_curve(curves: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str) -> Figure:
    """Draw a metric over the number of training clips, one curve for each of up to three models.

    Args:
        curves (`dict`): Name -> clips per intent -> shares, one for each seed; the legend has the order of the names.
        ylabel (`str`): What the shares are.

    Returns:
        `Figure`: The plot.
    """
    with _styled_figure(7.5, 4.5) as figure:
        axes = figure.add_subplot()
        counts = sorted({count for curve in curves.values() for count in curve})
        for number, (name, curve) in enumerate(curves.items()):
            places = [counts.index(count) for count in curve]
            shares = [100 * np.asarray(curve[count]) for count in curve]
            style = {"color": _COLORS[number], "marker": _MARKERS[number]}
            axes.plot(places, [share.mean() for share in shares], linestyle=_LINES[number], label=name, **style)
            for place, values in zip(places, shares, strict=True):
                axes.plot([place] * len(values), values, linestyle="", alpha=0.35, markersize=5, **style)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set(xlabel="training clips of each intent", ylabel=ylabel, ylim=(0, None))
        axes.grid()
        axes.legend(loc="upper left")
    return figure
