#!/usr/bin/env python3
"""
How many clips of a corpus that spoken_signs.py wrote a run of run_mir.py answered right: of all, and of those that sound,
picture or both tell; with encoders given, next to a logistic regression on the same frames.

    python examples/experiments/accuracy_by_evidence.py --data_dir my_clips --run_dir runs/mine --split test \
        --audio_encoder log-mel --video_encoder hog

The regression sees mean and deviation over time of the frames of sound and picture, standardised. Prints a table, and writes
accuracy_by_evidence.csv into the folder of the run.
"""

import csv
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from amess_hf.evaluation.tables import markdown_table, write_csv


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import DataArguments, load_clips, one_line_errors
from progress import ProgressArguments, hide_progress_bars
from speaker_folds import statistics_of_frames
from spoken_signs import TELLS


SPLITS = {"dev": "validation", "test": "test"}


@dataclass
class EvidenceArguments:
    """What to score."""

    run_dir: str = field(metadata={"help": "Output folder of run_mir.py, with predictions of the split."})
    split: str = field(default="test", metadata={"help": "dev or test.", "choices": list(SPLITS)})


def read_table(path, delimiter):
    """
    The rows of a table.

    Raises:
        ValueError: If it is missing.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing; run run_mir.py with `--do_eval --do_predict` first")
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def by_evidence(right, tells):
    """Clips and accuracy by what tells, and of all; `right` and `tells` are dictionaries by clip."""
    groups = {"all": list(right), **{kind: [clip for clip in right if tells[clip] == kind] for kind in TELLS}}
    return {
        kind: (len(clips), float(np.mean([right[clip] for clip in clips]))) for kind, clips in groups.items() if clips
    }


def regression_answers(data_args, split):
    """Whether a logistic regression on mean and deviation of the frames is right, by clip of the split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clips = load_clips(data_args, seed=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(statistics_of_frames(clips["train"]), np.array(clips["train"]["label"]))
    answers = model.predict(statistics_of_frames(clips[SPLITS[split]]))
    return dict(zip(clips[SPLITS[split]]["id"], answers == np.array(clips[SPLITS[split]]["label"]), strict=True))


def main(arguments=None):
    parser = HfArgumentParser((EvidenceArguments, DataArguments, ProgressArguments), description=__doc__)
    arguments, data_args, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    data_args.dataset_name = "folder"
    predictions = read_table(os.path.join(arguments.run_dir, f"predictions_{arguments.split}.tsv"), "\t")
    tells = {
        row["id"]: row["tells"] for row in read_table(os.path.join(data_args.data_dir, f"{arguments.split}.csv"), ",")
    }
    figures = {"A-MESS": by_evidence({row["id"]: row["label"] == row["prediction"] for row in predictions}, tells)}
    if data_args.audio_encoder or data_args.video_encoder:
        figures["logistic regression"] = by_evidence(regression_answers(data_args, arguments.split), tells)
    rows = [
        [method, arguments.split, kind, clips, round(accuracy, 4)]
        for method, groups in figures.items()
        for kind, (clips, accuracy) in groups.items()
    ]
    header = ["method", "split", "tells", "clips", "accuracy"]
    write_csv(os.path.join(arguments.run_dir, "accuracy_by_evidence.csv"), header, rows)
    print(markdown_table(header, rows, left=(0, 1, 2)))
    return figures


if __name__ == "__main__":
    with one_line_errors():
        main()
