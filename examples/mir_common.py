"""What `run_mir.py` and `run_mir_no_trainer.py` share: arguments, clips and model, seeds, and the output of a run."""

import copy
import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, DatasetDict, load_dataset
from progress import progress_bars
from transformers import AutoTokenizer, BitsAndBytesConfig, HfArgumentParser, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from amess_hf import (
    AMESSConfig,
    AMESSDataCollator,
    AMESSForIntentClassification,
    AMESSProcessor,
    AMESSTrainingArguments,
    OutOfScopeDetector,
    load_mintrec,
)
from amess_hf.configuration_amess import FEATURE_MODALITIES, OUT_OF_SCOPE_ID
from amess_hf.data.clip_features import add_clip_features
from amess_hf.data.combining import (
    few_clips,
    hold_out_intents,
    in_labels_of,
    intents_to_hold_out,
    labels_of,
    merge_datasets,
)
from amess_hf.data.dataset_files import NO_FEATURES
from amess_hf.data.mintrec import with_feature_arrays
from amess_hf.datasets_amess import DATASETS
from amess_hf.descriptions_amess import describe_labels
from amess_hf.evaluation import read_evidence_spans
from amess_hf.evaluation.aggregation import (
    ALL_RESULTS_NAME,
    aggregate_runs,
    load_seed_results,
    seed_folder,
    update_results,
    write_aggregate,
)
from amess_hf.evaluation.metrics import (
    CLASSIFICATION_METRICS,
    OOS_METRICS,
    OPEN_METRICS,
    compute_oos_metrics,
    compute_open_classification_metrics,
    generalized_accuracy,
)
from amess_hf.evaluation.model_card import create_model_card
from amess_hf.evaluation.prediction import ClipOutputs, write_predictions
from amess_hf.evaluation.reporting import fit_detectors, report
from amess_hf.oos_amess import DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME, OOS_METHODS
from amess_hf.processing_amess import write_json, write_text
from amess_hf.recipe_amess import feature_sizes
from amess_hf.training import add_lora, add_teacher_logits
from amess_hf.training.run_state import (
    RUN_RECORD_NAME,
    check_output_dir,
    dataset_digest,
    locked,
    model_request,
    record_changes,
    training_request,
    write_record,
)


logger = logging.get_logger("amess_hf.mir_common")

# Written last into the folder of a seed: the finished parts of the run.
FINISHED = "finished.json"
# Clips that could not be read, and why.
LEFT_OUT = "left_out.tsv"
# Output of a run that another one would not overwrite; the rest has the same names in every run.
LEFT_BEHIND = (
    f"{PREFIX_CHECKPOINT_DIR}-*",
    "report",
    "*_results.json",
    "predictions_*.tsv",
    TRAINER_STATE_NAME,
    FINISHED,
    LEFT_OUT,
    RUN_RECORD_NAME,
)
# Option that needs a split, the split, the prefix of its metrics, and its name in files.
SCORED_SPLITS = (
    ("do_eval", "validation", "eval", "dev"),
    ("do_predict", "test", "test", "test"),
)
# Fields of the configuration that the shapes of the weights depend on.
SHAPES = ("fusion_type", "num_fusion_layers", "hidden_size", "projection_dim")


def _config_field(help_text):
    """A field of the model's configuration; `None` keeps the configuration's own default."""
    return field(default=None, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """Which model to start from, and the fields of [`AMESSConfig`] to set."""

    text_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained text encoder to train from: a Hub repository or a folder."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A saved A-MESS model to evaluate or to train further."}
    )
    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Learn from a teacher's answers too: a saved A-MESS model, or a .safetensors of logits; "
            "several, separated by commas, are averaged."
        },
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train an adapter of this rank instead of the text encoder's weights."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Load the frozen text encoder in 4 bits (with `--lora_rank`; bitsandbytes)."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Load the frozen text encoder in 8 bits (with `--lora_rank`; bitsandbytes)."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers of the text encoder to adapt; all linear ones if not given."}
    )
    fusion_type: str | None = _config_field(
        "anchor (A-ME), late, cross_modal, mean or text; text if the data has words only."
    )
    num_anchors: int | None = _config_field("Anchors of each modality.")
    num_fusion_layers: int | None = _config_field("Fusion layers.")
    hidden_size: int | None = _config_field("Width of the fusion module.")
    projection_dim: int | None = _config_field(
        "Width of the space that clips and descriptions share; 0 keeps the text encoder's own."
    )
    dropout: float | None = _config_field("Dropout of the fusion module and before the classifier.")
    modality_dropout: float | None = _config_field("Share of training clips of which one modality is masked.")
    triplet_margin: float | None = _config_field("Margin of the triplet losses, in cosine similarity.")
    label_triplet_loss_weight: float | None = _config_field("Weight of the triplet of clip and descriptions.")
    label_contrastive_loss_weight: float | None = _config_field("Weight of the softmax over descriptions.")
    batch_triplet_loss_weight: float | None = _config_field("Weight of the triplets between clips of a batch.")
    consistency_loss_weight: float | None = _config_field("Weight of R-Drop, which doubles the time of a step.")
    outlier_exposure_loss_weight: float | None = _config_field("Weight of the uniform target of out-of-scope clips.")
    label_smoothing: float | None = _config_field("Label smoothing of the cross-entropy.")
    distillation_loss_weight: float | None = _config_field("Weight of the divergence from the teacher's answers.")
    distillation_temperature: float | None = _config_field("Temperature that softens both answers.")
    text_pooling: str | None = _config_field("mean, cls or last; the text encoder's own if not given.")
    label_similarity_weight: float | None = _config_field("Share of the descriptions in the answer, 0 to 1.")
    max_text_length: int | None = _config_field("Tokens of an utterance; the data set's usual limit if not given.")
    max_audio_length: int | None = _config_field("Audio frames; the data set's usual limit if not given.")
    max_video_length: int | None = _config_field("Video frames; the data set's usual limit if not given.")

    def config_fields(self):
        """The fields of [`AMESSConfig`] that were given, by name."""
        names = [item.name for item in fields(self) if item.name in AMESSConfig.__dataclass_fields__]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        lengths = {"audio_config": self.max_audio_length, "video_config": self.max_video_length}
        return {**given, **{name: {"max_length": length} for name, length in lengths.items() if length is not None}}


