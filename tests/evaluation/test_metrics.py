"""The metrics against hand-computed cases, scikit-learn, and slow loops over the published definitions."""

import inspect
import os

import evaluate
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from amess_hf.evaluation import metrics as metrics_module
from amess_hf.evaluation.metrics import (
    compute_classification_metrics,
    compute_oos_metrics,
    compute_open_classification_metrics,
    generalized_accuracy,
)


METRICS_DIR = os.path.dirname(metrics_module.__file__)


class TestIntentClassification:
    def test_hand_computed(self):
        # class 0: 2 clips, 1 right, 2 predicted; class 1: 2 clips, 1 right, 1 predicted; class 2: never predicted
        metrics = compute_classification_metrics([0, 0, 1, 3], [0, 1, 1, 2])
        f1 = [2 / 3, 2 / 3, 0, 0]  # classes 0 to 3; 3 is predicted and never a reference
        assert metrics["accuracy"] == pytest.approx(0.5)
        assert metrics["f1"] == pytest.approx(np.mean(f1))
        assert metrics["precision"] == pytest.approx(np.mean([1 / 2, 1, 0, 0]))
        assert metrics["recall"] == pytest.approx(np.mean([1, 1 / 2, 0, 0]))
        assert metrics["weighted_f1"] == pytest.approx((1 * f1[0] + 2 * f1[1]) / 4)
        assert metrics["weighted_precision"] == pytest.approx((1 * 0.5 + 2 * 1) / 4)
        assert metrics["weighted_recall"] == pytest.approx(0.5)

    def test_per_class_lists_every_name(self):
        metrics = compute_classification_metrics([0, 0, 1], [0, 1, 1], ["Care", "Joke", "Warn"])
        assert list(metrics["per_class"]) == ["Care", "Joke", "Warn"]
        assert metrics["per_class"]["Care"] == pytest.approx(
            {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 1}
        )
        assert metrics["per_class"]["Warn"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        # a class that occurs nowhere does not lower the macro mean
        assert metrics["f1"] == pytest.approx(2 / 3)

    @pytest.mark.parametrize(
        ("predictions", "references", "message"),
        [
            ([0, 1], [0], "inconsistent numbers of samples"),
            ([0, 1], [0, -1], "a label is out of scope"),
            ([0.5, 1.0], [0, 1], "continuous"),
        ],
    )
    def test_bad_input(self, predictions, references, message):
        with pytest.raises(ValueError, match=message):
            compute_classification_metrics(predictions, references)


def published_open_metrics(predictions, references, open_label):
    """F1 of each class that occurs, counted clip by clip, the open class last."""
    classes = sorted(set(predictions) | set(references), key=lambda label: (label == open_label, label))
    f1 = []
    for label in classes:
        right = sum(p == label and r == label for p, r in zip(predictions, references, strict=True))
        predicted, true = sum(p == label for p in predictions), sum(r == label for r in references)
        precision, recall = right / predicted if predicted else 0, right / true if true else 0
        f1.append(2 * precision * recall / (precision + recall) if right else 0)
    return sum(f1[:-1]) / (len(f1) - 1), f1[-1], sum(f1) / len(f1)


class TestOpenIntentClassification:
    def test_hand_computed(self):
        metrics = compute_open_classification_metrics([0, 1, -1, -1], [0, 1, 1, -1])
        # F1: class 0 1, class 1 2/3, open 2/3
        assert metrics == pytest.approx({"accuracy": 0.75, "f1_known": 5 / 6, "f1_open": 2 / 3, "f1": 7 / 9})

    @pytest.mark.parametrize("open_label", [-1, 5, 2])
    def test_against_a_loop(self, open_label):
        rng = np.random.default_rng(1)
        references = rng.choice([0, 1, 3, 4, open_label], 100)
        predictions = np.where(rng.random(100) < 0.5, references, rng.choice([0, 1, 4, open_label], 100))
        metrics = compute_open_classification_metrics(predictions, references, open_label)
        expected = published_open_metrics(predictions.tolist(), references.tolist(), open_label)
        assert (metrics["f1_known"], metrics["f1_open"], metrics["f1"]) == pytest.approx(expected)

    def test_class_missing_from_predictions_and_from_references(self):
        # 2 is never predicted, 3 is never true: both count as known classes with F1 0
        metrics = compute_open_classification_metrics([0, 3, -1], [0, 2, -1])
        assert metrics == pytest.approx({"accuracy": 2 / 3, "f1_known": 1 / 3, "f1_open": 1.0, "f1": 0.5})
        assert compute_open_classification_metrics([0, 1, 1], [0, 1, -1])["f1_open"] == 0.0

    @pytest.mark.parametrize(
        ("predictions", "references", "message"),
        [
            ([0, -1], [0, 1], "every clip is in scope"),
            ([0, -1], [-1, -1], "every clip is out of scope"),
            ([0], [0, -1], "inconsistent numbers of samples"),
        ],
    )
    def test_bad_input(self, predictions, references, message):
        with pytest.raises(ValueError, match=message):
            compute_open_classification_metrics(predictions, references)


class TestGeneralizedAccuracy:
    def test_by_hand(self):
        metrics = generalized_accuracy(np.array([0, 1, 2, 2, 3]), np.array([0, 0, 2, 3, 3]), unseen=[2, 3])
        assert metrics["seen_accuracy"] == pytest.approx(1 / 2)
        assert metrics["unseen_accuracy"] == pytest.approx(2 / 3)
        assert metrics["harmonic_accuracy"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))

    def test_needs_both_kinds(self):
        with pytest.raises(ValueError, match="every clip is of seen intents"):
            generalized_accuracy(np.array([0]), np.array([0]), unseen=[1])


