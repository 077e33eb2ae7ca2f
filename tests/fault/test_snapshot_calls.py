"""Making a snapshot when a system call on the directory of snapshots fails, or the process is killed before it.

After each, there are the snapshots that there were or the new one whole, and the next run goes on and leaves nothing
unfinished.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.command import run_ibt
from support.faults import (
    KILL,
    Call,
    Command,
    Fingerprint,
    Tracer,
    assert_no_traceback,
    build_small_tree,
    edit_small_tree,
)
from support.snapshots import NAME, Place, assert_snapshot_of, nothing_unfinished
from support.trees import fingerprint

from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.keeping import collect_garbage
from incremental_backups_tools.heap.snapshots.verify import verify_snapshots

SHARES = range(4)
# Calls that say of themselves that a disk is full.
TAKES_SPACE = frozenset({"write", "mkdir", "linkat", "openat", "fsync", "syncfs"})


class Scene:
    """A source with a snapshot behind it, and changes that the next one is to take."""

    def __init__(self, top: Path) -> None:
        self.place = Place(top / NAME, top / "dest")
        build_small_tree(self.place.source)
        self.before = fingerprint(self.place.source)
        run_ibt(*self.command(self.place.dest).arguments)
        edit_small_tree(self.place.source)
        self.now = fingerprint(self.place.source)

    def command(self, dest: Path) -> Command:
        return Command(("snapshot", "create", self.place.source, "-d", dest, "--threads", "1"), dest)

    def copy(self, top: Path) -> Place:
        """A directory of snapshots of its own, hard links and all."""
        top.mkdir(exist_ok=True)
        subprocess.run(["cp", "-a", self.place.dest, top / "dest"], check=True)
        return Place(self.place.source, top / "dest")

    def assert_sound(self, place: Place) -> bool:
        """The old snapshot is there, and the new one whole or not at all; return which."""
        assert 1 <= len(place.ids) <= 2, place.ids
        expected: list[Fingerprint] = [self.before, self.now]
        for tree, values in zip(place.ids, expected, strict=False):
            assert_snapshot_of(place.dest / NAME / tree, values)
        report = verify_snapshots(Depot.open(place.dest))
        assert not report.faults, report.faults
        assert report.snapshots == len(place.ids)
        return len(place.ids) == 2


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def tracer(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    tracer = Tracer(tmp_path_factory.mktemp("record"), lambda top: scene.command(scene.copy(top).dest))
    names = {call.name for call in tracer.calls if call.changes}
    assert {"linkat", "unlink", "rename", "mkdir", "fsync", "syncfs", "openat"} <= names, names
    return tracer


def check(scene: Scene, tracer: Tracer, call: Call, fault: str, top: Path) -> None:
    place = scene.copy(top)
    try:
        ran = tracer.run(scene.command(place.dest), call, fault, log=top / "log")
        if fault != KILL:
            assert ran.status in (0, 1), ran
            assert_no_traceback(ran)
        is_there = scene.assert_sound(place)
        assert is_there or ran.status != 0, "reported as done, and not there"
        report = place.create()
        assert not report.problems
        assert_snapshot_of(place.tree(), scene.now)
        assert nothing_unfinished(place.dest)
        verified = verify_snapshots(Depot.open(place.dest))
        assert not verified.faults, verified.faults
        collect_garbage(Depot.open(place.dest))
        named = {entry.data.file for i in range(len(place.ids)) for entry in place.entries(i) if entry.data}  # type: ignore[attr-defined]
        assert {
            str(path.relative_to(place.dest / ".ibt-snapshots/objects")) for path in place.objects()
        } == named
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise
    shutil.rmtree(top)


def first_of_each_site(calls: list[Call]) -> list[Call]:
    return list({call.site: call for call in reversed(calls)}.values())


@pytest.mark.parametrize("share", SHARES)
def test_killed_before_any_change(tmp_path: Path, scene: Scene, tracer: Tracer, share: int) -> None:
    chosen = [call for call in tracer.calls if call.changes]
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, KILL, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_an_error_of_a_change(tmp_path: Path, scene: Scene, tracer: Tracer, share: int) -> None:
    chosen = first_of_each_site([call for call in tracer.calls if call.changes])
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        error = "ENOSPC" if call.name in TAKES_SPACE and number % 2 else "EIO"
        check(scene, tracer, call, f"error={error}", tmp_path / str(number))


def test_a_killed_run_shows_no_snapshot_and_the_next_removes_what_it_left(tmp_path: Path) -> None:
    """What cacheback left looked like a snapshot, with some of the files."""
    place = Place(tmp_path / NAME, tmp_path / "dest")
    place.source.mkdir()
    for number in range(3000):
        (place.source / str(number)).write_text(str(number))
    killer = (
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=linkat",
        "--inject=linkat:signal=KILL:when=1500",
    )
    place.ibt("create", place.source, status=-9, prefix=killer)
    assert place.ids == []
    assert place.ibt("list").stdout == ""
    assert not nothing_unfinished(place.dest)
    place.create()
    assert nothing_unfinished(place.dest)
    assert_snapshot_of(place.tree(), place.source)


def test_gc_alone_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    place = Place(tmp_path / NAME, tmp_path / "dest")
    place.source.mkdir()
    (place.source / "file").write_bytes(os.urandom(100_000))
    killer = ("strace", "-f", "-o", "/dev/null", "-e", "trace=rename", "--inject=rename:signal=KILL:when=1")
    place.ibt("create", place.source, status=-9, prefix=killer)
    assert len(place.objects()) == 1
    assert "deleted 1 object" in place.ibt("gc").stdout
    assert nothing_unfinished(place.dest) and place.objects() == []
