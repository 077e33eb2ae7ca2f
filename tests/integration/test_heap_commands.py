"""``ibt sync`` and ``ibt heap`` as a person runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.command import PROGRAM, WITHOUT_OVERRIDE, command_environment, content_of, run_ibt

from incremental_backups_tools.heap.sync.places import open_tree_at
from incremental_backups_tools.heap.sync.syncing import sync_trees
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.filesystems import store_at
from incremental_backups_tools.repository.locks import KeyLock


@pytest.fixture
def heap(tmp_path: Path) -> str:
    return f"--heap={tmp_path / 'heap'}"


def fill(source: Path) -> None:
    (source / "d").mkdir()
    (source / "a").write_text("one")
    (source / "d" / "b").write_bytes(os.urandom(2 << 20))


# --- heap ----------------------------------------------------------------------------------------------------


def test_a_round_of_the_heap_commands(source: Path, heap: str, tmp_path: Path) -> None:
    fill(source)
    before = content_of(source)
    made = run_ibt("heap", "snapshot", source, heap, "--json").document
    assert (made["files"], made["read"], made["problems"]) == (2, 2, [])
    (source / "a").write_text("two")
    (source / "c").write_text("new")
    assert "3 files" in run_ibt("heap", "snapshot", source, heap).stdout
    listed = run_ibt("heap", "list", heap, "--json").document["snapshots"]
    assert (listed[0]["id"], len(listed)) == (made["id"], 2)
    assert [row["source"] for row in listed] == [str(source)] * 2
    assert len(run_ibt("heap", "list", heap).lines) == 2
    assert run_ibt("heap", "compare", made["id"], heap).lines == ["~ a", "> c"]
    assert run_ibt("heap", "compare", made["id"], "latest", heap, "--all").lines == ["~ a", "> c", "= d/b"]
    dry = run_ibt("heap", "restore", source, made["id"], heap, "--delete", "-n")
    assert dry.lines[:2] == ["~ a", "- c"]
    report = run_ibt("heap", "restore", source, made["id"], heap, "--delete", "--json").document
    assert content_of(source) == before
    (undo,) = run_ibt("heap", "list", "--undo", heap).lines
    run_ibt("heap", "restore", source, undo.split()[0], heap, "--delete", "--no-undo")
    assert (source / "c").read_text() == "new"
    assert report["undo"].startswith("undo/")
    assert "0 faults" in run_ibt("heap", "verify", heap, "--read-data").stdout
    assert run_ibt("heap", "gc", heap, "--drop-undo", "0s", "--json").document["deleted_undo"] == 1
    run_ibt("heap", "restore", tmp_path / "elsewhere", heap)
    assert (tmp_path / "elsewhere" / "c").read_text() == "new"


def test_snapshots_may_lie_apart_from_the_contents(source: Path, heap: str, tmp_path: Path) -> None:
    fill(source)
    places = (heap, f"--snapshots={tmp_path / 'snapshots'}")
    run_ibt("heap", "snapshot", source, *places)
    assert "snapshots" in os.listdir(tmp_path / "snapshots")
    assert "snapshots" not in os.listdir(tmp_path / "heap")
    assert str(tmp_path / "snapshots") in run_ibt("heap", "gc", heap, status=1).error
    assert "deleted 0 objects" in run_ibt("heap", "gc", *places).stdout
    run_ibt("heap", "verify", *places)


def test_a_file_that_cannot_be_read_is_named_and_the_rest_goes_on(source: Path, heap: str) -> None:
    fill(source)
    (source / "a").chmod(0)
    ran = run_ibt("heap", "snapshot", source, heap, prefix=WITHOUT_OVERRIDE, status=3)
    assert "1 file," in ran.stdout and "problem: a:" in ran.stderr
    ran = run_ibt("sync", source, source.parent / "copy", prefix=WITHOUT_OVERRIDE, status=3)
    assert "a:" in ran.stderr and (source.parent / "copy" / "d" / "b").exists()
    assert not (source.parent / "copy" / "a").exists()


def test_faults_set_the_status(source: Path, heap: str, tmp_path: Path) -> None:
    fill(source)
    run_ibt("heap", "snapshot", source, heap)
    objects = list((tmp_path / "heap" / "objects").rglob("*.zst"))
    objects[0].unlink()
    assert "is not there" in run_ibt("heap", "verify", heap, status=1).stderr
    assert "problem" in run_ibt("heap", "restore", tmp_path / "elsewhere", heap, status=3).stderr


def test_wrong_places_say_so(source: Path, heap: str, tmp_path: Path) -> None:
    run_ibt("heap", "list", heap, status=10)
    run_ibt("heap", "gc", heap, status=10)
    run_ibt("heap", "restore", tmp_path / "x", heap, status=10)
    run_ibt("heap", "snapshot", source / "nowhere", heap, status=1)
    assert "within" in run_ibt("heap", "snapshot", tmp_path, heap, status=2).error
    run_ibt("heap", "snapshot", source, status=2)
    run_ibt("heap", "snapshot", source, heap)
    run_ibt("heap", "restore", tmp_path / "x", "yesterday", heap, status=2)
    run_ibt("heap", "restore", tmp_path / "x", "undo/20200101T000000.000000Z", heap, status=1)
    run_ibt("heap", "snapshot", "nosuch://x", heap, status=1)
    run_ibt("heap", "snapshot", source, heap, "--heap-option", "novalue", status=2)


def test_a_heap_in_use_is_not_cleaned(source: Path, heap: str, tmp_path: Path) -> None:
    fill(source)
    run_ibt("heap", "snapshot", source, heap)
    store = store_at(StoreAddress(str(tmp_path / "heap")))
    with KeyLock.acquire(store, "add-someone", operation="a snapshot"):
        assert "a snapshot" in run_ibt("heap", "gc", heap, status=11).error
    run_ibt("heap", "gc", heap)


@pytest.mark.parametrize("delay", [0.0, 0.15, 0.3, 0.5])
def test_a_killed_snapshot_leaves_nothing_that_looks_like_one(
    source: Path, heap: str, tmp_path: Path, delay: float
) -> None:
    for number in range(400):
        (source / f"file {number}").write_bytes(os.urandom(20_000))
    process = subprocess.Popen(
        [*PROGRAM, "heap", "snapshot", source, heap], env=command_environment(), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "heap" / "objects").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for row in run_ibt("heap", "list", heap, "--json").document["snapshots"]:
        run_ibt("heap", "restore", tmp_path / row["id"], row["id"], heap)
        assert content_of(tmp_path / row["id"]) == content_of(source)
    run_ibt("heap", "gc", heap)
    assert not list((tmp_path / "heap").rglob("*.tmp"))
    run_ibt("heap", "snapshot", source, heap)
    run_ibt("heap", "restore", tmp_path / "restored", heap)
    assert content_of(tmp_path / "restored") == content_of(source)
    run_ibt("heap", "verify", heap, "--read-data")


# --- sync ----------------------------------------------------------------------------------------------------


def test_sync_makes_the_target_equal(source: Path, tmp_path: Path) -> None:
    fill(source)
    (source / "link").symlink_to("a")
    (source / "empty").mkdir()
    os.utime(source / "a", ns=(5, 123_456_789))
    target = tmp_path / "target"
    run_ibt("sync", source, target)
    assert content_of(target) == content_of(source)
    assert (target / "a").stat().st_mtime_ns == 123_456_789
    (target / "besides").write_text("stays")
    assert "1 there besides" in run_ibt("sync", source, target).stdout
    dry = run_ibt("sync", source, target, "--delete", "--dry-run")
    assert dry.lines[0] == "- besides" and (target / "besides").exists()
    run_ibt("sync", source, target, "--delete")
    assert content_of(target) == content_of(source)


def test_sync_sees_what_only_contents_show(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    path = source / "a"
    path.write_text("before")
    os.utime(path, (1000, 1000))
    run_ibt("sync", source, target)
    time.sleep(2.1)  # out of the time in which the clock tells nothing
    run_ibt("sync", source, target)
    path.write_text("after!")
    os.utime(path, (1000, 1000))
    run_ibt("sync", source, target)
    assert (target / "a").read_text() == "after!"
    for content in ("longer than before", ""):
        path.write_text(content)
        run_ibt("sync", source, target)
        assert (target / "a").read_text() == content
    path.write_text("after!")
    (target / "a").write_text("harmed")
    run_ibt("sync", source, target)
    assert (target / "a").read_text() == "after!"


def test_sync_reads_nothing_that_the_record_speaks_for(source: Path, tmp_path: Path) -> None:
    fill(source)
    for path in (source / "a", source / "d" / "b"):
        os.utime(path, (1000, 1000))
    time.sleep(2.1)
    target = tmp_path / "target"
    reads: list[str] = []

    def run(**options: bool) -> list[str]:
        reads.clear()
        trees = [open_tree_at(StoreAddress(str(path))) for path in (source, target)]
        for tree in trees:
            original = tree.read

            def read(entry, consume, original=original, tree=tree):  # type: ignore[no-untyped-def]
                reads.append(f"{Path(tree.url).name}/{entry.path.decode()}")
                return original(entry, consume)

            tree.read = read  # type: ignore[method-assign]
        sync_trees(trees[0], trees[1], record_directory=tmp_path / "records", **options)
        return sorted(reads)

    assert run() == ["source/a", "source/d/b"]
    time.sleep(2.1)  # the target's files are of just now
    assert run() == []
    assert run(checksum=True) == ["source/a", "source/d/b", "target/a", "target/d/b"]
    (record,) = (tmp_path / "records").iterdir()
    record.write_bytes(record.read_bytes()[:-5])
    assert len(run()) == 4


def test_sync_stops_where_the_source_is_mostly_gone(source: Path, tmp_path: Path) -> None:
    for number in range(10):
        (source / str(number)).write_text("x")
    target = tmp_path / "target"
    run_ibt("sync", source, target)
    for number in range(9):
        (source / str(number)).unlink()
    assert "is it mounted" in run_ibt("sync", source, target, "--delete", status=1).error
    assert len(list(target.iterdir())) == 10
    run_ibt("sync", source, target, "--delete", "--max-deleted", "100%")
    assert len(list(target.iterdir())) == 1


def test_sync_deletes_nothing_that_it_could_not_see(source: Path, tmp_path: Path) -> None:
    fill(source)
    target = tmp_path / "target"
    run_ibt("sync", source, target)
    (source / "d").chmod(0)
    ran = run_ibt("sync", source, target, "--delete", prefix=WITHOUT_OVERRIDE, status=3)
    assert (target / "d" / "b").exists(), ran


def test_sync_changes_types_and_follows_no_link(source: Path, tmp_path: Path) -> None:
    fill(source)
    target = tmp_path / "target"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_text("untouched")
    (target / "a" / "x").mkdir(parents=True)
    (target / "d").symlink_to(outside)
    ran = run_ibt("sync", source, target, status=3)
    assert "not empty" in ran.stderr
    run_ibt("sync", source, target, "--delete", "--max-deleted", "100%")
    assert content_of(target) == content_of(source)
    assert (outside / "b").read_text() == "untouched"


def test_sync_refuses_trees_within_each_other(source: Path) -> None:
    for one, other in ((source, source / "below"), (source / "below", source), (source, source)):
        assert "within" in run_ibt("sync", one, other, status=2).error


def test_sync_of_a_source_that_is_not_there_changes_nothing(source: Path, tmp_path: Path) -> None:
    fill(source)
    run_ibt("sync", tmp_path / "nowhere", source, "--delete", "--max-deleted", "100%", status=1)
    run_ibt("sync", "memory://nowhere", source, "--delete", "--max-deleted", "100%", status=1)
    assert (source / "a").exists()
