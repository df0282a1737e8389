"""In-scope intent classification: accuracy, and weighted and macro F1, precision and recall."""

from amess_hf.evaluation.metrics import compute_classification_metrics, module


class IntentClassification(module.ClipMetric):
    """What papers on multimodal intent recognition report for in-scope utterances: accuracy, F1, precision and recall.

    Args:
        predictions (`list[int]`): Predicted label ids, 0 and up.
        references (`list[int]`): True label ids, 0 and up.
        label_names (`list[str]`, *optional*): Names in id order. With them the result has `per_class`.

    Returns:
        `dict` of floats in [0, 1]: `accuracy`, `weighted_f1`, `weighted_precision`, `weighted_recall`, `f1`, `precision`,
        `recall` (the last three macro), and with `label_names` `per_class`: name -> `precision`, `recall`, `f1`, `support`.

    Example:
        >>> metric = evaluate.load("amess_hf/evaluation/metrics/intent_classification")
        >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])["accuracy"]
        0.6666666666666666
    """

    def _compute(self, predictions: list[int], references: list[int], label_names: list[str] | None = None):
        return compute_classification_metrics(predictions, references, label_names)
