#!/usr/bin/env python3
"""
Compare the nine out-of-scope scores on trained models, and save the chosen detector with each.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --hold_out_intents Joke,Care,Leave \
        --text_model_name_or_path bert-base-uncased --seeds 0,1,2 --output_dir runs/held_out --do_train --do_eval
    python examples/experiments/compare_oos_scores.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --model_name_or_path runs/held_out --output_dir runs/held_out/oos

With `--clips_of NAME=FOLDER` the train and dev clips of another data set are scored. In scope are those whose intent
the model knows; intents that are near neighbours of one that it knows (`NEAR_NEIGHBOURS`) are left out, and so are
clips whose words it was trained on.

Out of scope are the clips whose intent the model does not know: the held-out intents, and those that the data set
itself marks as out of scope. Scores are fitted on the known clips of the training split; thresholds are set on those
of dev.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import concatenate_datasets
from transformers import AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from amess_hf import AMESSConfig, AMESSForIntentClassification
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.combining import with_labels, words_of
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import compute_oos_metrics, fit_detectors, paired_difference, predict_clips
from amess_hf.evaluation.aggregation import aggregate_runs, format_spread
from amess_hf.evaluation.metrics import OOS_METRICS
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import one_line_errors
from progress import ProgressArguments, hide_progress_bars


BASELINE = "msp"

# Intents of MIntRec2.0 that MIntRec lacks but has a near neighbour of: neither in scope nor clearly out of scope.
NEAR_NEIGHBOURS = {
    "Acknowledge": "Agree",
    "Explain": "Inform",
    "Plan": "Arrange",
    "Refuse": "Oppose",
    "Warn": "Prevent",
}
RESAMPLES = 1000


@dataclass
class ScoreArguments:
    """Which models and clips."""

    model_name_or_path: str = field(metadata={"help": "A saved model, or a folder of `seed-N` folders with one each."})
    data_dir: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for the tables and the plot."})
    dataset_name: str = field(default="mintrec", metadata={"help": "mintrec, mintrec2.0 or folder."})
    split: str = field(default="validation", metadata={"help": "Split to score: validation or test."})
    context_turns: int | None = field(
        default=None, metadata={"help": "Earlier turns; as the model was trained if not given."}
    )
    keep: float = field(default=0.95, metadata={"help": "Share of the known dev clips that a threshold keeps."})
    clips_of: str | None = field(
        default=None, metadata={"help": "NAME=FOLDER of another data set whose train and dev clips are scored."}
    )
    save_detector: str | None = field(
        default=None, metadata={"help": "Save the detector of this score with each model."}
    )
    batch_size: int = field(default=64, metadata={"help": "Clips at a time."})


def model_folders(path):
    """seed -> folder; a single model counts as seed 0."""
    seeds = {
        int(name.removeprefix("seed-")): os.path.join(path, name)
        for name in (os.listdir(path) if os.path.isdir(path) else ())
        if name.startswith("seed-") and os.path.isfile(os.path.join(path, name, "config.json"))
    }
    return dict(sorted(seeds.items())) or {0: path}


def known_to(model, split):
    """The split with the model's own label ids, -1 where it does not know the intent."""
    names, ids = split.features["label"].names, model.config.label2id
    known = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return with_labels(split, [ids.get(names[label], -1) if label >= 0 else -1 for label in split["label"]], known)


def clips_of_another_set(name_and_folder, dataset, model):
    """The train and dev clips of another data set, without near neighbours of known intents and words of `dataset`."""
    name, separator, folder = name_and_folder.partition("=")
    if not separator:
        raise ValueError(f"`--clips_of` is {name_and_folder!r}; give NAME=FOLDER, as mintrec2.0=path/to/MIntRec2.0")
    other = load_mintrec(folder, name=name, scope="all")
    split = concatenate_datasets([other["train"], other["validation"]])
    labels, known = split.features["label"].names, model.config.label2id
    left_out = [label for label in labels if label not in known and NEAR_NEIGHBOURS.get(label) in known]
    trained_on = {words_of(text) for text in dataset["train"]["text"]}
    rows = [
        row
        for row, (label, text) in enumerate(zip(split["label"], split["text"], strict=True))
        if (label < 0 or labels[label] not in left_out) and words_of(text) not in trained_on
    ]
    sys.stdout.write(f"left out: {', '.join(left_out)}; scored: {len(rows)} of {len(split)} clips\n")
    return split.select(rows)


def auroc_interval(scores, baseline, in_scope):
    """The 95 % interval over clips of the difference of two scores in AUROC, by the bootstrap, in points."""
    draw = np.random.default_rng(0)
    ranks = []
    for values in (scores, baseline):
        _, levels = np.unique(values, return_inverse=True)
        ranks.append(levels)
    known, unknown = np.flatnonzero(in_scope), np.flatnonzero(~in_scope)
    differences = []
    for _ in range(RESAMPLES):
        first, second = draw.choice(known, len(known)), draw.choice(unknown, len(unknown))
        differences.append(100 * (_auroc(ranks[0], first, second) - _auroc(ranks[1], first, second)))
    return np.percentile(differences, [2.5, 97.5])


