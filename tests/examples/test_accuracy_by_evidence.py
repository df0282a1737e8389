"""accuracy_by_evidence.py on tables whose shares are known by hand."""

import csv

import accuracy_by_evidence
import pytest


def write(path, header, rows, delimiter):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])


def test_by_hand(tmp_path, capsys):
    tells = ["both", "both", "audio", "audio", "audio", "video"]
    answers = ["a", "b", "a", "a", "b", "b"]  # all clips are an `a`
    clips = [f"dev-{number}" for number in range(6)]
    write(
        tmp_path / "dev.csv", ["id", "label", "tells"], [(c, "a", t) for c, t in zip(clips, tells, strict=True)], ","
    )
    rows = [(clip, "a", answer) for clip, answer in zip(clips, answers, strict=True)]
    write(tmp_path / "predictions_dev.tsv", ["id", "label", "prediction"], rows, "\t")
    arguments = ["--data_dir", str(tmp_path), "--run_dir", str(tmp_path), "--split", "dev"]
    rows = accuracy_by_evidence.main(arguments)
    counts = {"all": (6, 0.5), "both": (2, 0.5), "audio": (3, 0.6667), "video": (1, 0.0)}
    assert rows == [["dev", kind, *values] for kind, values in counts.items()]
    assert "dev,audio,3,0.6667" in (tmp_path / "accuracy_by_evidence.csv").read_text()
    assert "| dev | audio | 3 | 0.6667 |" in capsys.readouterr().out


def test_no_predictions(tmp_path):
    with pytest.raises(ValueError, match="predictions_test.tsv is missing; run run_mir.py"):
        accuracy_by_evidence.main(["--data_dir", str(tmp_path), "--run_dir", str(tmp_path)])
