"""What a new file may have been is found by its inode, its name and its neighbours, and by nothing that fails."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3

from incremental_backups_tools.chain.index_cache import IndexCacheWriter, IndexIdentity
from incremental_backups_tools.chain.moved_files import MovedFiles
from incremental_backups_tools.chain.policy import MAX_MOVED_TRIES
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.tree.entry import Entry, Location, sort_key

IDENTITY = IndexIdentity("0" * 32, "key", [("20260101T000000.000000Z", 0)], "1" * 64)
SIZE = 100_000


def held(path: bytes, *, size: int = SIZE, inode: int | None = None, signed: bool = True) -> ResolvedEntry:
    entry = Entry(
        path=path, type="file", mode=0o644, size=size, digest=blake3(path).digest(), inode=inode, dev=1
    )
    place = Location("20260101T000000.000000Z.full.0000.tar.zst", 512, size)
    digest = blake3(path).hexdigest() if signed else None
    return ResolvedEntry(entry, (place,), (place,) if signed else (), digest, entry.digest)


@contextmanager
def moved_files(top: Path, index: Iterable[ResolvedEntry]) -> Iterator[MovedFiles]:
    """Of a parent with these files, none of which is in the source any more."""
    with (top / "index").open("w+b") as file:
        writer = IndexCacheWriter(file)
        for resolved in index:
            writer.write(resolved)
        writer.close(IDENTITY)
        file.flush()
        with closing(MovedFiles(file, str(top / "source"))) as moved:
            yield moved


def info(*, size: int = SIZE, inode: int = 99, names: int = 1) -> os.stat_result:
    return os.stat_result((0o100644, inode, 1, names, 0, 0, size, 0, 0, 0))


def found(
    moved: MovedFiles, path: bytes, *, size: int = SIZE, inode: int = 99, names: int = 1
) -> list[bytes]:
    return [resolved.path for resolved in moved.candidates(path, info(size=size, inode=inode, names=names))]


def as_it_is(top: Path, path: str) -> ResolvedEntry:
    """A directory or file of the source, as it is."""
    stat = (top / "source" / path).lstat()
    name = path.encode()
    if (top / "source" / path).is_dir():
        entry = Entry(
            path=name,
            type="dir",
            mode=0o755,
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
            inode=stat.st_ino,
            dev=1,
        )
        return ResolvedEntry(entry)
    return held(name, inode=stat.st_ino)


def test_the_surest_sign_comes_first(tmp_path: Path) -> None:
    index = [held(b"new/beside.c"), held(b"old/name.c"), held(b"z", inode=7)]
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"new/name.c") == [b"old/name.c", b"new/beside.c"]
        assert found(moved, b"new/name.c", inode=7) == [b"z", b"old/name.c"]
        assert found(moved, b"new/other.c") == [b"new/beside.c"]
        assert found(moved, b"new/other.h") == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [(SIZE // 2 - 1, False), (SIZE // 2, True), (2 * SIZE, True), (2 * SIZE + 2, False), (0, False)],
)
def test_only_files_of_about_the_size_are_found(tmp_path: Path, size: int, expected: bool) -> None:
    with moved_files(tmp_path, [held(b"old/name")]) as moved:
        assert found(moved, b"new/name", size=size) == ([b"old/name"] if expected else [])


def test_the_nearest_sizes_are_tried_and_few_of_them(tmp_path: Path) -> None:
    index = [held(b"%04d/name" % number, size=SIZE + 10 * number) for number in range(5000)]
    with moved_files(tmp_path, index) as moved:
        paths = found(moved, b"new/name", size=SIZE + 30_001)
    assert paths[0] == b"3000/name"
    assert len(paths) == MAX_MOVED_TRIES


def test_what_is_still_there_is_passed_over_unless_it_is_the_same_inode(tmp_path: Path) -> None:
    (tmp_path / "source" / "old").mkdir(parents=True)
    (tmp_path / "source" / "old" / "name").touch()
    (tmp_path / "source" / "became-a-directory").mkdir()
    index = [held(b"became-a-directory", inode=5), held(b"old/name", inode=7)]
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"new/name") == []
        assert found(moved, b"new/name", inode=7) == [b"old/name"]
        assert found(moved, b"new/became-a-directory") == [b"became-a-directory"]


def make_source(top: Path, *names: str) -> list[ResolvedEntry]:
    """The index of a source with these files, in their order; they stay as they are."""
    for name in names:
        (top / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "source" / name).touch()
    above = {str(parent) for name in names for parent in Path(name).parents}
    paths = sorted({*names, *above}, key=lambda path: sort_key(path.encode()))
    return [as_it_is(top, path) for path in paths]


NAMES = ["a/log", "a/x/deep", "a/x/name", "a/y", "b/name", "top"]


def test_a_file_that_lost_its_name_to_another_is_found_by_its_inode(tmp_path: Path) -> None:
    index = make_source(tmp_path, *NAMES)
    log = tmp_path / "source" / "a" / "log"
    inode = log.stat().st_ino
    log.rename(log.with_name("log.1"))
    log.touch()
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"a/log.1", inode=inode) == [b"a/log"]


def test_a_file_that_went_is_found_among_those_that_stay(tmp_path: Path) -> None:
    index = make_source(tmp_path, *NAMES)
    (tmp_path / "source" / "a" / "x" / "name").unlink()
    (tmp_path / "source" / "top").unlink()
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"new/name") == [b"a/x/name"]
        assert found(moved, b"new/top") == [b"top"]
        assert found(moved, b"a/x/new") == [b"a/x/name"]
        assert found(moved, b"new/y") == []


def test_files_of_a_directory_that_went_are_found(tmp_path: Path) -> None:
    index = make_source(tmp_path, *NAMES)
    (tmp_path / "source" / "a").rename(tmp_path / "source" / "c")
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"c/x/deep") == [b"a/x/deep"]
        assert found(moved, b"c/y") == [b"a/y"]
        assert found(moved, b"c/x/name") == [b"a/x/name"]


def test_a_file_with_several_names_is_found_by_one_that_it_still_has(tmp_path: Path) -> None:
    index = make_source(tmp_path, *NAMES)
    inode = (tmp_path / "source" / "b" / "name").stat().st_ino
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"a/new", inode=inode) == []
        assert found(moved, b"a/new", inode=inode, names=2) == [b"b/name"]
        assert found(moved, b"a/new", inode=inode) == [b"b/name"]


def test_of_a_directory_with_very_many_names_those_that_went_are_found(tmp_path: Path) -> None:
    index = make_source(tmp_path, *(f"many/{number:05}" for number in range(10_100)), "z/name")
    (tmp_path / "source" / "many" / "05000").unlink()
    with moved_files(tmp_path, index) as moved:
        assert found(moved, b"z/05000") == [b"many/05000"]
        assert found(moved, b"z/05001") == []


def test_links_and_files_without_a_signature_are_no_base(tmp_path: Path) -> None:
    link = held(b"b/name")
    link = link.with_entry(Entry(path=b"b/name", type="file", mode=0o644, size=SIZE, link_of=b"a"))
    directory = ResolvedEntry(Entry(path=b"c", type="dir", mode=0o755))
    with moved_files(tmp_path, [held(b"a/name", signed=False), link, directory]) as moved:
        assert found(moved, b"new/name") == []


def test_names_of_any_bytes(tmp_path: Path) -> None:
    with moved_files(tmp_path, [held(b"old/\xff\n.\xfe")]) as moved:
        assert found(moved, b"new/\xff\n.\xfe") == [b"old/\xff\n.\xfe"]
        assert found(moved, b"old/\xff.\xfe") == [b"old/\xff\n.\xfe"]


def test_an_index_that_cannot_be_read_finds_nothing_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with moved_files(tmp_path, [held(b"old/name")]) as moved:
        (tmp_path / "index").write_bytes(b"no index at all")
        assert found(moved, b"new/name") == []
        assert found(moved, b"new/name") == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize("seed", range(4))
def test_in_a_deep_tree_exactly_those_that_went_are_found(tmp_path: Path, seed: int) -> None:
    """Directories that are as they were and others, in every order, with files before, between and after them."""
    rng = random.Random(seed)
    directories = [""]
    for number in range(60):
        parent = rng.choice(directories)
        directories.append(parent + rng.choice(["d", "m", "x", "ä", 'q"']) + f"{number}/")
    names = [f"{rng.choice(directories)}{rng.choice('bkmz')}{number:04}.{number}" for number in range(600)]
    index = make_source(tmp_path, *names)
    gone = set(rng.sample(names, 40))
    for name in gone:
        (tmp_path / "source" / name).unlink()
    with moved_files(tmp_path, index) as moved:
        for name in names:
            expected = [name.encode()] if name in gone else []
            assert found(moved, b"elsewhere/" + Path(name).name.encode()) == expected
