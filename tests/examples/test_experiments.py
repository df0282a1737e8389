"""The experiments that train, and the comparison of fusions, in miniature; and what can be counted by hand."""

import csv

import compare_fusions
import learning_curve
import numpy as np
import pandas
import pytest
import runner
import speaker_folds
from demo_corpus import write_demo_corpus
from transformers import BertConfig, BertModel, BertTokenizer
from utils import TEXT_SIZES


pytest.importorskip("matplotlib", reason='pip install "amess_hf[report]"')

TINY = "--num_train_epochs 1 --use_cpu --report_to none --disable_tqdm True".split()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(corpus with features and bursts.tsv, text encoder)."""
    folder = tmp_path_factory.mktemp("experiments")
    clips = write_demo_corpus(folder / "corpus", clips_per_split={"train": 40, "dev": 20})
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *"',-?!."]
    BertModel(BertConfig(**TEXT_SIZES, intermediate_size=48)).save_pretrained(folder / "encoder")
    BertTokenizer(vocab={token: n for n, token in enumerate(letters)}).save_pretrained(folder / "encoder")
    with open(folder / "corpus" / "bursts.tsv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "modality", "first", "end", "frames", "label"])
        for number, clip in enumerate(clip for split in clips.values() for clip in split):
            for modality in ("audio", "video"):
                span, frames = getattr(clip, f"{modality}_burst"), len(getattr(clip, modality))
                table.writerow([clip.id, modality, *span, frames, clip.label if number % 2 else "Joke"])
    return folder / "corpus", folder / "encoder"


@pytest.mark.slow
def test_learning_curve(world, tmp_path):
    corpus, encoder = world
    arguments = ["--data_dir", str(corpus), "--text_model_name_or_path", str(encoder), "--output_dir", str(tmp_path)]
    arguments += ["--seeds", "0", "--clips_per_intent", "1", "--curve_steps", "2", *TINY]
    curves = learning_curve.main(arguments)
    assert list(curves) == [learning_curve.WITH_SS, learning_curve.WITHOUT_SS, learning_curve.REGRESSION]
    assert all(0 <= curve[1][0] <= 1 for curve in curves.values())
    assert (tmp_path / "learning_curve.png").stat().st_size > 5000


def test_learning_curve_table(tmp_path):
    curves = {
        learning_curve.WITH_SS: {1: {0: 0.4, 1: 0.5}, 4: {0: 0.6, 1: 0.6}},
        learning_curve.REGRESSION: {1: {0: 0.2, 1: 0.2}, 4: {0: 0.3, 1: 0.5}},
    }
    text = learning_curve.write_tables(curves, tmp_path)
    assert "| 1 | 45.0 ± 7.1 | 20.0 ± 0.0 |" in text and "| 4 | 60.0 ± 0.0 | 40.0 ± 14.1 |" in text
    assert len((tmp_path / "learning_curve.csv").read_text().splitlines()) == 9


@pytest.mark.slow
def test_speaker_folds(world, tmp_path):
    """Four speakers in two folds, with features of files whose mean tells the intent."""
    rows, random = [], np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(16):
        label = number % 2
        frames = random.normal(3 * label, 0.1, (5, 4)).astype(np.float32)
        np.save(tmp_path / "data" / f"{number}.npy", frames)
        rows.append(["well", ["yes", "no"][label], f"{number}.npy", f"speaker-{number // 4}"])
    table = pandas.DataFrame(rows, columns=["text", "label", "audio_features", "speaker"])
    table[:10].to_csv(tmp_path / "data" / "train.csv", index=False)
    table[10:].to_csv(tmp_path / "data" / "test.csv", index=False)
    arguments = ["--data_dir", str(tmp_path / "data"), "--text_model_name_or_path", str(world[1]), "--seeds", "0"]
    records = speaker_folds.main([*arguments, "--output_dir", str(tmp_path / "out"), *TINY])
    folds = ["speaker-0, speaker-1", "speaker-2, speaker-3"]
    methods = [speaker_folds.REGRESSION, speaker_folds.TUNED_REGRESSION, speaker_folds.MODEL]
    assert [(record["fold"], record["method"]) for record in records] == [(f, m) for f in folds for m in methods]
    assert all(record["accuracy"] == 1 for record in records if record["method"] == speaker_folds.REGRESSION)
    assert "| logistic regression | 100.0 | 100.0 | 100.0 | 1 |" in (tmp_path / "out" / "speaker_folds.md").read_text()
    with pytest.raises(ValueError, match="too few for two folds of 3"):
        speaker_folds.speaker_folds(table["speaker"], 3)


@pytest.mark.slow
def test_compare_fusions(world, tmp_path, capsys):
    corpus, encoder = world
    run_args = runner.RunArguments(data_dir=str(corpus), output_dir=str(tmp_path), seeds="0")
    models = []
    for name in ("anchor", "text"):
        config = {"fusion_type": name}
        options = {"text_model_name_or_path": encoder, "max_steps": 2}
        runner.train(run_args, [*TINY, *runner.SCORED_ONCE], tmp_path / name, config, **options)
        models.append(f"{name}={tmp_path / name}")
    arguments = ["--models", *models, "--draw_dirs", str(corpus), "--resamples", "20"]
    rows = compare_fusions.main([*arguments, "--output_dir", str(tmp_path / "out")])
    values = {name: value for name, value, *_ in rows}
    assert values["anchor - text"] == pytest.approx(values["anchor: accuracy"] - values["text: accuracy"])
    assert {"observer: accuracy", "anchor: audio alone", "anchor without both - text"} <= set(values)
    assert 0 < values["anchor, audio: chance in the burst"] < 1
    assert "| anchor: accuracy |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give `text=FOLDER` too"):
        compare_fusions.main(["--models", models[0], "--draw_dirs", str(corpus), "--output_dir", str(tmp_path)])


def test_observer_adds_what_is_shown():
    logits = np.log(np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]]))
    shown = {"audio": np.array([1, 2]), "video": np.array([1, 0])}
    scores = compare_fusions.observe(logits, shown, {"audio": 1.0, "video": 0.5})
    np.testing.assert_allclose(scores - logits, [[0, 1.5, 0], [0.5, 0, 1.0]], atol=1e-12)


def test_interval_of_equal_answers_is_a_point():
    assert compare_fusions.interval(np.full((2, 3, 4), 0.25), 50) == pytest.approx((0.25, 0.25, 0.25))