@dataclass
class DataArguments:
    """Which clips to train on and to evaluate."""

    dataset_name: str = field(
        default="mintrec",
        metadata={
            "help": "mintrec, mintrec2.0, folder or organization/name on the Hub; several are separated by commas."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the data set; several are separated by commas, in the same order."}
    )
    audio_features: str | None = field(default=None, metadata={"help": "Name or path of audio features, or none."})
    video_features: str | None = field(default=None, metadata={"help": "Name or path of video features, or none."})
    audio_encoder: str | None = field(
        default=None, metadata={"help": "Make audio features from raw clips: log-mel, or a model on the Hub."}
    )
    audio_encoder_layer: int | None = field(
        default=None, metadata={"help": "Take the states after this layer of the audio encoder, 1 for the first."}
    )
    video_encoder: str | None = field(
        default=None,
        metadata={"help": "Make video features from raw clips: hog, hog-grid, or a model on the Hub."},
    )
    allow_missing_features: bool = field(
        default=False, metadata={"help": "Treat a clip without features as one without sound or picture."}
    )
    label_granularity: str = field(default="fine", metadata={"help": "fine (the intents) or coarse (Emotion, Goal)."})
    label_descriptions: str | None = field(
        default=None, metadata={"help": "JSON with descriptions of the intents; the shipped ones if not given."}
    )
    context_turns: int | None = field(
        default=None,
        metadata={"help": "Earlier turns of the dialogue to read too; by default none, or those of a saved model."},
    )
    hold_out_intents: str | None = field(
        default=None,
        metadata={
            "help": "Intents to leave out of training, separated by commas, or fold:K/N; they are evaluated as unseen."
        },
    )
    train_clips_per_intent: int | None = field(
        default=None, metadata={"help": "Train on this many clips of each intent only."}
    )
    out_of_scope_clips: bool = field(
        default=False,
        metadata={"help": "Load the data set's out-of-scope clips too: for the report, and for outlier exposure."},
    )
    detector: str | None = field(
        default=None,
        metadata={"help": "Fit this out-of-scope score on the training clips and save the detector with the model."},
    )
    detector_keep: float = field(
        default=0.95, metadata={"help": "Share of the known dev clips that the detector's threshold keeps."}
    )
    report: bool = field(default=False, metadata={"help": "Write report/ with tables and plots."})
    evidence_spans: str | None = field(
        default=None,
        metadata={
            "help": "Table of the frames that hold the evidence (id, modality, first, end, frames), as simulated data has: "
            "the report says how many anchors lie there."
        },
    )
    license: str | None = field(
        default=None, metadata={"help": "License of the model in its card, as the Hub names it, e.g. apache-2.0."}
    )
    language: str | None = field(
        default=None, metadata={"help": "Language of the clips in the card, e.g. en; several, with a comma between."}
    )
    seeds: str | None = field(
        default=None, metadata={"help": "Train once for each of these seeds, separated by commas, and aggregate."}
    )
    overwrite_run: bool = field(
        default=False,
        metadata={"help": "If the output folder holds a run with other settings, start again."},
    )
    on_error: str = field(
        default="raise",
        metadata={
            "help": f"stop at a raw clip that is missing or cannot be read, or skip it and list it in {LEFT_OUT}.",
            "choices": ["raise", "skip"],
        },
    )

    def seed_list(self) -> list[int] | None:
        """
        The seeds of `--seeds`.

        Raises:
            ValueError: If one is not a number, is negative, or appears twice.
        """
        if self.seeds is None:
            return None
        names = [name.strip() for name in self.seeds.split(",")]
        for name in names:
            if not name.isascii() or not name.isdigit():
                raise ValueError(f"`--seeds {self.seeds}`: {name!r} is not a number of at least 0; write e.g. 0,1,2")
        seeds = [int(name) for name in names]
        for seed in seeds:
            if seeds.count(seed) > 1:
                raise ValueError(f"`--seeds {self.seeds}` has {seed} twice; write each once")
            if seed >= 2**32:
                raise ValueError(f"`--seeds {self.seeds}`: {seed} is too large; the largest is {2**32 - 1}")
        return seeds


@dataclass
class Run:
    """What a run works on.

    Attributes:
        dataset (`DatasetDict`): The clips, with all intents.
        seen (`DatasetDict`): The clips of the trained intents, with the model's label ids.
        held_out (`list[str]`): The other intents.
        label_descriptions (`dict[str, list[str]]`, *optional*): Sentences for all intents.
        model ([`AMESSForIntentClassification`]): The model.
        processor ([`AMESSProcessor`]): Makes its batches.
        training_args ([`AMESSTrainingArguments`]): The arguments, with all that follows from the model and the clips.
        left_out (`dict[str, str]`): Clips that could not be read, and why.
    """

    dataset: DatasetDict
    seen: DatasetDict
    held_out: list[str]
    label_descriptions: dict[str, list[str]] | None
    model: AMESSForIntentClassification
    processor: AMESSProcessor
    training_args: AMESSTrainingArguments
    left_out: dict[str, str]

    def split(self, name: str, option: str):
        """A split of the intents that are trained on, or a `ValueError` that says which option asked for it."""
        if name not in self.seen:
            raise ValueError(f"`{option}` needs the split `{name}`, but the data has only {', '.join(self.seen)}")
        return self.seen[name]


def parse_arguments(arguments=None, description=None):
    """`ModelArguments`, `DataArguments` and `AMESSTrainingArguments` from the command line or one JSON file."""
    parser = HfArgumentParser((ModelArguments, DataArguments, AMESSTrainingArguments), description=description)
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        arguments = arguments_of_file(arguments[0], parser)
    return parser.parse_args_into_dataclasses(arguments)


def arguments_of_file(path, parser):
    """
    The content of a JSON file as command-line arguments, so that both are parsed and checked alike.

    Raises:
        ValueError: If the file is missing, or does not hold a JSON object.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path} is missing; it should hold the arguments as JSON")
    with open(path, encoding="utf-8") as file:
        try:
            values = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f'{path} does not hold a JSON object; write {{"data_dir": "path/to/MIntRec", ...}}')
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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors in the input end the program with one line, and so do SIGTERM and Ctrl-C."""
    program = os.path.basename(sys.argv[0])

    def terminate(number, frame):
        sys.stderr.write(f"{program}: stopped by {signal.Signals(number).name}; complete checkpoints are kept\n")
        sys.exit(128 + number)

    with on_signal(signal.SIGTERM, terminate):
        try:
            yield
        except (ValueError, OSError, ImportError) as error:
            reason = " ".join(str(error).split())
            if getattr(error, "errno", None) == errno.ENOSPC:
                reason += "; free some space and start again: `--resume_from_checkpoint` resumes from the last complete checkpoint"
            sys.exit(f"{program}: {reason}")
        except KeyboardInterrupt:
            terminate(signal.SIGINT, None)


@contextmanager
def on_signal(number, handler):
    """Context in which `handler` handles the signal, in this process but not in those that it forks."""
    process = os.getpid()

    def handle(number, frame):
        if os.getpid() == process:
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, previous)


