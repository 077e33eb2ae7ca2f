"""What is restored is what was there: holes, attributes, flags, depth, owners; and nothing outside is touched."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.command import WITHOUT_OVERRIDE, run_ibt
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import (
    DiffData,
    DiffIndex,
    DirIndex,
    apply_diff,
    full_backup,
    incremental_backup,
    restore_backup,
    verify,
)
from incremental_backups_tools.chain.look import iter_entries
from incremental_backups_tools.chain.salvage import salvage
from incremental_backups_tools.tree.destination import Destination

MIB, GIB = 1 << 20, 1 << 30
NOBODY = 65534
pytestmark = pytest.mark.usefixtures("root")


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def make_sparse(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    for offset, piece in data:
        write_at(path, offset, piece)


def stored_len(path: Path) -> int:
    return path.stat().st_blocks * 512


def sparse_of(repository: Path) -> dict[bytes, object]:
    return {item.path: item.entry.sparse for item in iter_entries("source", repository=repository)}


# --- holes ---------------------------------------------------------------------------------------------------


def test_a_file_of_five_gibibytes_with_one_of_data_costs_that_one(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    path = source / "disk"
    make_sparse(path, 5 * GIB, (GIB, os.urandom(MIB // 2)), (4 * GIB, os.urandom(MIB // 2)))
    full = full_backup(source, repository)

    assert full.bytes.read == MIB
    assert full.total < MIB + 60_000
    assert full.bytes.total == 5 * GIB
    write_at(path, 2 * GIB, os.urandom(100_000))
    changed = incremental_backup(source, repository)
    assert [file.role for file in changed.files if file.role in ("created", "updated")] == ["updated"]
    assert changed.bytes.read < MIB + 200_000
    assert changed.total < 120_000

    for report in (full, changed):
        dest = tmp_path / report.backup_date
        assert not restore_backup("source", dest, repository=repository, at=report.backup_date).problems
        assert (dest / "disk").stat().st_size == 5 * GIB
        assert stored_len(dest / "disk") <= MIB + (report is changed) * 110_000
    with path.open("rb") as one, (dest / "disk").open("rb") as other:
        for offset in (0, GIB - 4096, GIB, 2 * GIB - 4096, 4 * GIB, 5 * GIB - 4096):
            one.seek(offset)
            other.seek(offset)
            assert one.read(MIB) == other.read(MIB)


@pytest.fixture
def sparse_tree(source: Path) -> Path:
    """Files with holes of every shape."""
    make_sparse(source / "front", 3 * MIB, (2 * MIB, os.urandom(MIB)))
    make_sparse(source / "end", 8 * MIB + 5, (0, os.urandom(300_000)))
    make_sparse(source / "hole", 2 * MIB)
    make_sparse(source / "large", 64 * MIB, *((n * 4 * MIB + 12_345, os.urandom(200_000)) for n in range(16)))
    (source / "dense").write_bytes(bytes(MIB) + os.urandom(MIB))
    os.sync()
    return source


def test_holes_stay_holes_through_a_chain(tmp_path: Path, sparse_tree: Path, repository: Path) -> None:
    def nothing(root: Path) -> None:
        """As it is."""

    def grow(root: Path) -> None:
        os.truncate(root / "end", 20 * MIB)
        write_at(root / "hole", MIB, b"no hole any more" * 1000)

    def edit(root: Path) -> None:
        write_at(root / "large", 2 * MIB, os.urandom(50_000))
        write_at(root / "front", 0, b"begins")

    def fill(root: Path) -> None:
        (root / "hole").write_bytes(os.urandom(2 * MIB))
        os.truncate(root / "large", 30 * MIB)

    def empty(root: Path) -> None:
        make_sparse(root / "dense", 5 * MIB)
        make_sparse(root / "end", MIB, (4096, b"little"))

    points: dict[str, tuple[dict[bytes, tuple[object, ...]], dict[str, int]]] = {}
    for change in (nothing, grow, edit, fill, empty):
        change(sparse_tree)
        report = incremental_backup(sparse_tree, repository)
        blocks = {path.name: stored_len(path) for path in sparse_tree.iterdir()}
        points[report.backup_date] = fingerprint(sparse_tree), blocks

    for backup_id, (expected, blocks) in points.items():
        dest = tmp_path / backup_id
        assert not restore_backup("source", dest, repository=repository, at=backup_id).problems
        assert_same_tree(expected, dest)
        os.sync()
        assert {path.name: stored_len(path) for path in dest.iterdir()} == blocks
    assert not verify(repository, read_data=True).faults


def test_digging_a_hole_into_zeros_is_a_change_of_metadata_and_stores_nothing(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "zeros").write_bytes(os.urandom(4096) + bytes(4 * MIB))
    full_backup(source, repository)
    info = (source / "zeros").stat()
    subprocess.run(["fallocate", "--dig-holes", source / "zeros"], check=True)
    os.utime(source / "zeros", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert stored_len(source / "zeros") < MIB

    report = incremental_backup(source, repository)

    assert (report.counts.metadata, report.counts.updated) == (1, 0)
    assert {file.role for file in report.files} <= {"state", "replay"}
    assert sparse_of(repository)[b"zeros"] == ((0, 4096), (4 * MIB + 4096, 0))
    restore_backup("source", tmp_path / "out", repository=repository)
    assert stored_len(tmp_path / "out" / "zeros") == 4096
    assert_same_tree(source, tmp_path / "out")


def test_a_delta_that_costs_more_than_the_data_of_a_sparse_file_is_not_kept(
    source: Path, repository: Path
) -> None:
    make_sparse(source / "disk", 200 * MIB, (100 * MIB, os.urandom(MIB)))
    full_backup(source, repository)
    write_at(source / "disk", 100 * MIB, os.urandom(MIB))
    report = incremental_backup(source, repository)
    assert {"created", "updated"} & {file.role for file in report.files} == {"created"}
    assert report.total < MIB + 60_000


def test_without_a_state_sparse_members_are_salvaged_by_their_own_maps(
    tmp_path: Path, sparse_tree: Path, repository: Path
) -> None:
    full_backup(sparse_tree, repository)
    (state,) = (repository / "source").glob("*.state.*")
    state.unlink()
    salvage(tmp_path / "out", repository=repository)
    for path in sparse_tree.iterdir():
        found = tmp_path / "out" / "source" / path.name
        assert found.read_bytes() == path.read_bytes(), path
        assert stored_len(found) == stored_len(path)


def test_a_link_of_a_sparse_file_restored_alone_is_sparse(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    make_sparse(source / "a", 50 * MIB, (MIB, b"data"))
    os.link(source / "a", source / "b")
    full_backup(source, repository)
    restore_backup("source", tmp_path / "out", repository=repository, paths=["b"])
    assert stored_len(tmp_path / "out" / "b") < MIB
    assert (tmp_path / "out" / "b").read_bytes() == (source / "a").read_bytes()


def test_the_building_blocks_keep_holes_too(tmp_path: Path, sparse_tree: Path) -> None:
    old = DirIndex(sparse_tree).data()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", "--sparse=always", sparse_tree, copy], check=True)
    write_at(sparse_tree / "large", 2 * MIB, b"edit")
    make_sparse(sparse_tree / "new", 40 * MIB, (MIB, b"data"))
    diff = DiffIndex(DirIndex(sparse_tree).data(), old).compute()
    archive = DiffData(diff).create_archive(tmp_path / "diff.tar.zst")

    apply_diff(copy, diff, archive)

    assert_same_tree(sparse_tree, copy)
    for name in ("large", "new"):
        assert stored_len(copy / name) <= stored_len(sparse_tree / name) + MIB


# --- attributes, flags, owners -------------------------------------------------------------------------------


def build_attributes(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "file").write_text("content")
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    for name in ("dir", "file", "link", "fifo"):
        os.setxattr(root / name, b"trusted.ibt", b"\0binary\xff", follow_symlinks=False)
        os.setxattr(root / name, b"security.ibt", b"label", follow_symlinks=False)
    for name in ("dir", "file"):
        os.setxattr(root / name, b"user.n%d\xff", b"x" * 2000)
        os.setxattr(root / name, b"user.empty", b"")
    # A capability: cap_net_raw, permitted and effective (linux/capability.h, version 2).
    os.setxattr(
        root / "file", b"security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    )
    for name in ("dir", "file", "fifo"):
        subprocess.run(["setfacl", "-m", "u:1234:rwx,g:4321:r--", root / name], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", root / "dir"], check=True)
    (root / "dir" / "inherits").write_text("an ACL of its own")
    (root / "plain").write_text("none")


def test_attributes_and_acls_come_back_on_everything_that_has_them(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    build_attributes(source)
    full_backup(source, repository)
    first = fingerprint(source)
    os.setxattr(source / "file", b"user.later", b"l")
    os.removexattr(source / "dir", b"user.empty")
    subprocess.run(["setfacl", "-b", source / "dir"], check=True)
    report = incremental_backup(source, repository)
    assert (report.counts.metadata, report.counts.updated, report.counts.created) == (2, 0, 0)
    assert "sigvault" not in [file.role for file in report.files]

    dest = tmp_path / "out"
    restored = restore_backup("source", dest, repository=repository)
    assert not restored.warnings
    assert_same_tree(source, dest)
    # Over what is there: attributes that the older point does not have go.
    older = restore_backup("source", dest, repository=repository, at=report.parent)
    assert not older.warnings
    assert_same_tree(first, dest)


def test_a_default_acl_of_the_destination_gives_nobody_more_rights(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "dir").mkdir()
    (source / "dir" / "secret").write_text("secret")
    (source / "dir" / "secret").chmod(0o640)
    os.mkfifo(source / "fifo", 0o600)
    full_backup(source, repository)
    dest = tmp_path / "out"
    dest.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1234:rwx", dest], check=True)
    assert not restore_backup("source", dest, repository=repository).warnings
    assert_same_tree(source, dest)


def test_inode_flags_are_recorded_and_not_restored(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "dir").mkdir()
    (source / "file").write_text("x")
    (source / "log").write_text("x")
    flags = {"dir": "+i", "file": "+id", "log": "+a"}
    try:
        for name, flag in flags.items():
            subprocess.run(["chattr", flag, source / name], check=True)
        full_backup(source, repository)
    finally:
        for name in flags:
            subprocess.run(["chattr", "-iad", source / name], check=True)
    found = {item.path: item.entry.flags for item in iter_entries("source", repository=repository)}
    assert found == {b".": (), b"dir": ("immutable",), b"file": ("immutable", "nodump"), b"log": ("append",)}
    report = restore_backup("source", tmp_path / "out", repository=repository)
    assert not report.problems
    (tmp_path / "out" / "log").unlink()
    assert incremental_backup(source, repository).counts.metadata == 3


def test_what_a_file_system_cannot_hold_is_one_warning_for_each_kind(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    for name in ("a", "b", "c"):
        (source / name).write_text(name)
        os.setxattr(source / name, b"user.x", b"y")
        subprocess.run(["setfacl", "-m", "u:1234:rwx", source / name], check=True)
    full_backup(source, repository)

    dest = tmp_path / "mnt"
    dest.mkdir()
    with mounted_ramfs(dest):
        report = restore_backup("source", dest, repository=repository)
        assert {path.name: path.read_text() for path in dest.iterdir()} == {"a": "a", "b": "b", "c": "c"}

    assert not report.problems
    assert sorted(warning.partition(" ")[0] for warning in report.warnings) == ["acl", "xattr"]
    for warning in report.warnings:
        assert "for 3 names; the first is a: " in warning


@contextmanager
def mounted_ramfs(path: Path) -> Iterator[None]:
    """A file system that has neither attributes nor ACLs."""
    subprocess.run(["mount", "-t", "ramfs", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def removed_by_rm(tmp_path: Path) -> Iterator[None]:
    """The test's directory is emptied by ``rm``: Python's own way does not go so deep."""
    yield
    for path in tmp_path.iterdir():
        subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter: pytest's own is root's alone."""
    path = Path(tempfile.mkdtemp(prefix="ibt-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def as_nobody() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_an_ordinary_user_gets_neither_owners_nor_setuid_nor_devices(
    source: Path, repository: Path, public: Path
) -> None:
    (source / "setuid").write_text("x")
    (source / "setuid").chmod(0o6755)
    (source / "own").write_text("y")
    os.chown(source / "own", NOBODY, NOBODY)
    (source / "own").chmod(0o6755)
    (source / "sealed").mkdir()
    (source / "sealed" / "file").write_text("z")
    (source / "sealed").chmod(0o555)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.chown(source, NOBODY, NOBODY)
    full_backup(source, public / "repository")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", public / "repository"], check=True)
    dest = public / "dest"
    dest.mkdir()
    os.chown(dest, NOBODY, NOBODY)

    for _ in range(2):  # the second time over what the first has left
        with as_nobody():
            report = restore_backup("source", dest, repository=public / "repository", overwrite="always")
        assert [problem.path for problem in report.problems] == [b"null"]
        assert not report.warnings
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in dest.iterdir()}
        assert modes == {"setuid": 0o755, "own": 0o6755, "sealed": 0o555}
        assert {path.stat().st_uid for path in dest.rglob("*")} == {NOBODY}
        assert (dest / "sealed" / "file").read_text() == "z"


