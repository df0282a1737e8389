#!/usr/bin/env python3
"""
Compare fusions on simulated features, where it is known what sound and picture show, and when.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/world --fusion_type anchor --seeds 0,1,2,3,4 \
        --text_model_name_or_path bert-base-uncased --output_dir runs/anchor --do_train --do_eval   # also late and text
    python examples/experiments/compare_fusions.py --models anchor=runs/anchor late=runs/late text=runs/text \
        --draw_dirs path/to/world-draw-1 path/to/world-draw-2 ... --output_dir runs/fusions

Each folder of `--draw_dirs` holds MIntRec's tables with other features of the same world, and `bursts.tsv` (id, modality, first,
end, frames, label): in which frames a clip's sound or picture shows an intent, and which. All models are scored on all draws,
and compared clip by clip, so that what the words contribute cancels. Intervals are those of the differences when seeds, draws
and clips are drawn again, each by itself (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 2007).

The observer knows the bursts: to the log-probabilities of the words alone it adds, for the intent that is shown, the
log likelihood ratio of its being shown when it is the correct intent and when another one is. Its accuracy is a bound
for every fusion.
"""

import csv
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from amess_hf import AMESSDataCollator, AMESSForIntentClassification
from amess_hf.configuration_amess import FEATURE_MODALITIES, MODALITIES
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import compute_anchor_metrics, predict_clips, read_evidence_spans
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import one_line_errors
from progress import ProgressArguments, hide_progress_bars


WORDS, OBSERVER = "text", "observer"
ALONE = {"sound alone": ("audio",), "picture alone": ("video",)}
LACKING = {"without picture": ("text", "audio"), "without sound": ("text", "video"), "without both": ("text",)}


@dataclass
class FusionArguments:
    """Which models and draws."""

    models: list[str] = field(
        metadata={
            "help": "name=FOLDER of each fusion, `text` (words alone) among them; FOLDER has a `seed-N` for each."
        }
    )
    draw_dirs: list[str] = field(
        metadata={"help": "Folders with other features of the world that the models were trained on."}
    )
    output_dir: str = field(metadata={"help": "Folder for the tables."})
    dataset_name: str = field(default="mintrec", metadata={"help": "mintrec or mintrec2.0."})
    split: str = field(default="validation", metadata={"help": "Split to score."})
    masked: bool = field(default=True, metadata={"help": "Score with modalities masked too."})
    resamples: int = field(default=2000, metadata={"help": "Of the bootstrap."})
    batch_size: int = field(default=64, metadata={"help": "Clips at a time."})


