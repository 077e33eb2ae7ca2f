"""Looking paths up in a cached index: what reading it whole would find, from a few of its frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trees import NASTY_NAMES

from incremental_backups_tools import full_backup, incremental_backup, restore_backup
from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.index_cache import (
    INDEX_NAME,
    IndexCacheWriter,
    IndexIdentity,
    open_cached_index,
)
from incremental_backups_tools.chain.index_search import IndexSearch, search_cached_index
from incremental_backups_tools.chain.parent_index import keep_index
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import BackupError, StateFormatError
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.tree.entry import ROOT, Entry, Location, sort_key
from incremental_backups_tools.tree.records import FRAME_LEN

IDENTITY = IndexIdentity("0" * 32, "key", [("a", 0)], "00")
OTHER = IndexIdentity("0" * 32, "key", [("b", 0)], "00")


def resolved(path: bytes, *, user: bytes | None = None) -> ResolvedEntry:
    if path == ROOT:
        return ResolvedEntry(Entry(path=ROOT, type="dir", mode=0o755, user=user))
    digest = len(path).to_bytes(32, "big")
    entry = Entry(path=path, type="file", mode=0o644, size=9, digest=digest, user=user, ctime_ns=1, inode=1)
    return ResolvedEntry(entry, (Location("a.full.0000.tar.zst", 0, 9),), (), None, digest)


def write_index(path: Path, entries: list[ResolvedEntry]) -> None:
    with path.open("wb") as file:
        writer = IndexCacheWriter(file)
        for entry in entries:
            writer.write(entry)
        writer.close(IDENTITY)


def expected(entries: list[ResolvedEntry], paths: list[bytes]) -> list[ResolvedEntry]:
    above = {ROOT}
    for path in paths:
        parts = path.split(b"/")
        above.update(b"/".join(parts[:count]) for count in range(1, len(parts)))
    return [
        entry
        for entry in entries
        if entry.path in above
        or any(entry.path == path or entry.path.startswith(path + b"/") for path in paths)
    ]


components = st.sampled_from([b"a", b"a.b", b"a-", b"b", b"ab", b"\xff", b"\xff\xff", "é".encode()])
paths_of_all_depths = st.lists(components, min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=40, deadline=None)
@given(
    names=st.sets(paths_of_all_depths, min_size=1, max_size=40),
    asked=st.lists(paths_of_all_depths, min_size=1, max_size=5),
    long=st.sampled_from([10, FRAME_LEN // 3, FRAME_LEN]),  # many lines, a few, or one in a frame
)
def test_what_is_found_is_what_reading_all_finds(
    tmp_path_factory: pytest.TempPathFactory, names: set[bytes], asked: list[bytes], long: int
) -> None:
    path = tmp_path_factory.mktemp("index") / "index"
    entries = [resolved(name, user=b"u" * long) for name in sorted({ROOT, *names}, key=sort_key)]
    write_index(path, entries)
    with path.open("rb") as file:
        found = list(IndexSearch(file).entries(asked))
    assert found == expected(entries, asked)


def test_a_search_reads_a_small_part_of_a_long_index(tmp_path: Path) -> None:
    entries = [
        resolved(ROOT),
        *(resolved(b"%07d" % number, user=os.urandom(400).hex().encode()) for number in range(40_000)),
    ]
    write_index(tmp_path / "index", entries)
    read = 0
    real = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        data = real(fd, length, offset)
        read += len(data)
        return data

    with (tmp_path / "index").open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", counted)
        search = IndexSearch(file)
        assert [entry.path for entry in search.entries([b"0031415"])] == [ROOT, b"0031415"]
    assert read < (tmp_path / "index").stat().st_size / 3


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache", "0" * 32, "key")
    entries = [resolved(ROOT), *(resolved(b"%07d" % number) for number in range(20_000))]
    with closing(ContentTable.create()) as contents, (tmp_path / "made").open("w+b") as file:
        writer = IndexCacheWriter(file, contents=contents)
        for entry in entries:
            writer.write(entry)
        writer.close(IDENTITY)
        keep_index(cache, file, writer, IDENTITY, contents)
    return cache


def names_found(cache: Cache, identity: IndexIdentity, *asked: bytes) -> list[bytes]:
    rest = iter([resolved(b"from the repository")])
    return [entry.path for entry in search_cached_index(cache, identity, asked, rest)]


def test_the_index_of_something_else_is_not_searched(cache: Cache) -> None:
    assert names_found(cache, IDENTITY, b"0000007") == [ROOT, b"0000007"]
    assert names_found(cache, OTHER, b"0000007") == [b"from the repository"]
    assert names_found(Cache(Path(cache.fs_path).parent.parent, "1" * 32, "key"), IDENTITY, b"0000007") == [
        b"from the repository"
    ]


def test_a_damaged_index_finds_nothing_wrong(cache: Cache) -> None:
    path = Path(cache.fs_path, INDEX_NAME)
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 150):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        found = names_found(cache, IDENTITY, b"0004711", b"0019999")
        assert found in (
            [ROOT, b"0004711", b"0019999"],  # the damage lies elsewhere
            [b"from the repository"],
            [ROOT, b"from the repository"],
            [ROOT, b"0004711", b"from the repository"],
        )
        path.write_bytes(whole[:position])
        assert names_found(cache, IDENTITY, b"0004711") == [b"from the repository"]


def test_lengths_that_lie_are_an_error(cache: Cache) -> None:
    path = Path(cache.fs_path, INDEX_NAME)
    whole = path.read_bytes()
    for position in range(len(whole) - 200, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with path.open("rb") as file:
            try:
                found = [entry.path for entry in IndexSearch(file).entries([b"0019999"])]
            except BackupError:
                continue
            assert found == [ROOT, b"0019999"]


def test_an_index_without_a_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as file, pytest.raises(BackupError):
        IndexSearch(file)
    write_index(tmp_path / "index", [])
    with (tmp_path / "index").open("rb") as file:
        assert list(IndexSearch(file).entries([b"a"])) == []
    assert issubclass(StateFormatError, BackupError)


def test_the_table_behind_it_is_no_part_of_an_index(tmp_path: Path) -> None:
    entries = [resolved(ROOT), resolved(b"a")]
    write_index(tmp_path / "index", entries)
    with (tmp_path / "index").open("rb") as file:
        cached = open_cached_index(file, IDENTITY)
        assert cached is not None
        assert [entry.resolved for entry in cached] == entries


# --- restoring by it ----------------------------------------------------------------------------------------


@pytest.fixture
def backed_up(tmp_path: Path) -> Iterator[Path]:
    """A source of many names, with two backups of it in ``repository``."""
    source = tmp_path / "source"
    for directory in ("some", "some/deep", "other"):
        (source / directory).mkdir(parents=True)
        for name in (b"file", *NASTY_NAMES):
            Path(os.fsdecode(os.path.join(os.fsencode(source / directory), name))).write_bytes(name + b"\n")
    (source / "some" / "second name").hardlink_to(source / "some" / "file")
    full_backup(source, repository=tmp_path / "repository")
    (source / "some" / "file").write_bytes(b"changed")
    incremental_backup(source, repository=tmp_path / "repository")
    yield source


def spoil_states(repository: Path) -> None:
    """Leave the headers, and nothing behind them."""
    for state in repository.glob("source/*.state.jsonl.zst"):
        data = bytearray(state.read_bytes())
        data[-40:] = bytes(40)
        state.write_bytes(data)


def test_a_few_paths_are_restored_without_reading_the_states(tmp_path: Path, backed_up: Path) -> None:
    spoil_states(tmp_path / "repository")
    for number, paths in enumerate(
        (["some/file"], ["some/deep"], ["some"], ["other/file", "some/second name"])
    ):
        out = tmp_path / f"out {number}"
        report = restore_backup("source", out, repository=tmp_path / "repository", paths=paths)
        assert report.problems == []
        for path in paths:
            assert os.system(f"diff -r --no-dereference '{backed_up / path}' '{out / path}'") == 0
    with pytest.raises(BackupError):
        restore_backup("source", tmp_path / "all", repository=tmp_path / "repository")


def test_what_is_not_there_is_said_so(tmp_path: Path, backed_up: Path) -> None:
    with pytest.raises(BackupError, match="nothing named some/nothing"):
        restore_backup(
            "source",
            tmp_path / "out",
            repository=tmp_path / "repository",
            paths=["some/file", "some/nothing"],
        )


def test_an_older_point_is_restored_from_its_states(tmp_path: Path, backed_up: Path) -> None:
    first = min(state.name for state in (tmp_path / "repository").glob("source/*.state.jsonl.zst"))
    restore_backup(
        "source",
        tmp_path / "out",
        repository=tmp_path / "repository",
        paths=["some/file"],
        at=first.partition(".state")[0],
    )
    assert (tmp_path / "out" / "some" / "file").read_bytes() == b"file\n"
