"""Restoring while the same key is pruned: what was listed first is gone, and found where it is now."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.chains import KEY, Chain, overwrite
from support.trees import assert_same_tree

from incremental_backups_tools import restore_backup
from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.repository import Repository, read_config

rng = random.Random(8)


class DisturbedStore(LocalStore):
    """A store in which somebody else does something just before the first read of a certain kind.

    Args:
        disturb: what is done then, once.
        before: part of the names whose reading it comes before.
    """

    def __init__(self, path: str, disturb: Callable[[], object], before: str) -> None:
        super().__init__(path)
        self._disturb: Callable[[], object] | None = disturb
        self._before = before

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if self._before in name and self._disturb is not None:
            disturb, self._disturb = self._disturb, None
            disturb()
        return super().read_range(name, offset, length)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain.begin(tmp_path)
    for number in range(10):
        (chain.source / f"{number}").write_bytes(rng.randbytes(100_000))
    (chain.source / "directory").mkdir()
    (chain.source / "directory" / "last").write_bytes(b"last")
    chain.back_up()
    for number in range(3):
        overwrite(chain.source / f"{number}", 0, rng.randbytes(100))
        chain.back_up()
    return chain


def disturbed(chain: Chain, disturb: Callable[[], object], before: str) -> Repository:
    store = DisturbedStore(str(chain.repository), disturb, before)
    config = read_config(store)
    assert config is not None
    return Repository(store, config)


@pytest.mark.parametrize("before", [".full.", ".updated.", ".state."])
@pytest.mark.parametrize("overwrite_existing", ["changed", "never", "always"])
def test_what_pruning_took_away_is_found_where_it_is_now(
    chain: Chain, tmp_path: Path, before: str, overwrite_existing: str
) -> None:
    last, expected = chain.ids[-1], chain.points[chain.ids[-1]]
    dest = tmp_path / "restored"

    def prune() -> None:
        report = chain.prune(policy=KeepPolicy(keep_last=1), max_unused=0)
        assert len(report.plan.dropped) == 3

    report = restore_backup(
        KEY, dest, at=last, repository=disturbed(chain, prune, before), overwrite=overwrite_existing
    )

    assert chain.history().header(last).generation == 1
    assert not report.problems
    assert_same_tree(expected, dest)


def test_a_point_that_was_pruned_away_is_no_success(chain: Chain, tmp_path: Path) -> None:
    gone = chain.ids[1]

    def prune() -> None:
        chain.prune(policy=KeepPolicy(keep_last=1), max_unused=0)

    report = restore_backup(KEY, tmp_path / "restored", at=gone, repository=disturbed(chain, prune, ".full."))
    assert report.problems


def test_what_is_really_lost_is_looked_for_once_and_told_of(chain: Chain, tmp_path: Path) -> None:
    for path in chain.files("*.updated.*"):
        path.unlink()
    report = restore_backup(KEY, tmp_path / "restored", repository=chain.repository)
    assert [problem.path for problem in report.problems] == [b"0", b"1", b"2"]
    assert all("it is not there" in problem.message for problem in report.problems)

    def lose_state() -> None:
        chain.files(f"{chain.ids[0]}.state*")[0].unlink()

    repository = disturbed(chain, lose_state, f"{chain.ids[-1]}.state")
    with pytest.raises(
        ChainError, match=f"stands on backup {chain.ids[0]}, which the repository does not have"
    ):
        restore_backup(KEY, tmp_path / "other", repository=repository)
