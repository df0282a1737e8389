#!/usr/bin/env python3
"""
Compare fusions on simulated features, where it is known what audio and video show, and when.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/world --config_overrides fusion_type=anchor --seeds 0,1,2,3,4 \
        --text_model_name_or_path bert-base-uncased --output_dir runs/anchor --do_train --do_eval   # also late and text
    python examples/experiments/compare_fusions.py --models anchor=runs/anchor late=runs/late text=runs/text \
        --draw_dirs path/to/world-draw-1 path/to/world-draw-2 ... --output_dir runs/fusions

Each folder of `--draw_dirs` holds MIntRec's tables with other features of the same world, and `bursts.tsv` (id, modality, first,
end, frames, label): in which frames a clip's audio or video shows an intent, and which. All models are scored on all draws,
and compared clip by clip, so that what the text contributes cancels. Intervals are those of the differences when seeds, draws
and clips are drawn again, each by itself (the pigeonhole bootstrap, Owen, Annals of Applied Statistics 2007).

The observer knows the bursts: to the log-probabilities of the text alone it adds, for the intent that is shown, the
log likelihood ratio of its being shown when it is the correct intent and when another one is. Its accuracy is a bound
for every fusion.
"""

import os
from dataclasses import dataclass, field

import numpy as np
import pandas
from runner import load_model, model_folders, one_line_errors, parse, split_pair, write_results

from amess_hf.configuration_amess import FEATURE_MODALITIES, MODALITIES
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation import compute_anchor_metrics, predict_clips, read_evidence_spans


BATCH_SIZE = 64
TEXT, OBSERVER = "text", "observer"
ALONE = {"audio alone": ("audio",), "video alone": ("video",)}
LACKING = {"without video": ("text", "audio"), "without audio": ("text", "video"), "without both": ("text",)}


@dataclass
class FusionArguments:
    """Which models and draws."""

    models: list[str] = field(
        metadata={
            "help": "name=FOLDER of each fusion, `text` (text alone) among them; FOLDER has a `seed-N` for each."
        }
    )
    draw_dirs: list[str] = field(
        metadata={"help": "Folders with other features of the world that the models were trained on."}
    )
    output_dir: str = field(metadata={"help": "Folder for the tables."})
    dataset_name: str = field(default="mintrec", metadata={"help": "mintrec or mintrec2.0."})
    split: str = field(default="validation", metadata={"help": "Split to score."})
    resamples: int = field(default=2000, metadata={"help": "Of the bootstrap."})


def shown_labels(folder, split):
    """modality → label id that each clip of `split` shows, (clips,), from `bursts.tsv`."""
    table = pandas.read_csv(os.path.join(folder, "bursts.tsv"), sep="\t", dtype=str, quoting=3)
    ids = {name.casefold(): index for index, name in enumerate(split.features["label"].names)}
    label_of = {(row.modality, row.id): ids[row.label.casefold()] for row in table.itertuples()}
    return {name: np.array([label_of[name, clip] for clip in split["id"]]) for name in FEATURE_MODALITIES}


def reliability(folder, split):
    """modality → log likelihood ratio of an intent being shown when it is correct, from the clips of `split`."""
    num_labels, labels = len(split.features["label"].names), np.array(split["label"])
    shares = {name: (shown == labels).mean() for name, shown in shown_labels(folder, split).items()}
    return {name: np.log(share * (num_labels - 1) / (1 - share)) for name, share in shares.items()}


def observe(logits, shown, weights):
    """The observer's scores: `logits` (clips, num_labels) of the text, and `weights` where an intent is shown."""
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    for name, labels in shown.items():
        scores[np.arange(len(labels)), labels] += weights[name]
    return scores


def score_model(folder, draws, own):
    """
    Score one model on `draws` (folder → split).

    Returns:
        `tuple`: whether each answer is correct `{kept modalities: (draws, clips)}`, the logits (clips, num_labels) of
        the last draw, and for each draw a dict of anchor metrics (empty where the model has no anchors).
    """
    model, collator = load_model(folder)
    is_text = model.config.fusion_type == "text"
    views = {"all": MODALITIES} | (ALONE | LACKING if not is_text else {})
    right, anchors = {name: [] for name in views}, []
    for draw in list(draws)[: 1 if is_text else None]:  # the text is the same in every draw
        for name, kept in views.items():
            if name == "without both" and right[name]:
                continue
            outputs = predict_clips(model, draws[draw], collator, BATCH_SIZE, kept, description=name)
            right[name].append(outputs.predictions == outputs.labels)
            if name == "all":
                logits, spans = outputs.logits, read_evidence_spans(os.path.join(draw, "bursts.tsv"))
                anchors.append({} if outputs.anchor_indices is None else compute_anchor_metrics(outputs, spans))
    return {name: np.stack(values) for name, values in right.items()}, logits, anchors


