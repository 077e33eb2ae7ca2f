"""Hard links that change between the listing of their names and the reading of the first of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.chains import KEY, Chain
from support.snapshots import NAME, Place
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.restore import restore_snapshot

OLD, NEW = b"as it was listed", b"something else, and longer"
FIRST, FURTHER = "linked 1", "linked 2"


def make_source(source: Path) -> None:
    """A file that is met first; a file and a symlink that have two names each."""
    (source / "a").write_bytes(bytes(1000))
    (source / FIRST).write_bytes(OLD)
    os.link(source / FIRST, source / FURTHER)
    os.symlink("old target", source / "symlink 1")
    os.link(source / "symlink 1", source / "symlink 2", follow_symlinks=False)


def replace_first_name(source: Path) -> None:
    (source / "a new").write_bytes(NEW)
    os.replace(source / "a new", source / FIRST)


def replace_further_name(source: Path) -> None:
    (source / "a new").write_bytes(NEW)
    os.replace(source / "a new", source / FURTHER)


def replace_symlink(source: Path) -> None:
    os.symlink("new target", source / "a new")
    os.replace(source / "a new", source / "symlink 1")


def append(source: Path) -> None:
    with (source / FIRST).open("ab") as file:
        file.write(NEW)


def rewrite_in_place(source: Path) -> None:
    with (source / FIRST).open("r+b") as file:
        file.write(OLD[::-1])


def change_mode(source: Path) -> None:
    (source / FIRST).chmod(0o600)


def change_attribute(source: Path) -> None:
    os.setxattr(source / FIRST, "user.note", b"new")


def name_once_more(source: Path) -> None:
    os.link(source / FIRST, source / "linked 3")


CHANGES: list[Callable[[Path], None]] = [
    replace_first_name,
    replace_further_name,
    replace_symlink,
    append,
    rewrite_in_place,
    change_mode,
    change_attribute,
    name_once_more,
]


def states(tree: dict[bytes, tuple[object, ...]]) -> dict[bytes, object]:
    """What each linked name of a tree is, without which names it shares its inode with."""
    return {path: value[:6] + value[7:] for path, value in tree.items() if b"link" in path}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("full", [True, False])
def test_each_name_is_what_it_was_at_some_time(
    tmp_path: Path, full: bool, change: Callable[[Path], None]
) -> None:
    chain = Chain.begin(tmp_path)
    if not full:
        (chain.source / "before").write_bytes(b"another file")
        chain.back_up(full=True)
    make_source(chain.source)
    before = states(fingerprint(chain.source))
    changed: list[bytes] = []

    def on_progress(path: bytes, _: int) -> None:
        if path == b"a" and not changed:
            changed.append(path)
            change(chain.source)

    make = full_backup if full else incremental_backup
    report = make(chain.source, chain.repository, cache_root=chain.cache, on_progress=on_progress)
    assert changed
    assert not report.problems
    after = states(fingerprint(chain.source))
    restored = restore_backup(
        KEY, tmp_path / "dest", repository=chain.repository, durable=False, verify_metadata=True
    )
    assert not restored.problems
    found = states(fingerprint(tmp_path / "dest"))
    assert found.keys() >= before.keys()
    for path, value in found.items():
        assert value in (before.get(path), after.get(path)), path
    assert verify(chain.repository, read_data=True).faults == []
    report = chain.back_up()
    restore_backup(KEY, tmp_path / "newest", repository=chain.repository, durable=False)
    assert_same_tree(chain.points[report.backup_date], tmp_path / "newest")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_snapshot_has_no_name_as_it_never_was(
    tmp_path: Path, threads: int, change: Callable[[Path], None]
) -> None:
    place = Place(tmp_path / "source", tmp_path / "snapshots")
    source = place.source
    source.mkdir()
    make_source(source)
    before = states(fingerprint(source))
    changed: list[bytes] = []

    def on_progress(path: bytes, _: int) -> None:
        if path == b"a" and not changed:
            changed.append(path)
            change(source)

    report = place.create(threads=threads, on_progress=on_progress)
    assert changed
    after = states(fingerprint(source))
    restore_snapshot(Depot.open(place.dest), NAME, place.ids[-1], tmp_path / "dest")
    found = states(fingerprint(tmp_path / "dest"))
    named = {problem.path for problem in report.problems}
    assert found.keys() | named >= before.keys()
    for path, value in found.items():
        assert value in (before.get(path), after.get(path)), path
