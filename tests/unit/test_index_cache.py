"""The cached index: copied line by line, left as it is where nothing changed, believed only where it may be."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.index_cache import (
    IDENTITY_NAME,
    INDEX_NAME,
    CachedLines,
    IndexCacheWriter,
    IndexIdentity,
    encode_kept_identity,
    encode_resolved,
    open_cached_index,
)
from incremental_backups_tools.chain.parent_index import CONTENTS_NAME, keep_index, open_parent_index
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.tree.entry import Entry, Location
from incremental_backups_tools.tree.records import MAX_LINE_LEN

OLD = IndexIdentity("0" * 32, "key", [("a", 0)], "00")
NEW = IndexIdentity("0" * 32, "key", [("a", 0), ("b", 0)], "00")
NEWER = IndexIdentity("0" * 32, "key", [("a", 0), ("b", 0), ("c", 0)], "01")
COUNT = 10_000  # several frames, and many blocks


def held(number: int) -> ResolvedEntry:
    digest = number.to_bytes(32, "big")
    entry = Entry(
        path=b"%06d" % number, type="file", mode=0o644, size=100 + number, digest=digest, ctime_ns=1, inode=1
    )
    return ResolvedEntry(entry, (Location("a.full.0000.tar.zst", 0, 1),), (), None, digest)


class Kept:
    """A cache that is written and read as backups do it."""

    def __init__(self, top: Path, stack: ExitStack) -> None:
        self.table_path = Path(top / "cache", "0" * 32, "key", CONTENTS_NAME)
        self._top = top
        self._stack = stack
        self.cache = Cache(top / "cache", "0" * 32, "key")
        self.path = Path(self.cache.fs_path, INDEX_NAME)

    def write(
        self, base: CachedLines | None, entries: Iterator[object], identity: IndexIdentity
    ) -> IndexCacheWriter:
        """Keep an index of *entries*: resolved ones, or (lines, count) as taken from *base*."""
        before = ContentTable.open(str(self.table_path), base.token) if base is not None else None
        if before is not None:
            self._stack.callback(before.close)
        with closing(ContentTable.create()) as contents, (self._top / "made").open("w+b") as file:
            writer = IndexCacheWriter(file, contents=contents)
            writer.base = base
            for item in entries:
                if isinstance(item, ResolvedEntry):
                    writer.write(item)
                else:
                    writer.write_lines(*item)  # type: ignore[misc]
            writer.close(identity)
            keep_index(self.cache, file, writer, identity, contents, before=before)
        return writer

    def paths(self, identity: IndexIdentity) -> list[bytes] | None:
        """What the cache has for *identity*, and whose contents are found."""

        def fail() -> list[ResolvedEntry]:
            raise LookupError

        try:
            parent = open_parent_index(self.cache, identity, fail, (self._top / "remade").open)  # type: ignore[arg-type]
        except LookupError:
            return None
        with closing(parent):
            assert parent.is_cached
            resolved = [cached.resolved for cached in parent.entries]
            for item in resolved[:: COUNT // 10]:
                if item.entry.digest is None:
                    continue
                assert parent.contents.path_of(item.entry.size, item.entry.digest) == item.path
            return [item.path for item in resolved]

    def open(self, identity: IndexIdentity) -> CachedLines:
        kept = Path(self.cache.fs_path, IDENTITY_NAME)
        file = self._stack.enter_context(self.path.open("rb"))
        lines = open_cached_index(file, identity, kept_identity=kept.read_bytes() if kept.exists() else b"")
        assert lines is not None
        return lines


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with ExitStack() as stack:
        made = Kept(tmp_path, stack)
        made.write(None, map(held, range(COUNT)), OLD)
        yield made


PATHS = [held(number).path for number in range(COUNT)]


def all_of(base: CachedLines) -> Iterator[tuple[bytes, int]]:
    """Everything in *base*, in pieces of some lines."""
    while base.has_more():
        end = base.block.index(b"\n", min(base.offset + 5000, len(base.block) - 1)) + 1
        count = base.block.count(b"\n", base.offset, end)
        if base.taken + count > base.count:  # the last line is none of an entry
            end, count = base.block.rindex(b"\n", 0, end - 1) + 1, count - 1
        yield base.take(count, end), count


def test_lines_that_are_decompressed_ahead_are_the_same(kept: Kept) -> None:
    with ThreadPoolExecutor(2) as pool:
        lines = kept.open(OLD)
        lines.read_ahead(pool)
        assert [cached.path for cached in lines] == PATHS


def test_an_index_to_which_nothing_changed_is_left_as_it_is(kept: Kept) -> None:
    before = kept.path.stat()

    writer = kept.write(base := kept.open(OLD), all_of(base), NEW)

    assert writer.is_base
    assert kept.path.stat().st_mtime_ns == before.st_mtime_ns
    assert kept.path.stat().st_ino == before.st_ino
    assert kept.paths(NEW) == PATHS


def test_it_may_be_left_so_many_times_and_then_change(kept: Kept) -> None:
    kept.write(base := kept.open(OLD), all_of(base), NEW)
    kept.write(base := kept.open(NEW), all_of(base), NEWER)
    assert kept.paths(NEWER) == PATHS
    assert kept.paths(NEW) is None

    kept.write(base := kept.open(NEWER), (item for item in [*all_of(base), held(COUNT)]), NEW)
    assert kept.paths(NEW) == [*PATHS, held(COUNT).path]
    assert kept.paths(NEWER) is None


def with_something_before(base: CachedLines) -> Iterator[object]:
    yield ResolvedEntry(Entry(path=b"!", type="dir", mode=0o755))
    yield from all_of(base)


def with_something_behind(base: CachedLines) -> Iterator[object]:
    yield from all_of(base)
    yield held(COUNT)


def without_the_first(base: CachedLines) -> Iterator[object]:
    next(base)
    yield from all_of(base)


def without_the_last(base: CachedLines) -> Iterator[object]:
    for lines, count in all_of(base):
        if base.taken < COUNT:
            yield lines, count
        elif count > 1:
            yield lines[: lines.rindex(b"\n", 0, -1) + 1], count - 1


def without_one_in_the_middle(base: CachedLines) -> Iterator[object]:
    for number, lines in enumerate(all_of(base)):
        if number == 100:
            next(base)
        yield lines


CHANGES = {
    with_something_before: [b"!", *PATHS],
    with_something_behind: [*PATHS, held(COUNT).path],
    without_the_first: PATHS[1:],
    without_the_last: PATHS[:-1],
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_that_changed_anywhere_is_written_anew(kept: Kept, change: object) -> None:
    base = kept.open(OLD)
    writer = kept.write(base, change(base), NEW)  # type: ignore[operator]
    assert not writer.is_base
    assert kept.paths(NEW) == CHANGES[change]  # type: ignore[index]
    assert kept.paths(OLD) is None


def test_one_that_lost_a_name_in_the_middle_is_written_anew(kept: Kept) -> None:
    base = kept.open(OLD)
    assert not kept.write(base, without_one_in_the_middle(base), NEW).is_base
    found = kept.paths(NEW)
    assert found is not None
    assert len(found) == COUNT - 1
    assert set(found) < set(PATHS)


def test_one_that_lost_its_last_names_is_written_anew(kept: Kept) -> None:
    base = kept.open(OLD)
    pieces = (piece for piece in all_of(base) if base.taken < COUNT)
    assert not kept.write(base, pieces, NEW).is_base
    found = kept.paths(NEW)
    assert found is not None
    assert 0 < len(found) < COUNT
    assert found == PATHS[: len(found)]


def test_what_says_that_another_index_is_this_one_too_is_not_believed(kept: Kept) -> None:
    identity_path = Path(kept.cache.fs_path, IDENTITY_NAME)
    for told in (encode_kept_identity("0" * 32, NEW), b"", b"{", b"\xff", b"[]"):
        identity_path.write_bytes(told)
        assert kept.paths(NEW) is None
        assert kept.paths(OLD) == PATHS


def test_without_what_says_so_the_index_is_the_older_one(kept: Kept) -> None:
    kept.write(base := kept.open(OLD), all_of(base), NEW)
    Path(kept.cache.fs_path, IDENTITY_NAME).unlink()
    assert kept.paths(NEW) is None
    assert kept.paths(OLD) == PATHS


def test_a_damaged_index_is_not_the_new_one_either(kept: Kept) -> None:
    kept.write(base := kept.open(OLD), all_of(base), NEW)
    data = bytearray(kept.path.read_bytes())
    data[len(data) // 2] ^= 1
    kept.path.write_bytes(data)
    assert kept.paths(NEW) is None


def test_lines_come_as_they_were_written(kept: Kept) -> None:
    lines = kept.open(OLD)
    assert [cached.raw for cached in lines] == [encode_resolved(held(number)) for number in range(COUNT)]
    assert not lines.has_more()
    first = b"".join(block for block, _ in lines.first_blocks(1234))
    assert first == b"".join(encode_resolved(held(number)) + b"\n" for number in range(1234))


def test_lines_may_be_as_long_as_a_line_may_be(tmp_path: Path) -> None:
    entries = [held(number) for number in range(1000)]
    long = msgspec.structs.replace(entries[-1].entry, user=b"u" * (MAX_LINE_LEN - 1000))
    entries[-1] = entries[-1].with_entry(long)
    with (tmp_path / "index").open("w+b") as file:
        writer = IndexCacheWriter(file)
        for entry in entries:
            writer.write(entry)
        writer.close(OLD)
        lines = open_cached_index(file, OLD)
        assert lines is not None
        assert [cached.raw for cached in lines] == [encode_resolved(entry) for entry in entries]
