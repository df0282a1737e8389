"""Figures that compare several trained models."""

from .plots import BLUE, GREY, VERMILION, styled_figure


def ablation_figure(rows, full, figure_name):
    """
    Args:
        rows: one `dict` a variant: `variant`, `values` (seed -> share), `summary` (with `mean`).
        full: the name of the variant that the others are compared with.
        figure_name: what the shares are, for the axis.
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
        axes.set(xlabel=f"{figure_name} (%): one point a seed, a bar at their mean")
        axes.grid(axis="x")
        axes.legend(loc="lower right")
    return figure


def learning_curve_figure(curves, ylabel):
    """
    Args:
        curves: name -> clips per intent -> `list` of shares, one a seed; the name's order is that of the legend.
        ylabel: what the shares are.
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
