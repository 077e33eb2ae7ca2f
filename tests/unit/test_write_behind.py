"""Pieces that are written: in order, one at a time, and by another thread none after the end."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree import write_behind
from incremental_backups_tools.tree.sparse import Extents
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


@pytest.mark.parametrize("extents", [None, ((0, 30 * LONG), (60 * LONG, 15 * LONG), (90 * LONG, 0))])
@pytest.mark.parametrize("slow_ns_per_byte", [0.0, 1000.0])
@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_file_is_written_whole(
    tmp_path: Path,
    is_flushed: bool,
    slow_ns_per_byte: float,
    extents: Extents | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_behind, "_SLOW_NS_PER_BYTE", slow_ns_per_byte)
    content = bytearray(random.Random(1).randbytes(90 * LONG))
    if extents is not None:
        content[30 * LONG : 60 * LONG] = bytes(30 * LONG)
        content[75 * LONG :] = bytes(15 * LONG)
    with (tmp_path / "file").open("wb") as file:
        file.truncate(len(content) if extents is not None else 0)
        writer = FileWriter(file.fileno(), extents, is_flushed=is_flushed)
        for start in range(0, len(content), 700_000):
            writer.write(memoryview(content)[start : start + 700_000])
    assert (tmp_path / "file").read_bytes() == content
    if extents is not None:
        assert (tmp_path / "file").stat().st_blocks * 512 < 46 * LONG


WRITE = """
import os, sys
from incremental_backups_tools.tree import write_behind
write_behind._SLOW_NS_PER_BYTE = float(sys.argv[2])
writer = write_behind.FileWriter(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), is_flushed=True)
try:
    for _ in range(100):
        writer.write(bytes(1 << 20))
except OSError as error:
    sys.exit(error.errno)
"""


def trace(tmp_path: Path, slow_ns_per_byte: float, *options: str) -> tuple[int, list[str]]:
    """The exit status of writing 100 MiB, and the calls that it makes besides."""
    log, path = tmp_path / "log", tmp_path / "file"
    calls = ("-e", "trace=sync_file_range,fadvise64", "-e", "signal=none")
    done = subprocess.run(
        ["strace", "-o", log, *calls, *options, sys.executable, "-c", WRITE, path, str(slow_ns_per_byte)],
        check=False,
    )
    return done.returncode, [line.partition(", ")[2] for line in log.read_text().splitlines()[:-1]]


def test_each_part_is_sent_to_the_disk(tmp_path: Path) -> None:
    status, calls = trace(tmp_path, 1000.0)
    assert status == 0
    assert calls == [f"{n << 24}, {1 << 24}, SYNC_FILE_RANGE_WRITE) = 0" for n in range(6)]


def test_where_writing_is_slow_what_is_on_the_disk_leaves_the_cache(tmp_path: Path) -> None:
    status, calls = trace(tmp_path, 0.0)
    assert status == 0
    sent = [call for call in calls if call.endswith(", SYNC_FILE_RANGE_WRITE) = 0")]
    dropped = [call for call in calls if "POSIX_FADV_DONTNEED" in call]
    assert len(sent) == 6
    assert dropped == [f"{n << 24}, {1 << 24}, POSIX_FADV_DONTNEED) = 0" for n in range(4)]
    for call in dropped:
        assert "SYNC_FILE_RANGE_WAIT_AFTER" in calls[calls.index(call) - 1]


@pytest.mark.parametrize("slow_ns_per_byte", [0.0, 1000.0])
def test_a_disk_that_took_not_all_is_told_of_where_nobody_else_would_be(
    tmp_path: Path, slow_ns_per_byte: float
) -> None:
    """Waiting takes the error away from whoever flushes the same descriptor."""
    status, calls = trace(tmp_path, slow_ns_per_byte, "-e", "inject=sync_file_range:error=EIO")
    assert status == errno.EIO
    assert len(calls) == 1


def test_a_system_that_cannot_do_it_is_left_alone(tmp_path: Path) -> None:
    for error in ("ENOSYS", "EINVAL", "ESPIPE"):
        status, calls = trace(tmp_path, 0.0, "-e", f"inject=sync_file_range:error={error}")
        assert status == 0
        assert not any("POSIX_FADV" in call for call in calls)


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