def test_what_an_ordinary_user_has_sealed_gives_way_to_a_restore(
    source: Path, repository: Path, public: Path
) -> None:
    (source / "file").write_text("from the backup")
    (source / "dir").mkdir()
    (source / "dir" / "inner").write_text("from the backup")
    (source / "becomes-a-file").write_text("from the backup")
    full_backup(source, public / "repository")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", public / "repository"], check=True)
    dest = public / "dest"
    (dest / "dir").mkdir(parents=True)
    (dest / "file").write_text("read-only")
    (dest / "dir" / "inner").write_text("read-only")
    (dest / "becomes-a-file" / "sealed").mkdir(parents=True)
    (dest / "becomes-a-file" / "sealed" / "inner").write_text("read-only")
    for path in sorted(dest.rglob("*"), reverse=True):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o000 if path.name == "sealed" else 0o444 if path.is_file() else 0o500)
    os.chown(dest, NOBODY, NOBODY)

    with as_nobody():
        report = restore_backup("source", dest, repository=public / "repository", delete=True)

    assert not report.problems
    assert {path.name for path in dest.rglob("*") if path.is_file()} == {"file", "inner", "becomes-a-file"}
    assert all(path.read_text() == "from the backup" for path in dest.rglob("*") if path.is_file())


# --- depth ---------------------------------------------------------------------------------------------------


