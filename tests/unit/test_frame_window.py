"""Ranges in any order through a window of frames: planned, then read the same way."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from incremental_backups_tools.archive import frame_window
from incremental_backups_tools.archive.frame_window import WindowPlan, WindowReader
from incremental_backups_tools.archive.tar import REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.exceptions import ArchiveFormatError, IntegrityError
from incremental_backups_tools.idle import IdleWorkers

FRAME_LEN = 1024
WINDOW_FRAMES = 4


def example() -> tuple[bytes, bytes]:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    writer.add(TarMember(b"large", REGULAR, 40_000), random.Random(1).randbytes(40_000))
    writer.finish()
    volume = open_volume(file.getvalue())
    return file.getvalue(), volume.read(0, volume.tar_len)


def open_volume(data: bytes) -> VolumeReader:
    return VolumeReader(lambda offset, length: data[offset : offset + length], len(data), name="test")


VOLUME, TAR = example()


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_window, "WINDOW_LEN", WINDOW_FRAMES * FRAME_LEN)


def plan_of(volume: VolumeReader, ranges: Sequence[tuple[int, int]]) -> WindowPlan:
    plan = WindowPlan(volume)
    for offset, length in ranges:
        plan.add(offset, length)
    return plan


def read(ranges: Sequence[tuple[int, int]], idle: IdleWorkers | None = None) -> WindowPlan:
    """Read them, and make sure that they are right."""
    volume = open_volume(VOLUME)
    plan = plan_of(volume, ranges)
    with WindowReader(volume, plan, idle) as window:
        for offset, length in ranges:
            assert b"".join(window.iter_range(offset, length)) == TAR[offset : offset + length]
    return plan


@pytest.mark.parametrize("threads", [0, 3])
def test_any_ranges_in_any_order_are_what_lies_there(threads: int) -> None:
    chance = random.Random(2)
    with ThreadPoolExecutor(3) as pool:
        idle = IdleWorkers(pool, threads) if threads else None
        for _ in range(30):
            ranges = []
            for _ in range(chance.randrange(40)):
                offset = chance.randrange(len(TAR))
                length = min(len(TAR) - offset, chance.choice([0, 1, 100, 3000, 20_000]))
                ranges.append((offset, length))
            read(ranges, idle)


def test_a_frame_is_loaded_once_while_ranges_go_forward() -> None:
    plan = read([(offset, 10) for offset in range(0, len(TAR) - 10, 100)])
    assert list(plan.loads) == list(range(plan.loads[-1] + 1))
    assert (plan.loaded_len, plan.jumps) == (len(TAR), 1)
    assert list(read([(0, len(TAR))]).loads) == list(plan.loads)


def test_frames_in_the_window_are_not_loaded_again_and_others_are() -> None:
    near = [number * FRAME_LEN for number in range(WINDOW_FRAMES)]
    far = [number * FRAME_LEN for number in range(WINDOW_FRAMES + 1)]
    assert list(read([(offset, 1) for offset in near * 3]).loads) == [0, 1, 2, 3]
    plan = read([(offset, 1) for offset in far * 3])
    assert list(plan.loads) == [0, 1, 2, 3, 4] * 3
    assert (plan.loaded_len, plan.jumps) == (15 * FRAME_LEN, 3)
    used_last = [0, 1, 2, 3, 0, 4, 0, 1]
    assert list(read([(number * FRAME_LEN, 1) for number in used_last]).loads) == [0, 1, 2, 3, 4, 1]


def test_a_range_beyond_the_tar_is_refused() -> None:
    with pytest.raises(ArchiveFormatError, match="its tar has"):
        plan_of(open_volume(VOLUME), [(len(TAR) - 1, 2)])


def test_damage_shows_where_the_frame_is_needed() -> None:
    frame = open_volume(VOLUME).frame_at(20_000)
    damaged = bytearray(VOLUME)
    damaged[frame.offset + frame.length - 2] ^= 1
    volume = open_volume(bytes(damaged))
    ranges = [(0, 5000), (30_000, 10), (19_000, 3000)]
    with WindowReader(volume, plan_of(volume, ranges)) as window:
        assert b"".join(window.iter_range(*ranges[0])) == TAR[:5000]
        assert b"".join(window.iter_range(*ranges[1])) == TAR[30_000:30_010]
        pieces = window.iter_range(*ranges[2])
        assert next(pieces) == TAR[19_000 : frame.tar_offset]
        with pytest.raises(IntegrityError, match="damaged"):
            next(pieces)
