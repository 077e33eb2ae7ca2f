"""Local temporary files for objects that are uploaded when they are complete.

Each is locked (flock) by the process that writes it for as long as it lives, so the next process can tell
what a killed one left from what another is still writing.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from contextlib import suppress

_PREFIX = "ibt-spool-"

# Between the making of a file and its locking nobody holds it: such a young one is left alone.
_UNLOCKED_AGE_SECONDS = 60


def make_spool_file(directory: str | None) -> tuple[int, str]:
    """Make and lock an empty file that only this user can read.

    Args:
        directory: where; None is the system's place for temporary files.

    Returns:
        The descriptor, which holds the lock until it is closed, and the path.

    Raises:
        OSError: there is no room, or no permission.
    """
    descriptor, fs_path = tempfile.mkstemp(prefix=_PREFIX, dir=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        os.unlink(fs_path)
        raise
    return descriptor, fs_path


def remove_dead_spool_files(directory: str | None) -> list[str]:
    """Remove this user's spool files whose writer is gone; return their paths.

    Raises:
        OSError: the directory cannot be read.
    """
    place = directory or tempfile.gettempdir()
    removed = []
    for name in sorted(os.listdir(place)):
        if name.startswith(_PREFIX):
            fs_path = os.path.join(place, name)
            if _remove_if_dead(fs_path):
                removed.append(fs_path)
    return removed


def _remove_if_dead(fs_path: str) -> bool:
    try:
        descriptor = os.open(fs_path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # another user's, gone meanwhile, or no file: none of this process's business
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if time.time() - status.st_mtime < _UNLOCKED_AGE_SECONDS:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with suppress(FileNotFoundError):
            os.unlink(fs_path)
        return True
    finally:
        os.close(descriptor)
