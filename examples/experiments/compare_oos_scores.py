#!/usr/bin/env python3
"""
Compare the nine out-of-scope scores on trained models.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --hold_out_intents Joke,Care,Leave \
        --text_model_name_or_path bert-base-uncased --seeds 0,1,2 --output_dir runs/held_out --do_train --do_eval
    python examples/experiments/compare_oos_scores.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --model_name_or_path runs/held_out --output_dir runs/held_out/oos

Out of scope are the clips whose intent the model does not know: the held-out intents, and those that the data set
itself marks as out of scope. Scores are fitted on the known clips of the training split; thresholds are set on those
of dev.

With `--clips_of NAME=FOLDER` the train and dev clips of another data set are scored. In scope are those whose intent
the model knows; intents that are near neighbors of one that it knows (`NEAR_NEIGHBORS`) are left out, and so are
clips whose text it was trained on.
"""

import os
import sys
from dataclasses import dataclass, field

import numpy as np
import runner
from datasets import concatenate_datasets
from scipy.stats import rankdata

from amess_hf import AMESSConfig
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import compute_oos_metrics, fit_detectors, predict_clips
from amess_hf.evaluation.metrics import OOS_METRICS
from amess_hf.evaluation.plots import plot_roc, save_figure


BASELINE = "msp"
# Intents of MIntRec2.0 that MIntRec lacks but has a near neighbor of: neither in scope nor clearly out of scope.
NEAR_NEIGHBORS = {
    "Acknowledge": "Agree",
    "Explain": "Inform",
    "Plan": "Arrange",
    "Refuse": "Oppose",
    "Warn": "Prevent",
}
RESAMPLES, BATCH_SIZE = 1000, 64
# Share of the known dev clips that a threshold keeps.
KEEP = 0.95


@dataclass(kw_only=True)
class ScoreArguments(runner.DataArguments):
    """Which models and clips."""

    model_name_or_path: str = field(metadata={"help": "A saved model, or a folder of `seed-N` folders with one each."})
    split: str = field(default="validation", metadata={"help": "Split to score: validation or test."})
    clips_of: str | None = field(
        default=None, metadata={"help": "NAME=FOLDER of another data set whose train and dev clips are scored."}
    )


def known_to(model, split):
    """The split with the model's own label ids, -1 where it does not know the intent."""
    names, ids = split.features["label"].names, model.config.label2id
    known = [model.config.id2label[index] for index in range(model.config.num_labels)]
    own_ids = [ids.get(names[label], -1) if label >= 0 else -1 for label in split["label"]]
    return runner.with_labels(split, own_ids, known)


def clips_of_another_set(name_and_folder, dataset, model):
    """The train and dev clips of another data set, without near neighbors of known intents and texts of `dataset`."""
    name, folder = runner.split_pair("clips_of", name_and_folder)
    other = load_mintrec(folder, name=name, scope="all")
    split = concatenate_datasets([other["train"], other["validation"]])
    labels, known = split.features["label"].names, model.config.label2id
    left_out = [label for label in labels if label not in known and NEAR_NEIGHBORS.get(label) in known]
    trained_on = {runner.words_of(text) for text in dataset["train"]["text"]}
    rows = [
        row
        for row, (label, text) in enumerate(zip(split["label"], split["text"], strict=True))
        if (label < 0 or labels[label] not in left_out) and runner.words_of(text) not in trained_on
    ]
    sys.stdout.write(f"left out: {', '.join(left_out)}; scored: {len(rows)} of {len(split)} clips\n")
    return split.select(rows)


def auroc_interval(scores, baseline, in_scope):
    """The 95 % interval over clips of the difference of two scores in AUROC, by the bootstrap, in points."""
    draw = np.random.default_rng(0)
    groups = [np.flatnonzero(in_scope), np.flatnonzero(~in_scope)]
    rows = np.array([np.concatenate([draw.choice(group, len(group)) for group in groups]) for _ in range(RESAMPLES)])
    known, unknown = map(len, groups)
    # The sum of ranks of the known clips counts the pairs in which they have the higher score (Mann and Whitney, 1947).
    ranks = [rankdata(values[rows], axis=1)[:, :known].sum(1) for values in (scores, baseline)]
    return np.percentile(100 * (ranks[0] - ranks[1]) / (known * unknown), [2.5, 97.5])


