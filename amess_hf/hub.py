"""
One folder, and one repository on the Hub, with all that a model needs: weights, config, code, processor, tokenizer, label
descriptions, out-of-scope detector, model card and the figures of its run. Nothing in it is a pickle.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from transformers import ProcessorMixin
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import PushInProgress

from .oos_amess import DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME
from .processing_amess import AMESSProcessor


logger = logging.get_logger(__name__)

DESCRIPTIONS_NAME = "label_descriptions.json"
TRAINING_ARGUMENTS_NAME = "training_args.json"
CARD_NAME = "README.md"

# What of a folder goes to the Hub: files with these endings that lie directly in it. Checkpoints and reports are in folders
# of their own, predictions are .tsv, and whatever torch pickles ends in .bin, .pt or .pth.
ENDINGS_FOR_HUB = (".json", ".safetensors", "_amess.py", ".md", ".txt", ".model", ".jinja")
NOT_FOR_HUB = {"trainer_state.json", "averaged_weights.safetensors"}


def files_for_hub(folder: str | os.PathLike) -> list[str]:
    """Names of the files of a model's or a run's folder that belong on the Hub, sorted."""
    names = [path.name for path in Path(folder).iterdir() if path.is_file() and path.name.endswith(ENDINGS_FOR_HUB)]
    return sorted(name for name in names if name not in NOT_FOR_HUB)


def save_for_hub(save_directory, model, processor=None, detector=None, run_folder=None, repo_id=None) -> None:
    """
    Save everything that a model needs into one folder, which loads with and without this package installed.

    Args:
        save_directory (`str` or `os.PathLike`):
            The folder; it is made if need be.
        model ([`AMESSForIntentClassification`]):
            The model.
        processor ([`AMESSProcessor`] or a tokenizer, *optional*):
            What makes the model's input; a tokenizer becomes the processor that belongs to the model's config.
        detector ([`OutOfScopeDetector`], *optional*):
            A fitted detector.
        run_folder (`str` or `os.PathLike`, *optional*):
            The training run's output folder: its card, figures and arguments are taken along, and its detector unless
            one is given.
        repo_id (`str`, *optional*):
            How the card calls the model, where it is not the run's.

    Raises:
        `ValueError`: if the processor was made for another model.
    """
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    if run_folder is not None:
        _copy_run_files(Path(run_folder), folder)
    model.save_pretrained(folder)
    save_beside_model(folder, model.config, processor)
    if detector is not None:
        detector.save_pretrained(folder)
    if not (folder / CARD_NAME).exists():
        _write_card(folder, model, detector, repo_id)


def save_beside_model(folder, config, processor) -> None:
    """Save what belongs to a model's config beside it: the processor with its tokenizer, and the descriptions."""
    if processor is not None:
        if not isinstance(processor, ProcessorMixin):
            processor = AMESSProcessor.for_model(config, processor)
        processor.check_model(config)
        processor.save_pretrained(folder)
    if config.label_descriptions is not None:
        _write_json(Path(folder, DESCRIPTIONS_NAME), {"descriptions": config.label_descriptions})


def save_training_arguments(folder, training_args) -> None:
    """
    Write `training_args.json` in place of the pickle `training_args.bin`. Tokens are masked, as transformers does it, and
    paths of the machine are left out.
    """
    values = {
        name: value
        for name, value in training_args.to_dict().items()
        if not (isinstance(value, str) and os.path.isabs(value))
    }
    _write_json(Path(folder, TRAINING_ARGUMENTS_NAME), values)
    Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)


