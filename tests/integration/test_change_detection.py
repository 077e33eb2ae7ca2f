"""What other tools take for unchanged, and what changes nothing that is stored."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.unchanged import is_unchanged


def put_times_back(path: Path, info: os.stat_result) -> None:
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def restored_is_source(tmp_path: Path, source: Path, repository: Path) -> None:
    restore_backup("source", tmp_path / "out", repository=repository)
    assert_same_tree(source, tmp_path / "out")


def test_another_size_within_the_same_second(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "file").write_bytes(b"one")
    info = (source / "file").stat()
    full_backup(source, repository)
    (source / "file").write_bytes(b"three")
    put_times_back(source / "file", info)
    assert incremental_backup(source, repository).counts.updated == 1
    restored_is_source(tmp_path, source, repository)


def test_the_same_size_and_time_and_other_bytes(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "file").write_bytes(b"one" * 1000)
    info = (source / "file").stat()
    full_backup(source, repository)
    with (source / "file").open("r+b") as file:
        file.write(b"two")
    put_times_back(source / "file", info)
    assert incremental_backup(source, repository).counts.updated == 1
    restored_is_source(tmp_path, source, repository)


def test_a_file_that_takes_the_inode_of_another(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "a").write_bytes(b"a" * 1000)
    info = (source / "a").stat()
    full_backup(source, repository)
    (source / "a").unlink()
    (source / "b").write_bytes(b"b" * 1000)  # ext4 gives it the number at once
    (source / "a").write_bytes(b"c" * 1000)
    for name in "ab":
        put_times_back(source / name, info)
    incremental_backup(source, repository)
    restored_is_source(tmp_path, source, repository)


def test_a_write_within_a_tick_of_the_clock_is_seen_the_next_time(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    for number in range(30):
        (source / "file").write_bytes(b"%03d" % number)
        incremental_backup(source, repository)
    restored_is_source(tmp_path, source, repository)


@pytest.mark.parametrize(
    "field", ["st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_mode", "st_uid", "st_gid"]
)
def test_every_mark_that_a_change_leaves_counts(tmp_path: Path, field: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    info = path.stat()
    entry = Entry(
        path=b"file",
        type="file",
        mode=info.st_mode & 0o7777,
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
        inode=info.st_ino,
    )
    assert is_unchanged(info, entry, None)

    class Changed:
        def __getattr__(self, name: str) -> int:
            value: int = getattr(info, name)
            return value + 1 if name == field else value

    assert not is_unchanged(Changed(), entry, None)  # type: ignore[arg-type]
    assert not is_unchanged(info, entry, b"now a link of this")


def test_a_change_of_metadata_stores_no_data_and_no_signature(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "file").write_bytes(os.urandom(100_000))
    full_backup(source, repository)
    (source / "file").chmod(0o4711)
    os.utime(source / "file", ns=(1, 1))
    os.setxattr(source / "file", "user.note", b"noted")

    report = incremental_backup(source, repository)

    assert {file.role for file in report.files} == {"replay", "state"}
    assert report.total < 2000
    restored_is_source(tmp_path, source, repository)


def test_files_with_one_content_keep_their_own_metadata(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    for name, mode in (("key", 0o600), ("public", 0o644), ("script", 0o755)):
        (source / name).write_bytes(b"the same" * 1000)
        (source / name).chmod(mode)
    full_backup(source, repository)
    restored_is_source(tmp_path, source, repository)


def test_a_wiped_repository_is_not_believed_to_be_full(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "file").write_bytes(os.urandom(10_000))
    full_backup(source, repository)
    incremental_backup(source, repository)
    shutil.rmtree(repository)  # the cache still knows everything

    assert incremental_backup(source, repository).kind == "full"
    restored_is_source(tmp_path, source, repository)


def test_a_repository_put_back_from_an_older_copy_is_not_confused_with_the_cache(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "one").write_bytes(os.urandom(10_000))
    full_backup(source, repository)
    shutil.copytree(repository, tmp_path / "older")
    (source / "two").write_bytes(os.urandom(10_000))
    incremental_backup(source, repository)
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "older", repository)

    assert incremental_backup(source, repository).counts.created == 1
    restored_is_source(tmp_path, source, repository)


def test_one_small_file_out_of_a_large_volume_reads_little(
    tmp_path: Path, source: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "large").write_bytes(os.urandom(30_000_000))
    (source / "tiny").write_bytes(b"12")
    full_backup(source, repository)
    read = []
    plain = LocalStore.read_range

    def counted(self: LocalStore, name: str, offset: int, length: int) -> bytes:
        read.append(length)
        return plain(self, name, offset, length)

    monkeypatch.setattr(LocalStore, "read_range", counted)
    restore_backup("source", tmp_path / "out", repository=repository, paths=["tiny"])

    assert (tmp_path / "out" / "tiny").read_bytes() == b"12"
    assert sum(read) < 4 << 20


def test_only_adding_is_done_to_a_repository(source: Path, repository: Path) -> None:
    (source / "file").write_bytes(os.urandom(10_000))
    seen: dict[bytes, tuple[object, ...]] = {}
    for number in range(4):
        (source / f"file-{number}").write_bytes(os.urandom(10_000))
        incremental_backup(source, repository)
        now = {
            path: value
            for path, value in fingerprint(repository).items()
            if value[5] is not None and not path.startswith(b"locks/")
        }
        assert seen.items() <= now.items()
        seen = now
    assert not verify(repository, read_data=True).faults
