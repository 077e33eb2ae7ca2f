"""Writing a file in order, while the one who makes its content goes on."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from incremental_backups_tools.durable import begin_writeback, finish_writeback
from incremental_backups_tools.idle import IdleWorkers, Offer
from incremental_backups_tools.tree.sparse import Extents, SparseWriter

# So much of a file at a time is sent to the disk while the rest is made.
_PART_LEN: Final = 16 << 20
# Writing a byte takes a processor a fifth of a nanosecond; and two or three nanoseconds where the memory for it is new
# to a virtual machine, whose host gives it page by page.
_SLOW_NS_PER_BYTE = 1.0
# Parts that may be on their way to the disk then. With fewer, or shorter ones, the disk was waited for.
_PARTS_ON_THE_WAY: Final = 2
# A shorter piece is written sooner than it is handed to another thread.
_MIN_LEN: Final = 1 << 18


class FileWriter:
    """Writes a new file from front to back, and leaves holes where there are to be any.

    Of one that is to be flushed, the disk takes part after part as they come. Where the system's cache turns out to
    grow slowly, what the disk has leaves it and makes room for what comes next.

    Args:
        fd: an empty regular file, opened for writing.
        extents: where a file with holes has data; None for one without.
        is_flushed: somebody will wait for it to be on the disk.
    """

    def __init__(self, fd: int, extents: Extents | None = None, *, is_flushed: bool) -> None:
        self._fd = fd
        self._sparse = SparseWriter(fd, extents) if extents is not None else None
        self._is_flushed = is_flushed
        self._end = 0
        self._part_start = 0
        self._part_ns = 0
        self._is_slow = False
        self._on_the_way: deque[int] = deque()  # where parts begin

    def write(self, piece: bytes | memoryview) -> None:
        """Append *piece*, whole.

        Raises:
            OSError: it, or what came long before, cannot be written.
        """
        begin_ns = time.thread_time_ns()
        if self._sparse is not None:
            self._sparse.write(piece)
        else:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._fd, view) :]
        self._part_ns += time.thread_time_ns() - begin_ns
        self._end += len(piece)
        if self._is_flushed and self._end - self._part_start >= _PART_LEN:
            self._send_part()

    def _send_part(self) -> None:
        length = self._end - self._part_start
        begin_writeback(self._fd, self._part_start, length)
        self._on_the_way.append(self._part_start)
        self._is_slow |= self._part_ns > length * _SLOW_NS_PER_BYTE
        self._part_start, self._part_ns = self._end, 0
        if len(self._on_the_way) > _PARTS_ON_THE_WAY:
            start = self._on_the_way.popleft()
            if self._is_slow:
                finish_writeback(self._fd, start, self._on_the_way[0] - start)


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
