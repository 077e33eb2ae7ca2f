"""``ibt disk`` as people use it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.command import content_of, flip_middle, run_ibt, two_backups
from support.disks import Disks
from support.faults import run_tool, tmpfs
from support.trees import assert_same_tree, build_nasty_tree

from incremental_backups_tools.exceptions import StateFormatError, UnsupportedVersionError
from incremental_backups_tools.heap.disk import schema
from incremental_backups_tools.heap.disk.catalogue import Catalogue, migrate


def fill(root: Path, count: int, *, size: int = 5000, prefix: str = "file") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"{prefix}-{number}").write_bytes(os.urandom(size))


def test_the_documented_use_of_distbackup(tmp_path: Path) -> None:
    """Its README, from 'Getting started' on, in our command."""
    photos, videos, streams = tmp_path / "DCIM", tmp_path / "recorded", tmp_path / "livestream-archive"
    for directory in (photos, videos, streams):
        fill(directory, 3)
    disk = tmp_path / "distbackup-01" / "distbackup"
    disk.mkdir(parents=True)
    env = {"IBT_DISK_CATALOGUE": str(tmp_path / "catalogue")}

    def dsb(*arguments: str | Path) -> str:
        return run_ibt("disk", *arguments, env=env).stdout

    dsb("init")
    dsb("map", "/photos", photos)
    dsb("map", "/videos", videos)
    dsb("map", "/videos/stream-archive", streams)
    dsb("update")
    added = dsb("add", "distbackup-01", disk)
    assert "distbackup-01: added; id " in added
    dsb("set", "distbackup-01", "--size", "7.4T")
    assert "9 objects stored" in dsb("backup", "distbackup-01")
    assert (disk / "ibt-disk.json").is_file()
    assert (disk / "catalogue.sqlite").is_file()

    dsb("restore", tmp_path / "restored")
    assert_same_tree(photos, tmp_path / "restored" / "photos")
    assert_same_tree(streams, tmp_path / "restored" / "videos" / "stream-archive")
    shutil.rmtree(tmp_path / "restored" / "videos" / "stream-archive")
    os.utime(tmp_path / "restored" / "videos", ns=(1, videos.stat().st_mtime_ns))
    assert_same_tree(videos, tmp_path / "restored" / "videos")


@pytest.mark.usefixtures("root")
def test_everything_comes_back_from_one_disk_alone_mounted_read_only_elsewhere(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "one")
    build_nasty_tree(disks.source)
    disks.back_up("one")
    away = disks.put_away("one")
    shutil.rmtree(disks.catalogue)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_tool("mount", "--bind", away, elsewhere)
    run_tool("mount", "-o", "remount,bind,ro", elsewhere)
    try:
        disks.run("restore", "--from", elsewhere, tmp_path / "out")
        assert_same_tree(disks.source, tmp_path / "out")
        disks.run("adopt", elsewhere)
        assert "one" in disks.run("list").stdout
        failed = disks.run("backup", "one", "--at-place", elsewhere, status=1)
        assert "cannot be written to" in failed.error
    finally:
        run_tool("umount", elsewhere)


def test_a_restore_names_the_disks_that_the_rest_needs_and_goes_on_with_them(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b", copies="1")
    fill(disks.source / "first", 4)
    disks.back_up("a")
    fill(disks.source / "second", 3)
    disks.back_up("b")
    assert disks.json("minset")["disks"] == ["a", "b"]
    assert disks.json("minset", "second")["disks"] == ["b"]
    assert disks.json("minset")["is_smallest"] is True

    away = disks.put_away("b")
    partly = disks.json("restore", tmp_path / "out", status=3)
    assert partly["needed_disks"] == ["b"]
    assert partly["missing"] == 3
    assert len(list((tmp_path / "out" / "first").iterdir())) == 4
    assert disks.json("restore", "-n", tmp_path / "never", status=3)["missing"] == 3
    assert not (tmp_path / "never").exists()

    back = disks.json("restore", "--from", away, "--from", disks.path("a"), tmp_path / "out")
    assert (back["missing"], back["unchanged"]) == (0, 4)
    assert_same_tree(disks.source, tmp_path / "out")


@pytest.mark.usefixtures("root")
def test_a_disk_is_found_wherever_it_is_mounted(tmp_path: Path) -> None:
    disks = Disks(tmp_path)
    (disks.source / "file").write_text("content")
    first, second = tmp_path / "mnt-1", tmp_path / "mnt 2"
    for place in (first, second):
        place.mkdir()
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run_tool("mkfs.ext4", "-q", image)
    run_tool("mount", "-o", "loop", image, first)
    try:
        (first / "deep" / "backup").mkdir(parents=True)
        disks.run("add", "one", first / "deep" / "backup")
    finally:
        run_tool("umount", first)
    disks.run("update")
    assert "is not there" in disks.run("backup", "one", status=10).error
    run_tool("mount", "-o", "loop", image, second)
    try:
        disks.run("backup", "one")
        assert (second / "deep" / "backup" / "catalogue.sqlite").is_file()
    finally:
        run_tool("umount", second)


def test_hard_links_get_the_backups_content_or_none(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    (disks.source / "first").write_text("linked")
    os.link(disks.source / "first", disks.source / "second")
    os.link(disks.source / "first", disks.source / "third")
    disks.back_up("a")
    out = tmp_path / "out"
    (out / "first").mkdir(parents=True)
    (out / "first" / "in-the-way").write_text("somebody's")
    ran = disks.run("restore", out, status=3)
    assert "problem: first: " in ran.stderr
    assert (out / "first" / "in-the-way").read_text() == "somebody's"
    assert (out / "second").read_text() == (out / "third").read_text() == "linked"
    assert (out / "second").stat().st_ino == (out / "third").stat().st_ino
    shutil.rmtree(out / "first")
    disks.run("restore", out)
    assert_same_tree(disks.source, out)
    away = disks.put_away("a")
    assert disks.json("restore", out)["missing"] == 0
    assert_same_tree(disks.source, out)
    disks.run("restore", tmp_path / "some", "third", "--from", away)
    assert (tmp_path / "some" / "third").read_text() == "linked"


def test_every_object_has_one_copy_before_any_has_two(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b", "c")
    for name in "abc":
        disks.run("set", name, "--size", "110K", "--reserve", "20K")
    fill(disks.source, 20)
    disks.back_up("a", "b", "c")
    counts = disks.json("list")["objects_by_copies"]
    assert set(counts) == {"1", "2"}
    fill(disks.source, 15, prefix="later")
    disks.run("update")
    for name in "abc":
        before = disks.json("list")["objects_by_copies"].get("0", 0)
        report = disks.json("backup", name)
        assert report["without_copy"] < before or before == 0
    counts = disks.json("list")["objects_by_copies"]
    assert "0" not in counts
    held = [set(disks.objects(name)) for name in "abc"]
    assert len(held[0] | held[1] | held[2]) == 35


def test_rules_say_how_many_copies_and_what_comes_first(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b", "c", copies="1")
    for name in ("letters", "films", "cache"):
        fill(disks.source / name, 3)
    disks.run("rule", "/letters/", "--copies", "3", "--priority", "9")
    disks.run("rule", "cache/", "--copies", "0")
    disks.run("set", "a", "--size", "30K", "--reserve", "0")
    disks.run("update")
    disks.run("backup", "a")
    shown = disks.json("restore", "-n", "--from", disks.path("a"), tmp_path / "out", "letters")
    assert shown["missing"] == 0
    disks.back_up("b", "c")
    assert disks.json("list")["objects_by_copies"] == {"1": 3, "3": 3}
    disks.run("restore", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["films", "letters"]
    disks.run("rule", "cache/", "--remove")
    disks.run("update")
    assert "cache" in disks.run("simulate-drop", "a", "b", "c").stdout or disks.json("plan")["short"] == 3


def test_what_the_source_deleted_or_replaced_stays_for_its_time(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", keep_deleted="1h")
    fill(disks.source, 5)
    before = content_of(disks.source)
    disks.back_up("a")
    moment = disks.json("list")["disks"][0]["backup_ns"]
    (disks.source / "file-0").unlink()
    (disks.source / "file-1").write_text("new")
    disks.back_up("a")
    assert len(disks.objects("a")) == 6
    stamp = datetime.fromtimestamp(moment / 10**9, UTC).isoformat()
    disks.run("restore", "--at", stamp, tmp_path / "then")
    assert content_of(tmp_path / "then") == before
    disks.run("restore", tmp_path / "now")
    assert_same_tree(disks.source, tmp_path / "now")

    disks.run("set", "--keep-deleted", "0s")
    assert disks.json("update")["expired"] == 3
    # It goes when its room is needed, and not before.
    assert disks.json("backup", "a")["evicted"] == 0
    disks.run("set", "a", "--size", "28K", "--reserve", "20K")
    fill(disks.source, 1, prefix="more")
    disks.run("update")
    assert disks.json("backup", "a")["evicted"] >= 1
    disks.run("restore", tmp_path / "all")
    assert_same_tree(disks.source, tmp_path / "all")


def test_renames_cost_no_storing_and_a_moved_directory_no_reading(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source / "old", 4)
    os.utime(disks.source / "old" / "file-0", ns=(1, 10**18 + 1))
    disks.back_up("a")
    settle(disks)
    (disks.source / "old").rename(disks.source / "new")
    moved = disks.json("update")
    assert (moved["read"], moved["deleted"]) == (0, 5)
    assert disks.json("backup", "a")["written"] == 0
    (disks.source / "new" / "file-1").rename(disks.source / "new" / "other")
    assert disks.json("update")["read"] == 1
    assert disks.json("backup", "a")["written"] == 0
    disks.run("restore", tmp_path / "out")
    assert_same_tree(disks.source, tmp_path / "out")


def settle(disks: Disks) -> None:
    """Let the files become older than a clock's tick, and be looked at again."""
    time.sleep(1.2)
    disks.run("update")


