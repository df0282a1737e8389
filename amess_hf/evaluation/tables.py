"""Tables of results: Markdown for readers, CSV files at full precision."""

import csv
import os
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

from ..processing_amess import plain_cell, written_aside


def percent(share: float) -> str:
    """Format a share in percent with two digits."""
    return f"{100 * share:.2f}"


def escape_markdown(text: str) -> str:
    """Escape a text, which may be a user's, so that Markdown shows it literally, on one line."""
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", " ".join(text.split()).replace("&", "&amp;"))
    # An underscore inside a word, as in the name of a clip, is not emphasis.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # A bare address is not a link.
    text = re.sub(r"(?i)\b(www)\.", r"\1&#46;", text.replace("://", ":&#47;&#47;"))
    return text.replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]], left: Container[int] = (0,)) -> str:
    """Format a Markdown table, with a final line break; columns in `left` hold words, the others numbers."""
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, rule, *rows))


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, through a temporary file; `None` is an empty cell, and no cell is a formula (`plain_cell`)."""
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(map(plain_cell, row) for row in (header, *rows))
