"""The official label lists of MIntRec and MIntRec2.0, in the order of their authors' repositories."""

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


__all__ = ["LABELS", "MINTREC2_LABELS", "MINTREC_LABELS"]
