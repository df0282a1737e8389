"""Each out-of-scope score against its formula, written out in numpy's float64, and the detector's life cycle."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import ModelOutput

from amess_hf.configuration_amess import MODALITIES
from amess_hf.evaluation.metrics import compute_oos_metrics
from amess_hf.oos_amess import DETECTOR_CONFIG_NAME, OOS_METHODS, OutOfScopeDetector


NUM_LABELS, WIDTH, PROJECTION = 5, 12, 6


class TinyHead(torch.nn.Module):
    """A classifier over features that lie around one mean for each class; stands for a trained model."""

    def __init__(self, num_labels=NUM_LABELS, width=WIDTH):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.means = torch.randn(num_labels, width, generator=generator) * 3
        self.classifier = torch.nn.Linear(width, num_labels)
        with torch.no_grad():
            self.classifier.weight.copy_(self.means + torch.randn(num_labels, width, generator=generator) * 0.1)
            self.classifier.bias.copy_(torch.randn(num_labels, generator=generator))
        self.label_embeds = torch.nn.functional.normalize(
            torch.randn(num_labels, PROJECTION, generator=generator), dim=-1
        )

    def outputs(self, labels, seed):
        """Out-of-scope clips (-1) have features of their own, away from every mean."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(labels), self.means.shape[1], generator=generator)
        features = torch.where(labels[:, None] >= 0, self.means[labels] + noise, 2 * noise)
        embeds = self.label_embeds[labels] + torch.randn(len(labels), PROJECTION, generator=generator) * 0.3
        return ModelOutput(
            logits=self.classifier(features).detach(),
            pooler_output=features,
            multimodal_embeds=torch.nn.functional.normalize(embeds, dim=-1),
            label_embeds=self.label_embeds,
        )


@pytest.fixture
def model():
    return TinyHead()


def clips(number, seed, num_labels=NUM_LABELS, out_of_scope=0):
    labels = torch.randint(0, num_labels, (number,), generator=torch.Generator().manual_seed(seed))
    labels[:out_of_scope] = -1
    return labels


