"""Keeping a heap in order: deleting what no snapshot needs, and checking what they need.

A heap knows by identity every place whose snapshots need it. Deleting reads the snapshots of all of them, and
deletes nothing where one place is not at hand, or one snapshot cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from incremental_backups_tools.exceptions import (
    BackupError,
    IntegrityError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.heap.objects import ObjectHeap
from incremental_backups_tools.heap.sync.leases import lease_for_deleting
from incremental_backups_tools.heap.sync.snapshooter import HEAP_IDENTITY, ROOTS
from incremental_backups_tools.heap.sync.snapshot import SNAPSHOTS, UNDO, SavedSnapshot, SnapshotStore
from incremental_backups_tools.heap.sync.tables import Table
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.entry import FILE, Entry, printable

_CONFIRM_EVERY: Final = 500


@dataclass(slots=True)
class CollectReport:
    """What was deleted, or in a dry run would be: numbers, and bytes in the heap."""

    dry_run: bool = False
    snapshots: int = 0
    kept_objects: int = 0
    deleted_objects: int = 0
    deleted_bytes: int = 0
    deleted_undo: int = 0
    temporaries: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class HeapVerifyReport:
    """What was checked, and the faults found."""

    snapshots: int = 0
    objects: int = 0
    bytes_read: int = 0
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def collect_garbage(
    heap_store: Store,
    snapshot_stores: Sequence[Store],
    *,
    drop_undo_older_than: timedelta | None = None,
    dry_run: bool = False,
) -> CollectReport:
    """Delete the objects that no snapshot needs, and what killed runs left.

    Args:
        snapshot_stores: every place whose snapshots need the heap.
        drop_undo_older_than: forget what restores older than this have replaced; None forgets nothing.

    Raises:
        RepositoryLockedError: somebody adds to the heap.
        RepositoryError: a place that the heap knows is not among those given. Nothing was deleted.
        StateFormatError: a snapshot cannot be read. Nothing was deleted.
    """
    report = CollectReport(dry_run=dry_run)
    heap = ObjectHeap(heap_store)
    places = [SnapshotStore(store) for store in snapshot_stores]
    _require_heap(heap_store)
    if dry_run:
        _collect(heap_store, heap, places, drop_undo_older_than, report, None)
        return report
    with lease_for_deleting(heap_store, "heap gc") as lease:
        _collect(heap_store, heap, places, drop_undo_older_than, report, lease)
        report.temporaries = len(heap.clean_temporaries(min_age_seconds=0))
        for place in places:
            place.clean()
    return report


def _collect(
    heap_store: Store,
    heap: ObjectHeap,
    places: Sequence[SnapshotStore],
    undo_age: timedelta | None,
    report: CollectReport,
    lease: KeyLock | None,
) -> None:
    _require_all_places(heap_store, places)
    outdated = [(place, saved) for place in places for saved in _outdated_undo(place, undo_age)]
    names = {(id(place), saved.name) for place, saved in outdated}
    with Table() as needed:
        for place in places:
            for saved in _all_snapshots(place):
                if (id(place), saved.name) not in names:
                    report.snapshots += 1
                    needed.fill((entry.digest or b"", 1) for entry in _files_of(place, saved))
        if lease is not None:
            lease.confirm()
        for place, saved in outdated:
            report.deleted_undo += 1
            if lease is not None:
                place.store.delete(saved.name)
        for item in heap.iter_objects():
            if item.digest in needed:
                report.kept_objects += 1
                continue
            if lease is not None:
                if report.deleted_objects % _CONFIRM_EVERY == 0:
                    lease.confirm()
                with suppress(ObjectNotFoundError):
                    heap.delete(item.digest)
            report.deleted_objects += 1
            report.deleted_bytes += item.stored_size


def verify_heap(
    heap_store: Store,
    snapshot_stores: Sequence[Store],
    *,
    read_data: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> HeapVerifyReport:
    """Check that every object that a snapshot needs is there with its size, or with *read_data* holds its content.

    Args:
        on_progress: called with the bytes of content read.

    Raises:
        RepositoryError: the heap or a place cannot be read.
    """
    report = HeapVerifyReport()
    heap = ObjectHeap(heap_store)
    _require_heap(heap_store)
    with Table() as present, Table() as needed:
        present.fill((item.digest, item.stored_size) for item in heap.iter_objects())
        for place in map(SnapshotStore, snapshot_stores):
            for saved in _all_snapshots(place):
                report.snapshots += 1
                try:
                    for entry in _files_of(place, saved):
                        _check_entry(entry, saved, present, needed, report)
                except BackupError as error:
                    report.faults.append(f"{saved.name}: {error}")
        report.objects = len(needed)
        if read_data:
            for digest, _ in needed.items():
                try:
                    size = heap.verify(digest)
                except (IntegrityError, ObjectNotFoundError) as error:
                    report.faults.append(str(error))
                    continue
                report.bytes_read += size
                if on_progress is not None:
                    on_progress(size)
    return report


def _check_entry(
    entry: Entry, saved: SavedSnapshot, present: Table, needed: Table, report: HeapVerifyReport
) -> None:
    digest = entry.digest
    assert digest is not None  # a snapshot's files have one
    if digest in needed:
        return
    needed.fill([(digest, 1)])
    size = present.get(digest)
    shown = f"{saved.name}: {printable(entry.path)}: object {digest.hex()}"
    if size is None:
        report.faults.append(f"{shown} is not there")
    elif entry.data is not None and size != entry.data.length:
        report.faults.append(f"{shown} has {size!r} bytes, expected {entry.data.length}")


def _all_snapshots(place: SnapshotStore) -> list[SavedSnapshot]:
    return [*place.list(SNAPSHOTS), *place.list(UNDO)]


def _outdated_undo(place: SnapshotStore, age: timedelta | None) -> list[SavedSnapshot]:
    if age is None:
        return []
    oldest = datetime.now(UTC) - age
    return [saved for saved in place.list(UNDO) if saved.timestamp < oldest]


def _files_of(place: SnapshotStore, saved: SavedSnapshot) -> Iterator[Entry]:
    snapshot = place.load(saved.name)
    try:
        yield from (entry for entry in snapshot if entry.type == FILE)
    finally:
        snapshot.close()


def _require_heap(heap_store: Store) -> None:
    if not heap_store.exists(HEAP_IDENTITY):
        raise RepositoryNotFoundError(f"{heap_store.url} is not a heap")


def _require_all_places(heap_store: Store, places: Sequence[SnapshotStore]) -> None:
    given = {place.identity(create=False) for place in places}
    for info in heap_store.list_objects(f"{ROOTS}/"):
        identity = info.name.removeprefix(f"{ROOTS}/")
        if identity not in given:
            where = printable(heap_store.read(info.name, max_size=1 << 16).strip())
            raise RepositoryError(
                f"{heap_store.url} is also needed by the snapshots that were at {where}; nothing was deleted. Name "
                f"that place as well, or delete {info.name} there if it is gone for good"
            )
