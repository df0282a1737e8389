"""Training that is killed and restarted ends as if it had not been interrupted."""

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from types import SimpleNamespace

import distributed_worker
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from utils import tiny_model

from amess_hf import AMESSForIntentClassification, AMESSTrainer, AMESSTrainingArguments
from amess_hf.training import WeightAverage
from amess_hf.training.run_state import (
    RESULT_ARGUMENTS,
    SELECTION_ARGUMENTS,
    DivergenceGuard,
    Preemption,
    checkpoint_to_resume,
    last_complete_checkpoint,
    locked,
    model_request,
    rotate_checkpoints,
)


def make_arguments(folder, **values):
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
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return AMESSTrainingArguments(**{**defaults, **values})


def make_trainer(arguments, *callbacks, **values):
    set_seed(arguments.seed)
    clips, tokenizer = distributed_worker.make_clips(9, seed=3), distributed_worker.make_tokenizer()
    return AMESSTrainer(
        tiny_model(**values),
        arguments,
        train_dataset=clips,
        eval_dataset=clips,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class AtStep(TrainerCallback):
    """Do something after a step; by default, end the process."""

    def __init__(self, step, act=lambda model: os.kill(os.getpid(), signal.SIGKILL)):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == self.step:
            self.act(model)


def sigterm(model):
    os.kill(os.getpid(), signal.SIGTERM)


def train(folder, callbacks, in_save, **values):
    """A whole run; the process ends while it saves the step `in_save`."""
    trainer, save = make_trainer(make_arguments(folder, **values), *callbacks), WeightAverage.save

    def save_or_end(average, path):
        if path.endswith(f"checkpoint-{in_save}"):
            os.kill(os.getpid(), signal.SIGKILL)
        save(average, path)

    WeightAverage.save = save_or_end
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    trainer.save_state()


def in_a_process(folder, *callbacks, in_save=None, code=0, **values):
    """`train` in a process of its own."""

    def target():
        torch.set_num_threads(1)
        train(folder, callbacks, in_save, **values)

    # A copy of this process: it need not import everything again.
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(500)
    hangs = process.is_alive()
    process.kill()
    assert not hangs and process.exitcode == code


def assert_same_end(undisturbed, killed, evaluations):
    """The model that is kept, the weights and their average to go on from, what is best, metrics and the mean loss."""
    for name in ("model.safetensors", "checkpoint-9/model.safetensors", "checkpoint-9/averaged_weights.safetensors"):
        expected, given = load_file(undisturbed / name), load_file(killed / name)
        assert expected.keys() == given.keys()
        assert all(torch.equal(value, given[key]) for key, value in expected.items()), name
    states = [json.loads((run / "checkpoint-9" / "trainer_state.json").read_text()) for run in (undisturbed, killed)]
    for name in ("best_metric", "best_global_step"):
        assert states[0][name] == states[1][name]
    metrics = [[line["eval_accuracy"] for line in state["log_history"] if "eval_accuracy" in line] for state in states]
    assert metrics[0] == metrics[1] and len(metrics[0]) == evaluations
    histories = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (undisturbed, killed)]
    losses = [[line["train_loss"] for line in history if "train_loss" in line] for history in histories]
    assert losses[1] == [pytest.approx(losses[0][-1], rel=1e-12)] and losses[0][-1] > 0


@pytest.mark.slow
def test_killed_training_ends_the_same(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    in_a_process(undisturbed)
    in_a_process(killed, AtStep(1), code=-signal.SIGKILL)
    assert last_complete_checkpoint(killed) is None
    in_a_process(killed, AtStep(5), code=-signal.SIGKILL)
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-4")
    in_a_process(killed, in_save=6, code=-signal.SIGKILL)
    assert (killed / "checkpoint-6" / "model.safetensors").exists()
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-4")
    # A scheduler's notice: a checkpoint where none is due, and the exit code of a process that SIGTERM ended.
    in_a_process(killed, AtStep(7, sigterm), code=128 + signal.SIGTERM)
    assert last_complete_checkpoint(killed) == str(killed / "checkpoint-7")
    in_a_process(killed)
    assert_same_end(undisturbed, killed, evaluations=5)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 4])
def test_sigterm_at_the_end_of_an_epoch(tmp_path, step):
    """What is due there comes first: the evaluation counts."""
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    in_a_process(tmp_path / "undisturbed", **epochs)
    in_a_process(tmp_path / "killed", AtStep(step, sigterm), code=143, **epochs)
    assert last_complete_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / f"checkpoint-{step}")
    in_a_process(tmp_path / "killed", **epochs)
    assert_same_end(tmp_path / "undisturbed", tmp_path / "killed", evaluations=3)


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


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, remove])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "rng_state.pth", "averaged_weights.safetensors", "trainer_state.json",
     "checkpoint.manifest", "run.json"],
)  # fmt: skip
def test_cut_checkpoint_is_passed_over(copied, name, damage):
    last = copied / "checkpoint-6"
    assert last_complete_checkpoint(copied) == str(last)
    damage(last / name)
    assert last_complete_checkpoint(copied) == str(copied / "checkpoint-4")
    with pytest.raises(ValueError, match=f"checkpoint-6 cannot be resumed from: {name} is missing or truncated"):
        make_trainer(make_arguments(copied)).train(resume_from_checkpoint=str(last))


