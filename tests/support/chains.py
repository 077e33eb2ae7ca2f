"""Backups of one tree that are merged, rebased and pruned, and what each point in time must be."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.archive.volume_reader import open_volume
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.merge import RewriteReport, merge_backups, rebase_backup
from incremental_backups_tools.chain.prune import PruneReport, prune_backups
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.state import StateLine
from incremental_backups_tools.repository.repository import Repository

Tree = dict[bytes, tuple[object, ...]]
KEY = "source"
SCRIPT_TOOLS = (
    *("mkdir", "rm", "rmdir", "cp", "mv", "ln", "ls", "cat", "chmod", "chown", "touch", "sed"),
    *("sort", "tr", "wc", "id", "find", "tar", "zstd", "rdiff"),
)


@dataclass(slots=True)
class Chain:
    """A source, its repository, and what the source was at each point in time, by id.

    What is done to the repository by these methods is done to ``points`` too.
    """

    top: Path
    source: Path
    repository: Path
    cache: Path
    points: dict[str, Tree] = field(default_factory=dict)

    @classmethod
    def begin(cls, top: Path) -> Self:
        """An empty source, and no repository yet."""
        (top / KEY).mkdir()
        return cls(top, top / KEY, top / "repository", top / "cache")

    def copy(self, top: Path) -> Chain:
        """The same with a repository and a cache of its own below *top*; of the source there is one."""
        top.mkdir()
        shutil.copytree(self.repository, top / "repository")
        shutil.copytree(self.cache, top / "cache")
        return Chain(top, self.source, top / "repository", top / "cache", dict(self.points))

    @property
    def ids(self) -> list[str]:
        """Of the points in time, oldest first."""
        return sorted(self.points)

    # --- what is done ------------------------------------------------------------------------------------

    def back_up(self, *, full: bool = False, **options: Any) -> BackupReport:
        """Back the source up as it is."""
        make = full_backup if full else incremental_backup
        report = make(self.source, self.repository, cache_root=self.cache, max_deleted=1, **options)
        assert not report.problems
        self.points[report.backup_date] = fingerprint(self.source)
        return report

    def merge(self, first: int, last: int, **options: Any) -> RewriteReport:
        """Merge the points with these numbers, the oldest being 0."""
        ids = self.ids
        report = merge_backups(
            KEY, ids[first], ids[last], repository=self.repository, cache_root=self.cache, **options
        )
        assert report.replaced == tuple(ids[first:last])
        for backup_id in report.replaced:
            del self.points[backup_id]
        return report

    def rebase(self, number: int, **options: Any) -> RewriteReport:
        """Rebase the point with this number."""
        return rebase_backup(
            KEY, self.ids[number], repository=self.repository, cache_root=self.cache, **options
        )

    def prune(self, **options: Any) -> PruneReport:
        """Prune, with files of killed runs going at once unless *options* say otherwise."""
        settings = {"grace_seconds": 0, **options}
        report = prune_backups(KEY, repository=self.repository, cache_root=self.cache, **settings)
        if not report.dry_run:
            self.points = {backup_id: self.points[backup_id] for backup_id in report.plan.kept}
        return report

    # --- what is there -----------------------------------------------------------------------------------

    def history(self) -> History:
        """The backups as the repository has them now."""
        return History(Repository.open(self.repository), KEY)

    def lines(self, number: int) -> dict[bytes, StateLine]:
        """The lines of one point's state, by path."""
        return {line.path: line for line in self.history().lines(self.ids[number])}

    def index(self, number: int) -> dict[bytes, ResolvedEntry]:
        """One point's index, by path."""
        return {entry.path: entry for entry in resolve(self.history().states(self.ids[number]))}

    def signatures(self, number: int) -> dict[bytes, bytes]:
        """The signatures of one point's files, out of the repository, by path."""
        states = self.history().states(self.ids[number])
        archives = Archives(Repository.open(self.repository).store, KEY, [state.header for state in states])
        return {
            entry.path: archives.raw_signature(entry.sigs)
            for entry in resolve(states)
            if entry.sig_digest is not None
        }

    def files(self, pattern: str = "*") -> list[Path]:
        """Files of the key."""
        return sorted((self.repository / KEY).glob(pattern))

    def size(self, pattern: str = "*") -> int:
        """Bytes of files of the key."""
        return sum(path.stat().st_size for path in self.files(pattern))

    def frames(self, pattern: str) -> list[bytes]:
        """The zstd frames of volumes, as they lie."""
        found = []
        for path in self.files(pattern):
            with open_volume(path) as volume:
                offset = 0
                while offset < volume.tar_len:
                    frame = volume.frame_at(offset)
                    found.append(volume.read_frame(frame))
                    offset += frame.tar_len
        return found

    # --- what must hold ----------------------------------------------------------------------------------

    def check(self, *, scripted: int = 0) -> None:
        """Every point restores, and nothing else is listed; the newest *scripted* ones by RESTORE.sh too."""
        assert self.history().backup_ids == self.ids
        for backup_id, expected in self.points.items():
            dest = self.top / "restored"
            report = restore_backup(KEY, dest, at=backup_id, repository=self.repository, durable=False)
            assert not report.problems, report.problems
            assert_same_tree(expected, dest)
            shutil.rmtree(dest)
        for backup_id in self.ids[len(self.ids) - scripted :]:
            self.check_script(backup_id)
        faults = verify(self.repository, read_data=True).faults
        assert not faults, faults

    def check_script(self, backup_id: str) -> None:
        """RESTORE.sh brings the point back where there is nothing but its tools."""
        dest, tools = self.top / "by-script", self.top / "tools"
        if not tools.exists():
            tools.mkdir()
            for name in SCRIPT_TOOLS:
                path = shutil.which(name)
                assert path, f"{name} is not installed"
                (tools / name).symlink_to(path)
        shell = shutil.which("sh")
        assert shell is not None
        done = subprocess.run(
            [shell, self.repository / "RESTORE.sh", f"{KEY}@{backup_id}", dest],
            env={"PATH": str(tools)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_tree(as_scripted(self.points[backup_id]), as_scripted(fingerprint(dest)))
        shutil.rmtree(dest)

    def assert_no_garbage(self) -> None:
        """Every file of the key is named by a state, or is one, and nobody left a lock or a temporary."""
        history = self.history()
        named = {file.name for header in history.stored_headers() for file in header.files}
        named |= {os.path.basename(history.state_name(backup_id)) for backup_id in history.stored_ids}
        unlisted = set(history.stored_ids) - set(history.backup_ids)
        named |= {f"{backup_id}.forgotten" for backup_id in unlisted}
        assert {path.name for path in self.files()} == named
        assert not list((self.repository / "locks").iterdir())
        assert not list(self.repository.rglob(".*"))


def as_scripted(tree: Tree) -> Tree:
    """A tree as far as the script promises it: times in whole seconds, none of symlinks, no attributes that change."""
    promised: Tree = {}
    for path, (kind, mode, uid, gid, mtime_ns, content, first, _) in tree.items():
        seconds = 0 if kind == stat.S_IFLNK else int(str(mtime_ns)) // 10**9
        promised[path] = (kind, mode, uid, gid, seconds, content, first)
    return promised


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Change bytes of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
