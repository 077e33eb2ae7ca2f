"""Pieces that another thread writes: in order, one at a time, and none after the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.write_behind import WriteBehind

LONG = 1 << 20


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_pieces_are_written_in_order_and_one_at_a_time(threads: int) -> None:
    written: list[bytes] = []
    writing = threading.Lock()

    def write(piece: bytes | memoryview) -> None:
        assert writing.acquire(blocking=False)
        written.append(bytes(piece))
        writing.release()

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        behind = WriteBehind(write, IdleWorkers(pool, threads) if threads else None)
        pieces = [bytes([number]) * (LONG if number % 3 else 10) for number in range(60)]
        for piece in pieces:
            behind.write(piece)
        behind.flush()
        assert written == pieces
        behind.close()


def test_what_failed_is_told_by_the_next_call() -> None:
    def fail(piece: bytes | memoryview) -> None:
        raise OSError("full")

    with ThreadPoolExecutor(1) as pool:
        behind = WriteBehind(fail, IdleWorkers(pool, 1))
        behind.write(bytes(LONG))
        with pytest.raises(OSError, match="full"):
            behind.write(b"next")
        with pytest.raises(OSError, match="full"):
            behind.flush()
        behind.close()


def test_nobody_writes_after_the_end() -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def write(piece: bytes | memoryview) -> None:
        begun.set()
        may_end.wait(20)
        ended.set()

    with ThreadPoolExecutor(1) as pool:
        behind = WriteBehind(write, IdleWorkers(pool, 1))
        behind.write(bytes(LONG))
        assert begun.wait(20)
        threading.Timer(0.05, may_end.set).start()
        behind.close()
        assert ended.is_set()
    busy: list[bytes | memoryview] = []
    with ThreadPoolExecutor(1) as pool:
        behind = WriteBehind(busy.append, IdleWorkers(pool, 0))
        behind.write(bytes(LONG))
        behind.close()
    assert busy == []