def test_a_repository_can_be_the_source(tmp_path: Path) -> None:
    """Offline copies of backups: what comes back from the disks is a repository that is whole."""
    source, repository = tmp_path / "documents", tmp_path / "repository"
    source.mkdir()
    place = two_backups(source, repository)
    disks = Disks(tmp_path, "a", "b")
    disks.run("map", "/", repository)
    disks.back_up("a", "b")
    shutil.rmtree(repository)
    disks.run("restore", tmp_path / "again")
    run_ibt("-r", tmp_path / "again", "verify", "--read-data")
    run_ibt("-r", tmp_path / "again", "restore", "documents", tmp_path / "out")
    assert_same_tree(place.source, tmp_path / "out")


def test_a_lost_catalogue_is_had_again_from_any_disk(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 4)
    disks.back_up("a", "b")
    (disks.catalogue / "catalogue.sqlite").write_bytes(b"")
    assert disks.run("list", status=1).error
    shutil.rmtree(disks.catalogue)
    assert "had again" in disks.run("adopt", disks.path("b")).stdout
    assert disks.json("list")["objects_by_copies"] == {"2": 4}
    assert disks.json("update")["created"] == 0
    disks.run("backup", "a")


def test_changes_that_only_a_disk_knows_are_not_overwritten(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 3)
    disks.back_up("a", "b")
    fill(disks.source, 3, prefix="later")
    disks.back_up("b")
    shutil.rmtree(disks.catalogue)
    disks.run("adopt", disks.path("a"))  # the older one
    disks.run("restore", "--from", disks.path("b"), "--own-catalogue", tmp_path / "newer")
    assert_same_tree(disks.source, tmp_path / "newer")
    fill(disks.source, 3, prefix="last")
    disks.back_up("a")
    refused = disks.run("backup", "b", status=1)
    assert "does not know" in refused.error
    adopted = disks.run("adopt", disks.path("b"))
    assert "is kept as" in adopted.stderr
    assert len(list(disks.path("b").glob("catalogue.sqlite.before-*"))) == 1
    disks.run("backup", "b")
    disks.run("restore", tmp_path / "out")
    assert_same_tree(disks.source, tmp_path / "out")


