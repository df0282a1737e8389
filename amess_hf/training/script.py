"""What `run_mir.py` and `run_mir_no_trainer.py` share: everything but the training loop itself."""

import copy
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

from ..data.collator import AMESSDataCollator
from ..evaluation.aggregation import aggregate_runs, load_seed_results, seed_folder, write_aggregate
from ..modeling_amess import AMESSForIntentClassification
from .arguments import AMESSTrainingArguments
from .checkpoints import check_output_dir
from .preparation import TaskData, build_collator, build_model, hold_out, load_task, load_tokenizer
from .results import answers, generalized_accuracy, update_results, write_predictions
from .script_arguments import DataArguments, ModelArguments


@dataclass
class Job:
    """
    What a run works on.

    Args:
        task ([`TaskData`]): The clips, with all intents.
        seen_task ([`TaskData`]): The clips of the intents that are trained on.
        held_out (`list[str]`): The other intents.
        tokenizer: The text encoder's tokenizer.
        model ([`AMESSForIntentClassification`]): The model.
        collator ([`AMESSDataCollator`]): Makes batches.
    """

    task: TaskData
    seen_task: TaskData
    held_out: list[str]
    tokenizer: Any
    model: AMESSForIntentClassification
    collator: AMESSDataCollator

    def split(self, name, option):
        """A split of the intents that are trained on, or a `ValueError` that says which option asked for it."""
        splits = self.seen_task.splits
        if name not in splits:
            raise ValueError(f"`{option}` needs the split `{name}`, but the data has only {', '.join(splits)}")
        return splits[name]


def parse_arguments(arguments=None, description=None):
    """`ModelArguments`, `DataArguments` and `AMESSTrainingArguments` from the command line or one JSON file."""
    parser = HfArgumentParser((ModelArguments, DataArguments, AMESSTrainingArguments), description=description)
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        if not os.path.isfile(arguments[0]):
            raise ValueError(f"{arguments[0]} is missing; it should hold the arguments as JSON")
        return parser.parse_json_file(os.path.abspath(arguments[0]))
    return parser.parse_args_into_dataclasses(arguments)


def prepare(model_args, data_args, training_args):
    """Clips, tokenizer, model and collator, as the arguments say."""
    check_output_dir(training_args.output_dir)
    set_seed(training_args.seed)
    task = load_task(data_args, training_args.seed)
    held_out = [name.strip() for name in (data_args.hold_out_intents or "").split(",") if name.strip()]
    seen_task = hold_out(task, held_out) if held_out else task
    tokenizer = load_tokenizer(model_args)
    model = build_model(model_args, data_args, seen_task, tokenizer)
    return Job(task, seen_task, held_out, tokenizer, model, build_collator(tokenizer, model, seen_task))


def score(job, training_args, predict, is_main_process=True):
    """
    Score the splits that `--do_eval` and `--do_predict` name, and the intents that were held out; write what a run leaves
    behind.

    Args:
        job ([`Job`]): The clips and the trained model.
        training_args ([`AMESSTrainingArguments`]): What to do, and the output folder.
        predict (`Callable`):
            `predict(split, prefix)` gives the logits (clips, num_labels) of a split, and writes its metrics as
            `{prefix}_…` into `all_results.json` unless `prefix` is `None`.
        is_main_process (`bool`): Whether this process writes.

    Returns:
        `dict`: the content of `all_results.json`, on the main process.
    """
    for wanted, option, name, prefix, file_name in (
        (training_args.do_eval, "--do_eval", "validation", "eval", "predictions_dev.tsv"),
        (training_args.do_predict, "--do_predict", "test", "test", "predictions_test.tsv"),
    ):
        if wanted:
            split = job.split(name, option)
            logits = predict(split, prefix)
            if is_main_process:
                write_answers(os.path.join(training_args.output_dir, file_name), split, logits, job.model.config)
    figures = score_unseen(job, predict) if job.held_out else {}
    if is_main_process:
        return update_results(training_args.output_dir, figures)


def write_answers(path, split, logits, config):
    """The answers to the clips of a split, as [`~amess_hf.training.results.write_predictions`] writes them."""
    names = config.id2label
    predictions, scores = answers(logits, names)
    write_predictions(path, split["id"], [names.get(label, "UNK") for label in split["label"]], predictions, scores)


def score_unseen(job, predict):
    """Accuracy on seen and unseen intents among all, by similarity alone and together with the classifier."""
    if job.task.label_descriptions is None:
        raise ValueError("unseen intents are known by their descriptions: give `--label_descriptions FILE`")
    config = job.model.config
    job.model.set_label_descriptions(job.task.label_descriptions, job.tokenizer)
    wanted = {intent.casefold() for intent in job.held_out}
    unseen = [index for index, label in enumerate(job.task.labels) if label.casefold() in wanted]
    split = job.task.splits["validation"]
    figures, weight = {}, config.label_similarity_weight
    for path, share in (("similarity", 1.0), ("combined", weight)):
        config.label_similarity_weight = share
        predictions = predict(split, None).argmax(-1)
        for name, value in generalized_accuracy(predictions, np.array(split["label"]), unseen).items():
            figures[f"eval_{path}_{name}"] = value
    config.label_similarity_weight = weight
    return figures


def run_for_each_seed(run, model_args, data_args, training_args, output_dir=None):
    """
    `run(model_args, data_args, training_args)`; with `--seeds` once for each, in a folder of its own, and then
    `aggregate.csv` and `aggregate.md` over them. A seed that has its figures is not run again, and one that was stopped
    goes on from its last whole checkpoint.
    """
    logging.set_verbosity(training_args.get_process_log_level())
    output_dir = training_args.output_dir if output_dir is None else output_dir
    if data_args.seeds is None:
        return run(model_args, data_args, training_args)
    for seed in (int(seed) for seed in data_args.seeds.split(",")):
        args = copy.deepcopy(training_args)
        args.seed, args.output_dir = seed, seed_folder(output_dir, seed)
        args.resume_from_checkpoint = "True"
        if not is_finished(args):
            run(model_args, data_args, args)
    results = load_seed_results(output_dir)
    if training_args.process_index == 0:
        write_aggregate(aggregate_runs(results), output_dir)
    return results


def is_finished(training_args):
    """Whether the output folder has the figures of all that the arguments ask for."""
    path = os.path.join(training_args.output_dir, "all_results.json")
    wanted = {
        "train_loss": training_args.do_train,
        "eval_accuracy": training_args.do_eval,
        "test_accuracy": training_args.do_predict,
    }
    return os.path.isfile(path) and all(
        name in update_results(training_args.output_dir, {}) for name in wanted if wanted[name]
    )


@contextmanager
def one_line_errors():
    """What is wrong with the input ends the program with one line."""
    try:
        yield
    except ValueError as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {error}")


__all__ = ["Job", "one_line_errors", "parse_arguments", "prepare", "run_for_each_seed", "score"]
