"""The tables of examples/results/README.md are those of accuracy.csv."""

from pathlib import Path

import pytest
import summarize_results
from summarize_results import difference_lines, load_results, spread_lines, trial_lines


ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_of_the_results():
    values = load_results()
    readme = (ROOT / "examples" / "results" / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [*spread_lines(values), *trial_lines(values), *difference_lines(values)]
    assert [line for line in lines if line not in readme] == []


def test_differences_are_of_the_same_seeds(tmp_path, monkeypatch):
    path = tmp_path / "accuracy.csv"
    first = [f"one,eval_accuracy,{seed},{0.7 + seed / 100}" for seed in (0, 1, 2)]
    second = [f"two,eval_accuracy,{seed},{0.6 + seed / 100}" for seed in (1, 2, 3)]
    path.write_text("\n".join(["run,figure,seed,value", *first, *second]) + "\n", encoding="utf-8")
    comparison = ("one - two", "one", "eval_accuracy", "two", "eval_accuracy")
    monkeypatch.setattr(summarize_results, "DIFFERENCES", [comparison])
    *_, line = difference_lines(load_results(path))
    assert line == "| one - two | 10.0 ± 0.0 | 10.0 to 10.0 | 2 |"


def test_no_result_is_an_error(tmp_path):
    path = tmp_path / "accuracy.csv"
    path.write_text("run,figure,seed,value\n", encoding="utf-8")
    with pytest.raises(ValueError):
        list(spread_lines(load_results(path)))
