"""Sync and snapshots between a directory, S3 and Azure, both ways, against real servers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.servers import Server

from incremental_backups_tools.heap.sync.collect import collect_garbage, verify_heap
from incremental_backups_tools.heap.sync.places import open_tree_at
from incremental_backups_tools.heap.sync.snapshooter import Snapshooter
from incremental_backups_tools.heap.sync.syncing import sync_trees
from incremental_backups_tools.heap.sync.tree import FileTree, Listing
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.filesystems import store_at

# What adlfs hands to its HTTP library is adlfs' business; that library warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

CONTENTS = {
    "a": b"small",
    "d/e/large": os.urandom(9 << 20),
    "d/empty": b"",
    "d-e": b"sorts between",
    "with space and +": b"quoted",
    "ümlaut": b"utf-8",
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], StoreAddress]:
    def make(kind: str) -> StoreAddress:
        if kind == "local":
            path = tmp_path / f"{os.urandom(4).hex()}"
            path.mkdir()
            return StoreAddress(str(path))
        server: Server = request.getfixturevalue(kind)
        return StoreAddress(server.new_url(), server.storage_options)

    return make


def fill(place: StoreAddress, tmp_path: Path, contents: dict[str, bytes]) -> None:
    source = tmp_path / os.urandom(4).hex()
    for path, content in contents.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    report = sync_trees(
        open_tree_at(StoreAddress(str(source))),
        open_tree_at(place),
        delete=True,
        max_deleted=1,
        record_directory=tmp_path / "r",
    )
    assert report.problems == []


def contents_of(tree: FileTree) -> dict[str, bytes]:
    problems: list[object] = []
    entries = list(tree.iter_entries(Listing.empty(), lambda path, message: problems.append((path, message))))
    assert problems == []
    return {
        entry.path.decode(): tree.read(entry, lambda chunks: b"".join(chunks))[0]
        for entry in entries
        if entry.type == "file"
    }


ROUTES = [
    ("local", "seaweedfs"),
    ("seaweedfs", "local"),
    ("local", "azurite"),
    ("azurite", "local"),
    ("seaweedfs", "azurite"),
    ("azurite", "seaweedfs"),
]


@pytest.mark.parametrize("route", ROUTES, ids=" to ".join)
def test_sync(route: tuple[str, str], place: Callable[[str], StoreAddress], tmp_path: Path) -> None:
    source, target = place(route[0]), place(route[1])
    fill(source, tmp_path, CONTENTS)

    report = sync_trees(open_tree_at(source), open_tree_at(target), record_directory=tmp_path / "records")
    assert report.problems == [] and contents_of(open_tree_at(target)) == CONTENTS
    changed = {**CONTENTS, "a": b"other", "new/x": b"new"}
    del changed["d/e/large"]
    fill(source, tmp_path, changed)
    dry = sync_trees(
        open_tree_at(source),
        open_tree_at(target),
        delete=True,
        dry_run=True,
        record_directory=tmp_path / "records",
    )
    assert (dry.deleted >= 1, contents_of(open_tree_at(target)) == CONTENTS) == (True, True)
    report = sync_trees(
        open_tree_at(source), open_tree_at(target), delete=True, record_directory=tmp_path / "records"
    )
    assert report.problems == [] and contents_of(open_tree_at(target)) == changed
    again = sync_trees(
        open_tree_at(source),
        open_tree_at(target),
        delete=True,
        checksum=True,
        record_directory=tmp_path / "records",
    )
    assert (again.written, again.deleted, again.problems) == (0, 0, [])


@pytest.mark.parametrize(
    ("source_kind", "heap_kind"),
    [
        ("local", "seaweedfs"),
        ("seaweedfs", "local"),
        ("azurite", "seaweedfs"),
        ("seaweedfs", "azurite"),
        ("local", "azurite"),
    ],
)
def test_snapshots(
    source_kind: str, heap_kind: str, place: Callable[[str], StoreAddress], tmp_path: Path
) -> None:
    source, heap = place(source_kind), place(heap_kind)
    fill(source, tmp_path, CONTENTS)
    first = Snapshooter.at(source, heap, heap)
    snapshot, _ = first.make_snapshot()
    assert snapshot.problems == ()
    name = first.save_snapshot(snapshot)
    fill(source, tmp_path, {**CONTENTS, "a": b"other"})
    second = Snapshooter.at(source, heap, heap)
    second.save_snapshot(second.make_snapshot()[0])
    assert second.compare(name, None).different == [b"a"]
    if source_kind != "local":  # by their ETag; local files were written within a tick of the clock
        assert second.stats.read < len(CONTENTS)
    report = Snapshooter.at(source, heap, heap).restore_snapshot(name)
    assert report.problems == [] and contents_of(open_tree_at(source)) == CONTENTS
    elsewhere = place("local")
    assert Snapshooter.at(elsewhere, heap, heap).restore_snapshot(name).problems == []
    assert contents_of(open_tree_at(elsewhere)) == CONTENTS
    store = store_at(heap)
    assert collect_garbage(store, [store]).deleted_objects == 0
    store.delete(name)
    assert verify_heap(store, [store], read_data=True).faults == []


@pytest.mark.parametrize("kind", ["seaweedfs", "azurite"])
def test_a_store_that_was_wiped_behind_its_back_is_seen(
    kind: str, place: Callable[[str], StoreAddress], tmp_path: Path
) -> None:
    source, heap = place("local"), place(kind)
    fill(source, tmp_path, {"a": b"1", "b": b"2"})
    snapshooter = Snapshooter.at(source, heap, heap)
    snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
    other = Snapshooter.at(source, heap, heap)
    for item in list(other.heap.iter_objects()):
        other.heap.delete(item.digest)
    snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
    store = store_at(heap)
    assert len(verify_heap(store, [store], read_data=True).faults) == 0
