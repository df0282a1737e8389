"""Does a score of 0.8 mean right eight times in ten? Reliability, expected calibration error, temperature."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


NUM_BINS = 15


def confidence_and_correct(logits, labels, temperature=1.0):
    """
    Args:
        logits: (clips, num_labels).
        labels: (clips,) label ids, all of them in scope.
        temperature: what the logits are divided by.

    Returns:
        (clips,) greatest probability, (clips,) bool: whether that label is right.
    """
    probabilities = softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return probabilities.max(-1), probabilities.argmax(-1) == np.asarray(labels)


def reliability_bins(confidence, correct, num_bins=NUM_BINS):
    """
    Clips sorted by confidence into `num_bins` bins of equal width over (0, 1].

    Returns:
        list of `dict`, one for each bin that has a clip: `low`, `high` (its bounds), `clips`, `confidence` and
        `accuracy` (means over its clips).
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    return [
        {
            "low": number / num_bins,
            "high": (number + 1) / num_bins,
            "clips": int((index == number).sum()),
            "confidence": float(confidence[index == number].mean()),
            "accuracy": float(correct[index == number].mean()),
        }
        for number in range(num_bins)
        if (index == number).any()
    ]


def expected_calibration_error(confidence, correct, num_bins=NUM_BINS):
    """The gap between confidence and accuracy, averaged over clips bin by bin (Guo et al. 2017, arXiv 1706.04599)."""
    bins = reliability_bins(confidence, correct, num_bins)
    return sum(bin["clips"] * abs(bin["confidence"] - bin["accuracy"]) for bin in bins) / len(confidence)


def negative_log_likelihood(logits, labels, temperature=1.0):
    """Mean over clips of minus the log-probability of the right label."""
    log_probabilities = log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return float(-log_probabilities[np.arange(len(labels)), np.asarray(labels)].mean())


def fit_temperature(logits, labels):
    """
    The temperature, between 0.01 and 100, with the least negative log-likelihood (Guo et al. 2017, arXiv 1706.04599).
    Dividing logits by it changes no answer, only how sure the model says it is.

    Args:
        logits: (clips, num_labels) of the dev split.
        labels: (clips,) label ids, all of them in scope.

    Raises:
        ValueError: no clip, an out-of-scope one, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if not len(labels) or labels.min() < 0:
        raise ValueError("a temperature is fitted on in-scope clips, at least one; leave out clips with label -1")
    if not np.isfinite(logits).all():
        raise ValueError("the logits hold NaN or infinite values; look at the model before calibrating it")
    # The loss is convex in the inverse temperature, hence has one minimum in its logarithm.
    best = minimize_scalar(
        lambda log_temperature: negative_log_likelihood(logits, labels, np.exp(log_temperature)),
        bounds=(np.log(0.01), np.log(100)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))
