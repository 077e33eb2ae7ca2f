"""Flushing a file system while it is still being written to, so that the flush at the end finds little left to do."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from incremental_backups_tools.durable import sync_filesystem

# So many bytes of small files make a flush worth its while: a journal is committed each time.
STEP_LEN: Final = 128 << 20


class SyncAhead:
    """Flushes, one at a time and in a thread of its own, whenever enough has been written. Nothing is durable by that.

    The system tells of a write that failed to whoever flushes next, and to nobody after that: so whoever relies on what
    was written asks here first.

    Args:
        descriptor: a directory of the file system, which stays open until :meth:`finish` or :meth:`abort`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = 0
        self._pool: ThreadPoolExecutor | None = None
        self._flush: Future[None] | None = None

    def wrote(self, length: int) -> None:
        """Count in *length* bytes that were written, and begin a flush where it is time and none has failed."""
        self._written += length
        if self._written < STEP_LEN or not self._may_begin():
            return
        self._written = 0
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="ibt-sync")
        self._flush = self._pool.submit(sync_filesystem, self._descriptor)

    def _may_begin(self) -> bool:
        return self._flush is None or (self._flush.done() and self._flush.exception() is None)

    def finish(self) -> None:
        """Wait for the flush that goes on.

        Raises:
            OSError: something that was written before could not be brought onto the disk.
        """
        if self._flush is not None:
            self._flush.result()

    def abort(self) -> None:
        """Wait for the flush that goes on, and say nothing of what came of it."""
        if self._pool is not None:
            self._pool.shutdown()
