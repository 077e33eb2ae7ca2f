"""Runs over many disks, each of which may die after any step: what is kept never gets worse."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.heap.disk.plan import DiskRoom, ObjectCopies, Step, plan_distribution


class World:
    """Disks and objects; steps are carried out one by one, and after each one it may end."""

    def __init__(self, sizes: list[int], wanted: list[int], capacities: list[int], reserve: int) -> None:
        self.sizes = sizes
        self.wanted = wanted
        self.capacities = capacities
        self.reserve = reserve
        self.holders: list[set[int]] = [set() for _ in sizes]
        self.used = [0] * len(capacities)

    def objects(self) -> list[ObjectCopies]:
        rows = zip(self.sizes, self.wanted, self.holders, strict=True)
        return [
            ObjectCopies(key, size, wanted, 0, frozenset(holders))
            for key, (size, wanted, holders) in enumerate(rows)
        ]

    def rooms(self) -> list[DiskRoom]:
        return [
            DiskRoom(disk, capacity, capacity - self.used[disk], self.reserve)
            for disk, capacity in enumerate(self.capacities)
        ]

    def steps(self, disk: int) -> tuple[Step, ...]:
        rooms = self.rooms()
        return plan_distribution(self.objects(), rooms[disk], rooms).steps

    def carry_out(self, disk: int, step: Step) -> None:
        holders = self.holders[step.key]
        if step.action == "write":
            assert disk not in holders
            holders.add(disk)
            self.used[disk] += step.size
        else:
            holders.remove(disk)
            self.used[disk] -= step.size
        assert 0 <= self.used[disk] <= self.capacities[disk] + self.reserve

    def counts(self) -> list[int]:
        """For each object that is wanted how many copies it has of those it wants."""
        return [min(len(held), want) for held, want in zip(self.holders, self.wanted, strict=True) if want]

    def grow(self, sizes: Iterable[int], wanted: Iterable[int]) -> None:
        self.sizes += sizes
        self.wanted += wanted
        self.holders += [set() for _ in range(len(self.sizes) - len(self.holders))]


def assert_no_worse(before: list[int], after: list[int]) -> None:
    """Nothing lost its last copy, no count fell below the least of those that rose, and the poorest gained first."""
    risen = [new for old, new in zip(before, after, strict=True) if new > old]
    fallen = [new for old, new in zip(before, after, strict=True) if new < old]
    assert all(new >= 1 for new in fallen)
    if fallen:
        assert risen
        assert min(fallen) >= min(risen)
        assert min(after) >= min(before)
    assert sorted(after) >= sorted(before)


@settings(max_examples=150)
@given(st.data())
def test_a_run_that_dies_anywhere_leaves_nothing_worse_kept(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 25))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=count, max_size=count))
    wanted = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    capacities = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=5))
    world = World(sizes, wanted, capacities, reserve=data.draw(st.integers(0, 40)))
    for _ in range(data.draw(st.integers(1, 8))):
        disk = data.draw(st.integers(0, len(capacities) - 1))
        dies_at = data.draw(st.integers(0, 60))
        before = world.counts()
        for step in world.steps(disk)[:dies_at]:
            world.carry_out(disk, step)
            assert_no_worse(before, world.counts())
        if data.draw(st.booleans()):
            world.grow([data.draw(st.integers(1, 30))], [data.draw(st.integers(1, 4))])
        if data.draw(st.booleans()):
            world.wanted[data.draw(st.integers(0, len(world.wanted) - 1))] = data.draw(st.integers(0, 4))


def test_twenty_disks_and_a_hundred_thousand_objects() -> None:
    """In turn, with a death in the middle of each third run, then twice what there was: room runs short."""
    rng = random.Random(7)
    sizes = [int(rng.lognormvariate(8, 1.5)) + 1 for _ in range(60_000)]
    total = 2 * sum(sizes)
    shares = [rng.uniform(0.5, 1.5) for _ in range(20)]
    capacities = [int(share / sum(shares) * total * 1.3) for share in shares]
    world = World(sizes, [2] * 60_000, capacities, reserve=max(sizes) * 2)
    visit(world, rng, range(20))
    assert min(world.counts()) == 2
    fills = [used / capacity for used, capacity in zip(world.used, world.capacities, strict=True)]
    visit(world, rng, range(20), dies=False)
    balanced = [used / capacity for used, capacity in zip(world.used, world.capacities, strict=True)]
    print(
        f"filled in turn {min(fills):.2f}-{max(fills):.2f}, balanced {min(balanced):.2f}-{max(balanced):.2f}"
    )
    assert min(world.counts()) == 2
    assert max(balanced) - min(balanced) < 0.1

    world.grow([int(rng.lognormvariate(8, 1.5)) + 1 for _ in range(40_000)], [2] * 40_000)
    visit(world, rng, range(20))
    visit(world, rng, range(20), dies=False)
    counts = world.counts()
    print({copies: counts.count(copies) for copies in sorted(set(counts))})
    assert min(counts) >= 1, "every object has a copy before any keeps two"
    assert 1 in counts, "there is not room for two of all"
    free = sum(capacity - used for used, capacity in zip(world.used, world.capacities, strict=True))
    assert free < 0.02 * sum(capacities)


def visit(world: World, rng: random.Random, disks: Iterable[int], *, dies: bool = True) -> None:
    """Back up to each disk; with *dies*, each third run ends early and is made again."""
    for disk in disks:
        for is_cut in (True, False) if dies and disk % 3 == 0 else (False,):
            before = world.counts()
            steps = world.steps(disk)
            if is_cut:
                steps = steps[: rng.randrange(len(steps) + 1)]
            for step in steps:
                world.carry_out(disk, step)
            assert_no_worse(before, world.counts())
