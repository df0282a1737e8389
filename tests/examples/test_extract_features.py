"""extract_features.py from the command line: its arguments, and several processes that share the work."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from amess_hf.data.feature_files import SafetensorsFeatures


av = pytest.importorskip("av")

import extract_features as script
from clip_writer import write_clip

from amess_hf.clips_amess import read_audio
from amess_hf.encoders_amess import LogMelEncoder


SCRIPT = Path(__file__).parents[2] / "examples" / "extract_features.py"
COUNT = 18  # more than a batch of 16


@pytest.fixture
def arguments(tmp_path):
    """The command line for a MIntRec folder of short clips, the last of which cannot be read."""
    clips = tmp_path / "raw_data" / "S01" / "E01"
    clips.mkdir(parents=True)
    for number in range(COUNT):
        write_clip(clips / f"{number}.wav", sound=np.random.default_rng(number).uniform(-0.5, 0.5, 4000))
    (clips / f"{COUNT}.wav").write_text("no clip")
    rows = [f"S01\tE01\t{number}\thello\tComplain" for number in range(COUNT + 1)]
    (tmp_path / "train.tsv").write_text("\n".join(["season\tepisode\tclip\ttext\tlabel", *rows]) + "\n")
    return ["--data_dir", str(tmp_path), "--audio_encoder", "log-mel", "--on_error", "skip"]


def check_complete(tmp_path):
    """Every clip that can be read is there once, in order, as a direct encoding has it."""
    features = SafetensorsFeatures(tmp_path / "audio_data" / "log-mel")
    assert list(features) == [f"S01_E01_{number}" for number in range(COUNT)]
    for number in range(COUNT):
        sound = read_audio(tmp_path / "raw_data" / "S01" / "E01" / f"{number}.wav", 16000)
        np.testing.assert_allclose(features[f"S01_E01_{number}"], LogMelEncoder()([sound])[0], atol=1e-6)
    assert (tmp_path / "failed_clips.tsv").read_text().splitlines()[1].startswith(f"S01_E01_{COUNT}\t")
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_main_returns_the_number_of_failures(arguments, tmp_path):
    assert script.main(arguments) == 1
    check_complete(tmp_path)


@pytest.mark.slow
def test_two_processes(arguments, tmp_path):
    launch = "-m accelerate.commands.launch --cpu --num_processes 2 --main_process_port 0".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, *launch, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{COUNT} of {COUNT + 1} clips are in") == 1
    check_complete(tmp_path)
