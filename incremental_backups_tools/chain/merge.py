"""Merging a run of increments into one, and turning a point in time into a full, without the source.

Both only add: the next generation of one backup. What it replaces is forgotten, or no longer stood on, and stays
in the repository until it is pruned.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    identities,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.index_cache import IndexIdentity
from incremental_backups_tools.chain.parent_index import carry_over_index
from incremental_backups_tools.chain.resolve import resolve
from incremental_backups_tools.chain.rewrite import RewriteOptions, rewrite
from incremental_backups_tools.chain.state import FULL, StateHeader
from incremental_backups_tools.chain.superfluous_copy import SuperfluousCopies, find_superfluous_copies
from incremental_backups_tools.exceptions import ChainError, ObjectExistsError
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """What merging or rebasing did.

    Attributes:
        backup_key, backup_date: of the backup that was written again.
        kind, parent: what it is now, and what it stands on.
        generation: of its new files.
        replaced: ids of the points in time that are forgotten for it.
        bytes_written: by its archives and its state.
    """

    backup_key: str
    backup_date: str
    kind: str
    parent: str | None
    generation: int
    replaced: tuple[str, ...]
    bytes_written: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backup_key": self.backup_key,
            "backup_date": self.backup_date,
            "kind": self.kind,
            "parent": self.parent,
            "generation": self.generation,
            "replaced": list(self.replaced),
            "bytes_written": self.bytes_written,
        }


def merge_backups(
    key: str,
    first: str | datetime,
    last: str | datetime | None,
    *,
    repository: RepositoryPlace | None = None,
    cache_root: str | os.PathLike[str] | None = None,
    wait_seconds: float = 0.0,
    **options: Any,
) -> RewriteReport:
    """Replace the increments from *first* to *last* by one with the same result as *last*.

    It keeps the id of *last* and stands on what *first* stands on. The points before *last* are forgotten.

    Args:
        first, last: points in time; see ``points/when.py``.
        options: as :class:`RewriteOptions`.

    Raises:
        ChainError: there is no such run: *first* is a full, or *last* does not stand on it, or another backup
            stands on one between them.
        RepositoryLockedError: another process works on the key.
        IntegrityError, FormatError, RepositoryError: what they hold is damaged. Nothing was changed.
    """
    chosen = RewriteOptions(**options)
    target = open_repository(repository)
    with Rewriter(target, key, "merge", cache_root, wait_seconds, chosen) as rewriter:
        history = rewriter.history
        now = datetime.now(UTC)
        first_id = select_backup(history.backup_ids, first, now=now, what=key)
        last_id = select_backup(history.backup_ids, last, now=now, what=key)
        run = _run_between(history, first_id, last_id)
        replaced = tuple(before.id for before in run[:-1])
        below = {header.id for header in history.chain_to(run[0].id)[:-1]}
        points = [*below.intersection(history.backup_ids), last_id]
        copies = rewriter.find_superfluous_copies(points, lambda point, _: point == last_id)
        header = rewriter.merge(run, copies.get(last_id, ()))
        for backup_id in replaced:
            rewriter.forget(backup_id)
        rewriter.refresh_cache()
        return rewriter.report(header, replaced)


def rebase_backup(
    key: str,
    at: str | datetime | None = None,
    *,
    repository: RepositoryPlace | None = None,
    cache_root: str | os.PathLike[str] | None = None,
    wait_seconds: float = 0.0,
    **options: Any,
) -> RewriteReport:
    """Turn the point in time *at* into a full, out of the chain it stands on. Later increments then stand on it.

    The points before it stay what they are. Arguments and errors as :func:`merge_backups`; and:

    Raises:
        ChainError: it is a full already.
    """
    chosen = RewriteOptions(**options)
    target = open_repository(repository)
    with Rewriter(target, key, "rebase", cache_root, wait_seconds, chosen) as rewriter:
        history = rewriter.history
        backup_id = select_backup(history.backup_ids, at, now=datetime.now(UTC), what=key)
        if history.header(backup_id).kind == FULL:
            raise ChainError(f"{key}@{backup_id} is a full backup already")
        header = rewriter.rebase(backup_id)
        rewriter.refresh_cache()
        return rewriter.report(header, ())


def _run_between(history: History, first_id: str, last_id: str) -> list[StateHeader]:
    """The backups from *first_id* to *last_id*, which stand on each other and bear nothing else."""
    chain = history.chain_to(last_id)
    ids = [header.id for header in chain]
    if first_id not in ids:
        raise ChainError(f"{history.key}@{last_id} does not stand on {first_id}")
    run = chain[ids.index(first_id) :]
    if run[0].kind == FULL:
        raise ChainError(
            f"{history.key}@{first_id} is a full backup: only increments are merged; rebase makes a full of {last_id}"
        )
    if len(run) < 2:
        raise ChainError(f"{history.key}@{first_id} to {last_id} is one backup: there is nothing to merge")
    inner = {header.id for header in run[:-1]}
    for header in history.stored_headers():
        if header.parent in inner and header.id not in ids:
            raise ChainError(f"{history.key}@{header.parent} cannot go: {header.id} stands on it too")
    return run


class Rewriter:
    """Writes backups of one key again, while it holds the key's lock.

    Attributes:
        history: as it is now.
        bytes_written: by all that was written again.
    """

    def __init__(
        self,
        repository: Repository,
        key: str,
        operation: str,
        cache_root: str | os.PathLike[str] | None,
        wait_seconds: float,
        options: RewriteOptions,
        *,
        dry_run: bool = False,
    ) -> None:
        self._repository = repository
        self._key = key
        self._operation = operation
        self._wait_seconds = wait_seconds
        self._options = options
        self._dry_run = dry_run
        self._stack = ExitStack()
        self._cache = Cache(
            cache_root if cache_root is not None else repository.cache_root,
            repository.repository_id,
            key,
            on_problem=options.on_notice,
        )
        self.bytes_written = 0
        self._lock: KeyLock | None = None

    def __enter__(self) -> Rewriter:
        self._repository.require_identity(self._operation)
        if not self._dry_run:
            self._repository.require_writable()
        # Whether there is such a key, before a lock is written for it.
        open_history(self._repository, self._key)
        with ExitStack() as stack:
            if not self._dry_run:
                self._lock = stack.enter_context(
                    KeyLock.acquire(
                        self._repository.store,
                        self._key,
                        operation=self._operation,
                        wait_seconds=self._wait_seconds,
                        on_notice=self._options.on_notice,
                    )
                )
                self._repository.clean_temporaries(self._key)
            self.history = open_history(self._repository, self._key)
            unsigned = self.history.describe_lost_signing()
            if unsigned is not None and self._options.on_notice is not None:
                self._options.on_notice(unsigned)
            # The newest chain as the cached index knows it.
            latest = self.history.latest()
            self._cached_chain = self.history.chain_to(latest.id) if latest is not None else []
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def confirm_lock(self) -> None:
        """Raise if somebody else may be changing the key by now. Raises as :meth:`KeyLock.confirm`."""
        assert self._lock is not None  # a dry run changes nothing
        self._lock.confirm()

    def find_superfluous_copies(
        self, points: Collection[str], is_worth: Callable[[str, int], bool]
    ) -> SuperfluousCopies:
        """As the function of this name, of all chains to *points* that will be merged into these.

        A chain of nothing but points is not looked at: each of its backups has seen to that.
        """
        found: SuperfluousCopies = {}
        covered: set[str] = set()
        for backup_id in sorted(points, reverse=True):
            if backup_id in covered:
                continue
            states = self.history.states(backup_id)
            headers = [state.header for state in states]
            own = [header.id for header in headers if header.id in points]
            if len(own) < len(headers):
                archives = Archives(self._repository.store, self._key, headers)
                copies = find_superfluous_copies(states, own, archives, is_worth=is_worth)
                found.update((point, copies[point]) for point in copies.keys() - covered)
            covered.update(own)
        return found

    def merge(self, run: Sequence[StateHeader], superfluous: Collection[bytes] = ()) -> StateHeader:
        """Write the last of *run* again, on what the first one stands on.

        Args:
            superfluous: paths of which the run holds a whole copy that is to be a delta.
        """
        states = self.history.states(run[-1].id)
        first = next(level for level, state in enumerate(states) if state.header.id == run[0].id)
        return self._rewrite(run[-1].id, first, superfluous)

    def rebase(self, backup_id: str) -> StateHeader:
        """Write *backup_id* again as a full."""
        return self._rewrite(backup_id, 0)

    def forget(self, backup_id: str) -> None:
        """Take *backup_id* off the list of points in time."""
        name = ObjectName(self._key, backup_id, Role.FORGOTTEN)
        try:
            self._repository.store.create(name.path, b"")
        except ObjectExistsError:
            return

    def refresh_cache(self) -> None:
        """Let the cached index hold for the newest chain as it is now."""
        if not self._cached_chain:
            return
        newest = self._cached_chain[-1]
        chain = self.history.chain_to(newest.id)
        if identities(chain) == identities(self._cached_chain):
            return
        with tempfile.TemporaryFile(prefix="ibt-index-") as file:
            carry_over_index(
                self._cache,
                self._identity(self._cached_chain),
                self._identity(chain),
                resolve(self.history.states(newest.id)),
                cast(Any, file),
            )
        self._cached_chain = chain

    def report(self, header: StateHeader, replaced: tuple[str, ...]) -> RewriteReport:
        """What became of one backup."""
        return RewriteReport(
            self._key,
            header.id,
            header.kind,
            header.parent,
            header.generation,
            replaced,
            self.bytes_written,
        )

    def _identity(self, chain: Sequence[StateHeader]) -> IndexIdentity:
        return IndexIdentity(
            self._repository.repository_id, self._key, identities(chain), chain[-1].index_digest
        )

    def _rewrite(self, backup_id: str, first: int, superfluous: Collection[bytes] = ()) -> StateHeader:
        used = [
            stored.name.generation
            for stored in self._repository.objects(self._key)
            if stored.name.backup_id == backup_id
        ]
        header = rewrite(
            self._repository,
            self.history.states(backup_id),
            first,
            generation=max(used) + 1,
            options=self._options,
            confirm=self.confirm_lock,
            superfluous=superfluous,
        )
        self.history = History(self._repository, self._key)
        name = self.history.state_name(backup_id)
        self.bytes_written += sum(file.size for file in header.files) + self._repository.store.size(name)
        return header