def published_fpr95(scores, in_scope):
    """Let clips in one by one, best score first, until 95 % of the in-scope ones are in."""
    let_in = {True: 0, False: 0}
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        let_in[bool(in_scope[i])] += 1
        if let_in[True] / sum(in_scope) >= 0.95:
            return let_in[False] / (len(scores) - sum(in_scope))


def published_error(scores, in_scope):
    """Every threshold: (FPR, FNR), then the two errors at the published choice of thresholds."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        let_in = scores >= threshold
        points.append((np.mean(let_in[in_scope == 0]), np.mean(~let_in[in_scope == 1])))
    share_in = np.mean(in_scope)
    return min((1 - share_in) * fnr + share_in * fpr for fpr, fnr in points if fnr <= 0.05 + 1e-12)


class TestOOSDetection:
    def test_hand_computed(self):
        metrics = compute_oos_metrics([0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0])
        # ROC points (FPR, TPR): (0,0) (0,.5) (.5,.5) (.5,1) (1,1). Both in-scope clips are in at (.5,1).
        assert metrics["auroc"] == pytest.approx(0.75)
        assert metrics["fpr95"] == pytest.approx(0.5)
        assert metrics["eer"] == pytest.approx(0.5)
        assert metrics["der"] == pytest.approx(0.5 * 0 + 0.5 * 0.5)
        # (recall, precision): (0,1) (.5,1) (.5,1/2) (1,2/3) (1,1/2), joined by straight lines, for both kinds alike
        assert metrics["aupr_in"] == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)
        assert metrics["aupr_out"] == pytest.approx(0.5 + 0.5 * (1 / 2 + 2 / 3) / 2)

    def test_der_pairs_shares_and_rates_as_published(self):
        # three in scope, one out; everything must be let in to keep 95 %: FNR 0, FPR 1
        assert compute_oos_metrics([3, 2, 0, 1], [1, 1, 1, 0])["der"] == pytest.approx(3 / 4)

    def test_against_loops(self):
        rng = np.random.default_rng(2)
        for size in (30, 41, 200):
            in_scope = (rng.random(size) < 0.7).astype(int)
            scores = rng.normal(size=size) + in_scope
            metrics = compute_oos_metrics(scores, in_scope)
            assert metrics["fpr95"] == pytest.approx(published_fpr95(scores, in_scope))
            assert metrics["der"] == pytest.approx(published_error(scores, in_scope))
            assert metrics["auroc"] == pytest.approx(roc_auc_score(in_scope, scores))

    def test_ties_do_not_depend_on_the_order(self):
        rng = np.random.default_rng(3)
        scores, in_scope = rng.integers(0, 4, 60) / 4, rng.random(60) < 0.5
        expected = compute_oos_metrics(scores, in_scope)
        for _ in range(5):
            order = rng.permutation(60)
            assert compute_oos_metrics(scores[order], in_scope[order]) == pytest.approx(expected)
        # all equal: chance, everything is let in at once
        assert compute_oos_metrics(np.ones(60), in_scope)["auroc"] == pytest.approx(0.5)
        assert compute_oos_metrics(np.ones(60), in_scope)["fpr95"] == 1

    def test_close_scores_are_not_rounded_together(self):
        scores = 0.5 + np.array([3e-16, 2e-16, 1e-16, 0.0]) * 4
        assert compute_oos_metrics(scores, [1, 1, 0, 0])["aupr_out"] == pytest.approx(1)

    @pytest.mark.parametrize(
        ("scores", "in_scope", "message"),
        [
            ([0.1, 0.2], [1, 1], "every clip is in scope"),
            ([0.1, 0.2], [0, 0], "every clip is out of scope"),
            ([0.1, np.nan], [0, 1], "NaN"),
            ([0.1], [0, 1], "inconsistent numbers of samples"),
            ([0.1, 0.2], [-1, 3], "other than 0"),
        ],
    )
    def test_bad_input(self, scores, in_scope, message):
        with pytest.raises(ValueError, match=message):
            compute_oos_metrics(scores, in_scope)


class TestModules:
    CASES = {
        "intent_classification": (
            compute_classification_metrics,
            [0, 1, 1],
            [0, 1, 0],
            {"label_names": ["Care", "Joke"]},
        ),
        "open_intent_classification": (compute_open_classification_metrics, [0, 2, 2], [0, 1, 2], {"open_label": 2}),
        "oos_detection": (compute_oos_metrics, [0.9, 0.3, 0.5 + 1e-12, 0.5], [1, 0, 1, 0], {}),
    }

    @pytest.mark.parametrize("name", CASES)
    def test_loads_by_path(self, name, tmp_path):
        function, predictions, references, options = self.CASES[name]
        metric = evaluate.load(METRICS_DIR, name, cache_dir=str(tmp_path))
        result = metric.compute(predictions=predictions, references=references, **options)
        assert result == function(predictions, references, **options)
        assert metric.inputs_description == inspect.getdoc(function) and "zhang2024mintrec" in metric.citation

    def test_unknown_name(self, tmp_path):
        with pytest.raises(KeyError, match="give one of intent_classification, open_intent"):
            evaluate.load(METRICS_DIR, "oos", cache_dir=str(tmp_path))

    def test_card_names_every_metric(self):
        with open(os.path.join(METRICS_DIR, "README.md"), encoding="utf-8") as file:
            card = file.read()
        assert card.startswith("---\ntitle: ")
        for function, predictions, references, options in self.CASES.values():
            assert all(f"`{key}`" in card for key in function(predictions, references, **options))
