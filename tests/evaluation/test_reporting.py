"""The report: agreement with direct computation, byte-for-byte reproducibility, and the content of each part."""

import filecmp
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from datasets import Dataset, Value
from demo_corpus import AUDIO_FRAMES, AUDIO_WIDTH, VIDEO_FRAMES, VIDEO_WIDTH, demo_clips, demo_label_descriptions
from transformers import BertConfig, BertTokenizer
from utils import TEXT_SIZES, tiny_model

from amess_hf import AMESSConfig, AMESSForIntentClassification
from amess_hf.data.collator import AMESSDataCollator
from amess_hf.evaluation import (
    compute_anchor_metrics,
    fit_detectors,
    modality_table,
    predict_clips,
    read_evidence_spans,
    report,
)
from amess_hf.evaluation.metrics import compute_calibration_metrics
from amess_hf.evaluation.prediction import CLIP_OUTPUTS, ClipOutputs, write_predictions
from amess_hf.oos_amess import OOS_METHODS


plots = pytest.importorskip("amess_hf.evaluation.plots", reason='needs matplotlib: pip install "amess_hf[report]"')

from matplotlib.text import Text


LABELS = list(demo_label_descriptions())


def make_rows(number, seed, out_of_scope=0):
    """Clips of the demo corpus as rows; the last `out_of_scope` ones count as out of scope."""
    rows = []
    for place, (_, clip) in enumerate(demo_clips(seed, {"dev": number})):
        outside = place >= number - out_of_scope
        rows.append(
            {
                "id": clip.id,
                "text": clip.text,
                "label": -1 if outside else LABELS.index(clip.label),
                "audio_features": clip.audio,
                "video_features": clip.video,
                "start": 10.0,
                "end": 12.5,
            }
        )
    return rows


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row["text"] for row in make_rows(80, 0)]
    texts += [sentence for sentences in demo_label_descriptions().values() for sentence in sentences]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    return BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})


@pytest.fixture(scope="module")
def model(tokenizer):
    model = tiny_model(
        text_config=BertConfig(**TEXT_SIZES | {"vocab_size": len(tokenizer)}, intermediate_size=48),
        audio_config={"feature_size": AUDIO_WIDTH, "max_length": AUDIO_FRAMES[1]},
        video_config={"feature_size": VIDEO_WIDTH, "max_length": VIDEO_FRAMES[1]},
        id2label=dict(enumerate(LABELS)),
        label_descriptions=demo_label_descriptions(),
    )
    torch.nn.init.normal_(model.classifier.weight)  # answers that differ between clips
    model.update_label_embeds(tokenizer)
    return model


@pytest.fixture(scope="module")
def collator(tokenizer, model):
    return AMESSDataCollator(tokenizer, model.config)


@pytest.fixture(scope="module")
def dataset():
    rows = make_rows(60, 0, out_of_scope=15)
    split = Dataset.from_list(rows)
    return split.cast_column("label", Value("int64"))


