"""What a backup tells of itself, to people, to scripts, and to uploaders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import msgspec

from incremental_backups_tools.chain.state import Counts, Sizes
from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.index import Problem


class ReportFile(msgspec.Struct, frozen=True):
    """A file that a backup added to its repository.

    Attributes:
        path: its name in the repository, ``<key>/<id>.full.0000.tar.zst``: the name to carry it under.
        size: bytes.
        role: ``full created updated sigvault replay state``, or ``config`` and ``script`` for ``ibt.json`` and
            ``RESTORE.sh``.
        digest: BLAKE3, hexadecimal.
        fs_path: where it lies on this machine; None in a remote repository.
    """

    path: str
    size: int
    role: str
    digest: str
    fs_path: str | None = None


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What one backup did.

    Attributes:
        backup_key: the key.
        backup_date: the backup's id, its UTC time.
        kind: ``full`` or ``incremental``.
        parent: the id of the backup it stands on.
        repository: where it was written, a path or a URL.
        files: what an uploader must carry away; carried elsewhere and fetched back under their ``path``, they
            are a repository. The state is last: whoever copies in this order never shows half a backup.
        counts, bytes: entries and bytes, as in the state's header.
        problems: source files that could not be read or changed meanwhile. With any, exit status 3.
        notices: what was left out on purpose, such as sockets.
        duration: seconds.
    """

    backup_key: str
    backup_date: str
    kind: str
    parent: str | None
    repository: str
    files: tuple[ReportFile, ...]
    counts: Counts
    bytes: Sizes
    problems: tuple[Problem, ...] = ()
    notices: tuple[Problem, ...] = ()
    duration: float = 0.0
    dry_run: bool = False

    @property
    def total(self) -> int:
        """Bytes that this backup added to the repository."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data: the classic keys, and everything else."""
        return {
            "backup_key": self.backup_key,
            "backup_date": self.backup_date,
            "kind": self.kind,
            "parent": self.parent,
            "repository": self.repository,
            "files": [
                {"path": file.path, "size": file.size, "role": file.role, "digest": file.digest}
                for file in self.files
            ],
            "total": self.total,
            "counts": {name: getattr(self.counts, name) for name in Counts.__struct_fields__},
            "bytes": {name: getattr(self.bytes, name) for name in Sizes.__struct_fields__},
            "problems": [_plain(problem) for problem in self.problems],
            "notices": [_plain(problem) for problem in self.notices],
            "duration": round(self.duration, 3),
            "dry_run": self.dry_run,
        }


def _plain(problem: Problem) -> dict[str, str]:
    return {"path": printable(problem.path), "message": problem.message}


def local_path(store_url: str, is_local: bool, name: str) -> str | None:
    """Where an object of a store lies on this machine, if it does."""
    return os.path.join(store_url, name) if is_local else None
