#!/usr/bin/env python3
"""
Intents taught by a few clips: accuracy by the number of clips shown, next to a logistic regression and to fine-tuning on the
same clips.

    python examples/experiments/shown_clips.py --data_dir path/to/MIntRec --text_model_name_or_path path/to/encoder \
        --model_name_or_path runs/fold-1,runs/fold-2,runs/fold-3,runs/fold-4 --output_dir runs/shown

The models are those of `open_world.py`. Each is shown clips of the intents that it was not trained on, drawn from the training
split, beside the shipped sentences, and chooses among all intents on dev. The logistic regression sees the same clips, and all
training clips of the other intents, as the untrained encoder embeds them; for `--fine_tuned_draws` of the draws, a new model is
trained on the same clips by the recipe. Draws are paired; the intervals are over models and draws. `--modalities audio` asks
what audio alone tells.
"""

import tempfile
from dataclasses import dataclass, field

import numpy as np
import torch
from open_world import untrained_model
from runner import DataArguments, labels_of, one_line_errors, paired_difference, parse, write_results
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from amess_hf import AMESSForIntentClassification, AMESSTrainer, AMESSTrainingArguments
from amess_hf.configuration_amess import MODALITIES
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.mintrec import load_mintrec
from amess_hf.descriptions_amess import describe_labels
from amess_hf.evaluation import predict_clips
from amess_hf.evaluation.metrics import generalized_accuracy
from amess_hf.evaluation.tables import percent


TAUGHT, REGRESSION, FINE_TUNED = "A-MESS", "logistic regression", "A-MESS, trained on them"
FIGURES = ("seen_accuracy", "unseen_accuracy", "harmonic_accuracy")


@dataclass(kw_only=True)
class ShownClipsArguments(DataArguments):
    """Which models, how many clips, how often drawn."""

    model_name_or_path: str = field(metadata={"help": "Saved models, separated by commas: one for each fold."})
    text_model_name_or_path: str = field(metadata={"help": "The pretrained text encoder that they were trained from."})
    shown_clips: str = field(default="0,1,4,16", metadata={"help": "Numbers of clips of each unseen intent."})
    draws: int = field(default=10, metadata={"help": "How often the clips are drawn."})
    fine_tuned_draws: int = field(default=0, metadata={"help": "For how many draws a new model is trained."})
    modalities: str = field(
        default=",".join(MODALITIES), metadata={"help": "What the models may see of a clip of dev."}
    )


def draw_clips(labels, unseen, count, draw):
    """label → rows of the training split; of two numbers of clips, the larger draw contains the smaller one."""
    rng = np.random.default_rng(draw)
    return {label: rng.permutation(np.flatnonzero(labels == label))[:count] for label in unseen}


def teach(folder, data, descriptions, shown, collator):
    """The model in `folder`, taught the described intents by clips `{label: rows}`."""
    model, names = AMESSForIntentClassification.from_pretrained(folder).eval(), list(descriptions)
    batches = {
        names[label]: [collator([{**data["train"][int(row)], "label": -100}]) for row in rows]
        for label, rows in shown.items()
    }
    examples = {
        name: [{key: value for key, value in batch.items() if key != "labels"} for batch in group]
        for name, group in batches.items()
    }
    model.set_label_descriptions(descriptions, collator.processor.tokenizer, examples)
    return model


def fine_tune(data, unseen, shown, own):
    """A new model, trained on all clips of the other intents and those that are shown."""
    rows = np.concatenate([np.flatnonzero(~np.isin(data["train"]["label"], unseen)), *shown.values()])
    model = AMESSForIntentClassification.from_text_pretrained(
        own.text_model_name_or_path, dataset=data["train"], label_descriptions=own.dataset_name
    )
    with tempfile.TemporaryDirectory() as folder:
        once = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        on_cpu = not torch.cuda.is_available()
        args = AMESSTrainingArguments(folder, bf16=True, use_cpu=on_cpu, disable_tqdm=True, **once)
        AMESSTrainer(model, args, train_dataset=data["train"].select(rows)).train()
    return model


