"""Hard links: which names of a walk share an inode."""

from __future__ import annotations

import os
import stat


class HardLinks:
    """Remembers the first name of each inode that has several. Memory grows with those inodes alone."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], tuple[bytes, int, int]] = {}

    def earlier_link(self, rel_path: bytes, info: os.stat_result) -> bytes | None:
        """The path met before whose inode *rel_path* shares; None for the first or only one.

        Size and mtime must agree with the first name's. Where they do not, the file was written to in the
        meantime, or was removed and its inode number went to another one: then this name stands for itself.
        """
        if info.st_nlink < 2 or stat.S_ISDIR(info.st_mode):
            return None
        state = (info.st_size, info.st_mtime_ns)
        path, *first_state = self._first.setdefault((info.st_dev, info.st_ino), (rel_path, *state))
        return path if path != rel_path and tuple(first_state) == state else None

    def forget(self, rel_path: bytes, info: os.stat_result) -> None:
        """Take back that *rel_path* holds its inode's content: it could not be read."""
        first = self._first.get((info.st_dev, info.st_ino))
        if first is not None and first[0] == rel_path:
            del self._first[(info.st_dev, info.st_ino)]
