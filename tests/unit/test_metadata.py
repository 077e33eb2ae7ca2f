"""Metadata: captured from what is there, given to what is restored, and counted where that fails."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from incremental_backups_tools.tree.entry import Acl, Entry
from incremental_backups_tools.tree.metadata import MetadataApplier, capture, inode_flags
from incremental_backups_tools.tree.walk import Found

as_root = pytest.mark.usefixtures("root")
SET_FLAGS, GET_FLAGS = 0x40086602, 0x80086601
APPEND, IMMUTABLE, NODUMP = 0x20, 0x10, 0x40


@contextmanager
def flagged(path: Path, flags: int) -> Iterator[None]:
    """*path* with inode flags, which are taken away again, or nothing could remove it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        (before,) = struct.unpack("l", fcntl.ioctl(fd, GET_FLAGS, bytes(8)))
        fcntl.ioctl(fd, SET_FLAGS, struct.pack("l", before | flags))
        yield
        fcntl.ioctl(fd, SET_FLAGS, struct.pack("l", before))
    finally:
        os.close(fd)


def captured(path: Path, *, opened: bool = True) -> Entry:
    dir_fd = os.open(path.parent, os.O_RDONLY)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW) if opened else None
    try:
        name = os.fsencode(path.name)
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return capture(Found(name, name, dir_fd, info), info, fd=fd)
    finally:
        os.close(dir_fd)
        if fd is not None:
            os.close(fd)


class Problems(list[tuple[str, bytes]]):
    def __call__(self, kind: str, path: bytes, message: str) -> None:
        self.append((kind, path))


def apply(path: Path, entry: Entry, **options: bool) -> Problems:
    problems = Problems()
    applier = MetadataApplier(on_problem=problems, **options)
    if entry.type in ("file", "dir"):
        fd = os.open(path, os.O_RDONLY)
        applier.apply_to_fd(fd, entry)
        os.close(fd)
    else:
        dir_fd = os.open(path.parent, os.O_RDONLY)
        applier.apply_to_name(dir_fd, os.fsencode(path.name), entry)
        os.close(dir_fd)
    return problems


@as_root
@pytest.mark.parametrize("is_dir", [False, True])
def test_inode_flags_are_captured_of_what_is_open(tmp_path: Path, is_dir: bool) -> None:
    path = tmp_path / "flagged"
    path.mkdir() if is_dir else path.touch()
    assert captured(path).flags == ()
    with flagged(path, APPEND | NODUMP):
        assert captured(path).flags == ("append", "nodump")
    with flagged(path, IMMUTABLE):
        assert captured(path).flags == ("immutable",)
        assert captured(path, opened=False).flags == ()


def test_a_file_system_without_flags_has_none() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)
    assert inode_flags(fd) == ()
    os.close(fd)


@as_root
@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo"])
@pytest.mark.parametrize("opened", [True, False])
def test_attributes_of_every_namespace_are_captured(tmp_path: Path, kind: str, opened: bool) -> None:
    path = tmp_path / "f"
    expected = {b"trusted.t\xc3\xa9st": b"\0\xff", b"security.ibt": b"label"}
    if kind in ("file", "dir"):
        path.touch() if kind == "file" else path.mkdir()
        expected[b"user.empty"] = b""
    elif opened:
        return  # only files and directories are opened
    elif kind == "symlink":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)
    for name, value in expected.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    assert captured(path, opened=opened).xattrs == tuple(sorted(expected.items()))


@as_root
@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo"])
def test_attributes_are_given_back_and_strange_ones_taken_away(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "f"
    {
        "file": path.touch,
        "dir": path.mkdir,
        "symlink": lambda: path.symlink_to("nowhere"),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    os.setxattr(path, b"trusted.strange", b"x", follow_symlinks=False)
    os.setxattr(path, b"security.label", b"the system's", follow_symlinks=False)
    acl = Acl("user::rw-,user:7:r--,group::r--,mask::r--,other::---") if kind != "symlink" else None
    entry = Entry(
        path=b"f",
        type=kind,
        mode=0o640,
        mtime_ns=5,
        target=b"nowhere" if kind == "symlink" else None,
        xattrs=((b"security.own", b"own"), (b"trusted.own", b"\0\1")),
        acl=acl,
    )
    assert apply(path, entry) == []
    now = captured(path, opened=False)
    assert now.xattrs == ((b"security.label", b"the system's"), *entry.xattrs)
    assert now.acl == acl
    assert now.mtime_ns == 5
    if kind != "symlink":
        assert now.mode == 0o640


def test_an_acl_that_a_directory_passes_on_is_not_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    given = Acl(default="user::rwx,user:7:rwx,group::r-x,mask::rwx,other::r-x")
    assert apply(tmp_path, Entry(path=b".", type="dir", mode=0o755, acl=given)) == []
    (tmp_path / "f").touch()
    assert captured(tmp_path / "f").acl is not None
    assert apply(tmp_path / "f", Entry(path=b"f", type="file", mode=0o640)) == []
    now = captured(tmp_path / "f")
    assert (now.acl, now.mode) == (None, 0o640)


def test_a_file_that_its_owner_may_not_write_gets_attributes_too(tmp_path: Path) -> None:
    (tmp_path / "f").touch(mode=0o400)
    (tmp_path / "f").chmod(0o400)
    if os.geteuid() == 0:
        os.chown(tmp_path / "f", 65534, 65534)
        tmp_path.chmod(0o755)
    entry = Entry(path=b"f", type="file", mode=0o444, xattrs=((b"user.own", b"own"),))
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        problems = Problems()
        MetadataApplier(on_problem=problems).apply_to_fd(fd, entry)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        os.close(fd)
    assert problems == []
    assert captured(tmp_path / "f").xattrs == entry.xattrs
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o444


def test_what_cannot_be_given_is_told_by_kind(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    entry = Entry(
        path=b"f",
        type="file",
        mode=0o600,
        mtime_ns=7,
        xattrs=((b"no-namespace", b"x"), (b"user.good", b"y")),
        acl=Acl("nonsense"),
    )
    assert apply(tmp_path / "f", entry) == [("acl", b"f"), ("xattr", b"f")]
    now = captured(tmp_path / "f")
    assert (now.xattrs, now.mode, now.mtime_ns) == (((b"user.good", b"y"),), 0o600, 7)
