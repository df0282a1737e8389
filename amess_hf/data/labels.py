"""The official label lists of MIntRec and MIntRec2.0, in the order of their authors' repositories."""

import difflib
from collections.abc import Sequence


MINTREC_LABELS = [
    "Complain",
    "Praise",
    "Apologise",
    "Thank",
    "Criticize",
    "Agree",
    "Taunt",
    "Flaunt",
    "Joke",
    "Oppose",
    "Comfort",
    "Care",
    "Inform",
    "Advise",
    "Arrange",
    "Introduce",
    "Leave",
    "Prevent",
    "Greet",
    "Ask for help",
]

MINTREC2_LABELS = [
    "Acknowledge",
    "Advise",
    "Agree",
    "Apologise",
    "Arrange",
    "Ask for help",
    "Asking for opinions",
    "Care",
    "Comfort",
    "Complain",
    "Confirm",
    "Criticize",
    "Doubt",
    "Emphasize",
    "Explain",
    "Flaunt",
    "Greet",
    "Inform",
    "Introduce",
    "Invite",
    "Joke",
    "Leave",
    "Oppose",
    "Plan",
    "Praise",
    "Prevent",
    "Refuse",
    "Taunt",
    "Thank",
    "Warn",
]

LABELS = {"mintrec": MINTREC_LABELS, "mintrec2.0": MINTREC2_LABELS}

COARSE_LABELS = ["Emotion", "Goal"]

# Labels that "express emotions or attitudes"; every other label is there to "achieve goals". The second line
# of names occurs in MIntRec2.0 only.
EMOTION_LABELS = frozenset(
    "Complain Praise Apologise Thank Criticize Care Agree Taunt Flaunt Joke Oppose "
    "Doubt Acknowledge Refuse Warn Emphasize".split()
)


def coarse_label(label: str) -> str:
    """Return `"Emotion"` or `"Goal"` for a label of MIntRec or MIntRec2.0."""
    return "Emotion" if label in EMOTION_LABELS else "Goal"


def nearest(value: str, names: Sequence[str]) -> str:
    """Return the name most like `value` without regard to case; the first one where none is alike."""
    by_folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(value.casefold(), by_folded, n=1, cutoff=0.0)
    return by_folded[close[0]] if close else names[0]