def test_a_newer_copy_on_a_disk_takes_the_place_of_an_old_catalogue(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 3)
    disks.back_up("a")
    shutil.copytree(disks.catalogue, tmp_path / "old")
    fill(disks.source, 3, prefix="later")
    disks.back_up("a")
    shutil.rmtree(disks.catalogue)
    (tmp_path / "old").rename(disks.catalogue)
    assert "does not know" in disks.run("backup", "a", status=1).error
    assert disks.json("adopt", disks.path("a"))["rebuilt"] is True
    assert disks.json("update")["created"] == 0


def test_another_catalogues_disk_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Disks(tmp_path / "other", "x")
    (other.source / "file").write_text("theirs")
    other.back_up("x")
    before = content_of(other.path("x"))
    disks = Disks(tmp_path, "a")
    for command in (("add", "x", other.path("x")), ("adopt", other.path("x"))):
        assert "belongs to another catalogue" in disks.run(*command, status=1).error
    assert content_of(other.path("x")) == before


def test_dropping_a_disk_takes_nothing_off_it_and_is_refused_for_last_copies(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a", "b")
    fill(disks.source, 3)
    disks.back_up("a")
    before = content_of(disks.path("a"))
    assert "only copy of 3 objects" in disks.run("drop", "a", status=1).error
    assert "3 objects without" in disks.run("drop", "a", "-n").stdout
    assert disks.json("simulate-drop", "a")["lost"] == 3
    disks.run("backup", "b")
    disks.run("drop", "a")
    assert content_of(disks.path("a")) == before
    assert disks.json("list")["objects_by_copies"] == {"1": 3}
    assert "3 objects found" in disks.run("add", "again", disks.path("a")).stdout
    disks.run("rename", "again", "a")
    assert disks.json("list")["objects_by_copies"] == {"2": 3}


def test_nothing_is_written_by_a_dry_run(tmp_path: Path) -> None:
    disks = Disks(tmp_path, "a")
    fill(disks.source, 3)
    disks.back_up("a")
    fill(disks.source, 3, prefix="later")

    def all_bytes() -> dict[str, bytes | None]:
        return {**content_of(disks.catalogue), **content_of(disks.path("a"))}

    before = all_bytes()
    assert disks.json("update", "-n")["created"] == 3
    disks.run("backup", "a", "-n")
    for command in (("list",), ("plan",), ("minset",), ("simulate-drop", "a"), ("drop", "a", "-n")):
        disks.run(*command)
    assert all_bytes() == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "small", size=2 << 20):
        yield tmp_path / "small"


