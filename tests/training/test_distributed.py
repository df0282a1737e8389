"""Two processes with batches of two match one process with batches of four: gradients, loss parts, weights, answers."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from amess_hf.training.dataloader import ClipBatchSampler, clip_lengths


WORKER = Path(__file__).parents[1] / "distributed_worker.py"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(script, *arguments, processes=2):
    """Run the script once for each of the processes, which know of one another; fails if one fails."""
    shared = {
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": 1,
    }
    running = []
    for rank in range(processes):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        command = [sys.executable, str(script), *map(str, arguments)]
        running.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        outputs = [process.communicate(timeout=500)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes gave: `{scenario: {name: tensor}}`."""
    folder = tmp_path_factory.mktemp("two-processes")
    launch(WORKER, folder)
    names = json.loads((folder / "scenarios.json").read_text())
    return {name: load_file(folder / f"{number}.safetensors") for number, name in enumerate(names)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process gave."""
    return distributed_worker.scenarios(tmp_path_factory.mktemp("one-process"))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["one step", "one step, FSDP", "trainer", "trainer, grouped by length", "loop"])
def test_two_processes_are_one(together, alone, scenario):
    expected, given = alone[scenario], together[scenario]
    assert expected.keys() == given.keys()
    for name, value in expected.items():
        assert value.shape == given[name].shape, name
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            given[name], value, atol=1e-5 * scale, rtol=0, msg=lambda text, name=name: name + text
        )


@pytest.mark.slow
def test_every_loss_took_part(alone):
    """None of the compared numbers is trivially zero."""
    for name, value in alone["one step"].items():
        assert float(value.abs().max()) > 0 or name == "consistency_loss", name


@pytest.mark.slow
def test_loop_is_the_trainer(alone):
    for name, value in alone["trainer"].items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(alone["loop"][name], value, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("clips", [1, 7, 16, 17, 30])
@pytest.mark.parametrize("grouped", [False, True])
def test_shares_of_a_batch(clips, grouped):
    """Each step's shares are disjoint and together the single process's batch; every clip comes once in an epoch."""
    lengths = np.random.default_rng(clips).integers(1, 50, clips) if grouped else None
    alone = ClipBatchSampler(clips, 6, seed=4, lengths=lengths)
    shares = [ClipBatchSampler(clips, 2, 4, 3, rank, lengths) for rank in range(3)]
    epochs = []
    for epoch in range(2):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        steps = list(alone)
        assert len(steps) == len(alone) == len(shares[0]) == -(-clips // 6)
        assert sorted(sum(steps, [])) == list(range(clips))
        for whole, *parts in zip(steps, *shares, strict=True):
            assert sorted(sum(parts, [])) == sorted(whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        epochs.append(steps)
    assert clips < 7 or epochs[0] != epochs[1]


def test_last_batch_can_be_left_out():
    assert [len(batch) for batch in ClipBatchSampler(11, 2, 0, 2, 1, drop_last=True)] == [2, 2]


def test_grouping_by_length_pads_less():
    lengths = np.random.default_rng(0).integers(10, 500, 1000)

    def share_of_padding(sampler):
        held = [lengths[batch] for batch in sampler]
        return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in held)

    grouped = share_of_padding(ClipBatchSampler(1000, 16, 0, lengths=lengths))
    assert grouped < 0.3 * share_of_padding(ClipBatchSampler(1000, 16, 0))


def test_lengths_of_clips():
    """Tokens with the two special ones, and frames up to the limit, also of a selection in another order."""
    clips = distributed_worker.make_clips(12, seed=5)
    config, tokenizer = distributed_worker.make_model().config, distributed_worker.make_tokenizer()
    config.max_text_length, config.audio_config.max_length = 6, 4
    chosen = clips.select([7, 2, 2, 9])
    expected = [
        min(len(row["text"].split()) + 2, 6) + min(len(row["audio_features"]), 4) + len(row["video_features"])
        for row in chosen
    ]
    assert clip_lengths(chosen, tokenizer, config).tolist() == expected
    assert clip_lengths(list(chosen), tokenizer, config).tolist() == expected


CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("one_gpu", "NO"),
        ("several_gpus", "MULTI_GPU"),
        ("fsdp", "FSDP"),
        ("deepspeed_zero2", "DEEPSPEED"),
        ("deepspeed_zero3", "DEEPSPEED"),
    ],
)
def test_accelerate_takes_the_configs(name, kind):
    """Accelerate's own reader knows every key, and its launcher takes the command in the file's first line."""
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.mixed_precision == "bf16"
    assert config.num_processes == (1 if kind == "NO" else 2)
    command = re.search(r"accelerate launch (.*)", path.read_text().splitlines()[0]).group(1)
    arguments = launch_command_parser().parse_args(command.replace(" ...", "").split())
    assert arguments.config_file == f"examples/configs/{name}.yaml" and arguments.training_script.endswith(
        "run_mir.py"
    )
    assert ("weight_averaging" in command) == (name in ("fsdp", "deepspeed_zero3"))


def test_every_config_is_tested():
    assert len(list(CONFIGS.glob("*.yaml"))) == 5
