"""Distillation: a teacher's answers to the training clips, which the model learns from in addition to the labels."""

import math
import os
from collections.abc import Sequence

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from ..configuration_amess import AMESSConfig
from ..data.collator import AMESSDataCollator
from ..evaluation.prediction import predict_clips
from ..modeling_amess import AMESSForIntentClassification
from ..processing_amess import AMESSProcessor


def _teacher_answers(name_or_path: str | os.PathLike, dataset: Dataset):
    """A teacher's log-probabilities for clips, and the names of its labels."""
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
            A saved A-MESS model, or several, whose probabilities are averaged. Another teacher's logits can be added with
            `dataset.add_column("teacher_logits", ...)`.
        label_names (`Sequence[str]`): The student's labels, in the order of their ids; each teacher must know them
            all.

    Returns:
        `datasets.Dataset`: The clips with one more column.

    Raises:
        ValueError: If a teacher lacks a label, or is no A-MESS model.
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
