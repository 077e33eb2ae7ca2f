"""Hard links: which names of a walk share an inode."""

from __future__ import annotations

import os
import stat

from incremental_backups_tools.tree.entry import Entry


class HardLinks:
    """Remembers the first name of each inode that has several. Memory grows with those inodes alone.

    What the walk lists is one look, and reading the first name is another, later one. So whoever reads it says what
    it was: see :meth:`confirm`.
    """

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], tuple[bytes, int, int, int]] = {}

    def earlier_link(self, rel_path: bytes, info: os.stat_result) -> bytes | None:
        """The path met before whose inode *rel_path* shares; None for the first or only one.

        Size, mtime and ctime must agree with the first name's. Where they do not, the file was changed in the
        meantime, or was removed and its inode number went to another one: then this name stands for itself.
        """
        if info.st_nlink < 2 or stat.S_ISDIR(info.st_mode):
            return None
        state = _state_of(info)
        path, *first_state = self._first.setdefault((info.st_dev, info.st_ino), (rel_path, *state))
        return path if path != rel_path and tuple(first_state) == state else None

    def confirm(self, rel_path: bytes, info: os.stat_result, entry: Entry) -> bool:
        """Say what was read at *rel_path*. If that is not what was listed, it holds its inode's content no more.

        Another file may have got the name since, or the file may have been changed: what comes later with the inode
        stands for itself then.

        Args:
            info: as it was listed.
            entry: as it was read.

        Returns:
            Whether it is the same file in the same state.
        """
        read = (entry.dev, entry.inode, entry.mtime_ns, entry.ctime_ns)
        is_same = read == (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
        if entry.unstable or not is_same:
            self.forget(rel_path, info)
            return False
        return True

    def forget(self, rel_path: bytes, info: os.stat_result) -> None:
        """Take back that *rel_path* holds its inode's content: it could not be read."""
        first = self._first.get((info.st_dev, info.st_ino))
        if first is not None and first[0] == rel_path:
            del self._first[(info.st_dev, info.st_ino)]


def _state_of(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns
