"""One file's content out of its own locations: a whole copy, or one with all its deltas composed.

However long the chain, the base is read once and patched once, piece by piece as the pieces are asked for: deltas
compose without the file, and what a later one overwrote is never written. The holes of a sparse file come as zeros from
memory.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.basis import checked_extents, open_basis
from incremental_backups_tools.chain.deltas import Ranges, open_program
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import patch
from incremental_backups_tools.delta.piecewise import iter_patched
from incremental_backups_tools.exceptions import BackupError, IntegrityError, LimitExceededError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import Location, printable
from incremental_backups_tools.tree.sparse import Extents, iter_zeros, mapped_size

# What is fetched ahead for many small files at once: pieces of up to, and in all.
_MAX_AHEAD_PIECE_LEN: Final = 1 << 20
_MAX_AHEAD_LEN: Final = 8 << 20


class Contents:
    """The contents of a chain's files, for a :class:`ParallelWriter`."""

    def __init__(self, archives: Archives) -> None:
        self._archives = archives
        # Of the frame that was asked for last: its volume and number, and which bytes of the tar it holds.
        self._last: tuple[str, int] | None = None
        self._start = self._end = 0

    def place_of(self, resolved: ResolvedEntry, /) -> tuple[str, int] | None:
        """The frame that a file's whole copy ends in; None for one of several pieces."""
        if len(resolved.data) != 1 or not resolved.data[0].length:
            return None
        [location] = resolved.data
        last = location.offset + location.length - 1
        if self._last is None or self._last[0] != location.file or not self._start <= last < self._end:
            try:
                reader = self._archives.reader(location.file)
                number, frame = reader.frame_number(last), reader.frame_at(last)
            except BackupError:
                return None  # whoever reads it will be told
            self._last = location.file, number
            self._start, self._end = frame.tar_offset, frame.tar_offset + frame.tar_len
        return self._last

    def read_small(self, resolved: Sequence[ResolvedEntry], /) -> Sequence[bytes | memoryview | BackupError]:
        """The whole contents of files of which each may be held in memory."""
        ahead = _read_ahead(resolved, self._archives)
        return [_read_whole(one, ahead) for one in resolved]

    def iter_chunks(
        self, resolved: ResolvedEntry, /, idle: IdleWorkers | None = None
    ) -> Generator[bytes | memoryview, None, None]:
        """As :func:`iter_content`."""
        return iter_content(resolved, self._archives, idle)


class _Ahead:
    """Ranges of which some have been read."""

    def __init__(self, archives: Archives, found: dict[Location, bytes | memoryview | BackupError]) -> None:
        self._archives = archives
        self._found = found

    def iter_range(
        self, location: Location, idle: IdleWorkers | None = None, /
    ) -> Generator[bytes, None, None]:
        found = self.get(location)
        if found is None:
            return self._archives.iter_range(location, idle)
        return (bytes(piece) for piece in (found,) if piece)

    def reader(self, file_name: str, /) -> VolumeReader:
        return self._archives.reader(file_name)

    def get(self, location: Location) -> bytes | memoryview | None:
        """What was read at *location*, if it was."""
        found = self._found.get(location)
        if isinstance(found, BackupError):
            raise found
        return found


def _read_ahead(resolved: Sequence[ResolvedEntry], archives: Archives) -> _Ahead:
    room = _MAX_AHEAD_LEN
    wanted: list[Location] = []
    for one in resolved:
        for location in one.data:
            if location.length <= min(room, _MAX_AHEAD_PIECE_LEN):
                wanted.append(location)
                room -= location.length
    return _Ahead(archives, dict(zip(wanted, archives.read_many(wanted), strict=True)))


def _read_whole(resolved: ResolvedEntry, ahead: _Ahead) -> bytes | memoryview | BackupError:
    try:
        held = [found for found in map(ahead.get, resolved.data) if found is not None]
        if held and len(held) == len(resolved.data) and resolved.data[0].sparse is None:
            with suppress(LimitExceededError):  # a version in between was much larger than this one
                content = patch_in_turn(held, max_output=_MAX_AHEAD_LEN)
                if len(content) == resolved.entry.size:
                    return content
        return b"".join(iter_content(resolved, ahead))
    except BackupError as error:
        return error


def patch_in_turn(pieces: Iterable[bytes | memoryview], *, max_output: int) -> bytes | memoryview:
    """A whole copy with one delta after the other applied, all of which are held.

    To compose the deltas first takes time that grows with the square of their number, and spares the reading of long
    files that changed often: this is for short ones.

    Args:
        max_output: most bytes of any version.

    Raises:
        DeltaFormatError, LimitExceededError: as :func:`patch`.
    """
    content, *deltas = pieces
    for delta in deltas:
        content = patch(content, delta, max_output=max_output)
    return content


def iter_content(
    resolved: ResolvedEntry, archives: Ranges, idle: IdleWorkers | None = None
) -> Generator[bytes | memoryview, None, None]:
    """The content of a regular file, piece by piece. What it is, the caller checks against its digest.

    The pieces never change. Closing the generator ends what goes on ahead and removes temporary files.

    Args:
        idle: fetch and decompress some of it ahead.

    Raises:
        IntegrityError: the entry says of no place where its content lies.
        ChainError, ArchiveFormatError, DeltaFormatError, LimitExceededError, RepositoryError: a volume or a
            delta is damaged or not there.
    """
    entry = resolved.entry
    if not resolved.data:
        if entry.size:
            raise IntegrityError(
                f"{printable(entry.path)}: no backup holds its content",
                path=printable(entry.path),
                expected=entry.size,
                actual=None,
            )
        return
    base, *deltas = resolved.data
    if not deltas:
        size = base.length if base.sparse is None else mapped_size(base.sparse)
        if size != entry.size:
            raise LimitExceededError(
                f"{printable(entry.path)}: {entry.size} bytes, but its whole copy has {size}"
            )
        yield from _iter_copy(base, archives, idle)
        return
    with (
        open_program(deltas, archives, max_output=entry.size, idle=idle) as program,
        open_basis(base, program, archives, max_output=entry.size, idle=idle) as basis,
    ):
        yield from iter_patched(basis, program, max_output=entry.size)


def iter_expanded(data: Iterator[bytes], extents: Extents) -> Iterator[bytes | memoryview]:
    """The content of a file with holes. *data* are the bytes of its extents, as many as :func:`data_len` says."""
    position = 0
    for offset, piece in _iter_placed(data, extents):
        yield from iter_zeros(offset - position)
        yield piece
        position = offset + len(piece)
    yield from iter_zeros(mapped_size(extents) - position)


def _iter_placed(data: Iterator[bytes], extents: Extents) -> Iterator[tuple[int, memoryview]]:
    """The data of a file with holes: pieces and their offsets in the file."""
    chunk = memoryview(b"")
    for offset, length in extents:
        end = offset + length
        while offset < end:
            chunk = chunk or memoryview(next(data))
            piece, chunk = chunk[: end - offset], chunk[end - offset :]
            yield offset, piece
            offset += len(piece)


def _iter_copy(
    location: Location, archives: Ranges, idle: IdleWorkers | None
) -> Iterator[bytes | memoryview]:
    """A whole copy, with its holes as zeros."""
    if location.sparse is None:
        return archives.iter_range(location, idle)
    return iter_expanded(archives.iter_range(location, idle), checked_extents(location))
