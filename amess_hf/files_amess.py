"""Atomic file writes: to a temporary file first, which is then renamed."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path in the folder of `path`; what is written there becomes `path` when the block ends.

    An error inside the block removes the temporary file and leaves what `path` held before.

    Args:
        path: The file to write.

    Yields:
        The path to write to.
    """
    folder, name = os.path.split(os.fspath(path))
    partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to the file `path` as UTF-8, through a temporary file."""
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> None:
    """Write `content` as indented JSON to the file `path`, through a temporary file; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **{"indent": 2, "ensure_ascii": False, **options}) + "\n")