def score_model(folder, dataset, own):
    """(method → metrics, method → scores, in_scope) of one model."""
    model, collator = runner.load_model(folder)
    outputs = {
        name: predict_clips(model, known_to(model, dataset[name]), collator, BATCH_SIZE, description=name)
        for name in dict.fromkeys(("train", "validation", own.split))
    }
    detectors = fit_detectors(model, outputs["train"], outputs["validation"], KEEP)
    scored = outputs[own.split]
    if own.clips_of is not None:
        split = known_to(model, clips_of_another_set(own.clips_of, dataset, model))
        scored = predict_clips(model, split, collator, BATCH_SIZE, description=own.clips_of)
    scores = {detector.method: detector.score(scored.as_model_outputs()).numpy() for detector in detectors}
    in_scope, metrics = scored.labels >= 0, {}
    for detector in detectors:
        values = scores[detector.method]
        low, high = auroc_interval(values, scores[BASELINE], in_scope)
        metrics[detector.method] = compute_oos_metrics(values, in_scope.astype(int)) | {
            "caught": float((values[~in_scope] < detector.threshold).mean()),
            "kept": float((values[in_scope] >= detector.threshold).mean()),
            "lowest_difference": low,
            "highest_difference": high,
        }
    return metrics, scores, in_scope


def write_tables(runs, folder):
    """`oos_scores.csv` (every run) and `oos_scores.md` (mean and deviation); returns the Markdown."""
    methods = next(iter(runs.values()))
    rows = [[method, seed, *values.values()] for seed, metrics in runs.items() for method, values in metrics.items()]
    shown = OOS_METRICS | {"caught": "unknown caught", "kept": "known kept"}
    means = {method: np.mean([metrics[method]["auroc"] for metrics in runs.values()]) for method in methods}
    cells = []
    for method in sorted(methods, key=means.get, reverse=True):
        found = [metrics[method] for metrics in runs.values()]
        changes = [metrics[method]["auroc"] - metrics[BASELINE]["auroc"] for metrics in runs.values()]
        low, high = (np.mean([one[f"{end}_difference"] for one in found]) for end in ("lowest", "highest"))
        change = ["–", "–"] if method == BASELINE else [runner.spread(changes), f"{low:.1f} to {high:.1f}"]
        cells.append([f"`{method}`", *(runner.spread([one[key] for one in found]) for key in shown), *change])
    names = [f"{name} (%)" for name in shown.values()]
    header = ["score", *names, f"AUROC to {BASELINE}, paired (points)", "over clips, 95 %"]
    columns = ["score", "seed", *next(iter(methods.values()))]
    return runner.write_results(folder, "oos_scores", columns, rows, header, cells)


def main(arguments=None):
    (own,) = runner.parse([ScoreArguments], __doc__, arguments)
    folders = runner.model_folders(own.model_name_or_path)
    turns = AMESSConfig.from_pretrained(next(iter(folders.values()))).context_turns
    dataset = load_mintrec(own.data_dir, name=own.dataset_name, scope="all", context_turns=turns)
    if missing := {"train", "validation", own.split} - set(dataset):
        raise ValueError(f"{own.data_dir} has no split {', '.join(sorted(missing))}; it has {', '.join(dataset)}")
    runs, drawn = {}, None
    for seed, folder in folders.items():
        runs[seed], scores, in_scope = score_model(folder, dataset, own)
        drawn = drawn or (dict(sorted(scores.items(), key=lambda item: -runs[seed][item[0]]["auroc"])), in_scope)  # noqa: B023
    write_tables(runs, own.output_dir)
    save_figure(plot_roc(*drawn), os.path.join(own.output_dir, "oos_roc.png"))
    return runs


if __name__ == "__main__":
    with runner.one_line_errors():
        main()
