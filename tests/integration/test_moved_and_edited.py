"""A file that was moved and edited is a delta of what it was, and comes back, in both ways."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stories import Story, added, overwrite, roles

from incremental_backups_tools.chain.policy import MAX_EXACT_LEN
from incremental_backups_tools.chain.report import BackupReport

rng = random.Random(6)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def edit(path: Path) -> None:
    """Some bytes in the middle, in a new inode, as editors and version control write."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 7] = b"something else"
    aside = path.with_name("aside")
    aside.write_bytes(data)
    aside.replace(path)


def assert_delta_of(story: Story, report: BackupReport, path: bytes, source: bytes) -> None:
    line = story.lines()[path]
    assert (line.op, line.entry.source) == ("+", source)
    assert line.entry.data is not None and ".updated." in line.entry.data.file
    assert line.entry.sig is not None
    assert added(report) < 20_000


def other_directory(root: Path) -> Path:
    (root / "new" / "deep").mkdir(parents=True)
    return root / "new" / "deep" / "report.txt"


def first_in_order(root: Path) -> Path:
    return root / "a" / "report.txt"


def beside(root: Path) -> Path:
    return root / "m" / "report-2.txt"


def beside_and_before(root: Path) -> Path:
    return root / "m" / "final.txt"


@pytest.mark.parametrize("new_name", [other_directory, first_in_order, beside, beside_and_before])
def test_an_edited_file_is_found_by_its_base_name_or_its_neighbours(
    story: Story, new_name: Callable[[Path], Path]
) -> None:
    old = story.source / "m" / "report.txt"
    for directory in ("a", "m"):
        (story.source / directory).mkdir()
    old.write_bytes(rng.randbytes(200_000))
    for number in range(100):
        (story.source / "m" / f"{number}.txt").write_bytes(rng.randbytes(5000 + number))
    story.back_up(full=True)
    new = new_name(story.source)
    old.rename(new)
    edit(new)

    assert_delta_of(story, story.back_up(), os.fsencode(new.relative_to(story.source)), b"m/report.txt")
    overwrite(new, 1000, b"once more")
    assert roles(story.back_up()) == {"updated", "sigvault", "replay", "state"}
    story.check()


def test_a_file_that_has_nothing_but_its_inode_left(story: Story) -> None:
    (story.source / "old").mkdir()
    (story.source / "old" / "report.txt").write_bytes(rng.randbytes(200_000))
    story.back_up(full=True)
    (story.source / "old" / "report.txt").rename(story.source / "kept")
    overwrite(story.source / "kept", 5000, b"edited in place")

    assert_delta_of(story, story.back_up(), b"kept", b"old/report.txt")
    story.check()


def test_another_new_file_takes_the_old_name(story: Story) -> None:
    log = story.source / "log"
    log.write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    for _ in range(3):
        for number in (2, 1):
            if (older := story.source / f"log.{number}").exists():
                older.rename(story.source / f"log.{number + 1}")
        log.rename(story.source / "log.1")
        with (story.source / "log.1").open("ab") as file:
            file.write(b"the last line\n")
        log.write_bytes(rng.randbytes(100_000))
        report = story.back_up()

    assert added(report) < 310_000
    story.check()


def test_chains_of_moves_and_edits(story: Story) -> None:
    name = story.source / "name-0"
    name.write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    for number in range(1, 5):
        name = name.rename(story.source / f"name-{number}")
        edit(name)
        report = story.back_up()
        assert_delta_of(story, report, b"name-%d" % number, b"name-%d" % (number - 1))
    story.check()


def test_a_base_with_several_names_of_which_some_stay(story: Story) -> None:
    (story.source / "one").mkdir()
    (story.source / "one" / "a.bin").write_bytes(rng.randbytes(100_000))
    os.link(story.source / "one" / "a.bin", story.source / "one" / "b.bin")
    os.link(story.source / "one" / "a.bin", story.source / "z.bin")
    story.back_up(full=True)
    shutil.copy(story.source / "one" / "a.bin", story.source / "one" / "c.bin")
    (story.source / "one" / "a.bin").unlink()
    edit(story.source / "one" / "c.bin")
    os.link(story.source / "one" / "c.bin", story.source / "one" / "d.bin")

    assert_delta_of(story, story.back_up(), b"one/c.bin", b"one/a.bin")
    story.check()


