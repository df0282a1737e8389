"""Tables of results: Markdown for readers, CSV files at full precision."""

import csv
import os
from collections.abc import Container, Iterable, Sequence
from typing import Any

from ..processing_amess import written_aside


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]], left: Container[int] = (0,)) -> str:
    """Format a Markdown table.

    Args:
        header (`Sequence[str]`): Names of the columns.
        rows (`Iterable`): Cells of each row.
        left (`Container[int]`, *optional*, defaults to `(0,)`): Columns of words; the others are aligned right, as numbers.

    Returns:
        `str`: The table, with a final line break.
    """
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in (header, rule, *rows))


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, through a temporary file; `None` is an empty cell."""
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
