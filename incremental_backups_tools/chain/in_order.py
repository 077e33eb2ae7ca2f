"""Work for several threads whose results come back in the order in which it was given out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from incremental_backups_tools.idle import IdleWorkers

ResultT = TypeVar("ResultT")

_IN_FLIGHT_PER_THREAD: Final = 2


class InOrder:
    """A few threads, and a bounded number of calls in flight. Leaving the context ends them, also half-way.

    Args:
        threads: how many; with 1, all is done in the caller's.

    Attributes:
        stop: set when what is still running need not go on.
        idle: takes a part of what one of the calls does; None where there is one thread.
    """

    def __init__(self, threads: int) -> None:
        self.stop = threading.Event()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ibt-work") if threads > 1 else None
        self.idle = IdleWorkers(self._pool, threads - 1) if self._pool is not None else None
        self._max_in_flight = threads * _IN_FLIGHT_PER_THREAD
        self._waiting: deque[tuple[Future[Any], Callable[[Any], None]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[[], ResultT], take: Callable[[ResultT], None]) -> None:
        """Call *function* in some thread, and *take* with its result in the caller's, now or later."""
        if self._pool is None:
            take(function())
            return
        self._waiting.append((self._pool.submit(function), take))
        while self._waiting and (len(self._waiting) > self._max_in_flight or self._waiting[0][0].done()):
            self._take_first()

    def finish(self) -> None:
        """Wait for everything and take every result."""
        while self._waiting:
            self._take_first()

    def _take_first(self) -> None:
        future, take = self._waiting.popleft()
        take(future.result())
