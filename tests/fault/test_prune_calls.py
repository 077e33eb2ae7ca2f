"""Merging, rebasing and pruning with system calls that fail, or are never made because the process is killed.

After each, every point that stays restores, and going on afterwards ends well and leaves no garbage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.chains import KEY, Chain
from support.command import content_of
from support.faults import (
    KILL,
    VOLUME_SIZE,
    Call,
    Command,
    Tracer,
    assert_no_traceback,
    assert_only_adds,
    build_small_tree,
    edit_small_tree,
    grow_old,
    random_bytes,
    temporaries_below,
)

from incremental_backups_tools.points.retention import KeepPolicy

INPUT_OUTPUT = "error=EIO"
NO_SPACE = "error=ENOSPC"
TAKES_SPACE = frozenset({"write", "linkat", "openat", "fsync"})
OPERATIONS = ["merge", "rebase", "prune"]
POLICY = KeepPolicy(keep_last=2)


@dataclass(frozen=True)
class Scene:
    """A chain, and a command that writes part of it again.

    Attributes:
        kept: ids of the points that every end of it leaves.
    """

    operation: str
    chain: Chain
    kept: frozenset[str]

    def copy(self, top: Path) -> Scene:
        return Scene(self.operation, self.chain.copy(top), self.kept)

    @property
    def command(self) -> Command:
        ids = self.chain.ids
        point = f"{KEY}@{ids[2]}"
        arguments = {
            "merge": ("merge", f"{KEY}@{ids[1]}", point),
            "rebase": ("rebase", point),
            # Three increments become a full, another one is merged away, and all that is left behind goes.
            "prune": ("prune", KEY, "--keep-last", "2", "--max-unused", "0%"),
        }[self.operation]
        options = ("--cache-dir", self.chain.cache, "--threads", "1", "-r", self.chain.repository)
        return Command((*arguments, *options), self.chain.repository)


@pytest.fixture(scope="module")
def small_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A full of two volumes and four increments."""
    top = tmp_path_factory.mktemp("scene")
    chain = Chain(top, top / KEY, top / "repository", top / "cache")
    source = chain.source
    build_small_tree(source)
    chain.back_up(volume_size=VOLUME_SIZE)
    edit_small_tree(source)
    chain.back_up(volume_size=VOLUME_SIZE)
    (source / "new-0").unlink()
    (source / "new-1").rename(source / "large-1")
    with (source / "large-0").open("r+b") as file:
        file.write(b"changed once more")
    chain.back_up()
    (source / "sub" / "small-3").write_bytes(random_bytes(3, 2000))
    chain.back_up()
    (source / "large-2").write_bytes(random_bytes(4, 400_000))
    chain.back_up()
    return chain


@pytest.fixture(scope="module", params=OPERATIONS)
def scene(request: pytest.FixtureRequest, small_chain: Chain) -> Scene:
    gone = {"merge": small_chain.ids[1:2], "rebase": [], "prune": small_chain.ids[:3]}[request.param]
    return Scene(request.param, small_chain, frozenset(small_chain.ids) - frozenset(gone))


