"""A source that changes or fails while it is read: reported, never stored as good, and tried again next time.

Where the moment matters, a real call of the system is made to happen after a real change: the change is done
when that call is about to be made. Nothing of the package is replaced.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.command import WITHOUT_OVERRIDE, run_ibt
from support.trees import assert_same_tree

import incremental_backups_tools
from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.chain.look import iter_entries, list_backups
from incremental_backups_tools.cli import main
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN
from incremental_backups_tools.tree.reading import CHUNK_LEN, MAX_ATTEMPTS

OLD, NEW = b"the old content\n" * 500, b"the new content\n" * 500


@pytest.fixture
def victim(source: Path, repository: Path) -> Path:
    """A file of a backed-up tree that has changed since, so that the next backup must read it."""
    (source / "a-first").write_bytes(b"a neighbour")
    (source / "victim").write_bytes(OLD)
    (source / "z-last").write_bytes(b"another neighbour")
    assert not full_backup(source, repository).problems
    (source / "victim").write_bytes(NEW)
    return source / "victim"


def when_opened(monkeypatch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    """Do *action* once, right before *name* is opened relative to its directory."""
    real = os.open
    pending = [action]

    def hooked(path, flags, mode=0o777, *, dir_fd=None):
        if dir_fd is not None and path == os.fsencode(name) and pending:
            pending.pop()()
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", hooked)


def when_read(monkeypatch: pytest.MonkeyPatch, victim: Path, action: Callable[[int], object]) -> None:
    """Do *action*, given how often that was before, right after a piece of *victim* was read."""
    real = os.read
    inode = victim.stat().st_ino
    count = 0

    def hooked(fd: int, length: int) -> bytes:
        nonlocal count
        data = real(fd, length)
        if data and os.fstat(fd).st_ino == inode:
            action(count)
            count += 1
        return data

    monkeypatch.setattr(os, "read", hooked)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def restored(repository: Path, tmp_path: Path) -> Path:
    """The newest backup, restored."""
    dest = tmp_path / f"restored-{time.monotonic_ns()}"
    assert not restore_backup("source", dest, repository=repository).problems
    return dest


def be_a_socket(path: Path) -> None:
    """A socket with the name *path*, which may be longer than the address of one."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


BECOMES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "symlink": lambda path: path.symlink_to("z-last"),
    "socket": be_a_socket,
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
}


