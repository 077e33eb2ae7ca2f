"""Bandwidth: how many bytes a second may go to a store and come from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec


class TokenBucket:
    """Lets bytes through at a rate, on average; safe to use from several threads.

    Who takes bytes pays for them before the next one may go on. Time in which nobody took any is not saved
    up, so that a pause is not followed by a flood.
    """

    def __init__(
        self,
        bytes_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make a bucket that lets the first bytes through at once.

        Args:
            clock: in seconds; never goes back.

        Raises:
            ValueError: a rate that is not above 0.
        """
        if not bytes_per_second > 0:
            raise ValueError(f"a rate is above 0 bytes a second, not {bytes_per_second}")
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._mutex = threading.Lock()
        self._free_at = clock()

    def reserve(self, count: int) -> float:
        """Take so many bytes, and return how many seconds to wait before they may go."""
        with self._mutex:
            now = self._clock()
            start = max(self._free_at, now)
            self._free_at = start + count / self._rate
        return start - now

    def take(self, count: int) -> None:
        """Take so many bytes, and wait until everything that was taken before is paid for."""
        delay = self.reserve(count)
        if delay > 0:
            self._sleep(delay)


class Limits(msgspec.Struct, frozen=True):
    """The limits of a store; None is no limit."""

    upload: TokenBucket | None = None
    download: TokenBucket | None = None

    def before_upload(self, count: int, *, stop: threading.Event | None = None) -> None:
        """Wait until so many bytes may be sent, or until *stop* is set."""
        if self.upload is None:
            return
        if stop is None:
            self.upload.take(count)
        else:
            stop.wait(self.upload.reserve(count))

    def before_download(self, count: int) -> None:
        """Wait until so many bytes may be fetched."""
        if self.download is not None:
            self.download.take(count)


UNLIMITED = Limits()
