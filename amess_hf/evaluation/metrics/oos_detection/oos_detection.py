"""Out-of-scope detection: how well a score separates in-scope clips from all others."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve


_DESCRIPTION = """\
How well a score, higher = in scope, separates in-scope clips from out-of-scope ones, over all thresholds: AUROC,
AUPR-in, AUPR-out, and, at thresholds that keep in-scope clips, FPR95, EER and DER.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[float]`): the score of each clip, higher = in scope.
    references (`list[int]`): 1 for an in-scope clip, 0 for an out-of-scope one.
Returns:
    `dict` of floats in [0, 1]: `auroc`, `aupr_in`, `aupr_out` (higher is better), `fpr95`, `eer`, `der` (lower is better).
Example:
    >>> metric = evaluate.load("amess_hf/evaluation/metrics/oos_detection")
    >>> metric.compute(predictions=[0.9, 0.7, 0.8, 0.1], references=[1, 1, 0, 0])["auroc"]
    0.75
"""

_CITATION = """\
@inproceedings{zhang2024mintrec,
  title     = {{MIntRec2.0}: A Large-scale Benchmark Dataset for Multimodal Intent Recognition and Out-of-scope
               Detection in Conversations},
  author    = {Zhang, Hanlei and Wang, Xin and Xu, Hua and Zhou, Qianrui and Gao, Kai and Su, Jianhua and Zhao, Jinyue
               and Li, Wenrui and Chen, Yanting},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}
"""

_KEPT = 0.95


def compute_oos_metrics(scores, in_scope):
    """
    The detection figures of `utils/metrics.py` in thuiar/MIntRec2.0 (class `OOD_Metrics`), in-scope clips positive:

    - `auroc`: area under the ROC curve.
    - `aupr_in`, `aupr_out`: area under the precision-recall curve, by the trapezoidal rule (not average precision), with
      in-scope clips as the positives, and with out-of-scope clips as the positives and the score negated.
    - `fpr95`: share of out-of-scope clips let in at the first (highest) threshold that keeps at least 95 % of the
      in-scope clips. Clips of equal score pass together; the published loop would let them pass in the order of a sort.
    - `eer`: the false-positive rate at the point of the ROC curve where it is nearest to the false-negative rate.
    - `der`: over the points that keep at least 95 %, the least `share_out * FNR + share_in * FPR`. The published code
      pairs the shares and the rates this way round; so do the published figures.

    The ROC points for `eer` and `der` are scikit-learn's `roc_curve` with its defaults, as published.

    Args:
        scores: (clips,) finite scores, higher = in scope.
        in_scope: (clips,) true (1) for in-scope clips.

    Returns:
        `dict`: `auroc`, `aupr_in`, `aupr_out`, `fpr95`, `eer`, `der`, each in [0, 1].

    Raises:
        ValueError: lengths differ, a score is NaN or infinite, or one of the two kinds of clips is missing.
    """
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


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class OOSDetection(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # float64: rounding scores to float32 would make ties
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/thuiar/MIntRec2.0/blob/main/utils/metrics.py"],
        )

    def _compute(self, predictions, references):
        return compute_oos_metrics(predictions, references)
