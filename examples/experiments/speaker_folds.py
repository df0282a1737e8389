#!/usr/bin/env python3
"""
How well intents are recognised from unseen speakers: folds over the speakers of a folder data set, with a model
trained on each as run_mir.py does, and a logistic regression on the same frames.

    python examples/experiments/speaker_folds.py --dataset_name folder --data_dir my_data --audio_encoder log-mel \
        --text_model_name_or_path path/to/all-MiniLM-L6-v2 --output_dir runs/folds --seeds 0,1

Takes the arguments of run_mir.py. The folder's tables (whatever their splits) need a column `speaker`; each fold holds
out `--speakers_per_fold` speakers. Nothing is selected on the held-out speakers: each run is scored once, at its end.
The regression sees mean and deviation over time of a clip's frames, standardised; its `C` is scikit-learn's default,
and in a second row it is chosen by folds over the training speakers. Each fold and seed has its own folder; one that
has its metrics is not run again. Writes speaker_folds.csv and speaker_folds.md.
"""

import csv
import os
import random
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import HfArgumentParser

from amess_hf import AMESSTrainingArguments
from amess_hf.data.annotations import READERS, read_rows
from amess_hf.data.custom_data import CLIP_COLUMNS, FEATURE_COLUMNS
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import DataArguments, ModelArguments, load_clips, one_line_errors, run_for_each_seed
from progress import hide_progress_bars
from run_mir import run


MODEL = "A-MESS"
REGRESSION = "logistic regression"
TUNED_REGRESSION = "logistic regression, C tuned on training speakers"
CS = np.logspace(-4, 1, 6)


@dataclass
class FoldArguments:
    """How to divide the speakers."""

    speaker_column: str = field(default="speaker", metadata={"help": "Column that says who speaks."})
    speakers_per_fold: int = field(default=2, metadata={"help": "Speakers that a fold holds out."})
    shuffle_seed: int | None = field(
        default=None,
        metadata={"help": "Draw the folds with this seed; by default in the order of names."},
    )


def read_tables(folder):
    """
    All rows of a folder data set, whatever their split, with absolute paths.

    Raises:
        ValueError: If the folder has no table.
    """
    rows = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in READERS and path.stem in ("train", "dev", "test"):
            for _, row in read_rows(path):
                places = {name: row[name] for name in (*CLIP_COLUMNS, *FEATURE_COLUMNS) if row.get(name)}
                rows.append(row | {name: str(path.parent.resolve() / place) for name, place in places.items()})
    if not rows:
        raise ValueError(f"{folder} has no table `train`, `dev` or `test`")
    return rows


def speaker_folds(rows, fold_args):
    """
    The speakers that each fold holds out.

    Args:
        rows (`list[dict]`): The clips.
        fold_args ([`FoldArguments`]): The column, and how many speakers a fold has.

    Returns:
        `list[tuple[str]]`: each speaker once.

    Raises:
        ValueError: If a row has no speaker, or there are too few for two folds.
    """
    column, size = fold_args.speaker_column, fold_args.speakers_per_fold
    if not all(row.get(column) for row in rows):
        raise ValueError(f"not every row has a `{column}`; name the column with `--speaker_column`")
    speakers = sorted({row[column] for row in rows})
    if len(speakers) < 2 * size:
        raise ValueError(
            f"{len(speakers)} speakers are too few for two folds of {size}; give a lower `--speakers_per_fold`"
        )
    if fold_args.shuffle_seed is not None:
        random.Random(fold_args.shuffle_seed).shuffle(speakers)
    return [tuple(speakers[first : first + size]) for first in range(0, len(speakers), size)]


