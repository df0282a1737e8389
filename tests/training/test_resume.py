"""Training that is killed and restarted ends as if it had not been interrupted."""

import json
import multiprocessing
import os
import shutil
import signal
import time
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
from amess_hf.training.divergence import DivergenceGuard
from amess_hf.training.preemption import Preemption
from amess_hf.training.run_lock import locked


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
    def __init__(self, step, number=signal.SIGKILL):
        self.step, self.number = step, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def kill_while_saving(path, step):
    if path.endswith(f"checkpoint-{step}"):
        os.kill(os.getpid(), signal.SIGKILL)


def train_with_trainer(folder, at_step, in_save, number=signal.SIGKILL):
    trainer = make_trainer(make_arguments(folder, "True"))
    trainer.add_callback(KillAtStep(at_step, number))
    write_manifest = trainer_module.write_manifest
    trainer_module.write_manifest = lambda path: (kill_while_saving(path, in_save), write_manifest(path))
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()


def train_with_loop(folder, at_step, in_save, number=signal.SIGKILL):
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
            os.kill(os.getpid(), number)
        after_update()

    training.after_update = after_update_or_killed
    run_mir_no_trainer.write_manifest = lambda path: (kill_while_saving(path, in_save), write_manifest(path))
    metrics = training.run()
    training.state.log_history.append({**metrics, "step": training.state.global_step})
    training.state.save_to_json(os.path.join(folder, "trainer_state.json"))
    model.save_pretrained(folder)


def in_a_process(train, folder, at_step=None, in_save=None, number=signal.SIGKILL, code=None):
    """`train` in a process of its own, which is killed at a step or while saving one, if so asked."""
    if code is None:
        code = 0 if at_step is None and in_save is None else -signal.SIGKILL

    def target():
        torch.set_num_threads(1)
        train(folder, at_step, in_save, number)

    # A copy of this process: it need not import everything again.
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(500)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == code


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
    # A scheduler's notice: a checkpoint where none is due, and the exit code of a process that SIGTERM ended.
    in_a_process(train, killed, at_step=7, number=signal.SIGTERM, code=128 + signal.SIGTERM)
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-7")
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
    histories = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (undisturbed, killed)]
    losses = [[line["train_loss"] for line in history if "train_loss" in line] for history in histories]
    assert losses[1] == [pytest.approx(losses[0][-1], rel=1e-12)] and losses[0][-1] > 0


