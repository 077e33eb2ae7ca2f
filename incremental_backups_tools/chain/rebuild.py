"""One file's content out of its own locations: a whole copy, or one with all its deltas composed.

However long the chain, the base is read once and patched once: deltas compose without the file, and what
a later one overwrote is never written. The holes of a sparse file come as zeros from memory, and are holes in
temporary files too: rebuilding it takes the room of its data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Final, Protocol, cast

from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import compose, patch
from incremental_backups_tools.exceptions import (
    ArchiveFormatError,
    BackupError,
    IntegrityError,
    LimitExceededError,
)
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import Location, printable
from incremental_backups_tools.tree.sparse import (
    Extents,
    SparseWriter,
    data_len,
    find_map_fault,
    iter_zeros,
    mapped_size,
    write_at,
)

_SPOOL_LEN: Final = 8 << 20
_CHUNK_LEN: Final = 1 << 20
# A command takes up to 17 bytes and yields at least one; magic and END are there always.
_MAX_COMMAND_LEN: Final = 17
_MIN_DELTA_LEN: Final = 64
# What is fetched ahead for many small files at once: pieces of up to, and in all.
_MAX_AHEAD_PIECE_LEN: Final = 1 << 20
_MAX_AHEAD_LEN: Final = 8 << 20


class Ranges(Protocol):
    """Where the bytes at a location come from: :class:`Archives`, or what was read of them before."""

    def iter_range(self, location: Location, idle: IdleWorkers | None = None, /) -> Iterator[bytes]:
        """The bytes at *location*, piece by piece."""


class Contents:
    """The contents of a chain's files, for a :class:`ParallelWriter`."""

    def __init__(self, archives: Archives) -> None:
        self._archives = archives
        self._last: tuple[str, VolumeReader] | None = None

    def place_of(self, resolved: ResolvedEntry, /) -> tuple[str, int] | None:
        """The frame that a file's whole copy ends in; None for one of several pieces."""
        if len(resolved.data) != 1 or not resolved.data[0].length:
            return None
        [location] = resolved.data
        try:
            if self._last is None or self._last[0] != location.file:
                self._last = location.file, self._archives.reader(location.file)
            return location.file, self._last[1].frame_number(location.offset + location.length - 1)
        except BackupError:
            return None  # whoever reads it will be told

    def read_small(self, resolved: Sequence[ResolvedEntry], /) -> Sequence[bytes | memoryview | BackupError]:
        """The whole contents of files of which each may be held in memory."""
        ahead = _read_ahead(resolved, self._archives)
        return [_read_whole(one, ahead) for one in resolved]

    def iter_chunks(
        self, resolved: ResolvedEntry, /, idle: IdleWorkers | None = None
    ) -> Generator[bytes, None, None]:
        """As :func:`iter_content`."""
        return iter_content(resolved, self._archives, idle)


class _Ahead:
    """Ranges of which some have been read."""

    def __init__(self, archives: Archives, found: dict[Location, bytes | memoryview | BackupError]) -> None:
        self._archives = archives
        self._found = found

    def iter_range(self, location: Location, idle: IdleWorkers | None = None, /) -> Iterator[bytes]:
        found = self.get(location)
        if found is None:
            return self._archives.iter_range(location, idle)
        return iter((bytes(found),)) if found else iter(())

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
        if len(resolved.data) == 1:
            [location] = resolved.data
            if location.sparse is None and location.length == resolved.entry.size:
                found = ahead.get(location)
                if found is not None:
                    return found
        return b"".join(iter_content(resolved, ahead))
    except BackupError as error:
        return error


