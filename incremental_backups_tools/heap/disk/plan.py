"""Which copies a disk gets and which it gives up: arithmetic alone, no IO.

One disk is there at a time. In this order it gets

1. what has no copy anywhere, by priority;
2. then what has one copy and wants more, then what has two, and so on;
3. and last, where it is emptier than the disks are on average, copies that stand on fuller disks, which these
   may then give up.

Where room is short, a copy may give way to another one: of an object that nobody wants any more, or of one that
has more copies *elsewhere* than the newcomer has at all. So an object that loses a copy still has at least as
many as the one that gained by it, and the least number of copies never falls. What gives way goes after the
newcomer is stored and read back: the disk's reserve is the room for both. An object that is too large for the
reserve waits for another disk, unless what nobody wants makes way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

# Disks within this share of the average are as full as each other.
BALANCE_MARGIN: Final = 0.02
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class ObjectCopies:
    """An object as the planner sees it.

    Attributes:
        key: what tells it from all others.
        size: bytes that a copy takes on a disk.
        wanted: how many copies it is to have; 0 where nobody needs it any more.
        priority: of two that have as many copies, the higher one comes first.
        holders: the disks that have a copy.
    """

    key: int
    size: int
    wanted: int
    priority: int
    holders: frozenset[int]


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """A disk as the planner sees it.

    Attributes:
        disk: what tells it from all others.
        capacity: bytes that it can hold in all.
        free: bytes that may still be written.
        headroom: bytes beyond *free* that may be taken while a copy that is to give way is still there.
    """

    disk: int
    capacity: int
    free: int
    headroom: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step: a copy comes or goes. A step counts only after all steps before it are durable."""

    action: Literal["write", "evict"]
    key: int
    size: int


@dataclass(frozen=True, slots=True)
class DistributionPlan:
    """What is to be done with one disk, step by step.

    Attributes:
        no_room: objects that have fewer copies than they want and got none here for want of room.
    """

    disk: int
    steps: tuple[Step, ...]
    no_room: tuple[int, ...]

    @property
    def write_bytes(self) -> int:
        """Bytes that come."""
        return sum(step.size for step in self.steps if step.action == "write")

    @property
    def evict_bytes(self) -> int:
        """Bytes that go."""
        return sum(step.size for step in self.steps if step.action == "evict")


def plan_distribution(
    objects: Sequence[ObjectCopies], room: DiskRoom, disks: Iterable[DiskRoom]
) -> DistributionPlan:
    """Plan for one disk what it gets and gives up.

    Args:
        objects: all there are.
        room: the disk that is there.
        disks: all of them, with what is known of those that are not there.
    """
    planner = _Planner(objects, room)
    planner.raise_copies()
    planner.balance(disks)
    return DistributionPlan(room.disk, tuple(planner.steps), tuple(planner.no_room))


