"""Distillation: a teacher's answers to the training clips, which the model learns from in addition to the labels."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from ..configuration_amess import AMESSConfig
from ..data.collator import AMESSDataCollator
from ..evaluation.prediction import predict_clips
from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import AMESSProcessor, written_aside


LOGITS_SUFFIXES = (".npz", ".safetensors")


def save_teacher_logits(
    path: str | os.PathLike, ids: Sequence[str], logits: np.ndarray, label_names: Sequence[str]
) -> None:
    """Write a teacher's answers, for `teacher_model_name_or_path`.

    Args:
        path (`str` or `os.PathLike`): The file, which ends in `.npz` or `.safetensors`.
        ids (`Sequence[str]`): The clips' ids.
        logits (`np.ndarray` of shape `(clips, labels)`): The teacher's scores.
        label_names (`Sequence[str]`): Names of the labels, in the order of the columns.

    Raises:
        ValueError: If the file extension is another, or the sizes do not match.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    if logits.shape != (len(ids), len(label_names)):
        raise ValueError(
            f"`logits` has shape {logits.shape} for {len(ids)} clips and {len(label_names)} labels; give one score for each"
        )
    suffix = _suffix(path)
    with written_aside(path) as partial:
        if suffix == ".npz":
            with open(partial, "wb") as file:
                np.savez(file, logits=logits, ids=np.array(list(ids)), label_names=np.array(list(label_names)))
        else:
            texts = {"ids": json.dumps(list(ids)), "label_names": json.dumps(list(label_names))}
            save_file({"logits": logits}, partial, metadata=texts)


def load_teacher_logits(path: str | os.PathLike) -> tuple[list[str], np.ndarray, list[str]]:
    """Read what [`save_teacher_logits`] wrote.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `tuple`: the clips' ids, the scores of shape `(clips, labels)`, and the names of the labels.

    Raises:
        ValueError: If it is not such a file.
    """
    try:
        if _suffix(path) == ".npz":
            with np.load(path, allow_pickle=False) as file:
                logits, ids, names = (file[name] for name in ("logits", "ids", "label_names"))
        else:
            with safe_open(path, framework="np") as file:
                logits, texts = file.get_tensor("logits"), file.metadata() or {}
            ids, names = (np.array(json.loads(texts[name])) for name in ("ids", "label_names"))
    except (KeyError, SafetensorError, BadZipFile, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not a file of a teacher's logits ({' '.join(str(error).split())}); write it with "
            "`save_teacher_logits`"
        ) from error
    if logits.shape != (len(ids), len(names)) or not np.isfinite(logits).all():
        raise ValueError(
            f"{path} has scores of shape {logits.shape} for {len(ids)} clips and {len(names)} labels, all of which must be "
            "there and be finite; write it again with `save_teacher_logits`"
        )
    return [str(name) for name in ids], logits.astype(np.float32), [str(name) for name in names]


def _suffix(path: str | os.PathLike):
    suffix = Path(path).suffix
    if suffix not in LOGITS_SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(LOGITS_SUFFIXES)}")
    return suffix


def teacher_answers(
    name_or_path: str | os.PathLike, dataset: Dataset, batch_size: int = 64
) -> tuple[torch.Tensor, list[str]]:
    """Return a teacher's log-probabilities for clips, and the names of its labels.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A saved A-MESS model, which is loaded and run, or a file that [`save_teacher_logits`] wrote.
        dataset (`datasets.Dataset`): The clips.
        batch_size (`int`): Clips at a time.

    Raises:
        ValueError: If a model cannot be loaded or takes other features, or a file lacks a clip.
    """
    if Path(name_or_path).suffix in LOGITS_SUFFIXES:
        ids, logits, names = load_teacher_logits(name_or_path)
        places = {clip: place for place, clip in enumerate(ids)}
        missing = [clip for clip in dataset["id"] if clip not in places]
        if missing:
            raise ValueError(
                f"{name_or_path} has no answer to {len(missing)} of {len(dataset)} clips, the first of which is "
                f"{missing[0]!r}; let the teacher answer all training clips"
            )
        rows = torch.from_numpy(logits[[places[clip] for clip in dataset["id"]]])
        return rows.log_softmax(-1), names
    fields, _ = AMESSConfig.get_config_dict(name_or_path)
    if fields.get("model_type") != AMESSConfig.model_type:
        raise ValueError(f"{name_or_path} is a {fields.get('model_type')} model; a teacher is a saved A-MESS model")
    model = AMESSForIntentClassification.from_pretrained(name_or_path)
    processor = AMESSProcessor.for_model(model.config, AutoTokenizer.from_pretrained(name_or_path))
    outputs = predict_clips(
        model, dataset, AMESSDataCollator(processor), batch_size, description="Running the teacher"
    )
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return torch.from_numpy(outputs.logits).log_softmax(-1), names


def add_teacher_logits(
    dataset: Dataset, teachers: str | os.PathLike | Sequence, label_names: Sequence[str]
) -> Dataset:
    """Add the column `teacher_logits`: what a teacher, or several on average, answers to each clip.

    Args:
        dataset (`datasets.Dataset`): Training clips.
        teachers (`str`, `os.PathLike` or a list of them):
            A saved A-MESS model, or a file that [`save_teacher_logits`] wrote; the probabilities of several are averaged.
        label_names (`Sequence[str]`): The student's labels, in the order of their ids; each teacher must know them
            all.

    Returns:
        `datasets.Dataset`: The clips with one more column.

    Raises:
        ValueError: If a teacher lacks a label or a clip, or cannot be read.
    """
    teachers = [teachers] if isinstance(teachers, str | os.PathLike) else list(teachers)
    answers = []
    for teacher in teachers:
        log_probabilities, names = teacher_answers(teacher, dataset)
        columns = {name.casefold(): column for column, name in enumerate(names)}
        missing = [name for name in label_names if name.casefold() not in columns]
        if missing:
            raise ValueError(
                f"the teacher {teacher} does not know {', '.join(missing)}; give one that knows all labels"
            )
        answers.append(log_probabilities[:, [columns[name.casefold()] for name in label_names]])
    mean = torch.stack(answers).logsumexp(0) - math.log(len(answers))
    return dataset.add_column("teacher_logits", list(mean.numpy()))
