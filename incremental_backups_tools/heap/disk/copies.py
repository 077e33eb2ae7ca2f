"""Which disk holds which object, and what the planner needs to know about that."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.disks import Disk, iter_disks
from incremental_backups_tools.heap.disk.entries import path_of_key
from incremental_backups_tools.heap.disk.media import Medium, bytes_on_disk, most_stored_bytes
from incremental_backups_tools.heap.disk.plan import (
    DiskRoom,
    DistributionPlan,
    ObjectCopies,
    plan_distribution,
)
from incremental_backups_tools.heap.disk.rules import Wishes, read_rules

# What the source has no more is to be had for a while, not to be kept safe.
_COPIES_OF_FORMER = 1


@dataclass(frozen=True, slots=True)
class Redundancy:
    """How well the objects are kept.

    Attributes:
        by_count: for each number of copies, how many objects have so many.
        short: objects with fewer copies than they are to have, and their bytes.
    """

    by_count: dict[int, int]
    short: int
    short_bytes: int


def read_objects(catalogue: Catalogue) -> list[ObjectCopies]:
    """Every object, with what its paths wish for it."""
    wishes = Wishes(read_rules(catalogue), copies=catalogue.copies)
    wanted: dict[int, tuple[int, int]] = {}
    former: set[int] = set()
    for key, number, is_gone in catalogue.rows(
        "SELECT sort_key, object, until_ns IS NOT NULL FROM entries WHERE object IS NOT NULL"
    ):
        copies, priority = (0, 0) if is_gone else wishes.of(path_of_key(key))
        if copies == 0:  # gone, or left out by now
            former.add(number)
            continue
        most, highest = wanted.get(number, (copies, priority))
        wanted[number] = (max(copies, most), max(priority, highest))
    holders: dict[int, list[int]] = defaultdict(list)
    stored: dict[int, int] = {}
    for number, disk, stored_size in catalogue.rows("SELECT object, disk, stored_size FROM copies"):
        holders[number].append(disk)
        stored[number] = max(stored_size, stored.get(number, 0))
    found = []
    for number, size in catalogue.rows("SELECT id, size FROM objects ORDER BY id"):
        taken = bytes_on_disk(stored[number]) if number in stored else most_stored_bytes(size)
        copies, priority = wanted.get(number, (0, 0))
        if number in former and number in holders:
            copies = max(copies, _COPIES_OF_FORMER)  # without a copy by now it is not to be had any more
        found.append(ObjectCopies(number, taken, copies, priority, frozenset(holders.get(number, ()))))
    return found


def redundancy_of(objects: Iterable[ObjectCopies]) -> Redundancy:
    """How many copies there are of what is needed."""
    needed = [item for item in objects if item.wanted]
    short = [item for item in needed if len(item.holders) < item.wanted]
    by_count = Counter(len(item.holders) for item in needed)
    return Redundancy(dict(sorted(by_count.items())), len(short), sum(item.size for item in short))


def room_of(
    disk: Disk, medium: Medium | None, objects: Iterable[ObjectCopies], *, extra: int = 0
) -> DiskRoom:
    """What may be written to a disk: as its file system says where it is there, else as it said last.

    Args:
        extra: bytes to be kept free besides the reserve, for the copy of the catalogue.
    """
    held = sum(item.size for item in objects if disk.id in item.holders)
    space_free = disk.free if medium is None else medium.space().free
    reserve = disk.reserve + extra
    free = max(min(disk.room - held, space_free - reserve), 0)
    return DiskRoom(disk.id, disk.room, free, headroom=max(min(space_free - extra - free, disk.reserve), 0))


def plan_for_disk(
    catalogue: Catalogue, disk: Disk, medium: Medium | None, objects: list[ObjectCopies]
) -> DistributionPlan:
    """What a backup to *disk* does, given all objects."""
    # The new copy of the catalogue stands beside the old one for a moment.
    extra = 2 * bytes_on_disk(catalogue.size())
    others = [room_of(other, None, objects) for other in iter_disks(catalogue)]
    return plan_distribution(objects, room_of(disk, medium, objects, extra=extra), others)


def note_copy(catalogue: Catalogue, number: int, disk: int, stored_size: int) -> None:
    """Count on a copy that was read and found whole just now. Call it within a transaction."""
    catalogue.execute(
        "INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?)", (number, disk, stored_size, time.time_ns())
    )


def forget_copy(catalogue: Catalogue, number: int, disk: int) -> None:
    """Count on a copy no more. Call it within a transaction."""
    catalogue.execute("DELETE FROM copies WHERE object = ? AND disk = ?", (number, disk))
