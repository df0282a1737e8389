#!/usr/bin/env python3
"""
Train A-MESS on MIntRec, MIntRec2.0 or your own clips, evaluate it and name the intents of the test clips.

    python examples/run_mir.py --dataset_name mintrec --data_dir path/to/MIntRec \
        --text_model_name_or_path bert-base-uncased --output_dir runs/mintrec --do_train --do_eval --do_predict

Arguments come from the command line, or from one JSON file: `run_mir.py arguments.json`.
"""

import copy
import difflib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import aggregation
import combining
import numpy as np
import torch
from command_line import ArgumentParser, one_line_errors, progress_bars
from datasets import ClassLabel, DatasetDict, load_dataset
from transformers import AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from amess_hf import (
    AMESSConfig,
    AMESSDataCollator,
    AMESSForIntentClassification,
    AMESSProcessor,
    AMESSTrainer,
    AMESSTrainingArguments,
    OutOfScopeDetector,
    load_mintrec,
)
from amess_hf.configuration_amess import FEATURE_MODALITIES, OUT_OF_SCOPE_ID, AMESSFeatureConfig
from amess_hf.data.clip_features import add_clip_features
from amess_hf.data.dataset_files import NO_FEATURES
from amess_hf.data.mintrec import with_feature_arrays
from amess_hf.datasets_amess import DATASETS, feature_sizes, merge_fields
from amess_hf.descriptions_amess import describe_labels
from amess_hf.evaluation import fit_detectors, predict_masked, read_evidence_spans, report
from amess_hf.evaluation import metrics as figures
from amess_hf.evaluation.model_card import create_model_card
from amess_hf.evaluation.prediction import ClipOutputs, write_predictions
from amess_hf.evaluation.tables import write_csv
from amess_hf.hub import push_folder
from amess_hf.oos_amess import DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME, OOS_METHODS
from amess_hf.processing_amess import write_json
from amess_hf.training import add_lora, add_teacher_logits, run_state


logger = logging.get_logger("amess_hf.run_mir")

FINISHED = "finished.json"  # written last: what a run has done
LEFT_OUT = "left_out.csv"  # clips that could not be read, and why
# What a run leaves in its folder and another one would not overwrite.
LEFT_BEHIND = ("checkpoint-*", "report", "*_results.json", "predictions_*.tsv", "trainer_state.json")
# Split -> the option that scores it, the prefix of its metrics, and its name in files.
SPLITS = {"validation": ("do_eval", "eval", "dev"), "test": ("do_predict", "test", "test")}


# Arguments


def optional(help_text):
    return HfArg(default=None, help=help_text)


@dataclass
class ModelArguments:
    """The model to start from, and fields of its configuration."""

    _argument_group_name = "model"

    text_model_name_or_path: str | None = optional("Text encoder to train from: on the Hub, or a folder.")
    model_name_or_path: str | None = optional("Saved A-MESS model to evaluate or to train further.")
    config_overrides: str | None = optional("As num_anchors=4,audio_config.max_length=400,text_prefix=null.")
    teacher_model_name_or_path: str | None = optional("Learn from these A-MESS models too.")
    lora_rank: int | None = optional("Train an adapter of this rank in place of the text encoder.")
    lora_target_modules: list[str] | None = optional("Layers to adapt; all linear ones if not given.")
    load_in: Literal["4bit", "8bit"] | None = optional("Quantize the text encoder (with --lora_rank).")


