"""Out-of-scope detection: how well a score separates in-scope clips from all others."""

from amess_hf.evaluation.metrics import compute_oos_metrics, module


class OOSDetection(module.ClipMetric):
    """How well scores (`predictions`), higher = in scope, separate in-scope clips (`references` 1) from others (0)."""

    function = staticmethod(compute_oos_metrics)
    prediction_type = "float64"  # rounding scores to float32 would make ties
