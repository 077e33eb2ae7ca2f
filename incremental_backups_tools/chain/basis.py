"""The whole copy that a file's deltas stand on, read by range and in the order in which they copy from it.

A short one is held. A long one is read out of its volume, each frame as it comes up, and nothing is written down. Where
copies jump so much to and fro that frames would be decompressed again and again, all of it goes to a temporary file
first, whose ranges cost what they are long.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from operator import itemgetter
from typing import BinaryIO, Final, Protocol

import msgspec

from incremental_backups_tools.archive.frame_window import WINDOW_LEN, WindowPlan, WindowReader
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.deltas import Ranges, spooled
from incremental_backups_tools.delta.composition import Program
from incremental_backups_tools.delta.piecewise import Basis, iter_copies
from incremental_backups_tools.exceptions import ArchiveFormatError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import Location
from incremental_backups_tools.tree.sparse import (
    Extents,
    data_len,
    find_map_fault,
    iter_zeros,
    mapped_size,
)

# A copy of up to this many bytes is held in memory.
_HELD_LEN: Final = 8 << 20
# What a fetch of its own costs, in bytes that could be read meanwhile.
_JUMP_LEN: Final = 1 << 20
_PIECE_LEN: Final = 1 << 18


@contextmanager
def open_basis(
    copy: Location, program: Program, archives: Ranges, *, max_output: int, idle: IdleWorkers | None = None
) -> Iterator[Basis]:
    """The file whose whole copy lies at *copy*, to be read once each and in order what *program* copies of it.

    Args:
        max_output: most bytes that the program may make.
        idle: read some of it ahead.

    Raises:
        ArchiveFormatError, ChainError, IntegrityError, RepositoryError: the copy is damaged or not there.
        DeltaFormatError, LimitExceededError: the program is not one for this file.
        OSError: a temporary file cannot be written.
    """
    extents = checked_extents(copy)
    length = mapped_size(extents)
    holes = _Holes(extents) if copy.sparse is not None else None
    with ExitStack() as stack:
        data: _Data
        if copy.length <= _HELD_LEN:
            data = _Held(b"".join(archives.iter_range(copy)))
        else:
            copies = iter_copies(program, basis_len=length, max_output=max_output)
            plan = _plan(copy, archives.reader(copy.file), _data_ranges(copies, holes))
            if plan is not None:
                window = WindowReader(archives.reader(copy.file), plan, idle)
                data = _InVolume(stack.enter_context(window), copy.offset)
            else:
                data = _Spooled(stack.enter_context(spooled(archives.iter_range(copy, idle))))
        yield _Whole(length, data) if holes is None else _Holed(length, data, holes)


def checked_extents(copy: Location) -> Extents:
    """The map of a whole copy; of one without holes, one extent.

    Raises:
        ArchiveFormatError: it contradicts itself or the copy.
    """
    extents = copy.sparse if copy.sparse is not None else ((0, copy.length),)
    fault = find_map_fault(extents)
    if fault is None and data_len(extents) != copy.length:
        fault = f"a sparse copy of {copy.length} bytes, its map has {data_len(extents)}"
    if fault is not None:
        raise ArchiveFormatError(f"{copy.file}: {fault}")
    return extents


def _data_ranges(copies: Iterator[tuple[int, int]], holes: _Holes | None) -> Iterator[tuple[int, int]]:
    """What ranges of a file are in its copy."""
    if holes is None:
        return copies
    parts = (part for offset, length in copies for part in holes.iter_parts(offset, length))
    return ((offset, length) for offset, length in parts if offset is not None)


def _plan(copy: Location, volume: VolumeReader, ranges: Iterator[tuple[int, int]]) -> WindowPlan | None:
    """How *ranges* of a copy are read frame by frame; None where that is much more than reading it once."""
    volume.frames_for(copy.offset, copy.length)  # refuses one that reaches beyond the tar
    plan = WindowPlan(volume)
    # Not two or three times as much, though that is faster than a file: the store may be far away, and its bytes dear.
    most = copy.length + copy.length // 8 + WINDOW_LEN
    for offset, length in ranges:
        plan.add(copy.offset + offset, length)
        if plan.loaded_len + plan.jumps * _JUMP_LEN > most:
            return None
    return plan


class _Data(Protocol):
    """The bytes of a copy, without holes."""

    def iter_range(self, offset: int, length: int, /) -> Iterator[bytes | memoryview]:
        """The bytes there."""


class _Whole(msgspec.Struct, frozen=True):
    """A file without holes."""

    length: int
    data: _Data

    def iter_range(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        return self.data.iter_range(offset, length)


class _Holed(msgspec.Struct, frozen=True):
    """A file with holes, which are zeros from memory."""

    length: int
    data: _Data
    holes: _Holes

    def iter_range(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        for data_offset, count in self.holes.iter_parts(offset, length):
            if data_offset is None:
                yield from iter_zeros(count)
            else:
                yield from self.data.iter_range(data_offset, count)


class _Holes:
    """Where the bytes of a file with holes lie in its copy."""

    def __init__(self, extents: Extents) -> None:
        self._extents = extents
        self._data_offsets = list(accumulate((length for _, length in extents), initial=0))

    def iter_parts(self, offset: int, length: int) -> Iterator[tuple[int | None, int]]:
        """The parts of a range of the file: offset in the copy, None of a hole, and length."""
        end = offset + length
        number = bisect_right(self._extents, offset, key=itemgetter(0)) - 1
        while offset < end:
            start, extent_len = self._extents[number] if number >= 0 else (0, 0)
            if offset < start + extent_len:
                count = min(end, start + extent_len) - offset
                yield self._data_offsets[number] + offset - start, count
            else:
                number += 1
                count = min(end, self._extents[number][0]) - offset
                if count:
                    yield None, count
            offset += count


class _Held:
    """A copy in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def iter_range(self, offset: int, length: int) -> Iterator[memoryview]:
        return iter((self._data[offset : offset + length],))


class _InVolume:
    """A copy that is read out of its volume."""

    def __init__(self, window: WindowReader, start: int) -> None:
        self._window = window
        self._start = start

    def iter_range(self, offset: int, length: int) -> Iterator[memoryview]:
        return self._window.iter_range(self._start + offset, length)


class _Spooled:
    """A copy in a temporary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()

    def iter_range(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        while offset < end:
            piece = os.pread(self._fd, min(end - offset, _PIECE_LEN), offset)
            yield piece
            offset += len(piece)
