"""Making many new files in one call: the C extension and its twin do the same."""

from __future__ import annotations

import errno
import importlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from support.faults import tmpfs

from incremental_backups_tools.tree.creation import (
    CANCELLED,
    MAX_CONTENT_LEN,
    OTHER_CONTENT,
    NewFile,
    choose_creator,
)

Creator = Callable[[Sequence[NewFile]], list[int]]
DEFAULT_ACL = bytes.fromhex(
    "02000000 01000700 ffffffff 02000600 01000000 04000500 ffffffff 10000700 ffffffff"
)
DEFAULT_ACL += bytes.fromhex("20000500 ffffffff")


@pytest.fixture(params=["_native", "_twin"])
def create(request: pytest.FixtureRequest) -> Creator:
    return importlib.import_module(f"incremental_backups_tools.tree.{request.param}").create_files  # type: ignore[no-any-return]


@pytest.fixture
def directory(tmp_path: Path, no_open_descriptors: None) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def new(directory: int, name: bytes | None, content: bytes = b"content", **more: object) -> NewFile:
    fields = {"temporary": b".tmp", "first_mode": 0o600, "mode": 0o644, "uid": -1, "gid": -1, "mtime_ns": 0}
    fields |= {"check_attributes": True, "digest": blake3(content).digest(), **more}
    return NewFile(dir_fd=directory, final=name, content=content, **fields)  # type: ignore[arg-type]


def test_the_extension_is_what_is_used() -> None:
    native = importlib.import_module("incremental_backups_tools.tree._native")
    assert choose_creator() is native.create_files


@pytest.mark.parametrize("mtime_ns", [0, 1, -1, 10**9, -(10**9), -1_500_000_000, 1_700_000_000_123_456_789])
def test_files_get_content_mode_and_time(
    tmp_path: Path, create: Creator, directory: int, mtime_ns: int
) -> None:
    files = [
        new(directory, b"a", b"", mode=0o400, mtime_ns=mtime_ns),
        new(directory, b"\xff name", os.urandom(300_000), first_mode=0o777, mode=0o1640, mtime_ns=mtime_ns),
        new(directory, b"view", memoryview(b"0123456789")[2:5], mtime_ns=mtime_ns),
    ]
    assert create(files) == [0, 0, 0]
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"a", b"view", b"\xff name"]
    for file in files:
        path = os.path.join(os.fsencode(tmp_path), file.final or b"")
        info = os.stat(path)
        with open(path, "rb") as made:
            assert made.read() == bytes(file.content)
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (file.mode, mtime_ns)


def test_another_content_than_was_promised_is_not_made(
    tmp_path: Path, create: Creator, directory: int
) -> None:
    right = blake3(b"content").digest()
    files = [
        new(directory, b"a"),
        new(directory, b"b", b"other", digest=right),
        new(directory, b"c", digest=None),
        new(directory, b"d", digest=right[:31]),
        new(directory, b"e", bytes(MAX_CONTENT_LEN)),
        new(directory, b"f", bytes(MAX_CONTENT_LEN - 1), digest=blake3(bytes(MAX_CONTENT_LEN)).digest()),
        new(directory, b"g", b""),
        new(directory, b"h", b"", digest=right),
        new(directory, b"i", bytes(MAX_CONTENT_LEN + 1)),
    ]
    assert create(files) == [0, *[OTHER_CONTENT] * 3, 0, OTHER_CONTENT, 0, *[OTHER_CONTENT] * 2]
    assert sorted(os.listdir(tmp_path)) == ["a", "e", "g"]


def test_the_umask_decides_nothing(tmp_path: Path, create: Creator, directory: int) -> None:
    before = os.umask(0o077)
    try:
        assert create([new(directory, b"f", first_mode=0o666, mode=0o666)]) == [0]
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666


def test_owners_are_given(tmp_path: Path, create: Creator, directory: int, root: None) -> None:
    assert create([new(directory, b"f", uid=12, gid=34, mode=0o604)]) == [0]
    info = (tmp_path / "f").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (12, 34, 0o604)


def test_without_a_final_name_it_stays_under_the_temporary_one(
    tmp_path: Path, create: Creator, directory: int
) -> None:
    assert create([new(directory, None)]) == [0]
    assert os.listdir(tmp_path) == [".tmp"]


def test_what_is_there_under_the_temporary_name_is_left_alone(
    tmp_path: Path, create: Creator, directory: int
) -> None:
    (tmp_path / "precious").write_text("precious")
    os.symlink("precious", tmp_path / ".tmp")
    (tmp_path / "other").write_text("other")
    files = [
        new(directory, b"f"),
        new(directory, b"g", temporary=b"other"),
        new(directory, b"h", temporary=b"t"),
    ]
    assert create(files) == [errno.EEXIST, errno.EEXIST, 0]
    assert sorted(os.listdir(tmp_path)) == [".tmp", "h", "other", "precious"]
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "other").read_text() == "other"


def test_a_directory_in_the_way_stays_and_nothing_is_left(
    tmp_path: Path, create: Creator, directory: int
) -> None:
    (tmp_path / "d").mkdir()
    assert create([new(directory, b"d"), new(directory, b"f")]) == [errno.EISDIR, 0]
    assert sorted(os.listdir(tmp_path)) == ["d", "f"]


def test_a_default_acl_is_noticed(tmp_path: Path, create: Creator, directory: int) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", DEFAULT_ACL)
    assert create([new(directory, b"f"), new(directory, b"g", check_attributes=False)]) == [-1, 0]
    assert os.listdir(tmp_path) == ["g"]


def test_a_full_disk_ends_it_and_leaves_whole_files_only(tmp_path: Path, create: Creator, root: None) -> None:
    with tmpfs(tmp_path / "disk", size=1 << 20):
        descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
        try:
            sizes = [100_000, 1_000_000, 10]
            files = [new(descriptor, b"%d" % size, bytes(size)) for size in sizes]
            assert create(files) == [0, errno.ENOSPC, CANCELLED]
        finally:
            os.close(descriptor)
        assert os.listdir(tmp_path / "disk") == ["100000"]


@pytest.mark.parametrize("name", [b"a/b", b"/f", b"a\0b"])
def test_names_of_more_than_one_component_are_refused(
    tmp_path: Path, create: Creator, directory: int, name: bytes
) -> None:
    for file in (new(directory, name), new(directory, b"f", temporary=name)):
        with pytest.raises(ValueError, match="component"):
            create([new(directory, b"first"), file])
    assert os.listdir(tmp_path) == []


def test_a_closed_directory_is_an_error_of_each_file(create: Creator) -> None:
    assert create([new(1 << 20, b"f"), new(1 << 20, b"g")]) == [errno.EBADF, errno.EBADF]
    assert create([]) == []
