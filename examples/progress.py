"""Progress bars, which all scripts leave out with `--disable_tqdm`: their own, and those of the libraries that they use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging


@dataclass
class ProgressArguments:
    """For scripts that do not take transformers' `TrainingArguments`, which have the same option."""

    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})


def hide_progress_bars() -> None:
    """Show no bars from now on."""
    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.disable_progress_bar()


@contextmanager
def progress_bars(hidden: bool) -> Iterator[None]:
    """Within it, show none if they are to be hidden."""
    before = datasets.are_progress_bars_disabled(), are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    if hidden:
        hide_progress_bars()
    try:
        yield
    finally:
        if not before[0]:
            datasets.enable_progress_bars()
        if not before[1]:
            enable_progress_bars()
        if before[2]:
            logging.enable_progress_bar()
