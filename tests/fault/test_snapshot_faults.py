"""What cacheback 0.0.2 was seen to do wrong, done to our snapshots; and what hard links have in store."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.command import content_of
from support.faults import PowerSupply, build_small_tree, edit_small_tree, random_bytes, run_tool, tmpfs
from support.snapshots import (
    NAME,
    Place,
    assert_snapshot_of,
    edit_in_place,
    nothing_unfinished,
)
from support.trees import assert_same_tree, fingerprint

MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path, source: Path) -> Place:
    return Place(source, tmp_path / "dest")


@pytest.fixture
def mounts() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


# --- change detection ----------------------------------------------------------------------------------------


def test_a_file_rewritten_within_the_same_second_is_taken(place: Place) -> None:
    for text in ("first", "second, longer", "secund, longer"):
        (place.source / "file").write_text(text)
        os.utime(place.source / "file", ns=(10**18, 10**18))
        place.create()
        assert (place.tree() / "file").read_text() == text


def test_a_file_with_its_size_and_time_put_back_is_taken(place: Place) -> None:
    file = place.source / "file"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    time.sleep(1.1)  # no longer young: its ctime alone tells
    place.create()
    edit_in_place(file, lambda data: b"two")
    os.utime(file, ns=(10**18, 10**18))
    place.create()
    assert [(place.tree(n) / "file").read_text() for n in (0, 1)] == ["one", "two"]


def test_the_inode_of_another_file_is_no_proof(place: Place) -> None:
    (place.source / "a").write_text("one")
    place.create()
    (place.source / "a").unlink()
    (place.source / "a").write_text("two")
    place.create()
    assert (place.tree() / "a").read_text() == "two"


# --- storing -------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_under_a_final_name(
    tmp_path: Path, place: Place, mounts: ExitStack, root: None
) -> None:
    """cacheback left a truncated object, and linked it as good the next time."""
    place = Place(place.source, tmp_path / "small" / "dest")
    resize = mounts.enter_context(tmpfs(tmp_path / "small", size=64 * MIB))
    (place.source / "first").write_bytes(random_bytes(1, MIB))
    place.create()
    resize(4 * MIB)
    (place.source / "large").write_bytes(random_bytes(2, 8 * MIB))
    before = content_of(place.dest)
    ran = place.ibt("create", place.source, status=1)
    assert "no space left" in ran.error.lower()
    assert content_of(place.dest) == before
    assert len(place.ids) == 1
    resize(64 * MIB)
    place.create()
    place.verify()
    assert_snapshot_of(place.tree(), place.source)


def test_an_empty_index_crashes_no_later_run(place: Place) -> None:
    (place.source / "file").write_text("content")
    place.create()
    for index in (place.dest / ".ibt-snapshots" / "index").rglob("*.zst"):
        index.write_bytes(b"")
    place.create()
    assert_snapshot_of(place.tree(), place.source)


@pytest.mark.parametrize("how", ["cut", "emptied", "gone"])
def test_an_object_that_is_not_whole_is_not_linked_again(place: Place, how: str) -> None:
    """Whether the file is new to the root or was there all the time."""
    data = random_bytes(1, 2 * MIB)
    (place.source / "file").write_bytes(data)
    os.utime(place.source / "file", ns=(10**18, 10**18))
    time.sleep(1.1)
    place.create()
    (damaged,) = place.objects()
    if how == "gone":
        damaged.unlink()
    else:
        os.truncate(damaged, 1000 if how == "cut" else 0)
        os.utime(damaged, ns=(10**18, 10**18))
    shutil.copy2(place.source / "file", place.source / "new")
    report = place.create()
    assert report.healed == 1
    assert (place.tree() / "file").read_bytes() == data
    assert (place.tree() / "new").read_bytes() == data
    place.verify()


def test_a_damaged_object_that_no_snapshot_has_is_not_taken_for_good(place: Place) -> None:
    (place.source / "file").write_text("content")
    os.utime(place.source / "file", ns=(10**18, 10**18))
    place.create()
    place.ibt("delete", f"{NAME}@latest")
    (left,) = place.objects()
    os.truncate(left, 3)
    os.utime(left, ns=(10**18, 10**18))
    place.create()
    assert (place.tree() / "file").read_text() == "content"
    place.verify()
    assert place.objects() == [left]


def test_a_name_whose_metadata_cannot_be_read_stays_as_it_was(place: Place) -> None:
    (place.source / "link").symlink_to("first")
    place.create()
    (place.source / "link").unlink()
    (place.source / "link").symlink_to("second")
    broken = (
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=llistxattr",
        "--inject=llistxattr:error=EIO:when=1",
    )
    ran = place.ibt("create", place.source, status=3, prefix=broken)
    assert "link: cannot read its metadata" in ran.stderr
    assert os.readlink(place.tree() / "link") == "first"


def test_a_file_that_vanishes_or_shrinks_while_it_is_read_is_told(place: Place) -> None:
    """Holding the reader up with a file that ends before its size says so is strace's to do."""
    (place.source / "steady").write_text("steady")
    (place.source / "file").write_bytes(random_bytes(1, 3 * MIB))
    cut = ("strace", "-f", "-o", "/dev/null", "-P", str(place.source / "file"), "-e", "trace=read")
    ran = place.ibt("create", place.source, status=3, prefix=(*cut, "--inject=read:retval=0:when=3+2"))
    assert "file: shrank while it was read, 3 times" in ran.stderr
    assert sorted(path.name for path in place.tree().iterdir()) == ["steady"]
    place.create()
    assert_snapshot_of(place.tree(), place.source)
    place.verify()