def test_checkpoint_that_is_written_again_is_not_whole_in_between(copied, monkeypatch):
    def fail(average, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(WeightAverage, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(make_arguments(copied, **FINISHED)).train(resume_from_checkpoint=str(copied / "checkpoint-4"))
    assert last_complete_checkpoint(copied) == str(copied / "checkpoint-4")


@pytest.mark.parametrize(
    ("newest", "best", "limit", "kept"),
    [(6, 2, 2, {2, 6}), (6, 6, 2, {4, 6}), (6, None, 1, {6}), (6, None, None, {2, 4, 6}), (4, 2, 3, {2, 4, 6}),
     (4, None, 1, {4}), (2, None, 2, {2, 6})],
)  # fmt: skip
def test_rotation_is_by_step(tmp_path, newest, best, limit, kept):
    """Whatever the clock said; those of later steps are of an earlier attempt."""
    for step, age in ((2, 5), (4, 9), (6, 7)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (1e9 - age, 1e9 - age))
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    rotate_checkpoints(str(tmp_path / f"checkpoint-{newest}"), best, limit)
    assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == kept


def test_the_clock_goes_back(tmp_path):
    """The checkpoints that stay are the latest by step."""

    def turn_back(model):
        for folder in tmp_path.glob("checkpoint-*"):
            os.utime(folder, (2e9, 2e9))

    arguments = make_arguments(tmp_path, load_best_model_at_end=False, eval_strategy="no", save_total_limit=2)
    make_trainer(arguments, *(AtStep(step, turn_back) for step in range(1, 9))).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]


def test_full_disk_is_known_before_training(tmp_path, monkeypatch):
    usage = SimpleNamespace(total=2**40, used=2**40, free=100_000)
    monkeypatch.setattr("amess_hf.training.run_state.shutil.disk_usage", lambda folder: usage)
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


def test_weights_alone_are_not_resumed_from(tmp_path):
    make_trainer(make_arguments(tmp_path, max_steps=2, save_only_model=True)).train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists() and last_complete_checkpoint(tmp_path) is None


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`--output_dir` .* cannot be written to"), locked(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device"),
     RuntimeError("[enforce fail at inline_container.cc:863] PytorchStreamWriter failed writing file data/3")],
)  # fmt: skip
def test_disk_that_fills_while_saving(tmp_path, monkeypatch, error):
    """Whatever the library raises, the error names the checkpoint, and the one before can be resumed from."""

    def fail(average, folder):
        if folder.endswith("checkpoint-4"):
            raise error
        save(average, folder)

    save = WeightAverage.save
    monkeypatch.setattr(WeightAverage, "save", fail)
    with pytest.raises(OSError, match="cannot be written, .* MiB are free: .*checkpoint-4") as caught:
        make_trainer(make_arguments(tmp_path)).train()
    assert caught.value.errno == errno.ENOSPC and last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


@pytest.mark.slow
def test_evaluation_does_not_change_what_training_draws(tmp_path):
    """With and without evaluations in between, dropout draws the same: the weights are equal."""
    runs = []
    for strategy in ("no", "steps"):
        values = {"eval_strategy": strategy, "save_strategy": "no", "load_best_model_at_end": False}
        trainer = make_trainer(make_arguments(tmp_path / strategy, **values))
        trainer.train()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


