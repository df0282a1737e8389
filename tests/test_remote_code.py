"""A folder that was loaded by its own code and saved again loads again, as model, processor and pipeline."""

import subprocess
import sys
from pathlib import Path

import pytest
from utils import FRONT_ENDS, save_clip_model

from amess_hf import configuration_amess


LOAD_AND_SAVE = """
import sys
sys.path.insert(0, sys.argv[3])
from hub_steps import KeptOut
sys.meta_path.insert(0, KeptOut())
from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline
source, copy = sys.argv[1:3]
AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=True).save_pretrained(copy)
AutoProcessor.from_pretrained(source, trust_remote_code=True).save_pretrained(copy)
"""
ASK = """
import json, sys
sys.path.insert(0, sys.argv[3])
from hub_steps import KeptOut
sys.meta_path.insert(0, KeptOut())
from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline
for folder in sys.argv[1:3]:
    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    print(json.dumps(pipeline("intent-recognition", model=folder, trust_remote_code=True)({"text": "hello you"})))
"""


@pytest.mark.slow
def test_a_copy_of_a_copy(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    source, copy = tmp_path / "source", tmp_path / "copy"
    save_clip_model(source, tokenizer)
    assert FRONT_ENDS["audio_config"]["encoder"] == "log-mel"  # a front end that is part of the code

    def run(script):
        command = [sys.executable, "-c", script, source, copy, Path(__file__).parent]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    run(LOAD_AND_SAVE)
    flat = {path.name for path in Path(configuration_amess.__file__).parent.glob("*_amess.py")}
    assert {path.name for path in copy.glob("*.py")} == flat and len(flat) <= 15
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "other_modules"))
    first, second = run(ASK).splitlines()
    assert first == second
