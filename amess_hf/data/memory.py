"""Memory of a process that reads data sets larger than it should hold."""

import ctypes
import mmap
import sys
from pathlib import Path


_MADV_DONTNEED = 4


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, mapped files included; 0 where `/proc` is not there."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


def release_mapped_pages(suffix: str = ".arrow") -> int:
    """Give back the resident pages of the files that this process has mapped and whose name ends in `suffix`.

    `datasets` maps its Arrow files. Every page that has been read counts as memory of the process until the system is
    short of it, so after one epoch a process seems to hold the whole data set. Nothing is lost here: the pages stay in
    the system's file cache and come back when they are read again, and arrays that look at them stay valid.

    Returns:
        Bytes of address range released; 0 where this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    released = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *_ = line.split(maxsplit=2)
        # Only what cannot be written: a page that can be may hold changes that are in no file.
        if "w" not in permissions and line.endswith(suffix):
            start, end = (int(part, 16) for part in span.split("-"))
            if libc.madvise(start, end - start, _MADV_DONTNEED) == 0:
                released += end - start
    return released


class PageReleaser:
    """Calls [`release_mapped_pages`] each time that `every` bytes have been read.

    Args:
        every: Bytes after which pages are released: about what the process holds of a mapped data set at most.
    """

    def __init__(self, every: int = 32 * 2**20):
        self.every = every
        self.pending = 0

    def __call__(self, bytes_read: int) -> None:
        self.pending += bytes_read
        if self.pending >= self.every:
            release_mapped_pages()
            self.pending = 0