class TestRecord:
    """A checkpoint is resumed from with the arguments that it was created with, and no others."""

    @pytest.mark.parametrize(
        ("arguments", "fields", "message"),
        [
            ({"learning_rate": 2e-3}, {}, r"`learning_rate` \(0.001 before, 0.002 now\)"),
            ({"seed": 7}, {}, r"`seed` \(42 before, 7 now\)"),
            ({"num_train_epochs": 1}, {}, r"`num_train_epochs` \(2 before, 1 now\)"),
            ({"max_steps": 4}, {}, r"`max_steps` \(-1 before, 4 now\)"),
            ({"per_device_train_batch_size": 2}, {}, r"`batch_size_of_all_devices` \(3 before, 2 now\)"),
            ({"train_sampling_strategy": "random"}, {}, "`train_sampling_strategy`"),
            ({"weight_averaging": 0.5}, {}, "`weight_averaging`"),
            ({"eval_steps": 1, "save_steps": 1}, {}, "`eval_steps` .*, `save_steps`"),
            ({}, {"num_anchors": 2}, r"`config.num_anchors` \(3 before, 2 now\)"),
            ({}, {"fusion_type": "mean"}, "`config.fusion_type`"),
            ({}, {"seed": 1}, "`weights`"),
        ],
    )
    def test_refused(self, copied, arguments, fields, message):
        trainer = make_trainer(make_arguments(copied, **{**FINISHED, **arguments}), **fields)
        message = f"checkpoint-6 cannot be resumed from: it was created with different arguments: .*{message}"
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 0

    def test_clips(self, copied):
        trainer = make_trainer(make_arguments(copied, **FINISHED))
        trainer.train_dataset = trainer.train_dataset.map(lambda row: {"text": f"please {row['text']}"})
        with pytest.raises(ValueError, match="`train_clips` .9 clips, .* before, 9 clips, .* now"):
            trainer.train(resume_from_checkpoint=True)

    def test_what_changes_nothing(self, copied):
        """Elsewhere, and with other logging; and by an absolute path of a copy."""
        other = make_arguments(copied / "other", **FINISHED, logging_steps=1, save_total_limit=1, disable_tqdm=False)
        trainer = make_trainer(other)
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-6"))
        assert trainer.state.global_step == 6

    def test_more_epochs(self, copied):
        """A finished run goes on; its evaluations count."""
        trainer = make_trainer(make_arguments(copied, **{**FINISHED, "num_train_epochs": 3}))
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 9
        steps = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
        assert steps == [2, 4, 6, 8, 9] or steps == [2, 4, 6, 8]
        assert last_complete_checkpoint(copied) == str(copied / "checkpoint-9")

    def test_every_argument_is_one_or_the_other(self):
        no_result = {
            "output_dir", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "save_total_limit",
            "dataloader_num_workers", "remove_unused_columns", "hub_private_repo", "logging_steps",
            "logging_nan_inf_filter", "per_device_eval_batch_size",
            "per_device_train_batch_size",  # counts with the number of processes, as `batch_size_of_all_devices`
        }  # fmt: skip
        known = {*RESULT_ARGUMENTS, *SELECTION_ARGUMENTS}
        assert set(AMESSTrainingArguments.__annotations__) - known == no_result
        assert known <= {field.name for field in dataclasses.fields(AMESSTrainingArguments)}

    @pytest.mark.parametrize("name", ["classifier.weight", "label_embeds", "amess.fusion.out_proj.bias"])
    def test_any_tensor_of_a_loaded_model_counts(self, tmp_path, name):
        """Two trained models over one frozen encoder are two models."""
        tiny_model().save_pretrained(tmp_path)
        loaded, again = (AMESSForIntentClassification.from_pretrained(tmp_path) for _ in range(2))
        assert model_request(loaded) == model_request(again)
        with torch.no_grad():
            loaded.state_dict()[name].reshape(-1)[0] += 1e-3
        assert model_request(loaded) != model_request(again)

    def test_a_new_model_is_its_encoder(self):
        one, other = tiny_model(), tiny_model()
        with torch.no_grad():
            other.classifier.weight[0, 0] += 1e-7
        assert model_request(one) == model_request(other)
        with torch.no_grad():
            next(other.amess.text_encoder.parameters())[0] += 1e-3
        assert model_request(one) != model_request(other)


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


class TestDivergence:
    """Training that has become NaN stops, and what is on the disk stays good."""

    NOTHING_SAVED = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 2}

    @pytest.mark.parametrize(
        ("at_step", "values", "message", "checkpoints"),
        [
            (3, {}, "the loss of step 4 is not finite: .* nothing was saved since", ["checkpoint-2"]),
            (4, {}, "after step 4 the weights classifier.weight are not finite", ["checkpoint-2"]),
            (2, NOTHING_SAVED, "after step 2 the weights", []),
        ],
    )
    def test_training_stops(self, tmp_path, at_step, values, message, checkpoints):
        def spoil(model):
            with torch.no_grad():
                model.classifier.weight[0, 0] = float("inf")

        with pytest.raises(ValueError, match=message):
            make_trainer(make_arguments(tmp_path, **values), AtStep(at_step, spoil)).train()
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == checkpoints
        assert (last_complete_checkpoint(tmp_path) is None) is (not checkpoints)

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
        guard = DivergenceGuard(tiny_model(), make_arguments(tmp_path, **values))
        for step, loss in enumerate((1.0, float("nan"), 2.0, float("inf")), start=1):
            guard.add(torch.tensor(loss), step)
        with pytest.raises(ValueError, match=f"step 2 is not finite: .*{cause}"):
            guard.check(4)


def test_early_stopping_counts_on(tmp_path):
    """Evaluations without improvement before a stop count after it."""
    values = {"early_stopping_patience": 3, "learning_rate": 1e-12, "head_learning_rate": 0.0, "num_train_epochs": 9}
    undisturbed = make_trainer(make_arguments(tmp_path / "a", **values))
    undisturbed.train()
    with pytest.raises(SystemExit) as error:
        make_trainer(make_arguments(tmp_path / "b", **values), AtStep(5, sigterm)).train()
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


def test_a_new_run_that_may_resume_says_nothing(tmp_path, caplog):
    """Only a folder whose checkpoints are all damaged is worth a line."""
    assert checkpoint_to_resume(True, tmp_path) is None and not caplog.records
    (tmp_path / "checkpoint-4").mkdir()
    assert checkpoint_to_resume(True, tmp_path) is None
    assert "no complete checkpoint yet" in caplog.text
