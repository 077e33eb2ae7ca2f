"""Writing a file in order, while the one who makes its content goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from incremental_backups_tools.durable import begin_writeback
from incremental_backups_tools.idle import IdleWorkers, Offer

# So much of a file at a time is on its way to the disk while the rest is made.
_WRITEBACK_LEN: Final = 16 << 20
# A shorter piece is written sooner than it is handed to another thread.
_MIN_LEN: Final = 1 << 18


class FileWriter:
    """Writes a new file from front to back.

    Args:
        fd: an empty regular file, opened for writing.
        is_flushed: somebody will wait for it to be on the disk. The disk begins before that.
    """

    def __init__(self, fd: int, *, is_flushed: bool) -> None:
        self._fd = fd
        self._is_flushed = is_flushed
        self._begun = self._end = 0

    def write(self, piece: bytes | memoryview) -> None:
        """Append *piece*, whole.

        Raises:
            OSError: it cannot be written.
        """
        view = memoryview(piece)
        while view:
            view = view[os.write(self._fd, view) :]
        self._end += len(piece)
        if self._is_flushed and self._end - self._begun >= _WRITEBACK_LEN:
            begin_writeback(self._fd, self._begun, self._end - self._begun)
            self._begun = self._end


class WriteBehind:
    """Has pieces written one after the other: each by an idle worker, or by the caller when the next one is there.

    Args:
        write: writes a piece, whole.
        idle: None has everything written by the caller at once.
    """

    def __init__(
        self, write: Callable[[bytes | memoryview], object], idle: IdleWorkers | None = None
    ) -> None:
        self._write = write
        self._idle = idle
        self._last: Offer[object] | None = None

    def write(self, piece: bytes | memoryview) -> None:
        """Take the next piece, which must not change any more.

        Raises:
            OSError: it or the one before cannot be written.
        """
        self.flush()
        if self._idle is None or len(piece) < _MIN_LEN:
            self._write(piece)
        else:
            self._last = self._idle.offer(partial(self._write, piece))

    def flush(self) -> None:
        """Come back when all that was taken is written. Raises as :meth:`write`."""
        if self._last is not None:
            self._last.result()
            self._last = None

    def close(self) -> None:
        """Come back when nobody writes any more; the last piece may not have been written."""
        if self._last is not None:
            self._last.withdraw()