def read_bursts(folder):
    """Where the bursts of a folder's clips lie, and modality -> clip id -> the intent that each shows, from `bursts.tsv`."""
    path, shown = os.path.join(folder, "bursts.tsv"), defaultdict(dict)
    spans = read_evidence_spans(path)
    with open(path, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            shown[row["modality"]][row["id"]] = row["label"]
    return spans, shown


def shown_labels(bursts, split):
    """modality -> label id that each clip of `split` shows, (clips,)."""
    ids = {name.casefold(): index for index, name in enumerate(split.features["label"].names)}
    return {
        name: np.array([ids[bursts[1][name][clip].casefold()] for clip in split["id"]]) for name in FEATURE_MODALITIES
    }


def reliability(bursts, split):
    """modality -> log likelihood ratio of an intent being shown when it is correct, from the clips of `split`."""
    num_labels, labels = len(split.features["label"].names), np.array(split["label"])
    shares = {name: (shown == labels).mean() for name, shown in shown_labels(bursts, split).items()}
    return {name: np.log(share * (num_labels - 1) / (1 - share)) for name, share in shares.items()}


def observe(logits, shown, weights):
    """The observer's scores: `logits` (clips, num_labels) of the words, and `weights` where an intent is shown."""
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for name, labels in shown.items():
        scores[np.arange(len(labels)), labels] += weights[name]
    return scores


def score_model(folder, draws, arguments):
    """
    Score one model.

    Returns:
        `tuple`: whether each answer is correct `{kept modalities: (draws, clips)}`, the logits (clips, num_labels) of
        the last draw, and for each draw a dict of anchor metrics (empty where the model has no anchors).
    """
    model = AMESSForIntentClassification.from_pretrained(folder)
    collator = AMESSDataCollator(AutoTokenizer.from_pretrained(folder), model.config)
    # Words are the same in every draw.
    draws = draws[:1] if model.config.fusion_type == "text" else draws
    views = {"all": MODALITIES}
    if arguments.masked and model.config.fusion_type != "text":
        views |= ALONE | LACKING
    right, anchors = {name: [] for name in views}, []
    for split, bursts in draws:
        for name, kept in views.items():
            if name == "without both" and right[name]:
                continue
            outputs = predict_clips(model, split, collator, arguments.batch_size, kept, description=name)
            right[name].append(outputs.predictions == outputs.labels)
            if name == "all":
                logits = outputs.logits
                anchors.append({} if outputs.anchor_indices is None else compute_anchor_metrics(outputs, bursts[0]))
    return {name: np.stack(values) for name, values in right.items()}, logits, anchors


def interval(values, resamples):
    """
    Mean of `values` (seeds, draws, clips) and its 95 % interval when seeds, draws and clips are drawn again.

    Returns:
        `tuple[float, float, float]`: mean, low, high.
    """
    random = np.random.default_rng(0)
    means = []
    for _ in range(resamples):
        drawn = values
        for size in values.shape:
            weights = random.multinomial(size, np.full(size, 1 / size)) / size
            drawn = np.tensordot(weights, drawn, axes=(0, 0))  # the first of the remaining axes
        means.append(drawn)
    return float(values.mean()), *(float(bound) for bound in np.percentile(means, [2.5, 97.5]))


def stack(runs, view="all"):
    """Correct answers of a fusion's models, (seeds, draws, clips), as 0 and 1."""
    return np.stack([right[view] for right, *_ in runs.values()]).astype(float)


def compare(runs, draws, weights, arguments):
    """
    The table.

    Args:
        runs (`dict`): Fusion → seed → what `score_model` returned.
        draws (`list`): The split and the bursts of each draw.
        weights (`dict`): What `reliability` returned.
        arguments ([`FusionArguments`]): The resamples.

    Returns:
        `list[tuple]`: name of the metric, value, low and high (`None` where there is no interval).
    """
    labels = np.array(draws[0][0]["label"])
    shown = [shown_labels(bursts, split) for split, bursts in draws]
    right = {name: stack(seeds) for name, seeds in runs.items()}
    right[OBSERVER] = np.stack(
        [
            [observe(logits, labels_shown, weights).argmax(-1) == labels for labels_shown in shown]
            for _, logits, _ in runs[WORDS].values()
        ]
    ).astype(float)
    words = right[WORDS]  # one draw, which represents all
    rows = [(f"{name}: accuracy", values.mean(), None, None) for name, values in right.items()]
    others = [name for name in right if name != WORDS]
    pairs = [(name, WORDS) for name in others] + [
        ("anchor", name) for name in others if name not in ("anchor", OBSERVER)
    ]
    for first, second in pairs:
        if first in right:
            rows.append((f"{first} - {second}", *interval(right[first] - right[second], arguments.resamples)))
    gain = right[OBSERVER].mean() - words.mean()
    for name in others:
        if name != OBSERVER:
            rows.append(
                (f"{name}: share of the observer's gain", (right[name].mean() - words.mean()) / gain, None, None)
            )
    for name, seeds in runs.items():
        if name == WORDS or not arguments.masked:
            continue
        rows += [(f"{name}: {view}", stack(seeds, view).mean(), None, None) for view in ALONE]
        for view in LACKING:
            rows.append((f"{name} {view} - {WORDS}", *interval(stack(seeds, view) - words, arguments.resamples)))
    for name, seeds in runs.items():
        tables = [metrics for *_, anchors in seeds.values() for metrics in anchors]
        for modality in tables[0]:
            for key in ("best_anchor", "all_anchors", "chance"):
                share = np.mean([metrics[modality][key] for metrics in tables])
                rows.append((f"{name}, {modality}: {key.replace('_', ' ')} in the burst", share, None, None))
    return rows


def write_tables(rows, runs, output_dir):
    """`fusions.csv` (accuracy of every model and draw) and `fusions.md`; returns the Markdown."""
    scores = [
        [name, seed, view, number, row.mean()]
        for name, seeds in runs.items()
        for seed, (right, *_) in seeds.items()
        for view, draws in right.items()
        for number, row in enumerate(draws)
    ]
    header = ["fusion", "seed", "modalities", "draw", "accuracy"]
    write_csv(os.path.join(output_dir, "fusions.csv"), header, scores)
    cells = [
        [name, f"{100 * value:.1f}", "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"]
        for name, value, low, high in rows
    ]
    text = markdown_table(["metric", "% or points", "95 % interval"], cells)
    write_text(os.path.join(output_dir, "fusions.md"), text)
    return text


def model_folders(path):
    """seed -> folder."""
    names = os.listdir(path) if os.path.isdir(path) else ()
    seeds = {int(name.removeprefix("seed-")): os.path.join(path, name) for name in names if name.startswith("seed-")}
    if not seeds:
        raise ValueError(f"{path} has no folder `seed-N`; train with `--seeds`")
    return dict(sorted(seeds.items()))


def main(arguments=None):
    parser = HfArgumentParser((FusionArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    logging.set_verbosity_warning()
    folders = {name: model_folders(path) for name, _, path in (model.partition("=") for model in arguments.models)}
    if WORDS not in folders:
        raise ValueError(f"`--models` has {', '.join(folders)}; give `{WORDS}=FOLDER` too, the text-only models")
    if len({tuple(seeds) for seeds in folders.values()}) > 1:
        seeds = {name: sorted(found) for name, found in folders.items()}
        raise ValueError(f"the fusions have different seeds: {seeds}; models are compared seed by seed")
    datasets = [
        (load_mintrec(folder, name=arguments.dataset_name), read_bursts(folder)) for folder in arguments.draw_dirs
    ]
    weights = reliability(datasets[0][1], datasets[0][0]["train"])
    draws = [(dataset[arguments.split], bursts) for dataset, bursts in datasets]
    runs = {
        name: {seed: score_model(folder, draws, arguments) for seed, folder in seeds.items()}
        for name, seeds in folders.items()
    }
    os.makedirs(arguments.output_dir, exist_ok=True)
    rows = compare(runs, draws, weights, arguments)
    sys.stdout.write(write_tables(rows, runs, arguments.output_dir))
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
