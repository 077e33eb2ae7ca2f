"""Large files on their way back: in one pass and by all threads, however they were changed."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.chains import KEY, Chain
from support.command import run_ibt
from support.faults import tmpfs
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import restore_backup, verify
from incremental_backups_tools.chain import deltas
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.repository import Repository

MIB = 1 << 20
BLOCK_LEN = 1 << 16


def edit_everywhere(data: bytearray, chance: random.Random) -> None:
    for _ in range(200):
        start = chance.randrange(len(data) - 500)
        data[start : start + 500] = chance.randbytes(500)


def shift(data: bytearray, chance: random.Random) -> None:
    data[:0] = chance.randbytes(12_345)
    del data[10 * MIB : 11 * MIB + 1]


def shuffle(data: bytearray, chance: random.Random) -> None:
    blocks = [data[start : start + BLOCK_LEN] for start in range(0, len(data), BLOCK_LEN)]
    chance.shuffle(blocks)
    data[:] = b"".join(blocks)


CHANGES: list[Callable[[bytearray, random.Random], None]] = [edit_everywhere, shift, shuffle]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A full, and a point after each of the CHANGES to one file that has holes and one that has none."""
    chance = random.Random(5)
    chain = Chain.begin(tmp_path_factory.mktemp("chain"))
    data = bytearray(chance.randbytes(24 * MIB))
    parts = [chance.randbytes(4 * MIB) for _ in range(3)]
    for number in range(len(CHANGES) + 1):
        (chain.source / "dense").write_bytes(data)
        with (chain.source / "sparse").open("wb") as file:
            for part in parts:
                file.seek(9 * MIB + 123, os.SEEK_CUR)
                file.write(part)
            file.truncate(80 * MIB + number)
        (chain.source / "small").write_text(f"small {number}")
        chain.back_up()
        if number < len(CHANGES):
            CHANGES[number](data, chance)
            parts[number % 3] = chance.randbytes(10_000) + parts[number % 3][50_000:]
            parts.reverse()
    return chain


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_version_comes_back(tmp_path: Path, chain: Chain, threads: int) -> None:
    for number, backup_id in enumerate(chain.ids):
        dest = tmp_path / "dest"  # over the version before
        report = restore_backup(
            KEY, dest, repository=chain.repository, at=backup_id, threads=threads, durable=False
        )
        assert not report.problems
        assert fingerprint(dest) == chain.points[backup_id]
        assert (dest / "sparse").stat().st_blocks * 512 < 14 * MIB, number
    assert verify(chain.repository, read_data=True, threads=threads).faults == []


@pytest.mark.parametrize(("held_len", "max_commands"), [(0, 1 << 19), (0, 10), (8 * MIB, 10)])
@pytest.mark.usefixtures("no_open_descriptors")
def test_deltas_that_are_not_held_do_the_same(
    tmp_path: Path, chain: Chain, held_len: int, max_commands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "_HELD_LEN", held_len)
    monkeypatch.setattr(deltas, "_MAX_COMMANDS", max_commands)
    for backup_id in chain.ids:
        report = restore_backup(
            KEY, tmp_path / "dest", repository=chain.repository, at=backup_id, threads=2, durable=False
        )
        assert not report.problems
        assert fingerprint(tmp_path / "dest") == chain.points[backup_id]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("root", "no_open_descriptors")
def test_patching_takes_no_room_but_the_files_own(
    tmp_path: Path, chain: Chain, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tmpfs(tmp_path / "tmp", size=64 << 10):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
        for backup_id in chain.ids[:3]:
            dest = tmp_path / backup_id
            report = restore_backup(
                KEY, dest, repository=chain.repository, at=backup_id, threads=threads, durable=False
            )
            assert not report.problems
            assert fingerprint(dest) == chain.points[backup_id]


class CountingStore(LocalStore):
    """Notes how many bytes of a full's archive are read at a time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_of_full: list[int] = []

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if ".full." in name:
            self.read_of_full.append(length)
        return super().read_range(name, offset, length)


@pytest.mark.parametrize("number", range(1, len(CHANGES) + 1))
@pytest.mark.parametrize("threads", [1, 3])
def test_however_copies_jump_the_old_version_is_read_about_once(
    tmp_path: Path, chain: Chain, number: int, threads: int
) -> None:
    store = CountingStore(chain.repository)
    report = restore_backup(
        KEY,
        tmp_path / "dest",
        repository=Repository.open(store),
        at=chain.ids[number],
        threads=threads,
        durable=False,
    )
    assert not report.problems
    (full,) = chain.repository.glob("source/*.full.*")
    assert 20 * MIB < sum(store.read_of_full) < 1.25 * full.stat().st_size + 8 * MIB
    assert len(store.read_of_full) < 24


@pytest.mark.parametrize(("fsync", "is_early"), [("on", True), ("off", False)])
def test_what_must_be_on_the_disk_begins_to_get_there_early(
    tmp_path: Path, chain: Chain, fsync: str, is_early: bool
) -> None:
    log = tmp_path / "log"
    run_ibt(
        *("restore", "--fsync", fsync, "-r", chain.repository, KEY, tmp_path / "dest", "dense"),
        prefix=("strace", "-f", "-qq", "-e", "trace=sync_file_range,renameat", "-o", str(log)),
    )
    calls = log.read_text().partition("renameat(")[0]
    assert ("sync_file_range(" in calls) == is_early


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("no_open_descriptors")
def test_damage_in_a_later_frame_loses_that_file_and_no_other(
    tmp_path: Path, chain: Chain, threads: int
) -> None:
    copy = chain.copy(tmp_path / "copy")
    (full,) = copy.repository.glob("source/*.full.*")
    data = bytearray(full.read_bytes())
    data[14 * MIB] ^= 1  # "dense" lies first, and cannot be compressed
    full.write_bytes(data)
    dest = tmp_path / "dest"
    dest.mkdir()
    (dest / "dense").write_text("old")
    for backup_id in copy.ids:
        report = restore_backup(
            KEY, dest, repository=copy.repository, at=backup_id, threads=threads, durable=False
        )
        assert [problem.path for problem in report.problems] == [b"dense"]
        assert "damaged" in report.problems[0].message and full.name in report.problems[0].message
        found = fingerprint(dest)
        assert all(found[path] == chain.points[backup_id][path] for path in (b"sparse", b"small"))
        assert (dest / "dense").read_text() == "old"
        assert sorted(os.listdir(dest)) == ["dense", "small", "sparse"]
        faults = verify(copy.repository, KEY, at=backup_id, read_data=True, threads=threads).faults
        assert f"{KEY}@{backup_id} dense" in {fault.what for fault in faults}
        assert not any("sparse" in fault.what or "small" in fault.what for fault in faults)


def test_damage_in_what_a_later_version_has_no_more_does_it_no_harm(tmp_path: Path) -> None:
    chain = Chain.begin(tmp_path)
    data = bytearray(os.urandom(20 * MIB))
    (chain.source / "large").write_bytes(data)
    chain.back_up()
    data[6 * MIB : 14 * MIB] = os.urandom(100)
    (chain.source / "large").write_bytes(data)
    chain.back_up()
    (full,) = chain.repository.glob("source/*.full.*")
    stored = bytearray(full.read_bytes())
    stored[10 * MIB] ^= 1
    full.write_bytes(stored)
    first, last = (
        restore_backup(KEY, tmp_path / backup_id, repository=chain.repository, at=backup_id)
        for backup_id in chain.ids
    )
    assert [problem.path for problem in first.problems] == [b"large"]
    assert not last.problems
    assert_same_tree(chain.source, tmp_path / chain.ids[-1])
