"""In-scope intent classification: accuracy, and weighted and macro F1, precision and recall."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, precision_recall_fscore_support


_DESCRIPTION = """\
The figures that papers on multimodal intent recognition report for in-scope utterances: accuracy, weighted F1,
weighted precision, weighted recall, and macro F1, precision and recall.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): predicted label ids, 0 and up.
    references (`list[int]`): true label ids, 0 and up.
    label_names (`list[str]`, *optional*): names in id order. With them the result has `per_class`.
Returns:
    `dict` of floats in [0, 1]: `accuracy`, `weighted_f1`, `weighted_precision`, `weighted_recall`, `f1`, `precision`,
    `recall` (the last three macro), and on request `per_class`: name -> `precision`, `recall`, `f1`, `support`.
Example:
    >>> metric = evaluate.load("amess_hf/evaluation/metrics/intent_classification")
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 1, 0])["accuracy"]
    0.6666666666666666
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


def _check_labels(name, values):
    values = np.asarray(values)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"`{name}` has shape {values.shape}; give one label id for each clip, at least one clip")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"`{name}` holds {values.dtype}; give integer label ids")
    if values.min() < 0:
        row = int(values.argmin())
        raise ValueError(
            f"`{name}` row {row} is {values[row]}, which is no in-scope label; leave out-of-scope clips to "
            "`open_intent_classification` or `oos_detection`"
        )
    return values


def compute_classification_metrics(predictions, references, label_names=None):
    """
    The in-scope figures, as `utils/metrics.py` of thuiar/MIntRec2.0 (class `Metrics`) computes them with scikit-learn.

    A macro figure is the unweighted mean over the classes that occur in the references or in the predictions; a
    weighted one weights the classes by their number of references. A class that is never predicted has precision 0, a
    class that is predicted but never right F1 0 (it counts in the macro mean, with support 0).

    Args:
        predictions: (clips,) predicted label ids, 0 and up.
        references: (clips,) true label ids, 0 and up.
        label_names: names in id order. With them the result also has `per_class`, for all of them, whether they occur
            or not.

    Returns:
        `dict`: `accuracy`, `weighted_f1`, `weighted_precision`, `weighted_recall`, `f1`, `precision`, `recall` (macro),
        each in [0, 1]; with `label_names` also `per_class`, name -> `precision`, `recall`, `f1`, `support`.

    Raises:
        ValueError: lengths differ, nothing to score, a label that is no integer or negative, or one beyond
            `label_names`.
    """
    predictions, references = _check_labels("predictions", predictions), _check_labels("references", references)
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} `predictions` for {len(references)} `references`; give one for each clip"
        )

    metrics = {"accuracy": float(accuracy_score(references, predictions))}
    for prefix, average in (("weighted_", "weighted"), ("", "macro")):
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0
        )
        metrics |= {f"{prefix}f1": float(f1), f"{prefix}precision": float(precision), f"{prefix}recall": float(recall)}
    if label_names is not None:
        metrics["per_class"] = _per_class(predictions, references, label_names)
    return metrics


def _per_class(predictions, references, label_names):
    highest = max(predictions.max(), references.max())
    if highest >= len(label_names):
        raise ValueError(f"label id {highest} has no name: `label_names` has {len(label_names)}")
    columns = precision_recall_fscore_support(
        references, predictions, labels=range(len(label_names)), average=None, zero_division=0
    )
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
        for name, precision, recall, f1, support in zip(label_names, *columns, strict=True)
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class IntentClassification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://github.com/thuiar/MIntRec2.0/blob/main/utils/metrics.py"],
        )

    def _compute(self, predictions, references, label_names=None):
        return compute_classification_metrics(predictions, references, label_names)
