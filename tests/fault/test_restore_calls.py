"""A restore whose every system call on the destination fails, or is never made because the process is killed.

After each, every file of the destination is the old one or the new one, whole; and restoring once more works.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.command import run_ibt
from support.faults import (
    KEY,
    KILL,
    Call,
    Command,
    Scene,
    Tracer,
    assert_no_traceback,
    make_scene,
    shifted_clock,
    temporaries_below,
)
from support.trees import assert_same_tree

from incremental_backups_tools import restore_backup

SHARES = range(3)
INPUT_OUTPUT = "error=EIO"
NO_SPACE = "error=ENOSPC"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two points: the tests restore the second over the first."""
    scene = make_scene(tmp_path_factory.mktemp("scene"), backups=1)
    scene.back_up()
    return scene


@pytest.fixture(scope="module")
def earlier(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first point, restored."""
    dest = tmp_path_factory.mktemp("earlier") / "dest"
    restore_backup(KEY, dest, at=min(scene.points), repository=scene.repository)
    return dest


@pytest.fixture(scope="module")
def tracer(scene: Scene, earlier: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    tracer = Tracer(tmp_path_factory.mktemp("record"), lambda top: restore(scene, earlier, top))
    names = {call.name for call in tracer.calls if call.changes}
    assert names >= {"write", "syncfs", "renameat", "linkat", "unlinkat"}, names
    return tracer


def restore(scene: Scene, earlier: Path, top: Path) -> Command:
    top.mkdir(exist_ok=True)
    shutil.copytree(earlier, top / "dest", symlinks=True)
    arguments = ("restore", "-r", scene.repository, "--delete", KEY, top / "dest")
    return Command(arguments, top / "dest")


def contents(root: Path) -> dict[str, bytes]:
    """Every file and link below *root*, temporaries left out."""
    return {
        str(path.relative_to(root)): os.fsencode(os.readlink(path))
        if path.is_symlink()
        else path.read_bytes()
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and not path.name.startswith(".")
    }


def check(scene: Scene, earlier: Path, tracer: Tracer, call: Call, fault: str, top: Path) -> None:
    command = restore(scene, earlier, top)
    old, new = contents(earlier), contents(scene.source)
    try:
        ran = tracer.run(command, call, fault, log=top / "log")
        found = contents(command.below)
        for name, content in found.items():
            assert content in (old.get(name), new.get(name)), f"{name} is neither the old nor the new one"
        gone = [name for name in old.keys() & new.keys() if name not in found]
        assert gone == [], "an old file went before the new one was there"
        if fault != KILL:
            assert_no_traceback(ran)
            assert ran.status != 0 or found == new, "reported as done, and is not"
            assert call.name in ("unlink", "unlinkat") or temporaries_below(command.below) == []
        again = restore_backup(KEY, command.below, repository=scene.repository, delete=True)
        assert not again.problems
        assert_same_tree(scene.now, command.below)
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise


def changes(tracer: Tracer, share: int) -> list[Call]:
    return [call for call in tracer.calls if call.changes][share :: len(SHARES)]


@pytest.mark.parametrize("share", SHARES)
def test_killed_before_any_change(
    tmp_path: Path, scene: Scene, earlier: Path, tracer: Tracer, share: int
) -> None:
    for number, call in enumerate(changes(tracer, share)):
        check(scene, earlier, tracer, call, KILL, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_an_error_of_any_change(
    tmp_path: Path, scene: Scene, earlier: Path, tracer: Tracer, share: int
) -> None:
    for number, call in enumerate(changes(tracer, share)):
        fault = NO_SPACE if call.name in ("write", "mkdir", "mkdirat", "openat", "linkat") else INPUT_OUTPUT
        check(scene, earlier, tracer, call, fault, tmp_path / str(number))


def test_what_a_killed_restore_left_unfinished_is_removed_a_day_later(
    tmp_path: Path, scene: Scene, earlier: Path, tracer: Tracer
) -> None:
    command = restore(scene, earlier, tmp_path)
    call = next(call for call in tracer.calls if call.name == "renameat")
    tracer.run(command, call, KILL, log=tmp_path / "log")
    left = temporaries_below(command.below)
    assert left
    mine = command.below / "sub" / ".ibt-mine.tmp"
    mine.write_text("a name of the user's own")
    run_ibt("restore", "-q", "-r", scene.repository, KEY, command.below)
    assert set(temporaries_below(command.below)) == {*left, "sub/.ibt-mine.tmp"}  # a living restore's, maybe
    tomorrow = shifted_clock(tmp_path, shift_ns=25 * 3600 * 10**9)
    run_ibt("restore", "-q", "-r", scene.repository, KEY, command.below, prefix=tomorrow)
    assert temporaries_below(command.below) == ["sub/.ibt-mine.tmp"]
