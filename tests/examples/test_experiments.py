"""The experiments in miniature, on tiny models and the demo's corpus; and what can be counted by hand."""

import csv
import math

import calibration
import cascade
import compare_fusions
import discover_intents
import discovery
import learning_curve
import numpy as np
import oos_by_modalities
import open_world
import pandas
import pytest
import runner
import shown_clips
import speaker_folds
from demo_corpus import AUDIO_WIDTH, VIDEO_WIDTH, demo_label_descriptions, write_demo_corpus
from sklearn.metrics import roc_auc_score
from transformers import BertConfig, BertModel
from utils import TEXT_SIZES, tiny_model

from amess_hf import AMESSProcessor
from amess_hf.oos_amess import OOS_METHODS


pytest.importorskip("matplotlib", reason='pip install "amess_hf[report]"')

import compare_oos_scores


TINY = "--num_train_epochs 1 --use_cpu --report_to none --disable_tqdm True".split()
TEXT_CONFIG = BertConfig(**TEXT_SIZES, intermediate_size=48)
DESCRIPTIONS = demo_label_descriptions()


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer):
    """(corpus with features and bursts.tsv, text encoder)."""
    folder = tmp_path_factory.mktemp("experiments")
    clips = write_demo_corpus(folder / "corpus", clips_per_split={"train": 60, "dev": 40})
    BertModel(TEXT_CONFIG).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    with open(folder / "corpus" / "bursts.tsv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "modality", "first", "end", "frames", "label"])
        for number, clip in enumerate(clip for split in clips.values() for clip in split):
            for modality in ("audio", "video"):
                span, frames = getattr(clip, f"{modality}_burst"), len(getattr(clip, modality))
                table.writerow([clip.id, modality, *span, frames, clip.label if number % 2 else "Joke"])
    return folder / "corpus", folder / "encoder"


def save_model(folder, tokenizer, seed, held_out, **fields):
    """A model of random weights that knows all of the demo's intents but `held_out`, and its tokenizer."""
    known = [label for label in DESCRIPTIONS if label not in held_out]
    descriptions = {label: DESCRIPTIONS[label] for label in known}
    model = tiny_model(
        seed, text_config=TEXT_CONFIG, id2label=dict(enumerate(known)), label_descriptions=descriptions, **fields
    )
    model.save_pretrained(folder)
    AMESSProcessor.for_model(model.config, tokenizer).save_pretrained(folder)


def once(function):
    """The function, which may be called once."""
    calls = []

    def called(*arguments):
        calls.append(arguments)
        assert len(calls) == 1
        return function(*arguments)

    return called


@pytest.mark.slow
def test_learning_curve(world, tmp_path):
    corpus, encoder = world
    arguments = ["--data_dir", str(corpus), "--text_model_name_or_path", str(encoder), "--output_dir", str(tmp_path)]
    arguments += ["--seeds", "0", "--clips_per_intent", "1", "--curve_steps", "2", *TINY]
    curves = learning_curve.main(arguments)
    assert list(curves) == [learning_curve.WITH_SS, learning_curve.WITHOUT_SS, learning_curve.REGRESSION]
    assert all(0 <= curve[1][0] <= 1 for curve in curves.values())
    assert (tmp_path / "learning_curve.png").stat().st_size > 5000


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


@pytest.mark.slow
class TestOpenWorld:
    @pytest.fixture(scope="class")
    def scored(self, world, tmp_path_factory, tokenizer):
        """(folder, what `main` returned) for two folds of models that are not trained."""
        folder, (corpus, encoder), labels = tmp_path_factory.mktemp("open_world"), world, list(DESCRIPTIONS)
        fields = {"fusion_type": "text", "audio_config": None, "video_config": None, "projection_dim": 0}
        folds = [folder / "fold-1", folder / "fold-2"]
        for number, fold in enumerate(folds):
            save_model(fold, tokenizer, number, labels[number::4], **fields)
        arguments = ["--data_dir", str(corpus), "--text_model_name_or_path", str(encoder), "--output_dir", str(folder)]
        arguments += ["--model_name_or_path", ",".join(map(str, folds))]
        return folder, open_world.main([*arguments, *"--sentences 2 --pretrained_shares 0,1".split()])

    def test_every_model_and_share(self, scored):
        folder, table = scored
        for rows in table.values():
            assert {"pretrained share 0", "pretrained share 1, not balanced", "untrained", "chance"} <= set(rows)
            for figures in rows.values():
                seen, unseen = figures["seen_accuracy"], figures["unseen_accuracy"]
                mean = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
                assert figures["harmonic_accuracy"] == pytest.approx(mean)
        assert set(pandas.read_csv(folder / "open_world.csv")["model"]) == {"fold-1", "fold-2"}
        (line,) = [line for line in (folder / "open_world.md").read_text().splitlines() if "| untrained |" in line]
        mean = 100 * np.mean([rows["untrained"]["unseen_accuracy"] for rows in table.values()])
        assert f"| {mean:.1f} ± " in line

    def test_shown_clips(self, scored, world, tmp_path):
        """Draws are nested, both answers are there, and what is shown is what the regression learns too."""
        arguments = ["--data_dir", str(world[0]), "--text_model_name_or_path", str(world[1]), "--draws", "2"]
        arguments += ["--model_name_or_path", str(scored[0] / "fold-1"), "--output_dir", str(tmp_path)]
        arguments += ["--shown_clips", "0,2", "--fine_tuned_draws", "1"]
        (scores,) = shown_clips.main(arguments).values()
        assert {key: len(draws) for key, draws in scores.items()} == {
            (shown_clips.TAUGHT, 0): 1,
            (shown_clips.TAUGHT, 2): 2,
            (shown_clips.REGRESSION, 2): 2,
            (shown_clips.FINE_TUNED, 2): 1,
        }
        labels = np.repeat(np.arange(4), 9)
        few, more = (shown_clips.draw_clips(labels, [1, 3], count, 0) for count in (2, 5))
        assert all(set(few[label]) < set(more[label]) and (labels[more[label]] == label).all() for label in few)

    def test_discovery(self, scored, world, tmp_path):
        assert discovery.agreement(np.array([3, 3, 7, 7]), np.array([1, 1, 0, 0])) == pytest.approx((1, 1, 1))
        assert discovery.agreement(np.array([3, 3, 7, 7]), np.array([0, 1, 0, 1]))[:2] == pytest.approx((0.5, 0))
        arguments = ["--data_dir", str(world[0]), "--text_model_name_or_path", str(world[1]), "--num_seeds", "2"]
        arguments += ["--model_name_or_path", str(scored[0] / "fold-1"), "--output_dir", str(tmp_path)]
        found = discovery.main(arguments)
        assert [task.split(": ")[-1] for task in found] == ["without labels, all intents", "unseen", "all"]
        assert all(len(seeds) == 2 for answers in found.values() for seeds in answers.values())

    def test_calibration(self, world, tmp_path, tokenizer):
        save_model(tmp_path / "run", tokenizer, 0, (), fusion_type="text", audio_config=None, video_config=None)
        arguments = ["--data_dir", str(world[0]), "--runs", str(tmp_path / "run"), "--halves", "3"]
        (halves,) = calibration.main([*arguments, "--output_dir", str(tmp_path)]).values()
        assert halves["before"]["accuracy"] == halves["after"]["accuracy"]
        scores, labels = np.zeros((1, 900, 2)), np.repeat([0, 1], [720, 180])
        scores[0, :, 0] = 3.0  # says 95 % where 80 % is right
        before, after = calibration.measure_halves(scores, labels, 5).values()
        assert before["confidence"] == pytest.approx(0.95, abs=0.01)
        assert after["confidence"] == pytest.approx(after["accuracy"], abs=0.04)

    def test_cascade(self, world, tmp_path, tokenizer):
        for name, seed in (("small", 0), ("large", 1)):
            save_model(tmp_path / name, tokenizer, seed, (), fusion_type="text", audio_config=None, video_config=None)
        models = ["--small", str(tmp_path / "small"), "--large", str(tmp_path / "large"), "--dtype", "int8"]
        rows = cascade.main(["--data_dir", str(world[0]), *models, "--output_dir", str(tmp_path / "out")])
        (own,) = cascade.main(["--data_dir", str(world[0]), *models[2:], "--small", str(tmp_path / "large"),
                               "--output_dir", str(tmp_path / "out")])[:1]  # fmt: skip
        asked, milliseconds = ([row[column] for row in rows] for column in (3, 4))
        assert asked[0] == 0 and asked[-1] == 1 and sorted(asked) == asked and sorted(milliseconds) == milliseconds
        assert own[2] == rows[-1][2]  # where all is asked, the large model answers alone

    def test_discover_intents_goes_on_where_it_stopped(self, scored, tmp_path, monkeypatch):
        (tmp_path / "clips.csv").write_text("text\n" + "hello you\nbox again\nhello there\nbox box\n" * 3)
        monkeypatch.setattr(discover_intents, "CHUNK", 5)
        arguments = ["--clips", str(tmp_path / "clips.csv"), "--model", str(scored[0] / "fold-1"), "--num_groups", "2"]
        arguments += ["--output_dir", str(tmp_path / "out")]
        groups = discover_intents.main(arguments)
        assert sum(len(group.clips) for group in groups) == 12
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
        assert set(written) == {"clips.csv", "groups.md", "label_descriptions.json", "map.png"}
        next((tmp_path / "out" / "embeddings").iterdir()).unlink()
        monkeypatch.setattr(discover_intents, "embed_clips", once(discover_intents.embed_clips))
        discover_intents.main(arguments)
        assert written == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
        with pytest.raises(ValueError, match="neither a folder nor a"):
            discover_intents.read_clips(tmp_path / "nowhere")

    def test_clips_that_were_trained_on_are_left_out(self, world):
        names = {"model_name_or_path": "", "text_model_name_or_path": "", "output_dir": ""}
        own = open_world.OpenWorldArguments(**names, data_dir=str(world[0]))
        assert len(open_world.clips_to_score(own)) == 40
        own.trained_on = f"mintrec={world[0]}"
        trained = {open_world.words_of(text) for text in open_world.load_mintrec(world[0])["train"]["text"]}
        assert not {open_world.words_of(text) for text in open_world.clips_to_score(own)["text"]} & trained
        own.trained_on = "mintrec"
        with pytest.raises(ValueError, match="give NAME=FOLDER"):
            open_world.clips_to_score(own)


@pytest.mark.slow
class TestOutOfScopeScores:
    @pytest.fixture(scope="class")
    def compared(self, world, tmp_path_factory, tokenizer):
        """(folder, arguments, what `main` returned) for two seeds of models that lack five intents."""
        folder = tmp_path_factory.mktemp("oos")
        fields = {"audio_config": {"feature_size": AUDIO_WIDTH}, "video_config": {"feature_size": VIDEO_WIDTH}}
        for seed in (0, 3):
            save_model(folder / f"seed-{seed}", tokenizer, seed, list(DESCRIPTIONS)[3::4], **fields)
        (folder / "seed-9").mkdir()  # a seed that has not been trained yet
        arguments = ["--data_dir", str(world[0]), "--model_name_or_path", str(folder), "--output_dir", str(folder)]
        return folder, arguments, compare_oos_scores.main(arguments)

    def test_every_score_of_every_seed(self, compared):
        folder, _, result = compared
        rows = pandas.read_csv(folder / "oos_scores.csv")
        assert list(zip(rows["score"], rows["seed"], strict=True)) == [(m, s) for s in (0, 3) for m in OOS_METHODS]
        for row in rows.itertuples():
            assert math.isclose(row.auroc, result[row.seed][row.score]["auroc"])
        assert (folder / "oos_roc.png").is_file()

    def test_clips_of_another_data_set(self, compared, world, tmp_path, capsys):
        _, arguments, _ = compared
        arguments = [*arguments[:-1], str(tmp_path), "--clips_of"]
        result = compare_oos_scores.main([*arguments, f"mintrec={world[0]}"])
        assert "scored: " in capsys.readouterr().out
        assert set(result[0]) == set(OOS_METHODS) and 0 <= result[0]["knn"]["caught"] <= 1
        with pytest.raises(ValueError, match="give NAME=FOLDER"):
            compare_oos_scores.main([*arguments, "mintrec2.0"])
        with pytest.raises(ValueError, match="has no split test"):
            compare_oos_scores.main([*arguments[:-1], "--split", "test"])

    def test_by_modalities(self, compared, world, tmp_path):
        folder, _, _ = compared
        arguments = ["--data_dir", str(world[0]), "--model_name_or_path", str(folder / "seed-0")]
        rows = oos_by_modalities.main([*arguments, "--output_dir", str(tmp_path)])
        assert len(rows) == 2 * 7 and rows["text + audio + video", "one"] == pytest.approx(
            rows["text + audio + video", "for each set"]
        )
        assert (tmp_path / "oos_by_modalities.csv").is_file() and (tmp_path / "oos_by_modalities.md").is_file()

    def test_interval_is_that_of_resampled_aurocs(self):
        generator = np.random.default_rng(1)
        in_scope, good = generator.random(60) < 0.5, generator.integers(0, 9, 60).astype(float)
        draw, groups = np.random.default_rng(0), (np.flatnonzero(in_scope), np.flatnonzero(~in_scope))
        rows = [np.concatenate([draw.choice(group, len(group)) for group in groups]) for _ in range(1000)]
        aurocs = [100 * (roc_auc_score(in_scope[drawn], good[drawn]) - 0.5) for drawn in rows]
        found = compare_oos_scores.auroc_interval(good, np.zeros(60), in_scope)
        assert found == pytest.approx(np.percentile(aurocs, [2.5, 97.5]))
        assert compare_oos_scores.auroc_interval(good, good, in_scope).tolist() == [0, 0]


def test_accuracy_by_evidence(tmp_path, capsys):
    import accuracy_by_evidence

    arguments = ["--data_dir", str(tmp_path), "--run_dir", str(tmp_path), "--split", "dev"]
    with pytest.raises(ValueError, match="predictions_dev.tsv is missing; run run_mir.py"):
        accuracy_by_evidence.main(arguments)
    clips = {"id": [f"dev-{number}" for number in range(6)], "label": list("aaaaaa")}
    tells = ["both", "both", "audio", "audio", "audio", "video"]
    pandas.DataFrame(clips | {"tells": tells}).to_csv(tmp_path / "dev.csv", index=False)
    answers = pandas.DataFrame(clips | {"prediction": list("abaabb")})[::-1]
    answers.to_csv(tmp_path / "predictions_dev.tsv", sep="\t", index=False)
    counts = {"all": (6, 0.5), "both": (2, 0.5), "audio": (3, 0.6667), "video": (1, 0.0)}
    assert accuracy_by_evidence.main(arguments) == [["dev", kind, *values] for kind, values in counts.items()]
    assert "| dev | audio | 3 | 0.6667 |" in capsys.readouterr().out
