"""What a run was asked for, kept with it, so that runs which were asked for different things are not mixed."""

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from datasets import Dataset
from datasets.fingerprint import Hasher

from ..configuration_amess import AMESSConfig
from ..processing_amess import write_json
from .arguments import AMESSTrainingArguments
from .parameter_groups import TEXT_ENCODER


RUN_RECORD_NAME = "run.json"

# Training arguments that change what a run ends with. Others say where it runs, what it logs and how fast it is.
_RESULT_ARGUMENTS = (
    "seed",
    "data_seed",
    "num_train_epochs",
    "max_steps",
    "gradient_accumulation_steps",
    "learning_rate",
    "head_learning_rate",
    "layer_decay",
    "weight_decay",
    "head_weight_decay",
    "freeze_word_embeddings",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_update",
    "weight_averaging",
    "pretrained_share",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "bf16",
    "fp16",
    "tf32",
    "early_stopping_patience",
    "load_best_model_at_end",
)
# The same, where a run ends with its best checkpoint or stops by its evaluations.
_SELECTION_ARGUMENTS = (
    "metric_for_best_model",
    "greater_is_better",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
)
# Fields of a configuration that say where a model comes from or is kept, not what it is.
_NO_MODEL_FIELDS = ("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype")
# Columns with paths: data that has moved is the same.
_PATH_COLUMNS = ("clip", "audio", "video")
_ROWS_AT_A_TIME = 16

_digests: dict[str, str] = {}


def dataset_digest(dataset: Any) -> str | None:
    """Return how many clips a split has and a digest of their content, or `None` for what can only be streamed.

    Args:
        dataset (`datasets.Dataset`, or a sequence of examples): The clips.
    """
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
    for batch in dataset.data.table.select(names).to_batches(max_chunksize=_ROWS_AT_A_TIME):
        digest.update(batch.serialize())
    if dataset._indices is not None:
        for batch in dataset._indices.table.to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def model_digest(model: torch.nn.Module) -> str:
    """Return a digest of the weights of a model that was loaded, and of the text encoder's of a new one.

    The other weights of a new model follow from the seed; their last bits may differ between machines.
    """
    loaded = bool(model.config._name_or_path)
    digest = xxhash.xxh3_128()
    for name, tensor in model.state_dict().items():
        if loaded or TEXT_ENCODER.search(name):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def config_request(config: AMESSConfig) -> dict[str, Any]:
    """Return the fields of a model's configuration that say what it is, as `config.…`."""
    request = {f"config.{name}": value for name, value in config.to_dict().items() if name not in _NO_MODEL_FIELDS}
    encoder = request["config.text_config"]
    request["config.text_config"] = {name: encoder[name] for name in encoder if name not in _NO_MODEL_FIELDS}
    return request


def training_request(
    model: torch.nn.Module,
    args: AMESSTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any,
    written_by: str,
) -> dict[str, Any]:
    """Return all that the result of a training depends on, by name.

    Args:
        model ([`AMESSForIntentClassification`]): The model, before training.
        args ([`AMESSTrainingArguments`]): The arguments, as [`AMESSTrainingArguments.for_model`] gives them.
        train_dataset (`datasets.Dataset`): The clips to train on.
        eval_dataset (`datasets.Dataset`, *optional*): Those to evaluate on while training.
        written_by (`str`): What trains: checkpoints of `AMESSTrainer` and of another loop hold different files.

    Returns:
        `dict[str, Any]`: as JSON would read it back.
    """
    selects = args.load_best_model_at_end or args.early_stopping_patience is not None
    names = (*_RESULT_ARGUMENTS, *(_SELECTION_ARGUMENTS if selects else ()))
    request = {
        "written_by": written_by,
        **{name: getattr(args, name, None) for name in names},
        "batch_size_of_all_devices": args.train_batch_size * args.world_size,
        **config_request(model.config),
        "weights": model_digest(model),
        "train_clips": dataset_digest(train_dataset),
        "dev_clips": dataset_digest(eval_dataset) if selects else None,
    }
    return json.loads(json.dumps(request, default=str))


def write_record(folder: str | os.PathLike, request: Mapping[str, Any]) -> None:
    """Write what was asked into the folder of a run or of a checkpoint."""
    write_json(os.path.join(folder, RUN_RECORD_NAME), request, sort_keys=True)


def read_record(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Read what the run in a folder was asked for; `None` where nothing readable says so."""
    try:
        with open(os.path.join(folder, RUN_RECORD_NAME), encoding="utf-8") as file:
            record = json.load(file)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two requests, e.g. `` `learning_rate` (0.0001 before, 0.0002 now) ``."""
    missing = "nothing"
    changed = [name for name in {**before, **now} if before.get(name, missing) != now.get(name, missing)]
    return [
        f"`{name}` ({_short(before.get(name, missing))} before, {_short(now.get(name, missing))} now)"
        for name in changed
    ]


def _short(value: Any):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return textwrap.shorten(text, 60, placeholder=" …") if len(text) <= 60 or " " in text else f"{text[:58]} …"


def listed(changed: Sequence[str], shown: int = 5) -> str:
    """Join the first differences into one line."""
    more = len(changed) - shown
    return ", ".join(changed[:shown]) + (f" and {more} more" if more > 0 else "")


def check_checkpoint(checkpoint: str | os.PathLike, request: Mapping[str, Any]) -> None:
    """See that a checkpoint was written by a run that was asked for the same.

    Raises:
        ValueError: Naming what differs.
    """
    before = read_record(checkpoint)
    if before is None:
        raise ValueError(
            f"{checkpoint} cannot be resumed from: it has no {RUN_RECORD_NAME} that says what its run was asked for; "
            "start again in another folder"
        )
    if before.get("written_by") != request["written_by"]:
        raise ValueError(
            f"{checkpoint} was written by {before.get('written_by')}, and this is {request['written_by']}; resume it with "
            "what wrote it, or start again in another folder"
        )
    changed = differences(before, request)
    if changed:
        raise ValueError(
            f"{checkpoint} is of a run that was asked for something else: {listed(changed)}; give the same arguments, or "
            "start again in another folder"
        )
