"""What a training run leaves on disk, and how it ends before its time.

One run at a time writes to an output folder ([`locked`]). Each checkpoint records the arguments of its run and lists its
files, so that training resumes only from a complete checkpoint that was created with the same arguments. Training stops
when a loss or weight is no longer finite ([`DivergenceGuard`]), and after SIGTERM ([`Preemption`]).
"""

import errno
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import xxhash
from accelerate import Accelerator
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..processing_amess import write_json, write_text
from .arguments import AMESSTrainingArguments, default_learning_rate
from .weights import TEXT_ENCODER


logger = logging.get_logger(__name__)

LOCK_NAME = ".run.lock"
# Who holds the lock, for the error message of another run.
HOLDER_NAME = ".run.holder"
# Names and sizes of a checkpoint's files, written when all of them are complete.
MANIFEST_NAME = "checkpoint.manifest"
RUN_RECORD_NAME = "run.json"

# Training arguments that change what a run ends with. Others say where it runs, what it logs and how fast it is.
RESULT_ARGUMENTS = """
    seed data_seed num_train_epochs max_steps gradient_accumulation_steps learning_rate head_learning_rate layer_decay
    weight_decay head_weight_decay freeze_word_embeddings lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    optim_args adam_beta1 adam_beta2 adam_epsilon max_grad_norm label_update weight_averaging pretrained_share
    neftune_noise_alpha train_sampling_strategy dataloader_drop_last bf16 fp16 tf32
    early_stopping_patience load_best_model_at_end
""".split()
# Those by which a run that goes on may be longer than it was.
LENGTHS = ("num_train_epochs", "max_steps")
# The same, where a run ends with its best checkpoint or stops by its evaluations.
SELECTION_ARGUMENTS = """
    metric_for_best_model greater_is_better eval_strategy eval_steps save_strategy save_steps
""".split()
# Fields of a configuration that say where a model comes from or is kept, not what it is.
_NO_MODEL_FIELDS = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype")
# Columns with paths: data that has moved is the same.
_PATH_COLUMNS = ("clip", "audio", "video")
_ROWS_AT_A_TIME = 16

_EXIT_CODE = 128 + signal.SIGTERM
# Steps between two checks whether another process received SIGTERM; each sends one number.
_STEPS_BETWEEN_QUESTIONS = 10

_digests: dict[str, str] = {}


