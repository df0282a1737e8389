"""Every snippet of the README is run unchanged, on small stand-ins for the models and data that it names.

So are those of `examples/README.md` about one's own data, on a folder of raw clips.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from demo_corpus import write_demo_corpus
from transformers import BertModel
from utils import DESCRIPTIONS, save_clip_model, text_config


pytest.importorskip("av")

from clip_writer import write_clip


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples/README.md").read_text(encoding="utf-8")
# Set up by the Makefile, or by hand.
NOT_RUN = ("make ", "pip ")


def snippets(language, text=README):
    """The fenced blocks of a language, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def section(title):
    """The section of `examples/README.md` with this title."""
    return re.search(rf"^### {title}\n(.*?)(?=^#|\Z)", EXAMPLES, flags=re.MULTILINE | re.DOTALL)[1]


def commands():
    """The command lines of the shell snippets, each on one line and without its comment."""
    lines = "".join([*snippets("bash"), *snippets("bash", section("Your own data"))]).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith(NOT_RUN)]


def test_it_is_short():
    assert len(README.split()) <= 1000


def test_files_that_it_names_exist():
    paths = re.findall(r"[(`]((?:amess_hf|examples)/[\w./*-]+)[)`]", README)
    assert paths and [path for path in paths if not list(ROOT.glob(path))] == []


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):
    """A working folder in which the names of the README are small models and data sets."""
    monkeypatch.chdir(tmp_path)
    save_clip_model(tmp_path / "org" / "amess-mintrec2", tokenizer)
    BertModel(text_config()).save_pretrained("bert-base-uncased")
    tokenizer.save_pretrained("bert-base-uncased")
    write_demo_corpus("path/to/MIntRec", clips_per_split={"train": 20, "dev": 10})
    generator = np.random.default_rng(0)
    clips = Path("my_data/clips")
    clips.mkdir(parents=True)
    header, row = snippets("")[0].strip().splitlines()  # the table of the user's own data
    rows = [row.replace("Refuse", label) for label in DESCRIPTIONS for _ in range(4)]
    for split in ("train", "dev"):
        Path(f"my_data/{split}.csv").write_text("\n".join([header, *rows]) + "\n")
    for path in ("clip.mp4", "my_data/clips/17.mp4"):
        frames = generator.integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
        write_clip(path, frames, generator.uniform(-0.3, 0.3, 16000), frame_rate=12)
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("results", "__pycache__"))
    Path("my_data/descriptions.json").write_text(json.dumps({"descriptions": DESCRIPTIONS}))
    return tmp_path


def test_python_snippets(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr("amess_hf.training.arguments.CLIPS_SEEN_AT_LEAST", 1)  # six epochs, and not hundreds
    names = {}
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert "model.safetensors" in hub.files("org/amess-mintrec")
    answer = names["pipe"]({"text": "hello"}, extra_labels={"Negotiate": "a b c"}, top_k=None)
    assert "Negotiate" in {one["label"] for one in answer}


def test_python_snippets_on_raw_clips(folder):
    names = {}
    with_encoders, exported = snippets("python", section("Your own data")), snippets("python", section("Exporting"))
    for snippet in [*with_encoders, exported[0]]:
        exec(compile(snippet, "examples/README.md", "exec"), names)
    assert np.shape(names["dataset"]["train"][0]["audio_features"])[1] == 80


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in commands() if "…" not in line])
def test_commands(folder, command):
    program, *arguments = shlex.split(command)
    assert program == "python"
    small = "--use_cpu --max_steps 2 --disable_tqdm True --eval_strategy no --save_strategy no".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments, *small, "--load_best_model_at_end", "False"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    output_dir = arguments[arguments.index("--output_dir") + 1]
    assert (folder / output_dir / "model.safetensors").is_file()
