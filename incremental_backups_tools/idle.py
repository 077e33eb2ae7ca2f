"""Work that an idle thread of a pool may take over, and that else is done by whoever needs its result.

Nobody waits for work that was not begun: it may be offered to the pool that the caller itself runs in, and where all
of the pool's threads are busy, nothing is lost by it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

from incremental_backups_tools.freed_memory import keep_freed_memory

ResultT = TypeVar("ResultT")


class IdleWorkers:
    """Those threads of a pool that have nothing to do. Safe to share between threads.

    What is offered is begun in the order of the offers, bar what is asked for before its turn.

    Args:
        executor: the pool. When it takes no more work, whoever asks for a result works for it alone.
        count: how many of the pool's threads work on offers at a time, at most.
        stop: is set where nobody wants any of it any more.
    """

    def __init__(self, executor: Executor, count: int, stop: threading.Event | None = None) -> None:
        self._executor = executor
        self._count = count
        self._stop = stop
        self._called = 0
        self._is_refused = False
        self._offers: deque[Offer[Any]] = deque()
        keep_freed_memory()
        self._changed = threading.Condition()

    def offer(self, work: Callable[[], ResultT]) -> Offer[ResultT]:
        """Let *work* be done by a thread that is idle. It must not ask for the result of another offer."""
        offer = Offer(self, work)
        with self._changed:
            self._offers.append(offer)
            if self._called >= self._count or self._is_refused:
                return offer
            self._called += 1
        self._call_one()
        return offer

    def begin(self, wanted: Offer[Any]) -> Offer[Any] | None:
        """For the thread that needs *wanted*: what it is to do now.

        That is *wanted*, or while somebody else is at it, another offer. None where there is nothing to do: then
        something has changed when this returns.
        """
        with self._changed:
            if wanted in self._offers:
                self._offers.remove(wanted)
                return wanted
            if wanted.is_done:
                return None
            if self._offers:
                return self._offers.popleft()
            self._changed.wait()
            return None

    def check(self) -> None:
        """For who works long without a result.

        Raises:
            InterruptedError: nobody wants it any more.
        """
        if self._stop is not None and self._stop.is_set():
            raise InterruptedError

    def withdraw(self, offer: Offer[Any]) -> None:
        """See to it that nobody works on *offer* when this returns, but for the caller itself."""
        with self._changed:
            if offer in self._offers:
                self._offers.remove(offer)
            elif offer.worker != threading.get_ident():
                self._changed.wait_for(lambda: offer.is_done)

    def note_done(self, offer: Offer[Any]) -> None:
        """*offer* has its outcome."""
        with self._changed:
            offer.is_done = True
            self._changed.notify_all()

    def _call_one(self) -> None:
        try:
            self._executor.submit(self._work)
        except RuntimeError:
            # It is being shut down, or has no thread to give; then it may do what it refused all the same, later.
            self._is_refused = True

    def _work(self) -> None:
        """In a thread of the pool: one offer, and after what else the pool has to do, the next one."""
        with self._changed:
            offer = self._offers.popleft() if self._offers else None
        if offer is not None:
            offer.do()
        with self._changed:
            if not self._offers:
                self._called -= 1
                return
        self._call_one()


class Offer(Generic[ResultT]):
    """Something that is done once, by whichever thread.

    Attributes:
        is_done: whether it has its outcome.
        worker: the thread that has begun it; None while nobody has.
    """

    def __init__(self, workers: IdleWorkers, work: Callable[[], ResultT]) -> None:
        self.is_done = False
        self.worker: int | None = None
        self._workers = workers
        self._work: Callable[[], ResultT] | None = work
        self._results: list[ResultT] = []
        self._error: BaseException | None = None

    def result(self) -> ResultT:
        """What the work returns, or the error that it raises.

        If nobody has begun, the caller does it. While another thread is at it, the caller does other work that was
        offered.
        """
        while not self.is_done:
            offer = self._workers.begin(self)
            if offer is not None:
                offer.do()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def withdraw(self) -> None:
        """Leave it undone; if another thread has begun, come back when it has ended."""
        self._workers.withdraw(self)

    def do(self) -> None:
        """For the thread that has begun it."""
        assert self._work is not None  # it is begun once
        work, self._work = self._work, None
        self.worker = threading.get_ident()
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001
            # It is raised where the result is asked for.
            self._error = error
        self._workers.note_done(self)
