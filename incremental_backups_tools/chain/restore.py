"""Restoring a point in time: each file from its own locations, written once, verified, then named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    identities,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.index_cache import IndexIdentity
from incremental_backups_tools.chain.index_search import search_cached_index
from incremental_backups_tools.chain.rebuild import Contents
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.restore_plan import needed_archives
from incremental_backups_tools.exceptions import IntegrityError, ObjectNotFoundError
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import Entry, printable
from incremental_backups_tools.tree.restoring import TreeRestore, TreeRestoreOptions, TreeRestoreReport
from incremental_backups_tools.tree.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions(TreeRestoreOptions):
    """How a backup is restored; see :class:`TreeRestoreOptions` for the rest.

    Attributes:
        at: which point in time: see ``points/when.py``; None is the newest.
    """

    at: str | datetime | None = None


@dataclass(slots=True)
class RestoreReport(TreeRestoreReport):
    """What a restore did; see :class:`TreeRestoreReport` for the rest."""

    backup_key: str
    backup_date: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"backup_key": self.backup_key, "backup_date": self.backup_date, **self.counts()}


def restore_backup(
    key: str,
    dest: str | os.PathLike[str],
    *,
    repository: RepositoryPlace | None = None,
    **options: Any,
) -> RestoreReport:
    """Restore one point in time of *key* into the directory *dest*.

    Nothing outside *dest* is written to, whatever the backup or the destination holds. A file that cannot be
    restored is listed in the report's problems and what was in its place stays as it was.

    Args:
        repository: a directory or an fsspec URL; None is the user's own directory.
        options: as :class:`RestoreOptions`.

    Raises:
        RepositoryNotFoundError: there is no repository.
        ChainError: no such key, point in time or path, or a state is missing.
        FormatError, IntegrityError: a state is damaged.
        OSError: *dest* cannot be made or written to.
    """
    chosen = RestoreOptions(**options)
    start = time.monotonic()
    target = open_repository(repository)
    history = open_history(target, key)
    backup_id = select_backup(history.backup_ids, chosen.at, now=datetime.now(UTC), what=key)
    report = RestoreReport(key, backup_id, destination=os.fspath(dest), dry_run=chosen.dry_run)
    if not _run(target, history, backup_id, chosen, report):
        history = open_history(target, key)
        first = report
        report = RestoreReport(key, backup_id, destination=os.fspath(dest), dry_run=chosen.dry_run)
        _run(target, history, backup_id, chosen, report, is_last=True)
        report.bytes_written += first.bytes_written
    report.duration = time.monotonic() - start
    return report


def _run(
    repository: Repository,
    history: History,
    backup_id: str,
    options: RestoreOptions,
    report: RestoreReport,
    *,
    is_last: bool = False,
) -> bool:
    """Restore; return whether that is all there is to do.

    It is not where something was missed because the key was pruned meanwhile, or backups written again: then the
    point stands on other files now. Without *is_last* that is looked for.
    """
    try:
        run = _Restore(repository, history, backup_id, options, report)
        run.run()
        if is_last or not run.has_missed:
            return True
    except ObjectNotFoundError:
        if is_last or not _is_outdated(repository, history, backup_id):
            raise
        return False
    return not _is_outdated(repository, history, backup_id)


def _is_outdated(repository: Repository, history: History, backup_id: str) -> bool:
    """Whether *backup_id* stands on other states by now."""
    now = History(repository, history.key)
    if backup_id not in now.backup_ids:
        return False
    try:
        before = identities(history.chain_to(backup_id))
    except ObjectNotFoundError:
        return True  # one was deleted before it was read
    return identities(now.chain_to(backup_id)) != before


class _Restore:
    """One restore."""

    def __init__(
        self,
        repository: Repository,
        history: History,
        backup_id: str,
        options: RestoreOptions,
        report: RestoreReport,
    ) -> None:
        chain = history.chain_to(backup_id)
        self._states = history.states(backup_id)
        self._store = repository.store
        self._key = history.key
        self._repository = repository
        self._identity = IndexIdentity(
            repository.repository_id, history.key, identities(chain), chain[-1].index_digest
        )
        self._options = options
        self._restore = TreeRestore(
            self._resolved,
            _with_digest,
            Contents(Archives(repository.store, history.key, chain)),
            options,
            report,
            candidates=self._candidates,
            on_error=self._note,
        )
        self.has_missed = False  # something that lies in no file that is there

    def run(self) -> None:
        if self._store.needs_preparing and not self._options.dry_run:
            selection = Selection(self._options.paths)
            self._store.prepare(needed_archives(self._key, selection.filter(self._resolved())))
        self._restore.run()

    def _resolved(self) -> Iterator[ResolvedEntry]:
        return resolve(self._states)

    def _candidates(self, selection: Selection) -> Iterator[ResolvedEntry]:
        """The entries that may be selected: all, or those that the index on this machine has of a few paths."""
        if (paths := selection.plain_paths) is None:
            return self._resolved()
        return search_cached_index(self._repository.cache(self._key), self._identity, paths, self._resolved())

    def _note(self, error: Exception) -> None:
        self.has_missed |= isinstance(error, ObjectNotFoundError)


def _with_digest(resolved: ResolvedEntry) -> Entry:
    """The entry as a file of its own, also where it is a hard link whose other names are not restored."""
    entry = resolved.entry
    if resolved.content_digest is None:
        raise IntegrityError(
            f"{printable(entry.path)}: its state has no digest",
            path=printable(entry.path),
            expected="a digest",
            actual=None,
        )
    if entry.digest is not None:
        return entry
    # Its target's map is not at hand. That of the copy tells as well where to look for holes.
    sparse = resolved.data[0].sparse if resolved.data else None
    return msgspec.structs.replace(entry, digest=resolved.content_digest, link_of=None, sparse=sparse)
