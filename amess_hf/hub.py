"""Save everything that a model needs in one folder, or push it to one repository on the Hub.

That is: weights, config, code, processor, tokenizer, label descriptions, out-of-scope detector, model card and the
metrics of the run. None of it is a pickle.
"""

import json
import os
import re
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import PushInProgress

from .configuration_amess import AMESSConfig
from .modeling_amess import AMESSForIntentClassification
from .oos_amess import DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME, OutOfScopeDetector
from .processing_amess import AMESSProcessor, write_json


logger = logging.get_logger(__name__)

DESCRIPTIONS_NAME = "label_descriptions.json"
TRAINING_ARGUMENTS_NAME = "training_args.json"
CARD_NAME = "README.md"

# What goes to the Hub: files with these extensions at the top of a folder. Checkpoints and reports have their own
# folders, predictions are .tsv, and whatever torch pickles ends in .bin, .pt or .pth.
ENDINGS_FOR_HUB = (".json", ".safetensors", "_amess.py", ".md", ".txt", ".model", ".jinja")
NOT_FOR_HUB = {"trainer_state.json", "averaged_weights.safetensors", "run.json", "finished.json"}
# What the next push of a model replaces as a whole: its weights, its code and its detector.
ENDINGS_REPLACED = (".safetensors", ".safetensors.index.json", "_amess.py", DETECTOR_CONFIG_NAME)


def files_for_hub(folder: str | os.PathLike) -> list[str]:
    """Return the sorted names of the files of a model's or a run's folder that belong on the Hub."""
    names = [path.name for path in Path(folder).iterdir() if path.is_file() and path.name.endswith(ENDINGS_FOR_HUB)]
    return sorted(name for name in names if name not in NOT_FOR_HUB)