def test_a_read_error_is_no_end_of_file(place: Place) -> None:
    (place.source / "file").write_bytes(random_bytes(1, MIB))
    broken = ("strace", "-f", "-o", "/dev/null", "-P", str(place.source / "file"), "-e", "trace=read")
    ran = place.ibt("create", place.source, status=3, prefix=(*broken, "--inject=read:error=EIO:when=3+"))
    assert "file: cannot read: Input/output error" in ran.stderr
    assert list(place.tree().iterdir()) == []


def test_a_key_stays_a_key_although_other_files_have_its_bytes(place: Place, root: None) -> None:
    for name in ("a-public", "key", "of-another"):
        (place.source / name).write_text("secret")
        os.utime(place.source / name, ns=(10**18, 10**18))
    (place.source / "key").chmod(0o600)
    os.chown(place.source / "of-another", 12345, 54321)
    place.create()
    found = {path.name: path.stat() for path in place.tree().iterdir()}
    assert {name: info.st_mode & 0o777 for name, info in found.items()} == {
        "a-public": 0o644,
        "key": 0o600,
        "of-another": 0o644,
    }
    assert (found["of-another"].st_uid, found["of-another"].st_gid) == (12345, 54321)
    assert (found["key"].st_uid, found["key"].st_gid) == (0, 0)


# --- the link limit ------------------------------------------------------------------------------------------


