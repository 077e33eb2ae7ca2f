"""A restore whose every system call on the destination fails, or is never made because the process is killed.

After each, every file of the destination is the old one or the new one, whole; and restoring once more works.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import Ran, run_ibt
from support.faults import (
    KEY,
    KILL,
    Call,
    Command,
    Scene,
    Tracer,
    assert_no_traceback,
    make_scene,
    random_bytes,
    shifted_clock,
    temporaries_below,
)
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import restore_backup

SHARES = range(3)
INPUT_OUTPUT = "error=EIO"
NO_SPACE = "error=ENOSPC"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two points: the tests restore the second over the first.

    There is a file for each way of making one: many at once, by itself, new, and in the place of an old one.
    """
    scene = make_scene(tmp_path_factory.mktemp("scene"), backups=1)
    for number in range(3):
        (scene.source / "sub" / f"new-{number}").write_text(f"new {number}")
    (scene.source / "sub" / "small-0").write_text("changed")
    (scene.source / "sub" / "setuid").write_bytes(random_bytes(7, 5000))
    for name in ("large-0", "sub/setuid"):
        (scene.source / name).chmod(0o4755)
    scene = replace(scene, now=fingerprint(scene.source))
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


def restore(scene: Scene, earlier: Path, top: Path, *, threads: int = 1) -> Command:
    """By default in one thread, where the same calls come in the same order each time."""
    top.mkdir(exist_ok=True)
    shutil.copytree(earlier, top / "dest", symlinks=True)
    arguments = ("restore", "--threads", str(threads), "-r", scene.repository, "--delete", KEY, top / "dest")
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
    try:
        ran = tracer.run(command, call, fault, log=top / "log")
        check_what_is_there(scene, earlier, command, None if fault == KILL else ran, call.name)
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise


def check_what_is_there(scene: Scene, earlier: Path, command: Command, ran: Ran | None, failed: str) -> None:
    """Every file is the old or the new one, and what was said of it is true.

    Args:
        ran: None where it was killed.
        failed: the name of the call that did.
    """
    old, new = contents(earlier), contents(scene.source)
    found = contents(command.below)
    for name, content in found.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither the old nor the new one"
    gone = [name for name in old.keys() & new.keys() if name not in found]
    assert gone == [], "an old file went before the new one was there"
    if ran is not None:
        assert_no_traceback(ran)
        assert ran.status != 0 or found == new, "reported as done, and is not"
        assert failed in ("unlink", "unlinkat") or temporaries_below(command.below) == []
    again = restore_backup(KEY, command.below, repository=scene.repository, delete=True)
    assert not again.problems
    assert_same_tree(scene.now, command.below)


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


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize(
    "name", ["renameat", "fchmod", "utimensat", "mkdirat", "syncfs", "linkat", "unlinkat"]
)
def test_whatever_a_worker_meets(
    tmp_path: Path, scene: Scene, earlier: Path, tracer: Tracer, name: str, number: int
) -> None:
    for fault in (KILL, INPUT_OUTPUT, NO_SPACE, "error=EPERM"):
        top = tmp_path / fault
        command = restore(scene, earlier, top, threads=3)
        ran = tracer.run_in_any_thread(command, name, number, fault, log=top / "log")
        check_what_is_there(scene, earlier, command, None if ran.status == -signal.SIGKILL else ran, name)


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
