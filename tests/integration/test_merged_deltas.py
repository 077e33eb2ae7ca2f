"""Deltas count as what they will be once the backups between points in time are merged, not as they lie until then.

In each test a large new file comes with every backup, so that merging never frees enough to be worth the writing.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.chains import Chain, overwrite
from support.keys import make_age_key, opened

from incremental_backups_tools import incremental_backup, restore_backup
from incremental_backups_tools.chain.prune import PruneReport, prune_backups
from incremental_backups_tools.points.retention import KeepPolicy

rng = random.Random(47)
NAME = b"large"
SIZE = 200_000
KEPT = KeepPolicy(keep_tags=(("kept",),))
FIRST_AND_LAST = KeepPolicy(keep_last=1, keep_yearly=-1)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A point that stays, of one file."""
    chain = Chain.begin(tmp_path)
    (chain.source / "large").write_bytes(rng.randbytes(SIZE))
    chain.back_up(tags=["kept"])
    return chain


def change(chain: Chain, start: int, length: int, *, keep: bool = True) -> None:
    """Back up an edit in place, and a new file."""
    overwrite(chain.source / "large", start, rng.randbytes(length))
    (chain.source / f"new-{len(os.listdir(chain.source))}").write_bytes(rng.randbytes(150_000))
    chain.back_up(tags=["kept"] if keep else [])


def prune(chain: Chain) -> PruneReport:
    """Let all points go that are not to be kept."""
    return chain.prune(policy=KEPT, max_unused=0.9)


def roles(chain: Chain, number: int = -1) -> list[str]:
    """Where a point's content of the file lies, base first."""
    return [location.file.split(".")[-4] for location in chain.index(number)[NAME].data]


# --- backing up ----------------------------------------------------------------------------------------------


def test_what_was_overwritten_between_two_points_does_not_count(chain: Chain) -> None:
    change(chain, 0, 40_000, keep=False)
    change(chain, 0, 40_000)
    report = prune(chain)
    assert (len(report.plan.unlisted), report.plan.rewrites) == (1, ())

    change(chain, 100_000, 30_000)

    assert roles(chain) == ["full", "updated", "updated", "updated"]
    chain.check(scripted=1)


def test_while_all_points_stay_deltas_count_as_they_lie(chain: Chain) -> None:
    change(chain, 0, 40_000)
    change(chain, 0, 40_000)
    assert prune(chain).plan.forgotten == ()
    change(chain, 100_000, 30_000)
    assert roles(chain) == ["created"]


def test_what_goes_into_a_whole_copy_does_not_count(chain: Chain) -> None:
    change(chain, 0, 150_000, keep=False)
    change(chain, 0, 40_000)
    assert roles(chain) == ["created", "updated"]
    prune(chain)
    change(chain, 100_000, 70_000)
    assert roles(chain) == ["created", "updated", "updated"]
    chain.check(scripted=1)


def test_without_signatures_deltas_count_as_they_lie(chain: Chain) -> None:
    change(chain, 0, 40_000, keep=False)
    change(chain, 0, 40_000)
    prune(chain)
    [vault] = chain.files(f"{chain.ids[0]}.sigvault.*")
    vault.write_bytes(bytes(len(vault.read_bytes())))
    change(chain, 100_000, 30_000)
    assert roles(chain) == ["created"]


def test_as_they_lie_they_never_come_to_more_than_the_file(chain: Chain) -> None:
    lying = []
    while roles(chain) != ["created"]:
        lying.append(sum(location.length for location in chain.index(-1)[NAME].data[1:]))
        change(chain, 0, 30_000)
        report = chain.prune(policy=FIRST_AND_LAST, max_unused=0.9)
        assert (len(report.plan.kept), report.plan.rewrites) == (2, ())
    assert SIZE - 31_000 < lying[-1] <= SIZE
    chain.check(scripted=1)