@dataclass
class DataArguments:
    """The clips to train on and to evaluate."""

    _argument_group_name = "data"

    dataset_name: str = HfArg(default="mintrec", help="mintrec, mintrec2.0, folder or org/name; several with commas.")
    data_dir: str | None = optional("Folder of the data set, or several, in the same order.")
    audio_features: str | None = optional("Name or path of audio features, or none.")
    video_features: str | None = optional("Name or path of video features, or none.")
    audio_encoder: str | None = optional("Encode raw clips: log-mel, or a model on the Hub.")
    audio_encoder_layer: int | None = optional("Layer of the audio encoder whose states to take.")
    video_encoder: str | None = optional("Encode raw clips: hog, hog-grid, or a model on the Hub.")
    allow_missing_features: bool = HfArg(default=False, help="A clip without features lacks that modality.")
    on_error: Literal["raise", "skip"] = HfArg(default="raise", help="At a clip that cannot be read.")
    label_granularity: Literal["fine", "coarse"] = HfArg(default="fine", help="The intents, or Emotion and Goal.")
    label_descriptions: str | None = optional("JSON that describes the intents; not needed for MIntRec.")
    context_turns: int | None = optional("Earlier turns to read; by default none, or as the saved model.")
    hold_out_intents: str | None = optional("Evaluate these as unseen, e.g. Joke,Care or fold:1/4.")
    train_clips_per_intent: int | None = optional("Train on this many clips of each intent.")
    out_of_scope_clips: bool = HfArg(default=False, help="Load the out-of-scope clips of the data set too.")


@dataclass
class RunArguments:
    """How often to train, and what to make of the trained model."""

    _argument_group_name = "run"

    seeds: str | None = optional("Train once for each of these seeds, e.g. 0,1,2, and aggregate.")
    overwrite_run: bool = HfArg(default=False, help="Remove a run with other arguments from the output folder.")
    detector: Literal[tuple(OOS_METHODS)] | None = optional("Out-of-scope score to fit and save.")
    detector_keep: float = HfArg(default=0.95, help="Share of the known dev clips that the detector accepts.")
    report: bool = HfArg(default=False, help="Write report/ with tables and plots.")
    evidence_spans: str | None = optional("Table of the frames with evidence, for the report's anchors.")
    license: str | None = optional("License of the model in its card, e.g. apache-2.0.")
    language: str | None = optional("Languages of the clips in the card, e.g. en,de.")

    def __post_init__(self):
        self.report = self.report or self.evidence_spans is not None


def parse_arguments(arguments: list[str] | None = None, description: str | None = __doc__):
    """`ModelArguments`, `DataArguments`, `RunArguments` and `AMESSTrainingArguments`."""
    types = (ModelArguments, DataArguments, RunArguments, AMESSTrainingArguments)
    parsed = ArgumentParser(types, description=description).parse(arguments)
    check_arguments(*parsed)
    return parsed


def check_arguments(model_args, data_args, run_args, training_args):
    """Refuse what would fail only after training, or be ignored."""
    new, few = model_args.text_model_name_or_path, data_args.train_clips_per_intent
    quantizes = f"`--load_in {model_args.load_in}` is for a new model with an adapter"
    does = training_args.do_train or training_args.do_eval or training_args.do_predict
    for holds, problem in (
        (does, "give `--do_train`, `--do_eval` or `--do_predict`, or several of them"),
        (new or model_args.model_name_or_path, "give `--text_model_name_or_path`, or `--model_name_or_path`"),
        (not model_args.load_in or (new and model_args.lora_rank), f"{quantizes}; give `--lora_rank` too"),
        (few is None or few > 0, f"`--train_clips_per_intent` is {few}; it must be at least 1"),
        (0 < run_args.detector_keep <= 1, f"`--detector_keep` is {run_args.detector_keep}; it must be in (0, 1]"),
    ):
        if not holds:
            raise ValueError(problem)
    read_overrides(model_args.config_overrides)
    if run_args.evidence_spans is not None:
        read_evidence_spans(run_args.evidence_spans)


def seeds_of(run_args) -> list[int]:
    """The seeds of `--seeds`, if there are any."""
    names = [] if run_args.seeds is None else [name.strip() for name in run_args.seeds.split(",")]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"\d{1,9}", name) for name in names):
        raise ValueError(f"`--seeds {run_args.seeds}` must be different numbers below 10^9, such as 0,1,2")
    return [int(name) for name in names]


