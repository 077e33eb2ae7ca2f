"""What would be if disks were gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.copies import Redundancy, read_objects, redundancy_of, room_of
from incremental_backups_tools.heap.disk.disks import Disk, iter_disks
from incremental_backups_tools.heap.disk.entries import path_of_key
from incremental_backups_tools.heap.disk.plan import ObjectCopies

_SHOWN_PATHS = 20


@dataclass(frozen=True, slots=True)
class Loss:
    """What would be left without some disks.

    Attributes:
        lost: objects that would have no copy, and their bytes on a disk.
        paths: some of the paths that need them.
        before, after: how well the objects are kept now and would be then.
        free_bytes: room on the other disks.
    """

    lost: int
    lost_bytes: int
    paths: tuple[bytes, ...]
    before: Redundancy
    after: Redundancy
    free_bytes: int


def simulate_drop(catalogue: Catalogue, disks: Iterable[Disk]) -> Loss:
    """Find out what the loss of *disks* would take, and change nothing."""
    gone = {disk.id for disk in disks}
    objects = read_objects(catalogue)
    left: list[ObjectCopies] = [replace(item, holders=item.holders - gone) for item in objects]
    lost = [
        item
        for item, after in zip(objects, left, strict=True)
        if item.wanted and item.holders and not after.holders
    ]
    paths: list[bytes] = []
    for item in lost:
        rows = catalogue.rows("SELECT DISTINCT sort_key FROM entries WHERE object = ?", (item.key,))
        paths += [path_of_key(key) for (key,) in islice(rows, _SHOWN_PATHS - len(paths))]
        if len(paths) >= _SHOWN_PATHS:
            break
    free = sum(room_of(disk, None, objects).free for disk in iter_disks(catalogue) if disk.id not in gone)
    return Loss(
        len(lost),
        sum(item.size for item in lost),
        tuple(paths),
        redundancy_of(objects),
        redundancy_of(left),
        free,
    )
