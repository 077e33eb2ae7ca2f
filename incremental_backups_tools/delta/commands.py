"""The commands of a delta: written by :class:`CommandWriter`, read by :class:`CommandReader`, held by
:class:`Delta`."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import msgspec

from incremental_backups_tools.delta._twin import (
    COPY,
    PARSE_EMPTY,
    PARSE_END,
    PARSE_UNKNOWN,
    PARSE_WRAPS,
)
from incremental_backups_tools.delta.formats import (
    COPY_N1_N1,
    DELTA_MAGIC,
    END,
    LITERAL_N1,
    SHORT_LITERAL_MAX,
)
from incremental_backups_tools.delta.kernels import Kernel, choose_kernel
from incremental_backups_tools.delta.streams import read_into, write_all
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

__all__ = [
    "Command",
    "CommandReader",
    "CommandWriter",
    "Copy",
    "Delta",
    "Literal",
    "encode_copy",
    "encode_literal",
]

_TRIPLE = struct.Struct("=QQQ")
_BUFFER_LEN = 256 * 1024
_JOIN_LEN = 16 * 1024
"""Literals shorter than this are gathered, so that neighbours become one command and small writes one large
one."""


class Copy(msgspec.Struct, frozen=True):
    """Take *length* bytes from *offset* of the basis."""

    offset: int
    length: int


class Literal(msgspec.Struct, frozen=True):
    """Take *length* bytes that stand in the delta itself, from *offset* on."""

    offset: int
    length: int


Command: TypeAlias = "Copy | Literal"


def _encode_number(number: int) -> tuple[int, bytes]:
    """How wide *number* is (0 to 3 for 1, 2, 4 or 8 bytes), and its bytes."""
    if number < 1 << 8:
        return 0, number.to_bytes(1, "big")
    if number < 1 << 16:
        return 1, number.to_bytes(2, "big")
    if number < 1 << 32:
        return 2, number.to_bytes(4, "big")
    return 3, number.to_bytes(8, "big")


def encode_literal(length: int) -> bytes:
    """The command before *length* bytes of literal data, in its shortest form."""
    if length <= SHORT_LITERAL_MAX:
        return bytes([length])
    width, number = _encode_number(length)
    return bytes([LITERAL_N1 + width]) + number


def encode_copy(offset: int, length: int) -> bytes:
    """The command that copies, in its shortest form."""
    offset_width, offset_bytes = _encode_number(offset)
    length_width, length_bytes = _encode_number(length)
    return bytes([COPY_N1_N1 + 4 * offset_width + length_width]) + offset_bytes + length_bytes


class CommandWriter:
    """Writes a delta to *out* as its commands come; joins copies that continue each other, and short
    literals.

    Attributes:
        written: bytes of the delta so far.
        literal_bytes: bytes given as literals.
        copied_bytes: bytes given as copies.
        commands: commands written, END not counted.
    """

    def __init__(self, out: BinaryIO, *, max_output: int | None = None) -> None:
        self.written = 0
        self.literal_bytes = 0
        self.copied_bytes = 0
        self.commands = 0
        self._out = out
        self._max_output = max_output
        self._queue = bytearray()  # encoded, not yet written to out
        self._literal = bytearray()
        self._copy: tuple[int, int] | None = None
        self._put(DELTA_MAGIC)

    def copy(self, offset: int, length: int) -> None:
        """Append a copy from the basis."""
        self.copied_bytes += length
        if self._copy is not None:
            start, so_far = self._copy
            if start + so_far == offset:
                self._copy = (start, so_far + length)
                return
            self._end_copy()
        elif self._literal:
            self._end_literal()
        self._copy = (offset, length)

    def literal(self, data: Buffer) -> None:
        """Append literal data."""
        view = memoryview(data)
        if not len(view):
            return
        self.literal_bytes += len(view)
        self._end_copy()
        if len(self._literal) + len(view) < _JOIN_LEN:
            self._literal += view
            return
        if len(view) < _JOIN_LEN:
            self._literal += view
            self._end_literal()
            return
        self._end_literal()
        self._put_literal(view)

    def finish(self) -> None:
        """Append END and write what is left."""
        self._end_copy()
        self._end_literal()
        self._put(bytes([END]))
        self._flush()

    def _end_copy(self) -> None:
        if self._copy is not None:
            self.commands += 1
            self._put(encode_copy(*self._copy))
            self._copy = None

    def _end_literal(self) -> None:
        if self._literal:
            literal, self._literal = self._literal, bytearray()
            self._put_literal(literal)

    def _put_literal(self, data: Buffer) -> None:
        view = memoryview(data)
        self.commands += 1
        self._put(encode_literal(len(view)))
        self._put(view)

    def _put(self, data: Buffer) -> None:
        view = memoryview(data)
        self.written += len(view)
        if self._max_output is not None and self.written > self._max_output:
            raise LimitExceededError(f"the delta would exceed {self._max_output} bytes")
        if len(view) >= _JOIN_LEN:
            self._flush()
            write_all(self._out, view)
            return
        self._queue += view
        if len(self._queue) >= _BUFFER_LEN:
            self._flush()

    def _flush(self) -> None:
        write_all(self._out, self._queue)
        self._queue = bytearray()


class CommandReader:
    """Reads a delta once, from where *file* stands to its end.

    Iterate :meth:`batches`; :meth:`literal_parts` gives the bytes of the literals, which must be asked for
    in order and before the next batch, or are skipped.

    Raises:
        DeltaFormatError: by all methods, for a delta that is cut, has a reserved command, a command of
        length 0, a length
            beyond 63 bits, or bytes after END.
    """

    def __init__(self, file: BinaryIO, *, kernel: Kernel | None = None) -> None:
        self._file = file
        self._kernel = choose_kernel(kernel)
        self._storage = memoryview(bytearray(_BUFFER_LEN))
        self._buffer = self._storage[:0]
        self._base = 0  # offset in the delta of the buffer's first byte
        self._at_end = False

    def batches(self) -> Iterator[list[tuple[int, int, int]]]:
        """Commands as (kind, offset, length), many at a time."""
        self._fill()
        if bytes(self._buffer[: len(DELTA_MAGIC)]) != DELTA_MAGIC:
            raise DeltaFormatError(
                f"not a librsync delta: it begins with {bytes(self._buffer[:4]).hex() or 'nothing'}"
            )
        following, status = len(DELTA_MAGIC), -1
        while status != PARSE_END:
            self._skip_to(following)
            start = following
            status, following, packed = self._kernel.parse_commands(self._buffer, self._base)
            if status in _PARSE_ERRORS:
                raise DeltaFormatError(f"{_PARSE_ERRORS[status]} at offset {following} of the delta")
            if packed:
                yield list(_TRIPLE.iter_unpack(packed))
            elif status != PARSE_END and following == start and not self._fill():
                raise DeltaFormatError(
                    f"delta is cut at offset {self._base + len(self._buffer)}: there is no END"
                )
        self._skip_to(following)
        if len(self._buffer) or self._fill():
            raise DeltaFormatError(f"bytes after END at offset {following} of the delta")

    def literal_parts(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of a literal, in parts that are valid until the next one is asked for."""
        self._skip_to(offset)
        while length:
            if not len(self._buffer) and not self._fill():
                raise DeltaFormatError(f"delta is cut at offset {self._base}: a literal lacks {length} bytes")
            part = self._buffer[:length]
            length -= len(part)
            self._base += len(part)
            self._buffer = self._buffer[len(part) :]
            yield part

    def _fill(self) -> bool:
        """Move what is left to the front and read on; whether anything came."""
        if self._at_end:
            return False
        kept = len(self._buffer)
        self._storage[:kept] = bytes(self._buffer)
        count = read_into(self._file, self._storage[kept:])
        self._at_end = count == 0
        self._buffer = self._storage[: kept + count]
        return count > 0

    def _skip_to(self, offset: int) -> None:
        while offset - self._base > len(self._buffer):
            self._base += len(self._buffer)
            self._buffer = self._storage[:0]
            if not self._fill():
                raise DeltaFormatError(
                    f"delta is cut at offset {self._base}: a literal lacks {offset - self._base} bytes"
                )
        self._buffer = self._buffer[offset - self._base :]
        self._base = offset


