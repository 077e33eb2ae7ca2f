"""Several processes and one repository: one backup of a key at a time, and whoever died holds nobody up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support.command import PROGRAM, command_environment, content_of, run_ibt
from support.faults import KEY, Command, Scene, make_scene, run_tool, wait_for
from support.trees import assert_same_tree

from incremental_backups_tools import verify
from incremental_backups_tools.repository.layout import encode_backup_id
from incremental_backups_tools.repository.locks import LockRecord

MINUTE_NS = 60 * 10**9


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path, backups=1)


def locks(scene: Scene) -> list[Path]:
    return sorted((scene.repository / "locks").glob("*.json"))


@contextmanager
def slow_backup(scene: Scene, *, seconds: int) -> Iterator[int]:
    """A backup that has its lock and waits so long before it publishes its first volume; yields its process."""
    delay = f"--inject=linkat:delay_enter={seconds * 10**6}:when=2"
    tracer = ("strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=linkat", delay)
    process = subprocess.Popen(
        [*tracer, *PROGRAM, *scene.backup.arguments],
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for("its first volume", lambda: list(scene.repository.glob(f"{KEY}/.*.tmp")))
        yield json.loads(locks(scene)[0].read_bytes())["pid"]
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()


def test_the_second_backup_of_a_key_is_refused_and_harms_nothing(tmp_path: Path, scene: Scene) -> None:
    with slow_backup(scene, seconds=3) as pid:
        ran = run_ibt(*scene.backup.arguments, status=11)
        assert f"is locked by process {pid} on" in ran.error
        assert "backup" in ran.error
    assert scene.assert_sound(tmp_path / "restored")
    scene.assert_goes_on(tmp_path / "restored")


def test_who_is_told_to_wait_gets_its_turn(tmp_path: Path, scene: Scene) -> None:
    with slow_backup(scene, seconds=2):
        run_ibt(*scene.backup.arguments, "--wait", "60")
    first, second, third = scene.backup_ids()
    known = replace(scene, points={first: scene.points[first], second: scene.now})
    assert known.assert_sound(tmp_path / "restored")
    listed = run_ibt("list", "-r", scene.repository, "--json").document["backups"]
    assert [backup["parent"] for backup in listed] == [None, first, second]
    assert third > second


def test_who_waits_in_vain_is_refused(scene: Scene) -> None:
    with slow_backup(scene, seconds=3):
        run_ibt(*scene.backup.arguments, "--wait", "0.5", status=11)


def test_the_lock_of_a_killed_backup_is_taken_over_with_a_word(tmp_path: Path, scene: Scene) -> None:
    with slow_backup(scene, seconds=3) as pid:
        os.kill(pid, signal.SIGKILL)
    assert len(locks(scene)) == 1
    ran = run_ibt(*scene.backup.arguments)
    assert f"was taken over: its owner is gone, process {pid} on" in ran.stderr
    assert locks(scene) == []
    assert scene.assert_sound(tmp_path / "restored")


def test_readers_need_no_lock(tmp_path: Path, scene: Scene) -> None:
    with slow_backup(scene, seconds=4):
        report = verify(scene.repository, read_data=True)
        assert not report.faults
        run_ibt("restore", "-q", "-r", scene.repository, KEY, tmp_path / "dest")
        listed = run_ibt("list", "-r", scene.repository, "--json").document["backups"]
        assert [backup["id"] for backup in listed] == list(scene.points)
    assert_same_tree(scene.points[max(scene.points)], tmp_path / "dest")


def test_readers_write_nothing(tmp_path: Path, scene: Scene) -> None:
    """A repository on a file system that is mounted for reading only."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    before = content_of(scene.repository)
    run_tool("mount", "--bind", scene.repository, mounted)
    try:
        run_tool("mount", "-o", "remount,bind,ro", mounted)
        run_ibt("verify", "-q", "-r", mounted, "--read-data")
        run_ibt("restore", "-q", "-r", mounted, KEY, tmp_path / "dest")
        run_ibt("list", "-r", mounted)
        read_only = replace(scene, repository=mounted)
        assert "Read-only file system" in run_ibt(*read_only.backup.arguments, status=1).error
    finally:
        run_tool("umount", mounted)
    assert content_of(scene.repository) == before
    assert_same_tree(scene.points[max(scene.points)], tmp_path / "dest")


@pytest.mark.parametrize("age_minutes, is_dead", [(1, False), (10, True)])
def test_another_hosts_lock_counts_as_long_as_it_is_renewed(
    tmp_path: Path, scene: Scene, age_minutes: int, is_dead: bool
) -> None:
    record = LockRecord(host="elsewhere", machine="other", pid=os.getpid(), operation="backup")
    renewed = encode_backup_id(time.time_ns() - age_minutes * MINUTE_NS)
    lock = scene.repository / "locks" / f"{KEY}.{renewed}.{'a' * 32}.json"
    lock.write_bytes(msgspec.json.encode(record))
    if is_dead:
        assert "was taken over" in run_ibt(*scene.backup.arguments).stderr
        assert scene.assert_sound(tmp_path / "restored")
        assert locks(scene) == []
    else:
        assert "on elsewhere" in run_ibt(*scene.backup.arguments, status=11).error
        assert locks(scene) == [lock]


def test_other_keys_are_not_held_up(tmp_path: Path, scene: Scene) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("other")
    with slow_backup(scene, seconds=3):
        run_ibt("backup", "-q", "-r", scene.repository, other)
    assert scene.assert_sound(tmp_path / "restored")
    run_ibt("restore", "-q", "-r", scene.repository, "other", tmp_path / "dest")
    assert_same_tree(other, tmp_path / "dest")


def test_of_many_who_come_at_once_to_no_repository_each_has_its_backup_or_is_refused(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, backups=0)
    processes = [start(scene.backup) for _ in range(4)]
    outcomes = [(process.communicate()[1].decode(), process.returncode) for process in processes]
    assert {status for _, status in outcomes} <= {0, 11}, outcomes
    done = [status for _, status in outcomes].count(0)
    assert done >= 1
    ids = scene.backup_ids()
    assert len(ids) == done
    known = replace(scene, points=dict.fromkeys(ids, scene.now))
    known.assert_sound(tmp_path / "restored")
    known.assert_goes_on(tmp_path / "restored")


def start(command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, *command.arguments],
        env=command_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
