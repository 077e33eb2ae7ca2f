"""A whole copy that was made because deltas had come to too much is a delta again once these are merged away."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.chains import KEY, Chain, overwrite

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.superfluous_copy import find_superfluous_copies
from incremental_backups_tools.chain.waste import Waste, measure_waste
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.repository import Repository

rng = random.Random(31)
NAME = b"large"
SIZE = 200_000


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """A full, and two increments that changed the same third of a file: the second has stored it whole."""
    chain = Chain.begin(tmp_path)
    (chain.source / "large").write_bytes(rng.randbytes(SIZE))
    chain.back_up()
    for _ in range(2):
        overwrite(chain.source / "large", 10_000, rng.randbytes(60_000))
        chain.back_up()
    assert roles(chain, 2) == ["created"]
    return chain


def roles(chain: Chain, number: int) -> list[str]:
    """Where a point's content of the file lies, base first."""
    return [location.file.split(".")[-4] for location in chain.index(number)[NAME].data]


def measure(chain: Chain) -> Waste:
    history = chain.history()
    states = history.states(chain.ids[-1])
    headers = [state.header for state in states]
    store = Repository.open(chain.repository).store
    sizes = [store.size(history.state_name(header.id)) for header in headers]
    archives = Archives(store, KEY, headers)
    points = [chain.ids[0], chain.ids[-1]]
    copies = find_superfluous_copies(states, points, archives, is_worth=lambda *_: True)
    return measure_waste(states, 1, archives, state_sizes=sizes, copies=copies.get(chain.ids[-1]))


def test_merging_makes_it_a_delta_of_what_is_before_the_run(chain: Chain) -> None:
    signature = chain.signatures(2)[NAME]
    chain.merge(1, 2)
    assert roles(chain, 1) == ["full", "updated"]
    assert chain.index(1)[NAME].data[1].length < 70_000
    assert len(chain.index(1)[NAME].sigs) == 2
    assert chain.signatures(1)[NAME] == signature
    assert chain.size("*.g1.*") < 75_000
    chain.check(scripted=1)
    overwrite(chain.source / "large", 150_000, b"changed")
    chain.back_up()
    assert roles(chain, 2) == ["full", "updated", "updated"]
    chain.check(scripted=1)


def test_deltas_on_the_copy_go_into_the_one_delta(chain: Chain) -> None:
    overwrite(chain.source / "large", 180_000, rng.randbytes(1000))
    chain.back_up()
    assert roles(chain, 3) == ["created", "updated"]
    chain.merge(1, 3)
    assert roles(chain, 1) == ["full", "updated"]
    chain.check(scripted=1)


def test_later_points_keep_standing_on_it(chain: Chain) -> None:
    overwrite(chain.source / "large", 180_000, rng.randbytes(1000))
    chain.back_up()
    chain.merge(1, 2)
    assert roles(chain, 2) == ["full", "updated", "updated"]
    chain.check(scripted=2)


def test_its_twin_shares_the_delta(chain: Chain) -> None:
    (chain.source / "twin").write_bytes((chain.source / "large").read_bytes())
    chain.back_up()
    chain.merge(1, 3)
    index = chain.index(1)
    assert index[NAME].data == index[b"twin"].data
    assert roles(chain, 1) == ["full", "updated"]
    chain.check(scripted=1)


def test_what_has_too_little_in_common_stays_whole(chain: Chain) -> None:
    overwrite(chain.source / "large", 80_000, rng.randbytes(60_000))
    chain.back_up()
    waste = measure(chain)
    report = chain.merge(1, 3)
    assert roles(chain, 1) == ["created"]
    assert report.bytes_written > SIZE
    assert abs(report.bytes_written - (waste.total_bytes - waste.dead_bytes)) < 0.05 * waste.total_bytes
    chain.check(scripted=1)


def test_a_damaged_signature_leaves_it_whole(chain: Chain) -> None:
    [vault] = chain.files(f"{chain.ids[0]}.sigvault.*")
    content = bytearray(vault.read_bytes())
    content[len(content) // 2] ^= 1
    vault.write_bytes(content)
    chain.merge(1, 2)
    assert roles(chain, 1) == ["created"]


def test_it_counts_as_waste(chain: Chain) -> None:
    waste = measure(chain)
    assert 0.7 < waste.share < 0.85
    report = chain.merge(1, 2)
    left = waste.total_bytes - waste.dead_bytes
    assert abs(report.bytes_written - left) < 0.05 * waste.total_bytes


def test_pruning_finds_it(chain: Chain) -> None:
    chain.prune(policy=KeepPolicy(keep_last=1), max_unused=0.9)
    assert len(chain.ids) == 1
    assert roles(chain, 0) == ["full", "updated"]
    chain.check(scripted=1)


def test_pruning_looks_again_at_what_stands_on_a_merged_point(tmp_path: Path) -> None:
    """The copy's own point has nothing to be merged with: what made it one is merged away below it."""
    chain = Chain.begin(tmp_path)
    (chain.source / "large").write_bytes(rng.randbytes(SIZE))
    chain.back_up()
    for start, length in ((10_000, 40_000), (10_000, 40_000), (100_000, 30_000)):
        overwrite(chain.source / "large", start, rng.randbytes(length))
        chain.back_up()
    assert roles(chain, 3) == ["created"]
    before = chain.size("*")

    report = chain.prune(policy=KeepPolicy(keep_last=2), max_unused=0.9)

    assert [rewrite.links for rewrite in report.plan.rewrites][-1] == ()
    assert len(chain.ids) == 2
    assert roles(chain, 1)[-1] == "updated"
    assert chain.size("*") < before - 100_000
    chain.check(scripted=1)