def test_who_cannot_decrypt_counts_the_same(chain: Chain, tmp_path: Path) -> None:
    key = make_age_key(tmp_path)
    repository, cache = tmp_path / "encrypted", tmp_path / "encrypted-cache"

    def back_up() -> list[str]:
        report = incremental_backup(chain.source, repository, protection=key.writing, cache_root=cache)
        return [file.role for file in report.files]

    back_up()
    for number in range(2):
        overwrite(chain.source / "large", 0, rng.randbytes(40_000))
        (chain.source / f"new-{number}").write_bytes(rng.randbytes(150_000))
        back_up()
    report = prune_backups(
        "source", repository=opened(repository, key.both, cache), policy=FIRST_AND_LAST, max_unused=0.9
    )
    assert (len(report.plan.unlisted), report.plan.rewrites) == (1, ())

    overwrite(chain.source / "large", 100_000, rng.randbytes(30_000))

    assert "created" not in back_up()
    restore_backup(
        "source", tmp_path / "out", repository=opened(repository, key.reading, tmp_path / "reader")
    )
    assert (tmp_path / "out" / "large").read_bytes() == (chain.source / "large").read_bytes()


# --- pruning: whole copies that were made before the points went ------------------------------------------------


@pytest.fixture
def copied(chain: Chain) -> Chain:
    """Three more points, of which the second is not kept and the third has a whole copy; an edit more has no room."""
    change(chain, 0, 40_000, keep=False)
    change(chain, 0, 40_000)
    change(chain, 100_000, 30_000)
    assert roles(chain) == ["created"]
    return chain


def test_a_copy_that_leaves_room_for_all_later_deltas_goes(copied: Chain) -> None:
    change(copied, 150_000, 20_000)
    before = copied.size()

    report = prune(copied)

    [rewrite] = report.plan.rewrites
    assert (rewrite.backup_id, rewrite.links) == (copied.ids[2], ())
    assert report.plan.unlisted  # nothing was merged for it
    assert roles(copied, 2) == ["full", "updated", "updated", "updated"]
    assert copied.size() < before - 160_000
    assert prune(copied).plan.rewrites == ()
    copied.check(scripted=2)


def test_a_copy_stays_where_the_next_backup_would_store_another(copied: Chain) -> None:
    for start in (150_000, 170_000):
        change(copied, start, 20_000)
    assert prune(copied).plan.rewrites == ()
    assert roles(copied, 2) == ["created"]


def test_a_copy_goes_when_a_later_point_has_one(copied: Chain) -> None:
    for start, length in ((150_000, 20_000), (170_000, 20_000), (0, 70_000)):
        change(copied, start, length)
    assert roles(copied) == ["created"]

    report = prune(copied)

    assert [rewrite.backup_id for rewrite in report.plan.rewrites] == [copied.ids[2]]
    assert roles(copied, 4) == ["full", *["updated"] * 5]
    assert roles(copied, 5) == ["created"]
    copied.check(scripted=3)
    # Merging above it makes no copy out of deltas.
    copied.merge(3, 4)
    assert roles(copied, 3) == ["full", *["updated"] * 4]
    copied.check(scripted=2)


def test_a_copy_that_another_file_needs_stays(chain: Chain) -> None:
    change(chain, 0, 40_000, keep=False)
    change(chain, 0, 40_000)
    overwrite(chain.source / "large", 100_000, rng.randbytes(30_000))
    (chain.source / "a-twin").write_bytes((chain.source / "large").read_bytes())
    chain.back_up(tags=["kept"])
    index = chain.index(-1)
    assert index[NAME].data == index[b"a-twin"].data
    assert prune(chain).plan.rewrites == ()
    chain.check(scripted=1)


def test_a_dry_run_knows_of_it(copied: Chain) -> None:
    change(copied, 150_000, 20_000)
    would = copied.prune(policy=KEPT, max_unused=0.9, dry_run=True)
    did = prune(copied)
    assert would.plan == did.plan
    assert would.deleted == did.deleted
    assert abs(would.bytes_freed - did.bytes_freed) < 0.05 * did.bytes_freed
