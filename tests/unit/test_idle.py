"""Work that idle threads take over: done once, by somebody, and by nobody who would only wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from incremental_backups_tools.idle import IdleWorkers, Offer

SECONDS = 20


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3, thread_name_prefix="idle") as pool:
        yield pool


class Gate:
    """Work that goes on when it may, and tells that it was begun."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.may_end.wait(SECONDS)
        return threading.current_thread().name


def test_an_idle_thread_does_the_work(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    offer = IdleWorkers(pool, 1).offer(gate)
    assert gate.begun.wait(SECONDS)
    gate.may_end.set()
    assert offer.result().startswith("idle")
    assert offer.result() == offer.result()


def test_nobody_waits_for_a_pool_that_is_busy() -> None:
    with ThreadPoolExecutor(1) as pool:
        gate = Gate()
        busy = pool.submit(gate)
        workers = IdleWorkers(pool, 1)
        done: list[int] = []
        offers = [workers.offer(lambda number=number: done.append(number)) for number in range(3)]
        offers[2].result()
        assert done == [2]  # nor is anything done before what is wanted
        offers[0].result()
        offers[1].result()
        assert done == [2, 0, 1]
        assert not busy.done()
        gate.may_end.set()


def test_who_waits_for_another_thread_does_other_work_meanwhile(pool: ThreadPoolExecutor) -> None:
    workers = IdleWorkers(pool, 1)
    gate = Gate()
    first = workers.offer(gate)
    assert gate.begun.wait(SECONDS)
    second = workers.offer(lambda: gate.may_end.set() or threading.current_thread())
    assert first.result().startswith("idle")
    assert second.result() is threading.current_thread()


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_threads_than_allowed_are_taken(pool: ThreadPoolExecutor, count: int) -> None:
    workers = IdleWorkers(pool, count)
    gates = [Gate() for _ in range(3)]
    offers = [workers.offer(gate) for gate in gates]
    for gate in gates[:count]:
        assert gate.begun.wait(SECONDS)
    assert not gates[-1].begun.wait(0.05)
    for gate in gates:
        gate.may_end.set()
    assert all(offer.result() for offer in offers)


@pytest.mark.parametrize("is_taken", [False, True])
def test_an_error_is_raised_where_the_result_is_asked_for(pool: ThreadPoolExecutor, is_taken: bool) -> None:
    def fail() -> None:
        begun.set()
        raise MemoryError

    begun = threading.Event()
    offer = IdleWorkers(pool, int(is_taken)).offer(fail)
    if is_taken:
        assert begun.wait(SECONDS)
    with pytest.raises(MemoryError):
        offer.result()
    with pytest.raises(MemoryError):
        offer.result()
    offer.withdraw()


def test_what_is_withdrawn_is_not_done_any_more() -> None:
    done: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        gate = Gate()
        pool.submit(gate)
        workers = IdleWorkers(pool, 1)
        offers = [workers.offer(lambda number=number: done.append(number)) for number in range(3)]
        offers[1].withdraw()
        offers[0].result()
        gate.may_end.set()
    assert done == [0, 2]


def test_what_was_begun_is_ended_before_it_counts_as_withdrawn(pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    offer = IdleWorkers(pool, 1).offer(gate)
    assert gate.begun.wait(SECONDS)
    threading.Timer(0.05, gate.may_end.set).start()
    offer.withdraw()
    assert offer.is_done


def test_a_pool_that_takes_no_more_work_leaves_it_to_the_caller() -> None:
    pool = ThreadPoolExecutor(2)
    workers = IdleWorkers(pool, 1)
    assert workers.offer(lambda: 1).result() == 1
    pool.shutdown()
    assert [workers.offer(lambda: 2).result() for _ in range(3)] == [2, 2, 2]


def test_many_threads_ask_for_many_results() -> None:
    with ThreadPoolExecutor(4) as pool:
        workers = IdleWorkers(pool, 3)

        def count_up(start: int) -> list[int]:
            offers = [workers.offer(lambda number=number: number) for number in range(start, start + 200)]
            return [offer.result() for offer in offers]

        counts = list(pool.map(count_up, range(0, 8000, 200)))
    assert [number for some in counts for number in some] == list(range(8000))


def test_a_thread_may_withdraw_what_it_is_at_itself(pool: ThreadPoolExecutor) -> None:
    """As where a reader that nobody has any more is collected by a thread that reads ahead for it."""
    offers: list[Offer[None]] = []
    may_begin = threading.Event()

    def work() -> None:
        assert may_begin.wait(SECONDS)
        offers[0].withdraw()

    offers.append(IdleWorkers(pool, 1).offer(work))
    may_begin.set()
    done = threading.Event()
    threading.Thread(target=lambda: (offers[0].result(), done.set()), daemon=True).start()
    assert done.wait(SECONDS)


def test_a_pool_without_a_thread_to_give_takes_no_more_than_allowed_later() -> None:
    class Poor(ThreadPoolExecutor):
        """Has no thread at first: what it refuses it does all the same, once it has one."""

        is_poor = True

        def _adjust_thread_count(self) -> None:
            if self.is_poor:
                raise RuntimeError("can't start new thread")
            super()._adjust_thread_count()

    with Poor(3) as pool:
        workers = IdleWorkers(pool, 1)
        refused = workers.offer(lambda: 1)
        Poor.is_poor = False
        pool.submit(lambda: None).result(SECONDS)
        assert refused.result() == 1
        gates = [Gate() for _ in range(3)]
        offers = [workers.offer(gate) for gate in gates]
        time.sleep(0.05)
        assert sum(gate.begun.is_set() for gate in gates) <= 1
        for gate in gates:
            gate.may_end.set()
        assert all(offer.result() for offer in offers)


def test_who_works_long_is_told_that_nobody_wants_it(pool: ThreadPoolExecutor) -> None:
    stop = threading.Event()
    workers = IdleWorkers(pool, 1, stop)
    workers.check()
    IdleWorkers(pool, 1).check()
    stop.set()
    with pytest.raises(InterruptedError):
        workers.check()
