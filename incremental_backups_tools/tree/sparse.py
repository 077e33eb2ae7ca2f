"""Holes in files: found without reading, described by a map of bounded length, and written as holes again.

A map is the file's extents of data as (offset, length), in order. The last one ends where the file does: an
empty one stands there where the file ends in a hole. So a map also says how long its file is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

Extents = tuple[tuple[int, int], ...]

# Extents begin and end at multiples of this, which is a multiple of tar's block: GNU tar pads each to one.
GRAIN: Final = 4096
# A map is read, stored and held whole: at this length it is some 200 KiB of numbers. Of a file with more extents
# the shortest holes are read and stored as the zeros that they are, which compress to next to nothing.
MAX_EXTENTS: Final = 8192
_MIN_HOLE_LEN: Final = GRAIN
_MAX_FILE_LEN: Final = (1 << 63) - 1
_STAT_BLOCK_LEN: Final = 512  # of st_blocks, whatever the file system's own blocks are
_SEEK_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.ENOSYS, errno.ESPIPE})

ZEROS: Final = bytes(1 << 18)


def find_extents(fd: int, info: os.stat_result) -> Extents | None:
    """The map of an open regular file; None where it has no holes or the file system does not tell.

    The file is neither read nor left at another position than its start.

    Raises:
        OSError: seeking failed.
    """
    if info.st_blocks * _STAT_BLOCK_LEN >= info.st_size or info.st_size <= GRAIN:
        return None
    size = info.st_size
    found = _Map()
    end = 0
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            found.add(start, min(end, size))
    except OSError as error:
        if error.errno in _SEEK_UNSUPPORTED:
            return None
        if error.errno != errno.ENXIO:  # there is nothing but a hole from here on
            raise
    finally:
        os.lseek(fd, 0, os.SEEK_SET)
    extents = found.extents(size)
    return None if extents == ((0, size),) else extents


class _Map:
    """Extents as they are found, from front to back."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []
        self._min_hole_len = _MIN_HOLE_LEN

    def add(self, start: int, end: int) -> None:
        """Data from *start* to *end*."""
        start -= start % GRAIN
        end += -end % GRAIN
        if self._ranges and start - self._ranges[-1][1] < self._min_hole_len:
            self._ranges[-1][1] = end
            return
        self._ranges.append([start, end])
        if len(self._ranges) == MAX_EXTENTS:
            self._close_shorter_holes()

    def _close_shorter_holes(self) -> None:
        """Take the shorter half of all holes for data. Of many equal ones every second goes, not all."""
        ranges = self._ranges
        lengths = [following[0] - before[1] for before, following in pairwise(ranges)]
        by_length = sorted(range(len(lengths)), key=lambda number: (lengths[number], number % 2))
        closed = set(by_length[: len(by_length) // 2])
        self._min_hole_len = max(lengths[number] for number in closed)
        kept = [ranges[0]]
        for number, following in enumerate(ranges[1:]):
            if number in closed:
                kept[-1][1] = following[1]
            else:
                kept.append(following)
        self._ranges = kept

    def extents(self, size: int) -> Extents:
        """The map of a file of *size* bytes."""
        extents = [(start, min(end, size) - start) for start, end in self._ranges if start < size]
        if not extents or sum(extents[-1]) < size:
            extents.append((size, 0))
        return tuple(extents)


def data_len(extents: Extents) -> int:
    """Bytes of data in a map."""
    return sum(length for _, length in extents)


def mapped_size(extents: Extents) -> int:
    """Length of the file that a map describes."""
    return sum(extents[-1]) if extents else 0


def find_map_fault(extents: Extents) -> str | None:
    """What makes a map from a repository impossible, as a phrase; None where it is sound."""
    end = 0
    for offset, length in extents:
        if offset < end or length < 0:
            return f"a sparse map with an extent of {length} bytes at {offset}, after one that ends at {end}"
        end = offset + length
    if end > _MAX_FILE_LEN:
        return f"a sparse map of a file of {end} bytes"
    return None if extents else "an empty sparse map"


def iter_zeros(length: int) -> Iterator[bytes]:
    """*length* bytes of zeros, piece by piece, from memory."""
    while length >= len(ZEROS):
        yield ZEROS
        length -= len(ZEROS)
    if length:
        yield ZEROS[:length]


def is_zeros(data: bytes | memoryview) -> bool:
    """Whether there is nothing but zeros in *data*."""
    view = memoryview(data)
    # Comparing bytes is memcmp, of memoryviews it is not; and nearly all data shows at once that it is none.
    return all(
        bytes(view[start : start + len(ZEROS)]) == ZEROS[: len(view) - start]
        for start in range(0, len(view), len(ZEROS))
    )


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write *data* whole at *offset*; the file's position stays as it is."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


class SparseWriter:
    """Writes a new file from front to back and leaves holes.

    Args:
        fd: an empty regular file, opened for writing; its position is not used.
        extents: where data is known to be; the rest is left a hole as far as it is zeros. None leaves out
            whatever pieces are zeros.
    """

    def __init__(self, fd: int, extents: Extents | None = None) -> None:
        self._fd = fd
        self._extents = extents or ()
        self._next = 0
        self.position = 0

    def write(self, data: bytes | memoryview) -> int:
        """Take the next bytes of the file; returns their number."""
        known_zeros = data is ZEROS
        view = memoryview(data)
        while view:
            in_data, length = self._range_at(len(view))
            piece = view[:length]
            if in_data or not (known_zeros or is_zeros(piece)):
                write_at(self._fd, piece, self.position)
            self.position += length
            view = view[length:]
        return len(data)

    def finish(self) -> None:
        """Give the file its length, also where it ends in a hole."""
        os.ftruncate(self._fd, self.position)

    def _range_at(self, length: int) -> tuple[bool, int]:
        """Whether data is mapped at the current position, and for how many of the next *length* bytes."""
        while self._next < len(self._extents) and sum(self._extents[self._next]) <= self.position:
            self._next += 1
        if self._next == len(self._extents):
            return False, length
        offset, extent_len = self._extents[self._next]
        if self.position < offset:
            return False, min(length, offset - self.position)
        return True, min(length, offset + extent_len - self.position)
