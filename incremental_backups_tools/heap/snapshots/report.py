"""What making a snapshot came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.index import Problem


@dataclass(slots=True)
class SnapshotReport:
    """What making a snapshot did, or of a dry run would do.

    Attributes:
        id: the snapshot; of a dry run none.
        parent: the snapshot before it.
        entries, files, bytes: what is in it.
        unchanged: files that were not read, since the last snapshot knew them.
        bytes_read: of files.
        added_objects, added_bytes: what no snapshot had. Of a dry run they may be fewer in the end: two new files
            may be the same.
        healed: objects that were damaged or missing, and are right again.
        problems: names that could not be read. The last good version of each is in the snapshot, if there is one.
        notices: what is worth a word.
        warnings: metadata that the directory of snapshots could not take; the index has it.
    """

    name: str
    source: str
    id: str | None = None
    parent: str | None = None
    entries: int = 0
    files: int = 0
    bytes: int = 0
    unchanged: int = 0
    bytes_read: int = 0
    added_objects: int = 0
    added_bytes: int = 0
    healed: int = 0
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duration: float = 0.0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "name": self.name,
            "source": self.source,
            "id": self.id,
            "parent": self.parent,
            "entries": self.entries,
            "files": self.files,
            "bytes": self.bytes,
            "unchanged": self.unchanged,
            "bytes_read": self.bytes_read,
            "added_objects": self.added_objects,
            "added_bytes": self.added_bytes,
            "healed": self.healed,
            "problems": problem_records(self.problems),
            "notices": problem_records(self.notices),
            "warnings": self.warnings,
            "duration": round(self.duration, 3),
            "dry_run": self.dry_run,
        }


def problem_records(problems: list[Problem]) -> list[dict[str, str]]:
    """Problems as plain data."""
    return [{"path": printable(problem.path), "message": problem.message} for problem in problems]