def fit_regression(embeds, labels, unseen, shown):
    """A logistic regression on all clips of the other intents, and those that are shown."""
    rows = np.concatenate([np.flatnonzero(~np.isin(labels, unseen)), *shown.values()])
    model = LogisticRegression(C=10, max_iter=2000, class_weight="balanced")
    return model.fit(embeds["train"][rows], labels[rows]).predict(embeds["validation"])


def score_fold(folder, data, descriptions, embeds, own):
    """{(answer, clips shown): harmonic, seen and unseen accuracy of each draw, as rows of a list} of one model."""
    model = AMESSForIntentClassification.from_pretrained(folder)
    collator = AMESSDataCollator(AutoTokenizer.from_pretrained(folder), model.config)
    unseen = [index for index, label in enumerate(descriptions) if label not in model.config.label2id]
    labels, references = (np.array(data[name]["label"]) for name in ("train", "validation"))
    asked = data["validation"], collator, 64, own.modalities.split(",")
    scores = {}
    for count in map(int, own.shown_clips.split(",")):
        for draw in range(own.draws if count else 1):
            shown = draw_clips(labels, unseen, count, draw)
            taught = teach(folder, data, descriptions, shown, collator)
            answers = {TAUGHT: predict_clips(taught, *asked).predictions}
            if count:
                answers[REGRESSION] = fit_regression(embeds, labels, unseen, shown)
            if count and draw < own.fine_tuned_draws:
                answers[FINE_TUNED] = predict_clips(fine_tune(data, unseen, shown, own), *asked).predictions
            for name, predictions in answers.items():
                figures = generalized_accuracy(predictions, references, unseen)
                scores.setdefault((name, count), []).append([figures[figure] for figure in FIGURES])
    return scores


def gain(found, count):
    """Harmonic accuracy of the taught models over that of the regression, in points, with a 95 % interval over models and draws."""
    pairs = [
        dict(enumerate(draw[-1] for scores in found.values() for draw in scores[name, count]))
        for name in (TAUGHT, REGRESSION)
    ]
    mean, low, high = (100 * paired_difference(*pairs)[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def main(arguments=None):
    (own,) = parse([ShownClipsArguments], __doc__, arguments)
    data = load_mintrec(own.data_dir, name=own.dataset_name)
    labels = labels_of(data)
    descriptions = describe_labels(labels, own.dataset_name)
    untrained = untrained_model(own.text_model_name_or_path, labels, descriptions)
    collator = AMESSDataCollator(AutoTokenizer.from_pretrained(own.text_model_name_or_path), untrained.config)
    embeds = {
        name: predict_clips(untrained, data[name], collator, 64).multimodal_embeds for name in ("train", "validation")
    }
    folders = own.model_name_or_path.split(",")
    found = {folder: score_fold(folder, data, descriptions, embeds, own) for folder in folders}
    rows = [
        [folder, name, count, draw, figure, round(value, 6)]
        for folder, scores in found.items()
        for (name, count), draws in scores.items()
        for draw, values in enumerate(draws)
        for figure, value in zip(FIGURES, values, strict=True)
    ]
    cells = []
    for name, count in found[folders[0]]:
        values = np.array([scores[name, count] for scores in found.values()])  # (models, draws, figures)
        cell = [name, count, *(percent(share) for share in values.mean((0, 1)))]
        cells.append([*cell, gain(found, count) if name == TAUGHT and count else ""])
    header = [
        f"{len(folders)} model(s), {own.draws} draws",
        *"clips shown,seen,unseen,harmonic,over regression".split(","),
    ]
    columns = ["model", "answer", "clips", "draw", "figure", "value"]
    write_results(own.output_dir, "shown_clips", columns, rows, header, cells)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
