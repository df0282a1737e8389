#!/usr/bin/env python3
"""
How many clips of a corpus that spoken_signs.py wrote a run of run_mir.py answered right: of all, and of those that audio,
video or both tell.

    python examples/experiments/accuracy_by_evidence.py --data_dir my_clips --run_dir runs/mine --split test

Prints a table, and writes accuracy_by_evidence.csv and .md into the folder of the run.
"""

import os
from dataclasses import dataclass, field

import pandas
from runner import one_line_errors, parse, write_results
from spoken_signs import TELLS


@dataclass
class EvidenceArguments:
    """What to score."""

    run_dir: str = field(metadata={"help": "Output folder of run_mir.py, with predictions of the split."})
    data_dir: str = field(metadata={"help": "Folder that spoken_signs.py wrote."})
    split: str = field(default="test", metadata={"help": "dev or test.", "choices": ["dev", "test"]})


def main(arguments=None):
    (own,) = parse([EvidenceArguments], __doc__, arguments)
    path = os.path.join(own.run_dir, f"predictions_{own.split}.tsv")
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing; run run_mir.py with `--do_eval --do_predict` first")
    answers = pandas.read_csv(path, sep="\t", dtype=str)
    tells = pandas.read_csv(os.path.join(own.data_dir, f"{own.split}.csv"), dtype=str).set_index("id")["tells"]
    right = (answers["label"] == answers["prediction"]).set_axis(tells[answers["id"]])
    groups = {"all": right, **{kind: right[right.index == kind] for kind in TELLS}}
    rows = [[own.split, kind, len(group), round(group.mean(), 4)] for kind, group in groups.items() if len(group)]
    header = ["split", "tells", "clips", "accuracy"]
    write_results(own.run_dir, "accuracy_by_evidence", header, rows, header, rows, left=(0, 1))
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
