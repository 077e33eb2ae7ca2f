"""Restoring a snapshot, all of it or some paths, out of its index and its objects.

The trees could be copied just as well. But what they show may have been changed by anybody who may write to them; what
is restored here is checked against its digest before the file that it replaces is touched, and has the metadata of
the index.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec
from blake3 import blake3

from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import BackupError, IntegrityError, UnsafePathError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import object_of
from incremental_backups_tools.heap.snapshots.instances import Instances, iter_chunks
from incremental_backups_tools.heap.snapshots.layout import ObjectName
from incremental_backups_tools.heap.snapshots.report import Warnings, problem_records
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.metadata import MetadataApplier, type_of
from incremental_backups_tools.tree.selection import Selection
from incremental_backups_tools.tree.walk import Walk
from incremental_backups_tools.tree.writer import FATAL_ERRORS, TreeWriter

Overwrite = Literal["never", "changed", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How a snapshot is restored.

    Attributes:
        paths: paths or glob patterns to restore; None is everything.
        overwrite: what happens to files that are there: ``never`` touched; replaced if ``changed`` in content
            (the default); ``always`` replaced.
        delete: remove what is in the destination and not in the snapshot, below the restored paths.
        numeric_owner: take owners by number, not by name.
        dry_run: change nothing; report what would be done.
        wait_seconds: how long to wait while garbage is collected.
        on_progress: called with each path and its size in bytes when it is in place.
    """

    paths: Iterable[str | bytes | os.PathLike[str]] | None = None
    overwrite: Overwrite = "changed"
    delete: bool = False
    numeric_owner: bool = False
    dry_run: bool = False
    wait_seconds: float = 0.0
    on_progress: Callable[[bytes, int], None] | None = None

    def __post_init__(self) -> None:
        if self.overwrite not in get_args(Overwrite):
            raise ValueError(f"overwrite is never, changed or always, not {self.overwrite!r}")


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        written, unchanged, kept, removed: how many names were restored; were right already; were there and left
            alone by ``overwrite='never'``; were removed by ``delete``.
        bytes_written: of file contents.
        problems: names that were not restored, and why. With any, exit status 3.
        warnings: metadata that the destination could not take, one for each kind with the first path.
    """

    name: str
    id: str
    destination: str
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    bytes_written: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duration: float = 0.0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "name": self.name,
            "id": self.id,
            "destination": printable(os.fsencode(self.destination)),
            "written": self.written,
            "unchanged": self.unchanged,
            "kept": self.kept,
            "removed": self.removed,
            "bytes_written": self.bytes_written,
            "problems": problem_records(self.problems),
            "warnings": self.warnings,
            "duration": round(self.duration, 3),
            "dry_run": self.dry_run,
        }


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry, and the object with its content: a hard link has its first name's."""

    entry: Entry
    name: ObjectName | None


def restore_snapshot(
    depot: Depot, name: str, snapshot_id: str, dest: str | os.PathLike[str], **options: Any
) -> RestoreReport:
    """Restore a snapshot into the directory *dest*, and write nothing outside of it.

    A file that cannot be restored is listed in the report's problems and what was in its place stays as it was.

    Args:
        options: as :class:`RestoreOptions`.

    Raises:
        ChainError: a path selects nothing.
        RepositoryLockedError: garbage is being collected.
        RepositoryError, FormatError: the index cannot be read.
        OSError: *dest* cannot be made or written to.
        TypeError, ValueError: an option is none, or out of range.
    """
    chosen = RestoreOptions(**options)
    start = time.monotonic()
    report = RestoreReport(name, snapshot_id, os.fspath(dest), dry_run=chosen.dry_run)
    with depot.shared(wait_seconds=chosen.wait_seconds):
        _Restore(depot, chosen, report).run()
    report.duration = time.monotonic() - start
    return report