def formula(method, train, train_labels, model, outputs):
    """The definitions, clip by clip, with general-purpose numpy routines (inverse and not whitening, and so on)."""
    logits, features, embeds = (
        np.asarray(outputs[name], dtype=np.float64) for name in ("logits", "pooler_output", "multimodal_embeds")
    )
    known = np.asarray(train_labels) >= 0
    train_features = np.asarray(train["pooler_output"], dtype=np.float64)[known]
    train_labels = np.asarray(train_labels)[known]
    weight = model.classifier.weight.detach().double().numpy()
    bias = model.classifier.bias.detach().double().numpy()
    if method == "msp":
        return np.array([max(np.exp(row) / np.exp(row).sum()) for row in logits])
    if method == "max_logit":
        return np.array([max(row) for row in logits])
    if method == "energy":
        return np.array([np.log(sum(np.exp(value) for value in row)) for row in logits])
    if method == "label_similarity":
        descriptions = np.asarray(outputs["label_embeds"], dtype=np.float64)
        return np.array([max(sum(a * b for a, b in zip(row, d, strict=True)) for d in descriptions) for row in embeds])
    if method.startswith("knn"):
        units = train_features / np.linalg.norm(train_features, axis=-1, keepdims=True)
        cosines = [sorted(units @ (row / np.linalg.norm(row)), reverse=True) for row in features]
        if method == "knn":
            return np.array([row[4] for row in cosines])
        energy = np.log(np.exp(np.asarray(train["logits"], dtype=np.float64)[known]).sum(-1))
        nearness = np.array([sorted(units @ row, reverse=True)[5] for row in units])  # the first is the clip itself
        return (np.array([row[4] for row in cosines]) - nearness.mean()) / nearness.std() + (
            np.log(np.exp(logits).sum(-1)) - energy.mean()
        ) / energy.std()
    if method == "mahalanobis":
        means = {label: train_features[train_labels == label].mean(0) for label in set(train_labels.tolist())}
        covariance = np.zeros((features.shape[1], features.shape[1]))
        for row, label in zip(train_features, train_labels, strict=True):
            covariance += np.outer(row - means[label], row - means[label]) / len(train_features)
        precision = np.linalg.pinv(covariance)
        return np.array([-min((row - m) @ precision @ (row - m) for m in means.values()) for row in features])
    origin = -np.linalg.pinv(weight) @ bias
    covariance = (train_features - origin).T @ (train_features - origin) / len(train_features)
    values, vectors = np.linalg.eig(covariance)
    rest = vectors.real[:, np.argsort(-values.real)[weight.shape[1] * 2 // 3 :]]
    residual = np.array([np.linalg.norm(rest.T @ (row - origin)) for row in features])
    if method == "residual":
        return -residual
    train_residual = np.array([np.linalg.norm(rest.T @ (row - origin)) for row in train_features])
    scale = (train_features @ weight.T + bias).max(-1).mean() / train_residual.mean()
    return np.log(np.exp(features @ weight.T + bias).sum(-1)) - scale * residual


@pytest.mark.parametrize("method", OOS_METHODS)
class TestEveryMethod:
    def test_score_equals_the_formula(self, method, model):
        labels = clips(80, 1, out_of_scope=4)  # out-of-scope training clips are ignored
        train, test = model.outputs(labels, 2), model.outputs(clips(30, 3, out_of_scope=10), 4)
        scores = OutOfScopeDetector(method).fit(train, labels, model).score(test)
        assert scores.dtype == torch.float64 and scores.shape == (30,)
        np.testing.assert_allclose(scores.numpy(), formula(method, train, labels, model, test), rtol=1e-9, atol=1e-9)

    def test_higher_is_in_scope(self, method, model):
        labels = clips(80, 1)
        detector = OutOfScopeDetector(method).fit(model.outputs(labels, 2), labels, model)
        test_labels = clips(200, 3, out_of_scope=80)
        test = model.outputs(test_labels, 4)
        if method == "label_similarity":  # the stand-in's out-of-scope embeddings are near the last label: move them
            test["multimodal_embeds"] = torch.where(
                test_labels[:, None] < 0, test["multimodal_embeds"].flip(-1), test["multimodal_embeds"]
            )
        assert compute_oos_metrics(detector.score(test), (test_labels >= 0).numpy())["auroc"] > 0.6

    def test_batches_and_arrays_score_alike(self, method, model):
        labels = clips(60, 1)
        whole, parts = model.outputs(labels, 2), []
        for rows in (slice(0, 7), slice(7, 60)):
            parts.append({name: value[rows] for name, value in whole.items() if name != "label_embeds"})
            parts[-1]["label_embeds"] = whole["label_embeds"]
        arrays = {name: value.numpy() for name, value in whole.items()}
        expected = OutOfScopeDetector(method).fit(whole, labels, model).score(whole)
        split = OutOfScopeDetector(method).fit(parts, [labels[:7], labels[7:]], model).score(parts)
        torch.testing.assert_close(split, expected, rtol=1e-12, atol=1e-12)
        from_arrays = OutOfScopeDetector(method).fit(arrays, labels.tolist(), model).score(arrays)
        torch.testing.assert_close(from_arrays, expected, rtol=0, atol=0)

    def test_saved_and_loaded_scores_the_same(self, method, model, tmp_path):
        labels = clips(60, 1)
        detector = OutOfScopeDetector(method).fit(model.outputs(labels, 2), labels, model)
        detector.calibrate(model.outputs(clips(40, 3), 4), keep=0.9)
        detector.save_pretrained(tmp_path / "model")
        assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
            "oos_detector.json",
            "oos_detector.safetensors",
        ]
        loaded = OutOfScopeDetector.from_pretrained(tmp_path / "model")
        test = model.outputs(clips(50, 5, out_of_scope=25), 6)
        assert torch.equal(loaded.score(test), detector.score(test))
        assert torch.equal(loaded.predict(test), detector.predict(test))
        assert (loaded.threshold, loaded.keep, loaded.calibration_clips) == (detector.threshold, 0.9, 40)


class TestThreshold:
    @pytest.mark.parametrize(("keep", "kept"), [(0.95, 19), (1.0, 20), (0.5, 10), (0.01, 1), (0.93, 19)])
    def test_keeps_the_share(self, keep, kept):
        logits = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:, None].float()
        detector = OutOfScopeDetector("max_logit").calibrate({"logits": logits}, keep=keep)
        assert detector.threshold == 20 - kept
        assert detector.predict({"logits": logits}).sum() == kept

    def test_ties_stay_together_and_out_of_scope_clips_are_ignored(self):
        logits = torch.tensor([[3.0], [2.0], [2.0], [2.0], [1.0], [9.0]])
        labels = [0, 0, 0, 0, 0, -1]
        detector = OutOfScopeDetector("max_logit").calibrate({"logits": logits}, keep=0.5, labels=labels)
        assert detector.predict({"logits": logits}).tolist() == [True, True, True, True, False, True]
        assert detector.calibration_clips == 5

    def test_fit_forgets_the_threshold(self, model):
        labels = clips(60, 1)
        train = model.outputs(labels, 2)
        detector = OutOfScopeDetector("residual").fit(train, labels, model).calibrate(train)
        assert detector.fit(train, labels, model).threshold is None

    @pytest.mark.parametrize(
        ("logits", "options", "message"),
        [
            (torch.ones(2, 2), {"keep": 0}, "`keep` is 0"),
            (torch.ones(2, 2), {"keep": 95}, "`keep` is 95"),
            (torch.ones(2, 2), {"labels": [-1, -1]}, "no in-scope clip"),
            (torch.tensor([[torch.nan, 1.0]]), {}, "NaN or infinite"),
        ],
    )
    def test_what_it_cannot_be_set_on(self, logits, options, message):
        with pytest.raises(ValueError, match=message):
            OutOfScopeDetector("energy").calibrate({"logits": logits}, **options)


