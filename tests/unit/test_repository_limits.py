"""The bandwidth of a store, against a clock that the test sets."""

from __future__ import annotations

import threading

import pytest

from incremental_backups_tools.repository.limits import UNLIMITED, Limits, TokenBucket
from incremental_backups_tools.repository.multipart import plan_parts


class Clock:
    """Time that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def bucket(clock: Clock, rate: float) -> TokenBucket:
    return TokenBucket(rate, clock=clock.read, sleep=clock.sleep)


def test_bytes_go_at_the_rate(clock: Clock) -> None:
    limit = bucket(clock, 1000)
    for _ in range(11):
        limit.take(500)
    assert clock.now == pytest.approx(105)


def test_the_first_bytes_go_at_once(clock: Clock) -> None:
    bucket(clock, 1).take(10**9)
    assert clock.now == 100


def test_a_pause_is_not_saved_up(clock: Clock) -> None:
    limit = bucket(clock, 1000)
    limit.take(1000)
    clock.now += 3600
    for _ in range(3):
        limit.take(1000)
    assert clock.now == pytest.approx(3702)


def test_threads_share_the_rate(clock: Clock) -> None:
    limit = bucket(clock, 100)
    delays = [limit.reserve(50) for _ in range(4)]
    assert delays == pytest.approx([0, 0.5, 1.0, 1.5])


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_above_zero(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(rate)


def test_who_is_told_to_stop_does_not_wait_for_its_turn() -> None:
    limits = Limits(upload=TokenBucket(1))
    stop = threading.Event()
    stop.set()
    limits.before_upload(10**9, stop=stop)
    limits.before_upload(10**9, stop=stop)


def test_without_limits_nothing_waits() -> None:
    UNLIMITED.before_upload(10**18)
    UNLIMITED.before_download(10**18)


@pytest.mark.parametrize("size", [1, 8 << 20, (8 << 20) + 1, 5 << 30, 5 << 40])
def test_parts_make_up_the_file_and_are_few_enough(size: int) -> None:
    plan = plan_parts(size)
    assert sum(plan.length_of(number) for number in range(plan.count)) == size
    assert 1 <= plan.count <= 10_000
    assert plan.part_len >= 5 << 20 or plan.count == 1
    assert plan.length_of(plan.count - 1) > 0