def read_overrides(text: str | None) -> dict[str, Any]:
    """Fields of [`AMESSConfig`] from text such as `num_anchors=4,audio_config.max_length=400,text_prefix=null`."""
    prefixes = {"": AMESSConfig, **{f"{name}_config.": AMESSFeatureConfig for name in FEATURE_MODALITIES}}
    types = {
        prefix + name: get_args(annotation) or (annotation,)
        for prefix, config_class in prefixes.items()
        for name, annotation in config_class.__annotations__.items()
    }
    known = [name for name in types if {int, float, str} & set(types[name])]
    overrides = {}
    for pair in re.split(r",(?=\s*[\w.]+\s*=)", text) if text else ():
        path, _, value = pair.partition("=")
        path = path.strip()
        if path not in known or hasattr(DataArguments, path):  # such as `context_turns`, which the clips follow too
            near = (
                f"--{path}" if hasattr(DataArguments, path) else difflib.get_close_matches(path, known, 1, cutoff=0)[0]
            )
            raise ValueError(f"`--config_overrides`: there is no field {path!r} to set; did you mean {near}?")
        for kind in (int, float):
            if kind in types[path] and isinstance(value, str):
                with suppress(ValueError):  # a text that is no number is refused by the configuration
                    value = kind(value)
        *group, name = path.split(".")
        fields = overrides.setdefault(group[0], {}) if group else overrides
        fields[name] = None if value == "null" else value
    return overrides


# Data


def data_folders(data_args) -> dict[str, str | None]:
    """The data sets that are named, each with its folder, or `None` for one on the Hub."""
    names = list(dict.fromkeys(name.strip() for name in data_args.dataset_name.split(",")))
    folders = [folder.strip() for folder in (data_args.data_dir or "").split(",") if folder.strip()]
    local = [name for name in names if "/" not in name]
    if len(local) != len(folders):
        found = f"`--dataset_name` names {len(local)} local data set(s) and `--data_dir` {len(folders)} folder(s)"
        raise ValueError(f"{found}; give one folder for each (`organization/name` is on the Hub and takes none)")
    places = dict(zip(local, folders, strict=True))
    return {name: places.get(name) for name in names}


def load_clips(data_args, seed: int, left_out: dict[str, str] | None = None) -> DatasetDict:
    """
    One data set, or several with the union of their labels.

    Args:
        data_args ([`DataArguments`]): The arguments.
        seed (`int`): Seed of the draw of `train_clips_per_intent`.
        left_out (`dict[str, str]`, *optional*): Takes clips that could not be read, and why, with `--on_error skip`.
    """
    datasets = {
        name: load_from_hub(name) if folder is None else load_from_folder(name, folder, data_args, left_out)
        for name, folder in data_folders(data_args).items()
    }
    dataset = combining.merge_datasets(datasets) if len(datasets) > 1 else next(iter(datasets.values()))
    if data_args.train_clips_per_intent is not None and "train" in dataset:
        dataset["train"] = combining.few_clips(dataset["train"], data_args.train_clips_per_intent, seed)
    return dataset


def load_from_folder(name, folder, data_args, left_out):
    """A local data set, with features from its files or made from its clips."""
    shared = {name: getattr(data_args, name) for name in ("label_granularity", "allow_missing_features", "on_error")}
    dataset = load_mintrec(
        folder,
        name=name,
        scope="all" if data_args.out_of_scope_clips else "in",
        audio_features=NO_FEATURES if data_args.audio_encoder else data_args.audio_features,
        video_features=NO_FEATURES if data_args.video_encoder else data_args.video_features,
        context_turns=data_args.context_turns or 0,
        **shared,
    )
    encoders = {name: getattr(data_args, name) for name in ("audio_encoder", "audio_encoder_layer", "video_encoder")}
    return add_clip_features(dataset, data_dir=folder, on_error=data_args.on_error, failures=left_out, **encoders)


def load_from_hub(name):
    """A data set that was pushed to the Hub."""
    dataset = with_feature_arrays(load_dataset(name))
    features = next(iter(dataset.values())).features
    if not {"id", "text"} <= set(features) or not isinstance(features.get("label"), ClassLabel):
        needed = "`id`, `text` and `label`, a `ClassLabel`, as `load_mintrec(...).push_to_hub` writes them"
        raise ValueError(f"{name} has the columns {', '.join(features)}; it needs {needed}")
    return dataset


