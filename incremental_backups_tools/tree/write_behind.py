"""Writing a file in order, while the one who makes its content goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from incremental_backups_tools.idle import IdleWorkers, Offer

# A shorter piece is written sooner than it is handed to another thread.
_MIN_LEN: Final = 1 << 18


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