def save_for_hub(
    save_directory: str | os.PathLike,
    model: AMESSForIntentClassification,
    processor: AMESSProcessor | PreTrainedTokenizerBase | None = None,
    detector: OutOfScopeDetector | None = None,
    run_folder: str | os.PathLike | None = None,
    repo_id: str | None = None,
    merge_adapter: bool = True,
    training_args: TrainingArguments | None = None,
) -> None:
    """Save everything that a model needs to one folder, which loads with and without this package installed.

    Args:
        save_directory (`str` or `os.PathLike`): The folder; it is created if it does not exist.
        model ([`AMESSForIntentClassification`]): The model.
        processor ([`AMESSProcessor`] or a tokenizer, *optional*):
            What makes the model's input; a tokenizer becomes the processor that belongs to the model's config.
        detector ([`OutOfScopeDetector`], *optional*): A fitted detector.
        run_folder (`str` or `os.PathLike`, *optional*):
            The training run's output folder: its card, metrics and arguments are copied, and its detector unless one is
            given.
        repo_id (`str`, *optional*): The model's name in a new card.
        merge_adapter (`bool`, *optional*, defaults to `True`):
            Whether an adapter in the text encoder is merged into its weights, so that the folder loads without peft.
        training_args ([`~transformers.TrainingArguments`], *optional*):
            What the model was trained with: saved as `training_args.json`, without paths and tokens.

    Raises:
        ValueError: If the processor was made for another model, or `run_folder` is not a folder.
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    if run_folder is not None:
        _copy_run_files(Path(run_folder), folder)
    model.save_pretrained(folder, merge_adapter=merge_adapter)
    _save_processor_and_descriptions(folder, model.config, processor)
    if detector is not None:
        detector.save_pretrained(folder)
    if training_args is not None:
        _save_training_arguments(folder, training_args)
    if not (folder / CARD_NAME).exists():
        _write_card(folder, model, repo_id, detector)


def _save_processor_and_descriptions(
    folder: str | os.PathLike, config: AMESSConfig, processor: AMESSProcessor | PreTrainedTokenizerBase | None
) -> None:
    if processor is not None:
        if not isinstance(processor, ProcessorMixin):
            processor = AMESSProcessor.for_model(config, processor)
        processor.check_model(config)
        processor.save_pretrained(folder)
    if config.label_descriptions is not None:
        write_json(Path(folder, DESCRIPTIONS_NAME), {"descriptions": config.label_descriptions})


def _save_training_arguments(folder: str | os.PathLike, training_args: TrainingArguments) -> None:
    """Write `training_args.json` in place of the pickle `training_args.bin`, without paths of the machine or tokens."""
    values = training_args.to_dict().items()  # masks tokens
    kept = {name: value for name, value in values if not (isinstance(value, str) and os.path.isabs(value))}
    write_json(Path(folder, TRAINING_ARGUMENTS_NAME), kept, default=str)
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)


def push_to_hub(
    model: AMESSForIntentClassification,
    processor: AMESSProcessor | PreTrainedTokenizerBase | None = None,
    detector: OutOfScopeDetector | None = None,
    repo_id: str | None = None,
    run_folder: str | os.PathLike | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload A-MESS model",
    merge_adapter: bool = True,
) -> CommitInfo:
    """Upload a model with everything that it needs, as one commit of one repository, which is created if needed.

    Args:
        model ([`AMESSForIntentClassification`]): The model.
        processor ([`AMESSProcessor`] or a tokenizer, *optional*): As for [`save_for_hub`].
        detector ([`OutOfScopeDetector`], *optional*): A fitted detector.
        repo_id (`str`): The repository, `"organization/name"`.
        run_folder (`str` or `os.PathLike`, *optional*): As for [`save_for_hub`].
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): The branch, which is created if needed; by default the main one.
        token (`str`, *optional*): A token with write access; by default the one of `hf auth login`.
        commit_message (`str`): The title of the commit.
        merge_adapter (`bool`): As for [`save_for_hub`].

    Returns:
        `huggingface_hub.CommitInfo`: The commit. Pushing the same content again makes no commit, and returns the last
        one.

    Raises:
        ValueError: If no repository is named, or for the reasons of [`save_for_hub`].

    Example:
    ```python
    >>> from amess_hf import AMESSForIntentClassification, AMESSProcessor, OutOfScopeDetector, push_to_hub

    >>> folder = "runs/mintrec"
    >>> model = AMESSForIntentClassification.from_pretrained(folder)
    >>> processor, detector = AMESSProcessor.from_pretrained(folder), OutOfScopeDetector.from_pretrained(folder)
    >>> push_to_hub(model, processor, detector, "org/amess-mintrec", run_folder=folder)
    ```
    """
    if repo_id is None:
        raise ValueError('`repo_id` is missing; give the repository to push to, "organization/name"')
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hub(folder, model, processor, detector, run_folder, repo_id, merge_adapter)
        has_own_card = run_folder is not None and Path(run_folder, CARD_NAME).exists()
        if not has_own_card and api.file_exists(repo_id, CARD_NAME, revision=revision):
            Path(folder, CARD_NAME).unlink(missing_ok=True)  # the card may have been edited on the Hub
        return push_folder(folder, repo_id, token, revision, commit_message, merge_adapter=merge_adapter)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload A-MESS model",
    run_as_future: bool = False,
    merge_adapter: bool = True,
) -> CommitInfo | Future:
    """Upload the files of a model's folder that belong on the Hub (see [`files_for_hub`]), in one commit.

    The folder's card then names the repository. If the folder has a model, the weights, code and detector of an earlier
    push that it no longer has are removed.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): The repository, `"organization/name"`; it must exist.
        token (`str`, *optional*): A token with write access; by default the one of `hf auth login`.
        revision (`str`, *optional*): The branch, which must exist; by default the main one.
        commit_message (`str`): The title of the commit.
        run_as_future (`bool`): Whether to upload in the background.
        merge_adapter (`bool`): As for [`save_for_hub`]; what is uploaded is then a copy, and `folder` stays as it is.

    Returns:
        `huggingface_hub.CommitInfo`, or with `run_as_future` a `Future` of it.
    """
    from .evaluation.model_card import name_repository

    if merge_adapter and _has_adapter(folder):
        where = (repo_id, token, revision, commit_message, run_as_future)
        copy = _copy_for_hub(folder)
        AMESSForIntentClassification.from_pretrained(folder).save_pretrained(copy.name, merge_adapter=True)
        return _then_clean_up(copy, push_folder(copy.name, *where, merge_adapter=False))
    api, names = HfApi(token=token), files_for_hub(folder)
    if CARD_NAME in names:
        name_repository(Path(folder, CARD_NAME), repo_id)
    # `delete_patterns` match across folders; exact names do not reach into those that hold checkpoints.
    remote = api.list_repo_files(repo_id, revision=revision) if CONFIG_NAME in names else []
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=names,
        delete_patterns=[name for name in remote if "/" not in name and name.endswith(ENDINGS_REPLACED)] or None,
        commit_message=commit_message,
        revision=revision,
        run_as_future=run_as_future,
    )


def _copy_run_files(run_folder: Path, folder: Path) -> None:
    """Copy the card, the metrics, the arguments and the detector of a run."""
    if not run_folder.is_dir():
        raise ValueError(
            f"`run_folder` {run_folder} is not a folder; give the output folder of a training run, or none"
        )
    wanted = {CARD_NAME, TRAINING_ARGUMENTS_NAME, DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME}
    for path in run_folder.iterdir():
        if path.name in wanted or path.name.endswith("_results.json"):
            shutil.copyfile(path, folder / path.name)


def _write_card(
    folder: str | os.PathLike,
    model: AMESSForIntentClassification,
    repo_id: str | None,
    detector: OutOfScopeDetector | None = None,
    **metadata: Any,
) -> None:
    """Write a card with the metrics and the hyperparameters of the folder's JSON files, where they exist."""
    from .evaluation.model_card import create_model_card

    metrics, training_arguments = (
        json.loads(path.read_text(encoding="utf-8")) if (path := Path(folder, name)).exists() else {}
        for name in ("all_results.json", TRAINING_ARGUMENTS_NAME)
    )
    try:
        create_model_card(
            model, metrics, model_id=repo_id, detector=detector, training_arguments=training_arguments, **metadata
        ).save(Path(folder, CARD_NAME))
    except ImportError as error:
        logger.warning(f"no model card is written: {error}")