def check_free_space(args: AMESSTrainingArguments, model: torch.nn.Module) -> None:
    """Check that the model and the checkpoints that `args` keeps fit on the disk.

    Raises:
        ValueError: Naming the folder, what is needed and what is free.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # A new checkpoint is written before an old one is deleted.
    checkpoints = 0 if args.save_strategy == "no" else 1 + (args.save_total_limit or 0)
    # Weights, their average, and two numbers that the optimizer keeps for each.
    copies = 1 + bool(args.weight_averaging) + 2 * (not args.save_only_model)
    needed, free = weights * (1 + checkpoints * copies), shutil.disk_usage(args.output_dir).free
    if free < needed:
        raise ValueError(
            f"`--output_dir` {args.output_dir} has {free / 2**20:,.0f} MiB free, but the model and {checkpoints} checkpoint(s) "
            f"take {needed / 2**20:,.0f} MiB; free some, or keep fewer with `--save_total_limit`"
        )


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock an output folder, which is created if needed, against other processes; the system releases the lock of one that ends.

    A process that already holds the lock may take it again.

    Raises:
        ValueError: Naming the folder, and the process that holds it or why it cannot be written to.
    """
    folder = Path(os.path.realpath(folder))
    holder, lock = folder / HOLDER_NAME, FileLock(folder / LOCK_NAME, is_singleton=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        nested = lock.is_locked
        lock.acquire(timeout=0)
        if not nested:
            began = time.strftime("%Y-%m-%d %H:%M:%S")
            write_text(
                holder,
                f"process {os.getpid()} on {socket.gethostname()} ({os.path.basename(sys.argv[0])}, since {began})",
            )
    except Timeout:
        who = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise ValueError(f"`--output_dir` {folder} is in use by {who}; wait until it ends, or give another") from None
    except OSError as error:
        lock.release(force=True)
        raise ValueError(f"`--output_dir` {folder} cannot be written to ({error.strerror}); give another") from error
    try:
        yield
    finally:
        lock.release()


def dataset_digest(dataset: Any) -> str | None:
    """Return how many clips a split has, and a digest of their content.

    A split is a `datasets.Dataset`, a list, or a `dict` of several; `None` for what can only be streamed.
    """
    if isinstance(dataset, dict):
        return "; ".join(f"{name}: {dataset_digest(split)}" for name, split in dataset.items())
    if isinstance(dataset, Dataset):
        # Within a process, the data set's own fingerprint stands for its content.
        if dataset._fingerprint not in _digests:
            _digests[dataset._fingerprint] = _table_digest(dataset)
        digest = _digests[dataset._fingerprint]
    elif isinstance(dataset, (list, tuple)):
        digest = Hasher.hash(list(dataset))
    else:
        return None
    return f"{len(dataset)} clips, {digest}"


def _table_digest(dataset: Dataset):
    digest = xxhash.xxh3_128(repr(dataset.features).encode())
    names = [name for name in dataset.column_names if name not in _PATH_COLUMNS]
    batches = dataset.data.table.select(names).to_batches(max_chunksize=_ROWS_AT_A_TIME)
    for batch in [*batches, *(dataset._indices.table.to_batches() if dataset._indices is not None else ())]:
        digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _model_digest(model: torch.nn.Module):
    """Digest of the weights of a model that was loaded, and of the text encoder's of a new one.

    The other weights of a new model follow from the seed; their last bits may differ between machines.
    """
    loaded = bool(model.config._name_or_path)
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        if loaded or TEXT_ENCODER.search(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def model_request(model: torch.nn.Module) -> dict[str, Any]:
    """Return what a model is: the fields of its configuration as `config.…`, and a digest of its weights."""

    def what_it_is(fields: dict[str, Any]):
        kept = {name: value for name, value in fields.items() if name not in _NO_MODEL_FIELDS}
        return {name: what_it_is(value) if isinstance(value, dict) else value for name, value in kept.items()}

    fields = what_it_is(model.config.to_dict())
    return {**{f"config.{name}": value for name, value in fields.items()}, "weights": _model_digest(model)}


def training_request(
    model: torch.nn.Module, args: AMESSTrainingArguments, train_dataset: Any, eval_dataset: Any, written_by: str
) -> dict[str, Any]:
    """Return all that the result of a training depends on, by name.

    Args:
        model ([`AMESSForIntentClassification`]): The model, before training.
        args ([`AMESSTrainingArguments`]): The arguments, as [`AMESSTrainingArguments.for_model`] gives them.
        train_dataset (`datasets.Dataset`): The clips to train on.
        eval_dataset (`datasets.Dataset`, *optional*): Those to evaluate on while training.
        written_by (`str`): What trains.
    """
    selects = args.load_best_model_at_end or args.early_stopping_patience is not None
    names = (*RESULT_ARGUMENTS, *(SELECTION_ARGUMENTS if selects else ()))
    return {
        "written_by": written_by,
        **{name: getattr(args, name) for name in names},
        "batch_size_of_all_devices": args.train_batch_size * args.world_size,
        **model_request(model),
        "train_clips": dataset_digest(train_dataset),
        "dev_clips": dataset_digest(eval_dataset) if selects else None,
    }


def write_record(folder: str | os.PathLike, request: Mapping[str, Any]) -> None:
    """Write what was asked for into the folder of a run or of a checkpoint."""
    write_json(os.path.join(folder, RUN_RECORD_NAME), request, sort_keys=True, default=str)


def record_changes(folder: str | os.PathLike, request: Mapping[str, Any], may_be_longer: bool = False) -> str | None:
    """Return what makes the run in a folder another one than is asked for now, or `None` if nothing does.

    Args:
        folder (`str` or `os.PathLike`): The folder of a run or of a checkpoint.
        request (`Mapping[str, Any]`): What is asked for now.
        may_be_longer (`bool`): Whether more epochs or steps make no difference, as for a run that goes on.
    """
    before = _read_json(os.path.join(folder, RUN_RECORD_NAME))
    if before is None:
        return f"it has no {RUN_RECORD_NAME} that says how it was created"
    now, missing = json.loads(json.dumps(request, default=str)), "nothing"
    changed = [name for name in {**before, **now} if before.get(name, missing) != now.get(name, missing)]
    longer = [name for name in LENGTHS if may_be_longer and 0 < before.get(name, 0) < now[name]]
    changed = [name for name in changed if name not in longer]
    shown = [
        f"`{name}` ({_short(before.get(name, missing))} before, {_short(now.get(name, missing))} now)"
        for name in changed[:5]
    ]
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return f"it was created with different arguments: {', '.join(shown)}{more}" if changed else None


def _short(value: Any):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:58]} …"


