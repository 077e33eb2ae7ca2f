"""Contents that are held already are found by size and digest, in bounded memory, and never wrongly."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest
from blake3 import blake3

from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.index_cache import IndexCacheWriter, IndexIdentity
from incremental_backups_tools.chain.known_content import KnownContent
from incremental_backups_tools.chain.parent_index import (
    CONTENTS_NAME,
    ParentIndex,
    keep_index,
    open_parent_index,
    rebuild_parent_index,
)
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.tree.entry import Entry, Location, sort_key

NOW, BEFORE = "20260102T000000.000000Z", "20260101T000000.000000Z"
IDENTITY = IndexIdentity("0" * 32, "key", [(BEFORE, 0)], "1" * 64)


def digest_of(number: int) -> bytes:
    return blake3(b"%d" % number).digest()


def held(number: int, *, backup_id: str = BEFORE, size: int | None = None) -> ResolvedEntry:
    """A file whose content is *number*."""
    length = 1000 + number if size is None else size
    entry = Entry(path=b"file-%08d" % number, type="file", mode=0o644, size=length, digest=digest_of(number))
    place = Location(f"{backup_id}.full.0000.tar.zst", 512 * number, length)
    return ResolvedEntry(entry, (place,), (), None, entry.digest)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    with (tmp_path / "index").open("w+b") as opened:
        yield opened


class Own:
    """An index that is being written, and what finds contents in it."""

    def __init__(self, file: BinaryIO, parent: ParentIndex | None = None) -> None:
        self.contents = ContentTable.create()
        self.writer = IndexCacheWriter(file, contents=self.contents)
        self.known = KnownContent(
            parent=(parent.file, parent.contents) if parent is not None else None,
            own=self.writer,
            own_file=file,
            own_contents=self.contents,
            own_files=f"{NOW}.",
        )


@pytest.fixture
def own(file: BinaryIO) -> Iterator[Own]:
    made = Own(file)
    with closing(made.contents):
        yield made


def test_every_content_of_an_index_of_many_frames_is_found(own: Own) -> None:
    count = 12_000  # several frames, and more than the table gathers before it writes
    for number in range(count):
        own.writer.write(held(number, backup_id=NOW))

    for number in random.Random(1).sample(range(count), 300) + [0, count - 1]:
        known = own.known.find(1000 + number, digest_of(number))
        assert known is not None
        assert not known.is_parent
        assert known.resolved == held(number, backup_id=NOW)
        assert own.known.has_size(1000 + number, but=None)
    assert own.known.find(1000, digest_of(1)) is None
    assert own.known.find(1000, digest_of(count)) is None
    assert not own.known.has_size(999, but=None)


def test_what_this_backup_has_not_stored_itself_is_no_duplicate(own: Own) -> None:
    own.writer.write(held(1, backup_id=BEFORE))

    assert own.known.find(1001, digest_of(1)) is None


def test_the_parent_comes_first(tmp_path: Path, file: BinaryIO) -> None:
    with (tmp_path / "parent").open("w+b") as parent_file:
        parent = rebuild_parent_index([held(number) for number in range(10)], IDENTITY, parent_file)
        own = Own(file, parent)
        with closing(parent.contents), closing(own.contents):
            own.writer.write(held(3, backup_id=NOW))
            known = own.known.find(1003, digest_of(3))
            assert known is not None
            assert known.is_parent
            assert [entry.resolved for entry in parent.entries] == [held(number) for number in range(10)]


def test_neither_links_nor_what_is_no_file_is_found(own: Own) -> None:
    target = held(1, backup_id=NOW)
    own.writer.write(
        target.with_entry(Entry(path=b"link", type="file", mode=0o644, size=1001, link_of=b"file"))
    )
    own.writer.write(ResolvedEntry(Entry(path=b"m", type="dir", mode=0o755)))

    assert own.known.find(1001, digest_of(1)) is None


def test_small_contents_are_not_looked_up(own: Own) -> None:
    for size in (0, MIN_SHARED_LEN - 1, MIN_SHARED_LEN):
        own.writer.write(held(size, backup_id=NOW, size=size))

    found = [own.known.find(size, digest_of(size)) for size in (0, MIN_SHARED_LEN - 1, MIN_SHARED_LEN)]
    assert [known is not None for known in found] == [False, False, True]
    assert not own.known.has_size(0, but=None)
    assert own.known.has_size(MIN_SHARED_LEN, but=None)


def test_a_size_is_looked_for_among_other_contents_than_the_one_before(own: Own) -> None:
    own.writer.write(held(1, backup_id=NOW))
    assert not own.known.has_size(1001, but=digest_of(1))
    assert own.known.has_size(1001, but=digest_of(2))

    own.writer.write(held(2, backup_id=NOW, size=1001))
    assert own.known.has_size(1001, but=digest_of(1))


def test_contents_whose_digests_begin_alike_are_not_taken_for_each_other(own: Own) -> None:
    first = held(1, backup_id=NOW)
    own.writer.write(first)
    assert first.entry.digest is not None
    other = first.entry.digest[:31] + bytes([first.entry.digest[31] ^ 1])

    assert own.known.find(1001, other) is None
    assert own.known.find(1001, first.entry.digest) is not None


def make_cache(root: Path, count: int) -> tuple[Cache, Path]:
    """A cache with an index and its table, and where that is."""
    cache = Cache(root / "name with ? and # and %41", "0" * 32, "key")
    root.mkdir(exist_ok=True)
    with closing(ContentTable.create()) as contents, (root / "made").open("w+b") as file:
        writer = IndexCacheWriter(file, contents=contents)
        for number in range(count):
            writer.write(held(number))
        writer.close(IDENTITY)
        keep_index(cache, file, writer, IDENTITY, contents)
    return cache, Path(cache.fs_path, CONTENTS_NAME)


class Remade:
    """What has to be made again when a parent's index is opened."""

    def __init__(self, tmp_path: Path) -> None:
        self._path = tmp_path / "remade"
        self.states_were_read = False
        self.files: list[BinaryIO] = []

    def states(self) -> list[ResolvedEntry]:
        self.states_were_read = True
        return [held(number) for number in range(5000)]

    def file(self) -> BinaryIO:
        self.files.append(self._path.open("w+b"))
        return self.files[-1]


