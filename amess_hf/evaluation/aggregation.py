"""The JSON result files of runs, and one table from several runs: mean, deviation, paired differences."""

import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..processing_amess import write_json, write_text
from .tables import markdown_table, write_csv


_SEED_FOLDER = "seed-{seed}"
# Named as by the Trainer's `save_metrics`.
ALL_RESULTS_NAME = "all_results.json"
SPLIT_RESULTS_NAME = "{split}_results.json"


def seed_folder(output_dir: str | os.PathLike, seed: int) -> str:
    """Return the folder of the run with this seed, e.g. `output_dir/seed-3`."""
    return os.path.join(output_dir, _SEED_FOLDER.format(seed=seed))


def load_seed_results(output_dir: str | os.PathLike, seeds: Sequence[int] | None = None) -> dict[int, dict]:
    """Read `all_results.json` of the seeds that have one in `output_dir/seed-*`.

    Args:
        output_dir (`str`): The folder with the seeds' folders; it may be missing.
        seeds (`Sequence[int]`, *optional*): The seeds to read; by default all that exist.

    Returns:
        `dict[int, dict]`: seed -> the file's metrics, in order of the seeds; empty if there is nothing yet.

    Raises:
        ValueError: If a file does not hold a JSON object.
    """
    results = {}
    for name in os.listdir(output_dir) if os.path.isdir(output_dir) else []:
        match = re.fullmatch(_SEED_FOLDER.format(seed=r"(\d+)"), name)
        path = os.path.join(output_dir, name, ALL_RESULTS_NAME)
        if match and os.path.isfile(path) and (seeds is None or int(match.group(1)) in seeds):
            results[int(match.group(1))] = _read_results(path)
    return dict(sorted(results.items()))


def update_results(output_dir: str | os.PathLike, metrics: Mapping, split: str | None = None) -> dict:
    """Add metrics to `all_results.json` in a folder.

    Args:
        output_dir (`str`): The folder of the run.
        metrics (`dict`): Name -> value.
        split (`str`, *optional*): If given, the metrics are also written to `{split}_results.json`.

    Returns:
        `dict`: What `all_results.json` then holds.

    Raises:
        ValueError: If `all_results.json` does not hold a JSON object.
    """
    if split is not None:
        path = os.path.join(output_dir, SPLIT_RESULTS_NAME.format(split=split))
        write_json(path, metrics, indent=4, sort_keys=True)
    path = os.path.join(output_dir, ALL_RESULTS_NAME)
    results = (_read_results(path) if os.path.isfile(path) else {}) | metrics
    write_json(path, results, indent=4, sort_keys=True)
    return results


def _read_results(path: str | os.PathLike):
    with open(path, encoding="utf-8") as file:
        try:
            results = json.load(file)
        except ValueError as error:
            raise ValueError(f"`{path}` is not valid JSON ({error}); delete it and run again") from error
    if not isinstance(results, dict):
        raise ValueError(f"`{path}` holds a {type(results).__name__}, not a table of metrics; delete it and run again")
    return results


def aggregate_runs(runs: Mapping[Hashable, Mapping]) -> dict[str, dict]:
    """Summarize each metric over runs.

    Args:
        runs (`dict`): Seed -> metrics. Values that are not numbers, or missing from a seed, are left out.

    Returns:
        `dict[str, dict]`: metric -> `mean`, `deviation` (of the sample, `None` for a single run), `min`, `max`, `runs`
        (how many).

    Raises:
        ValueError: If there is no run.
    """
    if not runs:
        raise ValueError("there is no run to aggregate")
    tables = list(runs.values())
    return {
        name: _summary([table[name] for table in tables])
        for name in tables[0]
        if all(_is_number(table.get(name)) for table in tables)
    }


def _is_number(value: Any):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _summary(values: Sequence[float]):
    return {
        "mean": float(np.mean(values)),
        "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "min": float(np.min(values)),
        "max": float(np.max(values)),
        "runs": len(values),
    }


def paired_difference(
    first: Mapping[Hashable, float], second: Mapping[Hashable, float], confidence: float = 0.95
) -> dict:
    """Measure how much better the first of two runs is than the second, paired by seed or by clip.

    The interval is the percentile bootstrap over pairs, with ten thousand resamples and a fixed seed. Over three to five
    seeds it says little more than the smallest and the largest difference; over the clips of a split it says how much the
    difference depends on which clips the split happens to have.

    Args:
        first (`dict`): Key -> value, e.g. seed -> accuracy.
        second (`dict`): The same for the second run; keys that only one of them has are left out.
        confidence (`float`, *optional*, defaults to 0.95): Share of resamples inside the interval.

    Returns:
        `dict`: `mean` of first - second, its sample `deviation` (`None` for one pair), `min`, `max`, `low` and `high` (the
        interval), `pairs`.

    Raises:
        ValueError: If the two have no key in common.
    """
    from scipy.stats import bootstrap

    keys = [key for key in first if key in second]
    if not keys:
        raise ValueError("the two runs have no seed or clip in common; run both with the same ones")
    differences = np.array([first[key] - second[key] for key in keys], dtype=np.float64)
    summary = _summary(differences)
    low = high = summary["mean"]
    if len(keys) > 1:
        low, high = bootstrap(
            (differences,),
            np.mean,
            n_resamples=10_000,
            batch=500,  # ten thousand resamples of a thousand clips at once would take 80 MB
            confidence_level=confidence,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
    pairs = summary.pop("runs")
    return summary | {"low": float(low), "high": float(high), "pairs": pairs}


def format_spread(summary: Mapping) -> str:
    """Format mean and deviation in percent, e.g. `"70.3 ± 0.4"`; the mean alone for a single run."""
    mean = f"{100 * summary['mean']:.1f}"
    return mean if summary["deviation"] is None else f"{mean} ± {100 * summary['deviation']:.1f}"


def write_aggregate(aggregate: Mapping[str, Mapping], output_dir: str | os.PathLike) -> str:
    """Write the summaries of [`aggregate_runs`] as `aggregate.csv` (full precision) and `aggregate.md`.

    In the Markdown, a metric that is between 0 and 1 in every run is given in percent, any other unchanged.

    Args:
        aggregate (`dict[str, dict]`): Metric -> summary.
        output_dir (`str`): The folder; created if it does not exist.

    Returns:
        `str`: The Markdown.
    """
    os.makedirs(output_dir, exist_ok=True)
    columns = ["mean", "deviation", "min", "max", "runs"]
    rows = [[name, *(summary[column] for column in columns)] for name, summary in aggregate.items()]
    write_csv(os.path.join(output_dir, "aggregate.csv"), ["metric", *columns], rows)
    cells = []
    for name, summary in aggregate.items():
        as_share = 0 <= summary["min"] and summary["max"] <= 1
        values = [_cell(summary[column], as_share) for column in columns[:-1]]
        cells.append([f"{name}{' (%)' if as_share else ''}", *values, summary["runs"]])
    text = markdown_table(["metric", *columns], cells)
    write_text(os.path.join(output_dir, "aggregate.md"), text)
    return text


def _cell(value: Any, as_share: bool):
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if as_share else f"{value:.5g}"
