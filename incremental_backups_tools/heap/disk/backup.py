"""Backing up to the disk that is there: a plan, carried out so that it may die at any step.

A copy counts when it was written, synchronised and read back from the disk. What gives way to it is first
struck from the catalogue, then deleted. So the catalogue never counts on a copy that is not there; a copy that
is there and not counted is found by the next run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from blake3 import blake3

from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import (
    BackupError,
    IntegrityError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
    SourceError,
    StateFormatError,
)
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.check import read_back, refresh_disk
from incremental_backups_tools.heap.disk.copies import (
    forget_copy,
    note_copy,
    plan_for_disk,
    read_objects,
    redundancy_of,
)
from incremental_backups_tools.heap.disk.disks import Disk, check_owner, find_present, note_presence
from incremental_backups_tools.heap.disk.entries import path_of_key
from incremental_backups_tools.heap.disk.media import Medium
from incremental_backups_tools.heap.disk.plan import DistributionPlan
from incremental_backups_tools.heap.disk.report import DiskReport
from incremental_backups_tools.heap.disk.rules import SourceMap, read_maps
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.index import Problem

LOCK_KEY = "disk"
_CHUNK_LEN = 1 << 20
_BATCH = 256  # steps between two commits
_BATCH_BYTES = 256 << 20
_TEMPORARY_AGE_SECONDS = 0.0  # under the lock nobody else writes

OnProgress = Callable[[bytes, int], None]


@dataclass(frozen=True, slots=True)
class DiskBackupOptions:
    """How to back up to a disk.

    Attributes:
        dry_run: say what would be done, and write nothing.
        on_progress: called with a path and the bytes of it that are stored.
        on_notice: called with what is worth knowing.
    """

    dry_run: bool = False
    on_progress: OnProgress | None = None
    on_notice: Callable[[str], None] | None = None


def back_up_to_disk(
    catalogue: Catalogue, disk: Disk, medium: Medium, options: DiskBackupOptions | None = None
) -> DiskReport:
    """Bring to a disk what it is to hold by the catalogue; the catalogue itself comes last.

    Raises:
        RepositoryError: the disk is another catalogue's, has changes of this one that are not known, or cannot
            be written to.
    """
    chosen = options or DiskBackupOptions()
    check_owner(catalogue, medium.identity, medium.place)
    _refuse_other_copy(catalogue, disk, medium, chosen)
    report = DiskReport(disk.name, dry_run=chosen.dry_run)
    if chosen.dry_run:
        objects = read_objects(catalogue)
        _count_plan(plan_for_disk(catalogue, disk, medium, objects), report)
        report.without_copy = redundancy_of(objects).by_count.get(0, 0)
        return report
    if not os.access(medium.place, os.W_OK) or os.statvfs(medium.place).f_flag & os.ST_RDONLY:
        raise RepositoryError(f"{printable(medium.place)}: the disk {disk.name} cannot be written to")
    with KeyLock.acquire(medium.store, LOCK_KEY, operation="disk backup"):
        disk = note_presence(catalogue, disk, medium)
        medium.heap.clean_temporaries(min_age_seconds=_TEMPORARY_AGE_SECONDS)
        checked = refresh_disk(catalogue, disk, medium)
        report.lost = len(checked.missing) + len(checked.damaged)
        report.found = checked.found
        objects = read_objects(catalogue)
        plan = plan_for_disk(catalogue, disk, medium, objects)
        report.no_room = len(plan.no_room)
        with _Run(catalogue, disk, medium, report, chosen) as run:
            try:
                run.carry_out(plan)
            finally:
                run.commit()
        report.without_copy = redundancy_of(read_objects(catalogue)).by_count.get(0, 0)
        disk = note_presence(catalogue, disk, medium)
        write_copy(catalogue, disk, medium)
    return report


class _Run:
    """One run: the copies that were stored and are not committed yet, and what gives way to them."""

    def __init__(
        self,
        catalogue: Catalogue,
        disk: Disk,
        medium: Medium,
        report: DiskReport,
        options: DiskBackupOptions,
    ) -> None:
        self._catalogue = catalogue
        self._disk = disk
        self._medium = medium
        self._report = report
        self._options = options
        self._sources = _Sources(catalogue, leave_out=disk.id)
        self._stored: list[tuple[int, int]] = []
        self._stored_bytes = 0

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self._sources.close()

    def carry_out(self, plan: DistributionPlan) -> None:
        is_stored = True
        for step in plan.steps:
            if step.action == "write":
                is_stored = self._write(step.key)
            elif is_stored:  # what follows a newcomer gives way to it
                self._evict(step.key)
            if len(self._stored) >= _BATCH or self._stored_bytes >= _BATCH_BYTES:
                self.commit()

    def commit(self) -> None:
        """Count on what was stored and read back."""
        stored, self._stored, self._stored_bytes = self._stored, [], 0
        if stored:
            with self._catalogue.transaction():
                for number, stored_size in stored:
                    note_copy(self._catalogue, number, self._disk.id, stored_size)

    def _write(self, number: int) -> bool:
        """Store one object; False where no source has its content any more."""
        row = self._catalogue.row("SELECT digest, size FROM objects WHERE id = ?", (number,))
        assert row is not None  # the plan is made of objects
        digest, size = row
        path = self._sources.first_path(number)
        try:
            self._store(number, digest, size)
            stored_size = self._read_back(number, digest, size)
        except SourceError as error:
            self._report.problems.append(Problem(path, str(error).removeprefix(f"{printable(path)}: ")))
            return False
        self._stored.append((number, stored_size))
        self._stored_bytes += stored_size
        self._report.written += 1
        self._report.bytes_written += stored_size
        if self._options.on_progress is not None:
            self._options.on_progress(path, size)
        return True

    def _store(self, number: int, digest: bytes, size: int) -> None:
        problem: SourceError | None = None
        for chunks in self._sources.contents(number, digest, size):
            try:
                self._medium.heap.put(chunks)
                return
            except SourceError as error:
                problem = problem or error
        raise problem or SourceError("is neither in the source nor on another disk that is there")

    def _read_back(self, number: int, digest: bytes, size: int) -> int:
        try:
            return read_back(self._medium, digest)
        except IntegrityError as error:
            # An object of the right length was there, or the disk wrote wrong bytes: once more, from the source.
            if self._options.on_notice is not None:
                self._options.on_notice(f"{error}; it is written again")
        self._medium.heap.delete(digest)
        self._store(number, digest, size)
        return read_back(self._medium, digest)

    def _evict(self, number: int) -> None:
        self.commit()
        row = self._catalogue.row(
            "SELECT digest, stored_size FROM objects JOIN copies ON object = id WHERE id = ? AND disk = ?",
            (number, self._disk.id),
        )
        if row is None:
            return
        with self._catalogue.transaction():
            forget_copy(self._catalogue, number, self._disk.id)
        try:
            self._medium.heap.delete(row[0])
        except ObjectNotFoundError:
            return
        self._report.evicted += 1
        self._report.bytes_evicted += row[1]


class _Sources:
    """Where contents are to be had: in the source as it is now, or on other disks that are there."""

    def __init__(self, catalogue: Catalogue, *, leave_out: int) -> None:
        self._catalogue = catalogue
        self._maps = read_maps(catalogue)
        self._roots: dict[SourceMap, Destination] = {}
        self._stack = ExitStack()
        self._media = {
            number: medium for number, medium in find_present(catalogue).items() if number != leave_out
        }

    def close(self) -> None:
        self._stack.close()

    def first_path(self, number: int) -> bytes:
        """A path of the object's, for people."""
        row = self._catalogue.row(
            "SELECT sort_key FROM entries WHERE object = ? ORDER BY until_ns IS NOT NULL, sort_key LIMIT 1",
            (number,),
        )
        return b"?" if row is None else path_of_key(row[0])

    def contents(self, number: int, digest: bytes, size: int) -> Iterator[Iterator[bytes]]:
        """The object's content, from one place after the other until one has it.

        Each raises SourceError, at its end at the latest, where it is not that content.
        """
        paths = self._catalogue.rows(
            "SELECT sort_key FROM entries WHERE object = ? AND until_ns IS NULL ORDER BY sort_key", (number,)
        )
        for (key,) in list(paths):
            yield self._from_source(path_of_key(key), digest, size)
        held = self._catalogue.rows("SELECT disk FROM copies WHERE object = ?", (number,))
        for (disk,) in list(held):
            if disk in self._media:
                yield self._from_disk(self._media[disk], digest, size)

    def _from_source(self, path: bytes, digest: bytes, size: int) -> Iterator[bytes]:
        item = self._maps.map_of(path)
        if item is None:
            raise SourceError(f"{printable(path)}: is in no mapped directory any more")
        shown = printable(path)
        hasher, count = blake3(), 0
        try:
            if item not in self._roots:
                root = Destination(item.real, create=False)
                self._roots[item] = self._stack.enter_context(root)
            descriptor = self._roots[item].open_regular(item.rel_path_of(path))
            with open(descriptor, "rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_LEN):
                    count += len(chunk)
                    if count > size:
                        break
                    hasher.update(chunk)
                    yield chunk
        except (OSError, BackupError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SourceError(f"{shown}: cannot read: {reason}") from error
        if count != size or hasher.digest() != digest:
            raise SourceError(f"{shown}: has changed since 'ibt disk update'")

    def _from_disk(self, medium: Medium, digest: bytes, size: int) -> Iterator[bytes]:
        try:
            with medium.heap.open(digest, size=size) as file:
                while chunk := file.read(_CHUNK_LEN):
                    yield chunk
        except BackupError as error:
            raise SourceError(str(error)) from error


def write_copy(catalogue: Catalogue, disk: Disk, medium: Medium) -> None:
    """Put a copy of the catalogue on a disk, in the place of the older one, and read it back.

    Raises:
        RepositoryError: it cannot be written.
        IntegrityError: the disk does not give back what was written.
    """
    with catalogue.transaction():
        catalogue.execute("UPDATE disks SET backup_ns = seen_ns WHERE id = ?", (disk.id,))
    with catalogue.snapshot() as fs_path:
        try:
            expected = blake3()
            with open(fs_path, "rb") as source, atomic_write(medium.catalogue_path, mode=0o600) as out:
                while chunk := source.read(_CHUNK_LEN):
                    expected.update(chunk)
                    out.write(chunk)
            actual = blake3()
            with open(medium.catalogue_path, "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while chunk := file.read(_CHUNK_LEN):
                    actual.update(chunk)
        except OSError as error:
            raise RepositoryError(
                f"cannot write the catalogue to the disk {disk.name}: {error.strerror}"
            ) from error
    if actual.digest() != expected.digest():
        raise IntegrityError(
            f"the disk {disk.name} does not give back the catalogue that was written to it",
            path=medium.catalogue_path,
            expected=expected.hexdigest(),
            actual=actual.hexdigest(),
        )


def _refuse_other_copy(catalogue: Catalogue, disk: Disk, medium: Medium, options: DiskBackupOptions) -> None:
    """Neither overwrite what only the disk's copy knows, nor rely on a catalogue that does not know it."""
    try:
        with Catalogue.open_copy(medium.catalogue_path) as copy:
            is_known = catalogue.contains(copy)
    except RepositoryNotFoundError:
        return
    except StateFormatError as error:
        if options.on_notice is not None:
            options.on_notice(f"the copy of the catalogue on the disk {disk.name} is damaged: {error}")
        return
    if not is_known:
        raise RepositoryError(
            f"the disk {disk.name} has a copy of the catalogue with changes that {catalogue.directory} does not "
            f"know; see to them with 'ibt disk adopt {printable(medium.place)}'"
        )


def _count_plan(plan: DistributionPlan, report: DiskReport) -> None:
    for step in plan.steps:
        if step.action == "write":
            report.written += 1
            report.bytes_written += step.size
        else:
            report.evicted += 1
            report.bytes_evicted += step.size
    report.no_room = len(plan.no_room)
