"""The plots of reports and experiments, in one style: `plot_*` draws a `Figure`, `save_figure` writes it.

The same input gives the same bytes. Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), which people with
any colour vision can tell apart; colour is never the only cue. Sizes are in inches at 100 dots to an inch, so that no
text is below 11 pixels at 1x.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from .calibration import NUM_BINS, expected_calibration_error
from .metric_names import MODALITY_NAMES, modality_label


try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter
except ImportError as error:
    raise ImportError('the plots need matplotlib; pip install "amess_hf[report]"') from error


BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, PALE = "#595959", "#D9D9D9"
MODALITY_COLOURS = {"text": BLUE, "audio": ORANGE, "video": GREEN}

_LONGEST_NAME = 40
_UNDER_TEXT = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same font everywhere
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.labelsize": 10,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "hatch.linewidth": 0.8,
    "svg.hashsalt": "amess",
    "text.parse_math": False,  # a dollar sign in an intent's name or in an utterance does not start a formula
}


def _style():
    """Context in which plots have the common style, even if the user has set another one."""
    return matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": "agg"})


@contextmanager
def styled_figure(width: float, height: float, title: str | None = None) -> Iterator[Figure]:
    """Yield a figure of this size in inches; everything drawn on it inside the block has the common style."""
    with _style():
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        FigureCanvasAgg(figure)
        if title:
            figure.suptitle(" ".join(title.split()), x=0.01, ha="left", fontsize=12, fontweight="bold")
        yield figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG without date or version metadata."""
    with _style():
        figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def plot_name(name: str) -> str:
    """Return a name, which may be a user's, as plots show it: on one line, shortened if it is long."""
    name = " ".join(name.split())
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f" {name}" if name.startswith("_") else name  # Matplotlib omits names like `_name` from legends.


def plot_intent_f1(per_class: Mapping[str, Mapping]) -> Figure:
    """Draw a bar for the F1 of each intent.

    Args:
        per_class (`dict[str, dict]`): Name -> `f1`, `support`; intents without support are left out.

    Returns:
        `Figure`: The plot.
    """
    rows = sorted(
        ((name, values["f1"], values["support"]) for name, values in per_class.items() if values["support"]),
        key=lambda row: (row[1], row[0]),
    )
    with styled_figure(8, 1.3 + 0.27 * len(rows)) as figure:
        axes = figure.add_subplot()
        positions, scores = range(len(rows)), [100 * row[1] for row in rows]
        axes.barh(positions, scores, height=0.7, color=BLUE)
        for position, (_, f1, support) in enumerate(rows):
            axes.text(100 * f1 + 1, position, f"{100 * f1:.0f}  ({support})", va="center", fontsize=9)
        axes.set_yticks(positions, [plot_name(row[0]) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 112), ylim=(-0.7, len(rows) - 0.3), xlabel="F1 (%)")
        axes.set_xticks(range(0, 101, 20))
        axes.set_title("F1 of each intent (number of clips)")
        axes.grid(axis="x")
    return figure