@pytest.mark.usefixtures("root")
def test_the_real_room_is_what_counts(tmp_path: Path, small_disk: Path) -> None:
    disks = Disks(tmp_path)
    fill(disks.source, 30, size=100_000)
    disks.run("add", "small", small_disk, "--reserve", "300K")
    disks.run("update")
    (small_disk / "somebody-elses").write_bytes(bytes(500_000))
    report = disks.json("backup", "small")
    assert report["no_room"] > 0
    assert report["written"] + report["no_room"] == 30
    assert report["without_copy"] == report["no_room"]
    info = os.statvfs(small_disk)
    assert info.f_bavail * info.f_frsize >= 300 << 10
    disks.run("verify", "small")


# --- the catalogue -----------------------------------------------------------------------------------------


def test_a_catalogue_of_a_newer_program_is_refused_and_a_damaged_one_named(tmp_path: Path) -> None:
    with Catalogue.create(tmp_path):
        pass
    fs_path = tmp_path / "catalogue.sqlite"
    with sqlite3.connect(fs_path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(UnsupportedVersionError, match="99"):
        Catalogue.open(tmp_path)
    data = bytearray(fs_path.read_bytes())
    flip_middle(data)
    data[4096:8192] = bytes(4096)
    fs_path.write_bytes(data)
    with pytest.raises((StateFormatError, UnsupportedVersionError)):
        Catalogue.open(tmp_path)


def test_an_older_catalogue_is_brought_to_the_newest_version_step_by_step(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "old", isolation_level=None)
    steps = (*schema.MIGRATIONS, ("ALTER TABLE disks ADD COLUMN colour TEXT",))
    migrate(connection, schema.MIGRATIONS)
    connection.execute("INSERT INTO settings VALUES ('id', 'x')")
    migrate(connection, steps)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(steps)
    assert connection.execute("SELECT value FROM settings").fetchall() == [("x",)]
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, (*steps, ("CREATE TABLE half(a)", "nonsense")))
    assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchall() == []
    connection.close()