def build_deep(root: Path, depth: int) -> None:
    """One directory in the other, beyond any path that a call takes, with files on the way."""
    fd = os.open(root, os.O_RDONLY)
    for level in range(depth):
        if level % 100 == 0:
            file = os.open(b"zz-file", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fd)
            os.write(file, b"%d" % level)
            os.close(file)
        name = b"directory-%d" % level
        os.mkdir(name, 0o750, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def entries_below(root: Path) -> list[tuple[bytes, int, int, int]]:
    """Path, mode, mtime and size of everything, found without the package."""
    found = []
    fd = os.open(root, os.O_RDONLY)
    path = b""
    while True:
        inner = b""
        for name in sorted(os.listdir(fd)):
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            found.append((path + os.fsencode(name), info.st_mode, info.st_mtime_ns, size))
            if stat.S_ISDIR(info.st_mode):
                inner = os.fsencode(name)
        if not inner:
            os.close(fd)
            return found
        below = os.open(inner, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        path += inner + b"/"


def few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def test_a_tree_deeper_than_descriptors_and_paths_go(
    tmp_path: Path, source: Path, repository: Path, removed_by_rm: None
) -> None:
    build_deep(source, 3000)
    expected = entries_below(source)
    assert len(expected[-1][0]) > 8 * 4096
    run_ibt("backup", "-r", repository, source, preexec_fn=few_descriptors)
    again = run_ibt("backup", "-r", repository, "--json", source, preexec_fn=few_descriptors)
    assert again.document["counts"]["created"] == again.document["counts"]["deleted"] == 0

    for _ in range(2):
        run_ibt("restore", "-r", repository, "source", tmp_path / "out", preexec_fn=few_descriptors)
        assert entries_below(tmp_path / "out") == expected
    with Destination(tmp_path) as destination:
        assert destination.remove(b"out")
        assert destination.remove(b"source")
    assert not (tmp_path / "out").exists()


def test_below_a_directory_that_is_moved_away_nothing_is_taken_for_deleted(
    tmp_path: Path, source: Path, repository: Path, no_open_descriptors: None
) -> None:
    deep = source
    for level in range(60):
        deep = deep / f"d{level}"
        deep.mkdir()
        (deep / "zz").write_text(str(level))
    full_backup(source, repository)
    outer = source / "d0" / "d1"

    def move(path: bytes, size: int) -> None:
        if path.endswith(b"d59/zz"):
            (outer / "d2").rename(tmp_path / "inner")
            outer.rename(tmp_path / "outer")

    (deep / "zz").write_text("so that it is read")
    report = incremental_backup(source, repository, on_progress=move)

    assert [problem.path for problem in report.problems] == [b"d0/d1"]
    assert "was moved away" in report.problems[0].message
    assert report.counts.deleted == 0
    restore_backup("source", tmp_path / "out", repository=repository)
    assert (tmp_path / "out" / "d0" / "d1" / "zz").read_text() == "1"
    gone = incremental_backup(source, repository, max_deleted=1.0)
    assert not gone.problems
    assert gone.counts.deleted == 2 * 59


# --- restoring over what is there ----------------------------------------------------------------------------


def file_for_directory(dest: Path) -> None:
    shutil.rmtree(dest / "dir")
    (dest / "dir").write_text("a file where the directory was")


def link_for_directory(dest: Path) -> None:
    shutil.rmtree(dest / "dir")
    (dest / "dir").symlink_to(dest.parent)


def directory_for_file(dest: Path) -> None:
    (dest / "file").unlink()
    (dest / "file" / "full").mkdir(parents=True)
    (dest / "file" / "full" / "inner").write_text("inner")


def fifo_for_file(dest: Path) -> None:
    (dest / "file").unlink()
    os.mkfifo(dest / "file")


def read_only(dest: Path) -> None:
    (dest / "file").write_text("changed")
    (dest / "file").chmod(0o400)
    (dest / "dir" / "file").write_text("changed")
    (dest / "dir").chmod(0o500)


def file_for_link(dest: Path) -> None:
    (dest / "link").unlink()
    (dest / "link").write_text("a file where the link was")


@pytest.mark.parametrize(
    "change",
    [file_for_directory, link_for_directory, directory_for_file, fifo_for_file, read_only, file_for_link],
)
def test_whatever_stands_in_its_place_gives_way(
    tmp_path: Path, source: Path, repository: Path, change: Callable[[Path], None]
) -> None:
    (source / "file").write_text("file")
    (source / "dir").mkdir()
    (source / "dir" / "file").write_text("inner")
    (source / "link").symlink_to("dir")
    full_backup(source, repository)
    dest = tmp_path / "out"
    restore_backup("source", dest, repository=repository)
    beside = fingerprint(source)
    change(dest)

    report = run_ibt(
        "restore", "-r", repository, "--delete", "--json", "source", dest, prefix=WITHOUT_OVERRIDE
    )

    assert report.document["problems"] == []
    assert_same_tree(source, dest)
    assert_same_tree(beside, source)


def test_without_delete_a_full_directory_does_not_give_way_and_the_rest_is_restored(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "file").write_text("file")
    (source / "other").write_text("other")
    full_backup(source, repository)
    dest = tmp_path / "out"
    restore_backup("source", dest, repository=repository)
    directory_for_file(dest)
    (dest / "other").write_text("changed")

    ran = run_ibt("restore", "-r", repository, "--json", "source", dest, status=3)

    assert [problem["path"] for problem in ran.document["problems"]] == ["file"]
    assert (dest / "file" / "full" / "inner").read_text() == "inner"
    assert (dest / "other").read_text() == "other"


SWAPPER = """
import os, sys
dest, outside = sys.argv[1:]
names = [os.path.join(dest, name) for name in ("d1", "d2", "d2/e")]
print("going", flush=True)
while True:
    for name in names:
        aside = os.path.join(dest, "aside")
        try:
            os.rename(name, aside)
            os.symlink(outside, name)
            for _ in range(30):
                os.lstat(name)
            os.unlink(name)
            os.rename(aside, name)
        except OSError:
            for clean in (lambda: os.unlink(name), lambda: os.rename(aside, name)):
                try:
                    clean()
                except OSError:
                    pass
"""


def test_nobody_who_swaps_directories_for_links_gets_anything_written_outside(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    outside = tmp_path / "outside"
    for root in (source / "d1", source / "d2", source / "d2" / "e", outside):
        root.mkdir()
        for number in range(20):
            (root / f"file-{number}").write_text(f"{root.name} {number}")
            (root / f"file-{number}").chmod(0o600)
        os.mkfifo(root / "fifo")
        (root / "sub").mkdir()
        (root / "sub" / "inner").write_text("inner")
    (outside / "e").mkdir()
    for path in outside.rglob("*"):
        os.utime(path, ns=(1, 1))
    os.utime(outside, ns=(1, 1))
    before = fingerprint(outside)
    full_backup(source, repository)
    for path in source.rglob("*"):
        if path.is_file():
            path.chmod(0o666)
            path.write_text("changed")
    incremental_backup(source, repository)
    first, second = (f"@{item}" for item in sorted(p.name[:23] for p in repository.glob("source/*.state.*")))
    dest = tmp_path / "dest"
    dest.mkdir()

    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, dest, outside], stdout=subprocess.PIPE)
    assert swapper.stdout is not None
    with swapper.stdout:
        assert swapper.stdout.readline()
        try:
            end = time.monotonic() + 8
            runs = met = 0
            while time.monotonic() < end:
                runs += 1
                report = restore_backup(
                    "source",
                    dest,
                    repository=repository,
                    at=(first, second)[runs % 2][1:],
                    overwrite="always",
                    delete=runs % 3 == 0,
                    durable=False,
                )
                met += bool(report.problems)
        finally:
            swapper.kill()
            swapper.wait()

    assert_same_tree(before, outside)
    assert runs > 3
    assert met > 0, "the swapper was never in the way"
    for leftover in ("aside", "d1", "d2"):
        path = dest / leftover
        path.unlink() if path.is_symlink() else shutil.rmtree(path, ignore_errors=True)
    assert not restore_backup("source", dest, repository=repository, delete=True).problems
    assert_same_tree(source, dest)
