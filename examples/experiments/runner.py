"""What the experiments share: their arguments, runs of run_mir.py, and tables."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser
from transformers.utils import logging

from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))

from aggregation import aggregate_runs, format_spread, load_seed_results, paired_difference  # noqa: F401
from combining import few_clips, labels_of, with_labels, words_of  # noqa: F401
from command_line import ProgressArguments, hide_progress_bars, one_line_errors  # noqa: F401


# Semantic synchronization off: untrained similarities are ignored in the answer too.
NO_SS = {
    "label_triplet_loss_weight": 0.0,
    "label_contrastive_loss_weight": 0.0,
    "batch_triplet_loss_weight": 0.0,
    "label_similarity_weight": 0.0,
}
# One evaluation, with the last weights: nothing is selected on dev.
SCORED_ONCE = ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "False"]


@dataclass(kw_only=True)
class DataArguments:
    """Which clips, and where the tables go."""

    data_dir: str = field(metadata={"help": "Folder of the data set."})
    output_dir: str = field(metadata={"help": "Folder for the runs and the tables."})
    dataset_name: str = field(default="mintrec", metadata={"help": "mintrec, mintrec2.0 or folder."})


@dataclass(kw_only=True)
class RunArguments(DataArguments):
    """Arguments of run_mir.py that an experiment reads too."""

    seeds: str = field(default="0,1,2", metadata={"help": "Train once with each of these, separated by commas."})
    config_overrides: str | None = field(default=None, metadata={"help": "Fields of the model's configuration."})


def parse(kinds, description, arguments=None, is_run=False):
    """
    Instances of the dataclasses `kinds`; for an experiment that trains (`is_run`) also the list of all other arguments, which
    are those of run_mir.py.
    """
    parser = HfArgumentParser((*kinds, ProgressArguments), description=description, allow_abbrev=False)
    parsed = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=is_run)
    own, progress, rest = parsed[: len(kinds)], parsed[len(kinds)], parsed[len(kinds) + 1 :]
    logging.set_verbosity_warning()
    if progress.disable_tqdm:
        hide_progress_bars()
    return *own, *([*words, "--disable_tqdm", str(progress.disable_tqdm)] for words in rest)


def train(run_args, rest, folder, config=None, **options):
    """
    Train and evaluate with run_mir.py, once for each seed; what has its metrics is not run again.

    Args:
        run_args ([`RunArguments`]): Data and seeds.
        rest (`list[str]`): Further arguments of run_mir.py.
        folder: Where the runs go.
        config (`dict`, *optional*): Fields of the model's configuration.
        options: Arguments of run_mir.py, in place of those of `run_args`.

    Returns:
        `dict[int, dict]`: seed → metrics.
    """
    fields = [f"{name}={value}" for name, value in (config or {}).items()]
    overrides = ",".join([run_args.config_overrides, *fields] if run_args.config_overrides else fields)
    options = {**vars(run_args), **options, "output_dir": folder, "config_overrides": overrides or None}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    command = [sys.executable, str(EXAMPLES / "run_mir.py"), "--do_train", "--do_eval", *rest, *given]
    if status := subprocess.run(command).returncode:
        sys.exit(status)
    return load_seed_results(folder, seed_list(run_args))


def seed_list(run_args):
    return [int(seed) for seed in run_args.seeds.split(",")]


def model_folders(path):
    """seed → folder of the trained models in `path/seed-N`; a single model in `path` counts as seed 0."""
    folders = {int(config.parent.name[5:]): config.parent for config in Path(path).glob("seed-*/config.json")}
    return {seed: str(folder) for seed, folder in sorted(folders.items())} or {0: path}


def split_pair(option, value):
    """`NAME=FOLDER` as a pair."""
    name, separator, folder = value.partition("=")
    if not separator:
        raise ValueError(f"`--{option}` is {value!r}; give NAME=FOLDER, as mintrec2.0=path/to/MIntRec2.0")
    return name, folder


def write_results(folder, name, header, rows, table_header, table_rows, left=(0,)):
    """Write `name.csv` with every run, and the table as `name.md`; print and return the table."""
    os.makedirs(folder, exist_ok=True)
    write_csv(os.path.join(folder, f"{name}.csv"), header, rows)
    text = markdown_table(table_header, table_rows, left)
    write_text(os.path.join(folder, f"{name}.md"), text)
    sys.stdout.write(text)
    return text
