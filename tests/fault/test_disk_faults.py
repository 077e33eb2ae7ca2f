"""What tools that spread files over offline disks are known to do wrong, and this one must not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support.command import (
    PROGRAM,
    WITHOUT_OVERRIDE,
    command_environment,
    content_of,
    damage,
    flip_middle,
)
from support.disks import Disks
from support.faults import temporaries_below
from support.trees import assert_same_tree

from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.copies import read_objects
from incremental_backups_tools.heap.disk.disks import iter_disks
from incremental_backups_tools.heap.disk.media import open_medium


def fill(root: Path, count: int, *, size: int = 4000, prefix: str = "file") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"{prefix}-{number}").write_bytes(os.urandom(size))


# --- seeing changes ------------------------------------------------------------------------------------------


def test_a_file_rewritten_within_a_second_or_with_its_time_set_back_is_seen(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    file = disks.source / "file"
    file.write_bytes(b"first")
    disks.run("update")
    file.write_bytes(b"again")
    assert disks.json("update")["updated"] == 1
    time.sleep(1.2)
    disks.run("update")
    before = file.stat()
    file.write_bytes(b"third")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.rename(disks.source / "moved")
    disks.run("update")
    disks.run("backup", "a")
    disks.run("restore", tmp_path / "out")
    assert (tmp_path / "out" / "moved").read_bytes() == b"third"


def test_a_name_that_is_not_utf8_is_like_any_other(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    strange = os.fsencode(disks.source) + b"/\xff\xfe-directory"
    os.mkdir(strange)
    Path(os.fsdecode(strange + b"/\xe9t\xe9")).write_text("content")
    Path(os.fsdecode(os.fsencode(disks.source) + b"/\xffabsent")).symlink_to(b"nowhere\xfd")
    fill(disks.source, 3)
    disks.run("map", b"/na\xefve", strange)
    disks.back_up("a")
    disks.run("restore", tmp_path / "out")
    assert (
        Path(os.fsdecode(os.fsencode(tmp_path / "out") + b"/na\xefve/\xe9t\xe9"))
    ).read_text() == "content"
    shutil.rmtree(os.fsencode(tmp_path / "out") + b"/na\xefve")
    os.utime(tmp_path / "out", ns=(1, disks.source.stat().st_mtime_ns))
    assert_same_tree(disks.source, tmp_path / "out")


def test_files_that_shrink_while_they_are_read_crash_nothing(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 5)
    live = disks.source / "live"
    live.write_bytes(bytes(60_000_000))
    done = threading.Event()

    def keep_changing() -> None:
        while not done.is_set():
            os.truncate(live, random.randrange(60_000_000))

    writer = threading.Thread(target=keep_changing)
    writer.start()
    try:
        # Whatever was caught of it: 0 where it stood still for once, 3 where it did not.
        for command in (("update",), ("backup", "a")):
            done_run = subprocess.run(
                [*PROGRAM, "disk", *command],
                env=command_environment(IBT_DISK_CATALOGUE=str(disks.catalogue)),
                capture_output=True,
                timeout=120,
                check=False,
            )
            assert done_run.returncode in (0, 3), done_run
    finally:
        done.set()
        writer.join()
    disks.run("verify", "a")
    assert len(disks.objects("a")) >= 5


@pytest.mark.usefixtures("root")
def test_one_unreadable_file_is_named_and_stops_nothing(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 3)
    (disks.source / "secret").write_text("secret")
    (disks.source / "secret").chmod(0)
    (disks.source / "closed").mkdir(mode=0)
    update = disks.run("update", status=3, prefix=WITHOUT_OVERRIDE)
    assert "problem: secret: cannot open: Permission denied" in update.stderr
    assert "closed" in update.stderr
    assert disks.json("backup", "a")["written"] == 3
    assert disks.json("update")["created"] == 1


def test_what_becomes_unreadable_or_is_unmounted_is_not_gone(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 4)
    other = tmp_path / "other"
    fill(other, 4)
    disks.run("map", "/other", other)
    disks.back_up("a")
    shutil.rmtree(other)
    failed = disks.run("update", status=3)
    assert "problem: other: " in failed.stderr
    other.mkdir()  # the mount point of what is not mounted
    for file in disks.source.iterdir():
        file.unlink()
    stopped = disks.run("update", status=1)
    assert "is it mounted?" in stopped.error
    assert disks.json("backup", "a")["evicted"] == 0
    assert len(disks.objects("a")) == 8
    disks.run("restore", tmp_path / "out")
    assert len(list((tmp_path / "out" / "other").iterdir())) == 4
    disks.run("update", "--max-deleted", "100%")
    disks.run("backup", "a")
    assert len(disks.objects("a")) == 8


def test_a_file_that_changed_after_the_update_is_named_and_nothing_wrong_is_stored(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 3)
    disks.run("update")
    (disks.source / "file-1").write_bytes(b"other")
    (disks.source / "file-2").unlink()
    ran = disks.run("backup", "a", status=3)
    assert "file-1: has changed since" in ran.stderr
    assert "file-2: cannot read" in ran.stderr
    assert len(disks.objects("a")) == 1
    assert temporaries_below(disks.path("a")) == []
    disks.back_up("a")
    disks.run("restore", tmp_path / "out")
    assert_same_tree(disks.source, tmp_path / "out")


# --- what is on a disk ---------------------------------------------------------------------------------------


def test_verify_finds_what_is_deleted_damaged_or_cut_and_moves_nothing(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 6)
    disks.back_up("a", "b")
    deleted, flipped, cut, *_ = sorted(disks.objects("a"))
    paths = disks.objects("a")
    paths[deleted].unlink()
    paths[flipped].chmod(0o600)
    damage(paths[flipped], flip_middle)
    os.truncate(paths[cut], 100)
    before = content_of(disks.path("a"))
    found = disks.json("verify", "a", status=1)
    assert found["missing"] == [deleted]
    assert sorted(found["damaged"]) == sorted([flipped, cut])
    assert content_of(disks.path("a")) == before
    assert disks.json("list")["objects_by_copies"] == {"1": 3, "2": 3}
    assert disks.json("backup", "a")["written"] == 3
    disks.run("verify", "a")
    assert disks.json("list")["objects_by_copies"] == {"2": 6}


def test_a_wiped_disk_is_filled_again(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 4)
    disks.back_up("a")
    shutil.rmtree(disks.path("a") / "objects")
    assert disks.json("refresh", "a", status=1)["missing"]
    shutil.rmtree(disks.path("a") / "objects", ignore_errors=True)
    report = disks.json("backup", "a")
    assert report["written"] == 4
    disks.run("verify", "a")


def test_a_flipped_byte_is_never_restored_and_another_disk_helps(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 3)
    disks.back_up("a")
    (digest, path), *_ = disks.objects("a").items()
    damage(path, flip_middle)
    (tmp_path / "out").mkdir()
    victim = next(file for file in disks.source.iterdir() if _digest(file) == digest)
    (tmp_path / "out" / victim.name).write_text("precious")
    ran = disks.run("restore", tmp_path / "out", status=3)
    assert "is damaged" in ran.stderr
    assert (tmp_path / "out" / victim.name).read_text() == "precious"
    disks.run("backup", "b")
    disks.run("restore", tmp_path / "out")
    assert_same_tree(disks.source, tmp_path / "out")


def _digest(file: Path) -> str:
    from blake3 import blake3

    return blake3(file.read_bytes()).hexdigest()


def test_a_damaged_object_in_the_way_is_replaced(tmp_path: Path) -> None:
    """As long as the good one, so that its length does not give it away."""
    disks = Disks(tmp_path, "a")
    fill(disks.source, 2)
    disks.back_up("a")
    (_, path), *_ = disks.objects("a").items()
    damage(path, flip_middle)
    disks.run("drop", "a", "--force")
    added = disks.run("add", "a", disks.path("a"))
    assert "1 object found" in added.stdout
    assert disks.json("backup", "a")["written"] == 1
    disks.run("verify", "a")


def test_symlinks_are_restored_below_the_destination_and_written_through_by_nobody(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    (disks.source / "absolute").symlink_to("/etc")
    (disks.source / "directory").mkdir()
    (disks.source / "directory" / "file").write_text("content")
    disks.back_up("a")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "directory").symlink_to(outside)
    disks.run("restore", tmp_path / "out")
    assert os.readlink(tmp_path / "out" / "absolute") == "/etc"
    assert list(outside.iterdir()) == []


def test_adding_a_known_disk_overwrites_nothing(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 3)
    disks.back_up("a")
    before = content_of(disks.path("a"))
    assert "known already" in disks.run("add", "another-name", disks.path("a")).stdout
    shutil.rmtree(disks.catalogue)
    disks.run("init")
    disks.run("adopt", disks.path("a"))
    assert content_of(disks.path("a")) == before
    assert disks.json("list")["objects_by_copies"] == {"1": 3}


def test_every_failure_has_its_status(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    for arguments, status in (
        (("backup", "nobody"), 1),
        (("verify", "nobody"), 1),
        (("drop", "nobody"), 1),
        (("backup",), 2),
        (("set",), 2),
        (("add", "b/c", tmp_path), 2),
        (("add", "b", tmp_path / "nowhere"), 1),
        (("restore", tmp_path / "out", "--from", tmp_path), 10),
        (("rename", "a", "a"), 1),
        (("unmap", "/nothing"), 1),
        (("map", "/../x", tmp_path), 1),
        (("minset", "nothing"), 1),
        (("init",), 1),
    ):
        disks.run(*arguments, status=status)
    disks.put_away("a")
    disks.run("backup", "a", status=10)
    with Catalogue.open(disks.catalogue):
        disks.run("update", status=11)


# --- death ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_run_killed_at_any_moment_leaves_a_catalogue_that_claims_no_more_than_there_is(
    tmp_path: Path, seed: int
) -> None:
    """With evictions: the disks are too small for two copies of everything."""
    rng = random.Random(seed)
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 40)
    disks.back_up("a", "b")
    for name in ("a", "b"):
        disks.run("set", name, "--size", "340K", "--reserve", "40K")
    fill(disks.source, 40, prefix="later")
    disks.run("update")
    before = _holders(disks)
    for name in ("a", "b", "a"):
        process = subprocess.Popen(
            [*PROGRAM, "disk", "backup", name],
            env=command_environment(IBT_DISK_CATALOGUE=str(disks.catalogue)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        with process.stderr:
            time.sleep(rng.uniform(0.3, 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        held = _holders(disks)
        assert all(held[key] for key in before if before[key])
    for name in ("a", "b"):
        disks.run("backup", name)
        disks.run("verify", name)
        assert temporaries_below(disks.path(name)) == []
    assert min(len(names) for names in _holders(disks).values()) >= 1
    disks.run("restore", tmp_path / "out")
    assert_same_tree(disks.source, tmp_path / "out")


def _holders(disks: Disks) -> dict[int, frozenset[int]]:
    """Who holds what by the catalogue; and that it is there, whole."""
    with Catalogue.open(disks.catalogue) as catalogue:
        media = {disk.id: open_medium(disks.path(disk.name)) for disk in iter_disks(catalogue)}
        objects = read_objects(catalogue)
        for item in objects:
            row = catalogue.row("SELECT digest FROM objects WHERE id = ?", (item.key,))
            assert row is not None
            for disk in item.holders:
                media[disk].heap.verify(row[0])
    return {item.key: item.holders for item in objects}


def test_nothing_gives_way_to_what_could_not_be_stored(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b", "c", copies="3")
    fill(disks.source, 1, size=60_000)
    disks.back_up("a", "b", "c")
    disks.run("set", "a", "--size", "68K", "--reserve", "60K")
    fill(disks.source, 1, size=30_000, prefix="late")
    disks.run("update")
    assert disks.json("backup", "a", "-n")["evicted"] == 1
    (disks.source / "late-0").write_text("changed")
    report = disks.json("backup", "a", status=3)
    assert (report["written"], report["evicted"]) == (0, 0)
    assert len(disks.objects("a")) == 1