class TestPredictClips:
    def test_equals_the_model_clip_by_clip(self, model, dataset, collator):
        model.train()
        outputs = predict_clips(model, dataset, collator, batch_size=7)
        assert model.training and outputs.ids == dataset["id"] and outputs.labels.tolist() == list(dataset["label"])
        model.eval()
        for number in (0, 8, 59):
            batch = collator([dataset[number]])
            batch.pop("labels")
            with torch.no_grad():
                alone = model(**batch)
            np.testing.assert_allclose(outputs.logits[number], alone.logits[0], atol=1e-5)
            np.testing.assert_allclose(outputs.pooler_output[number], alone.pooler_output[0], atol=1e-5)
            np.testing.assert_array_equal(outputs.anchor_indices[number], alone.anchor_indices[0])

    def test_masked_modality_is_ignored(self, model, dataset, collator):
        """Without the sound, any other sound gives the same answer."""
        rows = dataset.select(range(6))
        other = Dataset.from_list(
            [row | {"audio_features": np.random.default_rng(1).normal(size=(5, AUDIO_WIDTH))} for row in rows]
        )
        first, second = (predict_clips(model, d, collator, keep_modalities=("text", "video")) for d in (rows, other))
        np.testing.assert_allclose(first.logits, second.logits, atol=1e-5)
        assert not np.allclose(
            predict_clips(model, rows, collator).logits, predict_clips(model, other, collator).logits
        )

    def test_empty_split(self, model, dataset, collator):
        with pytest.raises(ValueError, match="the split is empty"):
            predict_clips(model, dataset.select([]), collator)

    def test_select(self, model, dataset, collator):
        outputs = predict_clips(model, dataset, collator)
        chosen = outputs.select(outputs.labels < 0)
        assert len(chosen) == 15 and chosen.ids == list(dataset["id"])[45:]
        np.testing.assert_array_equal(chosen.logits, outputs.logits[45:])
        assert chosen.label_embeds is outputs.label_embeds

    def test_from_predictions(self, model, dataset, collator):
        """What a Trainer gathers, as arrays or tensors, is what `predict_clips` gives."""
        outputs = predict_clips(model, dataset, collator)
        gathered = {name: getattr(outputs, name) for name in CLIP_OUTPUTS}
        same = ClipOutputs.from_predictions(dataset, label_embeds=torch.tensor(outputs.label_embeds), **gathered)
        for name, value in vars(outputs).items():
            np.testing.assert_array_equal(getattr(same, name), value)


def outputs_of(ids, labels, logits, **others):
    """Outputs with everything that a test does not look at empty."""
    nothing = np.zeros((len(ids), 2))
    return ClipOutputs(ids, [""] * len(ids), np.array(labels), np.array(logits), nothing, nothing, **others)


def test_predictions_file(tmp_path):
    """The probability of the best label as score; what a detector refuses is UNK."""
    outputs = outputs_of(["S1", "S2\t"], [0, -1], [[np.log(3), 0.0], [0.0, np.log(9)]])
    path, names = tmp_path / "predictions_dev.tsv", {0: "Greet", 1: "Thank"}
    outputs.texts = ['say "hi"\n', "=1+1"]
    write_predictions(path, outputs, names)
    lines = ["id\tlabel\tprediction\tscore\ttext", 'S1\tGreet\tGreet\t0.750000\tsay "hi"']
    assert path.read_text().splitlines() == [*lines, "S2\tUNK\tThank\t0.900000\t'=1+1"]
    write_predictions(path, outputs, names, np.array([True, False]))
    assert path.read_text().splitlines() == [*lines, "S2\tUNK\tUNK\t0.900000\t'=1+1"]
    assert [file.name for file in tmp_path.iterdir()] == ["predictions_dev.tsv"]


class TestAnchorMetrics:
    def test_by_hand(self, tmp_path):
        anchors = np.full((3, 3, 2), -1)
        anchors[0, 1], anchors[1, 1], anchors[2, 1] = (4, 9), (1, 2), (0, -1)
        outputs = outputs_of(["clip0", "007", "1e5"], [0] * 3, np.zeros((3, 2)), anchor_indices=anchors)
        rows = ["clip0\taudio\t3\t5\t10\tJoke", "007\taudio\t2\t4\t4\tCare", "x\tvideo\t0\t1\t9\t"]
        path = tmp_path / "bursts.tsv"
        path.write_text("\n".join(["id\tmodality\tfirst\tend\tframes\tlabel", *rows]))
        metrics = compute_anchor_metrics(outputs, read_evidence_spans(path))
        assert metrics == {
            "audio": {"clips": 2, "best_anchor": 0.5, "all_anchors": 0.5, "chance": pytest.approx(0.35)}
        }

    @pytest.mark.parametrize("row", [None, "id\tmodality", "id\tmodality\tfirst\tend\tframes\na\taudio\tthree\t5\t10"])
    def test_bad_tables(self, row, tmp_path):
        if row:
            (tmp_path / "bursts.tsv").write_text(row)
        with pytest.raises(ValueError, match="bursts.tsv is no table of spans"):
            read_evidence_spans(tmp_path / "bursts.tsv")