def iter_content(
    resolved: ResolvedEntry, archives: Ranges, idle: IdleWorkers | None = None
) -> Generator[bytes, None, None]:
    """The content of a regular file, piece by piece. What it is, the caller checks against its digest.

    Args:
        idle: fetch and decompress some of it ahead, until the generator is closed.

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
    with ExitStack() as stack:
        delta = stack.enter_context(_composed(deltas, archives, entry.size))
        if base.sparse is None and entry.sparse is None:
            basis = stack.enter_context(_spooled(archives.iter_range(base, idle)))
            out = stack.enter_context(_new_spool())
            patch(basis, delta, out, max_output=entry.size)
            out.seek(0)
        else:
            out = stack.enter_context(_patched_sparse(base, delta, archives, entry.size))
        while chunk := out.read(_CHUNK_LEN):
            yield chunk


@contextmanager
def open_composed(deltas: list[Location], archives: Archives, size: int) -> Iterator[BinaryIO]:
    """The one delta that *deltas* come to, which leads to a version of *size* bytes; at its start.

    Raises:
        ArchiveFormatError, DeltaFormatError, IntegrityError, LimitExceededError, RepositoryError: one of them is
            damaged or not there.
    """
    with _composed(deltas, archives, size) as composed:
        yield composed


def iter_expanded(data: Iterator[bytes], extents: Extents) -> Iterator[bytes]:
    """The content of a file with holes. *data* are the bytes of its extents, as many as :func:`data_len` says."""
    position = 0
    for offset, piece in _iter_placed(data, extents):
        yield from iter_zeros(offset - position)
        yield piece
        position = offset + len(piece)
    yield from iter_zeros(mapped_size(extents) - position)


def _iter_placed(data: Iterator[bytes], extents: Extents) -> Iterator[tuple[int, bytes]]:
    """The data of a file with holes: pieces and their offsets in the file."""
    chunk = b""
    for offset, length in extents:
        end = offset + length
        while offset < end:
            chunk = chunk or next(data)
            piece, chunk = chunk[: end - offset], chunk[end - offset :]
            yield offset, piece
            offset += len(piece)


def _iter_copy(location: Location, archives: Ranges, idle: IdleWorkers | None) -> Iterator[bytes]:
    """A whole copy, with its holes as zeros."""
    if location.sparse is None:
        return archives.iter_range(location, idle)
    return iter_expanded(archives.iter_range(location, idle), _checked_extents(location))


def _checked_extents(location: Location) -> Extents:
    """The map of a whole copy; of one without holes, one extent."""
    extents = location.sparse if location.sparse is not None else ((0, location.length),)
    fault = find_map_fault(extents)
    if fault is None and data_len(extents) != location.length:
        fault = f"a sparse copy of {location.length} bytes, its map has {data_len(extents)}"
    if fault is not None:
        raise ArchiveFormatError(f"{location.file}: {fault}")
    return extents


def _patched_sparse(base: Location, delta: BinaryIO, archives: Ranges, size: int) -> BinaryIO:
    """The file that *delta* makes of *base*, at its start, with holes wherever it is zeros."""
    with _new_file() as basis:
        extents = _checked_extents(base)
        # The length comes first: what is too long for a file is refused before anything is fetched.
        os.ftruncate(basis.fileno(), mapped_size(extents))
        for offset, piece in _iter_placed(archives.iter_range(base), extents):
            write_at(basis.fileno(), piece, offset)
        out = _new_file()
        try:
            writer = SparseWriter(out.fileno())
            patch(basis, delta, cast(BinaryIO, writer), max_output=size)
            writer.finish()
        except BaseException:
            out.close()
            raise
    return out


def _composed(deltas: list[Location], archives: Ranges, size: int) -> BinaryIO:
    """All *deltas* as one that leads to the last version, of *size* bytes, at its start.

    Composed from the last one backwards: so every delta on the way leads to the version that is wanted and is
    bounded by its size, however large a version in between may have been.
    """
    limit = size * _MAX_COMMAND_LEN + _MIN_DELTA_LEN
    composed = _spooled(archives.iter_range(deltas[-1]))
    for location in reversed(deltas[:-1]):
        with composed, _spooled(archives.iter_range(location)) as earlier:
            out = _new_spool()
            try:
                compose(earlier, composed, out, max_output=limit)
                out.seek(0)
            except BaseException:
                out.close()
                raise
        composed = out
    return composed


def _spooled(chunks: Iterable[bytes]) -> BinaryIO:
    spool = _new_spool()
    try:
        for chunk in chunks:
            spool.write(chunk)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


def _new_file() -> BinaryIO:
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="ibt-restore-", buffering=0))


def _new_spool() -> BinaryIO:
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_LEN, prefix="ibt-restore-"))
