"""Faults that are real: system calls that fail or never come back, and what must hold after each of them."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from support.command import PACKAGE_PARENT, PROGRAM, Ran, command_environment, content_of
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.exceptions import RepositoryNotFoundError
from incremental_backups_tools.repository.repository import Repository

Fingerprint = dict[bytes, tuple[object, ...]]

KILL = "signal=KILL"

# The calls that change a file system or bring it to the disk, and those by which a program looks at one.
_CHANGING = frozenset(
    {
        *("write", "pwrite64", "ftruncate", "fallocate", "copy_file_range"),
        *("link", "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "symlinkat"),
        *("mkdir", "mkdirat", "rmdir", "fsync", "fdatasync", "syncfs"),
    }
)
_LOOKING = frozenset({"openat", "getdents64", "read", "pread64", "newfstatat"})
_TRACED = sorted(_CHANGING | _LOOKING)

KEY = "source"
VOLUME_SIZE = 1 << 20
_LOG_LINE = re.compile(r"(?P<pid>\d+) +(?P<call>\w+)\((?P<text>.*)")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<text>.*)")
_VARYING = re.compile(r"[0-9a-f]{16,}|\d+")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of a recorded run, to be found again in the next run of the same.

    Attributes:
        name: the call's.
        number: how many of that name its thread has made by then, itself among them.
        text: as strace shows it.
    """

    name: str
    number: int
    text: str

    @property
    def site(self) -> str:
        """What it has in common with others that the same line of the program makes."""
        return f"{self.name} {_VARYING.sub('N', self.text.partition(' = ')[0])}"

    @property
    def makes_a_file(self) -> bool:
        """Whether it opens a file that was not there."""
        return self.name == "openat" and "O_CREAT" in self.text

    @property
    def changes(self) -> bool:
        """Whether it changes something, or brings it to the disk."""
        return self.name in _CHANGING or self.makes_a_file


@dataclass(frozen=True, slots=True)
class Command:
    """The arguments of a command, and the directory on which its calls matter."""

    arguments: tuple[str | Path, ...]
    below: Path


