#!/usr/bin/env python3
"""
Do the scores mean what they say? Random halves of dev: calibrated on one, measured on the other.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --seeds 0,1,2 --output_dir runs/text \
        --text_model_name_or_path path/to/encoder --do_train --do_eval
    python examples/experiments/calibration.py --data_dir path/to/MIntRec --runs runs/text --output_dir runs/calibration

For each half: mean confidence, accuracy, expected calibration error (15 bins), that of a model whose confidences are the same
and exactly right (its answers are drawn), and how often the sets of 90 % hold the right intent, and their size; before and
after calibration, pooled over the runs (`--runs FOLDER,FOLDER` or the seeds in a folder).
"""

from dataclasses import dataclass, field

import numpy as np
from runner import DataArguments, model_folders, one_line_errors, parse, write_results
from scipy.special import softmax

from amess_hf import AMESSConfig, AMESSForIntentClassification, AMESSProcessor
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import predict_clips
from amess_hf.evaluation.calibration import calibrated_logits, coverage_thresholds, fit_scales, uncalibrated_scores
from amess_hf.evaluation.metrics import compute_calibration_metrics
from amess_hf.evaluation.tables import percent


COVERAGE = 90
FIGURES = {
    "confidence": "mean confidence",
    "accuracy": "accuracy",
    "expected_calibration_error": "ECE",
    "error_by_chance": "ECE if exactly calibrated",
    "coverage": "90 % sets cover",
    "set_size": "intents in a set",
}


@dataclass(kw_only=True)
class CalibrationArguments(DataArguments):
    """Which models, and how many halves."""

    runs: str = field(metadata={"help": "Folders of trained models, or of their seeds, separated by commas."})
    halves: int = field(default=100, metadata={"help": "Random halves of dev for each model."})


def dev_scores(folder, own):
    """The uncalibrated scores and the labels of dev."""
    model, processor = AMESSForIntentClassification.from_pretrained(folder), AMESSProcessor.from_pretrained(folder)
    split = load_mintrec(own.data_dir, name=own.dataset_name)["validation"]
    outputs = predict_clips(model, split, AMESSDataCollator(processor), description=folder)
    return uncalibrated_scores(outputs, model.config), outputs.labels


def measure(logits, labels, threshold, rng):
    """The figures of clips; an intent is in the set if its probability reaches the threshold."""
    probabilities, rows = softmax(logits, axis=-1), np.arange(len(labels))
    answers = probabilities.argmax(-1)
    # Labels that are drawn as the probabilities say.
    drawn = (probabilities.cumsum(-1) < rng.random((len(labels), 1))).sum(-1).clip(max=logits.shape[1] - 1)
    sets = probabilities >= threshold
    sets[rows, answers] = True
    return {
        "confidence": probabilities.max(-1).mean(),
        "accuracy": (answers == labels).mean(),
        **compute_calibration_metrics(logits, labels),
        "error_by_chance": compute_calibration_metrics(logits, drawn)["expected_calibration_error"],
        "coverage": sets[rows, labels].mean(),
        "set_size": sets.sum(-1).mean(),
    }


def measure_halves(scores, labels, halves):
    """{"before": {figure: mean over the halves}, "after": …} of one model."""
    rng, measured = np.random.default_rng(0), {"before": [], "after": []}
    for _ in range(halves):
        order = rng.permutation(len(labels))
        fitted, kept = order[: len(order) // 2], order[len(order) // 2 :]
        calibrated = AMESSConfig()
        calibrated.temperature, scales = fit_scales(scores[:, fitted], labels[fitted])
        calibrated.evidence_scales = scales if len(scores) > 1 else None
        for name, config in (("before", AMESSConfig()), ("after", calibrated)):
            logits = calibrated_logits(scores, config)
            threshold = coverage_thresholds(logits[fitted], labels[fitted])[COVERAGE - 1]
            measured[name].append(measure(logits[kept], labels[kept], threshold, rng))
    return {
        name: {figure: np.mean([row[figure] for row in rows]) for figure in rows[0]} for name, rows in measured.items()
    }


def main(arguments=None):
    (own,) = parse([CalibrationArguments], __doc__, arguments)
    folders = [folder for run in own.runs.split(",") for folder in model_folders(run).values()]
    found = {folder: measure_halves(*dev_scores(folder, own), own.halves) for folder in folders}
    rows = [
        [folder, name, figure, round(float(value), 6)]
        for folder, halves in found.items()
        for name, figures in halves.items()
        for figure, value in figures.items()
    ]
    header, cells = [f"{len(folders)} model(s), {own.halves} halves", *FIGURES.values()], []
    for name in ("before", "after"):
        *shares, size = (np.mean([halves[name][figure] for halves in found.values()]) for figure in FIGURES)
        cells.append([name, *map(percent, shares), f"{size:.1f}"])
    write_results(own.output_dir, "calibration", ["model", "calibrated", "figure", "value"], rows, header, cells)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
