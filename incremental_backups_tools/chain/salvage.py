"""Salvage: everything that can still be had from a repository that lost states or volumes.

Restoring refuses a chain with a gap, and rightly so: what it cannot prove, it does not restore as a point in
time. Salvage asks for less, in this order:

1. the newest point whose states are all there is restored, but for what its volumes have lost;
2. for what they have lost, the newest older version that can be rebuilt and proved;
3. states after a gap give the whole copies that they hold; their deltas stand on nothing any more;
4. volumes without a state give their members, which nothing proves but the checksums of their frames.

What is not simply restored is listed in a report, path by path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.archive.members import entry_of_member
from incremental_backups_tools.archive.sparse_map import is_sparse, read_sparse_map
from incremental_backups_tools.archive.tar import TarMember
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import History, RepositoryPlace, open_repository
from incremental_backups_tools.chain.rebuild import iter_content, iter_expanded
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve, resolve_versions
from incremental_backups_tools.chain.state import StateHeader, StateLine
from incremental_backups_tools.exceptions import ArchiveFormatError, BackupError
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import DELETED, METADATA
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.sparse import data_len, mapped_size
from incremental_backups_tools.tree.writer import FATAL_ERRORS, TreeWriter

_WHOLE_ROLES: Final = (Role.FULL, Role.CREATED)
LOST: Final = "lost"
OLDER: Final = "older"
NEWER: Final = "newer"
UNPROVED: Final = "unproved"


@dataclass(frozen=True, slots=True)
class SalvageNote:
    """Something that is not simply restored.

    Attributes:
        key, path: which; the path is empty where it is about a whole backup or volume.
        status: ``lost``; ``older`` or ``newer`` than the restored point; ``unproved`` by any digest.
        backup_id: whose version is restored; None for what is lost.
        message: why.
    """

    key: str
    path: bytes
    status: str
    backup_id: str | None
    message: str


@dataclass(slots=True)
class SalvageReport:
    """What was had.

    Attributes:
        points: for each key the newest point that could be resolved, None where there is none.
        restored: how many names were written.
        notes: what is not simply restored.
    """

    destination: str
    points: dict[str, str | None] = field(default_factory=dict)
    restored: int = 0
    notes: list[SalvageNote] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "destination": printable(os.fsencode(self.destination)),
            "points": self.points,
            "restored": self.restored,
            "notes": [
                {
                    "key": note.key,
                    "path": printable(note.path),
                    "status": note.status,
                    "backup_id": note.backup_id,
                    "message": note.message,
                }
                for note in self.notes
            ],
        }


def salvage(
    dest: str | os.PathLike[str],
    *,
    repository: RepositoryPlace | None = None,
    keys: list[str] | None = None,
    on_progress: Callable[[bytes, int], None] | None = None,
) -> SalvageReport:
    """Restore all that can be had of each key into ``dest/<key>``.

    Args:
        dest: must not exist, or be an empty directory: nothing is overwritten.
        keys: which; None is all.

    Raises:
        RepositoryNotFoundError: there is no repository.
        FileExistsError: *dest* is not empty.
        OSError: *dest* cannot be written to.
    """
    target = open_repository(repository)
    os.makedirs(dest, exist_ok=True)
    if os.listdir(dest):
        raise FileExistsError(f"{os.fspath(dest)}: is not empty")
    report = SalvageReport(os.fspath(dest))
    for key in keys if keys is not None else target.keys():
        _Salvage(target, key, report, on_progress).run(os.path.join(dest, key))
    return report


class _Salvage:
    """The salvage of one key."""

    def __init__(
        self,
        repository: Repository,
        key: str,
        report: SalvageReport,
        on_progress: Callable[[bytes, int], None] | None,
    ) -> None:
        self._repository = repository
        self._key = key
        self._report = report
        self._on_progress = on_progress
        self._history = History(repository, key)
        self._headers = self._readable_headers()
        self._failed: dict[bytes, str] = {}
        self._newer: dict[bytes, str] = {}  # paths whose version is newer than the restored point

    def run(self, dest: str) -> None:
        """Restore what there is, step by step."""
        with Destination(dest) as destination:
            self._destination = destination
            self._applier = MetadataApplier(on_problem=lambda kind, path, message: None)
            point = self._newest_point()
            self._report.points[self._key] = point
            if point is not None:
                self._restore_point(point)
                self._restore_older_versions(point)
            self._restore_after_gap(point)
            self._restore_members(point)
            for path, message in sorted(self._failed.items()):
                self._note(path, LOST, None, message)

    def _readable_headers(self) -> dict[str, StateHeader]:
        headers = {}
        for backup_id in self._history.stored_ids:
            try:
                headers[backup_id] = self._history.header(backup_id)
            except BackupError as error:
                self._note(b"", LOST, backup_id, f"its state cannot be read: {error}")
        return headers

    def _newest_point(self) -> str | None:
        """The newest backup whose chain of states resolves."""
        for backup_id in sorted(self._headers, reverse=True):
            try:
                for _ in resolve(self._history.states(backup_id)):
                    pass
            except BackupError as error:
                self._note(b"", LOST, backup_id, f"cannot be restored as a point in time: {error}")
            else:
                return backup_id
        return None

    # --- writing -----------------------------------------------------------------------------------------

    def _writer(self) -> TreeWriter:
        return TreeWriter(
            self._destination,
            self._applier,
            on_written=self._on_written,
            on_failed=lambda entry, error: self._fail(entry.path, error),
        )

    def _write(
        self, writer: TreeWriter, resolved: ResolvedEntry, content: Iterator[bytes | memoryview]
    ) -> bool:
        """Write one name; return whether that went well. What lies above it is made where it is missing."""
        entry = resolved.entry
        try:
            self._make_parents(entry.path)
            if entry.type == DIRECTORY:
                writer.directory(entry)
            elif entry.type == FILE:
                whole = msgspec.structs.replace(entry, link_of=None, digest=resolved.content_digest)
                writer.file(whole, content)
            else:
                writer.special(entry)
        except (BackupError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._fail(entry.path, error)
            return False
        self._failed.pop(entry.path, None)
        return True

    def _make_parents(self, path: bytes) -> None:
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            self._destination.make_directory(b"/".join(parts[:depth]))

    def _on_written(self, entry: Entry) -> None:
        self._report.restored += 1
        if self._on_progress is not None:
            self._on_progress(entry.path, entry.size)

    def _fail(self, path: bytes, error: Exception) -> None:
        self._failed[path] = str(error).removeprefix(f"{printable(path)}: ")

    def _note(self, path: bytes, status: str, backup_id: str | None, message: str) -> None:
        self._report.notes.append(SalvageNote(self._key, path, status, backup_id, message))

    # --- the four sources ----------------------------------------------------------------------------------

    def _restore_point(self, point: str) -> None:
        archives = self._archives(self._history.chain_to(point))
        writer = self._writer()
        for resolved in resolve(self._history.states(point)):
            entry = resolved.entry
            if entry.link_of is not None and entry.link_of not in self._failed:
                writer.link(entry, entry.link_of)
            else:
                self._write(writer, resolved, iter_content(resolved, archives))
        writer.finish()

    def _restore_older_versions(self, point: str) -> None:
        """For what the volumes have lost, the newest older version that can be rebuilt."""
        wanted = dict(self._failed)
        if not wanted:
            return
        chain = self._history.chain_to(point)
        versions: dict[bytes, list[tuple[int, ResolvedEntry]]] = {}
        for level, resolved in resolve_versions(self._history.states(point)):
            if resolved.path in wanted and resolved.entry.is_content_holder:
                versions.setdefault(resolved.path, []).append((level, resolved))
        archives = self._archives(chain)
        writer = self._writer()
        for path in sorted(versions):
            for level, resolved in reversed(versions[path][:-1]):
                if self._write(writer, resolved, iter_content(resolved, archives)):
                    self._note(path, OLDER, chain[level].id, f"the newest version is lost: {wanted[path]}")
                    break
            else:
                self._failed[path] = wanted[path]
        writer.finish()

    def _restore_after_gap(self, point: str | None) -> None:
        """The whole copies in states that are newer than the restored point."""
        for backup_id in sorted(self._headers):
            if point is not None and backup_id <= point:
                continue
            header = self._headers[backup_id]
            archives = self._archives([header])
            writer = self._writer()
            try:
                for line in self._history.lines(backup_id):
                    self._restore_line(line, header, archives, writer)
            except BackupError as error:
                self._note(b"", LOST, backup_id, f"its state is damaged, what follows in it is lost: {error}")
            writer.finish()

    def _restore_line(
        self, line: StateLine, header: StateHeader, archives: Archives, writer: TreeWriter
    ) -> None:
        entry = line.entry
        if line.op == DELETED:
            self._note(entry.path, OLDER, None, f"was deleted before {header.id}; kept")
            return
        is_whole = entry.data is not None and f".{Role.UPDATED}." not in entry.data.file
        if entry.type == FILE and entry.size and not is_whole:
            kept = (
                "an older one is kept"
                if self._destination.lstat(entry.path) is not None
                else "nothing is left of it"
            )
            if line.op != METADATA:
                self._note(entry.path, LOST, header.id, f"this version stands on what is lost; {kept}")
            return
        data = (entry.data,) if entry.data is not None else ()
        resolved = ResolvedEntry(entry, data, content_digest=entry.digest)
        if self._write(writer, resolved, iter_content(resolved, archives)):
            self._newer[entry.path] = header.id
            self._note(entry.path, NEWER, header.id, "newer than the restored point")

    def _restore_members(self, point: str | None) -> None:
        """Members of volumes that no readable state names."""
        named = {file.name for header in self._headers.values() for file in header.files}
        for stored in self._repository.objects(self._key):
            name = stored.name
            if name.role not in _WHOLE_ROLES or name.file_name in named:
                continue
            reader = self._open_volume(name, stored.size)
            if reader is None:
                continue
            writer = self._writer()
            try:
                for member, offset in reader.members():
                    self._restore_member(member, reader, offset, name.backup_id, point, writer)
            except BackupError as error:
                self._note(
                    b"", LOST, name.backup_id, f"{name.path}: damaged, what follows in it is lost: {error}"
                )
            writer.finish()

    def _open_volume(self, name: ObjectName, size: int) -> VolumeReader | None:
        try:
            store = self._repository.store
            size = store.content_size(name.path, size)
            return VolumeReader(partial(store.read_range, name.path), size, name=name.path)
        except BackupError as error:
            self._note(b"", LOST, name.backup_id, f"{name.path}: cannot be read: {error}")
            return None

    def _restore_member(
        self,
        member: TarMember,
        reader: VolumeReader,
        offset: int,
        backup_id: str,
        point: str | None,
        writer: TreeWriter,
    ) -> None:
        entry = entry_of_member(member)
        if entry is None or entry.path == ROOT:
            return
        is_there = self._destination.lstat(entry.path) is not None
        is_newer = backup_id > self._newer.get(entry.path, point or "")
        if is_there and (not is_newer or entry.type == DIRECTORY):
            return
        hasher = blake3()
        try:
            entry, content = _content_of(entry, member, reader, offset)
            for chunk in content():
                hasher.update(chunk)
        except BackupError as error:
            self._fail(entry.path, error)
            return
        resolved = ResolvedEntry(entry, content_digest=hasher.digest())
        if self._write(writer, resolved, content()):
            self._newer[entry.path] = backup_id
            self._note(entry.path, UNPROVED, backup_id, "from a volume whose state is lost")

    def _archives(self, headers: list[StateHeader]) -> Archives:
        return Archives(self._repository.store, self._key, headers)


def _content_of(
    entry: Entry, member: TarMember, reader: VolumeReader, offset: int
) -> tuple[Entry, Callable[[], Iterator[bytes | memoryview]]]:
    """The entry of a member with what its data tells of it, and a way to read its content."""
    if not is_sparse(member):
        return entry, partial(reader.iter_range, offset, member.size)
    stream = reader.open_tar()
    stream.seek(offset)
    extents, map_len = read_sparse_map(stream.read)
    if map_len + data_len(extents) != member.size:
        raise ArchiveFormatError(
            f"{printable(entry.path)}: sparse member of {member.size} bytes, its map wants "
            f"{map_len + data_len(extents)}"
        )

    def content() -> Iterator[bytes | memoryview]:
        return iter_expanded(reader.iter_range(offset + map_len, member.size - map_len), extents)

    return msgspec.structs.replace(entry, size=mapped_size(extents), sparse=extents), content
