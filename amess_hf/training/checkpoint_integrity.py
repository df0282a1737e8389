"""Complete checkpoints: folders that training can write to, and checkpoints that it can resume from."""

import json
import os
import re
import shutil
import tempfile

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..processing_amess import write_json
from .arguments import AMESSTrainingArguments


logger = logging.get_logger(__name__)

# Names and sizes of a checkpoint's files, written when all of them are complete.
MANIFEST_NAME = "checkpoint.manifest"


def check_output_dir(folder: str | os.PathLike) -> None:
    """Create the folder, and check that it is writable.

    Raises:
        ValueError: Naming the folder and what is wrong with it.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise ValueError(
            f"`--output_dir` {folder} cannot be written to ({error.strerror}); give another folder"
        ) from error


def check_free_space(args: AMESSTrainingArguments, model: torch.nn.Module) -> None:
    """Check that what training will write fits on the disk.

    Args:
        args ([`AMESSTrainingArguments`]): The output folder, what checkpoints hold and how many are kept.
        model (`torch.nn.Module`): The model.

    Raises:
        ValueError: Naming the folder, what is needed and what is free.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # A new checkpoint is written before an old one is deleted.
    checkpoints = 0 if args.save_strategy == "no" else 1 + (args.save_total_limit or 0)
    # Weights, their average, and two numbers that the optimizer keeps for each.
    copies = 1 + bool(args.weight_averaging) + 2 * (not args.save_only_model)
    needed = weights * (1 + checkpoints * copies)
    free = shutil.disk_usage(args.output_dir).free
    if free < needed:
        raise ValueError(
            f"`--output_dir` {args.output_dir} has {free / 2**20:,.0f} MiB free, but the model and {checkpoints} "
            f"checkpoint(s) take {needed / 2**20:,.0f} MiB; free some, give another folder, or keep fewer with "
            "`--save_total_limit`"
        )


def begin_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Create the folder of a checkpoint; an existing one no longer counts as complete."""
    os.makedirs(checkpoint, exist_ok=True)
    for name in (TRAINER_STATE_NAME, MANIFEST_NAME):
        if os.path.exists(os.path.join(checkpoint, name)):
            os.remove(os.path.join(checkpoint, name))


def write_manifest(checkpoint: str | os.PathLike) -> None:
    """Record which files the checkpoint has, and their sizes."""
    sizes = {}
    for folder, _, names in os.walk(checkpoint):
        for name in names:
            path = os.path.join(folder, name)
            sizes[os.path.relpath(path, checkpoint)] = os.path.getsize(path)
    write_json(os.path.join(checkpoint, MANIFEST_NAME), sizes, sort_keys=True)


def what_is_missing(checkpoint: str | os.PathLike) -> str | None:
    """Return what makes a checkpoint incomplete, or `None` if all files exist and none is truncated."""
    for name in (MANIFEST_NAME, TRAINER_STATE_NAME):
        try:
            with open(os.path.join(checkpoint, name), encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError):
            return f"{name} is missing or truncated"
        if not isinstance(content, dict):
            return f"{name} does not hold a JSON object"
        if name == MANIFEST_NAME:
            sizes = content
    for name, size in sizes.items():
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path) or os.path.getsize(path) != size:
            return f"{name} is missing or truncated"
    return None


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the latest complete checkpoint in `folder`, or `None`; those truncated while being written are skipped."""
    steps = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name)
        if match is not None and os.path.isdir(os.path.join(folder, name)):
            steps[int(match.group(1))] = os.path.join(folder, name)
    for step in sorted(steps, reverse=True):
        missing = what_is_missing(steps[step])
        if missing is None:
            return steps[step]
        logger.warning(f"{steps[step]} is skipped: {missing}")
    return None


def checkpoint_to_resume(resume_from_checkpoint: str | bool | None, folder: str | os.PathLike) -> str | None:
    """Return the checkpoint for `resume_from_checkpoint`: a folder, or `True` (also as text) for the last of the run.

    Returns:
        `str`, or `None` to start from the beginning, as `True` does if no checkpoint has been written yet.

    Raises:
        ValueError: If the given folder is not a complete checkpoint.
    """
    if resume_from_checkpoint is None or str(resume_from_checkpoint).lower() == "false":
        return None
    if str(resume_from_checkpoint).lower() == "true":
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is None:
            logger.warning(f"{folder} has no complete checkpoint yet: training starts from the beginning")
        return checkpoint
    missing = what_is_missing(resume_from_checkpoint)
    if missing is not None:
        raise ValueError(
            f"{resume_from_checkpoint} cannot be resumed from: {missing}; give `--resume_from_checkpoint` without a "
            "folder to take the last complete checkpoint of `--output_dir`"
        )
    return str(resume_from_checkpoint)
