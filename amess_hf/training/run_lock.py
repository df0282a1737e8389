"""Allow one run at a time in an output folder."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from ..processing_amess import write_text


LOCK_NAME = ".run.lock"
# Who holds the lock, for the error message of another run.
HOLDER_NAME = ".run.holder"


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock an output folder against other processes; the system releases the lock when this process ends.

    A process that already holds the lock may take it again.

    Args:
        folder (`str` or `os.PathLike`): The output folder; created if it does not exist.

    Raises:
        ValueError: Naming the folder and the process that holds it.
    """
    folder = os.path.realpath(folder)
    os.makedirs(folder, exist_ok=True)
    lock = FileLock(os.path.join(folder, LOCK_NAME), is_singleton=True)
    nested = lock.is_locked
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"`--output_dir` {folder} is in use by {_holder(folder)}; wait until it ends, or give another folder"
        ) from None
    try:
        if not nested:
            program, began = os.path.basename(sys.argv[0]), time.strftime("%Y-%m-%d %H:%M:%S")
            write_text(
                os.path.join(folder, HOLDER_NAME),
                f"process {os.getpid()} on {socket.gethostname()} ({program}, since {began})",
            )
        yield
    finally:
        lock.release()


def _holder(folder: str):
    try:
        with open(os.path.join(folder, HOLDER_NAME), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return "another process"
