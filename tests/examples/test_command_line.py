"""Progress bars are hidden where `--disable_tqdm` says so, and there alone."""

import sys
from pathlib import Path

import command_line
import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging


EXAMPLES = Path(command_line.__file__).parent
# Scripts that never show a bar, or that are no programs.
WITHOUT_BARS = {
    "clip_corpus.py", "clip_writer.py", "demo_clips.py",
    "demo_corpus.py", "demo_examples.py", "predict_clip.py", "summarize_results.py", "runner.py",
    "command_line.py", "app.py", "app_view.py", "aggregation.py", "combining.py",
}  # fmt: skip


def shown():
    return (
        not datasets.are_progress_bars_disabled(),
        not are_progress_bars_disabled(),
        logging.is_progress_bar_enabled(),
    )


@pytest.mark.parametrize("hidden", [True, False])
def test_hidden_within_and_as_before_afterwards(hidden):
    before = shown()
    with pytest.raises(KeyError), command_line.progress_bars(hidden):
        assert shown() == ((False,) * 3 if hidden else before)
        raise KeyError
    assert shown() == before


@pytest.mark.parametrize(
    "script",
    sorted(path for path in EXAMPLES.rglob("*.py") if path.name not in WITHOUT_BARS),
    ids=lambda path: path.name,
)
def test_every_script_with_bars_takes_the_option(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    module = __import__(script.stem)
    with pytest.raises(SystemExit):
        getattr(module, "main", getattr(module, "parse_arguments", None))()
    assert "--disable_tqdm" in capsys.readouterr().out
