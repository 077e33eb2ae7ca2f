"""What a disk gets and gives up, and the smallest set of disks: arithmetic."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.heap.disk.minset import EXACT_DISKS, find_smallest_set
from incremental_backups_tools.heap.disk.plan import (
    DiskRoom,
    DistributionPlan,
    ObjectCopies,
    Step,
    plan_distribution,
)


def thing(key: int, *holders: int, size: int = 10, wanted: int = 2, priority: int = 0) -> ObjectCopies:
    return ObjectCopies(key, size, wanted, priority, frozenset(holders))


def plan(objects: list[ObjectCopies], *, free: int, headroom: int = 100, disk: int = 1) -> DistributionPlan:
    return plan_distribution(objects, DiskRoom(disk, 10_000, free, headroom), [])


def written(made: DistributionPlan) -> list[int]:
    return [step.key for step in made.steps if step.action == "write"]


def test_what_has_no_copy_comes_before_what_has_one() -> None:
    made = plan([thing(1, 2), thing(2), thing(3, 2), thing(4)], free=30)
    assert set(written(made)[:2]) == {2, 4}
    assert len(written(made)) == 3
    assert len(made.no_room) == 1


def test_of_equals_the_higher_priority_comes_first() -> None:
    made = plan([thing(1), thing(2, priority=5), thing(3, priority=-1)], free=20)
    assert written(made) == [2, 1]
    assert made.no_room == (3,)


def test_priority_does_not_go_before_the_first_copy_of_another() -> None:
    assert written(plan([thing(1, 2, priority=9), thing(2)], free=10)) == [2]


def test_a_disk_gets_no_second_copy_of_the_same_and_no_more_than_wanted() -> None:
    assert written(plan([thing(1, 1), thing(2, 2, 3), thing(3, 2, wanted=1)], free=1000)) == []


def test_a_copy_gives_way_after_the_newcomer_is_there() -> None:
    made = plan([thing(1, 1, 2, 3, wanted=3), thing(2, 2)], free=0)
    assert made.steps == (Step("write", 2, 10), Step("evict", 1, 10))


def test_nothing_gives_way_to_what_has_as_many_copies() -> None:
    made = plan([thing(1, 1, 2), thing(2, 2)], free=0)
    assert made.steps == ()
    assert made.no_room == (2,)


def test_the_only_copy_never_gives_way() -> None:
    made = plan([thing(1, 1), thing(2)], free=0)
    assert made.steps == ()


def test_what_nobody_wants_gives_way_first() -> None:
    made = plan([thing(1, 1, 2, 3), thing(2, 1, wanted=0), thing(3)], free=0)
    assert [step.key for step in made.steps if step.action == "evict"] == [2]


def test_without_room_for_both_nothing_that_is_wanted_is_deleted_first() -> None:
    objects = [thing(1, 1, 2, 3, size=500), thing(2, size=500)]
    made = plan(objects, free=0, headroom=100)
    assert made.steps == ()
    assert made.no_room == (2,)


def test_what_nobody_wants_is_deleted_first_where_there_is_no_room_for_both() -> None:
    made = plan([thing(1, 1, size=500, wanted=0), thing(2, size=500)], free=0, headroom=100)
    assert made.steps == (Step("evict", 1, 500), Step("write", 2, 500))


def test_nothing_that_nobody_wants_is_deleted_without_need() -> None:
    assert plan([thing(1, 1, wanted=0), thing(2)], free=100).steps == (Step("write", 2, 10),)


def test_an_empty_disk_takes_over_from_a_full_one_which_then_gives_up() -> None:
    objects = [thing(key, 2, 3) for key in range(100)]
    rooms = [DiskRoom(disk, 1000, 0 if disk > 1 else 1000, 0) for disk in (1, 2, 3)]
    made = plan_distribution(objects, rooms[0], rooms)
    taken = set(written(made))
    assert 55 <= len(taken) <= 68  # 2,000 bytes on three disks of 1,000
    after = [
        ObjectCopies(
            item.key, item.size, item.wanted, 0, item.holders | ({1} if item.key in taken else set())
        )
        for item in objects
    ]
    relieved = plan_distribution(after, rooms[1], rooms)
    gone = {step.key for step in relieved.steps}
    assert all(step.action == "evict" for step in relieved.steps)
    assert gone <= taken
    assert len(gone) >= 25


@given(st.lists(st.frozensets(st.integers(0, 7), max_size=4), max_size=12), st.frozensets(st.integers(0, 7)))
def test_no_smaller_set_of_disks_would_do(needed: list[frozenset[int]], have: frozenset[int]) -> None:
    found = find_smallest_set(needed, have)
    reachable = [holders for holders in needed if holders]
    assert found.is_smallest
    assert found.unreachable == len(needed) - len(reachable)
    assert all(holders & (have | frozenset(found.disks)) for holders in reachable)
    for chosen in combinations(range(8), len(found.disks) - 1) if found.disks else ():
        assert not all(holders & (have | frozenset(chosen)) for holders in reachable)


def test_with_many_disks_the_set_is_complete_and_says_that_it_may_not_be_smallest() -> None:
    needed = [frozenset({disk, (disk + 1) % 40, (disk + 7) % 40}) for disk in range(40)]
    assert len(frozenset().union(*needed)) > EXACT_DISKS
    found = find_smallest_set(needed)
    assert not found.is_smallest
    assert all(holders & frozenset(found.disks) for holders in needed)
    assert len(found.disks) < 40


@pytest.mark.parametrize("disks", [3, 50])
def test_a_disk_with_the_only_copy_is_always_needed(disks: int) -> None:
    needed = [frozenset({0})] + [frozenset(range(disks))] * 5
    assert find_smallest_set(needed).disks == (0,)
