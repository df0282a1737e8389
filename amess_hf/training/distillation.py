"""Distillation: a teacher's answers to the training clips, which the model learns from in addition to the labels."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

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


LOGITS_SUFFIX = ".safetensors"


def save_teacher_logits(
    path: str | os.PathLike, ids: Sequence[str], logits: np.ndarray, label_names: Sequence[str]
) -> None:
    """Write a teacher's answers, for [`add_teacher_logits`].

    Args:
        path (`str` or `os.PathLike`): The file, which ends in `.safetensors`.
        ids (`Sequence[str]`): The clips' ids.
        logits (`np.ndarray` of shape `(clips, labels)`): The teacher's scores.
        label_names (`Sequence[str]`): Names of the labels, in the order of the columns.

    Raises:
        ValueError: If the file extension is another.
    """
    logits = np.ascontiguousarray(logits, dtype=np.float32)
    if Path(path).suffix != LOGITS_SUFFIX:
        raise ValueError(f"{path} must end in {LOGITS_SUFFIX}")
    texts = {"ids": json.dumps(list(ids)), "label_names": json.dumps(list(label_names))}
    with written_aside(path) as partial:
        save_file({"logits": logits}, partial, metadata=texts)


def _load_teacher_logits(path: str | os.PathLike):
    """The clips' ids, the scores of shape `(clips, labels)`, and the names of the labels in a file."""
    try:
        with safe_open(path, framework="np") as file:
            logits, texts = file.get_tensor("logits"), file.metadata() or {}
        ids, names = (list(map(str, json.loads(texts[name]))) for name in ("ids", "label_names"))
        whole = logits.shape == (len(ids), len(names)) and np.isfinite(logits).all()
        problem = None if whole else f"scores of shape {logits.shape} for {len(ids)} clips and {len(names)} labels"
    except (KeyError, TypeError, SafetensorError, OSError, ValueError) as error:
        problem = " ".join(str(error).split())
    if problem is not None:
        raise ValueError(
            f"{path} is not what `save_teacher_logits` writes, a finite score for each clip and label: {problem}"
        )
    return ids, logits.astype(np.float32), names


def _teacher_answers(name_or_path: str | os.PathLike, dataset: Dataset):
    """A teacher's log-probabilities for clips, and the names of its labels."""
    if Path(name_or_path).suffix == LOGITS_SUFFIX:
        ids, logits, names = _load_teacher_logits(name_or_path)
        rows = {clip: row for row, clip in enumerate(ids)}
        missing = [clip for clip in dataset["id"] if clip not in rows]
        if missing:
            count = f"{len(missing)} of {len(dataset)} clips"
            raise ValueError(
                f"{name_or_path} has no answer to {count}, first {missing[0]!r}; let the teacher answer all"
            )
        return torch.from_numpy(logits[[rows[clip] for clip in dataset["id"]]]).log_softmax(-1), names
    fields, _ = AMESSConfig.get_config_dict(name_or_path)
    if fields.get("model_type") != AMESSConfig.model_type:
        raise ValueError(f"{name_or_path} is a {fields.get('model_type')} model; a teacher is a saved A-MESS model")
    model = AMESSForIntentClassification.from_pretrained(name_or_path)
    processor = AMESSProcessor.for_model(model.config, AutoTokenizer.from_pretrained(name_or_path))
    outputs = predict_clips(model, dataset, AMESSDataCollator(processor), 64, description="Running the teacher")
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
        log_probabilities, names = _teacher_answers(teacher, dataset)
        columns = {name.casefold(): column for column, name in enumerate(names)}
        missing = [name for name in label_names if name.casefold() not in columns]
        if missing:
            raise ValueError(f"the teacher {teacher} does not know {', '.join(missing)}; give one that knows all")
        answers.append(log_probabilities[:, [columns[name.casefold()] for name in label_names]])
    mean = torch.stack(answers).logsumexp(0) - math.log(len(answers))
    return dataset.add_column("teacher_logits", list(mean.numpy()))
