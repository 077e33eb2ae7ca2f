"""A backup whose every system call on the repository fails, or is never made because the process is killed.

After each, the repository holds what it held or the new backup whole, and the next run goes on.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from support.command import content_of
from support.faults import (
    KILL,
    Call,
    Command,
    Scene,
    Tracer,
    assert_no_traceback,
    assert_only_adds,
    grow_old,
    make_scene,
    temporaries_below,
)

# The calls are dealt out to so many tests, which run side by side.
SHARES = range(4)
INPUT_OUTPUT = "error=EIO"
NO_SPACE = "error=ENOSPC"
# Calls that say of themselves that a disk is full.
TAKES_SPACE = frozenset({"write", "mkdir", "mkdirat", "linkat", "openat", "fsync"})


@pytest.fixture(scope="module", params=[0, 1], ids=["first", "incremental"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), backups=request.param)


@pytest.fixture(scope="module")
def tracer(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    def prepare(top: Path) -> Command:
        return scene.copy(top).backup

    tracer = Tracer(tmp_path_factory.mktemp("record"), prepare)
    names = {call.name for call in tracer.calls if call.changes}
    assert {"write", "fsync", "linkat", "unlinkat", "mkdirat", "openat"} <= names
    return tracer


def first_and_last_of_each_site(calls: list[Call]) -> list[Call]:
    first = {call.site: call for call in reversed(calls)}
    last = {call.site: call for call in calls}
    return list(dict.fromkeys([*first.values(), *last.values()]))


def check(scene: Scene, tracer: Tracer, call: Call, fault: str, top: Path) -> None:
    """Run a backup in which one call meets a fault, and see that nothing is lost."""
    copy = scene.copy(top)
    before = content_of(copy.repository)
    try:
        ran = tracer.run(copy.backup, call, fault, log=top / "log")
        if fault != KILL:
            assert ran.status in (0, 1), ran
            assert_no_traceback(ran)
            # What could not be removed because removing failed is the next run's.
            assert call.name == "unlinkat" or temporaries_below(copy.repository) == []
        assert_only_adds(before, copy.repository)
        if fault != KILL and call.name == "fsync" and "</locks" not in call.text:
            assert ran.status == 1, "a failed fsync was made good by a later one"
        if fault == NO_SPACE and ran.status != 0:
            assert "no space left" in ran.error.lower()
        is_there = copy.assert_sound(top / "restored")
        assert is_there or ran.status != 0, "reported as done, and not there"
        grow_old(copy.repository)
        copy.assert_goes_on(top / "restored")
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise


@pytest.mark.parametrize("share", SHARES)
def test_killed_before_any_change(tmp_path: Path, scene: Scene, tracer: Tracer, share: int) -> None:
    chosen = [call for call in tracer.calls if call.changes]
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, KILL, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_an_error_of_any_change(tmp_path: Path, scene: Scene, tracer: Tracer, share: int) -> None:
    chosen = [call for call in tracer.calls if call.changes]
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, INPUT_OUTPUT, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_a_disk_that_is_full_at_any_place(tmp_path: Path, scene: Scene, tracer: Tracer, share: int) -> None:
    chosen = [call for call in tracer.calls if call.changes and call.name in TAKES_SPACE]
    chosen = first_and_last_of_each_site(chosen)
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, NO_SPACE, tmp_path / str(number))


@pytest.mark.parametrize("share", SHARES)
def test_an_error_of_looking_at_the_repository(
    tmp_path: Path, scene: Scene, tracer: Tracer, share: int
) -> None:
    chosen = first_and_last_of_each_site([call for call in tracer.calls if not call.changes])
    for number, call in enumerate(chosen[share :: len(SHARES)]):
        check(scene, tracer, call, INPUT_OUTPUT, tmp_path / str(number))


@pytest.mark.parametrize("fault", [KILL, INPUT_OUTPUT, NO_SPACE])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["write", "fsync"])
def test_whatever_a_worker_meets(
    tmp_path: Path, scene: Scene, tracer: Tracer, name: str, number: int, fault: str
) -> None:
    """Which thread writes which frame is never twice the same: each of them meets the fault, if it gets so far."""
    copy = scene.copy(tmp_path / "copy")
    before = content_of(copy.repository)
    arguments = list(copy.backup.arguments)
    arguments[arguments.index("--threads") + 1] = "3"
    command = Command(tuple(arguments), copy.repository)
    ran = tracer.run_in_any_thread(command, name, number, fault, log=tmp_path / "log")
    if ran.status != -signal.SIGKILL:
        assert ran.status in (0, 1), ran
        assert_no_traceback(ran)
        assert temporaries_below(copy.repository) == []
    assert_only_adds(before, copy.repository)
    is_there = copy.assert_sound(tmp_path / "restored")
    assert is_there or ran.status != 0, "reported as done, and not there"
    grow_old(copy.repository)
    copy.assert_goes_on(tmp_path / "restored")


def test_nothing_gets_its_name_before_its_data_is_flushed_and_every_name_is_flushed(tracer: Tracer) -> None:
    """A power cut cannot show the second half: any later flush of ext4's takes earlier names with it."""
    written: set[str] = set()
    named: set[str] = set()
    for call in tracer.calls:
        paths = re.findall(r"<([^>]*)>", call.text)
        if call.name == "write" or call.makes_a_file:
            written.add(paths[-1])
        elif call.name == "fsync":
            written.discard(paths[0])
            named.discard(paths[0])
        elif call.name == "linkat":
            assert f"{paths[0]}/{call.text.split(chr(34))[1]}" not in written, call.text
            named.add(paths[1])
        elif call.name in ("mkdirat", "unlinkat"):
            named.add(paths[0])
    assert named == set()
