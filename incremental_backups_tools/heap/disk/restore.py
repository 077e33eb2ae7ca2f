"""Restoring from whichever disks are there; run it again with other disks for the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import (
    BackupError,
    IntegrityError,
    ObjectNotFoundError,
    RepositoryError,
)
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.disks import iter_disks
from incremental_backups_tools.heap.disk.entries import StoredEntry, iter_entries
from incremental_backups_tools.heap.disk.media import Medium
from incremental_backups_tools.heap.disk.minset import DiskSet, find_smallest_set
from incremental_backups_tools.heap.disk.report import RestoreReport
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, printable
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.selection import Selection
from incremental_backups_tools.tree.writer import FATAL_ERRORS, TreeWriter

_CHUNK_LEN = 1 << 20


@dataclass(frozen=True, slots=True)
class DiskRestoreOptions:
    """What to restore and how.

    Attributes:
        paths: virtual paths or patterns; nothing selects all.
        at_ns: restore what was there at that moment, in nanoseconds since 1970; None is now.
        numeric_owner: take owners by number, not by name.
        dry_run: say what would be done, and write nothing.
        on_progress: called with each path and its bytes.
    """

    paths: tuple[str | bytes, ...] = ()
    at_ns: int | None = None
    numeric_owner: bool = False
    dry_run: bool = False
    on_progress: Callable[[bytes, int], None] | None = None


def restore_from_disks(
    catalogue: Catalogue,
    media: Mapping[int, Medium],
    dest: str | os.PathLike[str],
    options: DiskRestoreOptions | None = None,
) -> RestoreReport:
    """Restore into *dest* what the disks that are there hold; say which others the rest needs.

    Files that are right already are left alone. A file is checked against its digest before it gets its name;
    nothing outside *dest* is written.

    Args:
        media: the disks that are there, by their numbers in the catalogue.

    Raises:
        ChainError: a path that the catalogue does not have.
        OSError: *dest* cannot be written to.
    """
    return _Restore(catalogue, media, os.fspath(dest), options or DiskRestoreOptions()).run()


class _Restore:
    def __init__(
        self, catalogue: Catalogue, media: Mapping[int, Medium], dest: str, options: DiskRestoreOptions
    ) -> None:
        self._catalogue = catalogue
        self._media = media
        self._there = frozenset(media)
        self._options = options
        self._report = RestoreReport(dest, dry_run=options.dry_run)
        self._selection = Selection(options.paths)
        self._needed: list[frozenset[int]] = []
        self._failed: set[bytes] = set()
        self._right_already: set[bytes] = set()
        self._first_links: dict[bytes, bytes] = {}
        self._link_targets: set[bytes] = set()
        self._warned: dict[str, tuple[int, str]] = {}

    def run(self) -> RestoreReport:
        items = self._selection.filter(iter_entries(self._catalogue, at_ns=self._options.at_ns))
        if self._options.dry_run:
            for item in items:
                self._plan(item)
        else:
            self._write(items)
        self._selection.check_all_matched()
        names = {disk.id: disk.name for disk in iter_disks(self._catalogue)}
        found = find_smallest_set(self._needed, self._there)
        self._report.missing = len(self._needed)
        self._report.needed_disks = tuple(names[disk] for disk in found.disks)
        self._report.is_smallest = found.is_smallest
        self._report.unreachable = found.unreachable
        self._report.warnings = [
            f"{kind} could not be set for {count} name{'s' if count > 1 else ''}; the first is {first}"
            for kind, (count, first) in self._warned.items()
        ]
        return self._report

    def _plan(self, item: StoredEntry) -> None:
        if item.entry.is_content_holder:
            holders = self._holders(item)
            if not holders & self._there:
                self._needed.append(holders)
                return
            self._report.bytes_written += item.entry.size
        self._report.written += 1

    def _holders(self, item: StoredEntry) -> frozenset[int]:
        rows = self._catalogue.rows("SELECT disk FROM copies WHERE object = ?", (item.object,))
        return frozenset(disk for (disk,) in rows)

    def _write(self, items: Iterable[StoredEntry]) -> None:
        with ExitStack() as stack:
            destination = stack.enter_context(Destination(self._report.destination))
            applier = MetadataApplier(numeric_owner=self._options.numeric_owner, on_problem=self._warn)
            writer = TreeWriter(
                destination,
                applier,
                on_written=self._on_written,
                on_failed=lambda entry, error: self._problem(entry.path, error),
            )
            stack.callback(writer.abort)
            for item in items:
                try:
                    self._restore(item, destination, writer)
                except (BackupError, OSError) as error:
                    if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                        raise
                    self._problem(item.path, error)
            writer.finish()

    def _restore(self, item: StoredEntry, destination: Destination, writer: TreeWriter) -> None:
        entry = item.entry
        if entry.type == DIRECTORY:
            writer.directory(entry)
        elif entry.link_of is not None:
            self._restore_link(item, destination, writer)
        elif entry.type == FILE:
            self._restore_file(entry, self._holders(item), destination, writer)
        else:
            writer.special(entry)

    def _restore_link(self, item: StoredEntry, destination: Destination, writer: TreeWriter) -> None:
        """Link to the first restored name of the inode; the first one is a file of its own."""
        entry = item.entry
        assert entry.link_of is not None  # the caller looked
        target = self._first_links.get(entry.link_of)
        if target is None and self._selection.matches(entry.link_of):
            target = entry.link_of
        if target is not None and self._is_written(target, writer):
            writer.link(entry, target)
            return
        row = self._first_of(entry.link_of)
        if row is None:
            raise RepositoryError(
                f"the file that it is a hard link to, {printable(entry.link_of)}, is missing"
            )
        own = msgspec.structs.replace(row.entry, path=entry.path)
        if own.type == FILE:
            self._restore_file(own, self._holders(row), destination, writer)
        else:
            writer.special(own)
        if entry.path not in self._failed:
            self._first_links[entry.link_of] = entry.path

    def _is_written(self, target: bytes, writer: TreeWriter) -> bool:
        """Whether a name is what the backup has: of one that could not be replaced no link may be made."""
        if target not in self._link_targets:
            writer.flush()
            self._link_targets.add(target)
        return target not in self._failed

    def _first_of(self, path: bytes) -> StoredEntry | None:
        """The entry that a hard link whose first name was not asked for stands for."""
        items = iter_entries(self._catalogue, at_ns=self._options.at_ns)
        return next((item for item in items if item.path == path), None)

    def _restore_file(
        self, entry: Entry, holders: frozenset[int], destination: Destination, writer: TreeWriter
    ) -> None:
        # One with other names is written anew, unless there is nothing to write it from.
        if _is_right(destination, entry, may_be_linked=not holders & self._there):
            self._right_already.add(entry.path)
            writer.metadata(entry)
            return
        error: Exception | None = None
        for disk in sorted(holders & self._there):
            try:
                writer.file(entry, self._content(self._media[disk], entry))
            except (IntegrityError, ObjectNotFoundError, RepositoryError) as failure:
                error = error or failure
                holders -= {disk}
            else:
                self._report.bytes_written += entry.size
                return
        self._failed.add(entry.path)
        self._needed.append(holders - self._there)
        if error is not None:
            self._problem(entry.path, error)

    def _content(self, medium: Medium, entry: Entry) -> Iterator[bytes]:
        assert entry.digest is not None  # a file has one in every catalogue
        with medium.heap.open(entry.digest, size=entry.size) as file:
            while chunk := file.read(_CHUNK_LEN):
                yield chunk

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
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._report.problems.append(Problem(path, message.removeprefix(f"{printable(path)}: ")))

    def _warn(self, kind: str, path: bytes, message: str) -> None:
        count, first = self._warned.get(kind, (0, f"{printable(path)}: {message}"))
        self._warned[kind] = (count + 1, first)


def find_needed_disks(
    catalogue: Catalogue, paths: tuple[str | bytes, ...] = (), *, at_ns: int | None = None
) -> tuple[DiskSet, int]:
    """The disks that restoring *paths* needs, as few as can be, and how many files that is.

    Raises:
        ChainError: a path that the catalogue does not have.
    """
    selection = Selection(paths)
    needed = []
    holders: dict[int, list[int]] = {}
    for number, disk in catalogue.rows("SELECT object, disk FROM copies"):
        holders.setdefault(number, []).append(disk)
    for item in selection.filter(iter_entries(catalogue, at_ns=at_ns)):
        if item.object is not None:
            needed.append(frozenset(holders.get(item.object, ())))
    selection.check_all_matched()
    return find_smallest_set(needed), len(needed)


def _is_right(destination: Destination, entry: Entry, *, may_be_linked: bool) -> bool:
    """Whether a file is there already, with the right content, and of its own unless it *may_be_linked*."""
    existing = destination.lstat(entry.path)
    if (
        existing is None
        or not stat.S_ISREG(existing.st_mode)
        or existing.st_size != entry.size
        or (existing.st_nlink != 1 and not may_be_linked)
    ):
        return False
    hasher = blake3()
    with open(destination.open_regular(entry.path), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_LEN):
            hasher.update(chunk)
    return hasher.digest() == entry.digest
