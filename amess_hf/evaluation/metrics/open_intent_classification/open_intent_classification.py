"""Open intent classification: the known intents and one class for all that is out of scope."""

from amess_hf.evaluation.metrics import compute_open_classification_metrics, module


class OpenIntentClassification(module.ClipMetric):
    """Classification over the known intents and one open class that holds every out-of-scope clip.

    Args:
        predictions (`list[int]`): Predicted label ids, 0 and up, with `open_label` for "out of scope".
        references (`list[int]`): True label ids, likewise.
        open_label (`int`, *optional*, defaults to -1): The id that means "out of scope".

    Returns:
        `dict` of floats in [0, 1]: `accuracy`, `f1_known` (over the known intents), `f1_open` (of the open class), `f1`
        (over all of them).

    Example:
        >>> metric = evaluate.load("amess_hf/evaluation/metrics/open_intent_classification")
        >>> metric.compute(predictions=[0, 1, -1, -1], references=[0, 1, 1, -1])["f1_open"]
        0.6666666666666666
    """

    def _compute(self, predictions: list[int], references: list[int], open_label: int = -1):
        return compute_open_classification_metrics(predictions, references, open_label)
