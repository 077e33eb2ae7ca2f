"""The search over one large file in several threads.

The file is cut into segments, each searched for itself: matches that begin and end in it. Less than a block
is left undecided at its end; the consumer searches that together with the next segment's beginning, and cuts
off what the next segment's first matches say about bytes that are taken by then. Where segments meet in the
middle of unchanged data, this finds the same copies as one search from beginning to end would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import msgspec

from incremental_backups_tools.delta.parallel import map_in_order
from incremental_backups_tools.delta.streams import read_into
from incremental_backups_tools.delta.window import (
    DeltaStats,
    Found,
    Hasher,
    MatchWriter,
    NewSignature,
    search_steps,
)

if TYPE_CHECKING:
    from incremental_backups_tools.delta.kernels import Kernel
    from incremental_backups_tools.delta.signature import Signature

__all__ = ["search_in_segments"]

_SEGMENT_LEN = 4 * 1024 * 1024
"""Threads in Python meet at the interpreter's lock after every segment: with 512 KiB two were hardly faster
than one."""

_SEGMENT_BLOCKS = 32


class _Segment(msgspec.Struct, frozen=True):
    data: memoryview
    steps: list[Found]
    records: bytes


class _Seams:
    """Joins what was found in the segments, in order."""

    def __init__(self, old: Signature, writer: MatchWriter, kernel: Kernel) -> None:
        self._block_len = old.block_len
        self._table = old.table(kernel)
        self._kernel = kernel
        self._writer = writer
        self._rest = b""  # of the last segment, not decided
        self._next_block = -1

    def append(self, segment: _Segment) -> None:
        """Write all of the segment that is decided."""
        data = segment.data
        if len(data) < self._block_len:  # only the file's last segment is so short
            self._rest += data
            return
        begin = self._close_seam(data)
        for found in segment.steps:
            begin = self._writer.write(data, begin, found)
            self._next_block = found.next_block
        self._rest = bytes(data[begin:])

    def _close_seam(self, data: memoryview) -> int:
        """Decide the rest of the last segment; returns how much of *data* a match beginning there takes."""
        joint = memoryview(self._rest + data[: self._block_len - 1])
        begin = 0
        for found in search_steps(
            self._kernel, self._table, joint, stop=len(self._rest), next_block=self._next_block
        ):
            begin = self._writer.write(joint, begin, found)
        return begin - len(self._rest)

    def finish(self) -> DeltaStats:
        """Write the end of the file."""
        rest = memoryview(self._rest)
        begin = 0
        for found in search_steps(self._kernel, self._table, rest, next_block=self._next_block, is_last=True):
            begin = self._writer.write(rest, begin, found)
        return self._writer.finish(rest[begin:])


def search_in_segments(
    file: BinaryIO,
    old: Signature,
    *,
    out: BinaryIO,
    threads: int,
    kernel: Kernel,
    new: NewSignature | None = None,
    hasher: Hasher | None = None,
) -> tuple[DeltaStats, int]:
    """Make a delta of *file* with several threads; see :class:`WindowSearch` for the arguments.

    Returns:
        What was written to *out*, and the bytes of the file.
    """
    table = old.table(kernel)
    step = new.block_len if new is not None else old.block_len
    segment_len = max(_SEGMENT_LEN, _SEGMENT_BLOCKS * max(step, old.block_len))
    segment_len -= segment_len % step

    def read(buffer: memoryview) -> memoryview | None:
        count = read_into(file, buffer)
        return buffer[:count] if count else None

    def search(data: memoryview) -> _Segment:
        records = new.hash_blocks(data) if new is not None else b""
        known = new.whole_records(records, len(data)) if new is not None else b""
        return _Segment(data, list(search_steps(kernel, table, data, known=known)), records)

    seams = _Seams(old, MatchWriter(out), kernel)
    size = 0
    for segment in map_in_order(read, search, buffer_len=segment_len, threads=threads):
        size += len(segment.data)
        if hasher is not None:
            hasher.update(segment.data)
        if new is not None:
            new.append(segment.records)
        seams.append(segment)
    return seams.finish(), size
