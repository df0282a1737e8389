"""In-scope intent classification: accuracy, and weighted and macro F1, precision and recall."""

from amess_hf.evaluation.metrics import compute_classification_metrics, module


class IntentClassification(module.ClipMetric):
    """The metrics of the literature for in-scope utterances: accuracy, F1, precision and recall."""

    function = staticmethod(compute_classification_metrics)