@dataclass(slots=True)
class _Planner:
    objects: Sequence[ObjectCopies]
    room: DiskRoom
    steps: list[Step] = field(default_factory=list)
    no_room: list[int] = field(default_factory=list)
    _free: int = 0
    _gained: int = 0  # bytes of what is wanted
    _victims: list[ObjectCopies] = field(default_factory=list)
    _evicted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        disk = self.room.disk
        self._free = self.room.free
        self._victims = [item for item in self.objects if disk in item.holders]
        # From the end: nobody wants them; more than are wanted; most copies elsewhere; least priority.
        self._victims.sort(
            key=lambda item: (
                item.wanted > 0,
                len(item.holders) <= item.wanted,
                -len(item.holders),
                item.priority,
                -item.size,
                item.key,
            ),
            reverse=True,
        )

    def raise_copies(self) -> None:
        """Give copies to what has too few, those with the fewest first."""
        disk = self.room.disk
        poor = [item for item in self.objects if len(item.holders) < item.wanted and disk not in item.holders]
        poor.sort(key=lambda item: (len(item.holders), -item.priority, _shuffled(item.key, disk)))
        for item in poor:
            if not self._admit(item):
                self.no_room.append(item.key)

    def _admit(self, item: ObjectCopies) -> bool:
        if item.size <= self._free:
            self._write(item)
            return True
        chosen = self._choose_victims(item)
        if chosen is None:
            return False
        free = self._free
        for victim in chosen:
            if victim.wanted == 0 and item.size > free + self.room.headroom:
                self._evict(victim)
                free += victim.size
        self._write(item)
        for victim in chosen:
            if victim.key not in self._evicted:
                self._evict(victim)
        return True

    def _choose_victims(self, item: ObjectCopies) -> list[ObjectCopies] | None:
        """What gives way to *item*; None where that is not enough, or cannot be before *item* is stored."""
        chosen: list[ObjectCopies] = []
        gained = unwanted = 0
        while self._free + gained < item.size and self._victims:
            victim = self._victims.pop()
            if victim.wanted > 0 and len(victim.holders) - 1 <= len(item.holders):
                # Nor can it give way to one that comes later: those have as many copies, or more.
                continue
            chosen.append(victim)
            gained += victim.size
            unwanted += victim.size if victim.wanted == 0 else 0
        if self._free + gained >= item.size and item.size <= self._free + unwanted + self.room.headroom:
            return chosen
        self._victims.extend(reversed(chosen))
        return None

    def _write(self, item: ObjectCopies) -> None:
        self.steps.append(Step("write", item.key, item.size))
        self._free -= item.size
        self._gained += item.size

    def _evict(self, item: ObjectCopies) -> None:
        self.steps.append(Step("evict", item.key, item.size))
        self._evicted.add(item.key)
        self._free += item.size
        self._gained -= item.size if item.wanted else 0

    def balance(self, disks: Iterable[DiskRoom]) -> None:
        """Bring this disk nearer to the average: take from fuller ones, or give up what others took over."""
        disk = self.room.disk
        capacity = {room.disk: room.capacity for room in disks} | {disk: self.room.capacity}
        used = dict.fromkeys(capacity, 0)
        needed = 0
        for item in self.objects:
            if item.wanted == 0:
                continue  # takes room only until somebody needs it
            needed += item.size * min(len(item.holders), item.wanted)
            for holder in item.holders:
                if holder in used:
                    used[holder] += item.size
        used[disk] += self._gained
        average = (needed + self._gained) / max(sum(capacity.values()), 1)
        limit = {number: capacity[number] * (average + BALANCE_MARGIN) for number in capacity}
        if used[disk] > limit[disk]:
            self._give_up(used[disk] - limit[disk])
        else:
            self._take_over(used, limit, average * capacity[disk])

    def _give_up(self, excess: float) -> None:
        for item in reversed(self._victims):
            if excess <= 0:
                return
            if item.wanted and len(item.holders) > item.wanted and item.key not in self._evicted:
                self._evict(item)
                excess -= item.size

    def _take_over(self, used: dict[int, int], limit: dict[int, float], target: float) -> None:
        disk = self.room.disk
        for item in self.objects:
            if used[disk] >= target:
                return
            if disk in item.holders or not 0 < len(item.holders) == item.wanted or item.size > self._free:
                continue
            fuller = [holder for holder in item.holders if holder in used and used[holder] > limit[holder]]
            if fuller and used[disk] + item.size <= limit[disk]:
                used[max(fuller, key=lambda holder: used[holder] / max(limit[holder], 1))] -= item.size
                used[disk] += item.size
                self._write(item)


def _shuffled(key: int, disk: int) -> int:
    """An order that differs from disk to disk: so each holds a mixture, and two do not hold the same.

    The finalizer of splitmix64 (Steele, Lea, Flood 2014).
    """
    mixed = (key * 0x9E3779B97F4A7C15 + disk * 0xD1B54A32D192ED03) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
