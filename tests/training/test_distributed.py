"""Two processes with batches of two match one process with batches of four: gradients, loss parts, weights, answers."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file


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
@pytest.mark.parametrize(
    "scenario",
    [
        "one step",
        "one step, FSDP",
        "trainer",
        "trainer, grouped by length",
        "loop",
        "one update",
        "one update in parts",
    ],
)
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
def test_accumulated_gradients_weigh_clips_alike(alone):
    """16 x 1 is 4 x 4, and by the test above 2 x 2 x 4, for every loss but the one between the clips of a batch."""
    whole, parts = alone["one update"], alone["one update in parts"]
    start = distributed_worker.make_model(batch_triplet_loss_weight=0.0).state_dict()
    assert {"outlier_exposure_loss", "audio_loss", "consistency_loss"} <= whole.keys()
    for name, value in whole.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            parts[name], value, atol=1e-6 * scale, rtol=0, msg=lambda text, name=name: name + text
        )
    assert max(float((whole[name] - value).abs().max()) for name, value in start.items()) > 1e-3


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
