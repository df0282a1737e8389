"""What `run_mir.py` and `run_mir_no_trainer.py` share: everything but the training loop itself."""

import copy
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..constants_amess import OUT_OF_SCOPE_LABEL
from ..data.collator import AMESSDataCollator
from ..evaluation.aggregation import aggregate_runs, load_seed_results, seed_folder, update_results, write_aggregate
from ..evaluation.metric_names import OOS_METRICS, OPEN_METRICS
from ..evaluation.metrics import compute_oos_metrics, compute_open_classification_metrics, generalized_accuracy
from ..evaluation.model_card import create_model_card
from ..evaluation.prediction import answers, predict_clips, write_predictions
from ..evaluation.reporting import fit_detectors, report
from ..files_amess import write_json
from ..modeling_amess import AMESSForIntentClassification
from ..oos_amess import DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME, OOS_METHODS, OutOfScopeDetector
from .arguments import AMESSTrainingArguments
from .checkpoint_integrity import check_output_dir
from .parameter_groups import default_learning_rate
from .preparation import build_collator, build_model, load_tokenizer
from .saved_model import as_model_was_trained, in_labels_of
from .script_arguments import DataArguments, ModelArguments
from .tasks import TaskData, data_folders, hold_out, load_task


logger = logging.get_logger(__name__)


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
        model_name_or_path (`str`, *optional*): Where a saved model was loaded from.
    """

    task: TaskData
    seen_task: TaskData
    held_out: list[str]
    tokenizer: Any
    model: AMESSForIntentClassification
    collator: AMESSDataCollator
    model_name_or_path: str | None = None

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
        arguments = arguments_of_file(arguments[0], parser)
    return parser.parse_args_into_dataclasses(arguments)


def arguments_of_file(path, parser):
    """
    The content of a JSON file as it would stand on the command line, so that both are read and checked alike.

    Raises:
        `ValueError`: if the file is missing, or holds no JSON object.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing; it should hold the arguments as JSON")
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f'{path} holds no JSON object; write {{"data_dir": "path/to/MIntRec", ...}}')
    lists = {name for action in parser._actions if action.nargs in ("*", "+") for name in action.option_strings}
    arguments = []
    for name, value in values.items():
        option = f"--{name}"
        if isinstance(value, list) and option in lists:
            arguments += [option, *map(str, value)]
        elif isinstance(value, list):
            arguments.append(f"{option}={','.join(map(str, value))}")
        elif value is not None:
            arguments.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
    return arguments


def prepare(model_args, data_args, training_args):
    """Clips, tokenizer, model and collator, as the arguments say."""
    check_output_dir(training_args.output_dir)
    if data_args.detector not in (None, *OOS_METHODS):
        raise ValueError(f"`--detector` is {data_args.detector!r}; choose one of {', '.join(OOS_METHODS)}")
    set_seed(training_args.seed)
    data_args = as_model_was_trained(model_args, data_args)
    # One process builds what is cached, the others read it.
    with training_args.main_process_first(desc="loading the clips"):
        task = load_task(data_args, training_args.seed)
    held_out = [name.strip() for name in (data_args.hold_out_intents or "").split(",") if name.strip()]
    if held_out and task.label_descriptions is None:
        raise ValueError("unseen intents are known by their descriptions: give `--label_descriptions FILE`")
    seen_task = hold_out(task, held_out) if held_out else task
    if not training_args.do_train or "validation" not in seen_task.splits:
        without_evaluation(training_args)
    tokenizer = load_tokenizer(model_args)
    model = build_model(model_args, data_args, seen_task, tokenizer)
    seen_task = in_labels_of(model.config, seen_task, data_args.dataset_name)
    if training_args.learning_rate is None:
        training_args.learning_rate = default_learning_rate(model.config)
    collator = build_collator(tokenizer, model, seen_task)
    return Job(task, seen_task, held_out, tokenizer, model, collator, model_args.model_name_or_path)


def without_evaluation(training_args):
    """
    Let training, if there is any, go without evaluations and end with the last weights.

    Raises:
        `ValueError`: if training is to stop by evaluations.
    """
    if training_args.do_train:
        if training_args.early_stopping_patience is not None:
            raise ValueError("`--early_stopping_patience` needs the split `validation`, which the data does not have")
        logger.warning("no dev split: nothing is evaluated while training, and the last weights are kept")
    training_args.eval_strategy = IntervalStrategy.NO
    training_args.load_best_model_at_end = False


