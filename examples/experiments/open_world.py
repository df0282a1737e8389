#!/usr/bin/env python3
"""
Test trained models on intents that they only have descriptions of, next to the untrained encoder.

    for k in 1 2 3 4; do python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec --seed 0 \
        --hold_out_intents fold:$k/4 --projection_dim 0 --text_model_name_or_path path/to/encoder \
        --output_dir runs/fold-$k --do_train --do_eval; done
    python examples/experiments/open_world.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path path/to/encoder --model_name_or_path runs/fold-1,runs/fold-2,runs/fold-3,runs/fold-4 \
        --output_dir runs/folds

Each model chooses among all intents of the data set, described by the shipped sentences, on the clips of dev. It is
scored unchanged, and with text encoders interpolated between the trained and the pretrained one
(`--pretrained_shares`); the untrained encoder answers by the descriptions alone. The data set may differ from the one
that the models were trained on (`--trained_on NAME=FOLDER`): clips whose words occur in what they were trained on are
then left out. `--sentences` sets how many sentences describe each unseen intent.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from amess_hf import AMESSForIntentClassification
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.data.combining import labels_of, words_of
from amess_hf.data.mintrec import load_mintrec
from amess_hf.descriptions_amess import describe_labels
from amess_hf.evaluation import predict_clips
from amess_hf.evaluation.metrics import generalized_accuracy
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text
from amess_hf.training.weight_averaging import encoder_weights, mix_encoder_weights


sys.path.append(str(Path(__file__).parents[1]))

from mir_common import one_line_errors
from progress import ProgressArguments, hide_progress_bars


FIGURES = ("accuracy", "seen_accuracy", "unseen_accuracy", "harmonic_accuracy")
UNTRAINED = "untrained"
CHANCE = "chance"


@dataclass
class OpenWorldArguments:
    """Which models, clips and descriptions."""

    model_name_or_path: str = field(metadata={"help": "Saved models, separated by commas: one for each fold."})
    text_model_name_or_path: str = field(metadata={"help": "The pretrained text encoder that they were trained from."})
    data_dir: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for the tables."})
    dataset_name: str = field(default="mintrec", metadata={"help": "mintrec or mintrec2.0."})
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
    batch_size: int = field(default=64, metadata={"help": "Clips at a time."})


def clips_to_score(arguments):
    """The dev split, without the clips whose words occur in what the models were trained on."""
    split = load_mintrec(arguments.data_dir, name=arguments.dataset_name)["validation"]
    if arguments.trained_on is None:
        return split
    name, separator, folder = arguments.trained_on.partition("=")
    if not separator:
        raise ValueError(
            f"`--trained_on` is {arguments.trained_on!r}; give NAME=FOLDER, as mintrec2.0=path/to/MIntRec2.0"
        )
    known = {words_of(text) for text in load_mintrec(folder, name=name)["train"]["text"]}
    return split.select([row for row, text in enumerate(split["text"]) if words_of(text) not in known])


def untrained_model(arguments, labels, descriptions):
    """The encoder as it was pretrained, which answers by the descriptions alone."""
    model = AMESSForIntentClassification.from_text_pretrained(
        arguments.text_model_name_or_path, labels=labels, fusion_type="text", projection_dim=0
    )
    model.config.described_labels = list(labels)
    model.set_label_descriptions(descriptions, AutoTokenizer.from_pretrained(arguments.text_model_name_or_path))
    return model.eval()


def figures_of(predictions, references, unseen):
    """Accuracy, and if there are clips of both kinds, that of seen and unseen intents and their harmonic mean."""
    figures = {"accuracy": float((predictions == references).mean())}
    if 0 < np.isin(references, unseen).sum() < len(references):
        figures |= generalized_accuracy(predictions, references, unseen)
    return figures


def score_fold(folder, split, descriptions, pretrained, arguments):
    """{row of the table: metrics} of one model: for each share, and for each kind of clips of the untrained encoder."""
    labels, references = list(descriptions), np.array(split["label"])
    rows = {}
    for share in (float(share) for share in arguments.pretrained_shares.split(",")):
        model = AMESSForIntentClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        known = set(model.config.label2id)
        unseen = [index for index, label in enumerate(labels) if label not in known]
        mix_encoder_weights(model, pretrained, share)
        given = {
            name: texts if name in known else texts[: arguments.sentences] for name, texts in descriptions.items()
        }
        model.set_label_descriptions(given, tokenizer)
        collator = AMESSDataCollator(tokenizer, model.config)
        outputs = predict_clips(model, split, collator, arguments.batch_size, description=f"{folder} {share}")
        rows[f"pretrained share {share:g}"] = figures_of(outputs.predictions, references, unseen)
        model.config.described_offset = 0.0
        outputs = predict_clips(model, split, collator, arguments.batch_size, description=f"{folder} {share}")
        rows[f"pretrained share {share:g}, not balanced"] = figures_of(outputs.predictions, references, unseen)
    return rows, unseen


def main(arguments=None):
    parser = HfArgumentParser((OpenWorldArguments, ProgressArguments), description=__doc__)
    arguments, progress = parser.parse_args_into_dataclasses(arguments)
    if progress.disable_tqdm:
        hide_progress_bars()
    logging.set_verbosity_error()
    split = clips_to_score(arguments)
    labels = labels_of({"validation": split})
    descriptions = describe_labels(labels, arguments.dataset_name)
    references = np.array(split["label"])
    given = {name: texts[: arguments.sentences] for name, texts in descriptions.items()}
    model = untrained_model(arguments, labels, given)
    pretrained = encoder_weights(model)
    collator = AMESSDataCollator(AutoTokenizer.from_pretrained(arguments.text_model_name_or_path), model.config)
    untrained = predict_clips(model, split, collator, arguments.batch_size, description=UNTRAINED).predictions
    table = {}
    for folder in arguments.model_name_or_path.split(","):
        rows, unseen = score_fold(folder, split, descriptions, pretrained, arguments)
        rows[UNTRAINED] = figures_of(untrained, references, unseen)
        rows[CHANCE] = dict.fromkeys(rows[UNTRAINED], 1 / len(labels))
        table[folder] = rows
    write_tables(table, len(split), arguments.output_dir)
    return table


def write_tables(table, clips, output_dir):
    """`open_world.csv` (every model) and `open_world.md` (means and deviations over the models)."""
    os.makedirs(output_dir, exist_ok=True)
    rows = [
        [os.path.basename(folder), name, metric, round(value, 6)]
        for folder, answers in table.items()
        for name, metrics in answers.items()
        for metric, value in metrics.items()
    ]
    write_csv(os.path.join(output_dir, "open_world.csv"), ["model", "answer", "figure", "value"], rows)
    answers = next(iter(table.values()))
    found = [figure for figure in FIGURES if figure in next(iter(answers.values()))]
    cells = []
    for name in answers:
        numbers = []
        for figure in found:
            values = [100 * rows[name][figure] for rows in table.values()]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            numbers.append(f"{np.mean(values):.1f}{spread}")
        cells.append([name, *numbers])
    header = [f"{len(table)} model(s), {clips} clips", *(name.replace("_", " ") for name in found)]
    text = markdown_table(header, cells)
    write_text(os.path.join(output_dir, "open_world.md"), text)
    sys.stdout.write(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
