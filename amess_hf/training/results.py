"""What a run leaves behind: predictions by clip and figures."""

import csv
import json
import os

import numpy as np

from ..evaluation.metrics import compute_classification_metrics


def write_predictions(path, ids, labels, predictions, scores):
    """Write `id`, `label`, `prediction`, `score` as tab-separated text, aside first and then under its name.

    Args:
        path (`str`): The file.
        ids (`list[str]`): Clip ids.
        labels (`list[str]`): Names of the true intents.
        predictions (`list[str]`): Names of the answers.
        scores (`list[float]`): Probability of each answer.
    """
    with open(f"{path}.partial", "w", encoding="utf-8", newline="") as file:
        # As MIntRec's own tables: nothing is quoted, so that a quotation mark is a character and white space a blank.
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", "score"])
        for *names, score in zip(ids, labels, predictions, scores, strict=True):
            writer.writerow([*(" ".join(str(name).split()) for name in names), f"{score:.6f}"])
    os.replace(f"{path}.partial", path)


def answers(logits, names):
    """Names and probabilities of the best labels.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        names (`list[str]`): Names of the label ids.

    Returns:
        `tuple` of `list[str]` and `np.ndarray` of shape `(clips,)`.
    """
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    return [names[index] for index in logits.argmax(-1)], probabilities.max(-1)


def in_scope_metrics(logits, labels):
    """The in-scope figures of a split; none where no clip is in scope.

    Args:
        logits (`np.ndarray` of shape `(clips, num_labels)`): Scores.
        labels (`np.ndarray` of shape `(clips,)`): Label ids, -1 out of scope.

    Returns:
        `dict[str, float]`: see [`~amess_hf.evaluation.metrics.compute_classification_metrics`].
    """
    in_scope = labels >= 0
    return compute_classification_metrics(logits[in_scope].argmax(-1), labels[in_scope]) if in_scope.any() else {}


def update_results(output_dir, figures, split=None):
    """Add `figures` to `all_results.json` in `output_dir`, and return what it then holds. With a `split`, they are also written
    to `{split}_results.json`, as the Trainer's `save_metrics` does.
    """
    if split is not None:
        write_json(os.path.join(output_dir, f"{split}_results.json"), figures)
    path = os.path.join(output_dir, "all_results.json")
    results = {}
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            try:
                results = json.load(file)
            except ValueError as error:
                raise ValueError(f"{path} is no JSON ({error}); remove it") from None
    results.update(figures)
    write_json(path, results)
    return results


def write_json(path, figures):
    """Write aside first, and then under its name."""
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        json.dump(figures, file, indent=4, sort_keys=True)
    os.replace(f"{path}.partial", path)


def generalized_accuracy(predictions, references, unseen):
    """Accuracy over intents that were trained on and intents that were not (generalized zero-shot; Xian et al., CVPR 2017,
    section 3.3): the mean over clips of each kind, and the harmonic mean of both.

    Args:
        predictions (`np.ndarray` of shape `(clips,)`): Predicted label ids, among all labels.
        references (`np.ndarray` of shape `(clips,)`): True label ids.
        unseen (`list[int]`): Ids of the labels that were not trained on.

    Returns:
        `dict[str, float]`: `seen_accuracy`, `unseen_accuracy`, `harmonic_accuracy`.

    Raises:
        `ValueError`: if there is no clip of one kind.
    """
    right, is_unseen = predictions == references, np.isin(references, unseen)
    if is_unseen.all() or not is_unseen.any():
        raise ValueError("the clips are all of seen or all of unseen intents; there must be some of each")
    seen, new = float(right[~is_unseen].mean()), float(right[is_unseen].mean())
    harmonic = 2 * seen * new / (seen + new) if seen + new else 0.0
    return {"seen_accuracy": seen, "unseen_accuracy": new, "harmonic_accuracy": harmonic}
