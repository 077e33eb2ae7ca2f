"""The deltas of a file read out of volumes: bounded by the file they make, and left when nobody wants it."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from incremental_backups_tools.archive.tar import REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.chain import deltas
from incremental_backups_tools.chain.rebuild import iter_content
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import Signature, compose, delta, signature
from incremental_backups_tools.exceptions import LimitExceededError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import FILE, Entry, Location

OLD = b"0123456789"
MANY_LITERALS = b"rs\x026" + b"\x01A" * (5 << 20) + b"\x00"
FIRST_FIVE = b"rs\x026" + b"\x45\x00\x05" + b"\x00"


class Volume:
    """A volume of a whole copy and deltas, each in frames of its own length."""

    def __init__(self, *members: bytes, frame_len: int = 1 << 20) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=frame_len)
        self.locations = tuple(
            Location("v", writer.add(TarMember(b"m", REGULAR, len(data)), data), len(data))
            for data in members
        )
        writer.finish()
        stored = file.getvalue()
        self._reader = VolumeReader(
            lambda offset, length: stored[offset : offset + length], len(stored), name="v"
        )

    def reader(self, file_name: str, /) -> VolumeReader:
        return self._reader

    def iter_range(self, location: Location, idle: IdleWorkers | None = None, /) -> Iterator[bytes]:
        return self._reader.iter_range(location.offset, location.length, idle)

    def content(self, size: int, idle: IdleWorkers | None = None) -> bytes:
        entry = Entry(path=b"file", type=FILE, mode=0o644, size=size)
        return b"".join(iter_content(ResolvedEntry(entry, self.locations), self, idle))


@pytest.fixture
def spools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files would be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("members", [(MANY_LITERALS,), (MANY_LITERALS, FIRST_FIVE)])
def test_deltas_far_longer_than_the_file_are_refused_unread(
    monkeypatch: pytest.MonkeyPatch, members: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr(deltas, "spooled", lambda pieces: pytest.fail("was read"))
    with pytest.raises(LimitExceededError, match="for a file of 5 at most"):
        Volume(OLD, *members).content(5)


def test_a_delta_as_long_as_its_file_is_taken() -> None:
    new = bytes(range(256)) * 40_000
    made = delta(new, Signature.from_bytes(signature(OLD)))
    assert len(made) > len(new)
    assert Volume(OLD, made).content(len(new)) == new


def test_commands_that_are_held_are_bounded() -> None:
    with pytest.raises(LimitExceededError, match="more than 5000000 commands"):
        compose(MANY_LITERALS, FIRST_FIVE, max_commands=5_000_000)
    made = compose(MANY_LITERALS, FIRST_FIVE, max_commands=6_000_000)
    assert made == b"rs\x026\x05AAAAA\x00"


def test_who_reads_deltas_or_a_copy_stops_when_nobody_wants_the_file(
    monkeypatch: pytest.MonkeyPatch, spools: Path
) -> None:
    """Long before the first piece of it, if that takes long."""
    stop = threading.Event()
    monkeypatch.setattr(deltas, "_HELD_LEN", 0)
    real = deltas.write_all
    written = []

    def write_and_stop(file: io.FileIO, data: bytes) -> None:
        written.append(len(data))
        stop.set()
        real(file, data)

    monkeypatch.setattr(deltas, "write_all", write_and_stop)
    new = os.urandom(1 << 20)
    volume = Volume(OLD, delta(new, Signature.from_bytes(signature(OLD))), frame_len=1 << 14)
    monkeypatch.setattr("incremental_backups_tools.archive.frame_reader._AHEAD_LEN", 1 << 16)
    with ThreadPoolExecutor(2) as pool, pytest.raises(InterruptedError):
        volume.content(len(new), IdleWorkers(pool, 1, stop))
    assert len(written) == 1


def test_nobody_reads_ahead_any_more_when_a_temporary_file_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, spools: Path
) -> None:
    monkeypatch.setattr(deltas, "_HELD_LEN", 0)

    def fail(file: io.FileIO, data: bytes) -> None:
        raise OSError(errno.EFBIG, "too large")

    monkeypatch.setattr(deltas, "write_all", fail)
    new = os.urandom(1 << 20)
    volume = Volume(OLD, delta(new, Signature.from_bytes(signature(OLD))), frame_len=1 << 14)
    offered = []
    real_offer = IdleWorkers.offer

    def offer(self: IdleWorkers, work: object) -> object:
        offered.append(real_offer(self, work))  # type: ignore[arg-type]
        return offered[-1]

    monkeypatch.setattr(IdleWorkers, "offer", offer)
    with ThreadPoolExecutor(1) as pool:
        idle = IdleWorkers(pool, 0)
        with pytest.raises(OSError, match="too large") as held:
            volume.content(len(new), idle)
        assert offered
        assert not idle._offers
    assert held.value.errno == errno.EFBIG