def confusion_order(matrix: np.ndarray) -> list[int]:
    """Order intents so that those that are confused with one another are neighbours.

    The leaves of an average-linkage tree over how often two intents are confused, rotated so that neighbours are as
    similar as the tree allows.

    Args:
        matrix (`np.ndarray` of shape `(intents, intents)`): Numbers of clips, true intents in rows.

    Returns:
        `list[int]`: Row numbers.
    """
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
    """Draw a confusion matrix, coloured by the share of the true intent's clips.

    Args:
        matrix (`np.ndarray` of shape `(intents, intents)`):
            Numbers of clips, true intents in rows; drawn in the given order (see [`confusion_order`]).
        names (`list[str]`): The intents.

    Returns:
        `Figure`: The plot.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    size = len(names)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.5, 0.27 * size + 2.6)
    with styled_figure(side + 0.9, side + 0.3) as figure:
        axes = figure.add_subplot()
        display = ConfusionMatrixDisplay(100 * shares, display_labels=list(map(plot_name, names))).plot(
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
        colour_bar = figure.colorbar(display.im_, ax=axes, shrink=0.5 if size > 12 else 0.9, aspect=25, pad=0.02)
        colour_bar.set_label("share of the true intent's clips (%)")
        colour_bar.outline.set_visible(False)
    return figure


def plot_modalities(table: Sequence[Mapping]) -> Figure:
    """Draw what each modality adds: accuracy, and how many answers change.

    Args:
        table (`list[dict]`): What `modality_table` returns.

    Returns:
        `Figure`: The plot.
    """
    names = [modality_label(row["modalities"]) for row in table]
    positions = np.arange(len(table))[::-1]
    with styled_figure(8.5, 1.5 + 0.42 * len(table), "What each modality adds") as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for axes, key, colour, title in (
            (left, "accuracy", BLUE, "accuracy (%); dashed: all modalities"),
            (right, "changed", ORANGE, "answers that change (%)"),
        ):
            values = [100 * row[key] for row in table]
            axes.barh(positions, values, height=0.65, color=colour)
            for position, value in zip(positions, values, strict=True):
                axes.text(value + 1.5, position, f"{value:.1f}", va="center", fontsize=9, bbox=_UNDER_TEXT)
            axes.set(xlim=(0, 118), xlabel=title)
            axes.set_xticks(range(0, 101, 25))
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        left.set_yticks(positions, names)
        left.axvline(100 * table[0]["accuracy"], color=GREY, linestyle="--", linewidth=1)
    return figure


def plot_calibration(
    correct: ArrayLike, confidence: ArrayLike, calibrated: ArrayLike | None = None, temperature: float | None = None
) -> Figure:
    """Draw a reliability diagram with the number of clips in each bin.

    Args:
        correct (`np.ndarray` of shape `(clips,)`): Whether each answer is right.
        confidence (`np.ndarray` of shape `(clips,)`): Probability of each answer.
        calibrated (`np.ndarray` of shape `(clips,)`, *optional*): The probabilities with a temperature.
        temperature (`float`, *optional*): The temperature.

    Returns:
        `Figure`: The plot.
    """
    from sklearn.calibration import CalibrationDisplay

    series = [("uncalibrated", confidence, BLUE, BLUE, "o", "-")]
    if calibrated is not None:
        series.append((f"temperature {temperature:.2f}", calibrated, VERMILION, "none", "s", ":"))
    with styled_figure(6.5, 6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
        for name, values, colour, fill, marker, line in series:
            CalibrationDisplay.from_predictions(
                correct,
                values,
                n_bins=NUM_BINS,
                pos_label=True,
                ref_line=False,
                ax=upper,
                name=f"{name}: ECE {100 * expected_calibration_error(values, correct):.1f} %",
                color=colour,
                marker=marker,
                linestyle=line,
            )
            edges = np.linspace(0, 1, NUM_BINS + 1)
            _, _, bars = lower.hist(
                values, edges, rwidth=0.9, facecolor=fill, edgecolor=colour, linestyle=line, linewidth=1.5
            )
            for bar in bars:
                bar.set_visible(bar.get_height() > 0)
        upper.set(xlim=(0, 1), ylim=(0, 1.03), xlabel=None, ylabel="accuracy (%)")
        upper.set_title("Reliability diagram")
        upper.grid()
        upper.legend(loc="upper left")
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
    scores, in_scope = np.asarray(scores), np.asarray(in_scope, dtype=bool)
    edges = np.linspace(scores.min(), scores.max() if scores.max() > scores.min() else scores.min() + 1, 31)
    with styled_figure(7, 4) as figure:
        axes = figure.add_subplot()
        for rows, colour, hatch, name in (
            (in_scope, BLUE, None, "in scope"),
            (~in_scope, VERMILION, "////", "out of scope"),
        ):
            shares = 100 * np.histogram(scores[rows], edges)[0] / max(rows.sum(), 1)
            axes.stairs(
                shares, edges, fill=True, facecolor=colour, edgecolor=colour, linewidth=0, alpha=0.35, hatch=hatch
            )
            axes.stairs(shares, edges, color=colour, linewidth=1.8, label=f"{name} ({rows.sum()} clips)")
        if threshold is not None:
            label = f"threshold {threshold:.3g}"
            axes.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.5, label=label)
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

    colours = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY]
    styles = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (7, 2))]
    with styled_figure(6.5, 6) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        for number, (name, scores) in enumerate(scores_by_method.items()):
            display = RocCurveDisplay.from_predictions(in_scope, scores, ax=axes)
            display.line_.set(
                color=colours[number % len(colours)],
                linestyle=styles[number % len(styles)],
                linewidth=1.5 if number else 2.8,
                zorder=2 if number else 3,
                label=f"{name}: AUROC {100 * display.roc_auc:.1f} %",
            )
        axes.axhline(0.95, color=GREY, linewidth=1, linestyle=":")
        axes.text(1, 0.94, "95 % kept", ha="right", va="top", fontsize=9, color=GREY)
        axes.set(xlabel="out-of-scope clips let in (%)", ylabel="in-scope clips kept (%)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set_title("ROC curves of out-of-scope detection")
        axes.grid()
        axes.legend(loc="lower right")
    return figure


def embed_in_plane(points: ArrayLike) -> np.ndarray:
    """Project vectors to a plane with t-SNE, deterministically.

    Args:
        points (`np.ndarray` of shape `(number, width)`): At least 4 vectors.

    Returns:
        `np.ndarray` of shape `(number, 2)`: Their positions.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = np.asarray(points, dtype=np.float64)
    if not np.ptp(points, axis=0).any():
        return np.zeros((len(points), 2))  # All points are equal: there is nothing to lay out.
    # One thread: the order, and so the last digit, of the sum over points depends on the threads.
    with threadpool_limits(1):
        perplexity = min(30.0, (len(points) - 1) / 3)
        return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)