@pytest.fixture(scope="module")
def tracer(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Tracer:
    tracer = Tracer(tmp_path_factory.mktemp("record"), lambda top: scene.copy(top).command)
    names = {call.name for call in tracer.calls if call.changes}
    assert {"write", "fsync", "linkat", "unlinkat", "openat"} <= names
    return tracer


def one_of_each_site(calls: list[Call]) -> list[Call]:
    return list({call.site: call for call in calls}.values())


def some_of(calls: list[Call], count: int) -> list[Call]:
    """So many of them, from the first to the last."""
    return [calls[round(number * (len(calls) - 1) / (count - 1))] for number in range(count)]


def deletions(calls: list[Call]) -> list[Call]:
    """Where files of backups go, and their directory is flushed afterwards."""
    begin = next(
        number for number, call in enumerate(calls) if call.name == "unlinkat" and ".tar.zst" in call.text
    )
    return calls[begin:]


def check(scene: Scene, tracer: Tracer, call: Call, fault: str, top: Path) -> None:
    """Run it so that one call meets a fault, see that nothing is lost, and go on."""
    copy = scene.copy(top)
    chain = copy.chain
    before = content_of(chain.repository)
    try:
        ran = tracer.run(copy.command, call, fault, log=top / "log")
        if fault != KILL:
            assert ran.status in (0, 1), ran
            assert_no_traceback(ran)
            assert call.name == "unlinkat" or temporaries_below(chain.repository) == []
        if fault == NO_SPACE and ran.status != 0:
            assert "no space left" in ran.error.lower()
        if scene.operation != "prune":
            assert_only_adds(before, chain.repository)
        # What is listed restores, and what is to stay is listed.
        listed = chain.history().backup_ids
        assert copy.kept <= set(listed)
        chain.points = {backup_id: chain.points[backup_id] for backup_id in listed}
        chain.check()
        grow_old(chain.repository)
        chain.prune(policy=POLICY, max_unused=0)
        assert chain.ids == sorted(scene.chain.points)[-2:]
        chain.assert_no_garbage()
        chain.check()
        chain.back_up()
        chain.check(scripted=1)
    except BaseException as error:
        error.add_note(f"{fault} in call {call.number} of {call.name}: {call.text}")
        raise


def numbered(top: Path, calls: list[Call]) -> Iterator[tuple[Path, Call]]:
    return ((top / str(number), call) for number, call in enumerate(calls))


@pytest.mark.parametrize(
    ("fault", "choose"),
    [
        (KILL, lambda calls: some_of(one_of_each_site(calls), 4)),
        (INPUT_OUTPUT, lambda calls: some_of(one_of_each_site(calls), 3)),
        (NO_SPACE, lambda calls: some_of([call for call in calls if call.name in TAKES_SPACE], 2)),
    ],
    ids=["killed", "input-output", "no-space"],
)
def test_a_fault_in_a_change(
    tmp_path: Path, scene: Scene, tracer: Tracer, fault: str, choose: Callable[[list[Call]], list[Call]]
) -> None:
    for top, call in numbered(tmp_path, choose([call for call in tracer.calls if call.changes])):
        check(scene, tracer, call, fault, top)


def test_an_error_of_looking_at_the_repository(tmp_path: Path, scene: Scene, tracer: Tracer) -> None:
    calls = one_of_each_site([call for call in tracer.calls if not call.changes])
    for top, call in numbered(tmp_path, some_of(calls, 2)):
        check(scene, tracer, call, INPUT_OUTPUT, top)


@pytest.mark.parametrize("fault", [KILL, INPUT_OUTPUT])
@pytest.mark.parametrize("scene", ["prune"], indirect=True)
def test_a_fault_while_files_are_deleted(tmp_path: Path, scene: Scene, tracer: Tracer, fault: str) -> None:
    calls = [call for call in deletions(tracer.calls) if call.changes]
    assert len(calls) > 20
    for top, call in numbered(tmp_path, some_of(calls, 4)):
        check(scene, tracer, call, fault, top)


def test_nothing_is_deleted_before_what_takes_its_place_is_named_and_flushed(
    scene: Scene, tracer: Tracer
) -> None:
    changes = [call for call in tracer.calls if call.changes]
    named = [
        number for number, call in enumerate(changes) if call.name == "linkat" and "locks" not in call.text
    ]
    deleted = [
        number for number, call in enumerate(changes) if call.name == "unlinkat" and '.zst"' in call.text
    ]
    assert named
    if scene.operation == "prune":
        assert deleted and max(named) < min(deleted)
        assert any(call.name == "fsync" for call in changes[max(named) : min(deleted)])
    else:
        assert not [number for number in deleted if ".tmp" not in changes[number].text]