def _read_json(path: str):
    """The JSON object in a file; `None` if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def writing_checkpoint(
    checkpoint: str | os.PathLike, request: Mapping[str, Any], resumable: bool = True
) -> Iterator[None]:
    """Context in which a checkpoint is written; it counts as complete once the block has ended.

    Args:
        checkpoint (`str` or `os.PathLike`): Its folder, which is created if needed.
        request (`Mapping[str, Any]`): What its run was asked for.
        resumable (`bool`): Whether it holds all that training needs to resume from it; else it never counts as complete.

    Raises:
        OSError: If it cannot be written, as on a full disk.
    """
    manifest = os.path.join(checkpoint, MANIFEST_NAME)
    os.makedirs(checkpoint, exist_ok=True)
    if os.path.exists(manifest):
        os.remove(manifest)
    try:
        write_record(checkpoint, request)
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "writ" not in str(error):
            raise
        # On a full disk, torch and safetensors raise errors of their own.
        free, reason = shutil.disk_usage(checkpoint).free / 2**20, " ".join(str(error).split())
        code = getattr(error, "errno", None) or errno.ENOSPC
        raise OSError(code, f"cannot be written, {free:,.0f} MiB are free: {reason}", str(checkpoint)) from error
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(checkpoint) for name in names]
    sizes = {os.path.relpath(path, checkpoint): os.path.getsize(path) for path in paths}
    if resumable:
        write_json(manifest, sizes, sort_keys=True)


def _damage(checkpoint: str | os.PathLike):
    """What makes a checkpoint incomplete, or `None` if all its files exist and none is truncated."""
    sizes = _read_json(os.path.join(checkpoint, MANIFEST_NAME))
    if sizes is None:
        return f"{MANIFEST_NAME} is missing or truncated"
    for name, size in sizes.items():
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path) or os.path.getsize(path) != size:
            return f"{name} is missing or truncated"
    return None


def _checkpoints(folder: str | os.PathLike):
    """The checkpoints in a folder as `{step: path}`, in the order of their steps."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    found = [re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", name) for name in names]
    return dict(sorted((int(match.group(1)), os.path.join(folder, match.group())) for match in found if match))