def with_modalities(outputs, given):
    """Features that are the weaker the fewer modalities they come from, of clips that have only these."""
    strength = len(given) / 3
    mask = torch.tensor([name in given for name in MODALITIES]).expand(len(outputs.logits), 3)
    return ModelOutput(
        {
            **outputs,
            "logits": strength * outputs.logits,
            "pooler_output": strength * outputs.pooler_output + 1 - strength,
        },
        modality_mask=mask,
    )


@pytest.mark.parametrize("method", ["energy", "mahalanobis", "knn_energy"])
def test_each_set_of_modalities_has_its_threshold(method, model, tmp_path):
    sets = [MODALITIES, ("text", "audio"), ("text",)]
    labels, test_labels = clips(80, 1), clips(300, 5, out_of_scope=100)
    train, dev = model.outputs(labels, 2), model.outputs(clips(200, 3), 4)
    detector = OutOfScopeDetector(method).fit(train, labels, model)
    dev = [with_modalities(dev, given) for given in sets]
    test = [with_modalities(model.outputs(test_labels, 6), given) for given in sets]
    before = detector.calibrate(dev[0]).predict(test)
    assert before[:300][100:].float().mean() > 0.85 > 0.3 > before[700:].float().mean()
    complete = detector.score(test[0])
    detector.calibrate(dev[0], 0.95, masked=dev[1:]).save_pretrained(tmp_path)
    detector = OutOfScopeDetector.from_pretrained(tmp_path)
    assert set(detector.thresholds) == {"text+audio", "text"}
    kept = detector.predict(test)  # of all sets at once
    for number, outputs in enumerate(test):
        alone = detector.predict(outputs)
        assert torch.equal(kept[300 * number :][:300], alone) and alone[100:].float().mean() > 0.85
    margins = detector.margins(dev[0])
    assert torch.equal(margins >= 0, detector.predict(dev[0])) and margins.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(detector.score(test[0]), complete)
    assert kept[:100].float().mean() < 0.85
    assert not detector.fit(train, labels, model).thresholds


