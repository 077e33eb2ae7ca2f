"""Applying deltas piece by piece: the new file as it is asked for, the old one where it is copied from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from incremental_backups_tools.delta._twin import COPY
from incremental_backups_tools.delta.patch import check_copies
from incremental_backups_tools.exceptions import DeltaFormatError, LimitExceededError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from incremental_backups_tools.delta.composition import Program

__all__ = ["Basis", "iter_copies", "iter_patched"]

_BLOCK_LEN: Final = 1 << 20
# A piece of the basis that is this long is passed on as it is, not copied.
_WHOLE_PIECE_LEN: Final = 1 << 18


class Basis(Protocol):
    """What the copies of a delta are read from."""

    @property
    def length(self) -> int:
        """Bytes of the old file."""

    def iter_range(self, offset: int, length: int, /) -> Iterator[bytes | memoryview]:
        """The bytes there, in pieces that never change."""


def iter_patched(
    basis: Basis, program: Program, *, max_output: int | None = None
) -> Iterator[bytes | memoryview]:
    """Rebuild a file piece by piece. What *program* copies of the basis is read in that order, and nothing else is.

    The pieces never change. They have up to a MiB, or what the basis gives as one.

    Raises:
        DeltaFormatError, LimitExceededError, OSError: as :func:`patch`; and what the basis raises.
    """
    block = _Block(_BLOCK_LEN if max_output is None else max(1, min(max_output, _BLOCK_LEN)))
    for kind, offset, length in _iter_checked(program, basis.length, max_output):
        if kind == COPY:
            for piece in basis.iter_range(offset, length):
                if len(piece) >= _WHOLE_PIECE_LEN:
                    if block.filled:
                        yield block.take()
                    yield piece
                    continue
                while piece := block.fill(piece):
                    yield block.take()
            continue
        while length:
            if block.is_full:
                yield block.take()
            count = block.fill_from(program, offset, length)
            if not count:
                raise DeltaFormatError(f"the delta ended early: a literal lacks {length} bytes")
            offset += count
            length -= count
    if block.filled:
        yield block.take()


def iter_copies(
    program: Program, *, basis_len: int, max_output: int | None = None
) -> Iterator[tuple[int, int]]:
    """What a program copies of a basis of *basis_len* bytes: offsets and lengths, in the order of the copies.

    Raises:
        DeltaFormatError, LimitExceededError, OSError: as :func:`patch`.
    """
    for kind, offset, length in _iter_checked(program, basis_len, max_output):
        if kind == COPY:
            yield offset, length


def _iter_checked(program: Program, basis_len: int, max_output: int | None) -> Iterator[tuple[int, int, int]]:
    written = 0
    for batch in program.batches():
        check_copies(batch, basis_len)
        for command in batch:
            written += command[2]
            if max_output is not None and written > max_output:
                raise LimitExceededError(f"the delta makes more than {max_output} bytes")
            yield command


class _Block:
    """Short pieces become long ones.

    Attributes:
        filled: bytes in it.
    """

    def __init__(self, length: int) -> None:
        self.filled = 0
        self._length = length
        self._buffer = memoryview(bytearray(length))

    @property
    def is_full(self) -> bool:
        """Whether it has no more room."""
        return self.filled == self._length

    def fill(self, piece: bytes | memoryview) -> bytes | memoryview:
        """Take as much of *piece* as there is room for; returns the rest."""
        start = self.filled
        self.filled = end = min(start + len(piece), self._length)
        self._buffer[start:end] = piece[: end - start]
        return piece[end - start :]

    def fill_from(self, program: Program, offset: int, length: int) -> int:
        """Take of a literal what there is room for; returns how many bytes came, 0 only where there are no more."""
        start = self.filled
        count = program.read_at(offset, self._buffer[start : start + length])
        self.filled += count
        return count

    def take(self) -> memoryview:
        """What is in it; it is empty then."""
        taken = self._buffer[: self.filled]
        self._buffer = memoryview(bytearray(self._length))
        self.filled = 0
        return taken
