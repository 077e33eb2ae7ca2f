"""Several deltas as the commands of one: where each byte of the last version comes from, and none is copied.

:func:`compose` writes a delta. Who is to make the file at once needs no more than its commands: literals are read where
they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from incremental_backups_tools.delta._twin import COPY
from incremental_backups_tools.delta.commands import CommandReader
from incremental_backups_tools.delta.formats import MAX_FILE_LEN
from incremental_backups_tools.delta.streams import Part
from incremental_backups_tools.exceptions import DeltaFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from incremental_backups_tools.delta.kernels import Kernel

    ReadAt = Callable[[int, memoryview], int]
    Commands = Iterator[list[tuple[int, int, int]]]

__all__ = ["Composition", "OneDelta", "Program", "compose_commands"]

_BATCH = 4096


class Program(Protocol):
    """The commands that make a file out of another one, and the bytes of their literals."""

    def batches(self) -> Commands:
        """The commands from the first one on, as (kind, offset, length), many at a time.

        The offset of a copy is in the basis, that of a literal one for :meth:`read_at`.
        """

    def read_at(self, offset: int, buffer: memoryview, /) -> int:
        """Read bytes of literals into *buffer*; returns how many, and 0 only where there are no more."""


class OneDelta(msgspec.Struct, frozen=True):
    """The program of a delta, whose commands are read from it each time.

    Attributes:
        read_all_at: reads the delta and what lies around it.
        start, length: where it lies.
    """

    read_all_at: ReadAt
    start: int
    length: int
    kernel: Kernel | None = None

    def batches(self) -> Commands:
        """As :meth:`Program.batches`; raises DeltaFormatError."""
        part = cast("BinaryIO", Part(self.read_all_at, self.start, self.length))
        return CommandReader(part, kernel=self.kernel).batches()

    def read_at(self, offset: int, buffer: memoryview) -> int:
        """As :meth:`Program.read_at`."""
        return self.read_all_at(self.start + offset, buffer)


class Composition:
    """A program that is held: 17 bytes a command.

    Args:
        read_at: see :meth:`Program.read_at`.

    Attributes:
        output_len: bytes of the file that it makes.
    """

    def __init__(self, read_at: ReadAt) -> None:
        self.output_len = 0
        self.read_at = read_at
        self._kinds = bytearray()
        self._offsets = array("Q")
        self._lengths = array("Q")

    def __len__(self) -> int:
        return len(self._kinds)

    def batches(self) -> Commands:
        """As :meth:`Program.batches`."""
        for start in range(0, len(self), _BATCH):
            part = slice(start, start + _BATCH)
            yield list(zip(self._kinds[part], self._offsets[part], self._lengths[part], strict=True))

    def add(self, kind: int, offset: int, length: int) -> None:
        """Append a command, or make the last one longer where it continues that.

        Raises:
            DeltaFormatError: no file is as long as that.
        """
        self.output_len += length
        if self.output_len > MAX_FILE_LEN:
            raise DeltaFormatError(f"the delta makes a file of {self.output_len} bytes or more")
        if self._kinds and self._kinds[-1] == kind and self._offsets[-1] + self._lengths[-1] == offset:
            self._lengths[-1] += length
            return
        self._kinds.append(kind)
        self._offsets.append(offset)
        self._lengths.append(length)

    def after(self, earlier: Composition, max_commands: int) -> Composition | None:
        """The commands that make of *earlier*'s basis what these make of *earlier*'s output; None if they are too many.

        Raises:
            DeltaFormatError: they do not fit together.
        """
        starts = array("Q", accumulate(earlier._lengths, initial=0))
        result = Composition(self.read_at)
        for kind, offset, length in chain.from_iterable(self.batches()):
            if kind != COPY:
                result.add(kind, offset, length)
                continue
            if offset + length > earlier.output_len:
                raise DeltaFormatError(
                    f"the second delta copies {length} bytes from offset {offset} of a file that the first makes"
                    f" with {earlier.output_len} bytes"
                )
            index = bisect_right(starts, offset) - 1
            while length:
                count = min(length, starts[index + 1] - offset)
                source = earlier._offsets[index] + offset - starts[index]
                result.add(earlier._kinds[index], source, count)
                offset += count
                length -= count
                index += 1
            if len(result) > max_commands:
                return None
        return result


def compose_commands(
    read_at: ReadAt,
    places: Sequence[tuple[int, int]],
    *,
    max_commands: int,
    kernel: Kernel | None = None,
) -> Composition | None:
    """The program that does what deltas do one after the other; None if it has more than *max_commands*.

    Composed from the last one backwards: what a version in between had and the last has not is never looked at.

    Args:
        read_at: reads bytes of the deltas: offset, buffer; returns how many.
        places: where in that each delta lies, as (offset, length), in the order in which they are applied.

    Raises:
        DeltaFormatError: a delta is damaged, or they do not fit together.
    """
    result = _read(read_at, *places[-1], max_commands, kernel)
    for place in reversed(places[:-1]):
        if result is None:
            return None
        earlier = _read(read_at, *place, max_commands, kernel)
        result = result.after(earlier, max_commands) if earlier is not None else None
    return result


def _read(
    read_at: ReadAt, start: int, length: int, max_commands: int, kernel: Kernel | None
) -> Composition | None:
    result = Composition(read_at)
    for batch in OneDelta(read_at, start, length, kernel).batches():
        for kind, offset, count in batch:
            result.add(kind, offset if kind == COPY else start + offset, count)
        if len(result) > max_commands:
            return None
    return result
