#!/usr/bin/env python3
"""
How well intents are recognized from unseen speakers: folds over the speakers of a folder data set, with a model
trained on each as run_mir.py does, and a logistic regression on the same frames.

    python examples/experiments/speaker_folds.py --data_dir my_data --audio_encoder log-mel \
        --text_model_name_or_path path/to/all-MiniLM-L6-v2 --output_dir runs/folds --seeds 0,1

Takes the arguments of run_mir.py. The folder's tables (whatever their splits) need a column `speaker`; each fold holds
out `--speakers_per_fold` speakers, on whom nothing is selected: each run is scored once, at its end. The regression sees mean
and deviation over time of a clip's frames, standardized; its `C` is scikit-learn's default, and in a second row it is chosen
by folds over the training speakers. A fold and seed that has its metrics is not run again. Writes speaker_folds.csv and .md.
"""

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
from runner import RunArguments, one_line_errors, parse, train, write_results
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from amess_hf.data.clip_features import add_clip_features
from amess_hf.data.dataset_files import NO_FEATURES
from amess_hf.data.mintrec import load_mintrec


MODEL, REGRESSION = "A-MESS", "logistic regression"
TUNED_REGRESSION = "logistic regression, C tuned on training speakers"
PATHS = ("clip", "video", "audio", "audio_features", "video_features")


@dataclass
class FrameArguments:
    """Encoders of raw clips, as run_mir.py takes them."""

    audio_encoder: str | None = field(default=None, metadata={"help": "log-mel, or a model on the Hub."})
    audio_encoder_layer: int | None = field(default=None, metadata={"help": "Take the states after this layer."})
    video_encoder: str | None = field(default=None, metadata={"help": "hog, hog-grid, or a model on the Hub."})


@dataclass
class FoldArguments:
    """How to divide the speakers."""

    speakers_per_fold: int = field(default=2, metadata={"help": "Speakers that a fold holds out."})


def read_tables(folder):
    """All rows of a folder data set as one table, whatever their split, with absolute paths."""
    found = [path for suffix in ("csv", "tsv") for path in sorted(Path(folder).glob(f"*.{suffix}"))]
    tables = []
    for path in (path for path in found if path.stem in ("train", "dev", "test")):
        table = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
        for name in set(PATHS) & set(table):
            table[name] = [place and str(path.parent.resolve() / place) for place in table[name]]
        if "id" not in table:
            table["id"] = [f"{path.stem}-{row}" for row in range(len(table))]
        tables.append(table)
    if not tables:
        raise ValueError(f"{folder} has no table `train`, `dev` or `test` (.csv or .tsv)")
    rows = pandas.concat(tables)
    if "speaker" not in rows or not all(rows["speaker"].fillna("")):
        raise ValueError(f"not every row of {folder} has a `speaker`; give each the name of its own")
    return rows.fillna("")


def speaker_folds(speakers, size):
    """The speakers that each fold holds out, each speaker once."""
    speakers = sorted(set(speakers))
    if len(speakers) < 2 * size:
        raise ValueError(f"{len(speakers)} speakers are too few for two folds of {size}; lower `--speakers_per_fold`")
    return [tuple(speakers[first : first + size]) for first in range(0, len(speakers), size)]


def write_fold(rows, kept_aside, folder):
    """Write `train.csv` and `dev.csv` (the held-out speakers) of a fold."""
    os.makedirs(folder, exist_ok=True)
    aside = rows["speaker"].isin(kept_aside)
    rows[~aside].to_csv(os.path.join(folder, "train.csv"), index=False)
    rows[aside].to_csv(os.path.join(folder, "dev.csv"), index=False)


def load_frames(folder, frame_args):
    """A folder data set with features: of the encoders where they are given, else those of its files."""
    encoders = {"audio_encoder": frame_args.audio_encoder, "video_encoder": frame_args.video_encoder}
    of_files = {f"{name[:5]}_features": NO_FEATURES for name, encoder in encoders.items() if encoder is not None}
    dataset = load_mintrec(folder, name="folder", **of_files)
    return add_clip_features(dataset, **encoders, data_dir=folder, audio_encoder_layer=frame_args.audio_encoder_layer)