class _Restore:
    def __init__(self, depot: Depot, options: RestoreOptions, report: RestoreReport) -> None:
        self._depot = depot
        self._options = options
        self._report = report
        self._selection = Selection(options.paths)
        self._warnings = Warnings()
        self._applier = MetadataApplier(numeric_owner=options.numeric_owner, on_problem=self._warnings.add)
        self._instances = Instances(depot.objects_path, None, self._applier)
        self._first_links: dict[bytes, bytes] = {}
        self._failed: set[bytes] = set()
        self._right_already: set[bytes] = set()

    def run(self) -> None:
        with ExitStack() as stack:
            if self._options.dry_run:
                self._plan(stack)
                return
            destination = stack.enter_context(Destination(self._report.destination))
            writer = TreeWriter(
                destination,
                self._applier,
                replace_directories=self._options.delete,
                on_written=self._on_written,
                on_failed=lambda entry, error: self._problem(entry.path, error),
            )
            stack.callback(writer.abort)
            for item in self._items():
                self._restore(item, destination, writer)
            writer.finish()
            self._selection.check_all_matched()
            if self._options.delete:
                self._remove_extra(destination)
                sync_filesystem(destination.fd)
        self._report.warnings = self._warnings.texts

    def _items(self) -> Iterator[_Item]:
        return self._selection.filter(self._all_items())

    def _all_items(self) -> Iterator[_Item]:
        holders: dict[bytes, ObjectName] = {}
        for entry in self._entries():
            if entry.type != FILE:
                yield _Item(entry, None)
            elif entry.link_of is not None:
                yield _Item(entry, holders.get(entry.link_of))
            else:
                holders[entry.path] = object_of(entry)
                yield _Item(entry, holders[entry.path])

    def _entries(self) -> Iterator[Entry]:
        return self._depot.entries(self._report.name, self._report.id)

    # --- one entry -------------------------------------------------------------------------------------------

    def _restore(self, item: _Item, destination: Destination, writer: TreeWriter) -> None:
        entry = item.entry
        try:
            existing = destination.lstat(entry.path)
            is_blocked = existing is not None and self._options.overwrite == "never"
            if entry.type == DIRECTORY:
                if is_blocked and existing is not None and not stat.S_ISDIR(existing.st_mode):
                    raise NotADirectoryError(f"{printable(entry.path)}: a file stands in its place")
                writer.directory(entry)
            elif is_blocked:
                writer.leave_until(entry.path)
                self._report.kept += 1
            elif not (entry.link_of is not None and self._restore_link(entry, writer)):
                self._restore_node(item, existing, destination, writer)
        except (BackupError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._problem(entry.path, error)

    def _restore_link(self, entry: Entry, writer: TreeWriter) -> bool:
        """Link to the first restored name of the inode; False where there is none yet, and this is the first."""
        assert entry.link_of is not None  # the caller looked
        target = self._first_links.get(entry.link_of)
        if target is None and entry.link_of not in self._failed and self._selection.matches(entry.link_of):
            target = entry.link_of
        if target is None:
            self._first_links[entry.link_of] = entry.path
            return False
        writer.link(entry, target)
        return True

    def _restore_node(
        self,
        item: _Item,
        existing: os.stat_result | None,
        destination: Destination,
        writer: TreeWriter,
    ) -> None:
        entry = item.entry
        if entry.type != FILE:
            writer.special(entry)
            return
        if item.name is None:
            raise IntegrityError(
                "the file that it is a hard link of is not in the index",
                path=printable(entry.path),
                expected="an object",
                actual=None,
            )
        entry = msgspec.structs.replace(entry, digest=bytes.fromhex(item.name.digest), link_of=None)
        if self._options.overwrite == "changed" and _may_be_equal(existing, entry):
            if _digest_of(destination, entry.path) == entry.digest:
                self._right_already.add(entry.path)
                writer.metadata(entry)
                return
        self._write(item.name, entry, writer)
        self._report.bytes_written += entry.size

    def _write(self, name: ObjectName, entry: Entry, writer: TreeWriter) -> None:
        """Write a file from its object, or from another one with the same content where that is damaged."""
        try:
            writer.file(entry, self._chunks(name))
            return
        except (IntegrityError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            first = error
        for other in self._instances.iter_same_content(name.digest):
            if other != name and self._instances.has_content(other, entry.size):
                writer.file(entry, self._chunks(other))
                return
        raise first

    def _chunks(self, name: ObjectName) -> Iterator[bytes]:
        fd = self._instances.open(name)
        try:
            yield from iter_chunks(fd)
        finally:
            os.close(fd)

    # --- what came out of it ---------------------------------------------------------------------------------

    def _on_written(self, entry: Entry) -> None:
        if entry.path in self._right_already:
            self._right_already.remove(entry.path)
            self._report.unchanged += 1
        else:
            self._report.written += 1
        if self._options.on_progress is not None:
            self._options.on_progress(entry.path, entry.size)

    def _problem(self, path: bytes, error: Exception) -> None:
        self._failed.add(path)
        self._right_already.discard(path)
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._report.problems.append(Problem(path, message.removeprefix(f"{printable(path)}: ")))

    # --- the rest ----------------------------------------------------------------------------------------------

    def _plan(self, stack: ExitStack) -> None:
        """A dry run: compare with what is there, by what ``lstat`` says."""
        destination = None
        if os.path.isdir(self._report.destination):
            destination = stack.enter_context(Destination(self._report.destination, create=False))
        for item in self._items():
            entry = item.entry
            existing = destination.lstat(entry.path) if destination is not None else None
            if existing is not None and self._options.overwrite != "always" and _looks_equal(existing, entry):
                self._report.unchanged += 1
            elif existing is not None and self._options.overwrite == "never":
                self._report.kept += 1
            else:
                self._report.written += 1
                self._report.bytes_written += entry.size if entry.link_of is None else 0
        self._selection.check_all_matched()
        if destination is not None and self._options.delete:
            self._report.removed = len(self._find_extra(destination)[0])

    def _remove_extra(self, destination: Destination) -> None:
        """Remove what is there and not in the snapshot, children before parents."""
        extra, parents = self._find_extra(destination)
        for path in reversed(extra):
            try:
                destination.remove(path)
                self._report.removed += 1
            except (OSError, UnsafePathError) as error:
                self._problem(path, error)
        for parent in reversed(parents.values()):
            try:
                self._applier.apply_to_fd(destination.directory(parent.path), parent)
            except (OSError, UnsafePathError) as error:
                self._problem(parent.path, error)

    def _find_extra(self, destination: Destination) -> tuple[list[bytes], dict[bytes, Entry]]:
        """Paths that only the destination has, in sort order, and the restored directories they lie in."""
        extra: list[bytes] = []
        parents: dict[bytes, Entry] = {}
        directories: dict[bytes, Entry] = {}  # those that lead to the current path
        walk = Walk(destination.fs_path, on_problem=self._unreadable)
        for found, entry in merge_join(
            walk,
            self._entries(),
            new_path=lambda found: found.rel_path,
            old_path=lambda entry: entry.path,
        ):
            if entry is not None:
                if entry.type == DIRECTORY:
                    directories = {
                        path: known for path, known in directories.items() if _leads_to(path, entry.path)
                    }
                    directories[entry.path] = entry
            elif found is not None and self._selection.matches(found.rel_path):
                extra.append(found.rel_path)
                parent = found.rel_path.rpartition(b"/")[0] or ROOT
                if parent in directories:
                    parents[parent] = directories[parent]
        return extra, parents

    def _unreadable(self, path: bytes, message: str) -> None:
        self._report.problems.append(Problem(path, message))


def _digest_of(destination: Destination, path: bytes) -> bytes:
    hasher = blake3()
    fd = destination.open_regular(path)
    try:
        for chunk in iter_chunks(fd):
            hasher.update(chunk)
    finally:
        os.close(fd)
    return hasher.digest()


def _leads_to(directory: bytes, path: bytes) -> bool:
    return directory == ROOT or path.startswith(directory + b"/")


def _may_be_equal(existing: os.stat_result | None, entry: Entry) -> bool:
    """Whether comparing contents is worth reading. A file with other names is replaced, not shared."""
    return (
        existing is not None
        and stat.S_ISREG(existing.st_mode)
        and existing.st_size == entry.size
        and existing.st_nlink == 1
    )


def _looks_equal(existing: os.stat_result, entry: Entry) -> bool:
    if type_of(existing.st_mode) != entry.type:
        return False
    if entry.type != FILE:
        return True
    return existing.st_size == entry.size and existing.st_mtime_ns == entry.mtime_ns
