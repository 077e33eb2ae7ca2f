"""Two deltas into one, without any of the files."""

from __future__ import annotations

import io
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING, BinaryIO, overload

from incremental_backups_tools.delta._twin import COPY
from incremental_backups_tools.delta.commands import CommandReader, CommandWriter
from incremental_backups_tools.delta.formats import MAX_FILE_LEN
from incremental_backups_tools.delta.streams import FileOrBuffer, open_seekable, open_stream, read_into
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError

if TYPE_CHECKING:
    from incremental_backups_tools.delta.kernels import Kernel

__all__ = ["compose"]

_BUFFER_LEN = 256 * 1024


class _Composer:
    """Looks up in delta A-to-B where each byte of B comes from.

    Memory: 17 bytes for each command of that delta.
    """

    def __init__(
        self, file: BinaryIO, writer: CommandWriter, kernel: Kernel | None, max_commands: int | None
    ) -> None:
        self._file = file
        self._writer = writer
        self._origin = file.tell()
        self._starts = array("Q")  # where in B the output of each command begins
        self._sources = array("Q")  # offset in A, or of the literal in the delta
        self._is_copy = bytearray()
        self._buffer = memoryview(bytearray(_BUFFER_LEN))
        self.output_len = 0
        for batch in CommandReader(file, kernel=kernel).batches():
            if max_commands is not None and len(self._starts) + len(batch) > max_commands:
                raise LimitExceededError(f"the first delta has more than {max_commands} commands")
            for kind, offset, length in batch:
                self._starts.append(self.output_len)
                self._sources.append(offset)
                self._is_copy.append(kind == COPY)
                self.output_len += length
                if self.output_len > MAX_FILE_LEN:
                    raise DeltaFormatError(f"the first delta makes a file of {self.output_len} bytes or more")

    def copy(self, offset: int, length: int) -> None:
        """Write commands that make B[offset, offset + length)."""
        if offset + length > self.output_len:
            raise DeltaFormatError(
                f"the second delta copies {length} bytes from offset {offset} of a file that the first makes with"
                f" {self.output_len} bytes"
            )
        index = bisect_right(self._starts, offset) - 1
        while length:
            end = self._starts[index + 1] if index + 1 < len(self._starts) else self.output_len
            count = min(length, end - offset)
            source = self._sources[index] + offset - self._starts[index]
            if self._is_copy[index]:
                self._writer.copy(source, count)
            else:
                self._copy_literal(source, count)
            offset += count
            length -= count
            index += 1

    def _copy_literal(self, source: int, length: int) -> None:
        self._file.seek(self._origin + source)
        while length:
            count = read_into(self._file, self._buffer[: min(length, len(self._buffer))])
            if not count:
                raise DeltaFormatError("the first delta changed while it was read")
            self._writer.literal(self._buffer[:count])
            length -= count


@overload
def compose(
    delta_ab: FileOrBuffer,
    delta_bc: FileOrBuffer,
    out: None = None,
    *,
    max_output: int | None = None,
    max_commands: int | None = None,
    kernel: Kernel | None = None,
) -> bytes: ...


@overload
def compose(
    delta_ab: FileOrBuffer,
    delta_bc: FileOrBuffer,
    out: BinaryIO,
    *,
    max_output: int | None = None,
    max_commands: int | None = None,
    kernel: Kernel | None = None,
) -> int: ...


def compose(
    delta_ab: FileOrBuffer,
    delta_bc: FileOrBuffer,
    out: BinaryIO | None = None,
    *,
    max_output: int | None = None,
    max_commands: int | None = None,
    kernel: Kernel | None = None,
) -> bytes | int:
    """Make the delta from A to C out of those from A to B and from B to C.

    ``patch(A, compose(ab, bc)) == patch(patch(A, ab), bc)`` for every A that *ab* fits. Neither A nor B nor
    C is needed. Memory grows with the number of commands of *ab*, not with bytes.

    The result repeats a literal of *ab* as often as *bc* copies it: it is bounded by C, not by its parts.
    Where no byte of B is copied twice it has no more literal bytes than both together and no more commands.

    Args:
        delta_ab: path, seekable binary file object or buffer.
        delta_bc: path, binary file object or buffer.
        out: where to write the delta.
        max_output: most bytes of the composed delta; None is no limit.
        max_commands: most commands of *delta_ab*; None is no limit.
        kernel: the kernel module to compute with.

    Returns:
        The delta, or the number of bytes written to *out*.

    Raises:
        DeltaFormatError: one of the two is damaged, or they do not fit together.
        LimitExceededError: the composed delta would exceed *max_output*, or *delta_ab* has too many commands.
        ValueError: *delta_ab* cannot seek.
        OSError: reading or writing failed.
    """
    sink = io.BytesIO() if out is None else out
    with open_seekable(delta_ab) as first, open_stream(delta_bc) as second:
        writer = CommandWriter(sink, max_output=max_output)
        composer = _Composer(first, writer, kernel, max_commands)
        reader = CommandReader(second, kernel=kernel)
        for batch in reader.batches():
            for kind, offset, length in batch:
                if kind == COPY:
                    composer.copy(offset, length)
                else:
                    for part in reader.literal_parts(offset, length):
                        writer.literal(part)
        writer.finish()
    return sink.getvalue() if out is None and isinstance(sink, io.BytesIO) else writer.written