def write_fold(rows, column, kept_aside, folder):
    """Write `train.csv` and `dev.csv` (the held-out speakers) of a fold into `folder`."""
    os.makedirs(folder, exist_ok=True)
    for name, aside in (("train", False), ("dev", True)):
        with open(os.path.join(folder, f"{name}.csv"), "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if (row[column] in kept_aside) == aside)


def statistics_of_frames(split):
    """Mean and deviation over time of each clip's features, sound and picture next to each other, as an array (clips, width)."""
    names = [name for name in FEATURE_COLUMNS if name in split.column_names]
    if not names:
        raise ValueError("the data has no features: give `--audio_encoder` or `--video_encoder`")
    columns = []
    for name in names:
        frames = [np.asarray(clip, dtype=np.float32) for clip in split[name]]
        width = next(clip.shape[1] for clip in frames if len(clip))
        nothing = np.zeros(2 * width, dtype=np.float32)
        columns.append([np.concatenate([clip.mean(0), clip.std(0)]) if len(clip) else nothing for clip in frames])
    return np.concatenate([np.stack(column) for column in columns], axis=1)


def regression_accuracies(data_args, rows, column):
    """Accuracy on dev of the logistic regression, with the default `C` and with a tuned one."""
    splits = load_clips(data_args, seed=0)
    (train, labels), (dev, dev_labels) = (
        (statistics_of_frames(splits[name]), np.array(splits[name]["label"])) for name in ("train", "validation")
    )
    speaker = {row["id"]: row[column] for row in rows}
    groups = [speaker[clip] for clip in splits["train"]["id"]]
    folds = list(GroupKFold(5).split(train, labels, groups))
    models = {
        REGRESSION: LogisticRegression(max_iter=5000),
        TUNED_REGRESSION: LogisticRegressionCV(
            Cs=CS, cv=folds, max_iter=5000, l1_ratios=(0.0,), use_legacy_attributes=False
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            name: float(make_pipeline(StandardScaler(), model).fit(train, labels).score(dev, dev_labels))
            for name, model in models.items()
        }


def write_tables(records, output_dir):
    """`speaker_folds.csv` (every run) and `speaker_folds.md` (a row per method, means over seeds); returns the Markdown."""
    rows = [record.values() for record in records]
    write_csv(os.path.join(output_dir, "speaker_folds.csv"), list(records[0]), rows)
    folds = list(dict.fromkeys(record["fold"] for record in records))
    cells = []
    for method in dict.fromkeys(record["method"] for record in records):
        runs = [record for record in records if record["method"] == method]
        means = [np.mean([run["accuracy"] for run in runs if run["fold"] == fold]) for fold in folds]
        by_seed = {run["seed"]: [] for run in runs}
        for one in runs:
            by_seed[one["seed"]].append(one["accuracy"])
        spread = f" ± {100 * np.std([np.mean(s) for s in by_seed.values()], ddof=1):.1f}" if len(by_seed) > 1 else ""
        numbers = [f"{100 * mean:.1f}" for mean in means]
        cells.append([method, *numbers, f"{100 * np.mean(means):.1f}{spread}", len(by_seed)])
    text = markdown_table(["accuracy (%) on held-out speakers", *folds, "all", "seeds"], cells)
    write_text(os.path.join(output_dir, "speaker_folds.md"), text)
    return text


def main():
    parser = HfArgumentParser(
        (FoldArguments, ModelArguments, DataArguments, AMESSTrainingArguments), description=__doc__
    )
    fold_args, model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    if training_args.disable_tqdm:
        hide_progress_bars()
    training_args.do_train = training_args.do_eval = True
    # The held-out speakers are scored once, with the final weights.
    training_args.eval_strategy = training_args.save_strategy = "no"
    training_args.load_best_model_at_end = False
    data_args.seeds = data_args.seeds or str(training_args.seed)
    rows, column = read_tables(data_args.data_dir), fold_args.speaker_column
    records = []
    for kept_aside in speaker_folds(rows, fold_args):
        name = ", ".join(kept_aside)
        folder = os.path.join(training_args.output_dir, "without-" + "-".join(kept_aside))
        write_fold(rows, column, kept_aside, os.path.join(folder, "data"))
        fold_data = replace(data_args, data_dir=os.path.join(folder, "data"))
        for method, accuracy in regression_accuracies(fold_data, rows, column).items():
            records.append({"method": method, "fold": name, "seed": "", "accuracy": accuracy})
        results = run_for_each_seed(run, model_args, fold_data, training_args, output_dir=folder)
        for seed, metrics in results.items():
            records.append({"method": MODEL, "fold": name, "seed": seed, "accuracy": metrics["eval_accuracy"]})
        write_tables(records, training_args.output_dir)
    sys.stdout.write(write_tables(records, training_args.output_dir))


if __name__ == "__main__":
    with one_line_errors():
        main()