_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MARKER_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)


def plot_embeddings(
    points: ArrayLike, labels: ArrayLike, names: Sequence[str], description_points: np.ndarray | None = None
) -> Figure:
    """Draw a map of clips and label descriptions.

    Args:
        points (`np.ndarray` of shape `(clips, 2)`): See [`embed_in_plane`].
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope.
        names (`list[str]`): Intents in id order.
        description_points (`np.ndarray` of shape `(intents, 2)`, *optional*): If the model has descriptions.

    Returns:
        `Figure`: The plot.
    """
    points, labels, names = np.asarray(points), np.asarray(labels), list(map(plot_name, names))
    shown = "Clips" if description_points is None else "Clips and label descriptions"
    with styled_figure(10, 7.2, f"{shown} (t-SNE of their embeddings)") as figure:
        axes = figure.add_subplot()
        if (labels < 0).any():
            out = labels < 0
            axes.scatter(*points[out].T, s=16, marker="x", color=GREY, linewidth=0.8, label="(out of scope)")
        for number, name in enumerate(names):
            style = _intent_style(number)
            rows = labels == number
            axes.scatter(*points[rows].T, s=20, alpha=0.65, linewidth=0, **style, label=name)
            if description_points is not None:
                axes.scatter(*description_points[number], s=130, edgecolor=BLACK, linewidth=1.3, zorder=3, **style)
        everything = points if description_points is None else np.concatenate([points, description_points])
        margin = 0.08 * np.ptp(everything, axis=0)
        axes.set_xlim(everything[:, 0].min() - margin[0], everything[:, 0].max() + margin[0])
        axes.set_ylim(everything[:, 1].min() - margin[1], everything[:, 1].max() + margin[1])
        axes.set(xticks=[], yticks=[])
        axes.spines[["top", "right"]].set_visible(True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", markerscale=1.5, handletextpad=0.2)
        if description_points is not None:
            axes.set_xlabel("small mark: clip     large mark, black edge: description of the intent")
            figure.canvas.draw()  # sets the layout that the labels are placed in
            _label_points(axes, description_points, names, points)
    return figure


def _intent_style(number: int):
    """Return one of 49 combinations of colour and mark; those of neighbours differ in both."""
    colour = _MARKER_COLOURS[number % len(_MARKER_COLOURS)]
    return {"color": colour, "marker": _MARKERS[(number + number // len(_MARKER_COLOURS)) % len(_MARKERS)]}


def _label_points(axes: Axes, points: np.ndarray, names: Sequence[str], avoid: np.ndarray):
    """Place each name near its point where it covers no other name or mark, with a line to the point."""
    renderer = axes.figure.canvas.get_renderer()
    pixels, small = axes.transData.transform(points), axes.transData.transform(avoid)
    taken = np.concatenate(
        [np.concatenate([pixels - 8, pixels + 8], axis=1), np.concatenate([small - 3, small + 3], axis=1)]
    )
    for (x, y), name in zip(pixels, names, strict=True):
        text = axes.text(0, 0, name, fontsize=9, fontweight="bold", ha="center", va="center", zorder=5)
        extent = text.get_window_extent(renderer)
        centre, box = _free_place(
            x, y, extent.width / 2 + 2, extent.height / 2 + 1, taken, axes.get_window_extent().extents
        )
        taken = np.concatenate([taken, [box]])
        text.set_position(axes.transData.inverted().transform(centre))
        text.set_bbox(_UNDER_TEXT)
        axes.annotate(
            "",
            xy=axes.transData.inverted().transform((x, y)),
            xytext=axes.transData.inverted().transform(centre),
            arrowprops={"arrowstyle": "-", "color": BLACK, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5},
            zorder=2.5,
        )


def _free_place(x: float, y: float, half_width: float, half_height: float, taken: np.ndarray, frame: np.ndarray):
    """Find the nearest place around (x, y), in pixels, where a box covers nothing; the least covered one otherwise."""
    radius, angle = np.meshgrid(np.arange(16, 200, 8), 2 * math.pi * (np.arange(16) + 0.5) / 16, indexing="ij")
    centre_x = (x + (radius + 0.7 * half_width) * np.cos(angle)).ravel()
    centre_y = (y + radius * np.sin(angle)).ravel()
    boxes = np.stack(
        [centre_x - half_width, centre_y - half_height, centre_x + half_width, centre_y + half_height], axis=1
    )
    overlap = np.minimum(boxes[:, None, 2:], taken[None, :, 2:]) - np.maximum(boxes[:, None, :2], taken[None, :, :2])
    covered = overlap.clip(min=0).prod(-1).sum(-1)
    covered[(boxes[:, :2] < frame[:2]).any(-1) | (boxes[:, 2:] > frame[2:]).any(-1)] = np.inf
    best = covered.argmin()  # the first of the least covered: the nearest
    return (centre_x[best], centre_y[best]), boxes[best]


def plot_anchors(
    title: str,
    words: Sequence[tuple[str, float | None]],
    tracks: Sequence[Mapping],
    duration: float | None = None,
) -> Figure:
    """Draw a clip's words, sound and picture on one time axis, with the anchors marked in each.

    The words have no times: they are spread over the clip in proportion to their letters.

    Args:
        title (`str`): E.g. the clip's id and intents.
        words (`list[tuple]`):
            (word, score) pairs; the score is the anchor's, from 0 to 1, or `None` for a word that is not an anchor.
        tracks (`list[dict]`):
            Sound and picture, if the clip has them: `modality` (`"audio"` or `"video"`), `frames` of shape
            `(frames, width)`, `anchors` (as `anchor_spans` gives them, on the axis of the plot).
        duration (`float`, *optional*): The clip's length in seconds; without it the axis is in percent of the clip.

    Returns:
        `Figure`: The plot.
    """
    length, unit = (duration, "time (s)") if duration else (100.0, "position in the clip (%)")
    # about 110 letters fit on a line; see `_draw_words`
    word_height = max(0.9, 0.25 * (2 + sum(len(word) + 2 for word, _ in words) / 110))
    with styled_figure(9, 1.0 + word_height + 1.1 * len(tracks), title) as figure:
        heights = [word_height] + [1.1] * len(tracks)
        axes = figure.subplots(1 + len(tracks), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        axes[0].set_xlim(0, length)
        for row, track in zip(axes[1:], tracks, strict=True):
            _draw_track(row, track, length)
        for row in axes[:-1]:
            row.tick_params(axis="x", length=0)
        axes[-1].set_xlabel(f"{unit}\nmarked: anchors     grey line: how far a frame is from the clip's mean frame")
        axes[0].set(yticks=[], ylim=(0, 1))
        axes[0].set_ylabel("words", rotation=0, ha="right", va="center", labelpad=8)
        axes[0].spines[["left", "bottom"]].set_visible(False)
        figure.canvas.draw()  # sets the layout that the words are placed in
        _draw_words(axes[0], words, length)
    return figure


def _draw_track(axes: Axes, track: Mapping, length: float):
    colour = MODALITY_COLOURS[track["modality"]]
    frames = np.asarray(track["frames"], dtype=np.float64)
    axes.set_ylabel(MODALITY_NAMES[track["modality"]], rotation=0, ha="right", va="center", labelpad=8)
    axes.set(yticks=[], ylim=(0, 1.35))
    axes.spines["left"].set_visible(False)
    if not len(frames):
        axes.text(length / 2, 0.6, "none in this clip", ha="center", va="center", color=GREY)
        return
    width = length / len(frames)
    distance = np.linalg.norm(frames - frames.mean(0), axis=-1)
    curve = distance / max(distance.max(), 1e-12)
    axes.stairs(curve, np.arange(len(frames) + 1) * width, baseline=None, color=GREY, linewidth=1.2)
    for anchor in track["anchors"]:
        start, end, score = anchor["start"], anchor["end"], anchor["score"]
        axes.axvspan(start, end, color=colour, alpha=0.25 + 0.55 * score, linewidth=0)
        axes.plot((start + end) / 2, 1.12, marker="v", color=colour, markersize=4 + 5 * score, clip_on=False)


def _draw_words(axes: Axes, words: Sequence[tuple[str, float | None]], length: float):
    """Draw each word at its share of the letters, on the first of several lines where it does not run into another."""
    letters = sum(len(word) + 1 for word, _ in words)
    if not letters:
        axes.text(length / 2, 0.5, "none in this clip", ha="center", va="center", color=GREY)
        return
    renderer = axes.figure.canvas.get_renderer()
    to_pixels, to_data = axes.transData, axes.transData.inverted()
    position, line_ends, drawn = 0, [], []
    for word, score in words:
        left = to_pixels.transform((position / letters * length, 0))[0]
        text = axes.text(0, 0, word, fontsize=9, va="center", fontweight="bold" if score is not None else "normal")
        width = text.get_window_extent(renderer).width
        left = min(left, axes.get_window_extent().x1 - width)  # the last word stays inside
        # a word may move a little to the right before it goes on a new line
        line = next((number for number, end in enumerate(line_ends) if end <= left + 25), len(line_ends))
        left = max([left, *line_ends[line : line + 1]])
        line_ends[line : line + 1] = [left + width + 7]
        drawn.append((text, left, line, score))
        position += len(word) + 1
    for text, left, line, score in drawn:
        text.set_position((to_data.transform((left, 0))[0], 1 - (line + 0.5) / len(line_ends)))
        if score is not None:
            text.set_bbox({"facecolor": SKY, "alpha": 0.25 + 0.6 * score, "edgecolor": BLUE, "pad": 1.5})


def plot_ablation(rows: Sequence[Mapping], full: str, metric_name: str) -> Figure:
    """Draw every run of several variants of a model as a point, with a bar at each variant's mean.

    Args:
        rows (`list[dict]`): One for each variant: `variant`, `values` (seed -> share), `summary` (with `mean`).
        full (`str`): The name of the variant that the others are compared with.
        metric_name (`str`): What the shares are, for the axis.

    Returns:
        `Figure`: The plot.
    """
    rows = list(reversed(rows))
    reference = next(row["summary"]["mean"] for row in rows if row["variant"] == full)
    points = [100 * value for row in rows for value in row["values"].values()]
    margin = max(1.0, 0.1 * (max(points) - min(points)))
    with styled_figure(8, 1.4 + 0.36 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvline(100 * reference, color=GREY, linestyle="--", linewidth=1, label=f"mean of {full}")
        for place, row in enumerate(rows):
            values = [100 * value for value in row["values"].values()]
            colour = VERMILION if row["variant"] == full else BLUE
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=6)
            axes.plot([100 * row["summary"]["mean"]], [place], "|", color=colour, markersize=18, markeredgewidth=3)
        axes.set_yticks(range(len(rows)), [row["variant"] for row in rows])
        axes.set(xlim=(min(points) - margin, max(points) + margin), ylim=(-0.6, len(rows) - 0.4))
        axes.set(xlabel=f"{metric_name} (%): one point per seed, a bar at their mean")
        axes.grid(axis="x")
        axes.legend(loc="lower right")
    return figure


def plot_learning_curve(curves: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str) -> Figure:
    """Draw a metric over the number of training clips, one curve for each of up to three models.

    Args:
        curves (`dict`): Name -> clips per intent -> shares, one for each seed; the legend has the order of the names.
        ylabel (`str`): What the shares are.

    Returns:
        `Figure`: The plot.
    """
    styles = ((VERMILION, "o", "-"), (BLUE, "s", "--"), (GREY, "D", ":"))
    with styled_figure(7.5, 4.5) as figure:
        axes = figure.add_subplot()
        counts = sorted({count for curve in curves.values() for count in curve})
        for (name, curve), (colour, marker, line) in zip(curves.items(), styles, strict=False):
            places = [counts.index(count) for count in sorted(curve)]
            means = [100 * sum(curve[count]) / len(curve[count]) for count in sorted(curve)]
            axes.plot(places, means, color=colour, marker=marker, linestyle=line, label=name)
            for place, count in zip(places, sorted(curve), strict=True):
                shares = [100 * share for share in curve[count]]
                axes.plot([place] * len(shares), shares, marker, color=colour, alpha=0.35, markersize=5)
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set(xlabel="training clips of each intent", ylabel=ylabel, ylim=(0, None))
        axes.grid()
        axes.legend(loc="upper left")
    return figure
