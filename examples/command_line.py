"""What the scripts share: help and errors to the point, `--disable_tqdm`, and folders that appear when they are complete."""

import errno
import json
import os
import shutil
import signal
import sys
import uuid
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import datasets
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import HfArgumentParser
from transformers.utils import logging


class ArgumentParser(HfArgumentParser):
    """Arguments from the command line or one JSON file. Its help shows the default values; an error is one line."""

    def __init__(self, *args, **kwargs):
        usage = "%(prog)s [--option value ...]"
        super().__init__(*args, formatter_class=_HelpFormatter, usage=usage, allow_abbrev=False, **kwargs)

    def error(self, message):
        raise ValueError(f"{message} (`--help` lists the arguments)")

    def parse(self, arguments: list[str] | None = None) -> tuple:
        """An instance of each dataclass, from `arguments` or the command line; `["arguments.json"]` is read from there."""
        arguments = sys.argv[1:] if arguments is None else arguments
        if len(arguments) == 1 and arguments[0].endswith(".json"):
            arguments = self._arguments_of_file(arguments[0])
        return self.parse_args_into_dataclasses(arguments, look_for_args_file=False)

    def _arguments_of_file(self, path):
        """As a command line, so that both are checked alike."""
        try:
            values = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f'{path} should be JSON such as {{"output_dir": "runs/mine", ...}}: {error}') from None
        lists = {name for action in self._actions if action.nargs in ("*", "+") for name in action.option_strings}
        arguments = []
        for name, value in values.items():
            if isinstance(value, list) and f"--{name}" in lists:
                arguments += [f"--{name}", *map(str, value)]
            elif value is not None:
                value = ",".join(map(str, value)) if isinstance(value, list) else value
                arguments.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
        return arguments


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action):
        action = copy(action)
        action.option_strings = [name for name in action.option_strings if "-" not in name[2:]]  # without aliases
        return super()._format_action_invocation(action)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors in the input end the program with one line, and so do SIGTERM and Ctrl-C."""
    program, process = os.path.basename(sys.argv[0]), os.getpid()

    def terminate(number, frame):
        if os.getpid() != process:  # a worker, forked from this one
            os._exit(128 + number)
        sys.stderr.write(f"{program}: stopped by {signal.Signals(number).name}; what is complete is kept\n")
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())
        if getattr(error, "errno", None) == errno.ENOSPC:
            reason += "; free some space and start again: `--resume_from_checkpoint` resumes from the last complete checkpoint"
        sys.exit(f"{program}: {reason}")
    except KeyboardInterrupt:
        terminate(signal.SIGINT, None)
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass
class ProgressArguments:
    """For scripts that do not take transformers' `TrainingArguments`, which have the same option."""

    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})


def hide_progress_bars() -> None:
    """Show no bars from now on."""
    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.disable_progress_bar()


def parse(kinds: Sequence[type], description: str, arguments: list[str] | None = None, is_run: bool = False) -> tuple:
    """
    Instances of the dataclasses `kinds`, once bars are hidden if asked for; for an experiment that trains (`is_run`) also the
    list of all other arguments, which are those of run_mir.py.
    """
    parser = HfArgumentParser((*kinds, ProgressArguments), description=description, allow_abbrev=False)
    parsed = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=is_run)
    own, progress, rest = parsed[: len(kinds)], parsed[len(kinds)], parsed[len(kinds) + 1 :]
    if progress.disable_tqdm:
        hide_progress_bars()
    return *own, *([*words, "--disable_tqdm", str(progress.disable_tqdm)] for words in rest)


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


@contextmanager
def folder_written_aside(path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which gets the name `path` when the block ends.

    An error inside the block removes the new folder. `path` must not exist, or be an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty; give another folder, or remove it")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
