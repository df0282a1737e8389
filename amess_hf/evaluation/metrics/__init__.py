"""The field's metrics as plain functions; `metrics.py` offers them to `evaluate`.

Classification and out-of-scope detection follow `utils/metrics.py` of thuiar/MIntRec2.0, so that values compare with
published ones; deviations are stated. Calibration follows Guo et al. 2017 (arXiv 1706.04599).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...configuration_amess import OUT_OF_SCOPE_ID


# Key -> name for readers.
CLASSIFICATION_METRICS = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
}
OOS_METRICS = {
    "auroc": "AUROC",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95": "FPR95",
    "eer": "EER",
    "der": "DER",
}
OPEN_METRICS = {"accuracy": "accuracy", "f1_known": "F1-known", "f1_open": "F1-open", "f1": "F1"}

# Bins of equal width over (0, 1] for the calibration error.
NUM_BINS = 15


def compute_classification_metrics(
    predictions: ArrayLike, references: ArrayLike, label_names: Sequence[str] | None = None
) -> dict:
    """Accuracy, F1, precision and recall of in-scope clips (class `Metrics`).

    A macro metric is the unweighted mean over the classes that occur in the references or the predictions; a weighted
    one weights the classes by their references. A class that is never predicted has precision 0; one that is predicted
    but never right has F1 0 and counts in the macro mean.

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, 0 and up.
        references (`np.ndarray` of shape `(clips,)`): True label ids, 0 and up.
        label_names (`Sequence[str]`, *optional*): Names in id order; adds `per_class`.

    Returns:
        `dict`: `accuracy`, `weighted_f1`, `weighted_precision`, `weighted_recall`, `f1`, `precision`, `recall` (the last
        three macro), each in [0, 1]; with `label_names` also `per_class`: name -> `precision`, `recall`, `f1`, `support`.

    Raises:
        ValueError: If lengths differ, or a label is not an integer or out of scope.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predictions, references = np.asarray(predictions), np.asarray(references)
    if min(predictions.min(), references.min()) < 0:
        raise ValueError("a label is out of scope (-1); use `open_intent_classification` or `oos_detection`")
    metrics = {"accuracy": float(accuracy_score(references, predictions))}
    for prefix, average in (("weighted_", "weighted"), ("", "macro")):
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0
        )
        metrics |= {f"{prefix}f1": float(f1), f"{prefix}precision": float(precision), f"{prefix}recall": float(recall)}
    if label_names is not None:
        columns = precision_recall_fscore_support(
            references, predictions, labels=range(len(label_names)), zero_division=0
        )
        rows = zip(label_names, *(column.tolist() for column in columns), strict=True)
        metrics["per_class"] = {
            name: {"precision": precision, "recall": recall, "f1": f1, "support": support}
            for name, precision, recall, f1, support in rows
        }
    return metrics


def compute_open_classification_metrics(
    predictions: ArrayLike, references: ArrayLike, open_label: int = OUT_OF_SCOPE_ID
) -> dict[str, float]:
    """Metrics over the known intents and one open class of all out-of-scope clips (class `OID_Metrics`).

    The F1 of each class that occurs in the references or the predictions; `f1_known` is its mean over the known classes,
    `f1_open` the F1 of the open class, `f1` the mean over all. The published code takes the last row of the confusion
    matrix for the open class and rounds to four digits; here `open_label` names it, and nothing is rounded.

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, `open_label` for "out of scope".
        references (`np.ndarray` of shape `(clips,)`): True label ids, likewise.
        open_label (`int`, *optional*, defaults to -1): The id that means "out of scope".

    Returns:
        `dict[str, float]`: `accuracy`, `f1_known`, `f1_open`, `f1`, each in [0, 1].

    Raises:
        ValueError: If lengths differ, a label is not an integer, or the references are all in or all out of scope.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predictions, references = np.asarray(predictions), np.asarray(references)
    _require_both(references != open_label, "in scope", "out of scope")
    classes = np.union1d(references, predictions)
    f1 = f1_score(references, predictions, labels=classes, average=None, zero_division=0)
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1_known": float(f1[classes != open_label].mean()),
        "f1_open": float(f1[classes == open_label].item()),
        "f1": float(f1.mean()),
    }


def in_scope_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute [`compute_classification_metrics`] of the in-scope clips of a split; empty if there is none.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope.
    """
    known = labels >= 0
    return compute_classification_metrics(logits[known].argmax(-1), labels[known]) if known.any() else {}