DAMAGES = ["none", "missing", "cut", "empty", "garbage", "another index", "directory", "scribbled"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_kept_table_is_used_or_made_again(tmp_path: Path, file: BinaryIO, damage: str) -> None:
    cache, table = make_cache(tmp_path / "one", 5000)
    whole = table.read_bytes()
    if damage in ("missing", "directory"):
        table.unlink()
    if damage == "directory":
        table.mkdir()
    elif damage == "another index":
        table.write_bytes(make_cache(tmp_path / "other", 7)[1].read_bytes())
    elif damage not in ("none", "missing"):
        noise = random.Random(1).randbytes(len(whole))
        scribbled = whole[:16384] + noise[16384:-4096] + whole[-4096:]
        table.write_bytes({"cut": whole[:9000], "empty": b"", "garbage": noise}.get(damage, scribbled))
    remade = Remade(tmp_path)

    parent = open_parent_index(cache, IDENTITY, remade.states, remade.file)

    # What begins like a whole table is taken for one, and then finds less.
    assert parent.is_cached == (damage in ("none", "scribbled"))
    assert not remade.states_were_read
    own = Own(file, parent)
    with closing(parent), closing(own.contents):
        found = [own.known.find(1000 + number, digest_of(number)) for number in range(0, 5000, 250)]
        assert damage == "scribbled" or all(known is not None and known.is_parent for known in found)
        assert [entry.resolved for entry in parent.entries] == [held(number) for number in range(5000)]


@pytest.mark.parametrize("damage", ["missing", "cut", "of other states"])
def test_an_index_that_cannot_be_used_is_made_from_the_states(tmp_path: Path, damage: str) -> None:
    cache, table = make_cache(tmp_path / "one", 5000)
    index = table.with_name("index")
    identity = IDENTITY
    if damage == "missing":
        index.unlink()
    elif damage == "cut":
        index.write_bytes(index.read_bytes()[:-1000])
    else:
        identity = IndexIdentity("0" * 32, "key", [(BEFORE, 1)], "1" * 64)
    remade = Remade(tmp_path)

    with closing(open_parent_index(cache, identity, remade.states, remade.file)) as parent:
        assert remade.states_were_read
        assert parent.contents.path_of(1007, digest_of(7)) == held(7).path
        assert [entry.resolved for entry in parent.entries] == [held(number) for number in range(5000)]


@pytest.mark.parametrize(
    "path", [b"", b"!", b"file-00000002", b"file-00000002/x", b"z", b"\xff", b'"', b"a\nb"]
)
def test_a_made_up_path_finds_nothing(tmp_path: Path, file: BinaryIO, path: bytes) -> None:
    with (tmp_path / "parent").open("w+b") as parent_file:
        parent = rebuild_parent_index([held(number) for number in range(1, 4)], IDENTITY, parent_file)
        table = ContentTable.create()
        table.add(1001, digest_of(1), path)
        own = Own(file, ParentIndex(parent.entries, parent_file, table))
        with closing(parent.contents), closing(table), closing(own.contents):
            assert own.known.find(1001, digest_of(1)) is None


def test_a_name_of_any_bytes_is_found(own: Own) -> None:
    names = [
        b"\x01",
        b" ",
        b'"a"',
        b"\\",
        b"a",
        b"a/b",
        b"a/b.c",
        b"a.b",
        b"\xc3\xa9",
        b"\xc3\xa9/\xff",
        b"\xff\n",
    ]
    for number, name in enumerate(sorted(names, key=sort_key)):
        resolved = held(number, backup_id=NOW)
        own.writer.write(resolved.with_entry(msgspec.structs.replace(resolved.entry, path=name)))
    own.writer.close(IDENTITY)  # all are in the file, and none in the open frame

    for number, name in enumerate(sorted(names, key=sort_key)):
        known = own.known.find(1000 + number, digest_of(number))
        assert known is not None
        assert known.resolved.path == name


def test_of_many_files_with_one_content_the_first_that_was_met_is_found(own: Own) -> None:
    # As bytes they sort otherwise: a full stop comes before a slash.
    names = [b"a/x", b"a/y", b"a.b", b"a.b/x"]
    for name in names:
        resolved = held(1, backup_id=NOW)
        own.writer.write(resolved.with_entry(msgspec.structs.replace(resolved.entry, path=name)))
        known = own.known.find(1001, digest_of(1))
        assert known is not None
        assert known.resolved.path == b"a/x"
        assert not own.known.has_size(1001, but=digest_of(1))


def test_an_index_that_cannot_be_searched_finds_nothing_and_says_so_once(
    tmp_path: Path, file: BinaryIO, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "parent").open("w+b") as parent_file:
        parent = rebuild_parent_index([held(number) for number in range(10)], IDENTITY, parent_file)
        os.truncate(parent_file.fileno(), 100)
        own = Own(file, parent)
        with closing(parent.contents), closing(own.contents):
            assert own.known.find(1003, digest_of(3)) is None
            assert own.known.find(1004, digest_of(4)) is None
    assert len(caplog.records) == 1


def test_nothing_is_left_in_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with closing(ContentTable.create()) as table, closing(ContentTable.create()) as next_table:
        for number in range(20_000):
            table.add(number, digest_of(number), b"%d" % number)
        assert table.path_of(7, digest_of(7)) == b"7"
        next_table.save("token", io.BytesIO(), before=table)
        assert list(tmp_path.iterdir()) == []