_PARSE_ERRORS = {
    PARSE_UNKNOWN: "unknown command",
    PARSE_EMPTY: "command of length 0",
    PARSE_WRAPS: "command that reaches beyond 2^63",
}


class Delta:
    """A delta that was read whole: its commands and what they add up to.  Literal bytes are not held.

    Attributes:
        output_len: bytes of the file that it makes.
        literal_bytes: how many of them stand in the delta.
        copied_bytes: how many come from the basis.
        basis_len: bytes that the basis must have at least.
    """

    __slots__ = ("_packed", "basis_len", "copied_bytes", "literal_bytes")

    def __init__(self, file: BinaryIO, *, kernel: Kernel | None = None) -> None:
        self._packed = bytearray()
        self.literal_bytes = self.copied_bytes = self.basis_len = 0
        for batch in CommandReader(file, kernel=kernel).batches():
            for kind, offset, length in batch:
                self._packed += _TRIPLE.pack(kind, offset, length)
                if kind == COPY:
                    self.copied_bytes += length
                    self.basis_len = max(self.basis_len, offset + length)
                else:
                    self.literal_bytes += length

    @classmethod
    def from_file(cls, file: BinaryIO, *, kernel: Kernel | None = None) -> Delta:
        """Read a delta from where *file* stands to its end.

        Raises:
            DeltaFormatError: it is cut, damaged or followed by other bytes.
        """
        return cls(file, kernel=kernel)

    @classmethod
    def from_bytes(cls, buffer: Buffer, *, kernel: Kernel | None = None) -> Delta:
        """Read a delta from a buffer; see :meth:`from_file`."""
        return cls(io.BytesIO(buffer), kernel=kernel)

    @property
    def output_len(self) -> int:
        """Bytes of the file that it makes."""
        return self.literal_bytes + self.copied_bytes

    def __len__(self) -> int:
        return len(self._packed) // _TRIPLE.size

    def __iter__(self) -> Iterator[Command]:
        for kind, offset, length in _TRIPLE.iter_unpack(self._packed):
            yield Copy(offset, length) if kind == COPY else Literal(offset, length)

    def __repr__(self) -> str:
        return f"<Delta commands={len(self)} literal_bytes={self.literal_bytes} copied_bytes={self.copied_bytes}>"
