"""Metrics over seeds, against numbers worked out by hand."""

import csv
import json
import statistics

import numpy as np
import pytest
from aggregation import (
    aggregate_runs,
    format_spread,
    load_seed_results,
    paired_difference,
    seed_folder,
    update_results,
    write_aggregate,
)

from amess_hf.evaluation.tables import markdown_table, write_csv


RUNS = {
    0: {"eval_accuracy": 0.70, "eval_loss": 0.5, "best": "epoch 3", "test_accuracy": 0.1},
    1: {"eval_accuracy": 0.74, "eval_loss": 0.1, "best": "epoch 5"},
    2: {"eval_accuracy": 0.69, "eval_loss": 0.6, "best": "epoch 4"},
}


class TestAggregateRuns:
    def test_hand_computed(self):
        aggregate = aggregate_runs(RUNS)
        assert list(aggregate) == ["eval_accuracy", "eval_loss"]  # no words, and nothing that a seed lacks
        accuracy = aggregate["eval_accuracy"]
        assert accuracy["mean"] == pytest.approx(0.71)
        # deviations -0.01, 0.03, -0.02: squares sum to 0.0014, over n - 1 = 2
        assert accuracy["deviation"] == pytest.approx(0.0007**0.5)
        assert (accuracy["min"], accuracy["max"], accuracy["runs"]) == (0.69, 0.74, 3)

    def test_single_run_has_no_deviation(self):
        accuracy = aggregate_runs({0: RUNS[0]})["eval_accuracy"]
        assert accuracy["deviation"] is None and accuracy["mean"] == 0.70
        assert format_spread(accuracy) == "70.0"
        assert format_spread(aggregate_runs(RUNS)["eval_accuracy"]) == "71.0 ± 2.6"


class TestPairedDifference:
    def test_seeds(self):
        first, second = {0: 0.70, 1: 0.74, 2: 0.69, 9: 0.0}, {2: 0.68, 0: 0.69, 1: 0.71, 7: 1.0}
        result = paired_difference(first, second)
        differences = [0.01, 0.03, 0.01]
        assert result["pairs"] == 3
        assert result["mean"] == pytest.approx(statistics.mean(differences))
        assert result["deviation"] == pytest.approx(statistics.stdev(differences))
        assert result["min"] - 1e-12 <= result["low"] <= result["mean"] <= result["high"] <= result["max"] + 1e-12

    def test_interval_agrees_with_the_normal_one_over_many_pairs(self):
        values = np.random.default_rng(0).normal(0.02, 0.3, 900)
        result = paired_difference(dict(enumerate(values)), dict.fromkeys(range(900), 0.0))
        assert result == paired_difference(dict(enumerate(values)), dict.fromkeys(range(900), 0.0))
        half_width = 1.96 * values.std(ddof=1) / 30
        assert result["low"] == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
        assert result["high"] == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)

    def test_one_pair(self):
        result = paired_difference({0: 0.5}, {0: 0.25})
        assert (result["low"], result["high"], result["deviation"], result["pairs"]) == (0.25, 0.25, None, 1)

    def test_nothing_in_common(self):
        with pytest.raises(ValueError, match="no seed or clip in common"):
            paired_difference({0: 1.0}, {1: 1.0})


class TestFiles:
    def test_reads_the_seeds_that_are_done(self, tmp_path):
        assert load_seed_results(tmp_path / "nothing") == {}
        for seed in (10, 2):
            (tmp_path / f"seed-{seed}").mkdir()
            (tmp_path / f"seed-{seed}" / "all_results.json").write_text(json.dumps({"eval_accuracy": seed / 100}))
        (tmp_path / "seed-3").mkdir()  # begun, not done
        (tmp_path / "seed-x").mkdir()
        assert seed_folder(tmp_path, 10) == str(tmp_path / "seed-10")
        assert list(load_seed_results(tmp_path).items()) == [
            (2, {"eval_accuracy": 0.02}),
            (10, {"eval_accuracy": 0.1}),
        ]
        assert list(load_seed_results(tmp_path, [10, 3, 11])) == [10]

    @pytest.mark.parametrize(
        ("text", "message"),
        [('{"eval_acc', "does not hold metrics as JSON"), ("[1]", "does not hold metrics as JSON")],
    )
    def test_damaged_results(self, text, message, tmp_path):
        (tmp_path / "seed-0").mkdir()
        (tmp_path / "seed-0" / "all_results.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_seed_results(tmp_path)
        with pytest.raises(ValueError, match=message):
            update_results(tmp_path / "seed-0", {"eval_accuracy": 0.5})

    def test_results_are_added_to(self, tmp_path):
        update_results(tmp_path, {"eval_accuracy": 0.5})
        both = {"eval_accuracy": 0.5, "test_accuracy": 0.4}
        assert update_results(tmp_path, {"test_accuracy": 0.4}, "test") == both
        assert json.loads((tmp_path / "all_results.json").read_text()) == both
        assert json.loads((tmp_path / "test_results.json").read_text()) == {"test_accuracy": 0.4}

    def test_written_tables(self, tmp_path):
        markdown = write_aggregate(aggregate_runs(RUNS), tmp_path)
        assert "| eval_accuracy (%) | 71.00 | 2.65 | 69.00 | 74.00 | 3 |" in markdown
        assert "| eval_loss | 0.4 | 0.26458 | 0.1 | 0.6 | 3 |" in markdown
        assert (tmp_path / "aggregate.md").read_text() == markdown
        with open(tmp_path / "aggregate.csv", newline="") as file:
            rows = {row["metric"]: row for row in csv.DictReader(file)}
        assert float(rows["eval_loss"]["mean"]) == np.mean([0.5, 0.1, 0.6])


class TestTables:
    def test_markdown_aligns_words_left_and_numbers_right(self):
        rows = [["full", 70.25, "yes"], ["no anchors", 69, "no"]]
        assert markdown_table(["variant", "accuracy (%)", "kept"], rows, left=(0, 2)) == (
            "| variant | accuracy (%) | kept |\n| --- | ---: | --- |\n| full | 70.25 | yes |\n| no anchors | 69 | no |\n"
        )

    def test_csv_keeps_all_digits_and_quotes_commas(self, tmp_path):
        write_csv(tmp_path / "table.csv", ["what", "value"], [["a, b", 0.1 + 0.2], ["c", None], ["- no", -1]])
        assert (tmp_path / "table.csv").read_bytes() == b'what,value\n"a, b",0.30000000000000004\nc,\n- no,-1\n'

    @pytest.mark.parametrize("cell", ["=1+1", "+1", "@SUM(A1)", "-2+3+cmd|' /C calc'!A0", "  =1"])
    def test_no_cell_is_a_formula(self, cell, tmp_path):
        write_csv(tmp_path / "table.csv", ["id", "error"], [["17", cell]])
        with open(tmp_path / "table.csv", newline="") as file:
            assert list(csv.reader(file)) == [["id", "error"], ["17", f"'{cell}"]]
