"""Whatever two trees hold, after a sync or a restore with deleting they hold the same."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import fsspec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from incremental_backups_tools import Snapshooter
from incremental_backups_tools.heap.sync.places import open_tree
from incremental_backups_tools.heap.sync.syncing import sync_trees

LOCAL = fsspec.filesystem("file")
MEMORY = fsspec.filesystem("memory")

NAMES = st.sampled_from(["a", "b", "a.b", "a-", "*", "[a]", "é"])
CONTENTS = st.sampled_from([b"", b"1", b"2", b"22", b"x" * 1000])
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), CONTENTS, max_size=8)


def without_conflicts(tree: dict[str, bytes]) -> dict[str, bytes]:
    """Nothing lies below a file, and there is something at all: an empty bucket is no tree."""
    kept: dict[str, bytes] = {"always": b"here"}
    for path in sorted(tree, key=lambda path: path.replace("/", "\0")):
        parts = path.split("/")
        if not any("/".join(parts[:depth]) in kept for depth in range(1, len(parts))):
            kept[path] = tree[path]
    return kept


def write(filesystem: fsspec.AbstractFileSystem, root: str, tree: dict[str, bytes]) -> None:
    for path, content in tree.items():
        filesystem.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{root}/{path}", content)


def read(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, bytes]:
    found = filesystem.find(root)
    return {path.removeprefix(f"{root}/"): bytes(filesystem.cat_file(path)) for path in found}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    one=TREES.map(without_conflicts),
    other=TREES.map(without_conflicts),
    kinds=st.sampled_from(["lm", "ml", "ll", "mm"]),
)
@example({"a/a": b""}, {"a": b""}, "ml")
@example({"a": b""}, {"a": b"1"}, "ll")
@example({"a": b""}, {"a/b": b"1"}, "ml")
@example({"a/a/a": b"", "b/a/a": b""}, {"always": b"here"}, "ml")
def test_two_trees_become_equal(one: dict[str, bytes], other: dict[str, bytes], kinds: str) -> None:
    name = f"/{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as directory:
        sides = {"l": (LOCAL, directory), "m": (MEMORY, name)}
        (source_fs, source_top), (target_fs, target_top) = (sides[kind] for kind in kinds)
        source, target = f"{source_top}/source", f"{target_top}/target"
        write(source_fs, source, one)
        write(target_fs, target, other)
        report = sync_trees(
            open_tree(source_fs, source),
            open_tree(target_fs, target),
            delete=True,
            max_deleted=1,
            threads=2,
            record_directory=Path(directory) / "records",
        )
        assert report.problems == []
        assert read(target_fs, target) == read(source_fs, source) == one

        keeper = Snapshooter(
            target_fs, target, LOCAL, f"{directory}/kept", LOCAL, f"{directory}/kept", threads=2
        )
        keeper.save_snapshot(keeper.make_snapshot()[0])
        other_report = sync_trees(
            open_tree(source_fs, source), open_tree(target_fs, target), delete=True, dry_run=True, threads=2
        )
        assert (other_report.written, other_report.deleted) == (0, 0)
        for path in one:
            target_fs.rm_file(f"{target}/{path}")
        write(target_fs, f"{target}/other", other)
        assert keeper.restore_snapshot().problems == []
        assert read(target_fs, target) == one
    if MEMORY.exists(name):
        MEMORY.rm(name, recursive=True)
