"""Snapshots of a tree anywhere: what was there comes back, and nothing that goes wrong goes unsaid."""

from __future__ import annotations

import io
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from blake3 import blake3
from fsspec.implementations.memory import MemoryFileSystem

from incremental_backups_tools import DirIndex, Snapshooter
from incremental_backups_tools.exceptions import (
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryLockedError,
    SourceError,
    StateFormatError,
    UnsafePathError,
)
from incremental_backups_tools.heap.sync.collect import collect_garbage, verify_heap
from incremental_backups_tools.heap.sync.compare import compare_snapshots
from incremental_backups_tools.heap.sync.places import open_tree
from incremental_backups_tools.heap.sync.snapshot import SnapshotDraft, SnapshotHeader, SnapshotStore
from incremental_backups_tools.heap.sync.syncing import sync_trees
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS
from incremental_backups_tools.repository.filesystems import store_on
from incremental_backups_tools.tree.entry import Entry, Location

LOCAL = fsspec.filesystem("file")
MEMORY = fsspec.filesystem("memory")


class Site:
    """A tree, and a place for its snapshots and contents."""

    def __init__(self, src_fs: Any, src_root: str, heap_fs: Any, heap_root: str) -> None:
        self.src_fs, self.src_root, self.heap_fs, self.heap_root = src_fs, src_root, heap_fs, heap_root
        self.problems: list[tuple[bytes, str]] = []

    def snapshooter(self, src_root: str | None = None, **options: Any) -> Snapshooter:
        return Snapshooter(
            self.src_fs,
            src_root or self.src_root,
            self.heap_fs,
            f"{self.heap_root}/snap",
            self.heap_fs,
            f"{self.heap_root}/heap",
            threads=3,
            on_problem=lambda path, message: self.problems.append((path, message)),
            **options,
        )

    def take(self, **options: Any) -> str:
        snapshooter = self.snapshooter()
        snapshot, timestamp = snapshooter.make_snapshot(**options)
        return snapshooter.save_snapshot(snapshot, timestamp)

    def write(self, path: str, content: bytes) -> None:
        self.src_fs.makedirs(f"{self.src_root}/{path}".rpartition("/")[0], exist_ok=True)
        self.src_fs.pipe_file(f"{self.src_root}/{path}", content)

    def read(self, path: str) -> bytes:
        return bytes(self.src_fs.cat_file(f"{self.src_root}/{path}"))

    def files(self) -> dict[str, bytes]:
        self.src_fs.invalidate_cache()
        root = self.src_fs._strip_protocol(self.src_root)
        return {
            path.removeprefix(f"{root}/"): bytes(self.src_fs.cat_file(path))
            for path in self.src_fs.find(root)
        }

    def collect(self, **options: Any) -> Any:
        return collect_garbage(self.heap_store, [self.snap_store], **options)

    @property
    def heap_store(self) -> Any:
        return store_on(self.heap_fs, f"{self.heap_root}/heap")

    @property
    def snap_store(self) -> Any:
        return store_on(self.heap_fs, f"{self.heap_root}/snap")


@pytest.fixture
def local(tmp_path: Path) -> Site:
    (tmp_path / "src").mkdir()
    return Site(LOCAL, str(tmp_path / "src"), LOCAL, str(tmp_path / "kept"))


