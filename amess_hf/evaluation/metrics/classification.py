"""Metrics of predicted intents: in scope, with an open class, and over intents that were not trained on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ...configuration_amess import OUT_OF_SCOPE_ID


def compute_classification_metrics(
    predictions: ArrayLike, references: ArrayLike, label_names: Sequence[str] | None = None
) -> dict:
    """Accuracy, F1, precision and recall of in-scope clips, as class `Metrics` in `utils/metrics.py` of thuiar/MIntRec2.0.

    A macro metric is the unweighted mean over the classes that occur in the references or in the predictions; a weighted
    one weights the classes by their number of references. A class that is never predicted has precision 0; a class that
    is predicted but never right has F1 0 (it counts in the macro mean, with support 0).

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, 0 and up.
        references (`np.ndarray` of shape `(clips,)`): True label ids, 0 and up.
        label_names (`Sequence[str]`, *optional*):
            Names in id order. With them the result has `per_class`, for all of them, whether they occur or not.

    Returns:
        `dict`: `accuracy`, `weighted_f1`, `weighted_precision`, `weighted_recall`, `f1`, `precision`, `recall` (the last
        three macro), each in [0, 1]; with `label_names` also `per_class`, a `dict` of name -> `precision`, `recall`, `f1`,
        `support`.

    Raises:
        ValueError: If lengths differ, there is no clip, a label is not an integer or negative, or a label id has no name.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    predictions, references = _label_ids(predictions, references)
    for name, values in (("predictions", predictions), ("references", references)):
        if values.min() < 0:
            row = int(values.argmin())
            raise ValueError(
                f"`{name}` row {row} is {values[row]}, which is not an in-scope label; leave out-of-scope clips to "
                "`open_intent_classification` or `oos_detection`"
            )
    metrics = {"accuracy": float(accuracy_score(references, predictions))}
    for prefix, average in (("weighted_", "weighted"), ("", "macro")):
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0
        )
        metrics |= {f"{prefix}f1": float(f1), f"{prefix}precision": float(precision), f"{prefix}recall": float(recall)}
    if label_names is not None:
        highest = max(predictions.max(), references.max())
        if highest >= len(label_names):
            raise ValueError(f"label id {highest} has no name; `label_names` has {len(label_names)}")
        columns = precision_recall_fscore_support(
            references, predictions, labels=range(len(label_names)), average=None, zero_division=0
        )
        metrics["per_class"] = {
            name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "support": int(support)}
            for name, precision, recall, f1, support in zip(label_names, *columns, strict=True)
        }
    return metrics


def compute_open_classification_metrics(
    predictions: ArrayLike, references: ArrayLike, open_label: int = OUT_OF_SCOPE_ID
) -> dict[str, float]:
    """Metrics over the known intents and one open class that holds every out-of-scope clip.

    As class `OID_Metrics` in `utils/metrics.py` of thuiar/MIntRec2.0: the F1 of each class that occurs in the references
    or in the predictions; `f1_known` is its mean over the known classes, `f1_open` the F1 of the open class, `f1` the mean
    over all of them. The published code takes the last row of the confusion matrix for the open class, and rounds to four
    digits; here `open_label` names the open class, and nothing is rounded.

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, with `open_label` for "out of scope".
        references (`np.ndarray` of shape `(clips,)`): True label ids, likewise.
        open_label (`int`, *optional*, defaults to -1): The id that means "out of scope".

    Returns:
        `dict[str, float]`: `accuracy`, `f1_known`, `f1_open`, `f1`, each in [0, 1].

    Raises:
        ValueError: If lengths differ, there is no clip, a label is not an integer, or the references have no out-of-scope
            or no in-scope clip (`f1_open` or `f1_known` would mean nothing).
    """
    from sklearn.metrics import accuracy_score, f1_score

    predictions, references = _label_ids(predictions, references)
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


def in_scope_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the classification metrics of the in-scope clips of a split.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 for out of scope.

    Returns:
        `dict[str, float]`: See [`compute_classification_metrics`]; empty if no clip is in scope.
    """
    in_scope = labels >= 0
    return compute_classification_metrics(logits[in_scope].argmax(-1), labels[in_scope]) if in_scope.any() else {}


def generalized_accuracy(predictions: np.ndarray, references: np.ndarray, unseen: Sequence[int]) -> dict[str, float]:
    """Compute the accuracy over intents that were trained on and intents that were not.

    Generalized zero-shot classification (Xian et al., CVPR 2017, section 3.3): the mean over the clips of each kind, and
    the harmonic mean of both.

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, among all labels.
        references (`np.ndarray` of shape `(clips,)`): True label ids.
        unseen (`Sequence[int]`): Ids of the labels that were not trained on.

    Returns:
        `dict[str, float]`: `seen_accuracy`, `unseen_accuracy`, `harmonic_accuracy`.

    Raises:
        ValueError: If there are no clips of one kind.
    """
    right, is_unseen = predictions == references, np.isin(references, unseen)
    if is_unseen.all() or not is_unseen.any():
        raise ValueError("the clips are all of seen or all of unseen intents; there must be some of each")
    seen, new = float(right[~is_unseen].mean()), float(right[is_unseen].mean())
    harmonic = 2 * seen * new / (seen + new) if seen + new else 0.0
    return {"seen_accuracy": seen, "unseen_accuracy": new, "harmonic_accuracy": harmonic}


def _label_ids(predictions: ArrayLike, references: ArrayLike):
    """Return both as integer arrays of equal length."""
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
    return predictions, references
