"""Renames, copies and duplicates cost no data, and every point of such a history comes back, in both ways."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stories import Story, added, overwrite, roles
from support.trees import assert_same_tree

from incremental_backups_tools import restore_backup
from incremental_backups_tools.chain.policy import COARSE_SIGNING

rng = random.Random(5)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_moving_a_large_file_costs_a_few_hundred_bytes(story: Story) -> None:
    (story.source / "here").write_bytes(rng.randbytes(3_000_000))
    (story.source / "there").mkdir()
    story.back_up(full=True)
    (story.source / "here").rename(story.source / "there" / "moved")

    report = story.back_up()

    line = story.lines()[b"there/moved"]
    assert (line.op, line.entry.source, line.entry.data, line.entry.sig) == ("+", b"here", None, None)
    assert roles(report) == {"replay", "state"}
    assert added(report) < 2000
    story.check()


def test_moving_a_directory_of_a_thousand_files_stores_no_data(story: Story) -> None:
    (story.source / "old").mkdir()
    for number in range(1000):
        (story.source / "old" / f"{number:04}").write_bytes(rng.randbytes(100))
    story.back_up(full=True)
    (story.source / "old").rename(story.source / "new")

    report = story.back_up()

    created = [line for line in story.lines().values() if line.op == "+"]
    assert sum(line.entry.source is not None for line in created) == 1000
    assert all(line.entry.data is None for line in created)
    restored = story.top / "restored"
    restore_backup("source", restored, repository=story.repository, durable=False)
    assert_same_tree(story.source, restored)
    assert added(report) < 60_000


@pytest.mark.parametrize("size", [70, 5000, 1_500_000])
def test_equal_files_of_one_backup_are_stored_once(story: Story, size: int) -> None:
    data = rng.randbytes(size)
    (story.source / "deep").mkdir()
    for name in ("b", "a", "deep/c"):
        (story.source / name).write_bytes(data)
    story.back_up(full=True)

    lines = story.lines()
    places = {(lines[path].entry.data, lines[path].entry.sig) for path in (b"a", b"b", b"deep/c")}
    assert len(places) == 1

    for name in ("x", "y"):
        (story.source / name).write_bytes(data[::-1])
    report = story.back_up()

    lines = story.lines()
    assert lines[b"x"].entry.data == lines[b"y"].entry.data != None  # noqa: E711
    assert added(report) < size * 1.02 + 4500
    story.check()


def test_an_empty_file_is_no_duplicate(story: Story) -> None:
    for name in ("a", "b"):
        (story.source / name).write_bytes(b"")
    story.back_up(full=True)

    lines = story.lines()

    assert lines[b"a"].entry.data != lines[b"b"].entry.data
    story.check()


@pytest.mark.parametrize("size", [3000, 1_200_000])
def test_two_files_that_swap_their_names(story: Story, size: int) -> None:
    first, second = story.source / "first", story.source / "second"
    first.write_bytes(rng.randbytes(size))
    second.write_bytes(rng.randbytes(size + 1))
    story.back_up(full=True)
    first.rename(story.source / "aside")
    second.rename(first)
    (story.source / "aside").rename(second)

    report = story.back_up()

    lines = story.lines()
    assert [(lines[path].op, lines[path].entry.source) for path in (b"first", b"second")] == [
        ("~", b"second"),
        ("~", b"first"),
    ]
    assert roles(report) == {"replay", "state"}
    story.check()


def test_a_file_renamed_again_and_again_and_then_edited(story: Story) -> None:
    name = story.source / "name-0"
    name.write_bytes(rng.randbytes(200_000))
    story.back_up(full=True)
    for number in range(1, 5):
        name = name.rename(story.source / f"name-{number}")
        if number == 3:
            name.chmod(0o600)
        report = story.back_up()
        assert roles(report) == {"replay", "state"}
    overwrite(name, 1000, b"edited")
    report = story.back_up()

    # The signature came along, too: the edit is a delta.
    assert added(report) < 20_000
    assert "created" not in roles(report)
    story.check()


def test_a_copy_that_is_edited_afterwards(story: Story) -> None:
    (story.source / "original").write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    shutil.copy(story.source / "original", story.source / "copy")
    assert roles(story.back_up()) == {"replay", "state"}
    overwrite(story.source / "copy", 50_000, b"edited")
    report = story.back_up()

    assert "created" not in roles(report)
    assert story.lines()[b"copy"].entry.data is not None
    story.check()


def test_copies_of_a_file_that_changes_in_the_same_backup(story: Story) -> None:
    changed = story.source / "m-changed"
    changed.write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    shutil.copy(changed, story.source / "a-old-content")
    shutil.copy(changed, story.source / "z-old-content")
    overwrite(changed, 40_000, b"new content")
    shutil.copy(changed, story.source / "z-new-content")

    report = story.back_up()

    lines = story.lines()
    assert lines[b"a-old-content"].entry.source == lines[b"z-old-content"].entry.source == b"m-changed"
    new, duplicate = lines[b"m-changed"].entry, lines[b"z-new-content"].entry
    assert (new.data, new.sig) == (duplicate.data, duplicate.sig)
    assert duplicate.source == b"m-changed"
    assert "created" not in roles(report) or added(report) < 20_000
    overwrite(story.source / "z-new-content", 70_000, b"and its own")
    assert "created" not in roles(story.back_up())
    story.check()


def test_a_duplicate_of_a_delta_whose_base_is_another_path(story: Story) -> None:
    (story.source / "first").write_bytes(rng.randbytes(50_000))
    os.link(story.source / "first", story.source / "second")
    story.back_up(full=True)
    (story.source / "first").unlink()
    overwrite(story.source / "second", 100, b"edited")
    shutil.copy(story.source / "second", story.source / "third")

    story.back_up()

    third = story.lines()[b"third"].entry
    assert third.source == b"first"
    assert third.data == story.lines()[b"second"].entry.data
    story.check()


def test_a_duplicate_that_has_several_names_itself(story: Story) -> None:
    data = rng.randbytes(20_000)
    (story.source / "a").write_bytes(data)
    (story.source / "b-1").write_bytes(data)
    os.link(story.source / "b-1", story.source / "b-2")
    story.back_up(full=True)
    (story.source / "c-1").write_bytes(data)
    os.link(story.source / "c-1", story.source / "c-2")
    os.link(story.source / "b-1", story.source / "b-3")
    (story.source / "b-1").unlink()
    story.back_up()
    story.check()


@pytest.mark.parametrize("loss", ["index", "index-contents", "both", "damaged"])
def test_what_is_known_is_found_without_the_cache(story: Story, loss: str) -> None:
    (story.source / "old").write_bytes(rng.randbytes(30_000))
    (story.source / "same").write_bytes(rng.randbytes(30_000))
    story.back_up(full=True)
    for file in (story.top / "cache").rglob("index*"):
        if loss == "damaged":
            file.write_bytes(file.read_bytes()[:3000]) if file.name == "index-contents" else None
        elif loss in (file.name, "both"):
            file.unlink()
    (story.source / "old").rename(story.source / "new")

    assert roles(story.back_up()) == {"replay", "state"}
    story.check()


def test_a_table_that_lies_makes_no_wrong_reference(story: Story) -> None:
    """Rows that lead elsewhere: the entry that is found has another digest, and the file is stored."""
    for name in ("a", "b"):
        (story.source / name).write_bytes(rng.randbytes(2000))
    story.back_up(full=True)
    import sqlite3

    [table] = (story.top / "cache").rglob("index-contents")
    with sqlite3.connect(table) as connection:
        rows = connection.execute("SELECT digest, path FROM content").fetchall()
        assert len(rows) == 2
        for (digest, _), (_, path) in zip(rows, rows[::-1], strict=True):
            connection.execute("UPDATE content SET path = ? WHERE digest = ?", (path, digest))
    connection.close()
    (story.source / "a").rename(story.source / "moved")

    assert "created" in roles(story.back_up())
    story.check()


def test_a_full_extracted_and_replayed_has_its_duplicates_below_read_only_directories(story: Story) -> None:
    data = rng.randbytes(5000)
    for name in ("one", "two"):
        (story.source / name).mkdir()
        (story.source / name / "file").write_bytes(data)
        (story.source / name / "file").chmod(0o400)
        os.utime(story.source / name, ns=(10**18, 10**18))
        (story.source / name).chmod(0o555)
    story.back_up(full=True)
    story.check()


def change_type(root: Path) -> None:
    (root / "dir").rmdir()
    (root / "file").rename(root / "dir")
    (root / "file").mkdir()
    (root / "second").rename(root / "file" / "inside")


def nest(root: Path) -> None:
    (root / "file").rename(root / "aside")
    (root / "file").mkdir()
    (root / "aside").rename(root / "file" / "file")


def with_metadata(root: Path) -> None:
    (root / "file").rename(root / "renamed")
    (root / "renamed").chmod(0o4711)
    os.utime(root / "renamed", ns=(5, 5_000_000_000))
    (root / "second").replace(root / "dir" / "file")


@pytest.mark.parametrize("change", [change_type, nest, with_metadata])
def test_names_that_change_their_type_and_place(story: Story, change: Callable[[Path], None]) -> None:
    (story.source / "file").write_bytes(rng.randbytes(4000))
    (story.source / "second").write_bytes(rng.randbytes(4000))
    (story.source / "dir").mkdir()
    story.back_up(full=True)
    change(story.source)
    story.back_up()
    story.check()


def test_a_sparse_file_and_its_copies(story: Story) -> None:
    with (story.source / "sparse").open("wb") as file:
        file.write(b"begin" * 1000)
        file.truncate(3_000_000)
    story.back_up(full=True)
    subprocess.run(["cp", "--sparse=always", story.source / "sparse", story.source / "a-copy"], check=True)
    subprocess.run(["cp", "--sparse=never", story.source / "sparse", story.source / "b-copy"], check=True)

    assert roles(story.back_up()) == {"replay", "state"}
    story.check()


def test_the_signature_of_an_edited_file_is_stored_as_a_delta_and_serves_the_next_one(story: Story) -> None:
    edited = story.source / "edited"
    edited.write_bytes(rng.randbytes(1_000_000))
    story.back_up(full=True)
    sizes = []
    for number in range(4):
        overwrite(edited, 200_000 * number, b"edit")
        report = story.back_up()
        assert roles(report) == {"updated", "sigvault", "replay", "state"}
        signature = story.lines()[b"edited"].entry.sig
        assert signature is not None
        sizes.append(signature.length)

    assert max(sizes) < 60  # a whole one has 20 bytes for each of 977 blocks
    story.check()


def test_a_whole_copy_has_a_whole_signature(story: Story) -> None:
    rewritten = story.source / "rewritten"
    rewritten.write_bytes(rng.randbytes(20_000))
    story.back_up(full=True)
    overwrite(rewritten, 0, b"edit")
    story.back_up()
    rewritten.write_bytes(rng.randbytes(20_000))
    story.back_up()

    signature = story.lines()[b"rewritten"].entry.sig
    assert signature is not None
    assert signature.length == 12 + 20 * -(-20_000 // COARSE_SIGNING.block_len(20_000))
    story.check()


def test_the_script_gives_no_file_the_acl_of_another_with_its_content(story: Story) -> None:
    data = rng.randbytes(5000)
    (story.source / "closed").mkdir()
    for name in ("a", "closed/b"):
        (story.source / name).write_bytes(data)
        (story.source / name).chmod(0o640)
    subprocess.run(["setfacl", "-m", "u:1234:rw-", story.source / "a"], check=True)
    story.back_up(full=True)
    shutil.copyfile(story.source / "a", story.source / "closed" / "c")
    (story.source / "closed" / "c").chmod(0o640)
    story.back_up()

    dest = story.top / "by-script"
    subprocess.run(["sh", story.repository / "RESTORE.sh", "source", dest], check=True)

    assert os.listxattr(dest / "closed" / "b") == os.listxattr(dest / "closed" / "c") == []
    assert stat.S_IMODE((dest / "closed" / "c").stat().st_mode) == 0o640


def test_a_large_file_is_read_twice_only_where_another_has_its_size(story: Story) -> None:
    size = 2_000_000
    (story.source / "edited").write_bytes(rng.randbytes(size))
    os.utime(story.source / "edited", ns=(10**18, 10**18))
    assert story.back_up(full=True).bytes.read == size
    overwrite(story.source / "edited", 1000, b"in place")
    assert story.back_up().bytes.read == size
    overwrite(story.source / "edited", 2000, b"and once more")
    (story.source / "another").write_bytes(rng.randbytes(size + 1))
    assert story.back_up().bytes.read == 2 * size + 1
    story.check()


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_a_killed_run_with_duplicates_and_renames_goes_on(story: Story, kind: str) -> None:
    if kind == "incremental":
        for name in ("base", "moves"):
            (story.source / name).write_bytes(rng.randbytes(1_300_000))
        story.back_up(full=True)
        (story.source / "moves").rename(story.source / "file-05-moved")
        overwrite(story.source / "base", 5000, b"edited")
        shutil.copy(story.source / "base", story.source / "file-06-copy")
    for number in range(20):
        (story.source / f"file-{number:02}").write_bytes(rng.randbytes(300_000))
        shutil.copy(story.source / f"file-{number:02}", story.source / f"file-{number:02}-copy")
    killed = story.back_up(volume_size=1 << 20)
    story.points.pop()
    names = [file.path for file in killed.files if f".{kind.replace('incremental', 'created')}." in file.path]
    for file in killed.files:
        if file.role in ("state", "replay", "sigvault") or file.path == names[-1]:
            (story.repository / file.path).unlink()

    report = story.back_up(volume_size=1 << 20)

    assert report.backup_date == killed.backup_date
    assert set(names[:-1]) <= {file.path for file in report.files}
    assert sum(file.size for file in report.files if file.role in ("full", "created")) < 20 * 310_000
    story.check()


def test_a_file_whose_size_swings_around_a_step_keeps_its_signature(story: Story) -> None:
    swinging = story.source / "swinging"
    swinging.write_bytes(rng.randbytes(16_300))
    story.back_up(full=True)
    for size in (16_500, 16_300, 16_500):
        os.truncate(swinging, 16_200)
        with swinging.open("ab") as file:
            file.write(rng.randbytes(size - 16_200))
        story.back_up()
        signature = story.lines()[b"swinging"].entry.sig
        assert signature is not None
        assert signature.length < 100  # a whole one of the other length has 5 or 9 blocks
    story.check()