class PushesToHub:
    """How [`AMESSTrainer`] saves and pushes.

    Unlike those of [`~transformers.Trainer`], its folders are complete, with processor, descriptions and code, and its
    training arguments are JSON. `hub_strategy` means the same; with `"checkpoint"` and `"all_checkpoints"` the optimizer's
    state goes to the Hub too, in a separate folder and in torch's format, because training resumes from it.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Every folder that the Trainer saves passes here, checkpoints included.
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir if output_dir is not None else self.args.output_dir
            _save_processor_and_descriptions(folder, self.model.config, self.processing_class)
            _save_training_arguments(folder, self.args)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        repo_id: str | None = None,
        language: str | list[str] | None = None,
        license: str | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save the model in the output folder and upload the files that belong on the Hub, as one commit.

        Args:
            commit_message (`str`):
                The title of the commit. Text of the form `"organization/name"` is taken as `repo_id`, so that
                `trainer.push_to_hub("organization/name")` works like a model's own `push_to_hub`.
            blocking (`bool`): Whether to wait for the upload.
            token (`str`, *optional*): A token with write access; by default `hub_token` of the training arguments.
            revision (`str`, *optional*): The branch; by default `hub_revision` of the training arguments.
            private (`bool`, *optional*): Whether a new repository is private; by default `hub_private_repo`.
            repo_id (`str`, *optional*):
                The repository, which is created if needed; by default `hub_model_id` of the training arguments, or the
                output folder's name. Later pushes of this Trainer go there too.
            language (`str` or `list[str]`, *optional*): For the card, where there is none yet.
            license (`str`, *optional*): The same.
            kwargs: Other arguments of [`~transformers.Trainer.push_to_hub`]; ignored.

        Returns:
            `huggingface_hub.CommitInfo`, a `Future` of it if not `blocking`, or `None` on all but the first process.
        """
        if repo_id is None and re.fullmatch(r"[\w.-]+/[\w.-]+", commit_message):
            repo_id, commit_message = commit_message, "End of training"
        token = self.args.hub_token if token is None else token
        revision = self.args.hub_revision if revision is None else revision
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        api, folder = HfApi(token=token), self.args.output_dir
        if repo_id is not None:
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            self.push_in_progress = None
        elif self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        has_card = Path(folder, CARD_NAME).exists() or api.file_exists(self.hub_model_id, CARD_NAME, revision=revision)
        if not has_card:
            _write_card(folder, self.model, self.hub_model_id, language=language, license=license)
        return push_folder(folder, self.hub_model_id, token, revision, commit_message, not blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer's own pushes the output folder, with whatever lies there.
        args = self.args
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [_push_copy(checkpoint_folder, self.hub_model_id, args.hub_token, args.hub_revision, message)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = args.hub_strategy == HubStrategy.CHECKPOINT
            upload = HfApi(token=args.hub_token).upload_folder(
                repo_id=self.hub_model_id,
                folder_path=checkpoint_folder,
                path_in_repo="last-checkpoint" if last else Path(checkpoint_folder).name,
                commit_message=f"{message}, checkpoint",
                run_as_future=True,
                revision=args.hub_revision,
            )
            jobs.append(upload)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else ()), *jobs])


def _push_copy(folder: str, *where: str | None) -> Future:
    """Run `push_folder` in the background, on a copy: the Trainer may delete a checkpoint while it is being uploaded."""
    copy = _copy_for_hub(folder)
    return _then_clean_up(copy, push_folder(copy.name, *where, run_as_future=True))


def _copy_for_hub(folder: str | os.PathLike) -> tempfile.TemporaryDirectory:
    copy = tempfile.TemporaryDirectory()
    for name in files_for_hub(folder):
        shutil.copyfile(os.path.join(folder, name), os.path.join(copy.name, name))
    return copy


def _then_clean_up(copy: tempfile.TemporaryDirectory, pushed: CommitInfo | Future) -> CommitInfo | Future:
    if isinstance(pushed, Future):
        pushed.add_done_callback(lambda _: copy.cleanup())
    else:
        copy.cleanup()
    return pushed


def _has_adapter(folder: str | os.PathLike) -> bool:
    path = Path(folder, CONFIG_NAME)
    return path.exists() and '"text_adapter": {' in path.read_text(encoding="utf-8")


__all__ = ["files_for_hub", "push_folder", "push_to_hub", "save_for_hub"]