class TestModalityTable:
    def test_against_direct_computation(self, model, dataset, collator):
        table = modality_table(model, dataset, collator, batch_size=16)
        sets = [tuple(row["modalities"]) for row in table]
        assert len(sets) == len(set(sets)) == 7 and sets[0] == ("text", "audio", "video")
        known = dataset.select(range(45))
        everything = predict_clips(model, known, collator).predictions
        for row in table:
            predictions = predict_clips(model, known, collator, keep_modalities=row["modalities"]).predictions
            assert row["accuracy"] == pytest.approx(np.mean(predictions == np.array(known["label"])))
            assert row["changed"] == pytest.approx(np.mean(predictions != everything))
        assert table[0]["changed"] == 0 and max(row["changed"] for row in table) > 0

    def test_model_of_words_has_one_row(self, model, dataset, collator):
        config = AMESSConfig(**{**model.config.to_dict(), "fusion_type": "text"})
        words_only = AMESSForIntentClassification(config)
        table = modality_table(words_only, dataset, collator)
        assert [row["modalities"] for row in table] == [["text"]]


def calibration(confidence, correct):
    """The error for two labels, the answer's first."""
    logits = np.log([[share, 1 - share] for share in confidence])
    return compute_calibration_metrics(logits, [0 if right else 1 for right in correct])["expected_calibration_error"]


