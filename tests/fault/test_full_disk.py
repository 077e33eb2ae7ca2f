"""File systems that are full: of the repository, of temporary files, of the cache, of a restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.command import content_of, run_ibt
from support.faults import KEY, Scene, make_scene, random_bytes, temporaries_below, tmpfs
from support.trees import assert_same_tree

MIB = 1 << 20


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A source whose next backup is an incremental of about 1.3 MB."""
    return make_scene(tmp_path, backups=1)


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("room", [0, 200_000, 900_000], ids=["none", "for-no-volume", "for-one-volume"])
def test_a_full_repository_is_told_in_one_line_and_stays_as_it_was(
    tmp_path: Path, scene: Scene, mounts: ExitStack, room: int
) -> None:
    small = tmp_path / "small"
    resize = mounts.enter_context(tmpfs(small, size=64 * MIB))
    scene = scene.copy(small)
    # Sizes are rounded up to pages; ballast takes what the repository leaves.
    ballast = small / "ballast"
    ballast.write_bytes(bytes(8 * MIB - size_of(scene.repository) - room))
    resize(8 * MIB + 200_000)
    if room == 0:
        fill(small / "rest")
    before = content_of(scene.repository)

    ran = run_ibt(*scene.backup.arguments, status=1)
    assert "no space left" in ran.error.lower()
    assert temporaries_below(scene.repository) == []
    now = content_of(scene.repository)
    assert {name: now[name] for name in before} == before
    assert not scene.assert_sound(tmp_path / "restored")
    assert list((scene.repository / "locks").iterdir()) == []

    resize(64 * MIB)
    run_ibt(*scene.backup.arguments)
    assert scene.assert_sound(tmp_path / "restored")


def fill(path: Path) -> None:
    """Take every byte that is left, so that not even a lock can be written."""
    with pytest.raises(OSError, match="No space"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_at_the_first_backup_leaves_a_repository_that_the_next_run_uses(
    tmp_path: Path, mounts: ExitStack
) -> None:
    scene = make_scene(tmp_path, backups=0)
    small = tmp_path / "small"
    resize = mounts.enter_context(tmpfs(small, size=MIB))
    scene = scene.copy(small)
    assert "no space left" in run_ibt(*scene.backup.arguments, status=1).error.lower()
    assert scene.backup_ids() == []
    resize(16 * MIB)
    run_ibt(*scene.backup.arguments)
    assert scene.assert_sound(tmp_path / "restored")


def test_a_limit_on_file_sizes_is_told_in_one_line_and_stays_as_it_was(tmp_path: Path, scene: Scene) -> None:
    before = content_of(scene.repository)
    ran = run_ibt(*scene.backup.arguments, status=1, prefix=("prlimit", "--fsize=300000"))
    assert "File too large" in ran.error
    assert content_of(scene.repository) == before
    run_ibt(*scene.backup.arguments)
    assert scene.assert_sound(tmp_path / "restored")


def test_a_full_directory_for_temporary_files_is_told_and_named(
    tmp_path: Path, scene: Scene, mounts: ExitStack
) -> None:
    full = tmp_path / "full"
    mounts.enter_context(tmpfs(full, size=64 << 10))
    for number in range(3000):
        # Names that do not compress: more than is buffered on the way to a temporary file.
        (scene.source / random_bytes(number, 100).hex()).touch()
    before = content_of(scene.repository)
    ran = run_ibt(*scene.backup.arguments, status=1, env={"TMPDIR": str(full)})
    assert "no space left" in ran.error.lower()
    assert str(full) in ran.error
    assert temporaries_below(scene.repository) == []
    after = content_of(scene.repository)
    assert {name: after[name] for name in before} == before
    assert scene.backup_ids() == list(scene.points)
    run_ibt(*scene.backup.arguments)
    assert len(scene.backup_ids()) == 2


def test_a_full_cache_costs_a_word_and_no_backup(tmp_path: Path, scene: Scene, mounts: ExitStack) -> None:
    full = tmp_path / "full"
    mounts.enter_context(tmpfs(full, size=4096))
    fill(full / "rest")
    ran = run_ibt(*scene.backup.arguments, "--cache-dir", full)
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("ibt: notice: cannot write the cache")
    assert "No space left on device" in ran.stderr
    assert scene.assert_sound(tmp_path / "restored")


def test_a_full_destination_stops_a_restore_and_keeps_what_was_there(
    tmp_path: Path, scene: Scene, mounts: ExitStack
) -> None:
    small = tmp_path / "small"
    resize = mounts.enter_context(tmpfs(small, size=MIB))
    dest = small / "dest"
    dest.mkdir()
    (dest / "large-0").write_text("mine")
    ran = run_ibt("restore", "-r", scene.repository, KEY, dest, status=1)
    assert "no space left" in ran.error.lower()
    assert (dest / "large-0").read_text() == "mine"
    assert temporaries_below(dest) == []
    resize(16 * MIB)
    run_ibt("restore", "-r", scene.repository, KEY, dest)
    assert_same_tree(scene.points[max(scene.points)], dest)
