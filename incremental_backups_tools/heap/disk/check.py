"""Is on a disk what the catalogue says? Nothing on the disk is ever changed by asking."""

from __future__ import annotations

from collections.abc import Callable

from incremental_backups_tools.exceptions import IntegrityError, ObjectNotFoundError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.copies import forget_copy, note_copy
from incremental_backups_tools.heap.disk.disks import Disk
from incremental_backups_tools.heap.disk.media import Medium
from incremental_backups_tools.heap.disk.report import CheckReport

OnProgress = Callable[[bytes, int], None]


def refresh_disk(
    catalogue: Catalogue, disk: Disk, medium: Medium, *, on_progress: OnProgress | None = None
) -> CheckReport:
    """Compare a disk's listing with the catalogue, and correct the catalogue.

    A copy that is not there, or has another size, counts no more. An object that is there unknown to the
    catalogue, and that it needs, is read whole, and counts then.
    """
    report = CheckReport(disk.name)
    expected = _copies_on(catalogue, disk)
    listed = {item.digest: item.stored_size for item in medium.heap.iter_objects()}
    for digest, (number, stored_size) in expected.items():
        report.checked += 1
        report.bytes_checked += stored_size
        if digest not in listed:
            _lose(catalogue, disk, number, report.missing, digest)
        elif listed[digest] != stored_size:
            _lose(catalogue, disk, number, report.damaged, digest)
    for digest, stored_size in listed.items():
        if digest in expected:
            continue
        number = catalogue.number("SELECT id FROM objects WHERE digest = ?", (digest,))
        if not number:
            report.unknown += 1
            continue
        if on_progress is not None:
            on_progress(digest.hex().encode(), stored_size)
        try:
            read_back(medium, digest)
        except IntegrityError:
            report.damaged.append(digest.hex())
            continue
        with catalogue.transaction():
            note_copy(catalogue, number, disk.id, stored_size)
        report.found += 1
    return report


def verify_disk(
    catalogue: Catalogue, disk: Disk, medium: Medium, *, on_progress: OnProgress | None = None
) -> CheckReport:
    """Read every object that a disk is to hold; what is missing or damaged counts no more.

    Nothing is moved or deleted: a damaged object is replaced by the next backup that has its content.
    """
    report = CheckReport(disk.name)
    for digest, (number, stored_size) in _copies_on(catalogue, disk).items():
        report.checked += 1
        report.bytes_checked += stored_size
        if on_progress is not None:
            on_progress(digest.hex().encode(), stored_size)
        try:
            read_back(medium, digest)
        except ObjectNotFoundError:
            _lose(catalogue, disk, number, report.missing, digest)
        except IntegrityError:
            _lose(catalogue, disk, number, report.damaged, digest)
        else:
            with catalogue.transaction():
                note_copy(catalogue, number, disk.id, stored_size)
    return report


def read_back(medium: Medium, digest: bytes) -> int:
    """Read an object from the disk itself and check it; return its size there.

    Raises:
        ObjectNotFoundError, IntegrityError: it is not there, or not whole.
        RepositoryError: the disk cannot be read.
    """
    stored_size = medium.heap.stored_size(digest)
    medium.drop_from_memory(digest)
    medium.heap.verify(digest)
    return stored_size


def _copies_on(catalogue: Catalogue, disk: Disk) -> dict[bytes, tuple[int, int]]:
    """Digest, number and size on the disk of every copy that it is to have."""
    rows = catalogue.rows(
        "SELECT digest, id, stored_size FROM copies JOIN objects ON id = object WHERE disk = ? ORDER BY digest",
        (disk.id,),
    )
    return {digest: (number, stored_size) for digest, number, stored_size in rows}


def _lose(catalogue: Catalogue, disk: Disk, number: int, names: list[str], digest: bytes) -> None:
    with catalogue.transaction():
        forget_copy(catalogue, number, disk.id)
    names.append(digest.hex())
