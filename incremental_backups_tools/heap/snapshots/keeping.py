"""Deleting snapshots, and the objects that no snapshot has.

A snapshot goes by the rename of its tree, then its index goes, then the tree itself. Objects go only when nobody makes,
removes or reads a snapshot, and only those that no index names: link counts say nothing, since anybody may link to a
file of a snapshot or copy one away.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from incremental_backups_tools.durable import fsync_directory
from incremental_backups_tools.exceptions import ChainError, RepositoryError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import object_of
from incremental_backups_tools.heap.snapshots.layout import (
    DAMAGED,
    OBJECTS,
    REMOVING,
    parse_damaged_path,
    parse_object_path,
    unfinished_name,
)
from incremental_backups_tools.points.retention import Decision, KeepPolicy, Point, plan_retention
from incremental_backups_tools.points.rotation import RotationPolicy
from incremental_backups_tools.tally import Tally

_SCHEMA: Final = "CREATE TABLE named (path TEXT); CREATE TABLE present (path TEXT, size INTEGER);"
_UNNAMED: Final = "SELECT path, size FROM present WHERE path NOT IN (SELECT path FROM named) ORDER BY path"


@dataclass(slots=True)
class GcReport:
    """What collecting garbage did, or of a dry run would do.

    Attributes:
        kept, deleted: how many objects.
        bytes_freed: by those that were deleted; what other names outside the snapshots still hold is not free.
    """

    kept: int = 0
    deleted: int = 0
    bytes_freed: int = 0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "kept": self.kept,
            "deleted": self.deleted,
            "bytes_freed": self.bytes_freed,
            "dry_run": self.dry_run,
        }


@dataclass(slots=True)
class PruneReport:
    """What pruning did, or of a dry run would do.

    Attributes:
        decisions: for each root, whether each of its snapshots stays, and by which rules.
        gc: what went with those that did not.
    """

    decisions: dict[str, list[Decision]] = field(default_factory=dict)
    gc: GcReport = field(default_factory=GcReport)
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "snapshots": [
                {
                    "name": name,
                    "id": decision.backup_id,
                    "keep": decision.keep,
                    "reasons": list(decision.reasons),
                }
                for name, decisions in self.decisions.items()
                for decision in decisions
            ],
            "gc": self.gc.to_dict(),
            "dry_run": self.dry_run,
        }


def delete_snapshots(depot: Depot, name: str, ids: list[str], *, wait_seconds: float = 0.0) -> None:
    """Delete snapshots of a root. What they alone had is freed by :func:`collect_garbage`.

    Raises:
        RepositoryLockedError: another process makes or removes snapshots of this root.
        OSError: one cannot be removed.
    """
    with depot.root_alone(name, wait_seconds=wait_seconds):
        for snapshot_id in ids:
            tree = depot.tree_path(name, snapshot_id)
            aside = os.path.join(depot.root_path(name), unfinished_name(snapshot_id, REMOVING))
            os.rename(tree, aside)
            fsync_directory(depot.root_path(name))
        depot.clean(name)


def prune_snapshots(
    depot: Depot,
    name: str | None,
    policy: KeepPolicy | RotationPolicy,
    *,
    now_ns: int,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> PruneReport:
    """Delete the snapshots that a policy does not keep, root by root, and then the objects that no other has.

    Args:
        name: a root; None is each.
        now_ns: the clock, in nanoseconds since the epoch.

    Raises:
        ChainError: there is no such root, or the policy would keep nothing of one: nothing was done.
        RepositoryLockedError: another process works here.
        RepositoryError, FormatError: an index cannot be read: nothing of the garbage was collected.
    """
    report = PruneReport(dry_run=dry_run)
    for root in depot.names() if name is None else [name]:
        points = [Point(backup_id=known) for known in depot.snapshot_ids(root)]
        if not points:
            raise ChainError(f"{depot.fs_path} has no snapshots of {root}")
        decisions = list(plan_retention(points, policy, now_ns=now_ns))
        if not any(decision.keep for decision in decisions):
            raise ChainError(f"{root}: this policy would keep no snapshot at all; nothing was done")
        report.decisions[root] = decisions
    gone = {
        (root, decision.backup_id)
        for root, decisions in report.decisions.items()
        for decision in decisions
        if not decision.keep
    }
    if not dry_run:
        for root in report.decisions:
            ids = [snapshot_id for known, snapshot_id in sorted(gone) if known == root]
            delete_snapshots(depot, root, ids, wait_seconds=wait_seconds)
    report.gc = collect_garbage(depot, dry_run=dry_run, wait_seconds=wait_seconds, without=gone)
    return report


def collect_garbage(
    depot: Depot,
    *,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
    without: set[tuple[str, str]] | None = None,
) -> GcReport:
    """Delete the objects that no snapshot has, and what killed runs left.

    Args:
        without: roots and ids of snapshots that count as deleted, for a dry run.

    Raises:
        RepositoryLockedError: somebody makes, removes or reads snapshots.
        RepositoryError, FormatError: an index cannot be read: nothing was deleted.
        OSError: something cannot be deleted.
    """
    report = GcReport(dry_run=dry_run)
    with depot.alone(wait_seconds=wait_seconds), Tally(_SCHEMA) as tally:
        if not dry_run:
            depot.clean_control()
            for root in depot.all_roots():
                depot.clean(root)
        for path in _iter_named(depot, without or set()):
            tally.add("named", (path,))
        for path, size in _iter_present(depot):
            tally.add("present", (path, size))
            report.kept += 1
        for path, size in tally.rows(_UNNAMED):
            if not dry_run:
                os.unlink(os.path.join(depot.control_path, path))
            report.kept -= 1
            report.deleted += 1
            report.bytes_freed += size
    return report


def _iter_named(depot: Depot, without: set[tuple[str, str]]) -> Iterator[str]:
    """The paths of the objects that the indexes name, as :func:`_iter_present` gives them.

    One that is set aside is named for as long as there is nothing better.
    """
    damaged = set(depot.damaged())
    for root in depot.names():
        for snapshot_id in depot.snapshot_ids(root):
            if (root, snapshot_id) in without:
                continue
            for entry in depot.entries(root, snapshot_id):
                if not entry.is_content_holder:
                    continue
                name = object_of(entry)
                yield f"{OBJECTS}/{name.path}"
                if name.damaged_path in damaged:
                    if not os.path.lexists(os.path.join(depot.objects_path, name.path)):
                        yield f"{DAMAGED}/{name.damaged_path}"


def _iter_present(depot: Depot) -> Iterator[tuple[str, int]]:
    """The paths, below the depot's own directory, and sizes of the objects that are there, damaged ones too."""
    for path in _iter_paths(depot):
        with suppress(FileNotFoundError):
            yield path, os.lstat(os.path.join(depot.control_path, path)).st_size


def _iter_paths(depot: Depot) -> Iterator[str]:
    """Any file that is nobody's object is not ours to delete."""
    for name in depot.damaged():
        if parse_damaged_path(name) is not None:
            yield f"{DAMAGED}/{name}"
    for fan in sorted(_list(depot.objects_path)):
        directory = os.path.join(depot.objects_path, fan)
        if stat.S_ISDIR(os.lstat(directory).st_mode):
            for file_name in _list(directory):
                if parse_object_path(f"{fan}/{file_name}") is not None:
                    yield f"{OBJECTS}/{fan}/{file_name}"


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError as error:
        raise RepositoryError(f"{directory}: {error.strerror}") from error
