"""Progress bars are hidden where a script says so, and there alone; a full disk is named in one line."""

import errno

import command_line
import datasets
import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging


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


def test_full_disk_is_one_line():
    with pytest.raises(SystemExit, match="free some space and start again: `--resume_from_checkpoint`") as error:
        with command_line.one_line_errors():
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint-2")
    assert "\n" not in str(error.value)
