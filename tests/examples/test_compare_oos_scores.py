"""The comparison of out-of-scope scores over seeds, on tiny models that do not know five of the demo's intents."""

import csv

import numpy as np
import pytest
from demo_corpus import AUDIO_WIDTH, VIDEO_WIDTH, demo_label_descriptions, write_demo_corpus
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, BertTokenizer
from utils import TEXT_SIZES, tiny_model

from amess_hf.oos_amess import OOS_METHODS


pytest.importorskip("matplotlib", reason='pip install "amess_hf[report]"')

import compare_oos_scores


LABELS = list(demo_label_descriptions())
HELD_OUT = LABELS[3::4]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(corpus, runs folder, result of `main`) for two seeds."""
    folder = tmp_path_factory.mktemp("oos")
    write_demo_corpus(folder / "corpus", clips_per_split={"train": 60, "dev": 40})
    known = [label for label in LABELS if label not in HELD_OUT]
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"',-?!."]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(letters)})
    for seed in (0, 3):
        model = tiny_model(
            seed,
            text_config=BertConfig(**TEXT_SIZES, intermediate_size=48),
            audio_config={"feature_size": AUDIO_WIDTH},
            video_config={"feature_size": VIDEO_WIDTH},
            id2label=dict(enumerate(known)),
            label_descriptions={label: demo_label_descriptions()[label] for label in known},
        )
        model.save_pretrained(folder / "runs" / f"seed-{seed}")
        tokenizer.save_pretrained(folder / "runs" / f"seed-{seed}")
    (folder / "runs" / "seed-9").mkdir()  # a seed that has not been trained yet
    result = compare_oos_scores.main(
        ["--data_dir", str(folder / "corpus"), "--model_name_or_path", str(folder / "runs")]
        + ["--output_dir", str(folder / "out")]
    )
    return folder, result


@pytest.mark.slow
def test_every_score_of_every_seed(compared):
    folder, result = compared
    assert list(result) == [0, 3]
    with open(folder / "out" / "oos_scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["score"], int(row["seed"])) for row in rows] == [(m, s) for s in (0, 3) for m in OOS_METHODS]
    for row in rows:
        assert float(row["auroc"]) == result[int(row["seed"])][row["score"]]["auroc"]
    assert (folder / "out" / "oos_roc.png").is_file()


def test_table_is_sorted_and_compares_with_the_baseline(compared):
    folder, result = compared
    lines = (folder / "out" / "oos_scores.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    methods = [line.split("`")[1] for line in lines[2:]]
    means = [np.mean([result[seed][method]["auroc"] for seed in (0, 3)]) for method in methods]
    assert means == sorted(means, reverse=True) and set(methods) == set(OOS_METHODS)
    (baseline,) = [line for line in lines if "`msp`" in line]
    assert baseline.endswith("| – | – |")
    gain = 100 * np.mean([result[seed]["energy"]["auroc"] - result[seed]["msp"]["auroc"] for seed in (0, 3)])
    (energy,) = [line for line in lines if "`energy`" in line]
    assert f"| {gain:.1f} ± " in energy


def test_missing_split(compared, tmp_path):
    folder, _ = compared
    with pytest.raises(ValueError, match="has no split test"):
        compare_oos_scores.main(
            ["--data_dir", str(folder / "corpus"), "--model_name_or_path", str(folder / "runs")]
            + ["--output_dir", str(tmp_path), "--split", "test"]
        )


def test_interval_of_a_difference():
    generator = np.random.default_rng(0)
    in_scope = generator.random(400) < 0.5
    good, bad = in_scope + generator.normal(0, 1, 400), generator.normal(0, 1, 400)
    low, high = compare_oos_scores.auroc_interval(good, bad, in_scope)
    assert 0 < low < high
    assert compare_oos_scores.auroc_interval(bad, bad, in_scope).tolist() == [0, 0]


def test_interval_is_that_of_resampled_aurocs():
    generator = np.random.default_rng(1)
    in_scope, good = generator.random(60) < 0.5, generator.integers(0, 9, 60).astype(float)
    draw, groups = np.random.default_rng(0), (np.flatnonzero(in_scope), np.flatnonzero(~in_scope))
    rows = [np.concatenate([draw.choice(group, len(group)) for group in groups]) for _ in range(1000)]
    aurocs = [100 * (roc_auc_score(in_scope[drawn], good[drawn]) - 0.5) for drawn in rows]
    found = compare_oos_scores.auroc_interval(good, np.zeros(60), in_scope)
    assert found == pytest.approx(np.percentile(aurocs, [2.5, 97.5]))


@pytest.mark.slow
def test_clips_of_another_data_set(compared, tmp_path, capsys):
    folder, _ = compared
    result = compare_oos_scores.main(
        ["--data_dir", str(folder / "corpus"), "--model_name_or_path", str(folder / "runs" / "seed-0")]
        + ["--output_dir", str(tmp_path), "--clips_of", f"mintrec={folder / 'corpus'}"]
    )
    assert "scored: " in capsys.readouterr().out
    assert set(result[0]) == set(OOS_METHODS)
    assert 0 <= result[0]["knn"]["caught"] <= 1
    with pytest.raises(ValueError, match="give NAME=FOLDER"):
        compare_oos_scores.main(
            ["--data_dir", str(folder / "corpus"), "--model_name_or_path", str(folder / "runs" / "seed-0")]
            + ["--output_dir", str(tmp_path), "--clips_of", "mintrec2.0"]
        )
