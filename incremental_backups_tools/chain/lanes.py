"""The volumes of one role of a backup that is made out of others.

Members that stay as they are are carried frame by frame. Frames break where something is put between them, so
each large source volume has a lane: a new volume for what is carried out of it, and everything else goes to
volumes of its own. Every lane is written in path order, as its source was.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final

from incremental_backups_tools.archive.tar import TarMember, encode_member_header
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.state import ArchiveFile, StateHeader
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.entry import Location

# Open at a time: each holds a temporary file and some frames. One that is closed goes on in another volume.
_MAX_LANES: Final = 8
# A volume this much smaller than the largest gets no lane, or every rewriting would leave one volume more.
_MIN_LANE_SHARE: Final = 1 / 8
_HELD_LEN: Final = 1 << 20


def choose_lanes(headers: Iterable[StateHeader], roles: Collection[Role]) -> frozenset[str]:
    """The volumes that get a lane: the large ones of the backup that has most bytes of *roles*."""
    best: list[ArchiveFile] = []
    for header in headers:
        files = [file for file in header.files if file.role in roles]
        if sum(file.size for file in files) > sum(file.size for file in best):
            best = files
    largest = max((file.size for file in best), default=0)
    return frozenset(file.name for file in best if file.size >= largest * _MIN_LANE_SHARE)


class Lanes:
    """Writes the volumes of one role.

    Args:
        name: of a volume of the new backup; its number does not matter.
        sources: the volumes that get a lane.
        archives: reads the volumes of the old backups.
    """

    def __init__(
        self,
        store: Store,
        name: ObjectName,
        *,
        sources: Collection[str],
        archives: Archives,
        volume_size: int,
        level: int,
        pool: Executor | None,
    ) -> None:
        self._store = store
        self._name = name
        self._sources = sources
        self._archives = archives
        self._volume_size = volume_size
        self._level = level
        self._pool = pool
        self._numbers = itertools.count()
        self._fresh = self._new_set()
        self._open: OrderedDict[str, VolumeSet] = OrderedDict()
        self._files: list[ArchiveFile] = []
        # Where the member carried last ends in its source: what follows there may be next.
        self._last: tuple[VolumeSet, VolumeReader, int] | None = None

    def carry(self, member: TarMember, location: Location, *, map_len: int = 0) -> Location:
        """Store *member*, whose data lies at *location* of an old backup.

        Args:
            map_len: bytes of a sparse file's map, which stands between the header and *location*.

        Returns:
            Where the same bytes lie now.

        Raises:
            ArchiveFormatError, IntegrityError, RepositoryError: the old volume is damaged or not there.
        """
        reader = self._archives.reader(location.file)
        header = encode_member_header(member)
        data_offset = location.offset - map_len
        start = data_offset - len(header)
        if start >= 0 and reader.read(start, len(header)) == header:
            lane = self._lane(location.file)
            new = lane.carry(reader, start, data_offset, member.size)
            self._last = lane, reader, data_offset + member.size + -member.size % 512
        else:
            new = self._copy(member, reader, data_offset)
        return Location(new.file, new.offset + map_len, location.length, location.sparse)

    def carry_special(self, member: TarMember) -> None:
        """Store a member without data: as it lies, if it follows what was carried last, or anew. Raises as `carry`."""
        header = encode_member_header(member)
        if self._last is not None:
            lane, reader, start = self._last
            end = start + len(header)
            if end <= reader.tar_len and reader.read(start, len(header)) == header:
                lane.carry(reader, start, end, 0)
                self._last = lane, reader, end
                return
        self._fresh.add(member)

    def add(self, member: TarMember, data: bytes) -> Location:
        """Store a whole member."""
        return self._fresh.add(member, data)

    def add_pieces(self, member: TarMember, pieces: Iterable[bytes | memoryview]) -> Location:
        """Store a member whose data comes in pieces.

        Raises:
            ValueError: they are more or fewer bytes than the member has.
        """
        if member.size <= _HELD_LEN:
            return self._fresh.add(member, b"".join(pieces))
        location = self._fresh.begin(member)
        for piece in pieces:
            self._fresh.write(piece)
        self._fresh.end()
        return location

    def finish(self) -> list[ArchiveFile]:
        """Publish what is not published yet; return all volumes, by number."""
        self._last = None
        for volumes in (*self._open.values(), self._fresh):
            self._files += volumes.finish()
        self._open.clear()
        return sorted(self._files, key=lambda file: file.name)

    def close(self) -> None:
        """Remove what is not published. May be called again."""
        for volumes in (*self._open.values(), self._fresh):
            volumes.close()

    def _copy(self, member: TarMember, reader: VolumeReader, offset: int) -> Location:
        return self.add_pieces(member, reader.iter_range(offset, member.size))

    def _lane(self, source: str) -> VolumeSet:
        if source not in self._sources:
            return self._fresh
        lane = self._open.get(source)
        if lane is None:
            if len(self._open) >= _MAX_LANES:
                self._files += self._open.popitem(last=False)[1].finish()
                self._last = None
            lane = self._open[source] = self._new_set()
        self._open.move_to_end(source)
        return lane

    def _new_set(self) -> VolumeSet:
        return VolumeSet(
            self._store,
            self._name,
            volume_size=self._volume_size,
            level=self._level,
            pool=self._pool,
            numbers=self._numbers,
        )


def files_of(headers: Sequence[StateHeader]) -> frozenset[str]:
    """The names of all archives of some backups."""
    return frozenset(file.name for header in headers for file in header.files)