def test_a_duplicate_of_a_file_that_was_moved_and_edited(story: Story) -> None:
    (story.source / "old.bin").write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    new = (story.source / "old.bin").rename(story.source / "new.bin")
    edit(new)
    shutil.copy(new, story.source / "other.bin")

    report = story.back_up()

    lines = story.lines()
    assert lines[b"new.bin"].entry.data == lines[b"other.bin"].entry.data
    assert lines[b"new.bin"].entry.source == lines[b"other.bin"].entry.source == b"old.bin"
    assert "created" not in roles(report)
    story.check()


def test_names_that_change_their_type_as_well(story: Story) -> None:
    (story.source / "file").write_bytes(rng.randbytes(50_000))
    (story.source / "directory").mkdir()
    (story.source / "directory" / "inside").write_bytes(rng.randbytes(50_000))
    story.back_up(full=True)
    inside = (story.source / "directory" / "inside").rename(story.source / "aside")
    (story.source / "directory").rmdir()
    inside.rename(story.source / "directory")
    (story.source / "file").rename(story.source / "aside")
    (story.source / "file").mkdir()
    (story.source / "aside").rename(story.source / "file" / "file")
    overwrite(story.source / "file" / "file", 20_000, b"edited")
    overwrite(story.source / "directory", 20_000, b"edited")

    report = story.back_up()

    assert_delta_of(story, report, b"file/file", b"file")
    assert_delta_of(story, report, b"directory", b"directory/inside")
    story.check()


def test_a_sparse_file_that_was_moved_and_edited(story: Story) -> None:
    with (story.source / "old.img").open("wb") as file:
        file.write(rng.randbytes(300_000))
        file.truncate(3_000_000)
    story.back_up(full=True)
    new = (story.source / "old.img").rename(story.source / "new.img")
    overwrite(new, 1000, b"edited")

    assert_delta_of(story, story.back_up(), b"new.img", b"old.img")
    story.check()


@pytest.mark.parametrize("what", ["another content", "too small", "other size", "still there"])
def test_what_is_stored_whole_all_the_same(story: Story, what: str) -> None:
    size = 2000 if what == "too small" else 100_000
    old, new = story.source / "old.bin", story.source / "new.bin"
    old.write_bytes(rng.randbytes(size))
    story.back_up(full=True)
    if what == "another content":
        old.unlink()
        new.write_bytes(rng.randbytes(size))
    elif what == "other size":
        old.unlink()
        new.write_bytes(rng.randbytes(3 * size))
    else:
        shutil.copy(old, new)
        if what == "too small":
            old.unlink()
        edit(new)

    assert "updated" not in roles(story.back_up())
    assert story.lines()[b"new.bin"].entry.source is None
    story.check()


def test_the_right_one_of_many_files_of_one_name_is_found(story: Story) -> None:
    for number in range(60):
        (story.source / f"{number:02}").mkdir()
        (story.source / f"{number:02}" / "Makefile").write_bytes(rng.randbytes(8000 + 10 * number))
    story.back_up(full=True)
    (story.source / "30").rename(story.source / "moved")
    edit(story.source / "moved" / "Makefile")

    assert_delta_of(story, story.back_up(), b"moved/Makefile", b"30/Makefile")
    story.check()


def test_it_is_found_without_the_cache_by_its_name_alone(story: Story) -> None:
    (story.source / "old.bin").write_bytes(rng.randbytes(100_000))
    story.back_up(full=True)
    shutil.rmtree(story.top / "cache")
    new = (story.source / "old.bin").rename(story.source / "new.bin")
    edit(new)

    assert_delta_of(story, story.back_up(), b"new.bin", b"old.bin")
    story.check()


@pytest.mark.parametrize(("size", "role"), [(100_000, "updated"), (MAX_EXACT_LEN + 1, "created")])
def test_a_damaged_signature_of_the_old_name_is_made_no_delta_of(story: Story, size: int, role: str) -> None:
    """Where the old bytes are read they do as well; else the file is stored whole."""
    (story.source / "old.bin").write_bytes(rng.randbytes(size))
    report = story.back_up(full=True)
    new = (story.source / "old.bin").rename(story.source / "new.bin")
    edit(new)
    [vault] = [story.repository / file.path for file in report.files if file.role == "sigvault"]
    whole = vault.read_bytes()
    vault.write_bytes(whole[:600] + bytes(byte ^ 1 for byte in whole[600:700]) + whole[700:])

    assert roles(story.back_up()) & {"updated", "created"} == {role}
    vault.write_bytes(whole)
    story.check()
