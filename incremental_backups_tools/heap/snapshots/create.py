"""Making a snapshot: one pass over the source, in step with the last snapshot's index.

The walk yields names in sort order. Files that may have changed are read by several threads; what comes of them is
taken in the walk's order again. Nothing has its final name before its bytes are on the disk: objects first, then the
tree's links to them, then the index, and last the tree.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from incremental_backups_tools.durable import fsync_directory
from incremental_backups_tools.exceptions import FormatError, SourceError
from incremental_backups_tools.heap.snapshots.building import TreeBuilder
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.healing import heal
from incremental_backups_tools.heap.snapshots.index import IndexDraft, SnapshotHeader, check_index
from incremental_backups_tools.heap.snapshots.instances import Instances
from incremental_backups_tools.heap.snapshots.layout import CONTROL, MAKING, unfinished_name, validate_name
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.heap.snapshots.scan import Scan
from incremental_backups_tools.repository.layout import encode_backup_id, parse_backup_id
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import ROOT, Entry, printable
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.restoring import Warnings
from incremental_backups_tools.tree.source import walk_source

DEFAULT_MAX_DELETED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """How a snapshot is made.

    Attributes:
        rules: what is excluded, besides what a ``.exclude`` file in the source names.
        one_file_system: do not enter other file systems.
        threads: how many files are read at a time; None is one a processor.
        max_deleted: the share of entries, from 0 to 1, by which a tree may shrink since its newest snapshot. One
            that shrank by more may not be mounted.
        max_links: the most names that an inode may have, besides what the file system says; None is no limit.
        wait_seconds: how long to wait for another process that works on the same root.
        dry_run: read, compare, write nothing.
        on_progress: called with each path and its size in bytes when it was looked at.
    """

    rules: ExclusionRules | None = None
    one_file_system: bool = False
    threads: int | None = None
    max_deleted: float = DEFAULT_MAX_DELETED
    max_links: int | None = None
    wait_seconds: float = 0.0
    dry_run: bool = False
    on_progress: Callable[[bytes, int], None] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_deleted <= 1:
            raise ValueError(f"max_deleted is a share from 0 to 1, not {self.max_deleted}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; at least one is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What is taken over from another tool, in place of a live directory as it is.

    Attributes:
        title: what the other tool called it.
        time_ns: when it was made.
        amend: what an entry of the tree was in the source.
        refuse: why a file is not to be trusted, as a phrase; None where it is.
    """

    title: str
    time_ns: int
    amend: Callable[[Entry], Entry]
    refuse: Callable[[os.stat_result], str | None]


def create_snapshot(
    target: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    name: str | None = None,
    imported: Imported | None = None,
    **options: object,
) -> SnapshotReport:
    """Make a snapshot of the directory *target* among those in *dest*.

    Args:
        name: the root that it is the newest snapshot of; None is *target*'s base name.
        imported: for what another tool made.
        options: as :class:`SnapshotOptions`.

    Raises:
        SourceError: *target* is missing or no directory, lies in *dest*, or shrank by more than may be.
        RepositoryLockedError: another process makes or removes snapshots of this root.
        RepositoryError: the snapshots cannot be listed.
        OSError: *dest* cannot be written to.
        TypeError, ValueError: an option is none, or out of range, or *name* cannot be one.
    """
    chosen = SnapshotOptions(**options)  # type: ignore[arg-type]
    source = os.path.abspath(os.fsdecode(target))
    root = validate_name(name) if name is not None else name_of(source)
    _check_target(source, os.path.abspath(dest))
    start = time.monotonic()
    shown = printable(os.fsencode(source))
    report = SnapshotReport(root, shown, dry_run=chosen.dry_run)
    with ExitStack() as stack:
        if chosen.dry_run and not os.path.isdir(os.path.join(dest, CONTROL)):
            depot = None
        else:
            depot = Depot.open(dest) if chosen.dry_run else Depot.create(dest)
        if depot is not None and not chosen.dry_run:
            stack.enter_context(depot.root_alone(root, wait_seconds=chosen.wait_seconds))
            depot.make_root(root)
            depot.clean(root)
        _Creation(source, os.path.abspath(dest), depot, chosen, report, imported).run(stack)
    report.duration = time.monotonic() - start
    return report


def name_of(target: str | os.PathLike[str]) -> str:
    """The root that a directory belongs to unless another is named: its base name.

    Raises:
        ValueError: that cannot be the name of one.
    """
    base = os.path.basename(os.path.abspath(os.fsdecode(target)))
    try:
        return validate_name(base)
    except ValueError:
        shown = printable(os.fsencode(base))
        raise ValueError(f"{shown!r} cannot be the name of snapshots: give one with name (--name)") from None


def _check_target(source: str, dest: str) -> None:
    if not os.path.isdir(source):
        raise SourceError(f"{printable(os.fsencode(source))}: not a directory, or not there")
    inside, outside = os.path.realpath(source), os.path.realpath(dest)
    if inside == outside or inside.startswith(os.path.join(outside, "")):
        raise SourceError(f"{printable(os.fsencode(source))}: lies among the snapshots in {dest}")


