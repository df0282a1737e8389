"""The JSON result files of runs, and one table from several runs: mean, deviation, paired differences."""

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from amess_hf.evaluation.metrics import CLASSIFICATION_METRICS, OOS_METRICS, OPEN_METRICS
from amess_hf.evaluation.tables import markdown_table, percent, write_csv
from amess_hf.processing_amess import write_json, write_text


# Named as by the Trainer's `save_metrics`.
ALL_RESULTS_NAME = "all_results.json"
# How the names of metrics end that are shares; losses, times and numbers of clips are not.
_SHARES = tuple(f"_{name}" for name in (*CLASSIFICATION_METRICS, *OOS_METRICS, *OPEN_METRICS, "caught", "kept"))


def seed_folder(output_dir: str | os.PathLike, seed: int) -> str:
    """Return the folder of the run with this seed, e.g. `output_dir/seed-3`."""
    return os.path.join(output_dir, f"seed-{seed}")


def load_seed_results(output_dir: str | os.PathLike, seeds: Sequence[int] | None = None) -> dict[int, dict]:
    """Read `all_results.json` of all seeds (or of `seeds`) that have one; seed -> metrics, in order of the seeds."""
    paths = {path.parent.name[len("seed-") :]: path for path in Path(output_dir).glob(f"seed-*/{ALL_RESULTS_NAME}")}
    found = {int(seed): path for seed, path in paths.items() if seed.isdecimal()}
    return {seed: _read_results(found[seed]) for seed in sorted(found) if seeds is None or seed in seeds}


def update_results(output_dir: str | os.PathLike, metrics: Mapping, split: str | None = None) -> dict:
    """Add metrics to `all_results.json` in a folder, and with `split` write them to `{split}_results.json` too.

    Returns:
        `dict`: What `all_results.json` then holds.

    Raises:
        ValueError: If `all_results.json` is damaged.
    """
    if split is not None:
        write_json(os.path.join(output_dir, f"{split}_results.json"), metrics, indent=4, sort_keys=True)
    path = Path(output_dir, ALL_RESULTS_NAME)
    results = (_read_results(path) if path.is_file() else {}) | metrics
    write_json(path, results, indent=4, sort_keys=True)
    return results


def _read_results(path: Path):
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}` does not hold metrics as JSON ({error}); delete it and run again") from error


def aggregate_runs(runs: Mapping[Hashable, Mapping]) -> dict[str, dict]:
    """Summarize each metric over runs.

    Args:
        runs (`dict`): Seed -> metrics. Values that are not numbers, or missing from a seed, are left out.

    Returns:
        `dict[str, dict]`: metric -> `mean`, `deviation` (of the sample, `None` for a single run), `min`, `max`, `runs`
        (how many).
    """
    tables = list(runs.values())
    shared = [name for name in tables[0] if all(_is_number(table.get(name)) for table in tables)]
    return {name: _summary([table[name] for table in tables]) for name in shared}


def _is_number(value: object):
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

    differences = np.array([first[key] - second[key] for key in first if key in second], dtype=np.float64)
    if not len(differences):
        raise ValueError("the two runs have no seed or clip in common; run both with the same ones")
    summary = _summary(differences)
    low = high = summary["mean"]
    if len(differences) > 1:
        # Ten thousand resamples of a thousand clips at once would take 80 MB.
        sizes = {"n_resamples": 10_000, "batch": 500, "random_state": np.random.default_rng(0)}
        how = {"confidence_level": confidence, "method": "percentile"}
        low, high = bootstrap((differences,), np.mean, **sizes, **how).confidence_interval
    return summary | {"low": float(low), "high": float(high), "pairs": summary.pop("runs")}


def format_spread(summary: Mapping) -> str:
    """Format mean and deviation in percent, e.g. `"70.3 ± 0.4"`; the mean alone for a single run."""
    mean = f"{100 * summary['mean']:.1f}"
    return mean if summary["deviation"] is None else f"{mean} ± {100 * summary['deviation']:.1f}"


def spread(values: Sequence[float]) -> str:
    """Format mean and deviation of values in percent; see [`format_spread`]."""
    return format_spread(_summary(values))


def write_aggregate(aggregate: Mapping[str, Mapping], output_dir: str | os.PathLike) -> str:
    """Write the summaries of [`aggregate_runs`] as `aggregate.csv` (full precision) and `aggregate.md`.

    In the Markdown, accuracies and other shares are given in percent, losses, times and numbers unchanged.

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
    for name, *values, runs in rows:
        is_share = name.endswith(_SHARES)
        form = percent if is_share else "{:.5g}".format
        shown = ["–" if value is None else form(value) for value in values]
        cells.append([f"{name}{' (%)' if is_share else ''}", *shown, runs])
    text = markdown_table(["metric", *columns], cells)
    write_text(os.path.join(output_dir, "aggregate.md"), text)
    return text
