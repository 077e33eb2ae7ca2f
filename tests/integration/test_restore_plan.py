"""What a restore says it will read is what it reads, and what must be prepared is asked for first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.chains import KEY, Chain
from support.command import content_of, cut_half, damage, only, run_ibt
from support.keys import make_age_key
from support.trees import assert_same_tree, build_nasty_tree, edit

from incremental_backups_tools import restore_backup
from incremental_backups_tools.chain.restore_plan import ARCHIVES, STATES, RestorePlan, plan_restore
from incremental_backups_tools.exceptions import ObjectNotFoundError, RepositoryError
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.protection import NO_PROTECTION, Protection
from incremental_backups_tools.repository.repository import Repository

ONE_THREAD = {"threads": 1, "durable": False}


class WatchedStore(LocalStore):
    """Notes what is read of each archive, as it lies."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.parts: dict[str, set[tuple[int, int]]] = {}

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if ".tar.zst" in name and length:
            self.parts.setdefault(name, set()).add((offset, length))
        return super().read_range(name, offset, length)

    def merged(self) -> dict[str, list[tuple[int, int]]]:
        found = {}
        for name, parts in self.parts.items():
            merged: list[tuple[int, int]] = []
            for offset, length in sorted(parts):
                if merged and offset <= sum(merged[-1]):
                    merged[-1] = merged[-1][0], max(merged[-1][1], offset + length - merged[-1][0])
                else:
                    merged.append((offset, length))
            found[name] = merged
        return found


class ColdStore(LocalStore):
    """Archives cannot be read before they were asked for."""

    needs_preparing = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked: list[str] = []

    def prepare(self, names: Iterable[str]) -> None:
        self.asked += names

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if ".tar.zst" in name and name not in self.asked:
            raise RepositoryError(f"{name} lies in the archive tier")
        return super().read_range(name, offset, length)


def archives_of(plan: RestorePlan) -> dict[str, list[tuple[int, int]]]:
    return {one.name: list(one.ranges) for one in plan.objects if one.tier == ARCHIVES}


def nasty_chain(tmp_path: Path, **options: Any) -> Chain:
    chain = Chain.begin(tmp_path)
    build_nasty_tree(chain.source)
    (chain.source / "big").write_bytes(os.urandom(6 << 20))
    chain.back_up(**options)
    edit(chain.source, 0)
    with (chain.source / "big").open("r+b") as file:
        file.seek(3 << 20)
        file.write(os.urandom(100_000))
    chain.back_up(**options)
    (chain.source / "small").write_text("small")
    chain.back_up(**options)
    return chain


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize("paths", [None, ["big"], ["small"]])
@pytest.mark.usefixtures("root")
def test_what_is_planned_is_read_to_the_byte(
    tmp_path: Path, is_encrypted: bool, paths: list[str] | None
) -> None:
    writing = reading = NO_PROTECTION
    if is_encrypted:
        key = make_age_key(tmp_path)
        writing, reading = key.writing, key.reading
    chain = nasty_chain(tmp_path, protection=writing)

    def opened(protection: Protection) -> tuple[WatchedStore, Repository]:
        store = WatchedStore(chain.repository)
        return store, Repository.open(store, protection=protection)

    for backup_id in chain.ids if paths is None else chain.ids[-1:]:
        _, repository = opened(reading)
        plan = plan_restore(KEY, repository=repository, at=backup_id, paths=paths)
        store, repository = opened(reading)
        report = restore_backup(
            KEY, tmp_path / backup_id, repository=repository, at=backup_id, paths=paths, **ONE_THREAD
        )
        assert not report.problems
        assert archives_of(plan) == store.merged()
        assert plan.bytes_restored == report.bytes_written
        states = [one for one in plan.objects if one.tier == STATES]
        assert len(states) == chain.ids.index(backup_id) + 1
        assert all(one.bytes_read == one.size for one in states)
        assert all(one.is_exact for one in plan.objects)
    if paths == ["small"]:
        assert list(archives_of(plan)) == [name for name in archives_of(plan) if ".created." in name]


