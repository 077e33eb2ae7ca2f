"""The versions that the benchmark backs up, and turning one into the next."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.corpora import CannotFetchError, grow_flat_tree, linux_trees, made_trees, make_corpus
from benchmarks.database import database_versions
from benchmarks.trees import CONTENT, METADATA, Difference, differences, verdict


def same_content(first: Path, second: Path) -> bool:
    return not list(differences(first, second, times=False))


def versions_with_every_change(top: Path) -> list[Path]:
    first, second, third = (top / name for name in "123")
    (first / "dir" / "deep").mkdir(parents=True)
    (first / "dir" / "deep" / "file").write_text("a")
    (first / "edited").write_text("old and longer")
    (first / "gone").write_text("x")
    (first / "mode").write_text("x")
    (first / "becomes-dir").write_text("x")
    (first / "link").symlink_to("edited")
    shutil.copytree(first, second, symlinks=True)
    (second / "edited").write_text("new")
    (second / "gone").unlink()
    (second / "mode").chmod(0o700)
    (second / "becomes-dir").unlink()
    (second / "becomes-dir").mkdir()
    (second / "becomes-dir" / "file").write_text("y")
    (second / "link").unlink()
    (second / "link").symlink_to("mode")
    (second / "late").write_text("z")
    shutil.copytree(second, third, symlinks=True)
    (third / "late").chmod(0o600)
    (third / "becomes-dir" / "file").write_text("changed")
    shutil.rmtree(third / "dir")
    return [first, second, third]


@pytest.mark.parametrize("in_place", [False, True])
def test_the_source_becomes_each_version_and_the_first_again(tmp_path: Path, in_place: bool) -> None:
    versions = versions_with_every_change(tmp_path / "versions")
    source = tmp_path / "source"
    corpus = make_corpus("tree", "", versions, source, in_place=in_place)
    for _ in range(2):
        corpus.begin()
        assert same_content(source, versions[0])
        for number in range(2):
            corpus.advance(number)
            assert same_content(source, versions[number + 1])


def test_what_is_the_same_is_not_touched(tmp_path: Path) -> None:
    versions = versions_with_every_change(tmp_path / "versions")
    source = tmp_path / "source"
    corpus = make_corpus("tree", "", versions, source)
    corpus.begin()
    before = {name: (source / name).lstat() for name in ("dir/deep/file", "edited")}
    corpus.advance(0)
    assert (source / "dir/deep/file").lstat() == before["dir/deep/file"]
    assert (source / "edited").lstat().st_ino != before["edited"].st_ino


def test_differences_tell_content_from_metadata(tmp_path: Path) -> None:
    first, second, _ = versions_with_every_change(tmp_path)
    found = {difference.rel_path: difference.what for difference in differences(first, second, times=False)}
    assert found == {
        "becomes-dir": CONTENT,
        "edited": CONTENT,
        "gone": CONTENT,
        "late": CONTENT,
        "link": CONTENT,
        "mode": METADATA,
    }
    os.utime(second / "dir" / "deep" / "file", (1, 1))
    times = set(differences(first, second, times=True)) - set(differences(first, second, times=False))
    assert Difference("dir/deep/file", METADATA) in times


def test_a_restore_is_judged(tmp_path: Path) -> None:
    source, restored = tmp_path / "source", tmp_path / "restored"
    (source / "dir").mkdir(parents=True)
    (source / "dir" / "file").write_text("content")
    shutil.copytree(source, restored)
    assert verdict(source, restored) == "same"
    os.utime(restored / "dir" / "file", (1, 1))
    assert verdict(source, restored) == "1 with other metadata"
    (restored / "dir" / "file").write_text("Content")
    (restored / "more").write_text("")
    assert verdict(source, restored) == "WRONG: 2 differ, 'dir/file' first"
    assert verdict(source, tmp_path / "nowhere") == "WRONG: nothing was restored"


def test_made_trees_differ_a_little(tmp_path: Path) -> None:
    versions = made_trees(tmp_path / "versions", 100)
    corpus = make_corpus("tree", "made", versions, tmp_path / "source")
    assert all(3 <= len(step) <= 8 for step in corpus.steps)
    assert 0 < (versions[-1] / corpus.small_file).stat().st_size <= 4096
    assert corpus.title.startswith("made: 100 files, ")


def test_a_database_is_updated_in_its_pages(tmp_path: Path) -> None:
    versions, updates = database_versions(tmp_path / "versions", 2)
    sizes = [(version / "data.sqlite").stat().st_size for version in versions]
    assert sizes == [sizes[0]] * 3
    assert 1.8 * 2**20 < sizes[0] < 2.2 * 2**20
    rows: list[set[tuple[object, ...]]] = []
    for version in versions:
        with closing(sqlite3.connect(version / "data.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows.append(set(connection.execute("SELECT * FROM account")))
    assert [len(new - old) for old, new in pairwise(rows)] == [updates, updates]
    corpus = make_corpus("database", "", versions, tmp_path / "source", in_place=True)
    corpus.begin()
    inode = (tmp_path / "source" / "data.sqlite").stat().st_ino
    corpus.advance(0)
    assert (tmp_path / "source" / "data.sqlite").stat().st_ino == inode
    assert same_content(tmp_path / "source", versions[1])


def test_a_flat_tree_grows(tmp_path: Path) -> None:
    grow_flat_tree(tmp_path, 250)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert len(first) == 250
    grow_flat_tree(tmp_path, 1000)
    files = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 1000
    assert {status.st_size for status in files.values()} == {1024}
    assert {len(list(parent.iterdir())) for parent in tmp_path.iterdir()} == {100}


def test_trees_that_are_there_are_taken_in_the_order_of_their_versions(tmp_path: Path) -> None:
    for name in ("6.1.99", "6.1.100", "6.1.9", "6.1.101", "6.1.102.part", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in linux_trees(tmp_path)] == ["6.1.99", "6.1.100", "6.1.101"]


def test_trees_that_cannot_be_fetched_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotFetchError, match="not installed"):
        linux_trees(tmp_path)


def test_as_many_releases_as_are_wanted_and_there(tmp_path: Path) -> None:
    for name in ("6.1.9", "6.1.10", "6.1.11", "6.1.100", "not-a-release"):
        (tmp_path / name).mkdir()
    assert [path.name for path in linux_trees(tmp_path)] == ["6.1.10", "6.1.11", "6.1.100"]
    assert len(linux_trees(tmp_path, most=10)) == 4
