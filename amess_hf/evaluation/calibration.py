"""Calibration: whether a probability of 0.8 means correct eight times in ten, and the temperature that brings it closer."""

import numpy as np
from numpy.typing import ArrayLike


NUM_BINS = 15


def confidence_and_correct(
    logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Compute how confident a model is in each answer, and whether the answer is correct.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all of them in scope.
        temperature (`float`, *optional*, defaults to 1.0): Divisor of the logits.

    Returns:
        `tuple` of two `np.ndarray` of shape `(clips,)`: the highest probability, and `bool`, whether that label is
        correct.
    """
    from scipy.special import softmax

    probabilities = softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return probabilities.max(-1), probabilities.argmax(-1) == np.asarray(labels)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Average the gap between confidence and accuracy over clips, bin by bin (Guo et al. 2017, arXiv 1706.04599).

    Args:
        confidence (`np.ndarray` of shape `(clips,)`): Probability of each answer.
        correct (`np.ndarray` of shape `(clips,)`): Whether each answer is correct.
        num_bins (`int`, *optional*, defaults to 15): Number of bins of equal width over (0, 1].

    Returns:
        `float`: The error in [0, 1].
    """
    bins = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence)
    gaps = np.bincount(bins, weights=np.asarray(confidence) - np.asarray(correct))
    return float(np.abs(gaps).sum() / len(bins))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> float:
    """Compute the mean negative log-probability of the correct label.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all of them in scope.
        temperature (`float`, *optional*, defaults to 1.0): Divisor of the logits.

    Returns:
        `float`: The mean, in nats.
    """
    from scipy.special import log_softmax

    log_probabilities = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return float(-log_probabilities[np.arange(len(labels)), np.asarray(labels)].mean())


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the temperature with the lowest negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).

    Dividing logits by it changes no answer, only how confident the model is.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores, usually of the dev split.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all of them in scope.

    Returns:
        `float`: The temperature, between 0.01 and 100.

    Raises:
        ValueError: If there is no clip, a clip is out of scope, or a logit is not finite.
    """
    from scipy.optimize import minimize_scalar

    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or labels.min() < 0:
        raise ValueError("a temperature is fitted on in-scope clips, at least one; leave out clips with label -1")
    if not np.isfinite(logits).all():
        raise ValueError("the logits hold NaN or infinite values; check the model before calibrating it")
    # The loss is convex in the inverse temperature, so it has a single minimum in its logarithm.
    best = minimize_scalar(
        lambda log_temperature: negative_log_likelihood(logits, labels, np.exp(log_temperature)),
        bounds=(np.log(0.01), np.log(100)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))
