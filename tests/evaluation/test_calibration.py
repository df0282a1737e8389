"""Calibration: what is fitted, where it acts, and the sets of the pipeline."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import log_softmax, softmax
from utils import random_batch, tiny_model

from amess_hf import AMESSDataCollator, OutOfScopeDetector
from amess_hf.evaluation import calibrate, predict_clips
from amess_hf.evaluation.calibration import calibrated_logits, coverage_thresholds, fit_scales, uncalibrated_scores
from amess_hf.pipeline_amess import IntentRecognitionPipeline


def drawn_scores(clips=4000, labels=5, seed=0):
    """Scores of text, audio and video, and labels drawn with the probabilities that weights 0.5, 1.5 and 0.25 give."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, clips, labels)) * 3
    probabilities = softmax(np.tensordot([0.5, 1.5, 0.25], scores, 1), axis=-1)
    return scores, (probabilities.cumsum(-1) > rng.random((clips, 1))).argmax(-1)


class TestFit:
    def test_finds_the_weights_that_drew_the_labels(self):
        temperature, scales = fit_scales(*drawn_scores())
        assert temperature == pytest.approx(2.0, rel=0.06)
        assert scales == pytest.approx([3.0, 0.5], rel=0.08)

    def test_temperature_is_the_best_of_a_grid(self):
        scores, labels = drawn_scores(400)
        temperature, scales = fit_scales(scores[:1], labels)
        grid = np.geomspace(0.1, 50, 4000)
        losses = [
            (1 / t - 1) ** 2 / 2 - log_softmax(scores[0] / t, axis=-1)[np.arange(400), labels].sum() for t in grid
        ]
        assert temperature == pytest.approx(grid[np.argmin(losses)], rel=0.005) and scales == [1.0, 1.0]

    def test_few_clips_that_are_all_right_do_not_make_it_sure(self):
        temperature, _ = fit_scales(3 * np.eye(5)[None], np.arange(5))
        assert 0.6 < temperature < 1

    def test_modality_without_evidence(self):
        scores, labels = drawn_scores(400)
        scores[1] = 0.0
        assert fit_scales(scores, labels)[1][0] == 1.0

    def test_thresholds_by_hand(self):
        """Of nine clips, 10 % coverage needs rank 1, 50 % rank 5, 90 % rank 9; 91 % would need a tenth clip."""
        right = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2])
        logits = np.log(np.stack([right, 1 - right], axis=-1))
        thresholds = coverage_thresholds(logits[::-1], np.zeros(9, dtype=int))
        assert len(thresholds) == 90
        assert [thresholds[percent - 1] for percent in (1, 10, 11, 50, 90)] == pytest.approx(
            [0.9, 0.9, 0.8, 0.55, 0.2]
        )


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = tiny_model()
    torch.nn.init.normal_(model.classifier.weight)
    for name, parameter in model.amess.fusion.evidence.named_parameters():
        if name.endswith("weight"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def clips_of(model, number=30):
    rng, config = np.random.default_rng(0), model.config
    sizes = {f"{name}_features": features.feature_size for name, features in config.feature_configs.items()}
    return Dataset.from_list(
        [
            {"id": str(row), "text": "a b", "label": row % (config.num_labels + 1) - 1}
            | {name: rng.normal(size=(4, size)) for name, size in sizes.items()}
            for row in range(number)
        ]
    )


def outputs_of(model, tokenizer):
    return predict_clips(model, clips_of(model), AMESSDataCollator(tokenizer, model.config))


class TestModel:
    def test_acts_in_evaluation_alone(self, model):
        batch = random_batch(model.config)
        before = model(**batch)
        model.config.temperature, model.config.evidence_scales = 2.0, [3.0, 0.5]
        after = model(**batch)
        assert torch.equal(before.loss, after.loss) and torch.equal(before.evidence, after.evidence)
        plain = before.logits - before.evidence.sum(1)
        expected = (plain + 3.0 * before.evidence[:, 0] + 0.5 * before.evidence[:, 1]) / 2.0
        torch.testing.assert_close(after.logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.answer(after), after.logits)
        model.train()
        torch.manual_seed(0)
        calibrated = model(**batch)
        model.config.temperature, model.config.evidence_scales = 1.0, None
        torch.manual_seed(0)
        assert torch.equal(calibrated.logits, model(**batch).logits)

    def test_calibrate(self, model, tokenizer, tmp_path):
        """The model then says what was fitted, fitting again changes nothing, and a checkpoint keeps it."""
        outputs = outputs_of(model, tokenizer)
        calibrate(model, outputs)
        assert model.config.temperature != 1.0 and len(model.config.evidence_scales) == 2
        again = outputs_of(model, tokenizer)
        scores = uncalibrated_scores(again, model.config)
        np.testing.assert_allclose(calibrated_logits(scores, model.config), again.logits, atol=1e-5)
        np.testing.assert_allclose(scores.sum(0), outputs.logits, rtol=1e-4, atol=1e-4)
        fitted = model.config.temperature, *model.config.evidence_scales
        calibrate(model, again)
        assert (model.config.temperature, *model.config.evidence_scales) == pytest.approx(fitted, rel=1e-2)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        assert loaded.config.coverage_thresholds == model.config.coverage_thresholds
        batch = random_batch(model.config)
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)

    def test_nothing_to_calibrate_on(self, model, tokenizer):
        outputs = outputs_of(model, tokenizer)
        with pytest.raises(ValueError, match="no clip is in scope"):
            calibrate(model, outputs.select(outputs.labels < 0))

    @pytest.mark.parametrize("scales", ([1.0], [1.0, 0.0], [1.0, float("nan")]))
    def test_scales_that_are_none(self, model, scales):
        with pytest.raises(ValueError, match="two factors above 0"):
            type(model.config)(**{**model.config.to_dict(), "evidence_scales": scales})