def statistics_of_frames(split):
    """Mean and deviation over time of each clip's audio and video features next to each other, (clips, width)."""
    names = [name for name in ("audio_features", "video_features") if name in split.column_names]
    if not names:
        raise ValueError("the data has no features: give `--audio_encoder` or `--video_encoder`")
    columns = []
    for name in names:
        frames = [np.asarray(clip, dtype=np.float32) for clip in split[name]]
        nothing = np.zeros(2 * next(clip.shape[1] for clip in frames if len(clip)), dtype=np.float32)
        columns.append([np.concatenate([clip.mean(0), clip.std(0)]) if len(clip) else nothing for clip in frames])
    return np.concatenate([np.stack(column) for column in columns], axis=1)


def regression_accuracies(dataset, speaker_of):
    """Accuracy on dev of the logistic regression, with the default `C` and with a tuned one."""
    (frames, labels), (dev_frames, dev_labels) = (
        (statistics_of_frames(dataset[name]), np.array(dataset[name]["label"])) for name in ("train", "validation")
    )
    speakers = [speaker_of[clip] for clip in dataset["train"]["id"]]
    folds = list(GroupKFold(min(5, len(set(speakers)))).split(frames, labels, speakers))
    tuned = {
        "Cs": np.logspace(-4, 1, 6),
        "cv": folds,
        "l1_ratios": (0.0,),
        "scoring": "accuracy",
        "use_legacy_attributes": False,
    }
    models = {
        REGRESSION: LogisticRegression(max_iter=5000),
        TUNED_REGRESSION: LogisticRegressionCV(max_iter=5000, **tuned),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {
            name: float(make_pipeline(StandardScaler(), model).fit(frames, labels).score(dev_frames, dev_labels))
            for name, model in models.items()
        }


def write_tables(records, folder):
    """`speaker_folds.csv` (every run) and `speaker_folds.md` (a row per method, means over seeds); returns the Markdown."""
    table = pandas.DataFrame(records)
    folds, cells = list(dict.fromkeys(table["fold"])), []
    for method, runs in table.groupby("method", sort=False):
        means = runs.groupby("fold")["accuracy"].mean()[folds]
        by_seed = runs.groupby("seed")["accuracy"].mean()
        spread = f" ± {100 * by_seed.std():.1f}" if len(by_seed) > 1 else ""
        numbers = [f"{100 * mean:.1f}" for mean in means]
        cells.append([method, *numbers, f"{100 * means.mean():.1f}{spread}", len(by_seed)])
    header = ["accuracy (%) on held-out speakers", *folds, "all", "seeds"]
    return write_results(folder, "speaker_folds", list(table), table.values.tolist(), header, cells)


def main(arguments=None):
    run_args, frame_args, own, rest = parse([RunArguments, FrameArguments, FoldArguments], __doc__, arguments, True)
    rows, records, run_args.dataset_name = read_tables(run_args.data_dir), [], "folder"
    for kept_aside in speaker_folds(rows["speaker"], own.speakers_per_fold):
        name, folder = ", ".join(kept_aside), os.path.join(run_args.output_dir, "without-" + "-".join(kept_aside))
        data = os.path.join(folder, "data")
        write_fold(rows, kept_aside, data)
        speaker_of = dict(zip(rows["id"], rows["speaker"], strict=True))
        for method, accuracy in regression_accuracies(load_frames(data, frame_args), speaker_of).items():
            records.append({"method": method, "fold": name, "seed": "", "accuracy": accuracy})
        results = train(run_args, rest, folder, data_dir=data, **vars(frame_args))
        for seed, metrics in results.items():
            records.append({"method": MODEL, "fold": name, "seed": seed, "accuracy": metrics["eval_accuracy"]})
    write_tables(records, run_args.output_dir)
    return records


if __name__ == "__main__":
    with one_line_errors():
        main()
