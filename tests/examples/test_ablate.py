import csv

import ablate
import learning_curve
import pytest


RESULTS = {
    "full": {0: {"eval_accuracy": 0.70}, 1: {"eval_accuracy": 0.72}},
    "without-SS": {0: {"eval_accuracy": 0.66}, 1: {"eval_accuracy": 0.70}},
}


class TestVariants:
    def test_full_comes_first_and_always(self):
        assert list(ablate.chosen_variants("without-SS,anchors-1")) == ["full", "without-SS", "anchors-1"]

    def test_unknown(self):
        with pytest.raises(ValueError, match="without-everything"):
            ablate.chosen_variants("without-everything")

    def test_each_changes_what_its_name_says(self):
        from amess_hf.training.script_arguments import ModelArguments

        known = vars(ModelArguments())
        for changes in ablate.VARIANTS.values():
            assert set(changes) <= set(known)
        assert all(value == 0 for value in ablate.VARIANTS["without-SS"].values())


class TestTables:
    def test_differences_are_paired(self):
        full, without = ablate.ablation_rows(RESULTS, "eval_accuracy")
        assert full["difference"] is None
        assert without["summary"]["mean"] == pytest.approx(0.68)
        assert without["difference"]["mean"] == pytest.approx(-0.03)
        assert without["difference"]["deviation"] == pytest.approx(0.02 / 2**0.5)

    def test_written(self, tmp_path):
        rows = ablate.ablation_rows(RESULTS, "eval_accuracy")
        text = ablate.write_tables(rows, "eval_accuracy", tmp_path)
        assert "| without-SS | 68.0 ± 2.8 | -3.0 ± 1.4 | 2 |" in text
        with (tmp_path / "ablation.csv").open() as file:
            table = {row["variant"]: row for row in csv.DictReader(file)}
        assert float(table["without-SS"]["mean"]) == pytest.approx(0.68)
        assert float(table["without-SS"]["difference"]) == pytest.approx(-0.03)
        assert table["full"]["difference"] == "" and table["full"]["seeds"] == "2"
        with (tmp_path / "ablation_runs.csv").open() as file:
            runs = list(csv.reader(file))
        assert runs[1:] == [
            ["full", "0", "0.7"],
            ["full", "1", "0.72"],
            ["without-SS", "0", "0.66"],
            ["without-SS", "1", "0.7"],
        ]

    def test_unknown_metric(self):
        with pytest.raises(
            ValueError, match="--metric accuracy` is not among the runs' metrics; they have eval_accuracy"
        ):
            ablate.ablation_rows(RESULTS, "accuracy")

    def test_plot(self, tmp_path):
        pytest.importorskip("matplotlib")
        ablate.plot(ablate.ablation_rows(RESULTS, "eval_accuracy"), "eval_accuracy", tmp_path / "ablation.png")
        assert (tmp_path / "ablation.png").stat().st_size > 5000

    def test_learning_curve_table(self, tmp_path):
        curves = {
            learning_curve.WITH_SS: {1: {0: 0.4, 1: 0.5}, 4: {0: 0.6, 1: 0.6}},
            learning_curve.REGRESSION: {1: {0: 0.2, 1: 0.2}, 4: {0: 0.3, 1: 0.5}},
        }
        text = learning_curve.write_tables(curves, tmp_path)
        assert "| 1 | 45.0 ± 7.1 | 20.0 ± 0.0 |" in text and "| 4 | 60.0 ± 0.0 | 40.0 ± 14.1 |" in text
        assert len((tmp_path / "learning_curve.csv").read_text().splitlines()) == 9
