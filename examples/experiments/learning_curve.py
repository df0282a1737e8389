#!/usr/bin/env python3
"""
Accuracy on dev by the number of training clips of each intent: A-MESS with semantic synchronization, A-MESS without it,
and logistic regression on the embeddings of the same text encoder, frozen.

    python examples/experiments/learning_curve.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/learning_curve --seeds 0,1,2

Takes the arguments of run_mir.py. Each run has its own folder; one that has its metrics is not run again. Nothing is selected
on dev: every run has the same number of steps and is scored once, at its end. Writes learning_curve.csv, .md and .png.
"""

import os
from dataclasses import dataclass, field

import numpy as np
import torch
from runner import RunArguments, few_clips, one_line_errors, parse, seed_list, spread, train, write_results
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from transformers import AutoModel, AutoTokenizer

from amess_hf.data.dataset_files import NO_FEATURES
from amess_hf.data.mintrec import load_mintrec
from amess_hf.evaluation.plots import plot_learning_curve, save_figure
from amess_hf.processing_amess import encode_texts


WITH_SS, WITHOUT_SS, REGRESSION = "A-MESS", "A-MESS without SS", "logistic regression, frozen encoder"
# Semantic synchronization off: untrained similarities are ignored in the answer too.
NO_SS = {
    "label_triplet_loss_weight": 0.0,
    "label_contrastive_loss_weight": 0.0,
    "batch_triplet_loss_weight": 0.0,
    "label_similarity_weight": 0.0,
}


@dataclass
class CurveArguments:
    """Points of the curve."""

    text_model_name_or_path: str = field(metadata={"help": "The pretrained text encoder."})
    clips_per_intent: str = field(default="1,4,16", metadata={"help": "Training clips of each intent."})
    curve_steps: int = field(default=250, metadata={"help": "Training steps of each run, however few the clips."})


@torch.no_grad()
def sentence_embeddings(encoder, tokenizer, texts, batch_size=64):
    """Mean token states of `texts` from a frozen text encoder, (texts, width)."""
    embeds = []
    for first in range(0, len(texts), batch_size):
        batch = encode_texts(tokenizer, list(texts[first : first + batch_size]), max_length=128)
        mask = batch["attention_mask"].unsqueeze(-1)
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        embeds.append(((states * mask).sum(1) / mask.sum(1)).numpy())
    return np.concatenate(embeds)


def regression_curve(run_args, encoder_name, counts):
    """Clips per intent → seed → accuracy on dev of logistic regression, on the models' training clips."""
    nothing = {"audio_features": NO_FEATURES, "video_features": NO_FEATURES}
    dataset = load_mintrec(run_args.data_dir, name=run_args.dataset_name, **nothing)
    train_split, dev = dataset["train"], dataset["validation"]
    encoder, tokenizer = AutoModel.from_pretrained(encoder_name).eval(), AutoTokenizer.from_pretrained(encoder_name)
    dev_embeds = sentence_embeddings(encoder, tokenizer, dev["text"])
    by_id = dict(zip(train_split["id"], sentence_embeddings(encoder, tokenizer, train_split["text"]), strict=True))
    accuracies = {count: {} for count in counts}
    for count in counts:
        for seed in seed_list(run_args):
            clips = few_clips(train_split, count, seed)
            model = make_pipeline(Normalizer(), LogisticRegression(max_iter=2000))
            model.fit(np.stack([by_id[clip] for clip in clips["id"]]), clips["label"][:])
            accuracies[count][seed] = float(model.score(dev_embeds, dev["label"][:]))
    return accuracies


def model_curve(run_args, rest, name, config, counts, **options):
    """Clips per intent → seed → accuracy on dev of trained models."""
    curve = {}
    for count in counts:
        folder = os.path.join(run_args.output_dir, name, f"clips-{count}")
        runs = train(run_args, rest, folder, config, train_clips_per_intent=count, **options)
        curve[count] = {seed: metrics["eval_accuracy"] for seed, metrics in runs.items()}
    return curve


def write_tables(curves, folder):
    """`learning_curve.csv` (every run) and `learning_curve.md`; returns the Markdown."""
    counts = sorted({count for curve in curves.values() for count in curve})
    runs = [
        [name, count, seed, share]
        for name, curve in curves.items()
        for count in counts
        for seed, share in curve[count].items()
    ]
    rows = [[count, *(spread([*curve[count].values()]) for curve in curves.values())] for count in counts]
    header = ["model", "clips_per_intent", "seed", "eval_accuracy"]
    return write_results(folder, "learning_curve", header, runs, ["clips of each intent", *curves], rows, left=())


def main(arguments=None):
    run_args, own, rest = parse([RunArguments, CurveArguments], __doc__, arguments, is_run=True)
    counts = [int(count) for count in own.clips_per_intent.split(",")]
    options = {"text_model_name_or_path": own.text_model_name_or_path, "max_steps": own.curve_steps}
    curves = {
        WITH_SS: model_curve(run_args, rest, "with-SS", {}, counts, **options),
        WITHOUT_SS: model_curve(run_args, rest, "without-SS", NO_SS, counts, **options),
        REGRESSION: regression_curve(run_args, own.text_model_name_or_path, counts),
    }
    write_tables(curves, run_args.output_dir)
    shares = {name: {n: list(runs.values()) for n, runs in curve.items()} for name, curve in curves.items()}
    figure = plot_learning_curve(shares, "accuracy on dev (%)")
    save_figure(figure, os.path.join(run_args.output_dir, "learning_curve.png"))
    return curves


if __name__ == "__main__":
    with one_line_errors():
        main()