def test_a_part_needs_less_than_all(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    for name in "abc":
        (chain.source / name).write_bytes(os.urandom(4 << 20))
    chain.back_up()
    whole = plan_restore(KEY, repository=chain.repository)
    part = plan_restore(KEY, repository=chain.repository, paths=["b"])
    (archive,) = (one for one in part.objects if one.tier == ARCHIVES)
    assert 4 << 20 <= archive.bytes_read < 7 << 20 < archive.size
    assert len(archive.ranges) == 2  # the frames, and the seek table
    assert sum(tier.bytes_read for tier in whole.tiers) > 12 << 20


def test_archives_that_cannot_be_read_yet_count_as_a_whole(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    (chain.source / "a").write_bytes(os.urandom(1 << 20))
    chain.back_up()
    store = ColdStore(chain.repository)
    plan = plan_restore(KEY, repository=Repository.open(store))
    (archive,) = (one for one in plan.objects if one.tier == ARCHIVES)
    assert (archive.ranges, archive.is_exact) == (((0, archive.size),), False)
    assert store.asked == []


def test_restoring_asks_for_what_it_reads_and_nothing_else(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    (chain.source / "a").write_bytes(os.urandom(1 << 20))
    chain.back_up()
    (chain.source / "b").write_bytes(os.urandom(1 << 20))
    chain.back_up()
    key = make_age_key(tmp_path)
    for paths, words in ((None, [".created.", ".full."]), (["b"], [".created."])):
        store = ColdStore(chain.repository)
        report = restore_backup(KEY, tmp_path / "dest", repository=Repository.open(store), paths=paths)
        assert not report.problems
        assert len(store.asked) == len(words)
        assert all(any(word in name for name in store.asked) for word in words)
    assert_same_tree(chain.source, tmp_path / "dest")
    sealed = Chain(tmp_path, chain.source, tmp_path / "sealed", tmp_path / "other-cache")
    sealed.back_up(protection=key.writing)
    store = ColdStore(sealed.repository)
    report = restore_backup(
        KEY, tmp_path / "opened", repository=Repository.open(store, protection=key.reading)
    )
    assert not report.problems
    assert [name.partition(".full.")[2] for name in store.asked] == ["0000.tar.zst.age"]


def test_a_missing_archive_is_told_before_anything_is_thawed(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    (chain.source / "a").write_bytes(os.urandom(1 << 20))
    chain.back_up()
    archive = only(chain.repository, "*.full.*")
    damage(archive, cut_half)
    plan = plan_restore(KEY, repository=chain.repository)
    assert [one.is_exact for one in plan.objects if one.tier == ARCHIVES] == [False]
    archive.unlink()
    with pytest.raises(ObjectNotFoundError):
        plan_restore(KEY, repository=chain.repository)


def test_the_command_prints_objects_ranges_and_sums(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    (chain.source / "a").write_bytes(os.urandom(1 << 20))
    chain.back_up()
    before = content_of(chain.repository)
    asked = ("-r", chain.repository, "restore", "--plan", KEY, tmp_path / "dest")
    shown = run_ibt(*asked)
    archive = only(chain.repository, "*.full.*")
    size = archive.stat().st_size
    (line,) = (line for line in shown.lines if line.startswith(f"{KEY}/{archive.name}  "))
    ranges = [tuple(map(int, part.split("-"))) for part in line.partition(": ")[2].split(", ")]
    assert ranges[-1][1] == size - 1  # its seek table is at its end
    read = sum(last + 1 - first for first, last in ranges)
    assert f"  {read} of {size} bytes: " in line
    assert "1 file of 1.0 MiB. states: 1 object of" in shown.lines[-1]
    document = run_ibt(*asked, "--json").document
    assert document["tiers"]["archives"]["bytes_read"] == read
    assert document["bytes_read"] == sum(one["bytes_read"] for one in document["objects"])
    assert document["objects"][1]["ranges"][-1]["offset"] == ranges[-1][0]
    assert not (tmp_path / "dest").exists()
    assert content_of(chain.repository) == before
    assert "nothing" in run_ibt(*asked, "nothing-is-called-so", status=1).error