class TestCalibration:
    def test_hand_computed_error(self):
        # bins of width 1/15: 0.55 alone; 0.85 alone; the two 0.95 together
        expected = (abs(0.55 - 1) + abs(0.85 - 0) + 2 * abs(0.95 - 1)) / 4
        assert calibration([0.55, 0.95, 0.85, 0.95], [True, True, False, True]) == pytest.approx(expected)

    def test_bins_close_at_the_top(self):
        """0.6 and 9/15 + a little are in neighboring bins, so their gaps do not cancel."""
        assert calibration([0.6 - 1e-9, 0.6 + 1e-9], [True, False]) == pytest.approx((0.4 + 0.6) / 2)

    def test_likelihood_by_hand(self):
        expected = -(math.log(math.e / (math.e + 1)) + math.log(0.5)) / 2
        metrics = compute_calibration_metrics([[1.0, 0.0], [3.0, 3.0]], [0, 1])
        assert metrics["negative_log_likelihood"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def outputs(model, dataset, collator):
    """The one prediction of the split; with other batches it would differ in the last digits."""
    return predict_clips(model, dataset, collator)


@pytest.fixture(scope="module")
def written(model, dataset, collator, outputs, tmp_path_factory):
    """(folder, results) of a report with everything in it."""
    folder = tmp_path_factory.mktemp("report")
    return folder, write_report(model, dataset, collator, outputs, folder)


def write_report(model, dataset, collator, outputs, folder):
    detectors = fit_detectors(model, outputs, outputs, methods=("energy", "mahalanobis", "label_similarity"))
    return report(model, dataset, collator, folder, "dev", detectors, outputs, batch_size=16)


class TestReport:
    def test_evidence_spans(self, model, dataset, collator, outputs, tmp_path):
        """The anchors of the report are those of the metric, and are written as percent."""
        best = outputs.anchor_indices[:, 1, 0]
        spans = {"audio": {clip: (int(best[row]), int(best[row]) + 1, 5) for row, clip in enumerate(outputs.ids[:30])}}
        spans["audio"][outputs.ids[0]] = (int(best[0]) + 1, int(best[0]) + 2, 5)
        results = report(model, dataset, collator, tmp_path, outputs=outputs, evidence_spans=spans)
        known = int((outputs.labels[:30] >= 0).sum())
        assert results["anchors"] == compute_anchor_metrics(outputs.select(outputs.labels >= 0), spans)
        assert results["anchors"]["audio"]["clips"] == known
        assert results["anchors"]["audio"]["best_anchor"] == pytest.approx((known - 1) / known)
        assert known == 30
        row = next(
            line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| audio | 30 |")
        )
        assert "| 96.67 |" in row and row.endswith("| 20.00 |")

    def test_files(self, written):
        folder, results = written
        markdown = (folder / "report.md").read_text(encoding="utf-8")
        pictures = re.findall(r"!\[[^\]]+\]\(([a-z_]+\.png)\)", markdown)
        # nothing is shown that is not there, and nothing is there that is not shown
        assert sorted(pictures) == sorted(file.name for file in folder.glob("*.png"))
        assert {"confusion.png", "modalities.png", "oos_roc.png", "oos_scores.png", "embeddings.png"} <= set(pictures)
        assert json.loads((folder / "metrics.json").read_text()) == results
        assert str(folder) not in markdown

    def test_share_of_unknown_clips_that_is_caught(self, written, model, outputs):
        folder, results = written
        (detector,) = fit_detectors(model, outputs, outputs, methods=("energy",))
        caught = sum(float(score) < detector.threshold for score in detector.score(outputs.as_model_outputs())[45:])
        assert results["caught_out_of_scope"] == pytest.approx(caught / 15)
        assert f"It catches {100 * caught / 15:.2f} % of the out-of-scope clips." in (folder / "report.md").read_text()

    def test_metrics_of_the_split(self, written, outputs):
        _, results = written
        assert (results["clips"], results["out_of_scope_clips"]) == (45, 15)
        expected = np.mean(outputs.predictions[:45] == outputs.labels[:45])
        assert results["classification"]["accuracy"] == results["modalities"][0]["accuracy"] == pytest.approx(expected)
        assert list(results["classification"]["per_class"]) == LABELS
        compared = ["energy", "mahalanobis", "label_similarity", "msp", "max_logit"]  # those given, then the others
        assert list(results["oos_detection"]) == compared
        assert results["kept_in_scope"] == 43 / 45  # the least number that is 95 % of 45
        assert set(results["open_classification"]) == {"accuracy", "f1_known", "f1_open", "f1"}
        direct = compute_calibration_metrics(outputs.logits[:45], outputs.labels[:45])
        assert {name: results["calibration"][name] for name in direct} == direct

    def test_complete_inputs_are_not_predicted_again(self, model, dataset, collator, outputs, tmp_path):
        """With the outputs given, the model sees six sets of masked modalities and nothing else."""
        calls = []
        hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
        report(model, dataset, collator, tmp_path, outputs=outputs, batch_size=60)
        hook.remove()
        assert len(calls) == 6

    def test_outputs_of_other_clips(self, model, dataset, collator, outputs, tmp_path):
        with pytest.raises(ValueError, match="not those of the 45 clips"):
            report(model, dataset.select(range(45)), collator, tmp_path, outputs=outputs)
        assert not list(tmp_path.iterdir())

    def test_mistakes_are_the_surest_ones(self, written, outputs):
        folder, _ = written
        section = (folder / "report.md").read_text(encoding="utf-8").split("## The most confident mistakes")[1]
        rows = [line.split(" | ") for line in section.split("## ")[0].splitlines() if line.startswith("| S")]
        outputs = outputs.select(np.arange(60) < 45)
        correct = outputs.predictions == outputs.labels
        wrong = [number for number in np.argsort(-outputs.confidence()) if not correct[number]][:20]
        assert [row[0].removeprefix("| ") for row in rows] == [outputs.ids[number] for number in wrong]
        assert rows[0][1] == outputs.texts[wrong[0]]
        assert not any(re.search(r"[.,;:!?](,| ·)", row[4]) for row in rows), "words without their punctuation"
        assert re.search(r"audio \d\.\d s", rows[0][4])  # in seconds, as start and end are known

    @pytest.mark.slow
    def test_same_bytes_again(self, written, model, dataset, collator, tmp_path):
        folder, _ = written
        write_report(model, dataset, collator, predict_clips(model, dataset, collator), tmp_path)
        names = [file.name for file in folder.iterdir()]
        assert sorted(names) == sorted(file.name for file in tmp_path.iterdir())
        _, different, missing = filecmp.cmpfiles(folder, tmp_path, names, shallow=False)
        assert not different and not missing

    @pytest.mark.slow
    def test_in_scope_only_and_text_that_could_break_a_table(self, model, dataset, collator, tmp_path):
        rows = [row | {"text": "a | b\n| c <img>"} for row in dataset.select(range(12))]
        results = report(model, Dataset.from_list(rows), collator, tmp_path)
        assert "oos_detection" not in results and "before" not in results["calibration"]
        markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert "Out of scope" not in markdown and not (tmp_path / "oos_roc.png").exists()
        section = markdown.split("confident mistakes")[1].split("## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| S")]
        assert lines and all(len(re.findall(r"(?<!\\)\|", line)) == 7 and "<" not in line for line in lines)

    @pytest.mark.slow
    def test_words_alone_and_no_descriptions(self, model, dataset, collator, tmp_path):
        """A model without anchors, descriptions, sound and picture has a shorter report."""
        config = model.config.to_dict() | {"fusion_type": "text", "label_descriptions": None}
        words_only = AMESSForIntentClassification(AMESSConfig(**config))
        results = report(words_only, dataset, collator, tmp_path / "mixed")
        assert len(results["modalities"]) == 1
        assert list(results["oos_detection"]) == ["energy", "msp", "max_logit"]
        assert "## Anchors" not in (tmp_path / "mixed" / "report.md").read_text(encoding="utf-8")

        known = dataset.select(range(20))
        outputs = predict_clips(words_only, known, collator)
        detectors = fit_detectors(words_only, outputs, outputs, keep=0.9)
        assert [detector.method for detector in detectors] == [m for m in OOS_METHODS if m != "label_similarity"]
        results = report(words_only, known, collator, tmp_path / "known", detectors=detectors[2:3], outputs=outputs)
        assert results["kept_in_scope"] == 0.9 and "oos_detection" not in results
        text = (tmp_path / "known" / "report.md").read_text(encoding="utf-8")
        assert "no out-of-scope clip in this split" in text and "`energy`" in text

    @pytest.mark.filterwarnings("error:A single label")
    def test_one_intent(self, model, dataset, collator, outputs, tmp_path):
        """A split of one clip is reported without a warning of scikit-learn."""
        right = np.flatnonzero(outputs.labels >= 0)[:1]
        report(model, dataset.select(right), collator, tmp_path)
        assert (tmp_path / "confusion.png").exists()

    def test_only_out_of_scope(self, model, dataset, collator, tmp_path):
        with pytest.raises(ValueError, match="every clip of the split 'test' is out of scope"):
            report(model, dataset.select(range(45, 60)), collator, tmp_path, name="test")
        assert not list(tmp_path.iterdir())


