"""Applying a delta."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, BinaryIO, overload

from incremental_backups_tools.delta._twin import COPY
from incremental_backups_tools.delta.commands import CommandReader
from incremental_backups_tools.delta.kernels import choose_kernel
from incremental_backups_tools.delta.streams import (
    FileOrBuffer,
    Reservation,
    open_seekable,
    open_stream,
    reader_at,
    write_all,
)
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Callable

    from incremental_backups_tools.delta.kernels import Kernel

__all__ = ["check_copies", "patch"]

_BUFFERS = (bytes, bytearray, memoryview)
_BUFFER_LEN = 256 * 1024
_RESERVE_MIN = 8 * 1024 * 1024
_RESERVE_MAX = 1024 * 1024 * 1024
# What is held and makes no more than this becomes a file in one call of the kernel.
_HELD_MAX = 1024 * 1024 * 1024


@overload
def patch(
    basis: FileOrBuffer,
    delta: FileOrBuffer,
    out: None = None,
    *,
    max_output: int | None = None,
    kernel: Kernel | None = None,
) -> bytes: ...


@overload
def patch(
    basis: FileOrBuffer,
    delta: FileOrBuffer,
    out: BinaryIO,
    *,
    max_output: int | None = None,
    kernel: Kernel | None = None,
) -> int: ...


def patch(
    basis: FileOrBuffer,
    delta: FileOrBuffer,
    out: BinaryIO | None = None,
    *,
    max_output: int | None = None,
    kernel: Kernel | None = None,
) -> bytes | int:
    """Rebuild a file from its basis and a librsync delta.

    Seeks in *basis*.  On error *out* is partial: discard it.

    Args:
        basis: the old file: path, seekable binary file object (offsets count from its start) or buffer.
        delta: path, binary file object or buffer.
        out: where to write the new file.
        max_output: most bytes to write; None is no limit.  Set it for any delta that comes from storage.
        kernel: the kernel module to compute with.

    Returns:
        The new file, or the number of bytes written to *out*.

    Raises:
        DeltaFormatError: truncated, unknown command, a copy outside *basis*, or data after END.
        LimitExceededError: the result would exceed *max_output*.
        ValueError: *basis* cannot seek.
        OSError: reading or writing failed.
    """
    if out is None and isinstance(basis, _BUFFERS) and isinstance(delta, _BUFFERS):
        max_len = _HELD_MAX if max_output is None else min(max_output, _HELD_MAX)
        patched = choose_kernel(kernel).apply_delta(basis, delta, max_len)
        if patched is not None:
            return patched
        # Going through its commands tells what is wrong, or makes what is very long.
    sink = io.BytesIO() if out is None else out
    with open_seekable(basis) as basis_file, open_stream(delta) as delta_file:
        written = _apply(basis_file, CommandReader(delta_file, kernel=kernel), sink, max_output)
    return sink.getvalue() if out is None and isinstance(sink, io.BytesIO) else written


def _apply(basis: BinaryIO, commands: CommandReader, out: BinaryIO, max_output: int | None) -> int:
    basis_len = basis.seek(0, os.SEEK_END)
    output = _Output(out, reader_at(basis))
    reservation = Reservation(out)
    written = 0
    for batch in commands.batches():
        check_copies(batch, basis_len)
        # What a literal promises may not be there: room is made for copies, which were checked.
        total = written + sum(length for kind, _, length in batch if kind == COPY)
        if total >= _RESERVE_MIN and (max_output is None or total <= max_output):
            reservation.cover(min(total, written + _RESERVE_MAX))
        for kind, offset, length in batch:
            written += length
            if max_output is not None and written > max_output:
                output.flush()
                raise LimitExceededError(f"the delta makes more than {max_output} bytes")
            if kind == COPY:
                output.copy(offset, length)
            else:
                for part in commands.literal_parts(offset, length):
                    output.literal(part)
    output.flush()
    if reservation.is_held:
        out.flush()
        reservation.release(written)
    return written


def check_copies(batch: list[tuple[int, int, int]], basis_len: int) -> None:
    """Make sure that commands, as (kind, offset, length), copy nothing that is not in a basis of *basis_len* bytes.

    Raises:
        DeltaFormatError: one does.
    """
    for kind, offset, length in batch:
        if kind == COPY and offset + length > basis_len:
            raise DeltaFormatError(
                f"delta copies {length} bytes from offset {offset} of a basis of {basis_len} bytes"
            )


class _Output:
    """Gathers what is read from the basis and the delta in one buffer, so that small commands are no small writes."""

    def __init__(self, out: BinaryIO, read_at: Callable[[int, memoryview], int]) -> None:
        self._out = out
        self._read_at = read_at
        self._buffer = memoryview(bytearray(_BUFFER_LEN))
        self._filled = 0

    def copy(self, offset: int, length: int) -> None:
        """Append a range of the basis."""
        while length:
            start = self._filled
            if start == _BUFFER_LEN:
                self.flush()
                start = 0
            end = min(start + length, _BUFFER_LEN)
            count = self._read_at(offset, self._buffer[start:end])
            if not count:
                raise DeltaFormatError(f"the basis ended early: a copy lacks {length} bytes")
            self._filled = start + count
            offset += count
            length -= count

    def literal(self, data: memoryview) -> None:
        """Append literal data."""
        if self._filled + len(data) > _BUFFER_LEN:
            self.flush()
        if len(data) > _BUFFER_LEN // 2:
            self.flush()
            write_all(self._out, data)
            return
        self._buffer[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def flush(self) -> None:
        """Write what was gathered."""
        write_all(self._out, self._buffer[: self._filled])
        self._filled = 0