class TestDetector:
    def test_fitted_before_the_model_was_calibrated(self, model, tokenizer, tmp_path):
        outputs = outputs_of(model, tokenizer)
        fields = outputs.as_model_outputs()
        detector = (
            OutOfScopeDetector("knn").fit(fields, outputs.labels, model).calibrate(fields, labels=outputs.labels)
        )
        detector.save_pretrained(tmp_path)
        detector = OutOfScopeDetector.from_pretrained(tmp_path)
        IntentRecognitionPipeline(model, tokenizer, detector=detector)
        calibrate(model, outputs)
        with pytest.raises(ValueError, match="fit and calibrate the detector again"):
            IntentRecognitionPipeline(model, tokenizer, detector=detector)


class TestCoverage:
    def test_sets_hold_the_intents_above_the_threshold(self, model, tokenizer):
        calibrate(model, outputs_of(model, tokenizer))
        model.config.coverage_thresholds = [1.0] * 49 + [0.1] * 41
        pipe = IntentRecognitionPipeline(model, tokenizer, top_k=1)
        every = pipe({"text": "a"}, top_k=None)
        assert pipe({"text": "a"}, coverage=0.9) == [one for one in every if one["score"] >= 0.1] != every[:1]
        assert pipe({"text": "a"}, coverage=0.401) == every[:1], "never empty"
        found = pipe({"text": "a"}, coverage=0.9, return_anchors=True)
        assert found["predictions"] == pipe({"text": "a"}, coverage=0.9) and found["in_scope"] is None

    @pytest.mark.parametrize("other", ({"top_k": 2}, {"threshold": 0.5}, {"candidate_labels": "a"}))
    def test_not_with_what_it_replaces(self, model, tokenizer, other):
        with pytest.raises(ValueError, match="`coverage` is 0.9; it must be"):
            IntentRecognitionPipeline(model, tokenizer)({"text": "a"}, coverage=0.9, **other)

    def test_more_than_the_dev_clips_suffice_for(self, model, tokenizer):
        pipe = IntentRecognitionPipeline(model, tokenizer)
        with pytest.raises(ValueError, match="was not calibrated"):
            pipe({"text": "a"}, coverage=0.9)
        calibrate(model, outputs_of(model, tokenizer))
        with pytest.raises(ValueError, match="suffice for 0.9[0-9]* at most"):
            pipe({"text": "a"}, coverage=0.99)
