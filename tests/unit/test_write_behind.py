"""Pieces that are written: in order, one at a time, and by another thread none after the end."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from incremental_backups_tools.durable import begin_writeback
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.write_behind import FileWriter, WriteBehind

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


@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_file_is_written_whole_and_nothing_else_changes(tmp_path: Path, is_flushed: bool) -> None:
    content = random.Random(1).randbytes(50 * LONG)
    with (tmp_path / "file").open("wb") as file:
        writer = FileWriter(file.fileno(), is_flushed=is_flushed)
        for start in range(0, len(content), 700_000):
            writer.write(memoryview(content)[start : start + 700_000])
    assert (tmp_path / "file").read_bytes() == content


def test_a_descriptor_whose_writeback_cannot_begin_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        begin_writeback(file.fileno(), -1, 5)
    reading, writing = os.pipe()
    try:
        begin_writeback(writing, 0, 10)
    finally:
        os.close(reading)
        os.close(writing)


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