def test_the_65001st_link_is_another_instance(
    tmp_path: Path, source: Path, mounts: ExitStack, root: None
) -> None:
    """On the file system that has the limit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with (tmp_path / "image").open("wb") as image:
        image.truncate(64 * MIB)
    run_tool("mkfs.ext4", "-q", tmp_path / "image")
    run_tool("mount", "-o", "loop", tmp_path / "image", disk)
    mounts.callback(run_tool, "umount", disk)
    place = Place(source, disk / "dest")
    (source / "file").write_text("content")
    os.utime(source / "file", ns=(10**18, 10**18))
    time.sleep(1.1)
    place.create()
    (held,) = place.objects()
    (disk / "links").mkdir()
    for number in range(65_000 - held.stat().st_nlink):
        os.link(held, disk / "links" / str(number))
    with pytest.raises(OSError, match="Too many links"):
        os.link(held, disk / "links" / "one more")
    shutil.copy2(source / "file", source / "same")
    for _ in range(2):
        assert not place.create().problems
        assert [path.name for path in sorted(place.tree().iterdir())] == ["file", "same"]
        assert_snapshot_of(place.tree(), source)
    first, second = place.objects()
    assert (first.name[:-1], first.name[-1], second.name[-1]) == (second.name[:-1], "0", "1")
    assert second.stat().st_nlink == 5
    place.verify()


def test_any_number_of_equal_files_under_any_limit(place: Place) -> None:
    for number in range(20):
        (place.source / str(number)).write_text("content")
        os.utime(place.source / str(number), ns=(10**18, 10**18))
    os.link(place.source / "3", place.source / "hard-link")
    for _ in range(3):
        assert not place.create(max_links=4).problems
        assert_snapshot_of(place.tree(), place.source)
        assert max(path.stat().st_nlink for path in place.objects()) <= 4
    place.verify()
    # An instance further on is no better looked at than the first one, and all are healed when one is.
    for path in place.objects():
        if not path.name.endswith(".0"):
            os.truncate(path, 3)
    place.ibt("verify", status=1)
    assert not place.create(max_links=4).problems
    assert place.damaged() == []
    place.verify()
    place.ibt("restore", NAME, place.dest.parent / "restored")
    assert_same_tree(place.source, place.dest.parent / "restored")


def test_the_next_instance_is_looked_at_before_it_is_used(place: Place) -> None:
    (place.source / "file").write_text("content")
    os.utime(place.source / "file", ns=(10**18, 10**18))
    for _ in range(3):
        place.create(max_links=3)
    _, second = place.objects()
    os.truncate(second, 3)
    os.utime(second, ns=(10**18, 10**18))
    (place.source / "file").rename(place.source / "renamed")
    assert place.create(max_links=3).healed == 1
    assert (place.tree() / "renamed").read_text() == "content"
    place.verify()


def test_another_instance_shares_its_bytes_where_the_file_system_can(
    tmp_path: Path, source: Path, mounts: ExitStack, root: None
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with (tmp_path / "image").open("wb") as image:
        image.truncate(512 * MIB)
    run_tool("mkfs.xfs", "-q", "-m", "reflink=1", tmp_path / "image")
    run_tool("mount", "-o", "loop", tmp_path / "image", disk)
    mounts.callback(run_tool, "umount", disk)
    place = Place(source, disk / "dest")
    (source / "file").write_bytes(random_bytes(1, 8 * MIB))
    place.create()
    os.sync()
    before = shutil.disk_usage(disk).used
    (source / "file").chmod(0o600)
    shutil.copy(source / "file", source / "a-copy")
    report = place.create()
    assert report.added_objects == 2
    os.sync()
    assert shutil.disk_usage(disk).used - before < MIB
    assert len(place.objects()) == 3
    place.verify()
    assert_snapshot_of(place.tree(), source)


# --- altered objects -----------------------------------------------------------------------------------------


def test_what_was_altered_through_a_snapshot_is_found_and_healed_in_all(place: Place, tmp_path: Path) -> None:
    (place.source / "sub").mkdir()
    (place.source / "sub" / "file").write_text("the truth")
    (place.source / "lost").write_text("lost soon")
    os.utime(place.source / "sub" / "file", ns=(10**18, 10**18))
    time.sleep(1.1)
    place.create()
    place.create()
    expected = fingerprint(place.tree(0) / "sub")
    (place.source / "lost").unlink()
    for name in ("sub/file", "lost"):
        info = (place.tree(0) / name).stat()
        edit_in_place(place.tree(0) / name, lambda data: b"X" + data[1:])
        os.utime(place.tree(0) / name, ns=(info.st_atime_ns, info.st_mtime_ns))
    ran = place.ibt("verify", status=1)
    assert ran.stderr.count("has other bytes than it should") == 2
    # What cannot be had from anywhere is told, and nothing else is lost with it.
    ran = place.ibt("restore", f"{NAME}@{place.ids[0]}", tmp_path / "early", status=3)
    assert ran.stderr.count("ibt: problem:") == 2

    report = place.create()
    assert report.healed == 1
    for position in range(3):
        assert (place.tree(position) / "sub" / "file").read_text() == "the truth"
    assert_same_tree(expected, place.tree(0) / "sub")
    ran = place.ibt("verify", status=1)
    assert "as lost" in ran.stderr and "sub/file" not in ran.stderr
    ran = place.ibt("restore", f"{NAME}@{place.ids[0]}", tmp_path / "late", status=3)
    assert (tmp_path / "late" / "sub" / "file").read_text() == "the truth"
    # As long as nothing better is there, what was set aside stays.
    place.ibt("gc")
    assert len(place.damaged()) == 1
    place.ibt("delete", *(f"{NAME}@{snapshot_id}" for snapshot_id in place.ids[:2]))
    place.ibt("gc")
    assert place.damaged() == []
    place.verify()


def test_a_file_that_was_replaced_in_a_tree_is_found(place: Place) -> None:
    (place.source / "file").write_text("content")
    (place.source / "gone").write_text("gone")
    place.create()
    (place.tree() / "file").unlink()
    (place.tree() / "file").write_text("another")
    (place.tree() / "gone").unlink()
    ran = place.ibt("verify", status=1)
    assert "file: is another file than the object that it was a link to" in ran.stderr
    assert "gone: is not in the snapshot's tree" in ran.stderr


def test_a_damaged_object_restores_from_another_with_the_same_bytes(place: Place, tmp_path: Path) -> None:
    (place.source / "one").write_text("content")
    (place.source / "two").write_text("content")
    (place.source / "two").chmod(0o600)
    place.create()
    edit_in_place(place.tree() / "one", lambda data: b"XXXXXXX")
    place.ibt("restore", NAME, tmp_path / "restored")
    assert_same_tree(place.source, tmp_path / "restored")


def test_a_bad_object_leaves_the_users_file_as_it_is(place: Place, tmp_path: Path) -> None:
    (place.source / "file").write_text("content")
    place.create()
    edit_in_place(place.tree() / "file", lambda data: b"XXXXXXX")
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("the user's")
    ran = place.ibt("restore", NAME, target, status=3)
    assert "expected BLAKE3" in ran.stderr
    assert content_of(target) == {"file": b"the user's"}


# --- power ---------------------------------------------------------------------------------------------------


def test_a_snapshot_that_was_reported_done_survives_a_power_cut(tmp_path: Path, root: None) -> None:
    power = PowerSupply(tmp_path, size=64 * MIB)
    try:
        place = Place(tmp_path / NAME, power.directory / "deep" / "dest")
        build_small_tree(place.source)
        for number in range(2):
            if number:
                edit_small_tree(place.source)
            place.ibt("create", place.source)
            power.cut()
            assert_snapshot_of(place.tree(), place.source)
            place.verify()
        assert len(place.ids) == 2 and nothing_unfinished(place.dest)
    finally:
        power.close()


def test_a_power_cut_after_a_kill_leaves_no_empty_objects(tmp_path: Path, root: None) -> None:
    power = PowerSupply(tmp_path, size=64 * MIB)
    try:
        place = Place(tmp_path / NAME, power.directory / "dest")
        build_small_tree(place.source)
        killer = (
            "strace",
            "-f",
            "-o",
            "/dev/null",
            "-e",
            "trace=rename",
            "--inject=rename:signal=KILL:when=1",
        )
        place.ibt("create", place.source, status=-9, prefix=killer)
        power.cut()
        place.ibt("create", place.source)
        assert_snapshot_of(place.tree(), place.source)
        place.verify()
    finally:
        power.close()
