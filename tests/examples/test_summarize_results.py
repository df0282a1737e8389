"""The tables of examples/results/README.md are those of accuracy.csv."""

from pathlib import Path

import pytest
import summarize_results
from summarize_results import difference_table, load_results, spread_tables, trial_tables


ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_of_the_results():
    values = load_results()
    page = (ROOT / "examples" / "results" / "README.md").read_text(encoding="utf-8")
    tables = [*spread_tables(values), *trial_tables(values), difference_table(values)]
    assert [table for table in tables if table not in page] == []


def test_differences_are_of_the_same_seeds(tmp_path, monkeypatch):
    path = tmp_path / "accuracy.csv"
    first = [f"one,eval_accuracy,{seed},{0.7 + seed / 100}" for seed in (0, 1, 2)]
    second = [f"two,eval_accuracy,{seed},{0.6 + seed / 100}" for seed in (1, 2, 3)]
    path.write_text("\n".join(["run,figure,seed,value", *first, *second]) + "\n", encoding="utf-8")
    comparison = ("one - two", "one", "eval_accuracy", "two", "eval_accuracy")
    monkeypatch.setattr(summarize_results, "DIFFERENCES", [comparison])
    *_, line = difference_table(load_results(path)).splitlines()
    assert line == "| one - two | 10.0 ± 0.0 | 10.0 to 10.0 | 2 |"


def test_no_result_is_an_error(tmp_path):
    path = tmp_path / "accuracy.csv"
    path.write_text("run,figure,seed,value\n", encoding="utf-8")
    with pytest.raises(ValueError):
        list(spread_tables(load_results(path)))
