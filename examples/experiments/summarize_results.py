#!/usr/bin/env python3
"""
Tables of accuracy: the lines that examples/results/tables.csv names, from every run in accuracy.csv.

    python examples/experiments/summarize_results.py

A line is a figure of a run over its seeds, or, with `minus_run`, its difference to that of another run, paired by seed.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

from runner import format_spread, paired_difference, spread

from amess_hf.evaluation.tables import markdown_table


RESULTS = Path(__file__).parents[1] / "results"


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load_results(path=RESULTS / "accuracy.csv"):
    """(run, figure) → seed → value."""
    values = defaultdict(dict)
    for row in read_rows(path):
        values[row["run"], row["figure"]][int(row["seed"])] = float(row["value"])
    return values


def table_line(line, values):
    """The cells of a line of tables.csv."""
    first = values[line["run"], line["figure"]]
    if line["minus_run"]:
        change = paired_difference(first, values[line["minus_run"], line["minus_figure"]])
        interval = f"{100 * change['low']:.1f} to {100 * change['high']:.1f}"
        return [line["line"], format_spread(change), interval, change["pairs"]]
    return [line["line"], spread([*first.values()]), len(first), *([line["kept"]] if line["kept"] else [])]


def tables(values, lines):
    """The tables in Markdown."""
    for title in dict.fromkeys(line["table"] for line in lines):
        chosen = [line for line in lines if line["table"] == title]
        header = ["accuracy (%)", "seeds", *(["kept"] if chosen[0]["kept"] else [])]
        if chosen[0]["minus_run"]:
            header = ["mean ± deviation", "95 % interval", "seeds"]
        yield markdown_table(
            [title, *header], [table_line(line, values) for line in chosen], left=(0, 3) if chosen[0]["kept"] else (0,)
        )


if __name__ == "__main__":
    sys.stdout.write("\n".join(tables(load_results(), read_rows(RESULTS / "tables.csv"))))
