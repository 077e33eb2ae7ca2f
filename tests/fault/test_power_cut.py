"""Exit status 0, and in the next instant the power goes: what was reported done is there.

ext4 on a loop device that writes nothing by itself; its shutdown ioctl drops all that was not flushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import content_of, run_ibt
from support.faults import KEY, PowerSupply, Scene, edit_small_tree, make_scene, random_bytes
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools.durable import fsync_directory


@pytest.fixture
def power(tmp_path: Path) -> Iterator[PowerSupply]:
    supply = PowerSupply(tmp_path, size=64 << 20)
    yield supply
    supply.close()


@pytest.fixture
def scene(tmp_path: Path, power: PowerSupply) -> Scene:
    """A source on a disk of its own, and nothing yet where the power will go."""
    scene = make_scene(tmp_path, backups=0)
    repository = power.directory / "deep" / "below" / "repository"
    return replace(scene, repository=repository, cache=tmp_path / "cache")


def test_what_was_not_flushed_is_lost(power: PowerSupply) -> None:
    """The other tests prove nothing unless this is so."""
    (power.directory / "file").write_text("not flushed")
    power.cut()
    assert not (power.directory / "file").exists()


def test_a_backup_that_was_reported_done_survives(tmp_path: Path, power: PowerSupply, scene: Scene) -> None:
    run_ibt(*scene.backup.arguments)
    power.cut()
    assert scene.assert_sound(tmp_path / "restored")
    scene = replace(scene, points={scene.backup_ids()[0]: scene.now})

    edit_small_tree(scene.source)
    scene = replace(scene, now=fingerprint(scene.source))
    run_ibt(*scene.backup.arguments)
    power.cut()
    assert scene.assert_sound(tmp_path / "restored")
    run_ibt("verify", "-r", scene.repository, "--read-data")
    scene.assert_goes_on(tmp_path / "restored")


def test_a_power_cut_after_a_kill_costs_no_earlier_backup(
    tmp_path: Path, power: PowerSupply, scene: Scene
) -> None:
    run_ibt(*scene.backup.arguments)
    scene = replace(scene, points={scene.backup_ids()[0]: scene.now})
    edit_small_tree(scene.source)
    scene = replace(scene, now=fingerprint(scene.source))
    # The state is there, its directory is not flushed any more, and the lock stays.
    killer = ("strace", "-f", "-o", "/dev/null", "-e", "trace=fsync", "--inject=fsync:signal=KILL:when=11")
    run_ibt(*scene.backup.arguments, status=-9, prefix=killer)
    power.cut()
    scene.assert_sound(tmp_path / "restored")
    scene.assert_goes_on(tmp_path / "restored")


def test_a_cache_on_the_disk_that_lost_power_is_right_or_not_there(
    tmp_path: Path, power: PowerSupply
) -> None:
    scene = make_scene(tmp_path, backups=0)
    scene = replace(scene, cache=power.directory / "cache")
    run_ibt(*scene.backup.arguments)
    power.cut()
    scene = replace(scene, points={scene.backup_ids()[0]: scene.now})
    edit_small_tree(scene.source)
    scene = replace(scene, now=fingerprint(scene.source))
    run_ibt(*scene.backup.arguments)
    assert scene.assert_sound(tmp_path / "restored")


def test_a_restore_that_was_reported_done_survives(tmp_path: Path, power: PowerSupply) -> None:
    scene = make_scene(tmp_path, backups=1)
    scene.back_up()
    dest = power.directory / "deep" / "below" / "dest"
    run_ibt("restore", "-r", scene.repository, f"{KEY}@{min(scene.points)}", dest)
    power.cut()
    assert_same_tree(scene.points[min(scene.points)], dest)
    run_ibt("restore", "-r", scene.repository, "--delete", KEY, dest)
    power.cut()
    assert_same_tree(scene.now, dest)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_power_cut_in_the_middle_of_a_restore_leaves_no_old_file_empty(
    tmp_path: Path, power: PowerSupply, threads: str
) -> None:
    """All names are given, and they are on the disk; what was not flushed before that is not."""
    scene = make_scene(tmp_path, backups=1)
    for name in ("sub/small-0", "sub/small-2", "large-2"):
        (scene.source / name).write_bytes(random_bytes(9, 2000))
    (scene.source / "large-0").chmod(0o4755)  # made by itself, not among many
    scene.back_up()
    dest = power.directory / "dest"
    run_ibt("restore", "-q", "-r", scene.repository, f"{KEY}@{min(scene.points)}", dest)
    old = content_of(dest)
    killer = ("strace", "-f", "-o", "/dev/null", "-e", "trace=syncfs", "--inject=syncfs:signal=KILL:when=2")
    arguments = ("restore", "-q", "--threads", threads, "-r", scene.repository, KEY, dest)
    run_ibt(*arguments, status=-9, prefix=killer)
    fsync_directory(dest)
    power.cut()
    new, found = content_of(scene.source), content_of(dest)
    replaced = [name for name in old if old[name] != new.get(name, old[name])]
    assert len(replaced) >= 4
    for name in old:
        assert found.get(name) in (old[name], new.get(name, old[name])), (
            f"{name} is neither the old nor the new one"
        )
    assert any(found[name] == new[name] for name in replaced), (
        "the names were not on the disk: nothing is shown"
    )
