#!/usr/bin/env python3
"""
Test trained models on intents that they only have descriptions of, next to the untrained encoder.

    for k in 1 2 3 4; do python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --seed 0 \
        --hold_out_intents fold:$k/4 --config_overrides projection_dim=0 --text_model_name_or_path path/to/encoder \
        --output_dir runs/fold-$k --do_train --do_eval; done
    python examples/experiments/open_world.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path path/to/encoder --model_name_or_path runs/fold-1,runs/fold-2,runs/fold-3,runs/fold-4 \
        --output_dir runs/folds

Each model chooses among all intents of the data set, described by the shipped sentences, on the clips of dev. It is
scored unchanged, and with text encoders interpolated between the trained and the pretrained one
(`--pretrained_shares`); the untrained encoder answers by the descriptions alone. The data set may differ from the one
that the models were trained on (`--trained_on NAME=FOLDER`): clips whose text occurs in what they were trained on are
then left out. `--sentences` sets how many sentences describe each unseen intent.
"""

import os
from dataclasses import dataclass, field

import numpy as np
from runner import DataArguments, labels_of, one_line_errors, parse, split_pair, spread, words_of, write_results
from transformers import AutoTokenizer

from amess_hf import AMESSForIntentClassification
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.mintrec import load_mintrec
from amess_hf.descriptions_amess import describe_labels
from amess_hf.evaluation import predict_clips
from amess_hf.evaluation.metrics import generalized_accuracy
from amess_hf.training.weights import encoder_weights, mix_encoder_weights


FIGURES = ("accuracy", "seen_accuracy", "unseen_accuracy", "harmonic_accuracy")
UNTRAINED, CHANCE = "untrained", "chance"
BATCH_SIZE = 64


@dataclass(kw_only=True)
class OpenWorldArguments(DataArguments):
    """Which models, clips and descriptions."""

    model_name_or_path: str = field(metadata={"help": "Saved models, separated by commas: one for each fold."})
    text_model_name_or_path: str = field(metadata={"help": "The pretrained text encoder that they were trained from."})
    trained_on: str | None = field(
        default=None, metadata={"help": "NAME=FOLDER of another data set that the models were trained on."}
    )
    pretrained_shares: str = field(
        default="0,0.5", metadata={"help": "Shares of the pretrained text encoder, separated by commas."}
    )
    sentences: int | None = field(
        default=None,
        metadata={"help": "Sentences that describe an intent which a model was not trained on; all if not given."},
    )


def clips_to_score(own):
    """The dev split, without the clips whose text occurs in what the models were trained on."""
    split = load_mintrec(own.data_dir, name=own.dataset_name)["validation"]
    if own.trained_on is None:
        return split
    name, folder = split_pair("trained_on", own.trained_on)
    known = {words_of(text) for text in load_mintrec(folder, name=name)["train"]["text"]}
    return split.select([row for row, text in enumerate(split["text"]) if words_of(text) not in known])


def untrained_model(encoder, labels, descriptions):
    """The encoder as it was pretrained, which answers by the descriptions alone."""
    model = AMESSForIntentClassification.from_text_pretrained(
        encoder, labels=labels, fusion_type="text", projection_dim=0
    )
    model.config.described_labels = list(labels)
    model.set_label_descriptions(descriptions, AutoTokenizer.from_pretrained(encoder))
    return model.eval()


def figures_of(model, tokenizer, split, unseen, own, description):
    """Accuracy, and if there are clips of both kinds, that of seen and unseen intents and their harmonic mean."""
    collator = AMESSDataCollator(tokenizer, model.config)
    predictions = predict_clips(model, split, collator, BATCH_SIZE, description=description).predictions
    references = np.array(split["label"])
    figures = {"accuracy": float((predictions == references).mean())}
    if 0 < np.isin(references, unseen).sum() < len(references):
        figures |= generalized_accuracy(predictions, references, unseen)
    return figures


def score_fold(folder, split, descriptions, untrained, pretrained, own):
    """{row of the table: metrics} of one model: for each share balanced and not, and of the untrained encoder."""
    rows, tokenizer = {}, AutoTokenizer.from_pretrained(folder)
    for share in (float(share) for share in own.pretrained_shares.split(",")):
        model = AMESSForIntentClassification.from_pretrained(folder).eval()
        known = set(model.config.label2id)
        unseen = [index for index, label in enumerate(descriptions) if label not in known]
        mix_encoder_weights(model, pretrained, share)
        given = {name: texts if name in known else texts[: own.sentences] for name, texts in descriptions.items()}
        model.set_label_descriptions(given, tokenizer)
        name = f"pretrained share {share:g}"
        rows[name] = figures_of(model, tokenizer, split, unseen, own, f"{folder} {share}")
        model.config.described_offset = 0.0
        rows[f"{name}, not balanced"] = figures_of(model, tokenizer, split, unseen, own, f"{folder} {share}")
    tokenizer = AutoTokenizer.from_pretrained(own.text_model_name_or_path)
    rows[UNTRAINED] = figures_of(untrained, tokenizer, split, unseen, own, UNTRAINED)
    return rows | {CHANCE: dict.fromkeys(rows[UNTRAINED], 1 / len(descriptions))}


def write_tables(table, clips, folder):
    """`open_world.csv` (every model) and `open_world.md` (means and deviations over the models); returns the Markdown."""
    rows = [
        [os.path.basename(model), name, metric, round(value, 6)]
        for model, answers in table.items()
        for name, metrics in answers.items()
        for metric, value in metrics.items()
    ]
    answers = next(iter(table.values()))
    found = [figure for figure in FIGURES if figure in answers[UNTRAINED]]
    cells = [
        [name, *(spread([rows[name][figure] for rows in table.values()]) for figure in found)] for name in answers
    ]
    header = [f"{len(table)} model(s), {clips} clips", *(name.replace("_", " ") for name in found)]
    return write_results(folder, "open_world", ["model", "answer", "figure", "value"], rows, header, cells)


def main(arguments=None):
    (own,) = parse([OpenWorldArguments], __doc__, arguments)
    split = clips_to_score(own)
    labels = labels_of({"validation": split})
    descriptions = describe_labels(labels, own.dataset_name)
    given = {name: texts[: own.sentences] for name, texts in descriptions.items()}
    untrained = untrained_model(own.text_model_name_or_path, labels, given)
    pretrained = encoder_weights(untrained)
    table = {
        folder: score_fold(folder, split, descriptions, untrained, pretrained, own)
        for folder in own.model_name_or_path.split(",")
    }
    write_tables(table, len(split), own.output_dir)
    return table


if __name__ == "__main__":
    with one_line_errors():
        main()