def rotate_checkpoints(newest: str, best: str | None, limit: int | None) -> None:
    """Delete the oldest checkpoints beyond `limit`, by step, since clocks go back; never the newest or the best.

    Those of later steps than the newest were left by another attempt, and go first.
    """
    steps = _checkpoints(os.path.dirname(newest))
    old = {step: path for step, path in steps.items() if path not in (newest, best)}
    now = next(step for step, path in steps.items() if path == newest)
    surplus = len(steps) - max(limit or len(steps), len(steps) - len(old))
    for step in sorted(old, key=lambda step: (step < now, step))[: max(0, surplus)]:
        shutil.rmtree(old[step], ignore_errors=True)


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the latest complete checkpoint in `folder`, or `None`; those truncated while being written are skipped."""
    for checkpoint in reversed(_checkpoints(folder).values()):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning(f"{checkpoint} is skipped: {damage}")
    return None


def checkpoint_to_resume(
    resume_from_checkpoint: str | bool | None, folder: str | os.PathLike, request: Mapping[str, Any] | None = None
) -> str | None:
    """Return the checkpoint for `resume_from_checkpoint`: a folder, or `True` (also as text) for the last of the run.

    Args:
        resume_from_checkpoint (`str` or `bool`, *optional*): The argument.
        folder (`str` or `os.PathLike`): The run's output folder.
        request (`Mapping[str, Any]`, *optional*): What the run is asked for, if the checkpoint's is to be the same.

    Returns:
        `str`, or `None` to start from the beginning, as `True` does if no checkpoint has been written yet.

    Raises:
        ValueError: If the checkpoint is not complete, or was created with different arguments, apart from more epochs.
    """
    checkpoint, choice = resume_from_checkpoint, str(resume_from_checkpoint).lower()
    if choice == "true":
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is None and _checkpoints(folder):
            logger.warning(f"{folder} has no complete checkpoint yet: training starts from the beginning")
    if checkpoint is None or choice == "false":
        return None
    reason = _damage(checkpoint)
    if reason is None and request is not None:
        reason = record_changes(checkpoint, request, may_be_longer=True)
    if reason is not None:
        advice = "give the same arguments, another checkpoint or another `--output_dir`"
        raise ValueError(f"{checkpoint} cannot be resumed from: {reason}; {advice}")
    return str(checkpoint)


class TrainLoss(TrainerCallback, ExportableState):
    """Sum of the losses of all steps, for a mean that does not depend on restarts or the number of processes.

    Checkpoints keep it in the Trainer's state, as the state of a callback.
    """

    def __init__(self):
        self.total = 0.0
        self._pending = None  # not added to `total` yet, on its device

    def add(self, loss: torch.Tensor) -> None:
        """Add a step's loss, or a batch's share of it."""
        loss = loss.detach().to(torch.float32 if loss.device.type == "mps" else torch.float64)
        self._pending = loss if self._pending is None else self._pending + loss

    def collect(self, accelerator: Accelerator) -> None:
        """Sum the losses over all processes, each of which must call it."""
        if self._pending is not None:
            self.total += accelerator.reduce(self._pending, "mean").item()
            self._pending = None

    def state(self) -> dict:
        """Return the state for a checkpoint."""
        return {"args": {}, "attributes": {"total": self.total}}


class DivergenceGuard:
    """Watch for a loss or a weight that is infinite or not a number.

    The losses are checked on their device, so that the host waits for it only in [`check`].

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        args ([`AMESSTrainingArguments`]): Used to find the likely cause.
    """

    def __init__(self, model: torch.nn.Module, args: AMESSTrainingArguments):
        self.model = model
        self.args = args
        self._first = None  # the first step with such a loss; -1 while there is none

    def add(self, loss: torch.Tensor, step: int) -> None:
        """Record the loss of a step."""
        if self._first is None:
            self._first = torch.full((), -1, device=loss.device)
        diverged = ~torch.isfinite(loss.detach()) & (self._first < 0)
        self._first = torch.where(diverged, step, self._first)

    def check(self, step: int, weights: bool = False) -> None:
        """Stop if a loss up to `step` or, on request, a weight after it is not finite.

        Raises:
            ValueError: Naming the step and the likely cause.
        """
        first = -1 if self._first is None else int(self._first)
        name = self._diverged_weight() if weights and first < 0 else None
        if first >= 0 or name is not None:
            what = f"the loss of step {first} is" if name is None else f"after step {step} the weights {name} are"
            raise ValueError(f"{what} not finite: {self._cause()}; training stopped, and nothing was saved since")

    def _diverged_weight(self):
        """Name of the first weights with a value that is not finite."""
        # Frozen weights do not change, and are not always on the device of the others.
        weights = {name: weight.detach() for name, weight in self.model.named_parameters() if weight.requires_grad}
        local = [weight.to_local() if hasattr(weight, "to_local") else weight for weight in weights.values()]
        finite = torch.stack([torch.isfinite(weight).all() for weight in local]).tolist()
        return next((name for name, is_finite in zip(weights, finite, strict=True) if not is_finite), None)

    def _cause(self):
        args, usual = self.args, default_learning_rate(self.model.config)
        if args.learning_rate > 10 * usual:
            return f"`learning_rate` is {args.learning_rate:g}, usual is {usual:g}"
        if args.head_learning_rate > 1e-2:
            return f"`head_learning_rate` is {args.head_learning_rate:g}, usual is 0.001"
        if args.fp16:
            return "`fp16` overflows above 65504; use `--bf16`"
        if not args.max_grad_norm:
            return "`max_grad_norm` is 0, so gradients are not clipped"
        return "look for extreme values in the features, or lower `learning_rate` and `head_learning_rate`"


class Preemption:
    """Context in which SIGTERM, with which schedulers announce the end, does not end the process but is recorded.

    The training loop then stops after a step.
    """

    def __init__(self):
        self.received = False
        self._previous = None
        self._process = os.getpid()

    def __enter__(self) -> "Preemption":
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number: int, frame: FrameType | None):
        if os.getpid() == self._process:
            self.received = True
        else:  # a process that was forked from this one, which makes batches
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def is_due(self, accelerator: Accelerator, step: int) -> bool:
        """Return whether to stop after this step, the same on every process."""
        if accelerator.num_processes == 1:
            return self.received
        if step % _STEPS_BETWEEN_QUESTIONS:
            return False
        told = torch.tensor(float(self.received), device=accelerator.device)
        return accelerator.reduce(told, "sum").item() > 0

    def stop(self, checkpoint: str | None) -> None:
        """End the process with one line and the exit code of SIGTERM."""
        saved = "nothing was saved (`save_only_model`)"
        if checkpoint is not None:
            saved = f"{checkpoint} is saved; continue with `--resume_from_checkpoint`"
        logger.warning(f"SIGTERM: training stopped, {saved}")
        raise SystemExit(_EXIT_CODE)
