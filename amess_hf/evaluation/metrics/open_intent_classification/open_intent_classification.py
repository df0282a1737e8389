"""Open intent classification: the known intents and one class for all that is out of scope."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score


_DESCRIPTION = """\
Classification over the known intents and one open class that holds every out-of-scope clip: accuracy, F1 over the known
intents, F1 of the open class, and F1 over all of them.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[int]`): predicted label ids, 0 and up, and `open_label` for "out of scope".
    references (`list[int]`): true label ids, likewise.
    open_label (`int`, *optional*, defaults to -1): the id that means "out of scope".
Returns:
    `dict` of floats in [0, 1]: `accuracy`, `f1_known`, `f1_open`, `f1`.
Example:
    >>> metric = evaluate.load("amess_hf/evaluation/metrics/open_intent_classification")
    >>> metric.compute(predictions=[0, 1, -1, -1], references=[0, 1, 1, -1])["f1_open"]
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


def compute_open_classification_metrics(predictions, references, open_label=-1):
    """
    The figures for known intents and one open class, as `utils/metrics.py` of thuiar/MIntRec2.0 (class `OID_Metrics`)
    defines them: F1 of each class that occurs in the references or in the predictions; `f1_known` is its mean over the
    known classes, `f1_open` the F1 of the open class, `f1` the mean over all, the open one included.

    The published code takes the last row of the confusion matrix for the open class, and rounds to four digits; here
    the open class is named by `open_label`, wherever it sorts, and nothing is rounded.

    Args:
        predictions: (clips,) predicted label ids, and `open_label` for "out of scope".
        references: (clips,) true label ids, likewise.
        open_label: the id that means "out of scope"; -1 in the examples that `load_mintrec` returns.

    Returns:
        `dict`: `accuracy`, `f1_known`, `f1_open`, `f1`, each in [0, 1].

    Raises:
        ValueError: lengths differ, nothing to score, a label that is no integer, no out-of-scope clip among the
            references, or no in-scope one (`f1_open` or `f1_known` would mean nothing).
    """
    predictions, references = np.asarray(predictions), np.asarray(references)
    for name, values in (("predictions", predictions), ("references", references)):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"`{name}` has shape {values.shape}; give one label id for each clip, at least one clip")
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"`{name}` holds {values.dtype}; give integer label ids")
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} `predictions` for {len(references)} `references`; give one for each clip"
        )
    if not (references == open_label).any():
        raise ValueError(
            f"no clip of the `references` is out of scope (label {open_label}); load them with scope='all', or use "
            "`intent_classification`"
        )
    if (references == open_label).all():
        raise ValueError(f"every clip of the `references` is out of scope (label {open_label}); load scope='all'")

    classes = np.union1d(references, predictions)
    f1 = f1_score(references, predictions, labels=classes, average=None, zero_division=0)
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "f1_known": float(f1[classes != open_label].mean()),
        "f1_open": float(f1[classes == open_label].item()),
        "f1": float(f1.mean()),
    }


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class OpenIntentClassification(evaluate.Metric):
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

    def _compute(self, predictions, references, open_label=-1):
        return compute_open_classification_metrics(predictions, references, open_label)