def interval(values, resamples):
    """Mean of `values` (seeds, draws, clips), and low and high end of its 95 % interval when all three are drawn again."""
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


def compare(runs, draws, weights, own):
    """The rows of the table: name of the metric, value, and where there is an interval its ends."""
    right = {name: stack(seeds) for name, seeds in runs.items()}
    right[OBSERVER] = observed(runs[TEXT], draws, weights)
    text, others = right[TEXT], [name for name in right if name != TEXT]
    rows = [(f"{name}: accuracy", values.mean()) for name, values in right.items()]
    pairs = [(name, TEXT) for name in others]
    pairs += [("anchor", name) for name in others if "anchor" in right and name not in ("anchor", OBSERVER)]
    rows += [
        (f"{first} - {second}", *interval(right[first] - right[second], own.resamples)) for first, second in pairs
    ]
    gain = right[OBSERVER].mean() - text.mean()
    rows += [
        (f"{name}: share of the observer's gain", (right[name].mean() - text.mean()) / gain)
        for name in others
        if name != OBSERVER
    ]
    for name, seeds in runs.items():
        if name != TEXT:
            rows += [(f"{name}: {view}", stack(seeds, view).mean()) for view in ALONE]
            rows += [
                (f"{name} {view} - {TEXT}", *interval(stack(seeds, view) - text, own.resamples)) for view in LACKING
            ]
    return rows + anchor_rows(runs)


def observed(runs, draws, weights):
    """Correct answers of the observer, (seeds, draws, clips)."""
    shown = [(shown_labels(folder, split), np.array(split["label"])) for folder, split in draws.items()]
    answers = [
        [observe(logits, seen, weights).argmax(-1) == labels for seen, labels in shown]
        for _, logits, _ in runs.values()
    ]
    return np.array(answers, dtype=float)


def anchor_rows(runs):
    """How often anchors lie in the burst, of each fusion that has anchors."""
    rows = []
    for name, seeds in runs.items():
        tables = [metrics for *_, anchors in seeds.values() for metrics in anchors]
        for modality in tables[0]:
            for key in ("best_anchor", "all_anchors", "chance"):
                share = np.mean([metrics[modality][key] for metrics in tables])
                rows.append((f"{name}, {modality}: {key.replace('_', ' ')} in the burst", share))
    return rows


def write_tables(rows, runs, folder):
    """`fusions.csv` (accuracy of every model and draw) and `fusions.md`; returns the Markdown."""
    scores = [
        [name, seed, view, number, row.mean()]
        for name, seeds in runs.items()
        for seed, (right, *_) in seeds.items()
        for view, draws in right.items()
        for number, row in enumerate(draws)
    ]
    cells = [
        [name, f"{100 * value:.1f}", " to ".join(f"{100 * bound:.1f}" for bound in bounds)]
        for name, value, *bounds in rows
    ]
    header = ["fusion", "seed", "modalities", "draw", "accuracy"]
    return write_results(folder, "fusions", header, scores, ["metric", "% or points", "95 % interval"], cells)


def main(arguments=None):
    (own,) = parse([FusionArguments], __doc__, arguments)
    folders = {name: model_folders(path) for name, path in (split_pair("models", model) for model in own.models)}
    if TEXT not in folders:
        raise ValueError(f"`--models` has {', '.join(folders)}; give `{TEXT}=FOLDER` too, the text-only models")
    if len({tuple(seeds) for seeds in folders.values()}) > 1:
        seeds = {name: sorted(found) for name, found in folders.items()}
        raise ValueError(f"the fusions have different seeds: {seeds}; models are compared seed by seed")
    datasets = {folder: load_mintrec(folder, name=own.dataset_name) for folder in own.draw_dirs}
    first = own.draw_dirs[0]
    weights = reliability(first, datasets[first]["train"])
    draws = {folder: dataset[own.split] for folder, dataset in datasets.items()}
    runs = {
        name: {seed: score_model(folder, draws, own) for seed, folder in seeds.items()}
        for name, seeds in folders.items()
    }
    rows = compare(runs, draws, weights, own)
    write_tables(rows, runs, own.output_dir)
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
