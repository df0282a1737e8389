#!/usr/bin/env python3
"""
Train the full model and variants without each part, for several seeds, and write one table.

    python examples/experiments/ablate.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/ablation --seeds 0,1,2

Takes the arguments of run_mir.py. Each variant and seed has its own folder; one that has its metrics is not run again.
Writes ablation.csv, ablation.md and ablation.png.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import HfArgumentParser
from transformers.utils import logging

from amess_hf import AMESSTrainingArguments
from amess_hf.evaluation.aggregation import aggregate_runs, format_spread, paired_difference
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import DataArguments, ModelArguments, one_line_errors, run_for_each_seed
from progress import hide_progress_bars
from run_mir import run


FULL = "full"
# Untrained similarities are ignored in the answer too.
NO_SS = {
    "label_triplet_loss_weight": 0.0,
    "label_contrastive_loss_weight": 0.0,
    "batch_triplet_loss_weight": 0.0,
    "label_similarity_weight": 0.0,
}
VARIANTS = {
    FULL: {},
    "mean-instead-of-A-ME": {"fusion_type": "mean"},
    "cross-modal-instead-of-A-ME": {"fusion_type": "cross_modal"},
    "text-only-encoder": {"fusion_type": "text"},
    "without-SS": NO_SS,
    "without-description-triplets": {"label_triplet_loss_weight": 0.0},
    "without-description-softmax": {"label_contrastive_loss_weight": 0.0},
    "without-clip-triplets": {"batch_triplet_loss_weight": 0.0},
    "anchors-1": {"num_anchors": 1},
    "anchors-4": {"num_anchors": 4},
    "anchors-16": {"num_anchors": 16},
}


@dataclass
class AblationArguments:
    """Which variants to run, and which metric to compare."""

    variants: str = field(
        default=",".join(VARIANTS),
        metadata={"help": f"Separated by commas: {', '.join(VARIANTS)}. The full model always runs."},
    )
    metric: str = field(default="eval_accuracy", metadata={"help": "The metric of all_results.json to compare."})


def chosen_variants(names):
    """
    The variants that are named, the full model first.

    Raises:
        `ValueError`: if a name is not known.
    """
    names = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"`--variants` names {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    return {name: VARIANTS[name] for name in dict.fromkeys([FULL, *names])}


def run_variant(name, changes, model_args, data_args, training_args):
    """Train one variant with every seed. Returns seed → metrics."""
    folder = os.path.join(training_args.output_dir, name)
    return run_for_each_seed(run, replace(model_args, **changes), data_args, training_args, output_dir=folder)


def ablation_rows(results, metric):
    """
    One row per variant: its metric over seeds, and the difference to the full model, paired by seed.

    Args:
        results (`dict[str, dict[int, dict]]`): Variant → seed → metrics.
        metric (`str`): The metric to compare.
    """
    known = {name for runs in results.values() for run in runs.values() for name in run}
    if metric not in known:
        raise ValueError(f"`--metric {metric}` is not among the runs' metrics; they have {', '.join(sorted(known))}")
    by_seed = {name: {seed: run[metric] for seed, run in runs.items()} for name, runs in results.items()}
    rows = []
    for name, values in by_seed.items():
        summary = aggregate_runs({seed: {metric: value} for seed, value in values.items()})[metric]
        difference = None if name == FULL else paired_difference(values, by_seed[FULL])
        rows.append({"variant": name, "values": values, "summary": summary, "difference": difference})
    return rows


def write_tables(rows, metric, output_dir):
    """The table as `ablation.csv` and `ablation.md`, and every run as `ablation_runs.csv`; returns the Markdown."""
    runs = [[row["variant"], seed, value] for row in rows for seed, value in row["values"].items()]
    write_csv(os.path.join(output_dir, "ablation_runs.csv"), ["variant", "seed", metric], runs)
    numbers, cells = [], []
    for row in rows:
        spreads = (row["summary"], row["difference"] or {"mean": None, "deviation": None})
        values = [spread[name] for spread in spreads for name in ("mean", "deviation")]
        numbers.append([row["variant"], metric, *values, len(row["values"])])
        change = "–" if row["difference"] is None else format_spread(row["difference"])
        cells.append([row["variant"], format_spread(row["summary"]), change, len(row["values"])])
    header = ["variant", "metric", "mean", "deviation", "difference", "difference_deviation", "seeds"]
    write_csv(os.path.join(output_dir, "ablation.csv"), header, numbers)
    text = markdown_table(["variant", f"{metric} (%)", "difference to full, paired (points)", "seeds"], cells)
    write_text(os.path.join(output_dir, "ablation.md"), text)
    return text


def plot(rows, metric, path):
    """Every run as a point, each variant's mean as a bar, the full model's mean as a line."""
    from amess_hf.evaluation.plots import plot_ablation, save_figure

    save_figure(plot_ablation(rows, FULL, metric), path)


def main():
    parser = HfArgumentParser(
        (AblationArguments, ModelArguments, DataArguments, AMESSTrainingArguments), description=__doc__
    )
    ablation_args, model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    if training_args.disable_tqdm:
        hide_progress_bars()
    if data_args.seeds is None:
        raise ValueError("give `--seeds`, e.g. `--seeds 0,1,2`: one run says little about a difference")
    training_args.do_train = training_args.do_eval = True
    results = {}
    for name, changes in chosen_variants(ablation_args.variants).items():
        logging.get_logger("amess_hf").warning(f"variant {name}")
        results[name] = run_variant(name, changes, model_args, data_args, training_args)
    rows = ablation_rows(results, ablation_args.metric)
    sys.stdout.write(write_tables(rows, ablation_args.metric, training_args.output_dir))
    plot(rows, ablation_args.metric, os.path.join(training_args.output_dir, "ablation.png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