class _Creation:
    """Making one snapshot, under its root's lock."""

    def __init__(
        self,
        source: str,
        dest: str,
        depot: Depot | None,
        options: SnapshotOptions,
        report: SnapshotReport,
        imported: Imported | None,
    ) -> None:
        self._source = source
        self._dest = dest
        self._depot = depot
        self._options = options
        self._report = report
        self._imported = imported
        self._warnings = Warnings()
        self._applier = MetadataApplier(numeric_owner=True, on_problem=self._warnings.add)
        self._start_ns = time.time_ns()

    def run(self, stack: ExitStack) -> None:
        report, depot = self._report, self._depot
        ids = depot.snapshot_ids(report.name) if depot is not None else []
        before: Iterable[Entry] = ()
        if depot is not None:
            report.parent = self._newest_readable(depot, ids)
            if report.parent is not None:
                before = depot.entries(report.name, report.parent)
        draft = stack.enter_context(IndexDraft())
        if depot is None or self._options.dry_run:
            instances = self._instances(None)
            self._scan(instances, None, before, draft)
            return
        report.id = self._new_id(ids)
        making = os.path.join(depot.root_path(report.name), unfinished_name(report.id, MAKING))
        stack.callback(depot.clean, report.name)
        instances = self._instances(depot.staging_path(report.name))
        os.mkdir(making, 0o700)
        with Destination(making, create=False) as destination:
            builder = TreeBuilder(destination, self._applier, instances, draft, report)
            self._scan(instances, builder, before, draft)
        draft.publish(depot.index_path(report.name, report.id), self._header(report.id, draft))
        os.rename(making, depot.tree_path(report.name, report.id))
        fsync_directory(depot.root_path(report.name))
        heal(depot, instances, self._applier, report)
        report.warnings = self._warnings.texts

    def _newest_readable(self, depot: Depot, ids: list[str]) -> str | None:
        """The snapshot to compare with. One whose index is damaged costs reading files, and stops nothing."""
        for snapshot_id in reversed(ids):
            try:
                check_index(depot.index_path(self._report.name, snapshot_id))
            except (FormatError, OSError) as error:
                message = f"the snapshot {snapshot_id} cannot be compared with: {error}"
                self._report.notices.append(Problem(ROOT, message))
            else:
                return snapshot_id
        return None

    def _instances(self, staging: str | None) -> Instances:
        objects = self._depot.objects_path if self._depot is not None else os.path.join(self._dest, CONTROL)
        return Instances(objects, staging, self._applier, max_links=self._options.max_links)

    def _scan(
        self,
        instances: Instances,
        build: TreeBuilder | None,
        before: Iterable[Entry],
        draft: IndexDraft,
    ) -> None:
        scan = Scan(
            instances,
            build,
            draft,
            self._report,
            threads=self._options.threads,
            find_old=self._find_old,
            imported=self._imported,
            on_progress=self._options.on_progress,
        )
        walk = walk_source(
            self._source,
            rules=self._options.rules,
            one_file_system=self._options.one_file_system,
            on_problem=scan.problem,
            on_unlisted=scan.unlisted,
            leave_out=_identities(self._dest),
            on_left_out=scan.left_out,
        )
        scan.run(walk, before)
        if build is not None:
            build.finish()
        self._report.entries, self._report.files = draft.entries, draft.files
        self._report.bytes = draft.bytes
        self._check_shrinkage(draft)

    def _find_old(self, path: bytes) -> Entry | None:
        """The entry that the last snapshot has under *path*."""
        if self._depot is None or self._report.parent is None:
            return None
        entries = self._depot.entries(self._report.name, self._report.parent)
        return next((entry for entry in entries if entry.path == path), None)

    def _check_shrinkage(self, draft: IndexDraft) -> None:
        if self._depot is None or self._report.parent is None or self._imported is not None:
            return
        before = self._depot.header(self._report.name, self._report.parent).entries
        if before - draft.entries > before * self._options.max_deleted:
            raise SourceError(
                f"{self._report.source}: has {draft.entries} entries, the snapshot before had {before}: is it "
                "mounted? No snapshot was made; allow it with max_deleted (--max-deleted 100%)"
            )

    def _new_id(self, ids: list[str]) -> str:
        """The time, as an id after all others."""
        time_ns = self._imported.time_ns if self._imported is not None else self._start_ns
        if ids:
            time_ns = max(time_ns, parse_backup_id(ids[-1]) + 1000)
        return encode_backup_id(time_ns)

    def _header(self, snapshot_id: str, draft: IndexDraft) -> SnapshotHeader:
        report = self._report
        return SnapshotHeader(
            name=report.name,
            id=snapshot_id,
            source=report.source,
            host=socket.gethostname(),
            start_ns=self._start_ns,
            end_ns=time.time_ns(),
            entries=draft.entries,
            files=draft.files,
            bytes=draft.bytes,
            added_objects=report.added_objects,
            added_bytes=report.added_bytes,
            problems=len(report.problems),
            imported=self._imported.title if self._imported is not None else None,
        )


def _identities(dest: str) -> list[tuple[int, int]]:
    """The directory of snapshots itself, where the target holds it."""
    try:
        info = os.stat(dest)
    except FileNotFoundError:
        return []
    return [(info.st_dev, info.st_ino)]
