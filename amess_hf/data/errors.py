"""How the readers of data say what is wrong: in one line, which begins with the file."""

from collections.abc import Sequence
from typing import Any


def require(condition: Any, message: str) -> None:
    """Raise `ValueError` with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a message of one line."""
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__


def first_of(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` of `names` on one line, for a message, with `...` if there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
