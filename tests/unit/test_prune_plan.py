"""What pruning would do, by the shape of the chain and what is dead in it."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from incremental_backups_tools.chain.prune_plan import (
    MAX_UNLISTED_LINKS,
    PrunePlan,
    needed_ids,
    plan_prune,
)
from incremental_backups_tools.chain.state import FULL, INCREMENTAL, StateHeader
from incremental_backups_tools.chain.waste import Waste
from incremental_backups_tools.repository.layout import encode_backup_id


def backup_id(number: int) -> str:
    return encode_backup_id((1_700_000_000 + number) * 10**9)


def plan(
    parents: list[int | None],
    kept: Collection[int],
    *,
    dead: dict[tuple[int, int | None], float] | None = None,
    listed: Collection[int] | None = None,
    max_unused: float = 0.1,
    with_copies: Collection[int] = (),
) -> tuple[PrunePlan, list[tuple[int, int | None]]]:
    """Plan for backups with these parents; *dead* is the share for (backup, oldest link or None for all).

    Returns:
        The plan, and what was measured.
    """
    number_of = {backup_id(number): number for number in range(len(parents))}
    headers = [
        StateHeader(
            format="ibt-state",
            version=1,
            kind=FULL if parent is None else INCREMENTAL,
            key="key",
            id=backup_id(number),
            parent=None if parent is None else backup_id(parent),
            index_digest="",
            lines=0,
        )
        for number, parent in enumerate(parents)
    ]
    asked = []

    def measure(anchor: str, first: str | None) -> Waste:
        asked.append((number_of[anchor], None if first is None else number_of[first]))
        return Waste(1000, int(1000 * (dead or {}).get(asked[-1], 0.0)))

    found = plan_prune(
        headers,
        [backup_id(number) for number in (range(len(parents)) if listed is None else listed)],
        {backup_id(number) for number in kept},
        measure,
        max_unused=max_unused,
        with_copies={backup_id(number) for number in with_copies},
    )
    return found, asked


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(backup_id(number) for number in numbers)


def operations(found: PrunePlan) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(rewrite.operation, rewrite.backup_id, rewrite.links) for rewrite in found.rewrites]


def test_where_all_are_kept_nothing_is_measured_or_done() -> None:
    found, asked = plan([None, 0, 1, 2], range(4))
    assert (found, asked) == (PrunePlan(ids(0, 1, 2, 3), (), (), (), ()), [])


def test_what_nothing_kept_stands_on_is_dropped() -> None:
    found, asked = plan([None, 0, 1, None, 3, 4], [3, 4])
    assert found == PrunePlan(ids(3, 4), ids(0, 1, 2, 5), (), (), ids(0, 1, 2, 5))
    assert asked == []


def test_links_stay_unlisted_until_enough_is_dead() -> None:
    chain, kept = [None, 0, 1, 2, 3], [0, 3, 4]
    found, asked = plan(chain, kept, dead={(3, 1): 0.04})
    assert (found.rewrites, found.unlisted, found.dropped) == ((), ids(1, 2), ())
    assert found.forgotten == ids(1, 2)
    assert asked == [(3, 1)]

    found, _ = plan(chain, kept, dead={(3, 1): 0.05})
    assert operations(found) == [("merge", backup_id(3), ids(1, 2))]
    assert (found.unlisted, found.dropped) == ((), ids(1, 2))


@pytest.mark.parametrize(("share", "written"), [(0.04, False), (0.05, True)])
def test_what_has_copies_is_written_again_by_itself(share: float, written: bool) -> None:
    found, asked = plan([None, 0, 1], range(3), dead={(1, 1): share}, with_copies=[0, 1])
    assert operations(found) == ([("merge", backup_id(1), ())] if written else [])
    assert (found.unlisted, found.dropped) == ((), ())
    assert asked == [(1, 1)]  # of a full nothing becomes a delta


def test_an_expired_full_is_rebased_when_enough_is_dead_and_merged_onto_otherwise() -> None:
    chain, kept = [None, 0, 1, 2], [2, 3]
    found, _ = plan(chain, kept, dead={(2, None): 0.5, (2, 1): 0.5})
    assert operations(found) == [("rebase", backup_id(2), ids(0, 1))]
    assert found.dropped == ids(0, 1)

    found, asked = plan(chain, kept, dead={(2, None): 0.05, (2, 1): 0.5})
    assert operations(found) == [("merge", backup_id(2), ids(1))]
    assert (found.unlisted, found.dropped) == (ids(0), ids(1))
    assert asked == [(2, None), (2, 1)]

    found, _ = plan(chain, kept, dead={(2, None): 0.09, (2, 1): 0.04})
    assert (operations(found), found.unlisted) == ([], ids(0, 1))


def test_of_an_expired_full_with_nothing_between_only_the_whole_is_measured() -> None:
    found, asked = plan([None, 0], [1])
    assert (asked, found.unlisted) == ([(1, None)], ids(0))


def test_a_backup_forgotten_before_is_a_link_like_any_other() -> None:
    found, _ = plan([None, 0, 1, 2], [0, 3], listed=[0, 2, 3])
    assert (found.forgotten, found.unlisted) == (ids(2), ids(1, 2))
    found, _ = plan([None, 0, 1], [0], listed=[0])
    assert (found.forgotten, found.dropped) == ((), ids(1, 2))


@pytest.mark.parametrize(("count", "merged"), [(MAX_UNLISTED_LINKS - 1, False), (MAX_UNLISTED_LINKS, True)])
def test_so_many_links_are_merged_however_little_is_dead(count: int, merged: bool) -> None:
    last = count + 1
    found, _ = plan([None, *range(last)], [0, last])
    assert bool(found.rewrites) == merged
    assert len(found.unlisted) == (0 if merged else count)


def test_a_fork_stays_what_several_stand_on() -> None:
    # 0 <- 1 <- 2 (fork) <- 3, and 2 <- 4
    chain, kept = [None, 0, 1, 2, 2], [3, 4]
    found, asked = plan(chain, kept, dead={(2, None): 0.5})
    assert operations(found) == [("rebase", backup_id(2), ids(0, 1))]
    assert (found.unlisted, found.dropped) == (ids(2), ids(0, 1))
    assert asked == [(2, None)]
    # With one of the two gone it is a link.
    found, _ = plan(chain, [4], dead={(4, None): 0.5})
    assert operations(found) == [("rebase", backup_id(4), ids(0, 1, 2))]
    assert found.dropped == ids(0, 1, 2, 3)


def test_every_run_between_kept_points_is_looked_at_by_itself() -> None:
    found, _ = plan([None, *range(9)], [0, 3, 6, 9], dead={(3, 1): 0.2, (9, 7): 0.2})
    assert operations(found) == [("merge", backup_id(3), ids(1, 2)), ("merge", backup_id(9), ids(7, 8))]
    assert found.unlisted == ids(4, 5)


def test_no_share_at_all_writes_everything_again() -> None:
    found, _ = plan([None, 0, 1], [2], max_unused=0)
    assert operations(found) == [("rebase", backup_id(2), ids(0, 1))]


def test_what_a_backup_stands_on_is_needed_and_a_missing_parent_ends_it() -> None:
    assert needed_ids({"c": "b", "b": "a", "a": None, "x": None}, ["c"]) == {"a", "b", "c"}
    assert needed_ids({"c": "b"}, ["c"]) == {"b", "c"}


def test_shares_of_nothing() -> None:
    assert Waste(0, 0).share == 0.0
    assert Waste(200, 50).share == 0.25
