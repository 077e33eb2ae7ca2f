"""The names of a walk with the small files read before they are asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
from support.descriptors import open_descriptors

from incremental_backups_tools.chain.policy import COARSE_SIGNING, FINE_SIGNING, Signing, is_signed
from incremental_backups_tools.delta import signature
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN, ReadAhead, ReadFile, ReadFiles
from incremental_backups_tools.tree.walk import MAX_OPEN_DIRS, Found, Walk


def walk_over(root: Path) -> Walk:
    return Walk(root, on_problem=lambda path, message: pytest.fail(f"{path!r}: {message}"))


def make_tree(root: Path) -> None:
    """Directories of all sizes, one deeper than the walk keeps open, files around every limit, and odd ones."""
    for number in range(150):
        directory = root / f"small {number:03}"
        directory.mkdir()
        (directory / "one").write_bytes(os.urandom(number * 31))
        (directory / "link").symlink_to("one")
    full = root / "full"
    full.mkdir()
    for number in range(300):
        (full / f"{number:03}").write_bytes(os.urandom(number * 211))
    for number in range(60):
        (full / f"z{number:02}").write_bytes(os.urandom(AHEAD_FILE_LEN - 20 + number))
    (full / "z linked").hardlink_to(full / "000")
    os.mkfifo(full / "z pipe")
    deep = root
    for number in range(2 * MAX_OPEN_DIRS):
        deep = deep / f"deep {number}"
        deep.mkdir()
        (deep / "y").write_bytes(b"content" * number)


def names_of(
    root: Path, signing: Signing = FINE_SIGNING
) -> Generator[tuple[Found, ReadFile | None, int], None, None]:
    """Each name, with the file that it is where that was read, and since when."""
    for item in ReadAhead(walk_over(root), signing.small_files):
        if isinstance(item, ReadFiles):
            for position in range(item.begin, item.end):
                file, found = item.file(position), item.found(position)
                assert found.rel_path == item.prefix + file.name
                yield found, file, item.begin_ns
        else:
            yield item, None, 0


@pytest.mark.parametrize("signing", [FINE_SIGNING, COARSE_SIGNING])
def test_all_names_come_in_order_and_can_still_be_looked_at(
    tmp_path: Path, no_open_descriptors: None, signing: Signing
) -> None:
    make_tree(tmp_path)
    expected = [found.rel_path for found in walk_over(tmp_path)]

    paths = []
    read_paths = set()
    for found, read, _ in names_of(tmp_path, signing):
        paths.append(found.rel_path)
        assert_can_be_looked_at(found)
        if read is not None:
            read_paths.add(found.rel_path)
            assert read.content == (tmp_path / os.fsdecode(found.rel_path)).read_bytes()
            assert read.inode == found.stat.st_ino
            assert (read.signature is not None) == is_signed(len(read.content))
            if read.signature is not None:
                block_len = signing.block_len(len(read.content))
                assert read.signature == signature(bytes(read.content), block_len=block_len)

    assert paths == expected
    small = {
        path
        for path in map(os.fsdecode, expected)
        if stat.S_ISREG((info := (tmp_path / path).lstat()).st_mode)
        and info.st_nlink == 1
        and info.st_size <= AHEAD_FILE_LEN
    }
    assert read_paths == {os.fsencode(path) for path in small}


def assert_can_be_looked_at(found: Found) -> None:
    if found.rel_path:
        seen = os.stat(found.name, dir_fd=found.dir_fd, follow_symlinks=False)
        assert (seen.st_dev, seen.st_ino) == (found.stat.st_dev, found.stat.st_ino)
    if found.fd is not None:
        assert os.fstat(found.fd).st_ino == found.stat.st_ino


def test_whoever_stops_early_leaves_nothing_open(tmp_path: Path, no_open_descriptors: None) -> None:
    make_tree(tmp_path)
    for count in (0, 1, 100, 400):
        names = names_of(tmp_path)
        for _ in range(count):
            next(names)
        names.close()


def test_few_descriptors_are_enough(tmp_path: Path) -> None:
    make_tree(tmp_path)
    most = 0
    before = open_descriptors()
    for _ in names_of(tmp_path):
        most = max(most, len(open_descriptors() - before))
    assert most < 200


def test_many_names_that_are_not_read_keep_their_directory_open(tmp_path: Path) -> None:
    """One reading passes all of them at once, far more than are kept waiting."""
    for directory in "abc":
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "m").write_bytes(b"read")
        for number in range(500):
            (tmp_path / directory / f"{number:03}").symlink_to("m")
    names = []
    for found, _, _ in names_of(tmp_path):
        assert_can_be_looked_at(found)
        names.append(found.rel_path)
    assert names == [found.rel_path for found in walk_over(tmp_path)]


def test_a_change_after_it_was_read_is_no_part_of_it_and_begins_later(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"before")
    names = names_of(tmp_path)
    next(names)
    _, first, _ = next(names)
    (tmp_path / "b").write_bytes(b"after!")
    _, second, begin_ns = next(names)
    assert first is not None and second is not None
    assert second.content == b"before"
    assert begin_ns < (tmp_path / "b").stat().st_ctime_ns