class TestFit:
    @pytest.mark.parametrize("method", ["mahalanobis", "residual", "vim"])
    def test_few_clips_and_missing_classes_stay_finite(self, method, model, tmp_path):
        """Fewer clips than dimensions: the covariance has no inverse; three classes have no clip at all."""
        labels = torch.tensor([0, 0, 0, 3, 3])
        train, test = model.outputs(labels, 1), model.outputs(clips(20, 2), 3)
        detector = OutOfScopeDetector(method)
        for early in (lambda: detector.score(test), lambda: detector.save_pretrained(tmp_path)):
            with pytest.raises(ValueError, match="has not seen the training split"):
                early()
        assert not list(tmp_path.iterdir())
        assert detector.fit(train, labels, model).score(test).isfinite().all()
        with pytest.raises(ValueError, match="no in-scope clip"):
            detector.fit(train, [-1] * 5, model)

    @pytest.mark.parametrize("method", ["residual", "vim"])
    def test_more_intents_than_dimensions(self, method):
        model = TinyHead(num_labels=20, width=8)
        labels = clips(100, 1, num_labels=20)
        detector = OutOfScopeDetector(method).fit(model.outputs(labels, 2), labels, model)
        assert detector.state["null_space"].shape == (8, 3)
        assert detector.score(model.outputs(clips(20, 3, num_labels=20), 4)).std() > 0

    def test_what_does_not_fit(self, model):
        with pytest.raises(ValueError, match="no `multimodal_embeds`"):
            OutOfScopeDetector("label_similarity").score({"logits": torch.ones(2, 3)})
        with pytest.raises(ValueError, match="`method` is 'odin'.*label_similarity"):
            OutOfScopeDetector("odin")
        labels = clips(60, 1)
        detector = OutOfScopeDetector("mahalanobis").fit(model.outputs(labels, 2), labels, model)
        with pytest.raises(
            ValueError, match="7 wide, but this detector was fitted on 12; it belongs to another model"
        ):
            detector.score({"pooler_output": torch.ones(2, 7)})


class TestFiles:
    def test_missing(self, tmp_path):
        assert OutOfScopeDetector.from_pretrained(tmp_path, missing_ok=True) is None
        with pytest.raises(OSError, match="oos_detector.json"):
            OutOfScopeDetector.from_pretrained(tmp_path)
        OutOfScopeDetector("energy").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no threshold"):
            OutOfScopeDetector.from_pretrained(tmp_path).predict({"logits": torch.ones(2, 3)})

    @pytest.mark.parametrize(
        "change",
        [
            "{", "[]", "{}", "[" * 100_000, {"method": "odin"}, {"method": "residual"}, {"format_version": 99},
            {"threshold": "0.5"}, {"threshold": float("nan")}, {"keep": float("inf")}, {"thresholds": {"text": None, "a": "b"}},
            {"thresholds": {"text": float("nan")}}, {"thresholds": [1]},
        ],
        ids=lambda change: str(change)[:20],
    )  # fmt: skip
    def test_damaged_settings(self, change, fitted, tmp_path):
        settings = tmp_path / DETECTOR_CONFIG_NAME
        if isinstance(change, dict):
            change = json.dumps(json.loads(settings.read_text()) | change)
        settings.write_text(change)
        with pytest.raises(
            ValueError, match=r"oos_detector\.(json|safetensors)` does not hold an out-of-scope detector"
        ):
            OutOfScopeDetector.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"neighbors": torch.full((3, 4), torch.nan)}, {"neighbors": torch.ones(0, 4)}, {"neighbors": torch.ones(4)},
            {"means": torch.ones(1)}, {"means": torch.ones(3)}, {"deviations": torch.tensor([1.0, torch.inf])},
            {"text/means": torch.ones(4)}, {"video/means": torch.ones(2)}, {"loose": torch.ones(2)}, None,
        ],
        ids=lambda change: str(change)[:20],
    )  # fmt: skip
    def test_damaged_weights(self, change, fitted, tmp_path):
        weights = tmp_path / "oos_detector.safetensors"
        if change is None:
            weights.write_bytes(weights.read_bytes()[:-100])
        else:
            save_file(load_file(weights) | change, weights)
        with pytest.raises(ValueError, match="oos_detector.safetensors` does not hold an out-of-scope detector"):
            OutOfScopeDetector.from_pretrained(tmp_path)

    @pytest.fixture
    def fitted(self, model, tmp_path):
        labels = clips(60, 1)
        outputs = with_modalities(model.outputs(labels, 2), MODALITIES)
        detector = OutOfScopeDetector("knn_energy").fit(outputs, labels, model)
        detector.calibrate(outputs, masked=[with_modalities(outputs, ("text",))]).save_pretrained(tmp_path)