def check_arguments(model_args, data_args, training_args):
    """
    Check the arguments before anything is loaded.

    Raises:
        ValueError: Naming the argument.
    """
    if data_args.detector not in (None, *OOS_METHODS):
        raise ValueError(f"`--detector` is {data_args.detector!r}; choose one of {', '.join(OOS_METHODS)}")
    if not 0 < data_args.detector_keep <= 1:
        raise ValueError(f"`--detector_keep` is {data_args.detector_keep}; it must be above 0 and at most 1")
    if data_args.evidence_spans is not None:
        if not data_args.report:
            raise ValueError("`--evidence_spans` is for the report: give `--report` too")
        read_evidence_spans(data_args.evidence_spans)
    if data_args.train_clips_per_intent is not None and data_args.train_clips_per_intent < 1:
        raise ValueError(f"`--train_clips_per_intent` is {data_args.train_clips_per_intent}; it must be at least 1")
    if data_args.context_turns is not None and data_args.context_turns < 0:
        raise ValueError(f"`--context_turns` is {data_args.context_turns}; it must be at least 0")
    quantized = [f"--{name}" for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    if len(quantized) > 1:
        raise ValueError(f"{' and '.join(quantized)} exclude each other; give one of them")
    if quantized and (model_args.lora_rank is None or model_args.model_name_or_path is not None):
        raise ValueError(
            f"`{quantized[0]}` is for a new model with an adapter; give `--text_model_name_or_path` and `--lora_rank`"
        )
    if training_args.do_train:
        training_args.check_best_metric((*CLASSIFICATION_METRICS, "loss"))


def check_splits(data_args, training_args, dataset):
    """
    Check that the required splits exist, and name labels that only some of them have.

    Raises:
        ValueError: Naming the option and the split that it needs.
    """
    needed = {option: name for option, name, *_ in SCORED_SPLITS if getattr(training_args, option)}
    if training_args.do_train:
        needed["do_train"] = "train"
    if data_args.detector:
        needed["detector"] = "train" if "train" not in dataset else "validation"
    if data_args.hold_out_intents:
        needed["hold_out_intents"] = "validation"
    for option, name in needed.items():
        if name not in dataset or not len(dataset[name]):
            has = ", ".join(split for split in dataset if len(dataset[split]))
            raise ValueError(f"`--{option}` needs the split `{name}`, but the data has only {has}")


def warn_of_unknown_labels(dataset):
    """Name the labels that are scored but never trained on."""
    names = labels_of(dataset)
    ids = {name: set(split.select_columns(["label"])["label"][:]) for name, split in dataset.items()}
    for name, scored in ids.items():
        unknown = [names[number] for number in sorted(scored - ids["train"]) if number >= 0]
        if unknown:
            logger.warning(
                f"the split {name} has labels that train lacks, so their clips cannot be answered correctly: {unknown}"
            )


def prepare(model_args, data_args, training_args) -> Run:
    """Clips, model and processor, as the arguments specify."""
    check_output_dir(training_args.output_dir)
    check_arguments(model_args, data_args, training_args)
    left_out = {}
    set_seed(training_args.seed)
    saved_config = None if model_args.model_name_or_path is None else read_saved_config(model_args)
    if saved_config is not None:
        data_args = as_trained(data_args, saved_config)
    # One process builds the cache, the others read it.
    with training_args.main_process_first(desc="loading the clips"):
        dataset = load_clips(data_args, training_args.seed, left_out)
    check_splits(data_args, training_args, dataset)
    descriptions = find_label_descriptions(data_args, labels_of(dataset))
    held_out = intents_to_hold_out(data_args.hold_out_intents or "", labels_of(dataset))
    if held_out and descriptions is None:
        raise ValueError("unseen intents are known only by their descriptions: give `--label_descriptions FILE`")
    seen = hold_out_intents(dataset, held_out) if held_out else dataset
    if training_args.do_train:
        warn_of_unknown_labels(seen)
    else:
        training_args.eval_strategy, training_args.load_best_model_at_end = "no", False
    tokenizer = load_tokenizer(model_args)
    if saved_config is None:
        model = new_model(model_args, data_args, seen, descriptions, tokenizer)
    else:
        model = AMESSForIntentClassification.from_pretrained(model_args.model_name_or_path, config=saved_config)
        check_features(saved_config, data_args, seen)
    if model_args.lora_rank is not None:
        add_lora(
            model,
            model_args.lora_rank,
            model_args.lora_target_modules,
            base_model_name_or_path=model_args.text_model_name_or_path if saved_config is None else None,
        )
    seen = in_labels_of(model.config, seen, data_args.dataset_name)
    if model_args.teacher_model_name_or_path is not None and training_args.do_train and "train" in seen:
        teachers = [name.strip() for name in model_args.teacher_model_name_or_path.split(",")]
        with training_args.main_process_first(desc="running the teacher"):
            seen["train"] = add_teacher_logits(seen["train"], teachers, labels_of(seen))
    processor = AMESSProcessor.for_model(model.config, tokenizer)
    num_clips = len(seen["train"]) if training_args.do_train else None
    training_args = training_args.for_model(model.config, "validation" in seen, num_clips)
    return Run(dataset, seen, held_out, descriptions, model, processor, training_args, left_out)


def is_finished(run: Run, model_args, data_args, written_by: str) -> bool:
    """
    Claim the output folder for a run: record its settings, and return whether it is finished already, which only
    `--seeds` uses.

    Args:
        run ([`Run`]): What the run works on.
        model_args, data_args: The arguments.
        written_by (`str`): What trains, as checkpoints name it.

    Raises:
        ValueError: If the folder holds a run that was asked for something else, and it is not to be overwritten; what
            differs is named.
    """
    args = run.training_args
    folder, main = args.output_dir, args.process_index == 0
    if scores_its_own(model_args, args):
        return False
    request = what_is_asked(run, written_by)
    # A run that ended before its first checkpoint is overwritten.
    reason = record_changes(folder, request) if holds_results(folder) else None
    if reason is not None and not data_args.overwrite_run:
        raise ValueError(
            f"{folder} holds another run: {reason}; give another `--output_dir`, or `--overwrite_run` to start again"
        )
    if main:
        if reason is not None:
            remove_run(folder)
        write_record(folder, request)
        write_left_out(folder, run.left_out)
    return reason is None and data_args.seeds is not None and has_done(run, data_args)


def holds_results(folder):
    """Whether a run has left a checkpoint or metrics in the folder."""
    return any(Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")) or os.path.isfile(
        os.path.join(folder, ALL_RESULTS_NAME)
    )


def scores_its_own(model_args, training_args):
    """Whether a trained model is scored in the folder of its own run, whose metrics are about it."""
    source = model_args.model_name_or_path
    return (
        not training_args.do_train
        and source is not None
        and os.path.realpath(source) == os.path.realpath(training_args.output_dir)
    )


def what_is_asked(run, written_by):
    """Everything that the model in the output folder, or the metrics of a model that is only scored, depend on."""
    args = run.training_args
    if args.do_train:
        return training_request(run.model, args, run.seen["train"], run.seen.get("validation"), written_by)
    return {"written_by": "scoring", **model_request(run.model)}


def remove_run(folder):
    """Remove the output of an earlier run from the folder."""
    for pattern in LEFT_BEHIND:
        for path in Path(folder).glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def write_left_out(folder, left_out):
    """Write a table of the clips that could not be read, if there are any."""
    path = os.path.join(folder, LEFT_OUT)
    if left_out:
        lines = [f"{clip}\t{' '.join(reason.split())}\n" for clip, reason in left_out.items()]
        write_text(path, "id\treason\n" + "".join(lines))
        logger.warning(f"{len(left_out)} clips could not be read and are left out; {path} says why")
    elif os.path.exists(path):
        os.remove(path)


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Context for loading `name`: errors become a `ValueError` that names it, which transformers' own message may not."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{name} is not a saved model that can be loaded: {' '.join(str(error).split())}") from error


def load_tokenizer(model_args):
    """The tokenizer that goes with the model or the text encoder."""
    name = model_args.model_name_or_path or model_args.text_model_name_or_path
    if name is None:
        raise ValueError("give `--text_model_name_or_path` to train, or `--model_name_or_path` for a saved model")
    with loading(name):
        return AutoTokenizer.from_pretrained(name)


def new_model(model_args, data_args, dataset, descriptions, tokenizer):
    """A new model around a pretrained text encoder, with the fields that follow from the clips and those given."""
    labels = labels_of(dataset)
    return AMESSForIntentClassification.from_text_pretrained(
        model_args.text_model_name_or_path,
        labels=labels,
        label_descriptions=None if descriptions is None else {label: descriptions[label] for label in labels},
        tokenizer=tokenizer,
        dataset=next(iter(dataset.values())),
        audio_encoder=data_args.audio_encoder,
        audio_encoder_layer=data_args.audio_encoder_layer,
        video_encoder=data_args.video_encoder,
        context_turns=data_args.context_turns or 0,
        quantization_config=quantization_config(model_args),
        **model_args.config_fields(),
    )


def quantization_config(model_args):
    """How the text encoder's weights are rounded: to the 4 bits of QLoRA (arXiv 2305.14314), to 8, or not."""
    if model_args.load_in_4bit:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return BitsAndBytesConfig(load_in_8bit=True) if model_args.load_in_8bit else None


def read_saved_config(model_args) -> AMESSConfig:
    """
    A saved model's configuration, with the fields that were given on the command line.

    Raises:
        ValueError: If it is not an A-MESS model, or a field does not fit the saved weights.
    """
    name = model_args.model_name_or_path
    with loading(name):
        fields_of_config, _ = AMESSConfig.get_config_dict(name)
    if fields_of_config.get("model_type") != AMESSConfig.model_type:
        raise ValueError(
            f"{name} is a {fields_of_config.get('model_type')} model; `--model_name_or_path` takes a saved A-MESS "
            "model, and `--text_model_name_or_path` a text encoder to train one from"
        )
    config = AMESSConfig.from_pretrained(name)
    for field_name, value in model_args.config_fields().items():
        if field_name in SHAPES and value != getattr(config, field_name):
            raise ValueError(
                f"`--{field_name} {value}`: the saved model has {getattr(config, field_name)}, and its weights fit "
                "nothing else; train a new one with `--text_model_name_or_path`"
            )
        if isinstance(value, dict):
            getattr(config, field_name).max_length = value["max_length"]
        else:
            setattr(config, field_name, value)
    config.validate()
    return config


def as_trained(data_args, config):
    """The data arguments with the encoders and the turns of context of a saved model, unless others are given."""
    chosen = {
        f"{modality}_encoder": features.encoder
        for modality, features in config.feature_configs.items()
        if getattr(data_args, f"{modality}_encoder") is None and getattr(data_args, f"{modality}_features") is None
    }
    if "audio_encoder" in chosen and data_args.audio_encoder_layer is None:
        chosen["audio_encoder_layer"] = config.audio_config.encoder_layer
    if data_args.context_turns is None:
        chosen["context_turns"] = config.context_turns
    return replace(data_args, **chosen)


def check_features(config, data_args, dataset):
    """
    Check that the clips have the features that a saved model was trained with; warn of a missing modality.

    Raises:
        ValueError: If an encoder differs, or features have another width.
    """
    sizes = feature_sizes(next(iter(dataset.values())))
    for modality in FEATURE_MODALITIES:
        name = f"{modality}_encoder"
        features = config.feature_configs.get(modality)
        given, known = getattr(data_args, name), features and features.encoder
        if given is not None and given != known:
            raise ValueError(f"`--{name} {given}` makes other features than the model was trained with ({known})")
        if modality == "audio" and given is not None and data_args.audio_encoder_layer != features.encoder_layer:
            raise ValueError(
                f"`--audio_encoder_layer` is {data_args.audio_encoder_layer}, but the model was trained with "
                f"{features.encoder_layer}; leave it out"
            )
        given, known = sizes.get(modality), features and features.feature_size
        if known is not None and given is None:
            logger.warning(f"the model takes {modality}, and the data has none: it answers without")
        elif known is not None and given != known:
            raise ValueError(
                f"the data's {modality} features are {given} wide, but the model was made for {known}; "
                f"choose those that it was trained with by `--{modality}_features`"
            )


def data_folders(data_args) -> dict[str, str | None]:
    """
    The data sets that `data_args` names, each with its folder, or with `None` for one on the Hub.

    Raises:
        ValueError: If names and folders do not match, or a name appears twice.
    """
    names = [name.strip() for name in data_args.dataset_name.split(",")]
    folders = [folder.strip() for folder in (data_args.data_dir or "").split(",") if folder.strip()]
    local = [name for name in names if "/" not in name]  # organization/name is on the Hub
    if len(set(names)) < len(names):
        raise ValueError(
            f"`--dataset_name {data_args.dataset_name}` names a data set twice; put its clips into one folder"
        )
    if len(local) != len(folders):
        raise ValueError(
            f"`--dataset_name` names {len(local)} local data set(s) and `--data_dir` {len(folders)} folder(s); "
            "give one folder for each (`organization/name` is on the Hub and takes none)"
        )
    places = dict(zip(local, folders, strict=True))
    return {name: places.get(name) for name in names}


def load_clips(data_args, seed: int, left_out: dict[str, str] | None = None) -> DatasetDict:
    """
    Load what `data_args` names: one data set, or several with the union of their labels.

    Args:
        data_args ([`DataArguments`]): The arguments.
        seed (`int`): Seed of the draw of `train_clips_per_intent`.
        left_out (`dict[str, str]`, *optional*): Takes clips that could not be read, and why, with `--on_error skip`.

    Raises:
        ValueError: If names and folders do not match, or a data set cannot be read.
    """
    datasets = {
        name: load_from_hub(name) if folder is None else load_from_folder(name, folder, data_args, left_out)
        for name, folder in data_folders(data_args).items()
    }
    dataset = merge_datasets(datasets) if len(datasets) > 1 else next(iter(datasets.values()))
    if data_args.train_clips_per_intent is not None:
        if "train" not in dataset:
            raise ValueError(
                f"`--train_clips_per_intent` needs the split train, but the data has only {', '.join(dataset)}"
            )
        dataset["train"] = few_clips(dataset["train"], data_args.train_clips_per_intent, seed)
    return dataset


def load_from_folder(name, folder, data_args, left_out=None):
    """One local data set, with features from its files or made from its clips."""
    dataset = load_mintrec(
        folder,
        name=name,
        scope="all" if data_args.out_of_scope_clips else "in",
        label_granularity=data_args.label_granularity,
        audio_features=NO_FEATURES if data_args.audio_encoder else data_args.audio_features,
        video_features=NO_FEATURES if data_args.video_encoder else data_args.video_features,
        context_turns=data_args.context_turns or 0,
        allow_missing_features=data_args.allow_missing_features,
        on_error=data_args.on_error,
    )
    return add_clip_features(
        dataset,
        data_args.audio_encoder,
        data_args.video_encoder,
        folder,
        audio_encoder_layer=data_args.audio_encoder_layer,
        on_error=data_args.on_error,
        failures=left_out,
    )


def load_from_hub(name):
    """A data set that was pushed to the Hub."""
    dataset = with_feature_arrays(load_dataset(name))
    for split in dataset.values():
        missing = {"id", "text", "label"} - set(split.column_names)
        if missing or not isinstance(split.features["label"], ClassLabel):
            wanted = f"it lacks {', '.join(sorted(missing))}" if missing else "its `label` is not a `ClassLabel`"
            raise ValueError(f"{name} is not a data set that `load_mintrec(...).push_to_hub` wrote: {wanted}")
    return dataset


def find_label_descriptions(data_args, labels) -> dict[str, list[str]] | None:
    """
    Descriptions of the labels: from the given file, or the shipped ones; `None` if a label has none.

    Raises:
        ValueError: If the given file lacks a label.
    """
    if data_args.label_descriptions is not None:
        return describe_labels(labels, data_args.label_descriptions)
    shipped = [name for name in data_folders(data_args) if name in DATASETS and data_args.label_granularity == "fine"]
    try:
        return describe_labels(labels, shipped)
    except ValueError:
        logger.warning("no label descriptions: semantic synchronization is off (give `--label_descriptions FILE`)")
        return None


def score(
    run: Run,
    data_args,
    training_args,
    predict: Callable[[Any, str | None], ClipOutputs],
    is_main_process: bool = True,
    model_name_or_path: str | None = None,
) -> dict | None:
    """
    Score the splits of `--do_eval` and `--do_predict`, and the held-out intents; write the output of a run:
    predictions, metrics, the detector, the report and the model card. Each split is predicted once.

    Args:
        run ([`Run`]): The clips and the trained model.
        data_args ([`DataArguments`]): Whether to fit a detector, and to write a report.
        training_args ([`AMESSTrainingArguments`]): What to do, and the output folder.
        predict (`Callable`):
            `predict(split, prefix)` gives the [`ClipOutputs`] of a split on every process, and writes its metrics as
            `{prefix}_…` into `all_results.json` unless `prefix` is `None`.
        is_main_process (`bool`): Whether this process writes.
        model_name_or_path (`str`, *optional*): Where a saved model was loaded from: its detector is there.

    Returns:
        `dict`: The content of `all_results.json`, on the main process.
    """
    folder = training_args.output_dir
    outputs = {
        name: predict(run.split(name, f"--{option}"), prefix)
        for option, name, prefix, _ in SCORED_SPLITS
        if getattr(training_args, option)
    }
    for name in ("train", "validation") if data_args.detector else ("validation",) if data_args.report else ():
        if name not in outputs and (data_args.detector or name in run.seen):
            outputs[name] = predict(run.split(name, "--detector"), None)
    if is_main_process:
        detector = find_detector(run, data_args, training_args, outputs, model_name_or_path)
        metrics = {}
        for option, name, prefix, short_name in SCORED_SPLITS:
            if getattr(training_args, option):
                metrics |= metrics_by_data_set(run.seen[name], outputs[name], prefix)
                in_scope = None
                if detector is not None:
                    in_scope = detector.predict(outputs[name].as_model_outputs()).numpy()
                    metrics |= out_of_scope_metrics(outputs[name], detector, in_scope, prefix)
                path = os.path.join(folder, f"predictions_{short_name}.tsv")
                write_predictions(path, outputs[name], run.model.config.id2label, in_scope)
        reports = write_reports(run, data_args, training_args, outputs, detector) if data_args.report else {}
        results = update_results(folder, metrics)
        if training_args.do_train:
            write_card(run, data_args, training_args, results, detector, reports)
    unseen_metrics = score_unseen(run, predict) if run.held_out else {}
    return update_results(folder, unseen_metrics) if is_main_process else None


def metrics_by_data_set(split, outputs, prefix):
    """Accuracy on each data set as `{prefix}_{data set}_accuracy`, if clips of several are scored together."""
    if "dataset" not in split.column_names:
        return {}
    right, names = outputs.predictions == outputs.labels, np.array(split["dataset"])
    return {f"{prefix}_{name}_accuracy": float(right[names == name].mean()) for name in np.unique(names)}


def out_of_scope_metrics(outputs, detector, in_scope, prefix):
    """
    How well the detector separates in scope from out of scope, as `{prefix}_oos_…`, and how well it and the model
    answer together, with one open class, as `{prefix}_open_…`; empty if a split has clips of one kind only.

    Args:
        outputs ([`ClipOutputs`]): The clips of a split.
        detector ([`OutOfScopeDetector`]): Scores them.
        in_scope (`np.ndarray` of shape `(clips,)`, bool): What the detector says of each.
        prefix (`str`): Prefix of the metrics' names.
    """
    known = outputs.labels >= 0
    if known.all() or not known.any():
        return {}
    detection = compute_oos_metrics(detector.score(outputs.as_model_outputs()).numpy(), known.astype(int))
    metrics = {f"{prefix}_oos_{name}": detection[name] for name in OOS_METRICS}
    metrics[f"{prefix}_oos_caught"] = float((~in_scope[~known]).mean())
    metrics[f"{prefix}_oos_kept"] = float(in_scope[known].mean())
    predictions = np.where(in_scope, outputs.predictions, OUT_OF_SCOPE_ID)
    together = compute_open_classification_metrics(predictions, outputs.labels)
    return metrics | {f"{prefix}_open_{name}": together[name] for name in OPEN_METRICS}


def find_detector(run, data_args, training_args, outputs, model_name_or_path):
    """The detector to answer with: the requested one, fitted now and saved; else the saved model's; else none."""
    folder = training_args.output_dir
    if data_args.detector is not None:
        (detector,) = fit_detectors(
            run.model, outputs["train"], outputs["validation"], data_args.detector_keep, [data_args.detector]
        )
        detector.save_pretrained(folder)
        return detector
    if not training_args.do_train:
        return model_name_or_path and OutOfScopeDetector.from_pretrained(model_name_or_path, missing_ok=True)
    for name in (DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME):  # from an earlier run; it would be used for this model
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    return None


def write_reports(run, data_args, training_args, outputs, detector):
    """`report/dev` and `report/test`, for the splits that are scored. Returns split → what `report` returned."""
    spans = None if data_args.evidence_spans is None else read_evidence_spans(data_args.evidence_spans)
    return {
        short_name: report(
            run.model,
            run.seen[name],
            AMESSDataCollator(run.processor),
            os.path.join(training_args.output_dir, "report", short_name),
            short_name,
            outputs=outputs[name],
            calibration_outputs=outputs.get("validation"),
            detectors=() if detector is None else (detector,),
            evidence_spans=spans,
        )
        for option, name, _, short_name in SCORED_SPLITS
        if getattr(training_args, option)
    }


def write_card(run, data_args, training_args, results, detector, reports):
    """The model card, with the metrics of this run."""
    names = ",".join(
        os.path.basename(os.path.abspath(folder)) if name == "folder" else name  # a folder is called by its name
        for name, folder in data_folders(data_args).items()
    )
    last_report = reports.get("test", reports.get("dev"))
    try:
        card = create_model_card(
            run.model,
            results,
            names,
            training_args.hub_model_id,
            detector,
            last_report,
            data_args.license,
            data_args.language and [code.strip() for code in data_args.language.split(",")],
            training_arguments=training_args.to_dict(),
        )
    except ImportError as error:
        logger.warning(f"no model card is written: {error}")
        return
    card.save(os.path.join(training_args.output_dir, "README.md"))


def score_unseen(run, predict):
    """Accuracy on seen and unseen intents among all, by similarity alone and combined with the classifier."""
    config = run.model.config
    run.model.set_label_descriptions(run.label_descriptions, run.processor.tokenizer)
    labels, wanted = labels_of(run.dataset), {intent.casefold() for intent in run.held_out}
    unseen = [index for index, label in enumerate(labels) if label.casefold() in wanted]
    metrics, weight = {}, config.label_similarity_weight
    for path, share in (("similarity", 1.0), ("combined", weight)):
        config.label_similarity_weight = share
        outputs = predict(run.dataset["validation"], None)
        for name, value in generalized_accuracy(outputs.predictions, outputs.labels, unseen).items():
            metrics[f"eval_{path}_{name}"] = value
    config.label_similarity_weight = weight
    return metrics


def run_for_each_seed(run, model_args, data_args, training_args, output_dir=None):
    """
    Call `run(model_args, data_args, training_args)`; with `--seeds` once for each, in its own folder, and then write
    `aggregate.csv` and `aggregate.md` over them. A seed that has its metrics is not run again, and an interrupted one
    resumes from its last complete checkpoint. No other process may work in the folder at the same time.
    """
    logging.set_verbosity(training_args.get_process_log_level())
    with progress_bars(hidden=training_args.disable_tqdm):
        return run_seeds(run, model_args, data_args, training_args, output_dir or training_args.output_dir)


def run_seeds(run, model_args, data_args, training_args, output_dir):
    """See [`run_for_each_seed`]."""
    check_arguments(model_args, data_args, training_args)
    seeds = data_args.seed_list()
    if seeds is None:
        check_output_dir(output_dir)
        with alone(training_args, output_dir):
            return run(model_args, data_args, training_args)
    for seed in seeds:
        args = copy.deepcopy(training_args)
        args.seed, args.output_dir = seed, seed_folder(output_dir, seed)
        args.resume_from_checkpoint = "True"
        check_output_dir(args.output_dir)
        with alone(args, args.output_dir):
            run(model_args, data_args, args)
    results = load_seed_results(output_dir, seeds)
    if training_args.process_index == 0:
        write_aggregate(aggregate_runs(results), output_dir)
    return results


def alone(training_args, folder):
    """Lock the folder, on the process that writes."""
    return locked(folder) if training_args.process_index == 0 else nullcontext()


def what_is_done(run, data_args):
    """The arguments that determine the output of a run, and the clips that it scores."""
    names = ("hold_out_intents", "detector", "report", "evidence_spans")
    done = {name: getattr(data_args, name) for name in names}
    if data_args.detector is not None:
        done["detector_keep"] = data_args.detector_keep
    for option, name, *_ in SCORED_SPLITS:
        asked = getattr(run.training_args, option)
        done[option] = dataset_digest(run.dataset[name]) if asked else None
    return done | {"do_train": run.training_args.do_train}


def note_finished(run, data_args):
    """Record, last of all, what the run has done."""
    if run.training_args.process_index == 0:
        write_json(os.path.join(run.training_args.output_dir, FINISHED), what_is_done(run, data_args))


def has_done(run, data_args):
    """Whether a run in the output folder has finished everything that the arguments request."""
    try:
        with open(os.path.join(run.training_args.output_dir, FINISHED), encoding="utf-8") as file:
            done = json.load(file)
    except (OSError, ValueError):
        return False
    asked = what_is_done(run, data_args)
    return all(not value or done.get(name) == value for name, value in asked.items())