def push_to_hub(
    model,
    processor=None,
    detector=None,
    repo_id=None,
    run_folder=None,
    private=None,
    revision=None,
    token=None,
    commit_message="Upload A-MESS model",
):
    """
    Upload a model with everything that it needs, as one commit of one repository, which is made if need be.

    Args:
        model, processor, detector, run_folder: As for [`save_for_hub`].
        repo_id (`str`): The repository, `"organization/name"`.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): The branch, which is made if need be; by default the main one.
        token (`str`, *optional*): A token that may write; by default the one of `hf auth login`.
        commit_message (`str`): What the commit is called.

    Returns:
        `huggingface_hub.CommitInfo`: the commit. Pushing the same again makes none, and gives the last one.

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
        raise ValueError('no repository to push to: give `repo_id`, "organization/name"')
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hub(folder, model, processor, detector, run_folder, repo_id)
        has_own_card = run_folder is not None and Path(run_folder, CARD_NAME).exists()
        if not has_own_card and api.file_exists(repo_id, CARD_NAME, revision=revision):
            Path(folder, CARD_NAME).unlink(missing_ok=True)  # somebody may have written into that one
        return push_folder(folder, repo_id, token, revision, commit_message)


def push_folder(folder, repo_id, token=None, revision=None, commit_message="Upload A-MESS model", run_as_future=False):
    """
    Upload what of a model's folder belongs on the Hub (see [`files_for_hub`]), in one commit. Where the folder has a
    model, weights, code and detector of an earlier push that it does not have any more are removed.

    Returns:
        `huggingface_hub.CommitInfo`, or with `run_as_future` a `Future` of it.
    """
    api = HfApi(token=token)
    names = files_for_hub(folder)
    operations = [CommitOperationAdd(name, os.path.join(folder, name)) for name in names]
    if CONFIG_NAME in names:
        remote = api.list_repo_files(repo_id, revision=revision)
        operations += [CommitOperationDelete(name) for name in remote if _is_part_of_model(name) and name not in names]
    return api.create_commit(
        repo_id, operations, commit_message=commit_message, revision=revision, run_as_future=run_as_future
    )


def _is_part_of_model(name):
    if "/" in name:
        return False
    return name.endswith(("_amess.py", ".safetensors", ".safetensors.index.json")) or name == DETECTOR_CONFIG_NAME


def _copy_run_files(run_folder, folder):
    """The card, the figures, the arguments and the detector of a run."""
    if not run_folder.is_dir():
        raise ValueError(f"{run_folder} is no folder; give the output folder of a training run, or none")
    wanted = {CARD_NAME, TRAINING_ARGUMENTS_NAME, DETECTOR_CONFIG_NAME, DETECTOR_WEIGHTS_NAME}
    for path in run_folder.iterdir():
        if path.name in wanted or path.name.endswith("_results.json"):
            shutil.copyfile(path, folder / path.name)


def _write_card(folder, model, detector, repo_id):
    """A card with the figures that lie in the folder."""
    from .evaluation.model_card import create_model_card

    results = folder / "all_results.json"
    figures = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    try:
        create_model_card(model, figures, model_id=repo_id, detector=detector).save(folder / CARD_NAME)
    except ImportError as error:
        logger.warning(f"No model card is written: {error}")


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


class PushesToHub:
    """
    What [`AMESSTrainer`] does otherwise than [`~transformers.Trainer`] when it saves and pushes: complete folders, with
    processor, descriptions and code; the training arguments as JSON; nothing pickled. `hub_strategy` means what it means
    there. With `"checkpoint"` and `"all_checkpoints"` the optimizer's state goes along in a folder of its own, in torch's
    format, because that is what training resumes from.
    """

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = output_dir if output_dir is not None else self.args.output_dir
            save_beside_model(folder, self.model.config, self.processing_class)
            save_training_arguments(folder, self.args)

    def push_to_hub(
        self,
        commit_message="End of training",
        blocking=True,
        token=None,
        revision=None,
        private=None,
        **kwargs,
    ):
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        revision = self.args.hub_revision if revision is None else revision
        return push_folder(self.args.output_dir, self.hub_model_id, token, revision, commit_message, not blocking)

    def _push_from_checkpoint(self, checkpoint_folder):
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
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)


def _push_copy(folder, repo_id, token, revision, commit_message):
    """`push_folder` in the background, from a copy: the Trainer may delete a checkpoint while it is being uploaded."""
    copy = tempfile.TemporaryDirectory()
    for name in files_for_hub(folder):
        shutil.copyfile(os.path.join(folder, name), os.path.join(copy.name, name))
    future = push_folder(copy.name, repo_id, token, revision, commit_message, run_as_future=True)
    future.add_done_callback(lambda _: copy.cleanup())
    return future


__all__ = ["files_for_hub", "push_folder", "push_to_hub", "save_for_hub"]
