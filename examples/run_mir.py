#!/usr/bin/env python3
"""
Train A-MESS on MIntRec, MIntRec2.0 or one's own clips, evaluate it and name the intents of the test clips.

    accelerate launch examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/mintrec --do_train --do_eval --do_predict

Arguments come from the command line, or from one JSON file: `run_mir.py arguments.json`.
"""

import copy
import os
import sys

import numpy as np
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from amess_hf import AMESSTrainer, AMESSTrainingArguments
from amess_hf.hub import push_folder
from amess_hf.training.preparation import build_collator, build_model, hold_out, load_task, load_tokenizer
from amess_hf.training.results import answers, generalized_accuracy, update_results, write_predictions
from amess_hf.training.script_arguments import DataArguments, ModelArguments


logger = logging.get_logger("amess_hf.run_mir")


def parse_arguments(arguments=None):
    """`ModelArguments`, `DataArguments` and `AMESSTrainingArguments` from the command line or one JSON file."""
    parser = HfArgumentParser((ModelArguments, DataArguments, AMESSTrainingArguments), description=__doc__)
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        return parser.parse_json_file(os.path.abspath(arguments[0]))
    return parser.parse_args_into_dataclasses(arguments)


def score_split(trainer, split, prefix, file_name):
    """Metrics of a split as `{prefix}_…`, logged and saved, and its predictions in `file_name`."""
    names = trainer.model.config.id2label
    result = trainer.predict(split, metric_key_prefix=prefix)
    trainer.log_metrics(prefix, result.metrics)
    trainer.save_metrics(prefix, result.metrics)
    if trainer.is_world_process_zero():
        predictions, scores = answers(result.predictions, names)
        labels = [names.get(label, "UNK") for label in split["label"]]
        path = os.path.join(trainer.args.output_dir, file_name)
        write_predictions(path, split["id"], labels, predictions, scores)
    return result


def score_unseen(trainer, task, tokenizer, intents):
    """Accuracy on seen and unseen intents among all, by similarity alone and together with the classifier."""
    if task.label_descriptions is None:
        raise ValueError("unseen intents are known by their descriptions: give `--label_descriptions FILE`")
    model = trainer.model
    model.set_label_descriptions(task.label_descriptions, tokenizer)
    wanted = {intent.casefold() for intent in intents}
    unseen = [index for index, label in enumerate(task.labels) if label.casefold() in wanted]
    split = task.splits["validation"]
    figures, weight = {}, model.config.label_similarity_weight
    for path, share in (("similarity", 1.0), ("combined", weight)):
        model.config.label_similarity_weight = share
        predictions = trainer.predict(split).predictions.argmax(-1)
        for name, value in generalized_accuracy(predictions, np.array(split["label"]), unseen).items():
            figures[f"eval_{path}_{name}"] = value
    model.config.label_similarity_weight = weight
    return figures


def require_split(task, name, option):
    """The split, or a `ValueError` that says which option asked for it."""
    if name not in task.splits:
        raise ValueError(f"`{option}` needs the split `{name}`, but the data has only {', '.join(task.splits)}")
    return task.splits[name]


def run(model_args, data_args, training_args):
    """One training and evaluation, as the arguments say. Returns the content of `all_results.json`."""
    set_seed(training_args.seed)
    task = load_task(data_args, training_args.seed)
    held_out = [name.strip() for name in (data_args.hold_out_intents or "").split(",") if name.strip()]
    seen_task = hold_out(task, held_out) if held_out else task
    tokenizer = load_tokenizer(model_args)
    model = build_model(model_args, data_args, seen_task, tokenizer)
    trainer = AMESSTrainer(
        model=model,
        args=training_args,
        processing_class=tokenizer,
        data_collator=build_collator(tokenizer, model, seen_task),
        train_dataset=require_split(seen_task, "train", "--do_train") if training_args.do_train else None,
        eval_dataset=seen_task.splits.get("validation"),
    )
    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint
        if checkpoint in ("True", "true"):
            checkpoint = get_last_checkpoint(training_args.output_dir)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        score_split(trainer, require_split(seen_task, "validation", "--do_eval"), "eval", "predictions_dev.tsv")
    if training_args.do_predict:
        score_split(trainer, require_split(seen_task, "test", "--do_predict"), "test", "predictions_test.tsv")
    figures = score_unseen(trainer, task, tokenizer, held_out) if held_out else {}
    if trainer.is_world_process_zero():
        results = update_results(training_args.output_dir, figures)
        if training_args.push_to_hub:
            revision = training_args.hub_revision
            push_folder(
                training_args.output_dir, trainer.hub_model_id, training_args.hub_token, revision, "End of training"
            )
        return results


def run_seeds(model_args, data_args, training_args, seeds):
    """`run` once for each seed, each in its own folder; a seed that has its results is not run again."""
    results = {}
    for seed in seeds:
        args = copy.deepcopy(training_args)
        args.seed, args.output_dir = seed, os.path.join(training_args.output_dir, f"seed-{seed}")
        results[seed] = run(model_args, data_args, args)
    return results


def main():
    model_args, data_args, training_args = parse_arguments()
    logging.set_verbosity(training_args.get_process_log_level())
    if data_args.seeds is not None:
        run_seeds(model_args, data_args, training_args, [int(seed) for seed in data_args.seeds.split(",")])
    else:
        run(model_args, data_args, training_args)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"run_mir.py: {error}")
