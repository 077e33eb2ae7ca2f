"""Sync and the heap with a real S3 server behind a network that cuts, loses and refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import content_of, run_ibt
from support.proxy import Action, Fault, FaultProxy, proxy_before
from support.servers import Server

from incremental_backups_tools.heap.sync.places import open_tree_at
from incremental_backups_tools.heap.sync.snapshooter import Snapshooter
from incremental_backups_tools.heap.sync.syncing import sync_trees
from incremental_backups_tools.heap.sync.tree import FileTree, Listing
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.retrying import RetryPolicy

IMPATIENT = RetryPolicy(base_seconds=0.01, attempts=4)
CONTENTS = {"a": b"small", "d/large": os.urandom(9 << 20), "d/empty": b""}
GONE = {"gone": b"what is deleted", **CONTENTS}


@pytest.fixture
def proxy(seaweedfs: Server) -> Iterator[FaultProxy]:
    with proxy_before(seaweedfs.port) as proxy:
        yield proxy


@pytest.fixture
def place(seaweedfs: Server, proxy: FaultProxy) -> StoreAddress:
    options = {**seaweedfs.storage_options, "endpoint_url": f"http://127.0.0.1:{proxy.port}"}
    return StoreAddress(seaweedfs.new_url(), options, RemoteOptions(retry=IMPATIENT))


def fill(directory: Path, contents: dict[str, bytes]) -> Path:
    for path, content in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def contents_of(tree: FileTree) -> dict[str, bytes]:
    problems: list[object] = []
    entries = list(tree.iter_entries(Listing.empty(), lambda path, message: problems.append((path, message))))
    assert problems == []
    return {entry.path.decode(): tree.read(entry, b"".join)[0] for entry in entries if entry.type == "file"}


@pytest.mark.parametrize("action", [Action.CUT, Action.CUT_MIDDLE, Action.LOSE_REPLY, Action.SLOW_DOWN])
def test_sync_goes_on_after_faults_both_ways(
    action: Action, place: StoreAddress, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = fill(tmp_path / "source", GONE)
    tree = open_tree_at(StoreAddress(str(source)))
    remote = open_tree_at(place)
    assert not remote.exists()
    faults = [Fault(word, action) for word in (b"PUT /", b"POST /", b"GET /", b"HEAD /", b"DELETE /")]
    proxy.faults.extend(faults)
    assert sync_trees(tree, remote, record_directory=tmp_path / "r").problems == []
    (source / "gone").unlink()
    report = sync_trees(tree, remote, delete=True, record_directory=tmp_path / "r")
    assert (report.problems, report.deleted) == ([], 1)
    assert contents_of(remote) == CONTENTS
    proxy.faults[:] = [Fault(b"GET /", action, times=2)]
    back = sync_trees(
        remote, open_tree_at(StoreAddress(str(tmp_path / "back"))), record_directory=tmp_path / "r"
    )
    assert (back.problems, content_of(tmp_path / "back")) == ([], content_of(source))
    assert sum(fault.hits for fault in faults) >= 4
    assert proxy.faults[0].hits == 2


def test_a_snapshot_and_its_restore_go_on_after_faults(
    place: StoreAddress, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = fill(tmp_path / "source", CONTENTS)
    snapshooter = Snapshooter.at(StoreAddress(str(source)), place, place)
    proxy.faults.extend(Fault(word, Action.SLOW_DOWN, times=2) for word in (b"PUT /", b"GET /"))
    name = snapshooter.save_snapshot(snapshooter.make_snapshot()[0])
    restored = Snapshooter.at(StoreAddress(str(tmp_path / "restored")), place, place)
    assert restored.restore_snapshot(name, undo=False).problems == []
    assert content_of(tmp_path / "restored") == content_of(source)
    assert [fault.hits for fault in proxy.faults] == [2, 2]


def test_a_listing_that_fails_for_good_deletes_nothing(
    place: StoreAddress, proxy: FaultProxy, tmp_path: Path
) -> None:
    source = fill(tmp_path / "source", CONTENTS)
    remote = open_tree_at(place)
    tree = open_tree_at(StoreAddress(str(source)))
    assert sync_trees(tree, remote, record_directory=tmp_path / "r").problems == []
    proxy.faults.append(Fault(b"d%2F", Action.SLOW_DOWN, times=10_000))
    report = sync_trees(remote, tree, delete=True, max_deleted=1, record_directory=tmp_path / "r")
    assert (len(report.problems), report.deleted) == (1, 0)
    assert content_of(source) == content_of(fill(tmp_path / "as-before", CONTENTS))


def test_the_configuration_file_says_how_every_place_is_opened(seaweedfs: Server, tmp_path: Path) -> None:
    url, heap = seaweedfs.new_url(), seaweedfs.new_url()
    source = fill(tmp_path / "source", CONTENTS)
    lines = [f"{name} = {toml(value)}" for name, value in seaweedfs.storage_options.items()]
    config = tmp_path / "config.toml"
    config.write_text("\n".join(["[storage.s3]", *lines, ""]))
    configured = {"IBT_CONFIG": str(config), "IBT_HEAP": heap}
    run_ibt("sync", source, url, env=configured)
    run_ibt("heap", "snapshot", url, env=configured)
    run_ibt("heap", "restore", tmp_path / "restored", env=configured)
    assert content_of(tmp_path / "restored") == content_of(source)
    assert "1 snapshot need" in run_ibt("heap", "gc", env=configured).stdout
    assert "0 faults" in run_ibt("heap", "verify", env=configured).stdout
    assert len(run_ibt("heap", "list", env=configured).stdout.splitlines()) == 1


def test_storage_option_is_for_all_places_and_one_of_their_own_wins(
    seaweedfs: Server, tmp_path: Path
) -> None:
    url, heap = seaweedfs.new_url(), seaweedfs.new_url()
    source = fill(tmp_path / "source", CONTENTS)
    options = seaweedfs.command_options()
    run_ibt(*options, "sync", source, url)
    run_ibt("heap", "snapshot", url, "--heap", heap, *options)
    wrong = "endpoint_url=http://127.0.0.1:1"
    right = f"endpoint_url={seaweedfs.storage_options['endpoint_url']}"
    given = [*options, "--storage-option", wrong, "--heap-option", right, "--heap", heap]
    run_ibt("heap", "restore", tmp_path / "restored", *given)
    assert content_of(tmp_path / "restored") == content_of(source)


def test_options_of_urls_are_refused_where_there_is_none(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", {"a": b"1"})
    for option in ("--storage-option=a=b", "--limit-upload=1M", "--limit-download=1M"):
        name = option.partition("=")[0]
        assert f"{name} is for" in run_ibt("sync", source, tmp_path / "to", option, status=2).error
        heap = ["--heap", tmp_path / "heap", option]
        assert f"{name} is for" in run_ibt("heap", "snapshot", source, *heap, status=2).error
    refused = run_ibt("sync", source, "memory://x", "--source-option=a=b", status=2)
    assert f"--source-option is for a place at a URL, and {source} is a directory" in refused.error
    assert not (tmp_path / "to").exists()


def toml(value: object) -> str:
    """The value of a storage option in a configuration file."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)