def generalized_accuracy(predictions: np.ndarray, references: np.ndarray, unseen: Sequence[int]) -> dict[str, float]:
    """Accuracy over seen and over unseen intents (generalized zero-shot, Xian et al., CVPR 2017, section 3.3).

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, among all labels.
        references (`np.ndarray` of shape `(clips,)`): True label ids.
        unseen (`Sequence[int]`): Ids of the labels that were not trained on.

    Returns:
        `dict[str, float]`: `seen_accuracy` and `unseen_accuracy`, means over clips, and their harmonic mean
        `harmonic_accuracy`.

    Raises:
        ValueError: If the clips are all of seen or all of unseen intents.
    """
    right, is_unseen = predictions == references, np.isin(references, unseen)
    _require_both(is_unseen, "of unseen intents", "of seen intents")
    seen, new = float(right[~is_unseen].mean()), float(right[is_unseen].mean())
    harmonic = 2 * seen * new / (seen + new) if seen + new else 0.0
    return {"seen_accuracy": seen, "unseen_accuracy": new, "harmonic_accuracy": harmonic}


def compute_oos_metrics(scores: ArrayLike, in_scope: ArrayLike) -> dict[str, float]:
    """Detection metrics over all thresholds, in-scope clips as the positives (class `OOD_Metrics`).

    - `auroc`: area under the ROC curve.
    - `aupr_in`, `aupr_out`: area under the precision-recall curve by the trapezoidal rule (not average precision), with
      in-scope clips as the positives, and with out-of-scope clips as the positives and the score negated.
    - `fpr95`: share of out-of-scope clips accepted at the highest threshold that keeps 95 % of the in-scope clips.
      Clips of equal score pass together; the published loop lets them pass in the order of a sort.
    - `eer`: the false-positive rate at the point of the ROC curve where it is nearest to the false-negative rate.
    - `der`: least `share_out * FNR + share_in * FPR` over the points that keep 95 %: shares and rates are paired as in
      the published code.

    The ROC points for `eer` and `der` are those of scikit-learn's `roc_curve` with its defaults, as published.

    Args:
        scores (`np.ndarray` of shape `(clips,)`): Finite scores, higher = in scope.
        in_scope (`np.ndarray` of shape `(clips,)`): True (1) for in-scope clips.

    Returns:
        `dict[str, float]`: The six metrics, each in [0, 1].

    Raises:
        ValueError: If lengths differ, a score is NaN or infinite, or one of the two kinds of clips is missing.
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    scores, in_scope = np.asarray(scores, dtype=np.float64), np.asarray(in_scope)
    if not np.isin(in_scope, (0, 1)).all():
        raise ValueError("`in_scope` holds values other than 0 (out of scope) and 1 (in scope)")
    in_scope = in_scope.astype(bool)
    _require_both(in_scope, "in scope", "out of scope")
    fpr, tpr, _ = roc_curve(in_scope, scores)
    every_fpr, every_tpr, _ = roc_curve(in_scope, scores, drop_intermediate=False)
    precision_in, recall_in, _ = precision_recall_curve(in_scope, scores)
    precision_out, recall_out, _ = precision_recall_curve(~in_scope, -scores)
    share_in, kept = in_scope.mean(), 0.95
    error = (1 - share_in) * (1 - tpr) + share_in * fpr
    return {
        "auroc": float(auc(fpr, tpr)),
        "aupr_in": float(auc(recall_in, precision_in)),
        "aupr_out": float(auc(recall_out, precision_out)),
        "fpr95": float(every_fpr[np.argmax(every_tpr >= kept)]),
        "eer": float(fpr[np.argmin(np.abs(fpr - (1 - tpr)))]),
        "der": float(error[tpr >= kept].min()),
    }


def compute_calibration_metrics(logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """How well the probability of an answer says whether it is right.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, all in scope.

    Returns:
        `dict[str, float]`: `expected_calibration_error`, the gap between confidence and accuracy, averaged over clips bin by
        bin, and `negative_log_likelihood`, the mean of the correct label's, in nats.
    """
    from scipy.special import log_softmax

    labels = np.asarray(labels)
    log_probabilities = log_softmax(np.asarray(logits, dtype=np.float64), axis=-1)
    confidence = np.exp(log_probabilities.max(-1))
    bins = np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence)
    gaps = np.bincount(bins, weights=confidence - (log_probabilities.argmax(-1) == labels))
    return {
        "expected_calibration_error": float(np.abs(gaps).sum() / len(labels)),
        "negative_log_likelihood": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
    }


def _require_both(rows: np.ndarray, kind: str, other: str):
    if rows.all() or not rows.any():
        raise ValueError(f"every clip is {kind if rows.all() else other}; give clips {kind} and {other}")
