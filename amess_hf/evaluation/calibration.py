"""Calibration: probabilities that say how often an answer is right, and sets of intents that hold the right one.

With the scores z of text and fusion and the evidence e_m of audio and video, the model answers softmax((z + sum_m s_m e_m) / T).
T, the temperature (Guo et al., ICML 2017), and the scales s_m have the lowest negative log-likelihood on dev clips: in 1 / T
and s_m / T this is a logistic regression, and convex. A penalty that weighs as much as one clip draws both to 1, so that a
few dev clips which are all answered correctly do not make the model sure of everything. The sets are those of split conformal
prediction (Sadinle et al., JASA 2019): an intent is in the set if its probability is at least that of the right intent in a
given share of the dev clips. All of it is fitted on complete clips: without text, scores say too little.
"""

import math
from typing import Any

import numpy as np

from ..configuration_amess import FEATURE_MODALITIES
from .prediction import ClipOutputs


# Bounds of 1 / T and of each s_m / T.
_BOUNDS = 0.01, 100.0
# Coverages that thresholds are kept for: 1 % to 99 %.
_PERCENTS = range(1, 100)


def calibrate(model: Any, outputs: ClipOutputs) -> None:
    """Fit the temperature, the scales of the evidence and the thresholds of sets, and set them in the configuration.

    An out-of-scope detector that was fitted before has to be fitted again.

    Args:
        model ([`AMESSForIntentClassification`]): A trained model; its configuration is changed.
        outputs ([`ClipOutputs`]): Its outputs for clips that it was not trained on; those out of scope are left out.

    Raises:
        ValueError: If no clip is in scope.
    """
    outputs = outputs.select(outputs.labels >= 0)
    if not len(outputs):
        raise ValueError("no clip is in scope; give labelled clips to calibrate on")
    config = model.config
    scores = uncalibrated_scores(outputs, config)
    config.temperature, scales = fit_scales(scores, outputs.labels)
    if outputs.evidence is not None:
        config.evidence_scales = scales
    config.coverage_thresholds = coverage_thresholds(calibrated_logits(scores, config), outputs.labels)


def uncalibrated_scores(outputs: ClipOutputs, config: Any) -> np.ndarray:
    """Return the scores of text and fusion, the evidence of audio and that of video: `(1 or 3, clips, num_labels)`, float64."""
    logits = outputs.logits.astype(np.float64) * config.temperature
    if outputs.evidence is None:
        return logits[None]
    evidence = outputs.evidence.astype(np.float64).transpose(1, 0, 2)
    scales = np.array(config.evidence_scales or [1.0] * len(FEATURE_MODALITIES))
    return np.stack([logits - np.tensordot(scales, evidence, 1), *evidence])


def calibrated_logits(scores: np.ndarray, config: Any) -> np.ndarray:
    """Return the logits that the model gives with these [`uncalibrated_scores`], of shape `(clips, num_labels)`."""
    scales = [1.0, *(config.evidence_scales or [1.0] * len(FEATURE_MODALITIES))][: len(scores)]
    return np.tensordot(scales, scores, 1) / config.temperature


def fit_scales(scores: np.ndarray, labels: np.ndarray) -> tuple[float, list[float]]:
    """Find the temperature and the scales of the evidence with the lowest penalized negative log-likelihood.

    Args:
        scores (`np.ndarray` of shape `(1 or 3, clips, num_labels)`): What [`uncalibrated_scores`] gives.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all in scope.

    Returns:
        `tuple`: The temperature, and the scales of audio and of video, 1 for a modality without evidence.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows, used = np.arange(len(labels)), [index for index, one in enumerate(scores) if index == 0 or one.any()]
    scores = scores[used]

    def loss_and_gradient(weights: np.ndarray):
        log_probabilities = log_softmax(np.tensordot(weights, scores, 1), axis=-1)
        errors = np.exp(log_probabilities)
        errors[rows, labels] -= 1
        loss = 0.5 * np.square(weights - 1).sum() - log_probabilities[rows, labels].sum()
        return loss / len(labels), (weights - 1 + (scores * errors).sum((1, 2))) / len(labels)

    start = np.ones(len(scores))
    weights = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=[_BOUNDS] * len(scores)).x
    scales = np.ones(1 + len(FEATURE_MODALITIES))
    scales[used] = weights / weights[0]
    return float(1 / weights[0]), scales[1:].tolist()


def coverage_thresholds(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Return for each coverage of 1 %, 2 %, … the probability from which on an intent is in the set.

    That of coverage c is the ceil((n + 1) c)-th highest probability of the right intent among n clips; where there are
    fewer, no set short of all intents has this coverage, and the list ends.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): The calibrated logits of clips not used for training.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all in scope.
    """
    from scipy.special import softmax

    right = np.sort(softmax(logits, axis=-1)[np.arange(len(labels)), labels])[::-1]
    ranks = (math.ceil((len(labels) + 1) * percent / 100 - 1e-9) for percent in _PERCENTS)
    return [float(right[rank - 1]) for rank in ranks if rank <= len(labels)]
