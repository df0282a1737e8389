"""One table out of several runs: mean, deviation, minimum, maximum, and differences between paired runs."""

import csv
import json
import os
import re
from collections.abc import Mapping

import numpy as np


_SEED_FOLDER = "seed-{seed}"
_RESULTS_NAME = "all_results.json"


def seed_folder(output_dir, seed):
    """Where the run with this seed belongs: `output_dir/seed-3`."""
    return os.path.join(output_dir, _SEED_FOLDER.format(seed=seed))


def load_seed_results(output_dir):
    """
    The results of the seeds that are done: what is in `output_dir/seed-*/all_results.json`.

    Returns:
        `dict`: seed -> the file's figures, in order of the seeds; empty where nothing is there yet.

    Raises:
        ValueError: a file holds no JSON object; delete it and that seed is run again.
    """
    results = {}
    for name in os.listdir(output_dir) if os.path.isdir(output_dir) else []:
        match = re.fullmatch(_SEED_FOLDER.format(seed=r"(\d+)"), name)
        path = os.path.join(output_dir, name, _RESULTS_NAME)
        if match and os.path.isfile(path):
            results[int(match.group(1))] = _read_results(path)
    return dict(sorted(results.items()))


def _read_results(path):
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it to run this seed again") from error
    if not isinstance(results, dict):
        raise ValueError(
            f"{path} holds a {type(results).__name__} and no table of figures; delete it to run this seed again"
        )
    return results


def aggregate_runs(runs: Mapping):
    """
    Args:
        runs: seed -> figures. A figure that is no number, or that some seed lacks, is left out.

    Returns:
        `dict`: figure -> `mean`, `deviation` (of the sample, None for a single run), `min`, `max`, `runs` (how many).

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("there is no run to aggregate")
    tables = list(runs.values())
    return {
        name: _summary([table[name] for table in tables])
        for name in tables[0]
        if all(_is_number(table.get(name)) for table in tables)
    }


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _summary(values):
    return {
        "mean": float(np.mean(values)),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "runs": len(values),
    }


def paired_difference(first: Mapping, second: Mapping, confidence=0.95, num_resamples=10_000):
    """
    How much better the first of two runs is than the second, pair by pair: the same seed, or the same clip.

    The interval is the percentile bootstrap over pairs, drawn with a fixed seed. Over three to five seeds it says little
    more than the smallest and the greatest difference; over the clips of a split (see `correct_clips`) it says how far the
    difference depends on which clips happen to be there.

    Args:
        first, second: key -> value, e.g. seed -> accuracy. Keys that only one of them has are left out.
        confidence: share of resamples inside the interval.
        num_resamples: resamples of the bootstrap.

    Returns:
        `dict`: `mean` of first - second, its sample `deviation` (None for one pair), `min`, `max`, `low` and `high` (the
        interval), `pairs`.

    Raises:
        ValueError: the two have no key in common.
    """
    keys = [key for key in first if key in second]
    if not keys:
        raise ValueError("the two runs have no seed or clip in common; run both with the same ones")
    differences = np.array([first[key] - second[key] for key in keys], dtype=np.float64)
    generator = np.random.default_rng(0)
    # in blocks: ten thousand resamples of a thousand clips at once would take 80 MB
    means = np.concatenate(
        [
            generator.choice(differences, (min(500, num_resamples - start), len(differences))).mean(-1)
            for start in range(0, num_resamples, 500)
        ]
    )
    summary = _summary(differences)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    pairs = summary.pop("runs")
    return summary | {"low": float(low), "high": float(high), "pairs": pairs}


def correct_clips(predictions_files):
    """
    The share of runs that are right about each clip, for `paired_difference` over clips.

    Args:
        predictions_files: paths of `predictions_dev.tsv` files, one for each seed.

    Returns:
        `dict`: clip id -> share of the runs, in [0, 1].

    Raises:
        ValueError: a file lacks a column, or the files are not about the same clips.
    """
    shares = {}
    for number, path in enumerate(predictions_files):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        missing = {"id", "label", "prediction"} - set(rows[0] if rows else ())
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; expected id, label, prediction")
        if number and {row["id"] for row in rows} != set(shares):
            raise ValueError(
                f"{path} is not about the same clips as {predictions_files[0]}; compare one split at a time"
            )
        for row in rows:
            shares[row["id"]] = shares.get(row["id"], 0) + (row["label"] == row["prediction"]) / len(predictions_files)
    return shares


def format_spread(summary, scale=100, digits=1):
    """`"70.3 ± 0.4"`: mean and deviation in percent; the mean alone for a single run."""
    mean = f"{scale * summary['mean']:.{digits}f}"
    return mean if summary["deviation"] is None else f"{mean} ± {scale * summary['deviation']:.{digits}f}"


def write_aggregate(aggregate, output_dir):
    """
    Writes what `aggregate_runs` gave as `aggregate.csv` (full precision) and `aggregate.md`, and returns the Markdown.

    In the Markdown a figure between 0 and 1 in every run is given in percent, any other as it is.
    """
    os.makedirs(output_dir, exist_ok=True)
    columns = ["mean", "deviation", "min", "max", "runs"]
    with open(os.path.join(output_dir, "aggregate.csv"), "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["figure", *columns])
        for name, summary in aggregate.items():
            writer.writerow([name, *("" if summary[column] is None else summary[column] for column in columns)])
    lines = ["| figure | mean | deviation | min | max | runs |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, summary in aggregate.items():
        as_share = 0 <= summary["min"] and summary["max"] <= 1
        cells = [_cell(summary[column], as_share) for column in columns[:-1]]
        lines.append(f"| {name}{' (%)' if as_share else ''} | {' | '.join(cells)} | {summary['runs']} |")
    text = "\n".join(lines) + "\n"
    with open(os.path.join(output_dir, "aggregate.md"), "w", encoding="utf-8") as file:
        file.write(text)
    return text


def _cell(value, as_share):
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if as_share else f"{value:.5g}"
