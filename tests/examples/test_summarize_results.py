"""The tables of examples/results/README.md are those of accuracy.csv."""

import pytest
from summarize_results import RESULTS, load_results, read_rows, table_line, tables


def test_tables_of_the_page_are_those_of_the_results():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    found = list(tables(load_results(), read_rows(RESULTS / "tables.csv")))
    shown = [table for table in found if table.splitlines()[0] in page]
    assert shown and [table for table in shown if table not in page] == []


def test_the_page_is_short():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert len(page.split()) <= 1000 and sum(line.startswith("| ---") for line in page.splitlines()) <= 6


def test_lines_by_hand():
    values = {("one", "x"): {0: 0.7, 1: 0.71, 2: 0.72}, ("two", "x"): {1: 0.61, 2: 0.62, 3: 0.9}}
    line = {"line": "one", "run": "one", "figure": "x", "minus_run": "", "kept": "yes"}
    assert table_line(line, values) == ["one", "71.0 ± 1.0", 3, "yes"]
    # over the seeds that both have
    line |= {"minus_run": "two", "minus_figure": "x"}
    assert table_line(line, values) == ["one", "10.0 ± 0.0", "10.0 to 10.0", 2]
    with pytest.raises(ValueError):
        table_line(line, {("one", "x"): {}, ("two", "x"): {}})