def check_splits(dataset, data_args, run_args, training_args):
    """Before training: every split that is needed is there, and what is scored has no label that training lacks."""
    needed = {option: name for name, (option, *_) in SPLITS.items() if getattr(training_args, option)}
    needed |= {"do_train": "train"} if training_args.do_train else {}
    needed |= {"detector": "train" if "train" not in dataset else "validation"} if run_args.detector else {}
    needed |= {"hold_out_intents": "validation"} if data_args.hold_out_intents else {}
    for option, name in needed.items():
        if not dataset.get(name):
            has = ", ".join(split for split in dataset if len(dataset[split]))
            raise ValueError(f"`--{option}` needs the split `{name}`, but the data has only {has}")
    dev = dataset.get("validation")
    if training_args.do_train and training_args.eval_strategy != "no" and dev and max(dev["label"]) < 0:
        raise ValueError("no dev clip has an intent: give `--eval_strategy no --load_best_model_at_end False`")


def warn_of_unknown_labels(dataset):
    """Name the labels that are scored but never trained on."""
    names = combining.labels_of(dataset)
    ids = {name: set(split["label"][:]) for name, split in dataset.items()}
    for name in ids:
        unknown = [names[number] for number in sorted(ids[name] - ids["train"]) if number >= 0]
        if unknown:
            logger.warning(f"{name} has labels that train lacks, whose clips are answered wrong: {unknown}")


def find_label_descriptions(data_args, labels) -> dict[str, list[str]] | None:
    """Descriptions of the labels: from the given file, or the shipped ones; `None` if a label has none."""
    if data_args.label_descriptions is not None:
        return describe_labels(labels, data_args.label_descriptions)
    shipped = [name for name in data_folders(data_args) if name in DATASETS and data_args.label_granularity == "fine"]
    try:
        return describe_labels(labels, shipped)
    except ValueError:
        logger.warning(
            "no label descriptions (`--label_descriptions FILE`): of semantic synchronization, only the triplets between "
            "clips are trained"
        )
        return None


# Model


def load_tokenizer(name):
    """The tokenizer of a saved model or a text encoder."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:  # transformers does not always name it
        raise ValueError(f"{name} is not a saved model that can be loaded: {error}") from error


def new_model(model_args, data_args, dataset, descriptions, tokenizer):
    """A new model around a pretrained text encoder; what is not given follows from the clips."""
    quantization = None
    if model_args.load_in is not None:  # 4 bits as in QLoRA (arXiv 2305.14314)
        types = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
        quantization = BitsAndBytesConfig(**{f"load_in_{model_args.load_in}": True}, **types)
    return AMESSForIntentClassification.from_text_pretrained(
        model_args.text_model_name_or_path,
        label_descriptions=descriptions,
        tokenizer=tokenizer,
        dataset=next(iter(dataset.values())),
        audio_encoder=data_args.audio_encoder,
        audio_encoder_layer=data_args.audio_encoder_layer,
        video_encoder=data_args.video_encoder,
        context_turns=data_args.context_turns or 0,
        quantization_config=quantization,
        **read_overrides(model_args.config_overrides),
    )


def saved_config(model_args) -> AMESSConfig:
    """A saved model's configuration, with the fields that were given."""
    name = model_args.model_name_or_path
    fields, _ = AMESSConfig.get_config_dict(name)
    if fields.get("model_type") != AMESSConfig.model_type:
        problem = f"{name} is a {fields.get('model_type')} model; `--model_name_or_path` takes a saved A-MESS model"
        raise ValueError(f"{problem}, and `--text_model_name_or_path` a text encoder to train one from")
    return AMESSConfig.from_dict(merge_fields(fields, read_overrides(model_args.config_overrides)))