SCORED_SPLITS = (
    ("do_eval", "validation", "eval", "dev"),
    ("do_predict", "test", "test", "test"),
)


def score(job, data_args, training_args, predict, is_main_process=True):
    """
    Score the splits that `--do_eval` and `--do_predict` name, and the intents that were held out; write what a run leaves
    behind: predictions, figures, the detector, the report and the model card.

    Args:
        job ([`Job`]): The clips and the trained model.
        data_args ([`DataArguments`]): Whether to fit a detector, and to write a report.
        training_args ([`AMESSTrainingArguments`]): What to do, and the output folder.
        predict (`Callable`):
            `predict(split, prefix)` gives the logits (clips, num_labels) of a split, and writes its metrics as
            `{prefix}_…` into `all_results.json` unless `prefix` is `None`.
        is_main_process (`bool`): Whether this process writes.

    Returns:
        `dict`: the content of `all_results.json`, on the main process.
    """
    folder, detector, figures = training_args.output_dir, None, {}
    if is_main_process:
        detector = find_detector(job, data_args, training_args)
    for option, name, prefix, short_name in SCORED_SPLITS:
        if getattr(training_args, option):
            split = job.split(name, f"--{option}")
            logits = predict(split, prefix)
            if is_main_process:
                figures |= figures_by_data_set(split, logits, prefix)
                path = os.path.join(folder, f"predictions_{short_name}.tsv")
                in_scope = None
                if detector is not None:
                    outputs = predict_clips(job.model, split, job.collator, description="Detecting")
                    in_scope = detector.predict(outputs.as_model_outputs()).numpy()
                    figures |= out_of_scope_figures(outputs, detector, in_scope, prefix)
                write_answers(path, split, logits, job.model.config.id2label, in_scope)
    reports = write_reports(job, training_args, detector) if is_main_process and data_args.report else {}
    if is_main_process:
        results = update_results(folder, figures)
        if training_args.do_train:
            write_card(job, data_args, training_args, results, detector, reports)
    figures = score_unseen(job, predict) if job.held_out else {}
    if is_main_process:
        return update_results(folder, figures)


def figures_by_data_set(split, logits, prefix):
    """Accuracy on each data set as `{prefix}_{data set}_accuracy`, where clips of several are scored together."""
    if "dataset" not in split.column_names:
        return {}
    right = logits.argmax(-1) == np.array(split["label"])
    names = np.array(split["dataset"])
    return {f"{prefix}_{name}_accuracy": float(right[names == name].mean()) for name in np.unique(names)}


def out_of_scope_figures(outputs, detector, in_scope, prefix):
    """
    How well the detector tells in scope from out of scope, as `{prefix}_oos_…`, and how well it and the model answer
    together, with one open class, as `{prefix}_open_…`; nothing where a split has clips of one kind only.

    Args:
        outputs ([`ClipOutputs`]): The clips of a split.
        detector ([`OutOfScopeDetector`]): Scores them.
        in_scope (`np.ndarray` of shape `(clips,)`, bool): What the detector says of each.
        prefix (`str`): Of the figures' names.
    """
    known = outputs.labels >= 0
    if known.all() or not known.any():
        return {}
    detection = compute_oos_metrics(detector.score(outputs.as_model_outputs()).numpy(), known.astype(int))
    figures = {f"{prefix}_oos_{name}": detection[name] for name in OOS_METRICS}
    predictions = np.where(in_scope, outputs.predictions, -1)
    together = compute_open_classification_metrics(predictions, outputs.labels)
    return figures | {f"{prefix}_open_{name}": together[name] for name in OPEN_METRICS}


def remove_detector(folder):
    """Remove a detector that was saved in a folder before."""
    for name in (DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))


