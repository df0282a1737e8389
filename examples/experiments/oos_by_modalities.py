#!/usr/bin/env python3
"""
How the out-of-scope detector decides when modalities are missing: with one threshold, and with one for each set of modalities.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --hold_out_intents Joke,Care,Leave,Oppose,Flaunt \
        --text_model_name_or_path bert-base-uncased --output_dir runs/held_out --do_train --do_eval
    python examples/experiments/oos_by_modalities.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --model_name_or_path runs/held_out --output_dir runs/held_out/oos

Out of scope are the clips whose intent the model does not know. Thresholds and statistics are set on one half of the known
dev clips and measured on the other half and the unknown ones; the figures are means over 20 halves.
"""

from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from compare_oos_scores import BATCH_SIZE, KEEP, known_to
from runner import DataArguments, load_model, one_line_errors, parse, write_results

from amess_hf import OutOfScopeDetector
from amess_hf.data.clip_features import add_clip_features
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import compute_oos_metrics, predict_clips, predict_masked


HALVES = 20
PER_CLIP = ("logits", "pooler_output", "multimodal_embeds", "modality_mask")
FIGURES = ("known_refused", "unknown_caught", "auroc")


@dataclass(kw_only=True)
class DetectorArguments(DataArguments):
    """Which model, and which score."""

    model_name_or_path: str = field(
        metadata={"help": "A saved model; features of raw clips are made as it takes them."}
    )
    method: str = field(default="knn_energy", metadata={"help": "The out-of-scope score."})


def load_clips(own, config):
    """The data set, with features from its clips where the model has encoders and the data set no features."""
    dataset, configs = load_mintrec(own.data_dir, name=own.dataset_name), config.feature_configs
    if not configs or f"{next(iter(configs))}_features" in dataset["train"].column_names:
        return dataset
    encoders = {f"{name}_encoder": feature.encoder for name, feature in configs.items()}
    limits = {f"max_{name}_length": feature.max_length for name, feature in configs.items()}
    return add_clip_features(dataset, data_dir=own.data_dir, **encoders, **limits)


def figures(detector, outputs, measured):
    """What the detector makes of the clips where `measured` is true, in percent."""
    accepted, known = detector.predict(outputs).numpy()[measured], outputs["labels"][measured] >= 0
    scores = detector.score(outputs).numpy()[measured]
    refused = 100 * (1 - accepted[known].mean())
    if known.all():
        return refused, np.nan, np.nan
    return refused, 100 * (1 - accepted[~known].mean()), 100 * compute_oos_metrics(scores, known)["auroc"]


def measure(detector, by_set):
    """(set of modalities, thresholds) -> the figures, means over halves of the known clips."""
    complete, *masked = by_set.values()
    known = np.flatnonzero(complete["labels"] >= 0)
    found = {(name, kind): [] for name in by_set for kind in ("one", "for each set")}
    for draw in range(HALVES):
        half = np.random.default_rng(draw).permutation(known)[: len(known) // 2]
        fitted_on = [{**outputs, **{key: outputs[key][half] for key in PER_CLIP}} for outputs in (complete, *masked)]
        measured = np.setdiff1d(np.arange(len(complete["labels"])), half)
        detector.calibrate(fitted_on[0], KEEP, masked=fitted_on[1:])
        for name, outputs in by_set.items():
            without_mask = {key: value for key, value in outputs.items() if key != "modality_mask"}
            found[name, "one"].append(figures(detector, without_mask, measured))
            found[name, "for each set"].append(figures(detector, outputs, measured))
    return {key: np.mean(values, axis=0) for key, values in found.items()}


def main(arguments=None):
    (own,) = parse([DetectorArguments], __doc__, arguments)
    model, collator = load_model(own.model_name_or_path)
    dataset = load_clips(own, model.config)
    train, dev = (known_to(model, dataset[name]) for name in ("train", "validation"))
    fitted_on = predict_clips(model, train, collator, BATCH_SIZE, description="train")
    detector = OutOfScopeDetector(own.method).fit(fitted_on.as_model_outputs(), fitted_on.labels, model)
    complete = model.config.modalities, predict_clips(model, dev, collator, BATCH_SIZE, description="dev")
    outputs = chain([complete], predict_masked(model, dev, collator, BATCH_SIZE))
    by_set = {" + ".join(kept): one.as_model_outputs() | {"labels": one.labels} for kept, one in outputs}
    found = measure(detector, by_set)
    rows = [[name, kind, own.method, *(f"{value:.2f}" for value in values)] for (name, kind), values in found.items()]
    write_results(
        own.output_dir,
        "oos_by_modalities",
        ["modalities", "thresholds", "score", *FIGURES],
        rows,
        ["modalities", "thresholds", "score", "known refused (%)", "unknown caught (%)", "AUROC (%)"],
        rows,
        left=(0, 1, 2),
    )
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
