"""Which descriptors this process has open."""

from __future__ import annotations

import contextlib
import os


def open_descriptors() -> set[tuple[int, str]]:
    """The number of each open descriptor, and what it is open on.

    Take the difference of two such sets, not of their sizes: what an earlier test has left to the
    collector or to a thread may be closed at any time.
    """
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(FileNotFoundError):  # the listing's own, closed since
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found