def saved_model(model_args, config, data_args, dataset):
    """A saved model, whose weights fit the given fields, for clips whose features fit the model."""
    model, info = AMESSForIntentClassification.from_pretrained(
        model_args.model_name_or_path, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if model_args.config_overrides and any(info[f"{name}_keys"] for name in ("missing", "mismatched", "unexpected")):
        problem = f"`--config_overrides {model_args.config_overrides}`: the saved weights do not fit"
        raise ValueError(f"{problem}; train a new model with `--text_model_name_or_path`")
    sizes = feature_sizes(next(iter(dataset.values())))
    for modality in FEATURE_MODALITIES:
        trained = config.feature_configs.get(modality) or AMESSFeatureConfig()
        encoder, layer = (getattr(data_args, f"{modality}_{name}", None) for name in ("encoder", "encoder_layer"))
        given = (encoder or trained.encoder, layer if encoder else trained.encoder_layer, sizes.get(modality))
        expected = (trained.encoder, trained.encoder_layer, trained.feature_size if modality in sizes else None)
        if trained.feature_size and modality not in sizes:
            logger.warning(f"the model takes {modality}, and the data has none: it answers without")
        if given != expected and (encoder or trained.feature_size):
            names = f"(encoder, layer, width) is {given}, but the model was trained with {expected}"
            raise ValueError(f"the data's {modality}: {names}; see `--{modality}_encoder`, `--{modality}_features`")
    return model


def as_trained(data_args, config):
    """The data arguments with the encoders and the turns of context of a saved model, unless others are given."""
    chosen = {} if data_args.context_turns is not None else {"context_turns": config.context_turns}
    for modality, features in config.feature_configs.items():
        if not (getattr(data_args, f"{modality}_encoder") or getattr(data_args, f"{modality}_features")):
            chosen[f"{modality}_encoder"] = features.encoder
            if modality == "audio" and data_args.audio_encoder_layer is None:
                chosen["audio_encoder_layer"] = features.encoder_layer
    return replace(data_args, **chosen)


@dataclass
class Run:
    """What a run works on: arguments, clips, model.

    Attributes:
        dataset (`DatasetDict`): The clips, with all intents.
        seen (`DatasetDict`): The clips of the trained intents, with the model's label ids.
        held_out (`list[str]`): The other intents.
        descriptions (`dict[str, list[str]]`, *optional*): Sentences for all intents.
        left_out (`dict[str, str]`): Clips that could not be read, and why.
    """

    model_args: ModelArguments
    data_args: DataArguments
    run_args: RunArguments
    training_args: AMESSTrainingArguments
    dataset: DatasetDict
    seen: DatasetDict
    held_out: list[str]
    descriptions: dict[str, list[str]] | None
    left_out: dict[str, str]
    model: AMESSForIntentClassification
    processor: AMESSProcessor


def prepare(model_args, data_args, run_args, training_args) -> Run:
    """Load the clips and the model."""
    set_seed(training_args.seed)
    source, left_out = model_args.model_name_or_path, {}
    tokenizer = load_tokenizer(source or model_args.text_model_name_or_path)
    config = saved_config(model_args) if source else None
    data_args = as_trained(data_args, config) if source else data_args
    with training_args.main_process_first(desc="loading the clips"):  # which fills the cache
        dataset = load_clips(data_args, training_args.seed, left_out)
    check_splits(dataset, data_args, run_args, training_args)
    labels = combining.labels_of(dataset)
    descriptions = find_label_descriptions(data_args, labels)
    held_out = combining.intents_to_hold_out(data_args.hold_out_intents or "", labels)
    if descriptions is None and (held_out or run_args.detector == "label_similarity"):
        raise ValueError("`--hold_out_intents` and label_similarity compare clips with `--label_descriptions FILE`")
    seen = combining.hold_out_intents(dataset, held_out) if held_out else dataset
    if training_args.do_train:
        warn_of_unknown_labels(seen)
    else:
        training_args.eval_strategy, training_args.load_best_model_at_end = "no", False
    if source:
        model = saved_model(model_args, config, data_args, seen)
    else:
        model = new_model(model_args, data_args, seen, descriptions, tokenizer)
    if model_args.lora_rank is not None:
        base = None if source else model_args.text_model_name_or_path
        add_lora(model, model_args.lora_rank, model_args.lora_target_modules, base_model_name_or_path=base)
    seen = combining.in_labels_of(model.config, seen, data_args.dataset_name)
    if model_args.teacher_model_name_or_path is not None and training_args.do_train:
        teachers = [name.strip() for name in model_args.teacher_model_name_or_path.split(",")]
        with training_args.main_process_first(desc="running the teacher"):
            seen["train"] = add_teacher_logits(seen["train"], teachers, combining.labels_of(seen))
    num_clips = len(seen["train"]) if training_args.do_train else None
    training_args = training_args.for_model(model.config, "validation" in seen, num_clips)
    processor = AMESSProcessor.for_model(model.config, tokenizer)
    return Run(
        model_args, data_args, run_args, training_args,
        dataset, seen, held_out, descriptions, left_out, model, processor,
    )  # fmt: skip


# Training


def train_and_evaluate(*arguments) -> dict:
    """One training and evaluation. Returns the content of `all_results.json`."""
    run = prepare(*arguments)
    args, request = run.training_args, what_is_asked(run, AMESSTrainer.__name__)
    if is_finished(run, request):
        return aggregation.update_results(args.output_dir, {})
    claim_folder(run, request)
    train, dev = run.seen["train"] if args.do_train else None, run.seen.get("validation")
    trainer = AMESSTrainer(run.model, args, train_dataset=train, eval_dataset=dev, processing_class=run.processor)
    if args.do_train:
        result = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
        trainer.save_state()

    def predict(split, prefix):
        outputs, metrics = trainer.predict_clips(split, metric_key_prefix=prefix or "test")
        if prefix is not None:
            trainer.log_metrics(prefix, metrics)
            trainer.save_metrics(prefix, metrics)
        return outputs

    results = evaluate(run, predict)
    if args.push_to_hub and trainer.is_world_process_zero():
        push_folder(args.output_dir, trainer.hub_model_id, args.hub_token, args.hub_revision, "End of training")
    return results


def what_is_asked(run, written_by) -> dict:
    """All that the model in the output folder, or the metrics of one that is only scored, depend on."""
    if not run.training_args.do_train:
        return {"written_by": "scoring", **run_state.model_request(run.model)}
    splits = (run.seen["train"], run.seen.get("validation"))
    return run_state.training_request(run.model, run.training_args, *splits, written_by)


def another_run(run, request, may_be_longer=False) -> str | None:
    """Why the run in the output folder is another one; `None` if it is not, or left neither checkpoint nor metrics."""
    folder = Path(run.training_args.output_dir)
    has_results = any(folder.glob("checkpoint-*")) or (folder / aggregation.ALL_RESULTS_NAME).is_file()
    return run_state.record_changes(folder, request, may_be_longer) if has_results else None


def claim_folder(run, request):
    """Record in the output folder what the run was asked for; refuse one that holds another run, or remove that."""
    args, source = run.training_args, run.model_args.model_name_or_path
    folder = args.output_dir
    if not args.do_train and source is not None and os.path.realpath(source) == os.path.realpath(folder):
        return  # a model is scored in its own folder, whose record stays
    may_be_longer = args.resume_from_checkpoint is not None and run.run_args.seeds is None
    reason = another_run(run, request, may_be_longer)
    if reason is not None and not run.run_args.overwrite_run:
        raise ValueError(
            f"{folder} holds another run: {reason}; give another `--output_dir`, or `--overwrite_run` to start again"
        )
    if args.process_index == 0:
        old = [path for pattern in (*LEFT_BEHIND, FINISHED, LEFT_OUT) for path in Path(folder).glob(pattern)]
        for path in old if reason is not None else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_state.write_record(folder, request)
        if run.left_out:
            write_csv(os.path.join(folder, LEFT_OUT), ["id", "reason"], run.left_out.items())


def what_is_done(run) -> dict:
    """What a run makes of its model, and of which clips."""
    done = {**vars(run.run_args), "do_train": run.training_args.do_train, "held_out": run.held_out}
    for name, (option, *_) in SPLITS.items():
        done[option] = getattr(run.training_args, option) and run_state.dataset_digest(run.dataset[name])
    return {name: value for name, value in done.items() if value and name not in ("seeds", "overwrite_run")}


def is_finished(run, request) -> bool:
    """Whether, with `--seeds`, the output folder has all that is asked for already."""
    if run.run_args.seeds is None or another_run(run, request) is not None:
        return False
    try:
        done = json.loads(Path(run.training_args.output_dir, FINISHED).read_text(encoding="utf-8"))
        return what_is_done(run).items() <= done.items()
    except (OSError, ValueError):
        return False


# Evaluation


def evaluate(run: Run, predict: Callable[[Any, str | None], ClipOutputs]) -> dict:
    """
    Score the splits of `--do_eval` and `--do_predict`, and held-out intents; write predictions, metrics, detector, report
    and model card.

    Args:
        run ([`Run`]): The clips and the trained model.
        predict (`Callable`):
            `predict(split, prefix)` gives the [`ClipOutputs`] of a split on every process, and writes its metrics as
            `{prefix}_…` into `all_results.json` unless `prefix` is `None`.

    Returns:
        `dict`: The content of `all_results.json`; only on the main process.
    """
    args, run_args, folder = run.training_args, run.run_args, run.training_args.output_dir
    scored = {name: names for name, (option, *names) in SPLITS.items() if getattr(args, option)}
    outputs = {name: predict(run.seen[name], prefix) for name, (prefix, _) in scored.items()}
    for name in ("train", "validation") if run_args.detector else ("validation",) if run_args.report else ():
        if name not in outputs and name in run.seen:
            outputs[name] = predict(run.seen[name], None)
    if args.process_index == 0:
        detector, metrics = find_detector(run, outputs), {}
        for name, (prefix, short_name) in scored.items():
            split = outputs[name]
            in_scope = None if detector is None else detector.predict(split.as_model_outputs()).numpy()
            metrics |= metrics_by_data_set(run.seen[name], split, prefix)
            metrics |= out_of_scope_metrics(split, detector, in_scope, prefix)
            write_predictions(f"{folder}/predictions_{short_name}.tsv", split, run.model.config.id2label, in_scope)
        results = aggregation.update_results(folder, metrics)
        reports = write_reports(run, scored, outputs, detector) if run_args.report else {}
        if args.do_train:
            write_card(run, results, detector, reports)
    unseen_metrics = score_unseen(run, predict) if run.held_out else {}
    if args.process_index > 0:
        return {}
    results = aggregation.update_results(folder, unseen_metrics)
    write_json(os.path.join(folder, FINISHED), what_is_done(run))
    return results


def find_detector(run, outputs) -> OutOfScopeDetector | None:
    """The detector to answer with: the requested one, fitted now and saved; else the saved model's; else none."""
    folder, run_args = run.training_args.output_dir, run.run_args
    if run_args.detector is not None:
        splits, keep = (outputs["train"], outputs["validation"]), run_args.detector_keep
        incomplete = predict_masked(run.model, run.seen["validation"], AMESSDataCollator(run.processor))
        masked = [outputs for _, outputs in incomplete]
        (detector,) = fit_detectors(run.model, *splits, keep, [run_args.detector], masked)
        detector.save_pretrained(folder)
        return detector
    if not run.training_args.do_train:
        saved = OutOfScopeDetector.from_pretrained(run.model_args.model_name_or_path, missing_ok=True)
        if saved is not None:
            saved.check_model(run.model.config)
        return saved
    for name in (DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME):  # of an earlier run; it would be used for this model
        Path(folder, name).unlink(missing_ok=True)
    return None


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
    """
    known = outputs.labels >= 0
    if detector is None or known.all() or not known.any():
        return {}
    detection = figures.compute_oos_metrics(detector.score(outputs.as_model_outputs()).numpy(), known.astype(int))
    predictions = np.where(in_scope, outputs.predictions, OUT_OF_SCOPE_ID)
    together = figures.compute_open_classification_metrics(predictions, outputs.labels)
    return {
        **{f"{prefix}_oos_{name}": detection[name] for name in figures.OOS_METRICS},
        f"{prefix}_oos_caught": float((~in_scope[~known]).mean()),
        f"{prefix}_oos_kept": float(in_scope[known].mean()),
        **{f"{prefix}_open_{name}": together[name] for name in figures.OPEN_METRICS},
    }


def score_unseen(run, predict):
    """Accuracy on seen and unseen intents among all, by similarity alone and combined with the classifier."""
    config, held_out = run.model.config, {intent.casefold() for intent in run.held_out}
    run.model.set_label_descriptions(run.descriptions, run.processor.tokenizer)
    unseen = [i for i, label in enumerate(combining.labels_of(run.dataset)) if label.casefold() in held_out]
    metrics, weight = {}, config.label_similarity_weight
    for path, share in (("similarity", 1.0), ("combined", weight)):
        config.label_similarity_weight = share
        outputs = predict(run.dataset["validation"], None)
        accuracies = figures.generalized_accuracy(outputs.predictions, outputs.labels, unseen)
        metrics |= {f"eval_{path}_{name}": value for name, value in accuracies.items()}
    config.label_similarity_weight = weight
    return metrics


# Report


def write_reports(run, scored, outputs, detector) -> dict[str, dict]:
    """`report/dev` and `report/test`. Returns split → what `report` returned."""
    spans = run.run_args.evidence_spans and read_evidence_spans(run.run_args.evidence_spans)
    collator, detectors = AMESSDataCollator(run.processor), [] if detector is None else [detector]
    reports = {}
    for name, (_, short_name) in scored.items():
        folder = os.path.join(run.training_args.output_dir, "report", short_name)
        reports[short_name] = report(
            run.model, run.seen[name], collator, folder, short_name, detectors,
            outputs=outputs[name], evidence_spans=spans,
        )  # fmt: skip
    return reports


def write_card(run, results, detector, reports):
    """The model card, with the metrics of this run."""
    args, languages, folders = run.training_args, run.run_args.language, data_folders(run.data_args)
    # A folder is called by its name.
    names = [Path(folder).resolve().name if name == "folder" else name for name, folder in folders.items()]
    try:
        card = create_model_card(
            run.model, results, ",".join(names), args.hub_model_id, detector, reports.get("test", reports.get("dev")),
            run.run_args.license, languages and languages.replace(" ", "").split(","), args.to_dict(),
        )  # fmt: skip
    except ImportError as error:
        logger.warning(f"no model card is written: {error}")
    else:
        card.save(os.path.join(args.output_dir, "README.md"))


def for_each_seed(run: Callable[..., dict], model_args, data_args, run_args, training_args) -> dict:
    """
    Call `run` with the arguments, alone in the output folder; with `--seeds` once for each, in a folder of its own, and
    then write `aggregate.csv` and `aggregate.md`. A seed that has its metrics is not run again, and an interrupted one
    resumes from its last complete checkpoint.
    """
    output_dir, seeds = training_args.output_dir, seeds_of(run_args)
    logging.set_verbosity(training_args.get_process_log_level())
    with progress_bars(hidden=training_args.disable_tqdm):
        for seed in seeds or [None]:
            args = copy.deepcopy(training_args)
            if seed is not None:
                args.seed, args.output_dir = seed, aggregation.seed_folder(output_dir, seed)
                args.resume_from_checkpoint = "True"
            with run_state.locked(args.output_dir) if args.process_index == 0 else nullcontext():
                results = run(model_args, data_args, run_args, args)
        if not seeds:
            return results
        results = aggregation.load_seed_results(output_dir, seeds)
        if training_args.process_index == 0:
            aggregation.write_aggregate(aggregation.aggregate_runs(results), output_dir)
        return results


def main(arguments: list[str] | None = None) -> dict:
    """Run with these arguments, by default those of the command line. Returns the metrics, with `--seeds` of each seed."""
    return for_each_seed(train_and_evaluate, *parse_arguments(arguments))


if __name__ == "__main__":
    with one_line_errors():
        main()
