"""Every snippet of the README is run unchanged, on small stand-ins for the models and data that it names.

So are those of `examples/README.md` about one's own data, on a folder of raw clips.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import BertModel
from utils import DESCRIPTIONS, save_clip_model, text_config

from amess_hf import AMESSForIntentClassification


pytest.importorskip("av")

from clip_corpus import write_clip_corpus


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples/README.md").read_text(encoding="utf-8")
# Set up by the Makefile, or by hand.
NOT_RUN = ("make ", "pip ", "source ", "python examples/app/app.py")


def snippets(language, text=README):
    """The fenced blocks of a language, in their order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def section(title):
    """The section of `examples/README.md` with this title."""
    return re.search(rf"^### {title}\n(.*?)(?=^#|\Z)", EXAMPLES, flags=re.MULTILINE | re.DOTALL)[1]


def scripts():
    """The shell snippets that can be run: without what sets up an environment, and the page, which runs for ever."""
    texts = [*snippets("bash"), *snippets("bash", section("Your own data"))]
    kept = ["".join(line for line in text.splitlines(keepends=True) if not line.startswith(NOT_RUN)) for text in texts]
    return [text for text in kept if text.strip()]


def test_it_is_short():
    assert len(README.split()) <= 1100


def test_files_that_it_names_exist():
    paths = re.findall(r"[(`]((?:amess_hf|examples)/[\w./*-]+)[)`]", README)
    assert paths and [path for path in paths if not list(ROOT.glob(path))] == []


@pytest.fixture
def folder(tmp_path, tokenizer, monkeypatch):
    """A working folder in which the names of the README are small models and data sets."""
    monkeypatch.chdir(tmp_path)
    save_clip_model(tmp_path / "demo_output" / "model", tokenizer)
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "bert-base-uncased"):
        BertModel(text_config()).save_pretrained(name)
        tokenizer.save_pretrained(name)
    write_clip_corpus(Path("demo_output/clips-0-1000-160"), clips_per_split={"train": 20, "dev": 10, "test": 8})
    shutil.copytree(ROOT / "examples", "examples", ignore=shutil.ignore_patterns("results", "__pycache__"))
    (tmp_path / "my_data").mkdir()
    shutil.copytree("demo_output/clips-0-1000-160/raw_data/S03/E01", "my_data/clips")
    rows = [f"please,{label},clips/{number}.mp4" for number in (1, 2) for label in DESCRIPTIONS]
    for split in ("train", "dev"):
        Path(f"my_data/{split}.csv").write_text("\n".join(["text,label,video", *rows]) + "\n")
    return tmp_path


def test_python_snippets(folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr("amess_hf.training.arguments.CLIPS_SEEN_AT_LEAST", 1)  # six epochs, and not hundreds
    names = {}
    for snippet in snippets("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert AMESSForIntentClassification.from_pretrained("runs/python/model").config.num_labels == 20
    push = re.search(r"trainer\.push_to_hub\(.*\)", README)[0]
    exec(push, names)
    assert "model.safetensors" in hub.files("you/amess-mintrec")
    answer = names["pipe"]({"text": "hello"}, extra_labels={"Negotiate": "a b c"}, top_k=None)
    assert "Negotiate" in {one["label"] for one in answer}


def test_python_snippets_on_raw_clips(folder):
    names = {}
    with_encoders, exported = snippets("python", section("Your own data")), snippets("python", section("Exporting"))
    for snippet in [*with_encoders, exported[0]]:
        exec(compile(snippet, "examples/README.md", "exec"), names)
    assert np.shape(names["dataset"]["train"][0]["audio_features"])[1] == 80


@pytest.mark.slow
@pytest.mark.parametrize("script", scripts())
def test_commands(folder, script):
    small = "--do_train --use_cpu --max_steps 2 --disable_tqdm True --eval_strategy no --save_strategy no"
    script = script.replace("--do_train", f"{small} --load_best_model_at_end False")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for output_dir in re.findall(r"--output_dir (\S+)", script):
        assert (folder / output_dir / "model.safetensors").is_file()
