"""A source, its backups, and what it was at each of them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.chain.state import StateLine
from incremental_backups_tools.repository.repository import Repository

Tree = dict[bytes, tuple[object, ...]]


class Story:
    """Backups of one source, and what it was at each."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.source = top / "source"
        self.repository = top / "repository"
        self.points: list[tuple[str, Tree]] = []
        self.source.mkdir()

    def back_up(self, *, full: bool = False, **options: object) -> BackupReport:
        make = full_backup if full else incremental_backup
        report = make(self.source, self.repository, cache_root=self.top / "cache", **options)
        assert not report.problems
        self.points.append((report.backup_date, fingerprint(self.source)))
        return report

    def lines(self) -> dict[bytes, StateLine]:
        """The newest state's lines by path."""
        history = History(Repository.open(self.repository), "source")
        return {line.path: line for line in history.states(self.points[-1][0])[-1].lines()}

    def check(self) -> None:
        """Every point is restored by the package and by the script, and proves whole."""
        for number, (backup_id, expected) in enumerate(self.points):
            dest = self.top / f"restored-{number}"
            report = restore_backup("source", dest, at=backup_id, repository=self.repository, durable=False)
            assert not report.problems
            assert_same_tree(expected, dest)
            script = self.top / f"by-script-{number}"
            command = ["sh", self.repository / "RESTORE.sh", f"source@{backup_id}", script]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert_same_tree(in_seconds(expected), in_seconds(fingerprint(script)))
        assert not verify(self.repository, read_data=True).faults


def in_seconds(tree: Tree) -> Tree:
    """A tree as far as the script promises it: whole seconds."""
    return {path: (*parts[:4], int(str(parts[4])) // 10**9, *parts[5:]) for path, parts in tree.items()}


def roles(report: BackupReport) -> set[str]:
    return {file.role for file in report.files} - {"config", "script"}


def added(report: BackupReport) -> int:
    return sum(file.size for file in report.files)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
