"""Looking at what a repository holds: backups, entries, and what differs between two points."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec
from blake3 import blake3

from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.exceptions import BackupError, ChainError, DecryptionError, SourceError
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.layout import is_key
from incremental_backups_tools.tree.diff import DELETED, classify, merge_join
from incremental_backups_tools.tree.entry import FILE, Entry
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, capture_unread, type_of
from incremental_backups_tools.tree.reading import OpenedFile, read_stable
from incremental_backups_tools.tree.source import Source, walk_source
from incremental_backups_tools.tree.sparse import iter_zeros
from incremental_backups_tools.tree.walk import Found, ProblemHandler


class Difference(msgspec.Struct, frozen=True):
    """One line of a comparison: ``+ ~ m -``, the new entry (the old one where it is gone), and the old one."""

    op: str
    entry: Entry
    old: Entry | None


class DamagedBackup(msgspec.Struct, frozen=True):
    """A backup whose header cannot be read, and why."""

    key: str
    id: str
    message: str


class Listing(msgspec.Struct, frozen=True):
    """What a repository, or one key of it, holds.

    Attributes:
        histories: of each key that has a backup, by key.
        headers: of the backups, oldest first.
        damaged: the backups whose headers cannot be read, oldest first.
        stateless: keys without a backup, and how many files each has all the same: of a run that goes on, was
            killed, or whose states were lost.
    """

    histories: dict[str, History]
    headers: list[StateHeader]
    damaged: list[DamagedBackup]
    stateless: dict[str, int]


def list_backups(repository: RepositoryPlace | None = None, key: str | None = None) -> Listing:
    """The headers of all backups, or of one key's. One that is damaged does not hide the others.

    Raises:
        RepositoryNotFoundError: there is no repository.
        ChainError: *key* has no backup.
        DecryptionError: none of them can be read here, for want of an identity.
        RepositoryError: the repository cannot be listed.
    """
    target = open_repository(repository)
    found = [open_history(target, key)] if key is not None else [History(target, k) for k in target.keys()]
    listing = Listing({history.key: history for history in found if history.backup_ids}, [], [], {})
    refusal: DecryptionError | None = None
    for history in found:
        if not history.stored_ids:
            listing.stateless[history.key] = len(target.objects(history.key))
        history.fetch_headers(history.backup_ids)
        for backup_id in history.backup_ids:
            try:
                listing.headers.append(history.header(backup_id))
            except BackupError as error:
                if isinstance(error, DecryptionError):
                    refusal = refusal or error
                listing.damaged.append(DamagedBackup(history.key, backup_id, str(error)))
    if refusal is not None and not listing.headers:
        raise refusal
    listing.headers.sort(key=lambda header: (header.id, header.key))
    listing.damaged.sort(key=lambda damaged: (damaged.id, damaged.key))
    return listing


def split_point(text: str) -> tuple[str | None, str | None]:
    """Split ``KEY@WHEN`` at its last ``@`` into key and time, each None where it is left out."""
    key, separator, when = text.rpartition("@")
    if not separator:
        return (text or None), None
    return (key or None), (when or None)


def only_key(repository: RepositoryPlace | None = None) -> str:
    """The key of a repository that has exactly one.

    Raises:
        ChainError: it has none, or several.
    """
    target = open_repository(repository)
    keys = [key for key in target.keys() if is_key(key) and target.backups(key)]
    if len(keys) == 1:
        return keys[0]
    if not keys:
        raise ChainError(f"{target.store.url} has no backup yet")
    raise ChainError(f"{target.store.url} has several keys, name one: {', '.join(keys)}")


def point_header(
    repository: RepositoryPlace | None, key: str, when: str | datetime | None
) -> tuple[History, StateHeader]:
    """The backup of *key* that *when* means, and the history it is part of."""
    history = open_history(open_repository(repository), key)
    backup_id = select_backup(history.backup_ids, when, now=datetime.now(UTC), what=key)
    return history, history.header(backup_id)


def iter_entries(
    key: str, *, at: str | datetime | None = None, repository: RepositoryPlace | None = None
) -> Iterator[ResolvedEntry]:
    """The entries of a point in time, in sort order.

    Raises:
        ChainError, FormatError, IntegrityError, RepositoryError: as restoring.
    """
    history, header = point_header(repository, key, at)
    return resolve(history.states(header.id))


def difference_of(new: Entry | None, old: Entry | None) -> Difference | None:
    """What leads from *old* to *new*, two entries of one path; None where nothing does."""
    op = classify(new, old)
    kept = old if op == DELETED else new
    return Difference(op, kept, old) if op is not None and kept is not None else None


def compare(new: Iterable[Entry], old: Iterable[Entry]) -> Iterator[Difference]:
    """What leads from *old* to *new*, both in sort order."""
    pairs = merge_join(new, old, new_path=lambda entry: entry.path, old_path=lambda entry: entry.path)
    for after, before in pairs:
        difference = difference_of(after, before)
        if difference is not None:
            yield difference


class LiveEntry(msgspec.Struct, frozen=True):
    """An entry of a live directory, and the content that its digest is of, where that was wanted and is there."""

    entry: Entry
    content: bytes | None = None


def iter_directory(source: Source, *, on_problem: ProblemHandler, keep_len: int = -1) -> Iterator[LiveEntry]:
    """The entries of a live directory with their digests, in sort order; every file is read.

    Args:
        keep_len: the content of a file of at most so many bytes comes with its entry.
    """
    links = HardLinks()
    for found in walk_source(source, on_problem=on_problem):
        if type_of(found.stat.st_mode) is None:
            continue
        try:
            yield _live_entry(found, links, keep_len)
        except (SourceError, OSError, ValueError) as error:
            links.forget(found.rel_path, found.stat)
            on_problem(found.rel_path, str(error))


class _Digest:
    def __init__(self, found: Found, keep_len: int, opened: OpenedFile) -> None:
        self._entry = capture(found, opened.stat, fd=opened.fd)
        self._extents = opened.extents
        self._hasher = blake3()
        self._kept: list[bytes] | None = [] if opened.stat.st_size <= keep_len else None

    def update(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        if self._kept is not None:
            self._kept.append(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self.update(zeros)

    def live_entry(self) -> LiveEntry:
        entry = msgspec.structs.replace(self._entry, sparse=self._extents, digest=self._hasher.digest())
        return LiveEntry(entry, b"".join(self._kept) if self._kept is not None else None)

    def abandon(self) -> None:
        """Nothing outlives this object."""


def _live_entry(found: Found, links: HardLinks, keep_len: int) -> LiveEntry:
    link_of = links.earlier_link(found.rel_path, found.stat)
    if type_of(found.stat.st_mode) != FILE or link_of is not None:
        live = LiveEntry(capture_unread(found, link_of=link_of))
    else:
        digest, _, stable = read_stable(found, functools.partial(_Digest, found, keep_len))
        live = digest.live_entry()
        if not stable:
            links.forget(found.rel_path, found.stat)
    links.confirm(found.rel_path, found.stat, live.entry)
    return live