HOSTILE = [
    r"$\frac{$",
    "<script>alert(1)</script>",
    "two\nlines",
    "a|b",
    "![x](http://x)",
    "\\",
    "&lt;b&gt;",
    " ",
    "`code`",
]


def test_names_are_words(model, dataset, collator, outputs, tmp_path):
    """Names of intents with formulas, HTML, links and line breaks: the report is written, and they are words in it."""
    names = {**model.config.id2label, **dict(enumerate(HOSTILE))}
    usual = model.config.id2label
    model.config.id2label = names
    try:
        report(model, dataset, collator, tmp_path, "dev\n# <b>", outputs=outputs)
    finally:
        model.config.id2label = usual
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text and "| two lines |" in text and "| a\\|b |" in text
    assert "![x]" not in text and "&amp;lt;b&amp;gt;" in text and "\n# &lt;b" not in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("| ")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) for line in table}) == 1, table
    assert len(tables) >= 5


class TestPlots:
    def test_confused_intents_become_neighbors(self):
        """Pairs (0, 5), (1, 4), (2, 3) are confused; in the plot they stand side by side."""
        matrix = 10 * np.eye(6, dtype=int)
        for first, second in ((0, 5), (1, 4), (2, 3)):
            matrix[first, second] = matrix[second, first] = 6
        figure = plots.plot_confusion(matrix, list("012345"))
        order = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert sorted(order) == list("012345")
        for first, second in ("05", "14", "23"):
            assert abs(order.index(first) - order.index(second)) == 1

    def test_map_of_one_place(self):
        """Equal vectors are drawn at one place; every description has the number of its intent."""
        figure = plots.plot_embeddings(np.ones((7, 4)), np.arange(7) % 3 - 1, ["Care", "Joke"], np.ones((2, 4)))
        assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2"]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["(out of scope)", "1 Care", "2 Joke"]

    @pytest.mark.parametrize("number", [3, 40])
    def test_words_do_not_run_into_one_another(self, number):
        words = [("incomprehensibilities", 0.5 if place == 1 else None) for place in range(number)]
        figure = plots.plot_anchors("a clip", words, [])
        renderer = figure.canvas.get_renderer()
        figure.draw(renderer)
        texts = [text for text in figure.axes[0].findobj(Text) if text.get_text() == words[0][0]]
        boxes = [text.get_window_extent(renderer) for text in texts]
        assert len(boxes) == number
        assert not any(boxes[a].overlaps(boxes[b]) for a in range(number) for b in range(a))
        frame = figure.axes[0].get_window_extent()
        assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 for box in boxes)

    def test_labels_of_thirty_intents_do_not_overlap(self):
        names = [f"Asking for opinion {number}" for number in range(30)]
        figure = plots.plot_confusion(np.eye(30, dtype=int), names)
        renderer = figure.canvas.get_renderer()
        for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
            boxes = [label.get_window_extent(renderer) for label in labels]
            assert not any(first.overlaps(second) for first, second in zip(boxes, boxes[1:], strict=False))

    def test_no_text_is_small(self):
        """At 100 dots to an inch 8 points are 11 pixels."""
        figure = plots.plot_intent_f1({name: {"f1": 0.5, "support": 3} for name in LABELS})
        texts = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
        assert texts and min(text.get_fontsize() for text in texts) >= 8

    def test_names_are_not_formulas_and_none_is_left_out(self):
        names = ["$\\frac{$", "_hidden", "two\nlines" + "x" * 300]
        figure = plots.plot_embeddings(np.random.default_rng(0).normal(size=(9, 5)), np.arange(9) % 3, names)
        plots.save_figure(figure, io.BytesIO())
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "$\\frac{$",
            " _hidden",
            "two lines" + "x" * 30 + "…",
        ]
        assert figure.get_suptitle() == "Clips (t-SNE of their embeddings)"
        plots.save_figure(plots.plot_anchors("$x^$ \n y", [("$\\bad{$", 1.0)], [], 1.0), io.BytesIO())

    @pytest.mark.filterwarnings("error:Glyph")
    def test_letters_that_the_font_lacks(self, monkeypatch, tmp_path):
        """From another font of the machine (a mark that DejaVu Sans Mono has), or transliterated; never a box."""
        from matplotlib import font_manager

        fonts = [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
        plots._font_with.cache_clear()
        values = {"f1": 0.5, "support": 1}
        names = {"喜び": "<U+559C>bi", "धन्यवाद": "dhanayavaaada", "ขอ": "khoo", "⌒ Благодарить": "⌒ Благодарить"}
        figure = plots.plot_intent_f1(dict.fromkeys(names, values))
        plots.save_figure(figure, tmp_path / "plot.png")
        labels = figure.axes[0].get_yticklabels()
        assert {label.get_text() for label in labels} == set(names.values())
        assert all(label.get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"] for label in labels)
        plots._font_with.cache_clear()

    @pytest.mark.filterwarnings("error")
    def test_legend_is_beside_the_curves(self, tmp_path):
        figure = plots.plot_calibration({"before": ([True, False], [0.05, 0.9]), "after": ([True, False], [0.1, 0.8])})
        plots.save_figure(figure, tmp_path / "plot.png")
        (legend,) = figure.legends
        assert len(legend.get_texts()) == 3 and figure.axes[0].get_legend() is None
        assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)

    def test_users_own_style_changes_nothing(self, tmp_path):
        import matplotlib

        table = [{"modalities": ["text"], "accuracy": 0.5, "weighted_f1": 0.5, "changed": 0.0}]
        plots.save_figure(plots.plot_modalities(table), tmp_path / "plain.png")
        with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "red", "savefig.dpi": 30}):
            plots.save_figure(plots.plot_modalities(table), tmp_path / "styled.png")
        assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()
        assert b"matplotlib" not in (tmp_path / "plain.png").read_bytes().lower()
