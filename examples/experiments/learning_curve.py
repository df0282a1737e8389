#!/usr/bin/env python3
"""
Accuracy on dev by the number of training clips of each intent: A-MESS with semantic synchronization, A-MESS without it,
and logistic regression on the embeddings of the same text encoder, frozen.

    python examples/experiments/learning_curve.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/learning_curve --seeds 0,1,2

Takes the arguments of run_mir.py. Each run has its own folder; one that has its metrics is not run again. Writes
learning_curve.csv, learning_curve.md and learning_curve.png.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from ablate import NO_SS
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from transformers import AutoModel, HfArgumentParser

from amess_hf import AMESSTrainingArguments
from amess_hf.data.combining import few_clips
from amess_hf.evaluation.aggregation import aggregate_runs, format_spread
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.fusion_amess import masked_mean
from amess_hf.processing_amess import encode_texts, write_text


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import DataArguments, ModelArguments, load_clips, load_tokenizer, one_line_errors, run_for_each_seed
from progress import hide_progress_bars
from run_mir import run


WITH_SS, WITHOUT_SS, REGRESSION = "A-MESS", "A-MESS without SS", "logistic regression, frozen encoder"


@dataclass
class CurveArguments:
    """Points of the curve."""

    clips_per_intent: str = field(
        default="1,4,16", metadata={"help": "Training clips of each intent, separated by commas."}
    )
    curve_steps: int = field(default=250, metadata={"help": "Training steps of each run, however few the clips."})


@torch.no_grad()
def sentence_embeddings(encoder, tokenizer, texts, batch_size=64):
    """Mean token states of `texts` (list of str) from a frozen text encoder, as an array (texts, width)."""
    embeds = []
    for first in range(0, len(texts), batch_size):
        batch = encode_texts(tokenizer, texts[first : first + batch_size], max_length=128)
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        embeds.append(masked_mean(states, batch["attention_mask"].bool()).numpy())
    return np.concatenate(embeds)


def regression_accuracies(model_args, data_args, counts, seeds):
    """Clips per intent → seed → accuracy on dev of logistic regression, on the models' training clips."""
    dataset = load_clips(data_args, seed=0)
    tokenizer = load_tokenizer(model_args)
    encoder = AutoModel.from_pretrained(model_args.text_model_name_or_path).eval()
    train, dev = dataset["train"], dataset["validation"]
    dev_embeds = sentence_embeddings(encoder, tokenizer, dev["text"][:])
    by_id = dict(zip(train["id"], sentence_embeddings(encoder, tokenizer, train["text"][:]), strict=True))
    accuracies = {}
    for count in counts:
        accuracies[count] = {}
        for seed in seeds:
            clips = few_clips(train, count, seed)
            model = make_pipeline(Normalizer(), LogisticRegression(max_iter=2000))
            model.fit(np.stack([by_id[clip] for clip in clips["id"]]), clips["label"][:])
            accuracies[count][seed] = float(model.score(dev_embeds, dev["label"][:]))
    return accuracies


def model_accuracies(model_args, data_args, training_args, folder, counts):
    """Clips per intent → seed → accuracy on dev of trained models."""
    accuracies = {}
    for count in counts:
        few = replace(data_args, train_clips_per_intent=count)
        runs = run_for_each_seed(
            run, model_args, few, training_args, output_dir=os.path.join(folder, f"clips-{count}")
        )
        accuracies[count] = {seed: figures["eval_accuracy"] for seed, figures in runs.items()}
    return accuracies


def write_tables(curves, output_dir):
    """`learning_curve.csv` (every run) and `learning_curve.md`; returns the Markdown."""
    counts = sorted({count for curve in curves.values() for count in curve})
    runs = [
        [name, count, seed, share]
        for name, curve in curves.items()
        for count in counts
        for seed, share in curve[count].items()
    ]
    header = ["model", "clips_per_intent", "seed", "eval_accuracy"]
    write_csv(os.path.join(output_dir, "learning_curve.csv"), header, runs)
    rows = []
    for count in counts:
        points = [{seed: {"accuracy": share} for seed, share in curve[count].items()} for curve in curves.values()]
        rows.append([count, *(format_spread(aggregate_runs(point)["accuracy"]) for point in points)])
    text = markdown_table(["clips of each intent", *curves], rows, left=())
    write_text(os.path.join(output_dir, "learning_curve.md"), text)
    return text


def main():
    from amess_hf.evaluation.plots import plot_learning_curve, save_figure

    parser = HfArgumentParser(
        (CurveArguments, ModelArguments, DataArguments, AMESSTrainingArguments), description=__doc__
    )
    curve_args, model_args, data_args, training_args = parser.parse_args_into_dataclasses()
    if training_args.disable_tqdm:
        hide_progress_bars()
    if data_args.seeds is None:
        raise ValueError("give `--seeds`, e.g. `--seeds 0,1,2`: which clips are drawn matters most")
    training_args.do_train = training_args.do_eval = True
    # Nothing is selected on dev here: every run has the same number of steps and is scored once, at its end.
    training_args.max_steps = curve_args.curve_steps
    training_args.eval_strategy = training_args.save_strategy = "no"
    training_args.load_best_model_at_end = False
    counts = [int(count) for count in curve_args.clips_per_intent.split(",")]
    folder = training_args.output_dir
    without_ss = replace(model_args, **NO_SS)
    curves = {
        WITH_SS: model_accuracies(model_args, data_args, training_args, os.path.join(folder, "with-SS"), counts),
        WITHOUT_SS: model_accuracies(without_ss, data_args, training_args, os.path.join(folder, "without-SS"), counts),
        REGRESSION: regression_accuracies(
            model_args, data_args, counts, [int(seed) for seed in data_args.seeds.split(",")]
        ),
    }
    sys.stdout.write(write_tables(curves, folder))
    shares = {name: {n: list(runs.values()) for n, runs in curve.items()} for name, curve in curves.items()}
    save_figure(plot_learning_curve(shares, "accuracy on dev (%)"), os.path.join(folder, "learning_curve.png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