@pytest.mark.parametrize("kind", BECOMES)
def test_a_file_that_becomes_something_else_is_reported_and_its_old_version_kept(
    tmp_path: Path,
    repository: Path,
    victim: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    def change() -> None:
        victim.unlink()
        BECOMES[kind](victim)

    when_opened(monkeypatch, "victim", change)
    with within(30):
        # In one thread nothing is read ahead, so that the moment can be hit.
        status = main(["backup", "-r", str(repository), "--json", "--threads", "1", str(victim.parent)])
    monkeypatch.undo()

    assert status == 3
    document = json.loads(capfd.readouterr().out)
    expected = "vanished before it was read" if kind == "nothing" else "is no regular file any more"
    assert document["problems"] == [{"path": "victim", "message": expected}]
    (problem,) = list_backups(repository).headers[-1].problems
    assert (problem.path, problem.message) == ("victim", expected)
    assert (restored(repository, tmp_path) / "victim").read_bytes() == OLD

    if victim.is_dir():
        victim.rmdir()
    elif os.path.lexists(victim):
        victim.unlink()
    victim.write_bytes(NEW)
    assert not incremental_backup(victim.parent, repository).problems
    assert_same_tree(victim.parent, restored(repository, tmp_path))


def test_a_new_file_that_vanishes_is_no_part_of_the_backup(
    tmp_path: Path, source: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "new").write_bytes(NEW)
    # Too long to be read ahead, so that the moment can be hit.
    os.truncate(source / "new", AHEAD_FILE_LEN + 1)
    when_opened(monkeypatch, "new", (source / "new").unlink)

    report = full_backup(source, repository)

    assert [problem.path for problem in report.problems] == [b"new"]
    assert os.listdir(restored(repository, tmp_path)) == []


@pytest.mark.parametrize(
    "size", [100_000, 3_000_000]
)  # kept in memory until it is whole, or written as it is read
@pytest.mark.parametrize("kind", ["grows", "shrinks", "changes", "is replaced"])
def test_a_file_that_changes_once_is_read_again(
    tmp_path: Path, source: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    victim = source / "victim"
    victim.write_bytes(os.urandom(size))

    def change(count: int) -> None:
        if count:
            return
        if kind == "grows":
            with victim.open("ab") as file:
                file.write(b"more")
        elif kind == "shrinks":
            os.truncate(victim, 50_000)
        elif kind == "changes":
            with victim.open("r+b") as file:
                file.write(b"other")
        else:
            (source / "other").write_bytes(os.urandom(size))
            (source / "other").rename(victim)

    when_read(monkeypatch, victim, change)
    report = full_backup(source, repository)
    monkeypatch.undo()

    assert not report.problems
    assert (restored(repository, tmp_path) / "victim").read_bytes() == victim.read_bytes()
    assert not verify(repository, read_data=True).faults


def test_a_file_that_always_changes_is_stored_and_marked(
    tmp_path: Path, victim: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(count: int) -> None:
        os.utime(victim, ns=(count, count))

    when_read(monkeypatch, victim, touch)
    report = incremental_backup(victim.parent, repository, threads=1)
    monkeypatch.undo()

    assert [(problem.path, problem.message) for problem in report.problems] == [
        (b"victim", "changed while it was read; stored as the last read found it")
    ]
    unstable = [item.path for item in iter_entries("source", repository=repository) if item.entry.unstable]
    assert unstable == [b"victim"]
    assert (restored(repository, tmp_path) / "victim").read_bytes() == NEW

    again = incremental_backup(victim.parent, repository)
    assert not again.problems
    assert again.bytes.read >= len(NEW)
    assert not any(item.entry.unstable for item in iter_entries("source", repository=repository))


def test_a_file_that_shrinks_every_time_is_given_up(
    tmp_path: Path, victim: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim.write_bytes(os.urandom(40 * CHUNK_LEN))
    when_read(monkeypatch, victim, lambda count: os.truncate(victim, victim.stat().st_size - CHUNK_LEN))

    report = incremental_backup(victim.parent, repository)
    monkeypatch.undo()

    (problem,) = report.problems
    assert (problem.path, problem.message) == (b"victim", f"shrank while it was read, {MAX_ATTEMPTS} times")
    assert (restored(repository, tmp_path) / "victim").read_bytes() == OLD
    assert not incremental_backup(victim.parent, repository).problems
    assert_same_tree(victim.parent, restored(repository, tmp_path))


@pytest.mark.parametrize("kind", ["nothing", "file", "symlink", "fifo"])
def test_a_directory_that_becomes_something_else_keeps_what_was_known_of_it(
    tmp_path: Path, source: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (source / "a" / "inner").mkdir(parents=True)
    (source / "a" / "inner" / "file").write_bytes(OLD)
    for number in range(9):
        (source / f"b{number}").write_bytes(b"b")
    full_backup(source, repository)

    def change() -> None:
        shutil.rmtree(source / "a")
        if kind == "file":
            (source / "a").write_bytes(b"now a file")
        elif kind == "symlink":
            (source / "a").symlink_to(tmp_path)
        elif kind == "fifo":
            os.mkfifo(source / "a")

    when_opened(monkeypatch, "a", change)
    with within(30):
        report = incremental_backup(source, repository)
    monkeypatch.undo()

    assert [problem.path for problem in report.problems] == [b"a"]
    assert report.counts.deleted == 0
    assert (restored(repository, tmp_path) / "a" / "inner" / "file").read_bytes() == OLD
    assert not incremental_backup(source, repository).problems
    assert_same_tree(source, restored(repository, tmp_path))


def test_what_may_not_be_read_is_named_and_kept(tmp_path: Path, source: Path, repository: Path) -> None:
    (source / "file").write_bytes(OLD)
    (source / "directory" / "inner").mkdir(parents=True)
    (source / "directory" / "inner" / "file").write_bytes(OLD)
    run_ibt("backup", "-r", repository, source)
    (source / "file").write_bytes(NEW)
    (source / "file").chmod(0)
    (source / "directory").chmod(0)

    ran = run_ibt("backup", "-r", repository, "--json", source, status=3, prefix=WITHOUT_OVERRIDE)

    assert {(problem["path"], problem["message"]) for problem in ran.document["problems"]} == {
        ("file", "cannot open: Permission denied"),
        ("directory", "cannot open the directory: Permission denied"),
    }
    dest = restored(repository, tmp_path)
    assert (dest / "file").read_bytes() == OLD
    assert (dest / "directory" / "inner" / "file").read_bytes() == OLD
    (source / "file").chmod(0o644)
    (source / "directory").chmod(0o755)
    run_ibt("backup", "-r", repository, source)
    assert_same_tree(source, restored(repository, tmp_path))


FAILING_DISK = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether fd is the inode that FAILING_INODE names. */
static int fails(int fd)
{
    const char *inode = getenv("FAILING_INODE");
    struct stat info;
    return inode && fstat(fd, &info) == 0 && info.st_ino == strtoull(inode, NULL, 10);
}

ssize_t read(int fd, void *buffer, size_t length)
{
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    if (fails(fd) && lseek(fd, 0, SEEK_CUR) >= strtoll(getenv("FAILING_OFFSET"), NULL, 10)) {
        errno = EIO;
        return -1;
    }
    return real(fd, buffer, length);
}

struct dirent64 *readdir64(DIR *directory)
{
    struct dirent64 *(*real)(DIR *) = dlsym(RTLD_NEXT, "readdir64");
    if (fails(dirfd(directory))) {
        errno = EIO;
        return NULL;
    }
    return real(directory);
}

struct dirent *readdir(DIR *directory)
{
    return (struct dirent *)readdir64(directory);
}
"""


@pytest.fixture(scope="session")
def failing_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes the system's calls fail as those of a disk with a bad sector do."""
    directory = tmp_path_factory.mktemp("failing-disk")
    (directory / "disk.c").write_text(FAILING_DISK)
    command = ["gcc", "-shared", "-fPIC", "-O1", "-o", directory / "disk.so", directory / "disk.c", "-ldl"]
    subprocess.run(command, check=True)
    return directory / "disk.so"


@pytest.mark.parametrize("offset", [0, CHUNK_LEN, 5 * CHUNK_LEN])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_bad_sector_in_mid_file_stores_nothing_of_it(
    tmp_path: Path, source: Path, repository: Path, failing_disk: Path, offset: int, is_new: bool
) -> None:
    victim = source / "victim"
    (source / "good").write_bytes(b"good")
    if not is_new:
        victim.write_bytes(OLD)
    run_ibt("backup", "-r", repository, source)
    victim.write_bytes(os.urandom(6 * CHUNK_LEN))
    (source / "zz-after").write_bytes(b"after it")

    failing = {
        "LD_PRELOAD": str(failing_disk),
        "FAILING_INODE": str(victim.stat().st_ino),
        "FAILING_OFFSET": str(offset),
    }
    ran = run_ibt("backup", "-r", repository, "--json", source, status=3, env=failing)

    assert ran.document["problems"] == [{"path": "victim", "message": "cannot read: Input/output error"}]
    dest = restored(repository, tmp_path)
    assert (dest / "zz-after").read_bytes() == b"after it"
    if is_new:
        assert not (dest / "victim").exists()
    else:
        assert (dest / "victim").read_bytes() == OLD
    assert not verify(repository, read_data=True).faults
    run_ibt("backup", "-r", repository, source)
    assert_same_tree(source, restored(repository, tmp_path))


def test_a_directory_that_cannot_be_listed_loses_nothing(
    tmp_path: Path, source: Path, repository: Path, failing_disk: Path
) -> None:
    (source / "directory" / "inner").mkdir(parents=True)
    (source / "directory" / "inner" / "file").write_bytes(OLD)
    (source / "other").write_bytes(b"other")
    run_ibt("backup", "-r", repository, source)
    failing = {
        "LD_PRELOAD": str(failing_disk),
        "FAILING_INODE": str((source / "directory").stat().st_ino),
        "FAILING_OFFSET": "0",
    }

    ran = run_ibt("backup", "-r", repository, "--json", source, status=3, env=failing)

    (problem,) = ran.document["problems"]
    assert problem == {"path": "directory", "message": "cannot list the directory: Input/output error"}
    assert ran.document["counts"]["deleted"] == 0
    assert_same_tree(source, restored(repository, tmp_path))


CHURN = """
import os, random, sys, time
top = sys.argv[1]
rng = random.Random(1)
paths = [os.path.join(top, f"n{number}") for number in range(12)]
print("going", flush=True)
while True:
    path, other = rng.sample(paths, 2)
    try:
        what = rng.randrange(9)
        if what < 3:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK), "wb") as file:
                file.write(os.urandom(rng.choice([10, 5000, 400_000])))
                file.truncate()
        elif what == 3:
            os.unlink(path)
        elif what == 4:
            os.mkdir(path)
        elif what == 5:
            os.rename(path, other)
        elif what == 6:
            os.mkfifo(path)
        elif what == 7:
            os.symlink("..", path)
        else:
            os.rmdir(path)
    except OSError:
        pass
"""


def test_a_tree_in_turmoil_never_stops_a_backup_or_spoils_one(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "churn").mkdir()
    for name in ("before", "zz-behind"):
        (source / name).write_bytes(os.urandom(50_000))
    churn = subprocess.Popen([sys.executable, "-c", CHURN, source / "churn"], stdout=subprocess.PIPE)
    assert churn.stdout is not None
    with churn.stdout:
        assert churn.stdout.readline()
        try:
            with within(120):
                reports = [incremental_backup(source, repository, max_deleted=1.0) for _ in range(12)]
        finally:
            churn.kill()
            churn.wait()

    for report in reports:
        assert all(problem.path.startswith(b"churn/") for problem in report.problems), report.problems
        dest = tmp_path / report.backup_date
        assert not restore_backup("source", dest, repository=repository, at=report.backup_date).problems
        for name in ("before", "zz-behind"):
            assert (dest / name).read_bytes() == (source / name).read_bytes()
    assert not verify(repository, read_data=True).faults
    assert not incremental_backup(source, repository, max_deleted=1.0).problems
    assert_same_tree(source, restored(repository, tmp_path))


def test_no_file_is_ever_mapped() -> None:
    """A file that shrinks under a memory map kills the process."""
    package = Path(incremental_backups_tools.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            )
            assert "mmap" not in names and getattr(node, "attr", "") not in ("mmap", "update_mmap"), path
