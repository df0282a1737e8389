"""Metrics of out-of-scope detection: how well a score separates in-scope clips from all others."""

import numpy as np
from numpy.typing import ArrayLike


_KEPT = 0.95


def compute_oos_metrics(scores: ArrayLike, in_scope: ArrayLike) -> dict[str, float]:
    """Detection metrics over all thresholds, as class `OOD_Metrics` in `utils/metrics.py` of thuiar/MIntRec2.0.

    In-scope clips are the positives:

    - `auroc`: area under the ROC curve.
    - `aupr_in`, `aupr_out`: area under the precision-recall curve, by the trapezoidal rule (not average precision), with
      in-scope clips as the positives, and with out-of-scope clips as the positives and the score negated.
    - `fpr95`: share of out-of-scope clips accepted at the first (highest) threshold that keeps at least 95 % of the
      in-scope clips. Clips of equal score pass together; the published loop lets them pass in the order of a sort.
    - `eer`: the false-positive rate at the point of the ROC curve where it is nearest to the false-negative rate.
    - `der`: over the points that keep at least 95 %, the least `share_out * FNR + share_in * FPR`. The published code
      pairs the shares and the rates this way; so do the published metrics.

    The ROC points for `eer` and `der` are those of scikit-learn's `roc_curve` with its defaults, as published.

    Args:
        scores (`np.ndarray` of shape `(clips,)`): Finite scores, higher = in scope.
        in_scope (`np.ndarray` of shape `(clips,)`): True (1) for in-scope clips.

    Returns:
        `dict[str, float]`: `auroc`, `aupr_in`, `aupr_out`, `fpr95`, `eer`, `der`, each in [0, 1].

    Raises:
        ValueError: If lengths differ, a score is NaN or infinite, or one of the two kinds of clips is missing.
    """
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    scores, in_scope = np.asarray(scores, dtype=np.float64), np.asarray(in_scope)
    if scores.ndim != 1 or scores.shape != in_scope.shape:
        raise ValueError(
            f"`scores` has shape {scores.shape}, `in_scope` {in_scope.shape}; give one of each for a clip"
        )
    if not np.isin(in_scope, (0, 1)).all():
        raise ValueError("`in_scope` holds values other than 0 (out of scope) and 1 (in scope)")
    if not np.isfinite(scores).all():
        raise ValueError(f"the score of row {int(np.argmin(np.isfinite(scores)))} is NaN or infinite")
    in_scope = in_scope.astype(bool)
    if in_scope.all() or not in_scope.any():
        kind = "out-of-scope" if in_scope.all() else "in-scope"
        raise ValueError(f"there is no {kind} clip among {len(scores)}; detection is scored on both, load scope='all'")

    false_positive_rate, true_positive_rate, _ = roc_curve(in_scope, scores)
    every_false_positive_rate, every_true_positive_rate, _ = roc_curve(in_scope, scores, drop_intermediate=False)
    first = np.argmax(every_true_positive_rate >= _KEPT)
    precision_in, recall_in, _ = precision_recall_curve(in_scope, scores)
    precision_out, recall_out, _ = precision_recall_curve(~in_scope, -scores)
    false_negative_rate = 1 - true_positive_rate
    nearest = np.argmin(np.abs(false_positive_rate - false_negative_rate))
    share_in = in_scope.mean()
    error = (1 - share_in) * false_negative_rate + share_in * false_positive_rate
    return {
        "auroc": float(auc(false_positive_rate, true_positive_rate)),
        "aupr_in": float(auc(recall_in, precision_in)),
        "aupr_out": float(auc(recall_out, precision_out)),
        "fpr95": float(every_false_positive_rate[first]),
        "eer": float(false_positive_rate[nearest]),
        "der": float(error[true_positive_rate >= _KEPT].min()),
    }
