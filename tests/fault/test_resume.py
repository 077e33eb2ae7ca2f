"""Going on after a kill: finished volumes are used as long as nothing in them is out of date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.trees import assert_same_tree, build_nasty_tree

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify

VOLUME = 1 << 20


def killed_after_its_volumes(source: Path, repository: Path, backup: Callable[..., object]) -> set[str]:
    """A backup whose state, and last volume, never came to be. Returns the names that stay."""
    report = backup(source, repository, volume_size=VOLUME)
    names = [file.path for file in report.files]
    whole = [name for name in names if ".full." in name or ".created." in name]
    for name in names:
        if ".state." in name or ".replay." in name or ".sigvault." in name or name == whole[-1]:
            (repository / name).unlink()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    return set(whole[:-1])


@pytest.fixture
def tree(source: Path) -> Path:
    build_nasty_tree(source)
    for number in range(30):
        (source / f"file-{number:02}").write_bytes(os.urandom(200_000))
    return source


def restored(tmp_path: Path, source: Path, repository: Path) -> None:
    assert not verify(repository, read_data=True).faults
    report = restore_backup("source", tmp_path / "out", repository=repository)
    assert not report.problems
    assert_same_tree(source, tmp_path / "out")


def test_a_killed_full_goes_on_where_it_was(tmp_path: Path, tree: Path, repository: Path) -> None:
    left = killed_after_its_volumes(tree, repository, full_backup)
    assert len(left) > 3
    notices: list[str] = []

    report = full_backup(tree, repository, volume_size=VOLUME, on_notice=notices.append)

    assert left <= {file.path for file in report.files}
    assert any("going on" in notice for notice in notices)
    assert len({file.path for file in report.files if file.role == "full"}) == len(left) + 1
    restored(tmp_path, tree, repository)


def test_a_killed_incremental_goes_on_where_it_was(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "old").write_bytes(os.urandom(100_000))
    full_backup(source, repository)
    for number in range(30):
        (source / f"file-{number:02}").write_bytes(os.urandom(200_000))
    left = killed_after_its_volumes(source, repository, incremental_backup)
    assert len(left) > 3

    report = incremental_backup(source, repository, volume_size=VOLUME)

    assert report.kind == "incremental"
    assert left <= {file.path for file in report.files}
    restored(tmp_path, source, repository)


@pytest.mark.parametrize("change", ["content", "deleted", "created", "mode", "touched", "hard link"])
def test_volumes_with_anything_out_of_date_are_not_used(
    tmp_path: Path, tree: Path, repository: Path, change: str
) -> None:
    left = killed_after_its_volumes(tree, repository, full_backup)
    victim = tree / "file-00"
    info = victim.stat()
    if change == "content":
        data = bytearray(victim.read_bytes())
        data[1000] ^= 1
        victim.write_bytes(data)
        os.utime(victim, ns=(info.st_atime_ns, info.st_mtime_ns))
    elif change == "deleted":
        victim.unlink()
    elif change == "created":
        (tree / "file-00-and-a-half").write_bytes(b"new")
    elif change == "mode":
        victim.chmod(0o600)
    elif change == "touched":
        os.utime(victim, ns=(10**18, 10**18))
    else:
        victim.unlink()
        os.link(tree / "file-01", victim)

    report = full_backup(tree, repository, volume_size=VOLUME)

    assert not left <= {file.path for file in report.files}
    restored(tmp_path, tree, repository)


def test_a_file_that_changes_after_the_check_starts_the_backup_anew(
    tmp_path: Path, tree: Path, repository: Path
) -> None:
    left = killed_after_its_volumes(tree, repository, full_backup)

    def change_when_noticed(notice: str) -> None:
        if "going on" in notice:
            (tree / "file-00").write_bytes(b"other now")

    report = full_backup(tree, repository, volume_size=VOLUME, on_notice=change_when_noticed)

    assert not left & {file.path for file in report.files}
    restored(tmp_path, tree, repository)


def test_a_damaged_volume_is_not_used(tmp_path: Path, tree: Path, repository: Path) -> None:
    left = sorted(killed_after_its_volumes(tree, repository, full_backup))
    damaged = repository / left[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    report = full_backup(tree, repository, volume_size=VOLUME)

    paths = {file.path for file in report.files}
    assert left[0] in paths
    assert left[1] not in paths
    restored(tmp_path, tree, repository)


def test_what_a_killed_full_left_is_no_part_of_an_incremental(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "old").write_bytes(os.urandom(100_000))
    full_backup(source, repository)
    for number in range(10):
        (source / f"file-{number:02}").write_bytes(os.urandom(200_000))
    left = killed_after_its_volumes(source, repository, full_backup)

    report = incremental_backup(source, repository, volume_size=VOLUME)

    assert not left & {file.path for file in report.files}
    restored(tmp_path, source, repository)
