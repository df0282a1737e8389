"""How metrics and modalities are named and formatted for readers."""

import re
from collections.abc import Sequence


MODALITY_NAMES = {"text": "words", "audio": "sound", "video": "picture"}

CLASSIFICATION_METRICS = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "weighted_precision": "weighted precision",
    "weighted_recall": "weighted recall",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
}
OOS_METRICS = {
    "auroc": "AUROC",
    "aupr_in": "AUPR-in",
    "aupr_out": "AUPR-out",
    "fpr95": "FPR95",
    "eer": "EER",
    "der": "DER",
}
OPEN_METRICS = {"accuracy": "accuracy", "f1_known": "F1-known", "f1_open": "F1-open", "f1": "F1"}


def modality_label(modalities: Sequence[str]) -> str:
    """Name a set of modalities, e.g. `"words + sound"`."""
    return " + ".join(MODALITY_NAMES[name] for name in modalities)


def percent(share: float) -> str:
    """Format a share in percent with two digits."""
    return f"{100 * share:.2f}"


def escape_markdown(text: str) -> str:
    """Escape a text, which may be a user's, so that Markdown shows it literally, on one line."""
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", " ".join(text.split()).replace("&", "&amp;"))
    # An underscore inside a word, as in the name of a clip, is not emphasis.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    return text.replace("<", "&lt;").replace(">", "&gt;")
