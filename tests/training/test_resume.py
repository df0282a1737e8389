"""Training that is killed and started again ends as if nothing had happened."""

import json
import multiprocessing
import os
import shutil
import signal
from types import SimpleNamespace

import distributed_worker
import pytest
import run_mir_no_trainer
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from utils import tiny_model

import amess_hf.training.trainer as trainer_module
from amess_hf import AMESSProcessor, AMESSTrainer, AMESSTrainingArguments
from amess_hf.training.checkpoint_integrity import check_output_dir, last_complete_checkpoint, what_is_missing


def make_arguments(folder, resume=None, **values):
    """Nine steps in three epochs; evaluated and saved every other step."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "train_sampling_strategy": "group_by_length",
        "label_update": "2",
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "resume_from_checkpoint": resume,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return AMESSTrainingArguments(**{**defaults, **values})


def make_trainer(arguments, **values):
    set_seed(arguments.seed)
    clips, tokenizer = distributed_worker.make_clips(9, seed=3), distributed_worker.make_tokenizer()
    return AMESSTrainer(
        tiny_model(**values), arguments, train_dataset=clips, eval_dataset=clips, processing_class=tokenizer
    )


class KillAtStep(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_while_saving(path, step):
    if path.endswith(f"checkpoint-{step}"):
        os.kill(os.getpid(), signal.SIGKILL)


def train_with_trainer(folder, at_step, in_save):
    trainer = make_trainer(make_arguments(folder, "True"))
    trainer.add_callback(KillAtStep(at_step))
    write_manifest = trainer_module.write_manifest
    trainer_module.write_manifest = lambda path: (kill_while_saving(path, in_save), write_manifest(path))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()


def train_with_loop(folder, at_step, in_save):
    arguments = make_arguments(folder, "True")
    set_seed(arguments.seed)
    clips, tokenizer = distributed_worker.make_clips(9, seed=3), distributed_worker.make_tokenizer()
    model = tiny_model()
    processor = AMESSProcessor.for_model(model.config, tokenizer)
    set_seed(arguments.seed)
    training = run_mir_no_trainer.Training(Accelerator(), model, arguments, clips, clips, processor)
    after_update, write_manifest = training.after_update, run_mir_no_trainer.write_manifest

    def after_update_or_killed():
        if training.state.global_step == at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        after_update()

    training.after_update = after_update_or_killed
    run_mir_no_trainer.write_manifest = lambda path: (kill_while_saving(path, in_save), write_manifest(path))
    training.run()
    model.save_pretrained(folder)


def in_a_process(train, folder, at_step=None, in_save=None):
    """`train` in a process of its own, which is killed at a step or while saving one, if so asked."""

    def target():
        torch.set_num_threads(1)
        train(folder, at_step, in_save)

    # A copy of this process: it need not import everything again.
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(500)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == (0 if at_step is None and in_save is None else -signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("train", [train_with_trainer, train_with_loop])
def test_killed_training_ends_the_same(train, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    in_a_process(train, undisturbed)

    in_a_process(train, killed, at_step=1)
    assert last_complete_checkpoint(killed) is None
    in_a_process(train, killed, at_step=5)
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-4")
    in_a_process(train, killed, in_save=6)
    assert (killed / "checkpoint-6" / "model.safetensors").exists()
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-4")
    in_a_process(train, killed)

    # The end: the model that is kept, and the weights and their average to go on from.
    for name in ("model.safetensors", "checkpoint-9/model.safetensors", "checkpoint-9/averaged_weights.safetensors"):
        expected, given = load_file(undisturbed / name), load_file(killed / name)
        assert expected.keys() == given.keys()
        assert all(torch.equal(value, given[key]) for key, value in expected.items()), name
    states = [json.loads((run / "checkpoint-9" / "trainer_state.json").read_text()) for run in (undisturbed, killed)]
    assert states[0]["best_metric"] == states[1]["best_metric"]
    assert states[0]["best_global_step"] == states[1]["best_global_step"]
    metrics = [[line["eval_accuracy"] for line in state["log_history"] if "eval_accuracy" in line] for state in states]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with two whole checkpoints, the last of which is the best: the loss falls step by step."""
    folder = tmp_path_factory.mktemp("finished")
    best_by_loss = {"metric_for_best_model": "loss", "greater_is_better": False}
    make_trainer(make_arguments(folder, num_train_epochs=2, **best_by_loss)).train()
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def test_checkpoints_hold_no_arguments_as_pickle(finished):
    assert sorted(path.name for path in finished.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert not list(finished.rglob("training_args.bin"))
    assert what_is_missing(finished / "checkpoint-6") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, remove])
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "averaged_weights.safetensors",
        "trainer_state.json",
        "checkpoint.manifest",
    ],
)
def test_cut_checkpoint_is_passed_over(copied, name, damage):
    last = copied / "checkpoint-6"
    assert last_complete_checkpoint(copied) == str(last)
    damage(last / name)
    assert what_is_missing(last) == f"{name} is missing or cut"
    assert last_complete_checkpoint(copied) == str(copied / "checkpoint-4")
    with pytest.raises(ValueError, match=f"checkpoint-6 cannot be resumed from: {name} is missing or cut"):
        make_trainer(make_arguments(copied)).train(resume_from_checkpoint=str(last))


def test_checkpoint_that_is_written_again_is_not_whole_in_between(copied):
    trainer = make_trainer(make_arguments(copied, num_train_epochs=2))
    trainer.add_callback(StopAtSave())
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-4"))
    assert what_is_missing(copied / "checkpoint-6") is not None


class StopAtSave(TrainerCallback):
    """Let step 6 fail while its checkpoint is being written."""

    def on_step_end(self, args, state, control, **kwargs):
        def fail(folder):
            raise KeyboardInterrupt

        kwargs["processing_class"].save_pretrained = fail


def test_full_disk_is_known_before_training(tmp_path, monkeypatch):
    usage = SimpleNamespace(total=2**40, used=2**40, free=100_000)
    monkeypatch.setattr("amess_hf.training.checkpoint_integrity.shutil.disk_usage", lambda folder: usage)
    trainer = make_trainer(make_arguments(tmp_path))
    weights = sum(parameter.numel() for parameter in trainer.model.parameters()) * 4
    # Three checkpoints of weights, average and two numbers of the optimizer for each weight; then the model.
    needed = weights * (3 * 4 + 1) / 2**20
    assert needed > 0.1
    with pytest.raises(ValueError, match=rf"has 0 MiB free, but .* 3 checkpoint\(s\) take {needed:,.0f} MiB"):
        trainer.train()
    assert trainer.state.global_step == 0
    make_trainer(make_arguments(tmp_path, save_strategy="no", eval_strategy="no", load_best_model_at_end=False))
    usage.free = 2**30
    make_trainer(make_arguments(tmp_path, max_steps=1)).train()


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`--output_dir` .* cannot be written to"):
        check_output_dir(tmp_path / "file" / "run")
    check_output_dir(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []


@pytest.mark.slow
def test_evaluation_does_not_change_what_training_draws(tmp_path):
    """With and without evaluations in between, dropout draws the same: the weights are equal."""
    runs = []
    for strategy in ("no", "steps"):
        arguments = make_arguments(
            tmp_path / strategy, eval_strategy=strategy, save_strategy="no", load_best_model_at_end=False
        )
        trainer = make_trainer(arguments)
        trainer.train()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