def _auroc(levels, known, unknown):
    """The share of pairs in which the known clip has the higher level; ties count half."""
    size = levels.max() + 1
    of_known, of_unknown = np.bincount(levels[known], minlength=size), np.bincount(levels[unknown], minlength=size)
    below = np.cumsum(of_unknown) - of_unknown
    return (of_known * (below + 0.5 * of_unknown)).sum() / (len(known) * len(unknown))


def score_model(folder, dataset, arguments):
    """(method -> metrics, method -> scores, in_scope) of one model."""
    model = AMESSForIntentClassification.from_pretrained(folder)
    collator = AMESSDataCollator(AutoTokenizer.from_pretrained(folder), model.config)
    outputs = {
        name: predict_clips(model, known_to(model, dataset[name]), collator, arguments.batch_size, description=name)
        for name in dict.fromkeys(("train", "validation", arguments.split))
    }
    detectors = fit_detectors(model, outputs["train"], outputs["validation"], arguments.keep)
    scored = outputs[arguments.split]
    if arguments.clips_of is not None:
        split = known_to(model, clips_of_another_set(arguments.clips_of, dataset, model))
        scored = predict_clips(model, split, collator, arguments.batch_size, description=arguments.clips_of)
    scores = {detector.method: detector.score(scored.as_model_outputs()).numpy() for detector in detectors}
    in_scope = scored.labels >= 0
    for detector in detectors:
        if detector.method == arguments.save_detector:
            detector.save_pretrained(folder)
    metrics = {}
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


def write_tables(runs, output_dir):
    """`oos_scores.csv` (every run) and `oos_scores.md` (mean and deviation); returns the Markdown."""
    methods = next(iter(runs.values()))
    header = ["score", "seed", *next(iter(methods.values()))]
    rows = [[method, seed, *values.values()] for seed, metrics in runs.items() for method, values in metrics.items()]
    write_csv(os.path.join(output_dir, "oos_scores.csv"), header, rows)
    shown = OOS_METRICS | {"caught": "unknown caught", "kept": "known kept"}
    baseline = {seed: metrics[BASELINE]["auroc"] for seed, metrics in runs.items()}
    means = {method: np.mean([metrics[method]["auroc"] for metrics in runs.values()]) for method in methods}
    cells = []
    for method in sorted(methods, key=means.get, reverse=True):
        summary = aggregate_runs({seed: metrics[method] for seed, metrics in runs.items()})
        change = paired_difference({seed: metrics[method]["auroc"] for seed, metrics in runs.items()}, baseline)
        low, high = (
            np.mean([metrics[method][name] for metrics in runs.values()])
            for name in ("lowest_difference", "highest_difference")
        )
        changes = ["–", "–"] if method == BASELINE else [format_spread(change), f"{low:.1f} to {high:.1f}"]
        cells.append([f"`{method}`", *(format_spread(summary[key]) for key in shown), *changes])
    names = [f"{name} (%)" for name in shown.values()]
    header = ["score", *names, f"AUROC to {BASELINE}, paired (points)", "over clips, 95 %"]
    text = markdown_table(header, cells)
    write_text(os.path.join(output_dir, "oos_scores.md"), text)
    return text


def main(arguments=None):
    parser = HfArgumentParser((ScoreArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    logging.set_verbosity_warning()
    folders = model_folders(arguments.model_name_or_path)
    turns = arguments.context_turns
    if turns is None:
        turns = AMESSConfig.from_pretrained(next(iter(folders.values()))).context_turns
    dataset = load_mintrec(arguments.data_dir, name=arguments.dataset_name, scope="all", context_turns=turns)
    missing = {"train", "validation", arguments.split} - set(dataset)
    if missing:
        raise ValueError(
            f"{arguments.data_dir} has no split {', '.join(sorted(missing))}; it has {', '.join(dataset)}"
        )
    os.makedirs(arguments.output_dir, exist_ok=True)
    runs, first = {}, None
    for seed, folder in folders.items():
        runs[seed], scores, in_scope = score_model(folder, dataset, arguments)
        first = first or (scores, in_scope)
    text = write_tables(runs, arguments.output_dir)
    sys.stdout.write(text)

    from amess_hf.evaluation.plots import plot_roc, save_figure

    scores, in_scope = first
    best_first = dict(sorted(scores.items(), key=lambda item: -runs[next(iter(runs))][item[0]]["auroc"]))
    save_figure(plot_roc(best_first, in_scope), os.path.join(arguments.output_dir, "oos_roc.png"))
    return runs


if __name__ == "__main__":
    with one_line_errors():
        main()
