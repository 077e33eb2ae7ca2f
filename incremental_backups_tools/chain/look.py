"""Looking at what a repository holds: backups, entries, and what differs between two points."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from incremental_backups_tools.chain.when import select_backup
from incremental_backups_tools.exceptions import ChainError, SourceError
from incremental_backups_tools.repository.layout import is_key
from incremental_backups_tools.tree.diff import DELETED, classify, merge_join
from incremental_backups_tools.tree.entry import FILE, Entry
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, type_of
from incremental_backups_tools.tree.reading import OpenedFile, read_stable
from incremental_backups_tools.tree.source import Source, walk_source
from incremental_backups_tools.tree.sparse import iter_zeros
from incremental_backups_tools.tree.walk import Found, ProblemHandler


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a comparison: ``+ ~ m -``, the new entry (the old one where it is gone), and the old one."""

    op: str
    entry: Entry
    old: Entry | None


def list_backups(repository: RepositoryPlace | None = None, key: str | None = None) -> list[StateHeader]:
    """The headers of all backups, or of one key's, oldest first.

    Raises:
        RepositoryNotFoundError: there is no repository.
        ChainError: *key* has no backup.
        FormatError: a state is damaged.
    """
    target = open_repository(repository)
    if key is not None:
        return open_history(target, key).headers()
    headers = [header for known in target.keys() for header in History(target, known).headers()]
    return sorted(headers, key=lambda header: (header.id, header.key))


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


def compare(new: Iterable[Entry], old: Iterable[Entry]) -> Iterator[Difference]:
    """What leads from *old* to *new*, both in sort order."""
    pairs = merge_join(new, old, new_path=lambda entry: entry.path, old_path=lambda entry: entry.path)
    for after, before in pairs:
        op = classify(after, before)
        kept = before if op == DELETED else after
        if op is not None and kept is not None:
            yield Difference(op, kept, before)


def iter_directory(source: Source, *, on_problem: ProblemHandler) -> Iterator[Entry]:
    """The entries of a live directory with their digests, in sort order; every file is read."""
    links = HardLinks()
    for found in walk_source(source, on_problem=on_problem):
        if type_of(found.stat.st_mode) is None:
            continue
        try:
            yield _entry_of(found, links)
        except (SourceError, OSError, ValueError) as error:
            links.forget(found.rel_path, found.stat)
            on_problem(found.rel_path, str(error))


class _Digest:
    def __init__(self, found: Found, opened: OpenedFile) -> None:
        self._entry = capture(found, opened.stat, fd=opened.fd)
        self._extents = opened.extents
        self._hasher = blake3()

    def update(self, chunk: bytes) -> None:
        self._hasher.update(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self._hasher.update(zeros)

    def entry(self) -> Entry:
        return msgspec.structs.replace(self._entry, sparse=self._extents, digest=self._hasher.digest())

    def abandon(self) -> None:
        """Nothing outlives this object."""


def _entry_of(found: Found, links: HardLinks) -> Entry:
    link_of = links.earlier_link(found.rel_path, found.stat)
    if type_of(found.stat.st_mode) != FILE or link_of is not None:
        return capture(found, found.stat, link_of=link_of)
    digest, _, _ = read_stable(found, functools.partial(_Digest, found))
    return digest.entry()
