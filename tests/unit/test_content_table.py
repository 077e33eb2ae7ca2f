"""The table of contents outlives its index: it follows it from backup to backup, and is its own index's alone."""

from __future__ import annotations

import io
import itertools
import random
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from incremental_backups_tools.chain.content_table import ContentTable

Tree = dict[bytes, int]  # paths, and which content each has


def digest_of(number: int) -> bytes:
    return blake3(b"%d" % number).digest()


def make(path: Path, token: str, tree: Tree) -> Path:
    """A table of *tree* in the file *path*."""
    with closing(ContentTable.create()) as table, path.open("wb") as out:
        for name in sorted(tree):
            table.add(tree[name] % 5, digest_of(tree[name]), name)
        table.save(token, out)
    return path


def follow(before: ContentTable, old: Tree, new: Tree, token: str, path: Path) -> Path:
    """The table of *new*, out of the one of *old*, as a backup makes it."""
    with closing(ContentTable.create()) as table, path.open("wb") as out:
        for name in sorted(old.keys() | new.keys()):
            was, now = old.get(name), new.get(name)
            if was is not None and was != now:
                table.remove(was % 5, digest_of(was), name)
            if now is not None and was != now:
                table.add(now % 5, digest_of(now), name)
        table.save(token, out, before=before)
    return path


def rows(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT size, digest, path FROM content").fetchall()


def opened(path: Path, token: str) -> ContentTable:
    table = ContentTable.open(str(path), token)
    assert table is not None
    return table


trees = st.dictionaries(st.sampled_from([b"%d" % number for number in range(30)]), st.integers(0, 9))


@settings(max_examples=40, deadline=None)
@given(history=st.lists(trees, min_size=2, max_size=5), is_kept=st.booleans())
def test_it_is_what_it_would_be_if_it_were_made_anew(
    tmp_path_factory: pytest.TempPathFactory, history: list[Tree], is_kept: bool
) -> None:
    top = tmp_path_factory.mktemp("tables")
    path = make(top / "0", "0", history[0])
    for number, (old, new) in enumerate(itertools.pairwise(history)):
        with closing(opened(path, str(number))) as before:
            path = follow(before, old, new, str(number + 1), top / str(number + 1))
    assert rows(path) == rows(make(top / "anew", "anew", history[-1]))
    with closing(opened(path, str(len(history) - 1))) as table:
        for number in range(10):
            holders = [name for name, content in history[-1].items() if content == number]
            assert table.path_of(number % 5, digest_of(number)) == min(holders, default=None)
            others = [c for c in history[-1].values() if c % 5 == number % 5 and c != number]
            assert table.has_size(number % 5, but=digest_of(number)) == bool(others)


def test_one_that_was_made_in_this_run_goes_on_as_well(tmp_path: Path) -> None:
    old, new = {b"a": 1, b"b": 2, b"c": 3}, {b"a": 1, b"b": 4}
    with closing(ContentTable.create()) as before:
        for name, content in old.items():
            before.add(content % 5, digest_of(content), name)
        path = follow(before, old, new, "new", tmp_path / "new")
        assert before.path_of(3, digest_of(3)) == b"c"
    assert rows(path) == rows(make(tmp_path / "anew", "anew", new))
    assert ContentTable.open(str(path), "other") is None


def test_of_two_with_one_content_the_other_is_found_when_the_first_goes(tmp_path: Path) -> None:
    path = make(tmp_path / "0", "0", {b"a": 1, b"b": 1})
    with closing(opened(path, "0")) as before:
        assert before.path_of(1, digest_of(1)) == b"a"
        path = follow(before, {b"a": 1, b"b": 1}, {b"b": 1}, "1", tmp_path / "1")
    with closing(opened(path, "1")) as table:
        assert table.path_of(1, digest_of(1)) == b"b"


def test_one_that_was_put_in_its_place_meanwhile_is_not_taken_over(tmp_path: Path) -> None:
    path = make(tmp_path / "table", "0", {b"a": 1})
    with closing(opened(path, "0")) as before:
        path.write_bytes(make(tmp_path / "other", "other", {b"b": 2}).read_bytes())
        following = follow(before, {b"a": 1}, {b"a": 1}, "1", tmp_path / "1")
    assert following.read_bytes() == b""
    assert ContentTable.open(str(following), "1") is None


def test_a_damaged_one_is_not_handed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {b"%d" % number: number for number in range(20_000)}
    path = make(tmp_path / "0", "0", tree)
    data = path.read_bytes()
    path.write_bytes(data[:16384] + random.Random(1).randbytes(len(data) - 16384))
    with closing(opened(path, "0")) as before:
        found = [before.path_of(number % 5, digest_of(number)) for number in range(0, 20_000, 100)]
        assert None in found
        following = follow(before, tree, {}, "1", tmp_path / "1")
    assert following.read_bytes() == b""
    assert len(caplog.records) == 1


def test_on_a_full_disk_it_says_so_and_finds_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = make(tmp_path / "0", "0", {b"%d" % number: number for number in range(20_000)})
    out = io.BytesIO()
    with closing(opened(path, "0")) as before, closing(ContentTable.create()) as table:
        table.add(1, digest_of(1), b"new")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            table.save("1", out, before=before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.getvalue() == b""
    assert len(caplog.records) == 1
