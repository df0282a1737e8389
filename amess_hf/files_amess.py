"""Atomic writes of files and folders: under a temporary name first, which is then changed."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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


@contextmanager
def folder_written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a new folder beside `path`, which gets the name `path` when the block ends.

    An error inside the block removes the new folder.

    Args:
        path: The folder to write; missing parents are made.

    Yields:
        The folder to write to.

    Raises:
        ValueError: If `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not empty; give another folder, or remove it")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to the file `path` as UTF-8, through a temporary file."""
    with written_aside(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path: str | os.PathLike, content: Any, **options: Any) -> None:
    """Write `content` as indented JSON to the file `path`, through a temporary file; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(content, **{"indent": 2, "ensure_ascii": False, **options}) + "\n")
