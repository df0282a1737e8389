"""Open intent classification: the known intents and one class for everything out of scope."""

from amess_hf.evaluation.metrics import compute_open_classification_metrics, module


class OpenIntentClassification(module.ClipMetric):
    """Classification over the known intents and one open class that holds every out-of-scope clip."""

    function = staticmethod(compute_open_classification_metrics)
