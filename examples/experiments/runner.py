"""What the experiments share: their arguments, runs of run_mir.py, and tables."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from amess_hf import AMESSDataCollator, AMESSForIntentClassification
from amess_hf.evaluation.tables import markdown_table, write_csv
from amess_hf.processing_amess import write_text


EXAMPLES = Path(__file__).parents[1]
sys.path.append(str(EXAMPLES))

from aggregation import format_spread, load_seed_results, paired_difference, spread  # noqa: F401
from combining import few_clips, labels_of, with_labels, words_of  # noqa: F401
from command_line import one_line_errors, parse  # noqa: F401


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


def train(run_args, rest, folder, config=None, **options):
    """
    Train and, at the end, evaluate with run_mir.py, once for each seed; what has its metrics is not run again.

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
    command = [sys.executable, str(EXAMPLES / "run_mir.py"), "--do_train", "--do_eval", *rest, *SCORED_ONCE, *given]
    if status := subprocess.run(command).returncode:
        sys.exit(status)
    return load_seed_results(folder, seed_list(run_args))


def seed_list(run_args):
    return [int(seed) for seed in run_args.seeds.split(",")]


def model_folders(path):
    """seed → folder of the trained models in `path/seed-N`; a single model in `path` counts as seed 0."""
    folders = {int(config.parent.name[5:]): config.parent for config in Path(path).glob("seed-*/config.json")}
    return {seed: str(folder) for seed, folder in sorted(folders.items())} or {0: path}


def load_model(folder):
    """A saved model, and the collator of its clips."""
    model = AMESSForIntentClassification.from_pretrained(folder)
    return model, AMESSDataCollator(AutoTokenizer.from_pretrained(folder), model.config)


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
