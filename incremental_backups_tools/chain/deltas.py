"""A file's deltas, read out of their volumes and composed: into a program that makes the file, or into one delta.

However long the chain, deltas compose without the file, and what a later one overwrote is never looked at.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import accumulate
from typing import BinaryIO, Final, Protocol, cast

from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.delta import compose
from incremental_backups_tools.delta.composition import OneDelta, Program, compose_commands
from incremental_backups_tools.delta.streams import Part, reader_at, write_all
from incremental_backups_tools.exceptions import LimitExceededError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import Location

# Deltas of up to this many bytes, all of a file's together, are held in memory.
_HELD_LEN: Final = 8 << 20
# Commands of a program that is held: at most some 50 MB while it is composed. More are composed on the disk.
_MAX_COMMANDS: Final = 1 << 19
# A command takes up to 17 bytes and yields at least one; magic and END are there always.
_MAX_COMMAND_LEN: Final = 17
_MIN_DELTA_LEN: Final = 64
# Of deltas that are composed on the disk, commands that are held all the same: so many, or one for so many bytes of the
# file. Blocks of a file that long are longer, and deltas that do not pay are not kept.
_MAX_HELD_COMMANDS: Final = 1 << 24
_BYTES_PER_COMMAND: Final = 1 << 13

_ReadAt = Callable[[int, memoryview], int]


class Ranges(Protocol):
    """Where the bytes at a location come from: :class:`Archives`, or what was read of them before."""

    def iter_range(
        self, location: Location, idle: IdleWorkers | None = None, /
    ) -> Generator[bytes, None, None]:
        """The bytes at *location*, piece by piece."""

    def reader(self, file_name: str, /) -> VolumeReader:
        """The reader of a volume."""


@contextmanager
def open_program(
    deltas: Sequence[Location], archives: Ranges, *, max_output: int, idle: IdleWorkers | None = None
) -> Iterator[Program]:
    """What *deltas*, one after the other, make of the file that the first of them stands on.

    Args:
        max_output: most bytes of the last version. A version in between may have had any length.
        idle: read some of them ahead.

    Raises:
        ArchiveFormatError, ChainError, DeltaFormatError, IntegrityError, RepositoryError: one of them is damaged or not
            there.
        LimitExceededError: they are much longer than the file, or have too many commands.
        OSError: a temporary file cannot be written.
        InterruptedError: see :meth:`IdleWorkers.check`.
    """
    with ExitStack() as stack:
        read_at = _read(stack, deltas, archives, max_output, idle)
        places = _places(deltas)
        program: Program | None = compose_commands(read_at, places, max_commands=_MAX_COMMANDS)
        if program is None and len(places) == 1:
            program = OneDelta(read_at, *places[0])
        elif program is None:
            composed = _compose(stack, read_at, places, max_output)
            program = OneDelta(reader_at(composed), 0, composed.seek(0, os.SEEK_END))
        yield program


@contextmanager
def open_composed(deltas: Sequence[Location], archives: Ranges, size: int) -> Iterator[BinaryIO]:
    """The one delta that *deltas* come to, which leads to a version of *size* bytes; at its start.

    Raises:
        as :func:`open_program`.
    """
    with ExitStack() as stack:
        yield _compose(stack, _read(stack, deltas, archives, size, None), _places(deltas), size)


def _places(deltas: Sequence[Location]) -> list[tuple[int, int]]:
    """Where each lies when they stand one after the other."""
    lengths = [location.length for location in deltas]
    return list(zip(accumulate(lengths, initial=0), lengths, strict=False))


def _read(
    stack: ExitStack,
    deltas: Sequence[Location],
    archives: Ranges,
    max_output: int,
    idle: IdleWorkers | None,
) -> _ReadAt:
    """Read all of them, one after the other; returns what reads any part."""
    total_len = sum(location.length for location in deltas)
    # No writer keeps deltas that come to much more than the file.
    limit = max(_HELD_LEN, _max_delta_len(max_output))
    if total_len > limit:
        raise LimitExceededError(
            f"{deltas[-1].file}: deltas of {total_len} bytes, for a file of {max_output} at most {limit}"
        )
    pieces = (piece for location in deltas for piece in archives.iter_range(location, idle))
    if total_len > _HELD_LEN:
        read_spool = reader_at(stack.enter_context(spooled(pieces)))

        def read_unless_stopped(offset: int, buffer: memoryview) -> int:
            if idle is not None:
                idle.check()
            return read_spool(offset, buffer)

        return read_unless_stopped
    with closing(pieces):
        held = memoryview(b"".join(pieces))

    def read_at(offset: int, buffer: memoryview) -> int:
        found = held[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    return read_at


def _compose(
    stack: ExitStack, read_at: _ReadAt, places: Sequence[tuple[int, int]], max_output: int
) -> BinaryIO:
    """One delta, at its start.

    Composed from the last one backwards: so every delta on the way leads to the version that is wanted and is
    bounded by its size.
    """
    max_commands = max(_MAX_HELD_COMMANDS, max_output // _BYTES_PER_COMMAND)
    *earlier, composed = [cast(BinaryIO, Part(read_at, *place)) for place in places]
    for part in reversed(earlier):
        out = cast(BinaryIO, tempfile.SpooledTemporaryFile(_HELD_LEN, prefix="ibt-restore-", buffering=0))
        try:
            compose(part, composed, out, max_output=_max_delta_len(max_output), max_commands=max_commands)
            out.seek(0)
        except BaseException:
            out.close()
            raise
        finally:
            composed.close()
        composed = out
    return stack.enter_context(composed)


def _max_delta_len(max_output: int) -> int:
    """The most bytes of one delta that makes so many."""
    return max_output * _MAX_COMMAND_LEN + _MIN_DELTA_LEN


def spooled(pieces: Generator[bytes, None, None]) -> BinaryIO:
    """A temporary file, unbuffered, that consists of *pieces*."""
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix="ibt-restore-", buffering=0))
    try:
        with closing(pieces):
            for piece in pieces:
                write_all(file, piece)
    except BaseException:
        file.close()
        raise
    return file
