"""Directories of snapshots for tests: made by the command, looked at by the file system alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.command import Ran, run_ibt
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools.heap.snapshots.create import create_snapshot
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.report import SnapshotReport

NAME = "source"
CONTROL = ".ibt-snapshots"


@dataclass(frozen=True)
class Place:
    """A source, and where its snapshots are."""

    source: Path
    dest: Path

    @property
    def ids(self) -> list[str]:
        """What looks like a snapshot to somebody who lists the directory."""
        root = self.dest / self.source.name
        return sorted(path.name for path in root.iterdir() if path.name[0] != ".") if root.exists() else []

    def tree(self, position: int = -1) -> Path:
        """The tree of a snapshot."""
        return self.dest / self.source.name / self.ids[position]

    def objects(self) -> list[Path]:
        """Every object that is not set aside."""
        return sorted(path for path in (self.dest / CONTROL / "objects").rglob("*") if path.is_file())

    def damaged(self) -> list[Path]:
        """Every object that is."""
        directory = self.dest / CONTROL / "damaged"
        return sorted(directory.iterdir()) if directory.exists() else []

    def create(self, **options: object) -> SnapshotReport:
        """Make a snapshot."""
        return create_snapshot(self.source, self.dest, **options)  # type: ignore[arg-type]

    def ibt(self, command: str, *arguments: str | Path, status: int = 0, **options: object) -> Ran:
        """Run ``ibt snapshot`` on the directory."""
        return run_ibt("snapshot", command, *arguments, "-d", self.dest, status=status, **options)  # type: ignore[arg-type]

    def verify(self) -> None:
        """Everything is right."""
        assert self.ibt("verify").stdout.endswith(": no fault found\n")

    def entries(self, position: int = -1) -> list[object]:
        """What the index of a snapshot says."""
        return list(Depot.open(self.dest).entries(self.source.name, self.ids[position]))


def as_a_tree_of_links(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """A fingerprint without what a snapshot's tree cannot say: which names share an inode by the source's doing."""
    return {path: (*values[:6], *values[7:]) for path, values in found.items()}


def assert_snapshot_of(tree: Path, expected: object) -> None:
    """A snapshot's tree shows the source, metadata and all."""
    before = expected if isinstance(expected, dict) else fingerprint(expected)  # type: ignore[arg-type]
    assert_same_tree(as_a_tree_of_links(before), as_a_tree_of_links(fingerprint(tree)))


def nothing_unfinished(dest: Path) -> bool:
    """Whether nothing lies about that a killed run left."""
    staging = [path for path in (dest / CONTROL / "staging").rglob("*") if not path.is_dir()]
    unfinished = [path for path in dest.glob("*/.*") if path.parent.name != CONTROL]
    index = list((dest / CONTROL / "index").rglob(".*"))
    return not (staging or unfinished or index)


def grow_old(path: Path) -> None:
    """Give everything below a time that no clock's granularity reaches."""
    for each in [path, *path.rglob("*")]:
        if not each.is_symlink():
            os.utime(each, ns=(10**18, 10**18))


def edit_in_place(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Write other bytes into a file without making a new one."""
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.write(change(data))
        file.truncate()