class Tracer:
    """Runs one command again and again, in places of its own, with the same system calls in the same order.

    Attributes:
        calls: those that it makes below its directory, in order.
    """

    def __init__(self, top: Path, prepare: Callable[[Path], Command]) -> None:
        """Run it twice without a fault.

        Args:
            top: an empty directory.
            prepare: given a path that is not there, makes a place for one run.
        """
        # Compiled modules that nobody else writes: which of them are there decides what the interpreter opens.
        self._bytecode = top / "bytecode"
        warm = self._run(prepare(top / "warm"), log=top / "log", writes_bytecode=True)
        assert warm.status == 0, warm
        command = prepare(top / "recorded")
        ran = self._run(command, log=top / "log")
        assert ran.status == 0, ran
        self.calls = _parse_log(top / "log", command.below)
        assert self.calls, ran

    def run(self, command: Command, call: Call, fault: str, *, log: Path) -> Ran:
        """Run it so that one call meets a fault: ``signal=KILL`` before it, or ``error=EIO`` in its place."""
        ran = self._run(command, log=log, inject=f"{call.name}:{fault}:when={call.number}")
        if fault == KILL:
            assert ran.status == -signal.SIGKILL, ran
        assert _was_hit(log, call, command.below, fault), "the fault did not reach its call"
        return ran

    def run_in_any_thread(self, command: Command, name: str, number: int, fault: str, *, log: Path) -> Ran:
        """Run it so that in each thread the call *name* of that number, if it comes, meets a fault."""
        return self._run(command, log=log, inject=f"{name}:{fault}:when={number}")

    def _run(
        self, command: Command, *, log: Path, inject: str | None = None, writes_bytecode: bool = False
    ) -> Ran:
        # A filter in the kernel makes strace fast; with one, strace 6.1 sends no signals.
        fast = () if inject and ":signal=" in inject else ("--seccomp-bpf",)
        done = subprocess.run(
            [
                *("strace", "-f", *fast, "-y", "-s", "0", "-o", log, "-e", f"trace={','.join(_TRACED)}"),
                *((f"--inject={inject}",) if inject else ()),
                *(*PROGRAM, *command.arguments),
            ],
            env=command_environment(
                PYTHONHASHSEED="0",
                PYTHONPYCACHEPREFIX=str(self._bytecode),
                PYTHONDONTWRITEBYTECODE="" if writes_bytecode else "1",
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def _parse_log(log: Path, below: Path) -> list[Call]:
    counts: dict[tuple[str, str], int] = {}
    calls: dict[tuple[str, int], Call] = {}
    for line in _read_log(log):
        if match := _LOG_LINE.match(line):
            name = match["call"]
            number = counts[match["pid"], name] = counts.get((match["pid"], name), 0) + 1
            if _is_below(match["text"], below):
                calls.setdefault((name, number), Call(name, number, match["text"].replace(str(below), "")))
    return list(calls.values())


def _read_log(log: Path) -> list[str]:
    """Each call in one line, in the order in which they began, also where threads took turns meanwhile."""
    lines: list[str] = []
    begun: dict[str, int] = {}
    for line in log.read_text(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        resumed = _RESUMED.match(rest.lstrip())
        if resumed and pid in begun:
            lines[begun.pop(pid)] += resumed["text"]
            continue
        if line.endswith(_UNFINISHED):
            line = line.removesuffix(_UNFINISHED)
            begun[pid] = len(lines)
        lines.append(line)
    return lines


def _is_below(text: str, directory: Path) -> bool:
    return f"<{directory}>" in text or f"{directory}/" in text or f'"{directory}"' in text


def _was_hit(log: Path, call: Call, below: Path, fault: str) -> bool:
    """Whether the fault reached the call that it was meant for, and not another one."""
    lines = [line for line in _read_log(log) if f" {call.name}(" in line]
    if fault != KILL:
        lines = [line for line in lines if "(INJECTED)" in line]
        return bool(lines) and _is_below(lines[-1], below)
    # The last call of one thread; another one may have made its own before it was killed, too.
    of_thread: dict[str, list[str]] = {}
    for line in lines:
        of_thread.setdefault(line.partition(" ")[0], []).append(line)
    return any(len(own) == call.number and _is_below(own[-1], below) for own in of_thread.values())


@dataclass(frozen=True, slots=True)
class Scene:
    """A source, a repository of it, and what each backup in there holds.

    Attributes:
        points: by backup id.
        now: the source as it is, which the next backup is to hold.
    """

    source: Path
    repository: Path
    cache: Path
    points: dict[str, Fingerprint] = field(default_factory=dict)
    now: Fingerprint = field(default_factory=dict)

    @property
    def backup(self) -> Command:
        """Back the source up into several volumes."""
        options = ("--volume-size", str(VOLUME_SIZE), "--cache-dir", self.cache, "--threads", "1")
        return Command(("backup", *options, "-r", self.repository, self.source), self.repository)

    @property
    def place(self) -> Path | Repository:
        """What the library is given to read the repository."""
        return self.repository

    def copy(self, top: Path) -> Self:
        """The same with a repository and a cache of its own below *top*; of the source there is one."""
        top.mkdir(exist_ok=True)
        scene = replace(self, repository=top / "repository", cache=top / "cache")
        for old, new in ((self.repository, scene.repository), (self.cache, scene.cache)):
            if old.exists():
                shutil.copytree(old, new)
        return scene

    def back_up(self) -> str:
        """Back the source up as it is now, and return the new backup's id."""
        report = incremental_backup(
            self.source, self.repository, cache_root=self.cache, volume_size=VOLUME_SIZE
        )
        assert not report.problems
        return report.backup_date

    def backup_ids(self) -> list[str]:
        """The backups that the repository has."""
        try:
            place = self.place
            repository = place if isinstance(place, Repository) else Repository.open(place)
        except RepositoryNotFoundError:
            return []
        return [stored.name.backup_id for stored in repository.backups(KEY)]

    def assert_sound(self, scratch: Path) -> bool:
        """The repository holds what it held, and nothing or one whole backup more; return which.

        Args:
            scratch: a directory that may be made and removed.
        """
        ids = self.backup_ids()
        added = [backup_id for backup_id in ids if backup_id not in self.points]
        assert len(added) <= 1 and len(ids) == len(self.points) + len(added), ids
        assert not added or added[0] > max(self.points, default=""), added
        points = {**self.points, **dict.fromkeys(added, self.now)}
        if ids:
            report = verify(self.place, read_data=True)
            assert not report.faults, report.faults
        for backup_id, expected in points.items():
            dest = scratch / backup_id
            restored = restore_backup(KEY, dest, at=backup_id, repository=self.place, durable=False)
            assert not restored.problems, restored.problems
            assert_same_tree(expected, dest)
            shutil.rmtree(dest)
        return bool(added)

    def assert_goes_on(self, scratch: Path) -> None:
        """The next run works, what it made restores, and nothing of the broken run lies about."""
        points = {**dict.fromkeys(self.backup_ids(), self.now), **self.points}
        known = replace(self, points=points)
        grow_old(self.repository)
        assert known.back_up() > max(known.points, default="")
        assert known.assert_sound(scratch)
        assert temporaries_below(self.repository) == []
        assert list((self.repository / "locks").iterdir()) == []


def grow_old(repository: Path) -> None:
    """Let more time pass for the temporaries that all keys share than any writer takes."""
    for directory in (repository, repository / "locks"):
        for path in directory.glob(".*"):
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * 3600))


def temporaries_below(directory: Path) -> list[str]:
    """What nobody has finished."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob(".*"))


def assert_only_adds(before: dict[str, bytes | None], directory: Path) -> None:
    """Every file that was in the directory is there, byte for byte."""
    after = content_of(directory) if directory.exists() else {}
    changed = [name for name, content in before.items() if not name.startswith("locks/")]
    changed = [name for name in changed if name not in after or after[name] != before[name]]
    assert not changed, changed


def assert_no_traceback(ran: Ran) -> None:
    """Whatever happened was told in the command's own words, in one line."""
    assert "Traceback" not in ran.stderr, ran.stderr
    assert "unexpected" not in ran.stderr, ran.stderr
    assert all(line.startswith("ibt: ") for line in ran.stderr.splitlines()), ran.stderr
    assert len([line for line in ran.stderr.splitlines() if line.startswith("ibt: error: ")]) <= 1, ran.stderr


def wait_for(what: str, is_met: Callable[[], object]) -> None:
    """Wait until something is so that soon will be."""
    deadline = time.monotonic() + 60
    while not is_met():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def random_bytes(seed: int, size: int) -> bytes:
    """Bytes that do not compress, the same each time."""
    return random.Random(seed).randbytes(size)


def build_small_tree(root: Path) -> None:
    """A tree of two volumes: files, a directory, links of both kinds."""
    root.mkdir()
    for number in range(3):
        (root / f"large-{number}").write_bytes(random_bytes(number, 400_000))
    (root / "sub" / "empty").mkdir(parents=True)
    for number in range(3):
        (root / "sub" / f"small-{number}").write_bytes(random_bytes(number, 1000))
    os.symlink("large-0", root / "symlink")
    os.link(root / "sub" / "small-0", root / "sub" / "hard-link")


def edit_small_tree(root: Path) -> None:
    """New files for two volumes, a changed one, a renamed one, one that is gone."""
    with (root / "large-0").open("r+b") as file:
        file.seek(200_000)
        file.write(b"changed in place")
    (root / "large-1").rename(root / "renamed")
    (root / "sub" / "small-1").unlink()
    (root / "sub" / "small-2").chmod(0o600)
    for number in range(3):
        (root / f"new-{number}").write_bytes(random_bytes(100 + number, 400_000))


def make_scene(top: Path, *, backups: int) -> Scene:
    """A source with so many backups behind it, and changes that the next one is to take.

    Args:
        backups: none, or one full.
    """
    source = top / KEY
    build_small_tree(source)
    scene = Scene(source, top / "repository", top / "cache", now=fingerprint(source))
    if backups:
        report = full_backup(source, scene.repository, cache_root=scene.cache, volume_size=VOLUME_SIZE)
        scene = replace(scene, points={report.backup_date: scene.now})
        edit_small_tree(source)
        scene = replace(scene, now=fingerprint(source))
    return scene


# --- clocks ---------------------------------------------------------------------------------------------

# Runs before the first import of the program, in the process that runs it.
_WRONG_CLOCK = """
import time
_real = time.time_ns
time.time_ns = lambda: {frozen_ns} or _real() + {shift_ns}
time.time = lambda: time.time_ns() / 1e9
"""


def shifted_clock(top: Path, *, shift_ns: int = 0, frozen_ns: int = 0) -> tuple[str, ...]:
    """What runs a command by a clock that is off, or stands still.

    Args:
        top: a directory that may be made.
        frozen_ns: the time at which it stands; 0 where it goes.
    """
    top.mkdir(exist_ok=True)
    (top / "sitecustomize.py").write_text(_WRONG_CLOCK.format(shift_ns=shift_ns, frozen_ns=frozen_ns))
    return ("env", f"PYTHONPATH={top}:{PACKAGE_PARENT}", "PYTHONDONTWRITEBYTECODE=1")


# --- file systems --------------------------------------------------------------------------------------


def run_tool(*command: str | Path) -> None:
    """Run a tool of the system that must succeed."""
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def tmpfs(directory: Path, *, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many bytes at *directory*; yields what gives it another size."""
    directory.mkdir(exist_ok=True)
    run_tool("mount", "-t", "tmpfs", "-o", f"size={size}", "ibt-test", directory)
    try:
        yield lambda larger: run_tool("mount", "-o", f"remount,size={larger}", directory)
    finally:
        run_tool("umount", directory)


class PowerSupply:
    """An ext4 file system of its own that keeps on its disk only what was flushed when the power goes.

    Attributes:
        directory: where it is mounted.
    """

    _SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
    _WITHOUT_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH

    def __init__(self, top: Path, *, size: int) -> None:
        self._image = top / "disk"
        self.directory = top / "power"
        self.directory.mkdir()
        with self._image.open("wb") as file:
            file.truncate(size)
        run_tool("mkfs.ext4", "-q", self._image)
        self._mount()

    def _mount(self) -> None:
        # Nothing goes to the disk by itself: no commit for five minutes, no allocation on rename.
        options = "loop,commit=300,noauto_da_alloc"
        run_tool("mount", "-t", "ext4", "-o", options, self._image, self.directory)

    def cut(self) -> None:
        """Lose everything that was not flushed, and come up again."""
        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, self._SHUTDOWN, self._WITHOUT_FLUSH.to_bytes(4, sys.byteorder))
        finally:
            os.close(descriptor)
        run_tool("umount", self.directory)
        self._mount()

    def close(self) -> None:
        """Unmount it."""
        run_tool("umount", self.directory)
