"""Going on with a backup that was killed: its finished volumes are used, if nothing in them is out of date.

A volume is used as a whole or not at all: every member of it must still be what the source holds, metadata and
content, so that what plain ``tar`` extracts is the tree of the new state. The new run takes the killed one's id
and meets each member again where it would have written it. If one of them changed in the meantime, the run
begins anew under an id of its own. Nothing is ever spliced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import msgspec
from blake3 import blake3

from incremental_backups_tools.archive.members import file_member, special_member
from incremental_backups_tools.archive.tar import REGULAR, TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.state import ArchiveFile
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.repository import StoredObject
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import Location
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, type_of
from incremental_backups_tools.tree.walk import Found

_CHUNK_LEN = 1 << 20


class ResumeConflictError(Exception):
    """A member of a used volume is not what the source holds any more. Never leaves this room."""


class Leftover(msgspec.Struct, frozen=True):
    """What a killed run left: its id, and for each role the number that the next volume gets."""

    backup_id: str
    volumes: tuple[ObjectName, ...]
    next_numbers: dict[Role, int]


def find_leftover(objects: Sequence[StoredObject], *, after: str | None, role: Role) -> Leftover | None:
    """The newest run without a state that is newer than the backup *after* and has volumes of *role*."""
    names = [stored.name for stored in objects]
    # What has a state is a backup. What was forgotten is being pruned: a marker that is still there would take the
    # new backup off the list. One with a signature alone died at the last moment: that is of another state.
    roles = (Role.STATE, Role.STATE_SIGNATURE, Role.FORGOTTEN)
    taken = {name.backup_id for name in names if name.role in roles}
    killed = {
        name.backup_id
        for name in names
        if name.backup_id not in taken
        and name.role is role
        and name.generation == 0
        and (after is None or name.backup_id > after)
    }
    if not killed:
        return None
    backup_id = max(killed)
    own = [
        name
        for name in names
        if (name.backup_id, name.generation) == (backup_id, 0) and name.volume is not None
    ]
    volumes = sorted((name for name in own if name.role is role), key=lambda name: name.volume or 0)
    next_numbers = {
        kind: 1 + max((name.volume or 0 for name in own if name.role is kind), default=-1) for kind in Role
    }
    return Leftover(backup_id, tuple(volumes), next_numbers)


class UsedVolumes:
    """Volumes of a killed run that are used again, and where the new run is in them."""

    def __init__(self, readers: list[tuple[ArchiveFile, VolumeReader]]) -> None:
        self._readers = readers
        self._members = chain.from_iterable(
            ((file.name, reader, member, offset) for member, offset in reader.members())
            for file, reader in readers
        )
        self._next = next(self._members, None)

    @property
    def files(self) -> list[ArchiveFile]:
        """The volumes as the state will list them."""
        return [file for file, _ in self._readers]

    @property
    def is_exhausted(self) -> bool:
        """Whether every member has been met."""
        return self._next is None

    def take(self, member: TarMember) -> tuple[Location, Iterator[bytes]] | None:
        """Where *member* lies, and its data, if it is the next one; None once all have been met.

        Raises:
            ResumeConflictError: another one is next.
        """
        if self._next is None:
            return None
        name, reader, expected, offset = self._next
        if member != expected:
            raise ResumeConflictError(f"{member.name!r} where the killed run had {expected.name!r}")
        self._next = next(self._members, None)
        return Location(name, offset, member.size), reader.iter_range(offset, member.size)


class Comparison:
    """Compares data that comes in pieces with data that lies in a used volume."""

    def __init__(self, stored: Iterator[bytes]) -> None:
        self._stored = stored
        self._rest = memoryview(b"")

    def feed(self, chunk: bytes | memoryview) -> None:
        """Compare the next piece.

        Raises:
            ResumeConflictError: it is another one.
        """
        view = memoryview(chunk)
        while view:
            if not self._rest:
                self._rest = memoryview(next(self._stored, b""))
            length = min(len(view), len(self._rest))
            if not length or view[:length] != self._rest[:length]:
                raise ResumeConflictError("a file changed since it was stored")
            view, self._rest = view[length:], self._rest[length:]


def check_leftover(
    leftover: Leftover, store: Store, source: str, on_notice: Callable[[str], None] | None
) -> UsedVolumes | None:
    """The leading volumes of *leftover* whose members are all still what the source holds; None without any."""
    readers: list[tuple[ArchiveFile, VolumeReader]] = []
    links = HardLinks()
    with Destination(source, create=False) as tree:
        for number, name in enumerate(leftover.volumes):
            try:
                if name.volume != number:
                    break
                file = _describe(store, name)
                reader = VolumeReader(partial(store.read_range, name.path), file.size, name=name.path)
                if not all(
                    _is_current(tree, member, reader, offset, links) for member, offset in reader.members()
                ):
                    break
            except (BackupError, OSError, ValueError):
                break  # damaged, or its source cannot be read: it is packed anew, and then that is told
            readers.append((file, reader))
    if not readers:
        return None
    if on_notice is not None:
        on_notice(
            f"going on with the backup {leftover.backup_id}, which was killed: {len(readers)} volumes are used"
        )
    return UsedVolumes(readers)


def _describe(store: Store, name: ObjectName) -> ArchiveFile:
    hasher = blake3()
    size = 0
    with store.open(name.path) as stream:
        while chunk := stream.read(_CHUNK_LEN):
            hasher.update(chunk)
            size += len(chunk)
    return ArchiveFile(name.file_name, str(name.role), size, hasher.hexdigest())


def _is_current(
    tree: Destination, member: TarMember, reader: VolumeReader, offset: int, links: HardLinks
) -> bool:
    """Whether the source holds exactly what *member* says."""
    info = tree.lstat(member.name)
    if info is None or type_of(info.st_mode) is None:
        return False
    dir_fd, name = (tree.fd, b".") if member.name == b"." else tree.parent(member.name)
    link_of = links.earlier_link(member.name, info)
    found = Found(member.name, name, dir_fd, info)
    entry = capture(found, info, link_of=link_of)
    if member.type != REGULAR:
        return special_member(entry) == member
    if link_of is not None or file_member(entry) != member:
        return False
    comparison = Comparison(reader.iter_range(offset, member.size))
    with open(tree.open_regular(member.name), "rb", buffering=0) as file:
        try:
            while chunk := file.read(_CHUNK_LEN):
                comparison.feed(chunk)
        except ResumeConflictError:
            return False
        return os.fstat(file.fileno()).st_size == member.size
