"""How much of a run is dead: what writing it again as one backup then really frees."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from support.chains import KEY, Chain, overwrite

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.waste import Waste, measure_waste
from incremental_backups_tools.repository.repository import Repository

rng = random.Random(21)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain.begin(tmp_path)


def measure(chain: Chain, first: int, last: int = -1) -> Waste:
    history = chain.history()
    states = history.states(chain.ids[last])
    store = Repository.open(chain.repository).store
    headers = [state.header for state in states]
    sizes = [store.size(history.state_name(header.id)) for header in headers]
    return measure_waste(states, first, Archives(store, KEY, headers), state_sizes=sizes)


def assert_true(chain: Chain, first: int, waste: Waste) -> None:
    """Writing the run again frees what was said, to within the states and a twentieth."""
    report = chain.merge(first, len(chain.ids) - 1) if first else chain.rebase(len(chain.ids) - 1)
    left = waste.total_bytes - waste.dead_bytes
    assert abs(report.bytes_written - left) < 0.05 * waste.total_bytes + 1500


def write(chain: Chain, name: str, size: int) -> None:
    (chain.source / name).write_bytes(rng.randbytes(size))


def test_of_increments_that_add_only_nothing_is_dead(chain: Chain) -> None:
    write(chain, "base", 50_000)
    chain.back_up()
    for number in range(4):
        write(chain, f"{number}", 50_000)
        chain.back_up()
    waste = measure(chain, 1)
    assert waste.total_bytes == sum(chain.size(f"{backup_id}*") for backup_id in chain.ids[1:])
    assert waste.share < 0.01
    assert_true(chain, 1, waste)


def test_what_was_replaced_or_removed_is_dead(chain: Chain) -> None:
    for name in ("kept", "replaced", "removed"):
        write(chain, name, 50_000)
    chain.back_up()
    for _ in range(3):
        write(chain, "replaced", 50_000)
        chain.back_up()
    (chain.source / "removed").unlink()
    chain.back_up()
    assert 0.62 < measure(chain, 1).share < 0.70
    waste = measure(chain, 0)
    assert 0.62 < waste.share < 0.68  # four of six
    assert_true(chain, 0, waste)


@pytest.mark.parametrize("apart", [True, False])
def test_deltas_that_overwrite_each_other_are_dead_in_part(chain: Chain, apart: bool) -> None:
    write(chain, "large", 500_000)
    chain.back_up()
    for number in range(4):
        overwrite(chain.source / "large", 100_000 * number * apart, rng.randbytes(20_000))
        chain.back_up()
    waste = measure(chain, 1)
    assert waste.share < 0.05 if apart else 0.6 < waste.share < 0.8
    assert_true(chain, 1, waste)


def test_deltas_of_a_copy_in_the_run_become_one_with_it(chain: Chain) -> None:
    write(chain, "base", 1000)
    chain.back_up()
    write(chain, "large", 500_000)
    chain.back_up()
    overwrite(chain.source / "large", 1000, rng.randbytes(20_000))
    chain.back_up()
    waste = measure(chain, 1)
    assert 18_000 < waste.dead_bytes < 25_000
    assert_true(chain, 1, waste)


def test_what_came_and_went_or_was_changed_back_is_dead(chain: Chain) -> None:
    write(chain, "base", 100_000)
    old = (chain.source / "base").read_bytes()
    chain.back_up()
    write(chain, "passing", 60_000)
    write(chain, "base", 100_000)
    chain.back_up()
    (chain.source / "passing").unlink()
    (chain.source / "base").write_bytes(old)
    chain.back_up()
    waste = measure(chain, 1)
    assert waste.share > 0.95
    assert_true(chain, 1, waste)


def test_renames_and_copies_keep_their_content_alive(chain: Chain) -> None:
    write(chain, "one", 50_000)
    chain.back_up()
    write(chain, "two", 50_000)
    chain.back_up()
    (chain.source / "two").rename(chain.source / "three")
    chain.back_up()
    overwrite(chain.source / "three", 0, b"changed")
    (chain.source / "one").rename(chain.source / "four")
    chain.back_up()
    waste = measure(chain, 0)
    assert waste.share < 0.05
    assert_true(chain, 0, waste)


def test_deltas_that_two_files_share_are_dead_once(chain: Chain) -> None:
    write(chain, "large", 500_000)
    shutil.copy(chain.source / "large", chain.source / "twin")
    chain.back_up()
    for number in range(4):
        overwrite(chain.source / "large", 5_000 * number, rng.randbytes(20_000))
        shutil.copy(chain.source / "large", chain.source / "twin")
        write(chain, f"new-{number}", 50_000)
        chain.back_up()
    index = chain.index(-1)
    assert index[b"large"].data == index[b"twin"].data
    waste = measure(chain, 1)
    assert 0.10 < waste.share < 0.20  # 45 of 280 KB
    assert_true(chain, 1, waste)
