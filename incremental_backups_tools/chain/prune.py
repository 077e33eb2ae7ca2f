"""Pruning: the points in time that a policy keeps stay as they are, and what only the others needed goes.

The order is the promise. First the points that are not kept are taken off the list; then what must be written
again is written, read back and durable; only then something is deleted, newest first, each backup's state
before its files. Killed at any instant, every kept point restores, and pruning again goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import RepositoryPlace, open_repository
from incremental_backups_tools.chain.merge import Rewriter
from incremental_backups_tools.chain.prune_plan import (
    DEFAULT_MAX_UNUSED,
    MERGE_SHARE,
    PlannedRewrite,
    PrunePlan,
    needed_ids,
    plan_prune,
)
from incremental_backups_tools.chain.resolve import resolve_versions
from incremental_backups_tools.chain.rewrite import RewriteOptions
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.chain.superfluous_copy import SuperfluousCopies
from incremental_backups_tools.chain.waste import Waste, measure_waste
from incremental_backups_tools.exceptions import ChainError, IntegrityError, ObjectNotFoundError
from incremental_backups_tools.points.retention import (
    Decision,
    KeepPolicy,
    Point,
    plan_retention,
)
from incremental_backups_tools.points.rotation import RotationPolicy
from incremental_backups_tools.repository.layout import Role, parse_backup_id
from incremental_backups_tools.repository.repository import Repository, StoredObject

# Files without a state are those of a run that was killed, and the next backup may use them; or of one that was
# stopped for so long that its lock was taken over.
GRACE_SECONDS: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """How a key is pruned.

    Attributes:
        policy: which points stay; an empty one keeps all, and only what nothing needs any more goes.
        now_ns: the clock, in nanoseconds since the epoch; None is this machine's.
        max_unused: the share, from 0 to 1, of the bytes of an expired backup and those standing on it that may
            be dead before they are written again without them.
        grace_seconds: how old files without a state must be to go.
        dry_run: work out what would be done, and change nothing.
        cache_root: directory of the local cache; None is the user's.
        wait_seconds: how long to wait for another process that works on the key.
        rewriting: how volumes are written again.
    """

    policy: KeepPolicy | RotationPolicy = field(default_factory=KeepPolicy)
    now_ns: int | None = None
    max_unused: float = DEFAULT_MAX_UNUSED
    grace_seconds: float = GRACE_SECONDS
    dry_run: bool = False
    cache_root: str | os.PathLike[str] | None = None
    wait_seconds: float = 0.0
    rewriting: RewriteOptions = field(default_factory=RewriteOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.max_unused <= 1:
            raise ValueError(f"max_unused is a share from 0 to 1, not {self.max_unused}")


@dataclass(slots=True)
class PruneReport:
    """What pruning did, or of a dry run what it would do.

    Attributes:
        decisions: for each point in time whether it stays, and by which rules.
        plan: what was worked out.
        deleted: names of the files that went, of a dry run those that would; markers, which are empty, are not
            counted among them.
        bytes_deleted: their bytes.
        bytes_written: by what was written again; of a dry run an estimate.
    """

    backup_key: str
    decisions: tuple[Decision, ...]
    plan: PrunePlan
    deleted: list[str] = field(default_factory=list)
    bytes_deleted: int = 0
    bytes_written: int = 0
    dry_run: bool = False

    @property
    def bytes_freed(self) -> int:
        """By which the repository shrank."""
        return self.bytes_deleted - self.bytes_written

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backup_key": self.backup_key,
            "points": [
                {"id": decision.backup_id, "keep": decision.keep, "reasons": list(decision.reasons)}
                for decision in self.decisions
            ],
            "rewritten": [
                {
                    "id": rewrite.backup_id,
                    "operation": rewrite.operation,
                    "in_place_of": list(rewrite.links),
                    "bytes": rewrite.waste.total_bytes,
                    "dead_bytes": rewrite.waste.dead_bytes,
                }
                for rewrite in self.plan.rewrites
            ],
            "unlisted": list(self.plan.unlisted),
            "dropped": list(self.plan.dropped),
            "deleted": self.deleted,
            "bytes_deleted": self.bytes_deleted,
            "bytes_written": self.bytes_written,
            "bytes_freed": self.bytes_freed,
            "dry_run": self.dry_run,
        }


def prune_backups(key: str, *, repository: RepositoryPlace | None = None, **options: Any) -> PruneReport:
    """Forget the points in time that a policy does not keep, and delete what no kept one needs.

    Args:
        repository: a directory or an fsspec URL; None is the user's own directory.
        options: as :class:`PruneOptions`.

    Raises:
        ChainError: there is no such key, the policy would keep nothing, or a point that is to be kept cannot be
            restored.
        RepositoryLockedError: another process works on the key.
        FormatError, IntegrityError, RepositoryError: what must be written again is damaged. Nothing was deleted.
        TypeError, ValueError: an option is none, or out of range.
    """
    chosen = PruneOptions(**options)
    target = open_repository(repository)
    with Rewriter(
        target, key, "prune", chosen.cache_root, chosen.wait_seconds, chosen.rewriting, dry_run=chosen.dry_run
    ) as rewriter:
        return _Pruning(target, key, chosen, rewriter).run()


class _Pruning:
    """Pruning one key, under its lock."""

    def __init__(self, repository: Repository, key: str, options: PruneOptions, rewriter: Rewriter) -> None:
        self._repository = repository
        self._key = key
        self._options = options
        self._rewriter = rewriter
        self._kept: set[str] = set()
        self._copies: SuperfluousCopies = {}

    def run(self) -> PruneReport:
        decisions = self._decide()
        kept = self._kept = {decision.backup_id for decision in decisions if decision.keep}
        history = self._rewriter.history
        for backup_id in kept:
            history.chain_to(backup_id)  # whether it can be restored at all
        self._copies = self._rewriter.find_superfluous_copies(kept, self._is_worth)
        plan = plan_prune(
            history.stored_headers(),
            history.backup_ids,
            kept,
            self._measure,
            max_unused=self._options.max_unused,
            with_copies=self._copies,
        )
        report = PruneReport(self._key, decisions, plan, dry_run=self._options.dry_run)
        if self._options.dry_run:
            self._estimate(plan, report)
            return report
        for backup_id in plan.forgotten:
            self._rewriter.forget(backup_id)
        for planned in plan.rewrites:
            self._rewrite(planned)
        self._rewriter.refresh_cache()
        report.bytes_written = self._rewriter.bytes_written
        unneeded = self._unneeded(kept)
        if unneeded:
            self._prove(kept)
            self._delete(unneeded, report)
        return report

    def _decide(self) -> tuple[Decision, ...]:
        history = self._rewriter.history
        points = [Point(backup_id=header.id, tags=tuple(header.tags)) for header in history.headers()]
        now_ns = self._options.now_ns if self._options.now_ns is not None else time.time_ns()
        decisions = tuple(plan_retention(points, self._options.policy, now_ns=now_ns))
        if not any(decision.keep for decision in decisions):
            raise ChainError(f"{self._key}: this policy would keep no backup at all; nothing was done")
        return decisions

    def _is_worth(self, point: str, copy_len: int) -> bool:
        """Whether a whole copy that a point holds need be looked at.

        A point that nothing is merged into is written again only for a share of its bytes.
        """
        header = self._rewriter.history.header(point)
        if header.parent not in self._kept:
            return True
        total = sum(file.size for file in header.files)
        return copy_len >= total * self._options.max_unused * MERGE_SHARE

    def _measure(self, backup_id: str, first_id: str | None) -> Waste:
        states = self._rewriter.history.states(backup_id)
        ids = [state.header.id for state in states]
        store = self._repository.store
        return measure_waste(
            states,
            ids.index(first_id) if first_id is not None else 0,
            Archives(store, self._key, [state.header for state in states]),
            state_sizes=[store.size(self._rewriter.history.state_name(known)) for known in ids],
            copies=self._copies.get(backup_id),
            worth=self._options.max_unused * (MERGE_SHARE if first_id is not None else 1),
        )

    def _rewrite(self, planned: PlannedRewrite) -> None:
        if planned.operation == "rebase":
            self._rewriter.rebase(planned.backup_id)
            return
        chain = self._rewriter.history.chain_to(planned.backup_id)
        first_id = (*planned.links, planned.backup_id)[0]
        first = next(level for level, header in enumerate(chain) if header.id == first_id)
        self._rewriter.merge(chain[first:], self._copies.get(planned.backup_id, ()))

    def _prove(self, kept: Iterable[str]) -> None:
        """Read every state that is still needed before anything goes: each index has the digest that it must.

        What takes the place of other files must be there: an older generation may be the only whole one.
        """
        history = self._rewriter.history
        sizes = {stored.name.file_name: stored.size for stored in self._repository.objects(self._key)}
        proved: set[str] = set()
        for backup_id in sorted(kept, reverse=True):
            if backup_id not in proved:
                chain = history.chain_to(backup_id)
                proved.update(header.id for header in chain)
                for _ in resolve_versions(history.states(backup_id)):
                    pass
                for header in chain:
                    if header.generation:
                        _check_files(header, sizes)

    # --- what goes ---------------------------------------------------------------------------------------

    def _unneeded(self, kept: set[str]) -> list[StoredObject]:
        """The files that no kept point needs, in the order in which they go."""
        headers = self._rewriter.history.stored_headers()
        needed = needed_ids({header.id: header.parent for header in headers}, kept)
        generations = {header.id: header.generation for header in headers}
        return _in_order(
            stored
            for stored in self._repository.objects(self._key)
            if self._is_unneeded(stored, needed, generations)
        )

    def _is_unneeded(self, stored: StoredObject, needed: set[str], generations: dict[str, int]) -> bool:
        name = stored.name
        generation = generations.get(name.backup_id)
        if name.role is Role.FORGOTTEN:
            return name.backup_id not in needed
        if generation is None or name.generation > generation:
            # No state names it.
            now = self._options.now_ns if self._options.now_ns is not None else time.time_ns()
            age = (now - parse_backup_id(name.backup_id)) / 1e9
            return age >= self._options.grace_seconds
        return name.backup_id not in needed or name.generation < generation

    def _delete(self, objects: list[StoredObject], report: PruneReport) -> None:
        self._rewriter.confirm_lock()
        for stored in objects:
            try:
                self._repository.store.delete(stored.name.path)
            except ObjectNotFoundError:
                continue  # somebody was faster
            _note_deleted(stored, report)

    def _estimate(self, plan: PrunePlan, report: PruneReport) -> None:
        """What a dry run can know: the files of what is dropped, and what writing again would free."""
        rewritten = {rewrite.backup_id for rewrite in plan.rewrites}
        generations = {header.id: header.generation for header in self._rewriter.history.stored_headers()}
        left = (set(plan.kept) | set(plan.unlisted)) - rewritten
        objects = self._repository.objects(self._key)
        gone = _in_order(stored for stored in objects if self._is_unneeded(stored, left, generations))
        for stored in gone:
            _note_deleted(stored, report)
        report.bytes_written = sum(
            rewrite.waste.total_bytes - rewrite.waste.dead_bytes for rewrite in plan.rewrites
        )


def _check_files(header: StateHeader, sizes: Mapping[str, int]) -> None:
    for file in header.files:
        if sizes.get(file.name) != file.size:
            raise IntegrityError(
                f"{header.key}/{file.name}: expected {file.size} bytes, there are {sizes.get(file.name, 'none')}; "
                "nothing was deleted",
                path=file.name,
                expected=file.size,
                actual=sizes.get(file.name),
            )


def _note_deleted(stored: StoredObject, report: PruneReport) -> None:
    if stored.name.role is not Role.FORGOTTEN:
        report.deleted.append(stored.name.path)
        report.bytes_deleted += stored.size


def _in_order(objects: Iterable[StoredObject]) -> list[StoredObject]:
    """Newest backups first, so that what is left always stands on something; of each the state first, a marker last."""
    ranks = {Role.STATE: 0, Role.FORGOTTEN: 2}

    def by_role(stored: StoredObject) -> tuple[int, str]:
        return ranks.get(stored.name.role, 1), stored.name.file_name

    return sorted(sorted(objects, key=by_role), key=lambda stored: stored.name.backup_id, reverse=True)