@pytest.fixture(params=["local to local", "local to memory", "memory to local", "memory to memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    source, _, heap = request.param.split()
    (tmp_path / "src").mkdir()
    name = uuid.uuid4().hex
    places = {"local": (LOCAL, str(tmp_path)), "memory": (MEMORY, f"/{name}")}
    src_fs, src_root = places[source]
    heap_fs, heap_root = places[heap]
    yield Site(src_fs, f"{src_root}/src", heap_fs, f"{heap_root}/kept")
    if MEMORY.exists(f"/{name}"):
        MEMORY.rm(f"/{name}", recursive=True)


def grow_old(root: str) -> None:
    """Make files look as if they had been written some time ago, so that no clock is in doubt of them."""
    for path in Path(root).rglob("*"):
        if path.is_file():
            old = path.stat().st_mtime - 100
            os.utime(path, (old, old))


# --- the documented use -------------------------------------------------------------------------------------


def test_the_documented_example(tmp_path: Path) -> None:
    source = tmp_path / "data" / "original"
    (source / "subfolder").mkdir(parents=True)
    (source / "text_file.txt").write_text("some text")
    (source / "empty_file.txt").touch()
    (source / "subfolder" / "another_text_file.txt").write_text("more text")

    def make(root: Path) -> Snapshooter:
        return Snapshooter(
            src_fs=fsspec.filesystem("file"),
            src_root=str(root),
            snap_fs=fsspec.filesystem("file"),
            snap_root=str(tmp_path / "data" / "snap"),
            heap_fs=fsspec.filesystem("file"),
            heap_root=str(tmp_path / "data" / "heap"),
        )

    snapshooter = make(source)
    snapshot, timestamp = snapshooter.make_snapshot()
    name = snapshooter._save_snapshot(snapshot, timestamp)
    assert [entry.path for entry in snapshot] == [
        b"empty_file.txt",
        b"subfolder",
        b"subfolder/another_text_file.txt",
        b"text_file.txt",
    ]
    assert [entry.digest for entry in snapshot if entry.path == b"text_file.txt"] == [
        blake3(b"some text").digest()
    ]

    (source / "text_file.txt").unlink()
    (source / "text_file_added.txt").write_text("added")
    second, timestamp = snapshooter.make_snapshot()
    snapshooter.save_snapshot(second, timestamp)

    compared = compare_snapshots(snapshot, second)
    assert (compared.only_left, compared.only_right) == ([b"text_file.txt"], [b"text_file_added.txt"])
    assert (compared.different, compared.equal) == (
        [],
        [b"empty_file.txt", b"subfolder/another_text_file.txt"],
    )

    restored = make(tmp_path / "data" / "restored")
    restored.restore_snapshot()
    assert (tmp_path / "data" / "restored" / "text_file_added.txt").read_text() == "added"
    restored.restore_snapshot(latest_before=snapshot.timestamp)
    assert (tmp_path / "data" / "restored" / "text_file.txt").read_text() == "some text"
    assert not (tmp_path / "data" / "restored" / "text_file_added.txt").exists()
    restored.restore_snapshot(second)
    restored.restore_snapshot(name)
    assert (tmp_path / "data" / "restored" / "text_file.txt").read_text() == "some text"
    assert len(restored.list()) == 2
    assert restored.list()[0].name == name


# --- there and back -----------------------------------------------------------------------------------------


def test_a_tree_comes_back_everywhere(site: Site) -> None:
    contents = {
        "a": b"short",
        "a.b": b"",
        "d/e/f": os.urandom(5 << 20),
        "d/g": b"short",
        "d-e/h": b"sorts between",
        "with * and [x]?": b"no pattern",
        "ümlaut/ file\n2": b"names",
    }
    for path, content in contents.items():
        site.write(path, content)
    site.take()
    for path in ("a", "d/e/f"):
        site.write(path, b"changed " + os.urandom(8))
    site.src_fs.rm_file(f"{site.src_root}/d/g")
    site.write("extra/file", b"extra")
    report = site.snapshooter().restore_snapshot()
    assert report.problems == []
    assert site.files() == contents
    assert report.deleted >= 1 and report.undo is not None


def test_only_what_changed_is_read_and_stored(tmp_path: Path) -> None:
    site = Site(LOCAL, str(tmp_path / "src"), LOCAL, str(tmp_path / "kept"))
    for number in range(20):
        site.write(f"file {number}", os.urandom(1000))
    os.utime(tmp_path / "src", (0, 0))
    grow_old(site.src_root)
    keys = {**CHANGE_KEYS, "file": lambda info: str(info["mtime_ns"])}
    first = site.snapshooter(change_keys=keys)
    # The files' ctime is of just now, and that is racy; what follows waits for the clock to move on.
    threading.Event().wait(2.1)
    first.save_snapshot(first.make_snapshot()[0])
    site.write("file 3", b"new")
    second = site.snapshooter(change_keys=keys)
    second.save_snapshot(second.make_snapshot()[0])
    assert (first.stats.read, second.stats.files, second.stats.read) == (20, 20, 1)
    assert second.stats.bytes_read == 3


def test_metadata_links_and_empty_directories_of_a_directory_come_back(local: Site, tmp_path: Path) -> None:
    source = tmp_path / "src"
    (source / "empty").mkdir(mode=0o700)
    (source / "key").write_text("secret")
    (source / "key").chmod(0o600)
    (source / "public").write_text("secret")
    (source / "link").symlink_to("key")
    (source / b"\xff".decode("utf-8", "surrogateescape")).write_text("bytes")
    os.utime(source / "key", ns=(1, 1_234_567_890_123_456_789))
    os.utime(source / "empty", ns=(1, 987_654_321))
    local.take()
    shutil.rmtree(source)
    assert local.snapshooter().restore_snapshot().problems == []
    assert (source / "key").stat().st_mode & 0o7777 == 0o600
    assert (source / "public").stat().st_mode & 0o7777 == 0o644
    assert (source / "key").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (source / "empty").stat().st_mtime_ns == 987_654_321
    assert os.readlink(source / "link") == "key"
    assert (source / b"\xff".decode("utf-8", "surrogateescape")).read_text() == "bytes"


def test_a_private_file_stays_private_where_the_snapshot_knows_no_modes(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    there = Site(MEMORY, f"/{name}/src", LOCAL, str(tmp_path / "kept"))
    there.write("key", b"new secret")
    there.take()
    here = Site(LOCAL, str(tmp_path / "here"), LOCAL, str(tmp_path / "kept"))
    here.write("key", b"old secret")
    (tmp_path / "here" / "key").chmod(0o600)
    assert here.snapshooter().restore_snapshot().problems == []
    assert (tmp_path / "here" / "key").read_bytes() == b"new secret"
    assert (tmp_path / "here" / "key").stat().st_mode & 0o777 == 0o600
    MEMORY.rm(f"/{name}", recursive=True)


def test_adding_only_leaves_what_is_there_besides(site: Site) -> None:
    site.write("a", b"1")
    site.take()
    site.write("a", b"2")
    site.write("b/c", b"3")
    report = site.snapshooter().restore_snapshot(delete=False)
    assert site.files() == {"a": b"1", "b/c": b"3"}
    assert report.kept >= 1


def test_a_snapshot_is_an_index(local: Site, tmp_path: Path) -> None:
    local.write("a", b"1")
    name = local.take()
    data = DirIndex.from_file(tmp_path / "kept" / "snap" / name)
    assert [item.path for item in data] == [b"a"]
    assert data.root == local.src_root


def test_a_snapshot_of_the_same_moment_is_refused(local: Site) -> None:
    snapshooter = local.snapshooter()
    snapshot, timestamp = snapshooter.make_snapshot()
    snapshooter.save_snapshot(snapshot)
    with pytest.raises(ObjectExistsError):
        snapshooter.save_snapshot(snapshot)
    with pytest.raises(ValueError, match="not of"):
        snapshooter.save_snapshot(snapshot, timestamp + timedelta(seconds=1))


def test_a_dry_run_changes_nothing(site: Site) -> None:
    site.write("a", b"1")
    site.take()
    site.write("a", b"2")
    site.write("b", b"3")
    kept = sorted(site.heap_fs.find(site.heap_root))
    actions: list[tuple[str, bytes]] = []
    report = site.snapshooter().restore_snapshot(
        dry_run=True, on_action=lambda op, path: actions.append((op, path))
    )
    assert sorted(actions) == [("-", b"b"), ("~", b"a")]
    assert (report.written, report.deleted) == (1, 1)
    assert site.files() == {"a": b"2", "b": b"3"}
    assert sorted(site.heap_fs.find(site.heap_root)) == kept


def test_change_keys_are_open_to_users(site: Site) -> None:
    site.write("a", b"1")
    asked: list[str] = []

    def key(info: Any) -> str:
        asked.append(info["type"])
        return "always the same"

    protocol = "file" if site.src_fs is LOCAL else "memory"
    keys = {**CHANGE_KEYS, protocol: key}
    if site.src_fs is LOCAL:
        threading.Event().wait(2.1)  # a fresh file is read whatever its key says
    for _ in range(2):
        snapshooter = site.snapshooter(change_keys=keys)
        snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
    assert asked and snapshooter.stats.read == 0


# --- what its relative does wrong ---------------------------------------------------------------------------


def test_when_a_file_was_made_says_nothing_of_its_content(tmp_path: Path) -> None:
    site = Site(MEMORY, f"/{uuid.uuid4().hex}", LOCAL, str(tmp_path))
    site.write("a", b"one")
    file = MEMORY.store[f"{site.src_root}/a"]
    file.created = datetime(2020, 1, 1, tzinfo=UTC)
    site.take()
    file.seek(0)
    file.write(b"two")
    site.take()
    assert [entry.digest for entry in site.snapshooter().load_snapshot()] == [blake3(b"two").digest()]
    MEMORY.rm(site.src_root, recursive=True)


def test_a_file_rewritten_within_the_same_second_is_seen(site: Site) -> None:
    for content in (b"one", b"twice", b"other"):
        site.write("a", content)
        site.take()
        snapshot = site.snapshooter().load_snapshot()
        assert [entry.digest for entry in snapshot] == [blake3(content).digest()]


def test_same_size_and_time_set_back_is_seen(local: Site, tmp_path: Path) -> None:
    path = tmp_path / "src" / "a"
    path.write_bytes(b"before")
    os.utime(path, (1000, 1000))
    local.take()
    path.write_bytes(b"after!")
    os.utime(path, (1000, 1000))
    local.take()
    assert [entry.digest for entry in local.snapshooter().load_snapshot()] == [blake3(b"after!").digest()]


class Unreadable(MemoryFileSystem):
    """A filesystem with files that cannot be read, or not be deleted, or that change all the time."""

    protocol = "unreadable"
    cachable = False

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        if path.endswith("bad"):
            raise PermissionError(13, "Permission denied")
        if path.endswith("restless"):
            data = bytes(super().cat_file(path, start=start, end=end))
            self.pipe_file(path, os.urandom(1) + data)
            return data
        if path.endswith("cut"):
            return bytes(super().cat_file(path, start=start, end=end))[:-1]
        return bytes(super().cat_file(path, start=start, end=end))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return super().ls(path, detail=detail, **options)

    def rm_file(self, path: str) -> None:
        if path.endswith("stays"):
            raise PermissionError(13, "Permission denied")
        super().rm_file(path)


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[Site]:
    name = f"/{uuid.uuid4().hex}"
    yield Site(Unreadable(), f"{name}/src", LOCAL, str(tmp_path / "kept"))
    MEMORY.rm(name, recursive=True)


@pytest.mark.parametrize("name", ["bad", "restless", "cut"])
def test_one_file_that_cannot_be_read_does_not_stop_the_rest(troubled: Site, name: str) -> None:
    troubled.write("a", b"1")
    troubled.write(f"d/{name}", b"22")
    troubled.write("z", b"3")
    snapshooter = troubled.snapshooter()
    snapshot, _ = snapshooter.make_snapshot()
    assert [entry.path for entry in snapshot] == [b"a", b"z"]
    assert [path for path, _ in snapshot.problems] == [f"d/{name}".encode()]
    assert troubled.problems == list(snapshot.problems)


def test_what_cannot_be_read_stays_as_the_snapshot_before_has_it(troubled: Site) -> None:
    troubled.write("good", b"old")
    troubled.write("open/x", b"below")
    troubled.take()
    troubled.src_fs.mv(f"{troubled.src_root}/open", f"{troubled.src_root}/locked", recursive=True)
    troubled.take(max_deleted=1)
    assert [path for path, _ in troubled.problems] == [b"locked"]
    MEMORY.mv(f"{troubled.src_root}/good", f"{troubled.src_root}/bad")
    paths = [entry.path for entry in troubled.snapshooter().make_snapshot(max_deleted=1)[0]]
    assert paths == []
    # The same path, readable in one snapshot and not in the next.
    other = Site(MEMORY, troubled.src_root, troubled.heap_fs, troubled.heap_root)
    tree_url = troubled.snapshooter().tree.url
    plain = other.snapshooter()
    plain.tree.url = tree_url
    plain.save_snapshot(plain.make_snapshot(max_deleted=1)[0])
    kept = [entry.path for entry in troubled.snapshooter().make_snapshot()[0]]
    assert kept == [b"bad", b"locked/x"]


ALWAYS_THE_SAME = dict.fromkeys(CHANGE_KEYS, lambda info: "the same")


def test_a_wiped_store_is_filled_again(site: Site) -> None:
    site.write("a", os.urandom(1000))
    if site.src_fs is LOCAL:
        threading.Event().wait(2.1)  # a fresh file is read in any case
    for reads in (1, 0):
        snapshooter = site.snapshooter(change_keys=ALWAYS_THE_SAME)
        snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
        assert snapshooter.stats.read == reads
    site.heap_fs.rm(f"{site.heap_root}/heap/objects", recursive=True)
    snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
    assert snapshooter.stats.read == 1
    assert verify_heap(site.heap_store, [site.snap_store], read_data=True).objects == 1
    assert site.snapshooter().restore_snapshot().problems == []


def test_another_size_is_a_change_whatever_the_key_says(tmp_path: Path) -> None:
    site = Site(MEMORY, f"/{uuid.uuid4().hex}", LOCAL, str(tmp_path / "kept"))
    for content in (b"short", b"longer"):
        site.write("a", content)
        snapshooter = site.snapshooter(change_keys=ALWAYS_THE_SAME)
        snapshot, _ = snapshooter.make_snapshot()
        snapshooter.save_snapshot(snapshot)
        assert [entry.digest for entry in snapshot] == [blake3(content).digest()]


def test_a_file_written_just_now_is_read_whatever_the_key_says(local: Site) -> None:
    for content in (b"before", b"after!"):
        local.write("a", content)
        snapshooter = local.snapshooter(change_keys=ALWAYS_THE_SAME)
        snapshot, _ = snapshooter.make_snapshot()
        snapshooter.save_snapshot(snapshot)
        assert [entry.digest for entry in snapshot] == [blake3(content).digest()]


def test_sync_deletes_nothing_that_it_could_not_see_in_the_source(troubled: Site, tmp_path: Path) -> None:
    troubled.write("a", b"1")
    troubled.write("locked/x", b"2")
    for path in ("a", "locked/x", "locked/y", "extra"):
        (tmp_path / "target" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "target" / path).write_bytes(b"there")
    report = sync_trees(
        open_tree(troubled.src_fs, troubled.src_root),
        open_tree(LOCAL, str(tmp_path / "target")),
        delete=True,
        max_deleted=1,
    )
    assert [problem.path for problem in report.problems] == [b"locked"]
    assert sorted(path.name for path in (tmp_path / "target").rglob("*")) == ["a", "locked", "x", "y"]


def test_what_cannot_be_seen_in_the_target_is_not_touched(troubled: Site, tmp_path: Path) -> None:
    troubled.write("locked/x", b"there")
    troubled.write("b", b"there")
    (tmp_path / "source" / "locked").mkdir(parents=True)
    (tmp_path / "source" / "a").write_bytes(b"new")
    for path, content in (("locked/z", b"new"), ("b", b"new")):
        (tmp_path / "source" / path).write_bytes(content)
    report = sync_trees(
        open_tree(LOCAL, str(tmp_path / "source")),
        open_tree(troubled.src_fs, troubled.src_root),
        delete=True,
        max_deleted=1,
    )
    assert {problem.path for problem in report.problems} == {b"locked", b"locked/z"}
    plain = Site(MEMORY, troubled.src_root, LOCAL, str(tmp_path))
    assert plain.files() == {"a": b"new", "b": b"new", "locked/x": b"there"}


def test_a_truncated_object_is_found_and_filled_again(local: Site, tmp_path: Path) -> None:
    local.write("a", os.urandom(1000))
    grow_old(local.src_root)
    local.take()
    (stored,) = (tmp_path / "kept" / "heap" / "objects").rglob("*.zst")
    os.truncate(stored, 500)
    assert len(verify_heap(local.heap_store, [local.snap_store]).faults) == 1
    local.take()
    assert verify_heap(local.heap_store, [local.snap_store], read_data=True).faults == []


def test_a_damaged_object_leaves_the_users_file_alone(local: Site, tmp_path: Path) -> None:
    local.write("a", b"in the snapshot" * 100)
    local.write("b", b"fine")
    local.take()
    digits = blake3(b"in the snapshot" * 100).hexdigest()
    stored = tmp_path / "kept" / "heap" / "objects" / digits[:2] / f"{digits[2:]}.zst"
    stored.chmod(0o600)
    stored.write_bytes(stored.read_bytes()[:-3])
    local.write("a", b"mine")
    local.write("b", b"changed")
    report = local.snapshooter().restore_snapshot()
    assert [problem.path for problem in report.problems] == [b"a"]
    assert local.files() == {"a": b"mine", "b": b"fine"}
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["a", "b"]


def test_nothing_is_written_through_a_link_in_the_target(local: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    local.write("d/file", b"new")
    local.write("e", b"new")
    local.take()
    shutil.rmtree(tmp_path / "src" / "d")
    (tmp_path / "src" / "d").symlink_to(outside)
    (tmp_path / "src" / "e").unlink()
    (tmp_path / "src" / "e").symlink_to(outside / "file")
    local.snapshooter().restore_snapshot()
    assert (outside / "file").read_text() == "untouched"
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert local.files() == {"d/file": b"new", "e": b"new"}
    assert not (tmp_path / "src" / "e").is_symlink()


@pytest.mark.parametrize("path", [b"../outside", b"/etc/passwd", b"a/../../b", b"a//b", b"nul\0"])
def test_a_snapshot_cannot_lead_out_of_the_tree(site: Site, path: bytes) -> None:
    site.write("a", b"1")
    site.take()
    store = SnapshotStore(site.snap_store)
    header = SnapshotHeader(root="x", id="20990101T000000.000000Z", has_metadata=False, heap="")
    draft = SnapshotDraft(header)
    draft.add(
        Entry(
            path=path, type="file", mode=0o644, size=1, digest=blake3(b"1").digest(), data=Location("x", 0, 1)
        )
    )
    with site.snap_store.spool("snapshots/20990101T000000.000000Z.jsonl.zst") as spool:
        draft.finish([]).copy_to(spool.file)
        spool.publish()
    draft.close()
    with pytest.raises(UnsafePathError):
        store.load("20990101T000000.000000Z")
    with pytest.raises(UnsafePathError):
        site.snapshooter().restore_snapshot()
    assert site.files() == {"a": b"1"}


def test_a_file_becomes_a_directory_and_the_reverse(site: Site) -> None:
    site.write("one", b"file")
    site.write("two/x/y", b"below")
    first = site.take()
    site.src_fs.rm_file(f"{site.src_root}/one")
    site.src_fs.rm(f"{site.src_root}/two", recursive=True)
    site.write("one/deep/er", b"below")
    site.write("two", b"file")
    second = site.take()
    report = site.snapshooter().restore_snapshot(first)
    assert report.problems == [] and site.files() == {"one": b"file", "two/x/y": b"below"}
    report = site.snapshooter().restore_snapshot(second)
    assert report.problems == [] and site.files() == {"one/deep/er": b"below", "two": b"file"}


def test_a_deletion_that_fails_is_told(troubled: Site) -> None:
    troubled.write("a", b"1")
    troubled.take()
    troubled.write("stays", b"2")
    report = troubled.snapshooter().restore_snapshot()
    assert [problem.path for problem in report.problems] == [b"stays"]
    assert "could not be deleted" in report.problems[0].message
    assert report.deleted == 0


def test_what_could_not_be_kept_for_undoing_is_not_touched(troubled: Site) -> None:
    troubled.write("a", b"1")
    troubled.take()
    troubled.write("bad", b"unreadable")
    report = troubled.snapshooter().restore_snapshot()
    assert [problem.path for problem in report.problems] == [b"bad"]
    assert MEMORY.cat_file(f"{troubled.src_root}/bad") == b"unreadable"


def test_what_an_older_snapshot_has_is_not_enough_to_delete_what_is_there_now(troubled: Site) -> None:
    troubled.write("a", b"1")
    without = troubled.take()
    troubled.write("bad", b"as it was")
    plain = Site(MEMORY, troubled.src_root, LOCAL, troubled.heap_root).snapshooter()
    plain.tree.url = troubled.snapshooter().tree.url
    plain.save_snapshot(plain.make_snapshot()[0])
    troubled.write("bad", b"as it is, and cannot be read")
    report = troubled.snapshooter().restore_snapshot(without)
    assert [problem.path for problem in report.problems] == [b"bad"]
    assert MEMORY.cat_file(f"{troubled.src_root}/bad") == b"as it is, and cannot be read"


def test_a_snapshot_for_undoing_is_never_the_latest(site: Site) -> None:
    site.write("a", b"1")
    site.write("b", b"2")
    name = site.take()
    for path in ("a", "b"):
        site.src_fs.rm_file(f"{site.src_root}/{path}")
    site.write("c", b"3")
    for _ in range(3):
        report = site.snapshooter().restore_snapshot()
        assert report.undo is not None
        assert site.files() == {"a": b"1", "b": b"2"}
    assert [saved.name for saved in site.snapshooter().list()] == [name]
    undo = site.snapshooter().list_undo()
    assert len(undo) == 3
    site.snapshooter().restore_snapshot(undo[0])
    assert site.files() == {"c": b"3"}


def test_a_source_that_is_mostly_gone_stops(site: Site) -> None:
    for number in range(10):
        site.write(f"file {number}", b"x")
    site.take()
    for number in range(9):
        site.src_fs.rm_file(f"{site.src_root}/file {number}")
    with pytest.raises(SourceError, match="is it mounted"):
        site.snapshooter().make_snapshot()
    assert len(site.snapshooter().list()) == 1
    site.take(max_deleted=1)


def test_a_source_that_is_not_there_is_an_error(site: Site) -> None:
    with pytest.raises(SourceError):
        site.snapshooter(src_root=f"{site.src_root}/nowhere").make_snapshot()


def test_duplicates_and_killed_runs_leave_nothing(local: Site, tmp_path: Path) -> None:
    for number in range(5):
        local.write(f"copy {number}", b"the same" * 1000)
    local.take()
    kept = tmp_path / "kept"
    assert len(list((kept / "heap" / "objects").rglob("*.zst"))) == 1
    litter = kept / "heap" / "objects" / "ab" / ".x.0123456789abcdef.tmp"
    litter.parent.mkdir(exist_ok=True)
    litter.write_bytes(b"half an object")
    assert local.collect().temporaries == 1
    assert not list(kept.rglob("*.tmp"))


# --- deleting what nothing needs ----------------------------------------------------------------------------


def test_what_no_snapshot_needs_is_deleted_and_nothing_else(site: Site) -> None:
    site.write("a", b"old" * 100)
    site.write("b", b"stays")
    first = site.take()
    site.write("a", b"new" * 100)
    site.take()
    assert site.collect().deleted_objects == 0
    site.snap_store.delete(first)
    assert site.collect(dry_run=True).deleted_objects == 1
    report = site.collect()
    assert (report.kept_objects, report.deleted_objects) == (2, 1)
    assert verify_heap(site.heap_store, [site.snap_store], read_data=True).faults == []


def test_snapshots_for_undoing_count_until_they_are_dropped(local: Site) -> None:
    local.write("a", b"1")
    local.take()
    local.write("a", b"2")
    local.snapshooter().restore_snapshot()
    assert local.collect().deleted_objects == 0
    assert local.collect(drop_undo_older_than=timedelta(days=1)).deleted_undo == 0
    report = local.collect(drop_undo_older_than=timedelta(0))
    assert (report.deleted_undo, report.deleted_objects) == (1, 1)


def test_a_snapshot_in_the_making_keeps_its_objects(site: Site) -> None:
    site.write("a", b"1")
    snapshooter = site.snapshooter()
    snapshot, timestamp = snapshooter.make_snapshot()
    with pytest.raises(RepositoryLockedError):
        site.collect()
    snapshooter.save_snapshot(snapshot, timestamp)
    assert site.collect().deleted_objects == 0
    unsaved, _ = snapshooter.make_snapshot()
    unsaved.close()
    site.collect()


def test_nothing_is_deleted_while_a_place_of_snapshots_is_not_at_hand(local: Site, tmp_path: Path) -> None:
    local.write("a", b"1")
    local.take()
    other = Snapshooter(
        LOCAL, local.src_root, LOCAL, str(tmp_path / "elsewhere"), LOCAL, f"{local.heap_root}/heap"
    )
    local.write("b", b"needed elsewhere")
    other.save_snapshot(other.make_snapshot()[0])
    with pytest.raises(RepositoryError, match="elsewhere"):
        local.collect()
    stores = [local.snap_store, store_on(LOCAL, str(tmp_path / "elsewhere"))]
    assert collect_garbage(local.heap_store, stores).deleted_objects == 0


def test_nothing_is_deleted_where_a_snapshot_cannot_be_read(local: Site, tmp_path: Path) -> None:
    local.write("a", b"1")
    name = local.take()
    path = tmp_path / "kept" / "snap" / name
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-10])
    local.write("b", b"2")
    with pytest.raises(StateFormatError):
        local.collect()
    assert len(list((tmp_path / "kept" / "heap" / "objects").rglob("*.zst"))) == 1
    assert len(verify_heap(local.heap_store, [local.snap_store]).faults) == 1


def test_a_heap_within_its_own_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"):
        Snapshooter(LOCAL, str(tmp_path), LOCAL, str(tmp_path / "snap"), LOCAL, "/elsewhere")


def test_there_is_no_latest_where_there_is_nothing(site: Site) -> None:
    with pytest.raises(ObjectNotFoundError):
        site.snapshooter().restore_snapshot()
    site.write("a", b"1")
    site.take()
    with pytest.raises(ObjectNotFoundError, match="at or before"):
        site.snapshooter().restore_snapshot(latest_before=datetime(2001, 1, 1, tzinfo=UTC))


def test_many_files_need_little_memory_at_a_time(local: Site) -> None:
    for number in range(300):
        local.write(f"d{number % 7}/file {number}", str(number).encode())
    local.take()
    shutil.rmtree(local.src_root)
    report = local.snapshooter().restore_snapshot()
    assert report.problems == [] and len(local.files()) == 300
    assert io.BytesIO(local.read("d3/file 3")).read() == b"3"
