"""The volumes of one role of one backup: begun when first needed, closed when full, published whole."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from incremental_backups_tools.archive.carrier import Carrier
from incremental_backups_tools.archive.tar import TarMember, padding_len
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.chain.plain_files import Volume
from incremental_backups_tools.chain.policy import first_level
from incremental_backups_tools.chain.resume import Comparison, ResumeConflictError, UsedVolumes
from incremental_backups_tools.chain.state import ArchiveFile
from incremental_backups_tools.freed_memory import keep_freed_memory
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.store import Spool, Store
from incremental_backups_tools.tree.entry import Location

DEFAULT_VOLUME_SIZE: Final = 1 << 30
# A volume that is to be encrypted lies in a temporary file first.
ENCRYPTED_VOLUME_SIZE: Final = 256 << 20
MIN_VOLUME_SIZE: Final = 1 << 20


def default_volume_size(store: Store) -> int:
    """What volumes are cut by where nobody says it."""
    return ENCRYPTED_VOLUME_SIZE if store.is_encrypted else DEFAULT_VOLUME_SIZE


@contextmanager
def compressing_pool(threads: int | None) -> Iterator[Executor | None]:
    """Where volumes are compressed and written: *threads* workers; None, which is the caller itself, where it is one.

    Args:
        threads: None is one for each processor.
    """
    count = threads or os.cpu_count() or 1
    if count == 1:
        yield None
        return
    keep_freed_memory()
    with ThreadPoolExecutor(count, thread_name_prefix="ibt-compress") as pool:
        yield pool


class VolumeSet:
    """Writes members into as many volumes as they need.

    A volume is published as soon as it is full. Its size is counted in bytes of uncompressed tar, so that the
    same tree is cut at the same places whatever the compression. A member larger than a volume has one of
    its own.

    Args:
        name: of the first volume; the others count up from it.
        volume_size: most bytes of tar in a volume that has more than one member.
        used: volumes of a killed run that come before the first one.
        numbers: where the volumes' numbers come from, shared by the sets of one role; None counts from *name*'s.
    """

    def __init__(
        self,
        store: Store,
        name: ObjectName,
        *,
        volume_size: int,
        level: int,
        pool: Executor | None,
        used: UsedVolumes | None = None,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._volume_size = volume_size
        self._level = level
        self._pool = pool
        self._stack = ExitStack()
        self._numbers = numbers if numbers is not None else itertools.count(name.volume or 0)
        self._spool: Spool | None = None
        self._writer: VolumeWriter | None = None
        self._carrier: Carrier | None = None
        self._open_name = ""
        self._members = 0
        self._files: list[ArchiveFile] = []
        self._is_broken = False
        self._used = used
        self._comparison: Comparison | None = None
        self._has_conflict = False

    @property
    def role(self) -> Role:
        """What these volumes hold."""
        return self._name.role

    def add(self, member: TarMember, data: bytes | memoryview = b"") -> Location:
        """Store a whole member; return where its data lies."""
        if (taken := self._take_used(member)) is not None:
            Comparison(taken[1]).feed(data)
            return taken[0]
        offset = self._room_for(member.size).add(member, data)
        self._members += 1
        return Location(self._open_name, offset, member.size)

    def place_for(self, most: int) -> Volume | None:
        """Where to append members for :meth:`add_members`, the next call; None where they are compared one by one.

        Args:
            most: bytes of tar that will not be exceeded.
        """
        if self._used is not None:
            return None
        writer = self._room_for(0)
        room = max(0, self._volume_size - writer.tar_len)
        return Volume(self._open_name.encode(), writer.tar_len, room, writer.members_buffer(most))

    def add_members(self, members: bytearray, lens: Sequence[int]) -> None:
        """Store the whole members that the place for them was given, of *lens* bytes of tar each."""
        self._current().add_members(members, lens)
        self._members += len(lens)

    def carry(self, reader: VolumeReader, start: int, data_offset: int, data_len: int) -> Location:
        """Store a member of another volume as it lies there.

        Args:
            start: where its header begins in *reader*'s tar.
            data_offset, data_len: where its data lies there.

        Raises:
            ArchiveFormatError, IntegrityError, RepositoryError: that volume is damaged or not there.
        """
        length = data_offset - start + data_len + padding_len(data_len)
        self._make_room(length)
        if self._carrier is None:
            self._carrier = Carrier(self._current())
        self._is_broken = True
        offset = self._carrier.take(reader, start, length)
        self._is_broken = False
        self._members += 1
        return Location(self._open_name, offset + data_offset - start, data_len)

    def begin(self, member: TarMember) -> Location:
        """Begin a member whose data follows by :meth:`write`; return where that will lie."""
        if (taken := self._take_used(member)) is not None:
            self._comparison = Comparison(taken[1])
            return taken[0]
        writer = self._room_for(member.size)
        return Location(self._open_name, writer.begin(member), member.size)

    def write(self, chunk: bytes | memoryview) -> None:
        """Data of the begun member."""
        if self._comparison is not None:
            self._comparison.feed(chunk)
            return
        self._is_broken = True
        self._current().write(chunk)
        self._is_broken = False

    def end(self) -> None:
        """The begun member is complete."""
        if self._comparison is not None:
            self._comparison = None
            return
        self._current().end()
        self._members += 1

    def rollback(self) -> None:
        """Forget the begun member. Where writing to the volume failed there is nothing to save."""
        # What failed, or an interrupt, may be on its way up: a second error must not take its place.
        if self._comparison is not None:
            self._comparison = None
            self._has_conflict = True
        elif not self._is_broken:
            self._current().rollback()

    def finish(self) -> list[ArchiveFile]:
        """Publish the last volume; return all of them, used ones first.

        Raises:
            ResumeConflictError: a used volume has what this backup does not.
        """
        if self._has_conflict or (self._used is not None and not self._used.is_exhausted):
            raise ResumeConflictError("a file went since it was stored")
        if self._members:
            self._publish()
        self.close()
        return (self._used.files if self._used is not None else []) + self._files

    def close(self) -> None:
        """Remove what is not published. May be called again."""
        self._stack.close()
        self._spool = self._writer = self._carrier = None
        self._members = 0

    def _take_used(self, member: TarMember) -> tuple[Location, Iterator[bytes]] | None:
        if self._has_conflict:
            raise ResumeConflictError("a file changed since it was stored")
        return self._used.take(member) if self._used is not None else None

    def _current(self) -> VolumeWriter:
        if self._writer is None:
            raise ValueError("no volume is open")
        return self._writer

    def _room_for(self, size: int) -> VolumeWriter:
        writer = self._make_room(size)
        self._end_carrying()
        return writer

    def _make_room(self, length: int) -> VolumeWriter:
        """The open volume, another one where *length* more bytes would be too many."""
        if self._writer is not None and self._members:
            tar_len = self._carrier.tar_len if self._carrier is not None else self._writer.tar_len
            if tar_len + length > self._volume_size:
                self._publish()
        if self._writer is None:
            name = replace(self._name, volume=next(self._numbers))
            self._open_name = name.file_name
            self._spool = self._stack.enter_context(self._store.spool(name.path))
            self._writer = VolumeWriter(
                self._spool.file,
                level=self._level,
                pool=self._pool,
                first_level=first_level(self.role, self._level),
            )
            self._stack.callback(self._writer.abandon)
        return self._writer

    def _end_carrying(self) -> None:
        if self._carrier is not None:
            self._is_broken = True
            self._carrier.flush()
            self._is_broken = False
            self._carrier = None

    def _publish(self) -> None:
        assert self._spool is not None and self._writer is not None  # there are members
        self._end_carrying()
        info = self._writer.finish()
        stored = self._spool.publish()
        digest = stored.digest or info.digest.hex()
        self._files.append(ArchiveFile(self._open_name, str(self._name.role), stored.size, digest))
        self.close()