FINISHED = {"num_train_epochs": 2, "metric_for_best_model": "loss", "greater_is_better": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run with two whole checkpoints, the last of which is the best: the loss falls step by step."""
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(make_arguments(folder, **FINISHED)).train()
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
    assert what_is_missing(last) == f"{name} is missing or truncated"
    assert last_complete_checkpoint(copied) == str(copied / "checkpoint-4")
    with pytest.raises(ValueError, match=f"checkpoint-6 cannot be resumed from: {name} is missing or truncated"):
        make_trainer(make_arguments(copied)).train(resume_from_checkpoint=str(last))


def test_checkpoint_that_is_written_again_is_not_whole_in_between(copied):
    trainer = make_trainer(make_arguments(copied, **FINISHED))
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


class TestOtherRequests:
    """A checkpoint is gone on from by a run that was asked for the same, and by no other."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"learning_rate": 2e-3}, r"`learning_rate` \(0.001 before, 0.002 now\)"),
            ({"seed": 7}, r"`seed` \(42 before, 7 now\)"),
            ({"num_train_epochs": 3}, r"`num_train_epochs` \(2 before, 3 now\)"),
            ({"per_device_train_batch_size": 2}, r"`batch_size_of_all_devices` \(3 before, 2 now\)"),
            ({"train_sampling_strategy": "random"}, "`train_sampling_strategy`"),
            ({"weight_averaging": 0.5}, "`weight_averaging`"),
            ({"eval_steps": 1, "save_steps": 1}, "`eval_steps` .*, `save_steps`"),
        ],
    )
    def test_arguments(self, copied, change, message):
        trainer = make_trainer(make_arguments(copied, **{**FINISHED, **change}))
        with pytest.raises(ValueError, match=f"checkpoint-6 is of a run .* something else: .*{message}"):
            trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_anchors": 2}, r"`config.num_anchors` \(3 before, 2 now\)"),
            ({"fusion_type": "mean"}, "`config.fusion_type`"),
            ({"seed": 1}, "`weights`"),
        ],
    )
    def test_model(self, copied, change, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(make_arguments(copied, **FINISHED), **change).train(resume_from_checkpoint=True)

    def test_clips(self, copied):
        trainer = make_trainer(make_arguments(copied, **FINISHED))
        trainer.train_dataset = trainer.train_dataset.select(range(8))
        with pytest.raises(ValueError, match="`train_clips` .9 clips, .* before, 8 clips, .* now"):
            trainer.train(resume_from_checkpoint=True)

    def test_what_changes_nothing(self, copied):
        """Elsewhere, and with other logging; and by an absolute path of a copy."""
        other = make_arguments(copied / "other", **FINISHED, logging_steps=1, save_total_limit=1, disable_tqdm=False)
        trainer = make_trainer(other)
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-6"))
        assert trainer.state.global_step == 6

    def test_the_other_script(self, copied):
        arguments = make_arguments(copied, "True", **FINISHED)
        clips, tokenizer = distributed_worker.make_clips(9, seed=3), distributed_worker.make_tokenizer()
        model = tiny_model()
        processor = AMESSProcessor.for_model(model.config, tokenizer)
        training = run_mir_no_trainer.Training(Accelerator(), model, arguments, clips, clips, processor)
        message = "checkpoint-6 was written by AMESSTrainer, and this is run_mir_no_trainer.py"
        with pytest.raises(ValueError, match=message):
            training.run()

    def test_no_record(self, copied):
        record = copied / "checkpoint-6" / "run.json"
        record.unlink()
        sizes = json.loads((copied / "checkpoint-6" / "checkpoint.manifest").read_text())
        del sizes["run.json"]
        (copied / "checkpoint-6" / "checkpoint.manifest").write_text(json.dumps(sizes))
        with pytest.raises(ValueError, match="checkpoint-6 cannot be resumed from: it has no run.json"):
            make_trainer(make_arguments(copied, **FINISHED)).train(resume_from_checkpoint=True)


class TestLock:
    def hold(self, folder, held, end):
        with locked(folder):
            held.set()
            end.wait(60)

    @pytest.fixture
    def holder(self, tmp_path):
        """A process that holds the folder, and how to end it."""
        context = multiprocessing.get_context("fork")
        held, end = context.Event(), context.Event()
        process = context.Process(target=self.hold, args=(tmp_path, held, end))
        process.start()
        assert held.wait(60)
        yield process
        process.kill()
        process.join()

    def test_second_run(self, tmp_path, holder):
        message = rf"`--output_dir` {tmp_path} is in use by process {holder.pid} on .*; wait until it ends, or give"
        with pytest.raises(ValueError, match=message), locked(tmp_path):
            pass
        trainer = make_trainer(make_arguments(tmp_path))
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_killed_run(self, tmp_path, holder):
        holder.kill()
        holder.join()
        with locked(tmp_path), locked(tmp_path):
            pass

    def test_free_again(self, tmp_path):
        with pytest.raises(KeyError), locked(tmp_path):
            raise KeyError
        with locked(tmp_path / "." / "new" / ".."):
            pass


class TestNoNumbers:
    """Training that has become NaN stops, and what is on the disk stays good."""

    def spoilt(self, folder, at_step, **values):
        """A trainer whose weights are infinite after a step."""

        class Spoil(TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                if state.global_step == at_step:
                    with torch.no_grad():
                        model.classifier.weight[0, 0] = float("inf")

        trainer = make_trainer(make_arguments(folder, **values))
        trainer.add_callback(Spoil())
        return trainer

    def test_loss(self, tmp_path):
        trainer = self.spoilt(tmp_path, 3)
        with pytest.raises(ValueError, match="the loss of step 4 is not a finite number: .* nothing was saved since"):
            trainer.train()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")

    def test_weights_before_saving(self, tmp_path):
        with pytest.raises(ValueError, match="after step 4 the weights classifier.weight are not finite numbers"):
            self.spoilt(tmp_path, 4).train()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]

    def test_weights_at_the_end(self, tmp_path):
        nothing = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        with pytest.raises(ValueError, match="after step 2 the weights"):
            self.spoilt(tmp_path, 2, max_steps=2, **nothing).train()

    @pytest.mark.parametrize(
        ("values", "cause"),
        [
            ({"learning_rate": 50.0}, "`learning_rate` is 50, usual is 0.0002"),
            ({"head_learning_rate": 1e3}, "`head_learning_rate` is 1000, usual is 0.001"),
            ({"max_grad_norm": 0}, "`max_grad_norm` is 0"),
            ({}, "extreme values in the features"),
        ],
    )
    def test_likely_cause(self, tmp_path, values, cause):
        arguments = make_arguments(tmp_path, **values)
        guard = DivergenceGuard(tiny_model(), arguments)
        for step, loss in enumerate((1.0, float("nan"), 2.0, float("inf")), start=1):
            guard.add(torch.tensor(loss), step)
        with pytest.raises(ValueError, match=f"step 2 is not a finite number: .*{cause}"):
            guard.check(4)

    def test_loop(self, tmp_path):
        arguments = make_arguments(tmp_path)
        clips, tokenizer = distributed_worker.make_clips(9, seed=3), distributed_worker.make_tokenizer()
        model = tiny_model()
        processor = AMESSProcessor.for_model(model.config, tokenizer)
        training = run_mir_no_trainer.Training(Accelerator(), model, arguments, clips, clips, processor)
        update = training.update

        def update_and_spoil(batches):
            update(batches)
            if training.state.global_step == 3:
                with torch.no_grad():
                    model.classifier.weight[0, 0] = float("nan")

        training.update = update_and_spoil
        with pytest.raises(ValueError, match="the loss of step 4 is not a finite number"):
            training.run()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_early_stopping_counts_on(tmp_path):
    """Evaluations without improvement before a stop count after it."""
    values = {"early_stopping_patience": 3, "learning_rate": 1e-12, "head_learning_rate": 0.0, "num_train_epochs": 9}
    undisturbed = make_trainer(make_arguments(tmp_path / "a", **values))
    undisturbed.train()
    stopped = make_trainer(make_arguments(tmp_path / "b", **values))
    stopped.add_callback(KillAtStep(5, signal.SIGTERM))
    with pytest.raises(SystemExit) as error:
        stopped.train()
    assert error.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = make_trainer(make_arguments(tmp_path / "b", **values))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == undisturbed.state.global_step == 8


@pytest.mark.parametrize("forked", [False, True])
def test_sigterm_is_for_the_process_that_trains(forked):
    """One that was forked from it, to make batches, ends as it would have."""
    with Preemption() as preemption:
        if forked:
            ready, tell = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(tell, b"x")  # before that, Python forgets the signals of a process that was just forked
                time.sleep(60)
                os._exit(1)
            os.read(ready, 1)
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGTERM and not preemption.received
        else:
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.received