def find_detector(job, data_args, training_args):
    """The detector to answer with: the one that was asked for, fitted now and saved; else the saved model's; else none."""
    if data_args.detector is None and training_args.do_train:
        remove_detector(training_args.output_dir)  # an earlier run's, which would answer for this model
        return None
    if data_args.detector is None:
        place = job.model_name_or_path
        return None if place is None else OutOfScopeDetector.from_pretrained(place, missing_ok=True)
    train, dev = (
        predict_clips(job.model, job.split(name, "--detector"), job.collator, description=name)
        for name in ("train", "validation")
    )
    (detector,) = fit_detectors(job.model, train, dev, methods=[data_args.detector])
    detector.save_pretrained(training_args.output_dir)
    return detector


def write_answers(path, split, logits, names, in_scope=None):
    """
    The answers to the clips of a split, as [`~amess_hf.evaluation.prediction.write_predictions`] writes them.

    Args:
        path (`str`): The file.
        split (`Dataset`): The clips.
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        names (`dict[int, str]`): Names of the label ids.
        in_scope (`np.ndarray` of shape `(clips,)`, bool, *optional*): What a detector says; the others' answer is `UNK`.
    """
    predictions, scores = answers(logits, names)
    if in_scope is not None:
        predictions = [
            name if known else OUT_OF_SCOPE_LABEL for name, known in zip(predictions, in_scope, strict=True)
        ]
    write_predictions(
        path, split["id"], [names.get(label, OUT_OF_SCOPE_LABEL) for label in split["label"]], predictions, scores
    )


def write_reports(job, training_args, detector):
    """`report/dev` and `report/test`, for the splits that are scored. Returns split → what `report` returned."""
    reports, dev_outputs = {}, None
    if "validation" in job.seen_task.splits:
        dev_outputs = predict_clips(job.model, job.seen_task.splits["validation"], job.collator)
    for option, name, _, short_name in SCORED_SPLITS:
        if getattr(training_args, option):
            reports[short_name] = report(
                job.model,
                job.split(name, f"--{option}"),
                job.collator,
                os.path.join(training_args.output_dir, "report", short_name),
                short_name,
                detectors=() if detector is None else (detector,),
                outputs=dev_outputs if name == "validation" else None,
                calibration_outputs=dev_outputs,
            )
    return reports


def write_card(job, data_args, training_args, results, detector, reports):
    """The model card, with the figures of this run."""
    last_report = reports.get("test", reports.get("dev"))
    try:
        card = create_model_card(
            job.model, results, names_of_data(data_args), training_args.hub_model_id, detector, last_report
        )
    except ImportError as error:
        logger.warning(f"No model card is written: {error}")
        return
    card.save(os.path.join(training_args.output_dir, "README.md"))


def names_of_data(data_args):
    """The data sets' names as one text; a folder of one's own goes by its name."""
    return ",".join(
        os.path.basename(os.path.abspath(folder)) if name == "folder" else name
        for name, folder in data_folders(data_args).items()
    )


def score_unseen(job, predict):
    """Accuracy on seen and unseen intents among all, by similarity alone and together with the classifier."""
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
        if not is_finished(args, data_args):
            run(model_args, data_args, args)
            if args.process_index == 0:
                write_json(os.path.join(args.output_dir, FINISHED), what_is_asked(args, data_args))
    results = load_seed_results(output_dir)
    if training_args.process_index == 0:
        write_aggregate(aggregate_runs(results), output_dir)
    return results


# Written last into the folder of a seed: what was asked for, and is there.
FINISHED = "finished.json"


def what_is_asked(training_args, data_args):
    """The arguments that say what a run leaves behind."""
    asked = {name: getattr(training_args, name) for name in ("do_train", "do_eval", "do_predict")}
    return asked | {name: getattr(data_args, name) for name in ("hold_out_intents", "detector", "report")}


def is_finished(training_args, data_args):
    """Whether a run has ended in the output folder that did all that the arguments ask for."""
    try:
        with open(os.path.join(training_args.output_dir, FINISHED), encoding="utf-8") as file:
            done = json.load(file)
    except (OSError, ValueError):
        return False
    return all(not value or done.get(name) == value for name, value in what_is_asked(training_args, data_args).items())


@contextmanager
def one_line_errors():
    """What is wrong with the input ends the program with one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {' '.join(str(error).split())}")


__all__ = ["Job", "one_line_errors", "parse_arguments", "prepare", "run_for_each_seed", "score"]
