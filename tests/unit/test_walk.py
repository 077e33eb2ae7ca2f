"""The walk: every name once, in order, however deep the tree is and whatever moves meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.descriptors import open_descriptors

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.entry import sort_key
from incremental_backups_tools.tree.walk import MAX_OPEN_DIRS, Found, Walk

DEPTH = 3 * MAX_OPEN_DIRS


class Tree:
    """A walk and what it had to say."""

    def __init__(self, root: Path) -> None:
        self.problems: list[tuple[bytes, str]] = []
        self.unlisted: list[bytes] = []
        self._walk = Walk(
            root,
            on_problem=lambda path, message: self.problems.append((path, message)),
            on_unlisted=self.unlisted.append,
        )

    def __iter__(self) -> Iterator[Found]:
        return iter(self._walk)

    def paths(self) -> list[bytes]:
        return [found.rel_path for found in self]


@pytest.fixture
def deep(tmp_path: Path, no_open_descriptors: None) -> Path:
    """A chain of directories ``d/d/d…``, each with a file before and one after the next directory."""
    root = tmp_path / "root"
    directory = root
    for _ in range(DEPTH):
        directory.mkdir()
        (directory / "a").touch()
        (directory / "z").touch()
        directory = directory / "d"
    return root


def expected(root: Path) -> list[bytes]:
    found = [os.path.relpath(path, root).encode() for path in root.rglob("*")]
    return [b".", *sorted(found, key=sort_key)]


def test_names_come_in_sort_order(tmp_path: Path) -> None:
    for name in ("a/b", "a.b", "a-", "a/b.c/d", "z", "\udcff/x"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True)
    paths = Tree(tmp_path).paths()
    assert paths == sorted(paths, key=sort_key)
    assert len(paths) == len(set(paths)) == 10


def test_a_deep_tree_is_walked_with_few_descriptors(deep: Path) -> None:
    before = open_descriptors()
    tree = Tree(deep)
    most = 0
    paths = []
    for found in tree:
        paths.append(found.rel_path)
        os.stat(found.name, dir_fd=found.dir_fd, follow_symlinks=False)
        if found.fd is not None:
            assert os.fstat(found.fd).st_ino == found.stat.st_ino
        most = max(most, len(open_descriptors() - before))
    assert paths == expected(deep)
    assert tree.problems == []
    assert most <= MAX_OPEN_DIRS + 3


def test_a_walk_that_is_given_up_leaves_nothing_open(deep: Path) -> None:
    walk = iter(Tree(deep))
    for _ in range(2 * DEPTH // 3):
        next(walk)
    walk.close()  # type: ignore[attr-defined]


def chain(length: int) -> str:
    return "/".join(["d"] * length)


def walk_and_change(tree: Tree, at: bytes, change: object) -> list[bytes]:
    paths = []
    for found in tree:
        paths.append(found.rel_path)
        if found.rel_path == at:
            change()  # type: ignore[operator]
    return paths


def test_a_directory_that_is_moved_with_all_in_it_is_walked_to_its_end(tmp_path: Path, deep: Path) -> None:
    everything = expected(deep)
    bottom = chain(DEPTH - 1).encode() + b"/z"
    tree = Tree(deep)
    paths = walk_and_change(tree, bottom, lambda: (deep / chain(5)).rename(tmp_path / "moved"))
    assert paths == everything
    assert tree.problems == []


def test_a_directory_that_is_put_in_the_place_of_another_is_not_taken_for_it(
    tmp_path: Path, deep: Path
) -> None:
    everything = expected(deep)
    bottom = chain(DEPTH - 1).encode() + b"/z"

    def change() -> None:
        (deep / chain(6)).rename(tmp_path / "inner")
        (deep / chain(5)).rename(tmp_path / "outer")  # removed, its inode number would be the new one's
        (deep / chain(5)).mkdir()
        (deep / chain(5) / "z").symlink_to("/etc/passwd")

    tree = Tree(deep)
    paths = walk_and_change(tree, bottom, change)

    lost = chain(5).encode()
    assert paths == [path for path in everything if path != lost + b"/z"]
    assert tree.unlisted == [lost]
    assert tree.problems == [(lost, "was moved away while it was read: another directory has its place")]


@pytest.mark.parametrize("is_link", [False, True])
def test_the_rest_of_a_directory_that_was_moved_away_is_unknown(
    tmp_path: Path, deep: Path, is_link: bool
) -> None:
    everything = expected(deep)
    bottom = chain(DEPTH - 1).encode() + b"/z"

    def change() -> None:
        (deep / chain(6)).rename(tmp_path / "inner")
        (deep / chain(5)).rename(tmp_path / "outer")
        if is_link:
            (deep / chain(5)).symlink_to(tmp_path / "outer")

    tree = Tree(deep)
    paths = walk_and_change(tree, bottom, change)

    lost = chain(5).encode()
    assert paths == [path for path in everything if path != lost + b"/z"]
    assert tree.unlisted == [lost]
    assert [path for path, _ in tree.problems] == [lost]


def test_a_root_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        list(Tree(tmp_path / "missing"))
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="Not a directory"):
        list(Tree(tmp_path / "file"))
