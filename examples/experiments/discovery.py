#!/usr/bin/env python3
"""
Discovery of intents: groups of dev clips against their labels, next to k-means on the untrained encoder.

    python examples/experiments/discovery.py --data_dir path/to/MIntRec --text_model_name_or_path path/to/encoder \
        --model_name_or_path runs/fold-1,runs/fold-2,runs/fold-3,runs/fold-4 --output_dir runs/discovery

Without labels: all intents, from the untrained encoder. With the models of `open_world.py`: the clips of the intents that each
was not trained on, and all clips. Groups are made of the clips of train and dev together, whose labels are not used, and scored
on dev: accuracy (the best assignment of groups to intents), NMI and ARI, in their right number, ten seeds. The baseline is k-means
on the mean state of the encoder's last layer, of dev alone (as published ones do on the split that they score) and of both splits.
"""

from dataclasses import dataclass, field

import numpy as np
from open_world import untrained_model
from runner import DataArguments, labels_of, one_line_errors, parse, write_results
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from transformers import AutoTokenizer, pipeline

from amess_hf import IntentRecognitionPipeline
from amess_hf.data.mintrec import load_mintrec
from amess_hf.descriptions_amess import describe_labels
from amess_hf.discovery import assign_groups, embed_clips, reduce_embeds
from amess_hf.evaluation.tables import percent


FIGURES = ("accuracy", "NMI", "ARI")


@dataclass(kw_only=True)
class DiscoveryArguments(DataArguments):
    """Which models, how many seeds."""

    text_model_name_or_path: str = field(metadata={"help": "The pretrained text encoder."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Saved models, separated by commas: one for each fold."}
    )
    num_seeds: int = field(default=10, metadata={"help": "Seeds of k-means."})


def agreement(labels, groups):
    """Accuracy with the best assignment of groups to labels, NMI, ARI."""
    counts = confusion_matrix(np.unique(labels, return_inverse=True)[1], groups)
    right = counts[linear_sum_assignment(-counts)].sum() / len(labels)
    return right, normalized_mutual_info_score(labels, groups), adjusted_rand_score(labels, groups)


def plain_groups(embeds, number, seed):
    return KMeans(number, n_init=10, random_state=seed).fit_predict(embeds)


def compare(embeds, last_layer, labels, is_dev, seeds):
    """{answer: figures of each seed} of clips of train and dev, scored on dev."""
    points, number, scored = reduce_embeds(embeds), len(np.unique(labels)), labels[is_dev]
    answers = {
        "discover_intents": lambda seed: assign_groups(points, number, seed)[is_dev],
        "k-means, train and dev": lambda seed: plain_groups(last_layer, number, seed)[is_dev],
        "k-means, dev": lambda seed: plain_groups(last_layer[is_dev], number, seed),
    }
    return {name: [agreement(scored, groups(seed)) for seed in range(seeds)] for name, groups in answers.items()}


def main(arguments=None):
    (own,) = parse([DiscoveryArguments], __doc__, arguments)
    data = load_mintrec(own.data_dir, name=own.dataset_name)
    names = labels_of(data)
    texts = [{"text": text} for split in ("train", "validation") for text in data[split]["text"]]
    labels = np.concatenate([data[split]["label"] for split in ("train", "validation")])
    is_dev = np.arange(len(labels)) >= len(data["train"])
    untrained = untrained_model(own.text_model_name_or_path, names, describe_labels(names, own.dataset_name))
    tokenizer = AutoTokenizer.from_pretrained(own.text_model_name_or_path)
    embeds = embed_clips(IntentRecognitionPipeline(untrained, tokenizer), texts).embeds
    last = embeds[:, : untrained.config.embedding_dim]
    found = {"without labels, all intents": compare(embeds, last, labels, is_dev, own.num_seeds)}
    for folder in own.model_name_or_path.split(",") if own.model_name_or_path else ():
        pipe = pipeline("intent-recognition", folder)
        embeds = embed_clips(pipe, texts).embeds
        unseen = np.isin(labels, [index for index, name in enumerate(names) if name not in pipe.model.config.label2id])
        found[f"{folder}: unseen"] = compare(
            embeds[unseen], last[unseen], labels[unseen], is_dev[unseen], own.num_seeds
        )
        found[f"{folder}: all"] = compare(embeds, last, labels, is_dev, own.num_seeds)
    rows = [
        [task, answer, seed, figure, round(float(value), 6)]
        for task, answers in found.items()
        for answer, seeds in answers.items()
        for seed, values in enumerate(seeds)
        for figure, value in zip(FIGURES, values, strict=True)
    ]
    cells = []
    for kind in dict.fromkeys(task.split(": ")[-1] for task in found):
        for answer in next(iter(found.values())):
            means = np.mean([found[task][answer] for task in found if task.endswith(kind)], axis=(0, 1))
            cells.append([kind, answer, *map(percent, means)])
    header, columns = [f"{own.num_seeds} seeds", "groups", *FIGURES], ["task", "groups", "seed", "figure", "value"]
    write_results(own.output_dir, "discovery", columns, rows, header, cells, (0, 1))
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
