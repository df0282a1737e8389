"""Labels: the official lists, their coarse groups, and the label closest to a word."""

import difflib
from collections.abc import Sequence

from ..processing_amess import LABELS, MINTREC2_LABELS, MINTREC_LABELS


COARSE_LABELS = ["Emotion", "Goal"]

# Labels that "express emotions or attitudes"; all others serve to "achieve goals". The second line
# of names occurs in MIntRec2.0 only.
EMOTION_LABELS = frozenset(
    "Complain Praise Apologise Thank Criticize Care Agree Taunt Flaunt Joke Oppose "
    "Doubt Acknowledge Refuse Warn Emphasize".split()
)


def coarse_label(label: str) -> str:
    """Return `"Emotion"` or `"Goal"` for a label of MIntRec or MIntRec2.0."""
    return "Emotion" if label in EMOTION_LABELS else "Goal"


def nearest(value: str, names: Sequence[str]) -> str:
    """Return the name most similar to `value`, ignoring case; the first one if none is similar."""
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(value.casefold(), by_folded, n=1, cutoff=0.0)
    return by_folded[close[0]] if close else names[0]


__all__ = [
    "COARSE_LABELS",
    "EMOTION_LABELS",
    "LABELS",
    "MINTREC2_LABELS",
    "MINTREC_LABELS",
    "coarse_label",
    "nearest",
]
