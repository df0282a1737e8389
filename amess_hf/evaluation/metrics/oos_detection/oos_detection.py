"""Out-of-scope detection: how well a score separates in-scope clips from all others."""

from amess_hf.evaluation.metrics import compute_oos_metrics, module


class OOSDetection(module.ClipMetric):
    """How well a score, higher = in scope, separates in-scope clips from out-of-scope ones, over all thresholds.

    Args:
        predictions (`list[float]`): The score of each clip, higher = in scope.
        references (`list[int]`): 1 for an in-scope clip, 0 for an out-of-scope one.

    Returns:
        `dict` of floats in [0, 1]: `auroc`, `aupr_in`, `aupr_out` (higher is better), and at thresholds that keep in-scope
        clips `fpr95`, `eer`, `der` (lower is better).

    Example:
        >>> metric = evaluate.load("amess_hf/evaluation/metrics/oos_detection")
        >>> metric.compute(predictions=[0.9, 0.7, 0.8, 0.1], references=[1, 1, 0, 0])["auroc"]
        0.75
    """

    prediction_type = "float64"  # rounding scores to float32 would make ties

    def _compute(self, predictions: list[float], references: list[int]):
        return compute_oos_metrics(predictions, references)
