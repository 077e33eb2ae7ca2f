"""What the commands on disks have to tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.index import Problem


def problem_records(problems: list[Problem]) -> list[dict[str, str]]:
    """Problems as plain data."""
    return [{"path": printable(problem.path), "message": problem.message} for problem in problems]


@dataclass(slots=True)
class UpdateReport:
    """What an update found.

    Attributes:
        found: names in the source.
        created, updated, metadata, deleted: names that are new, have another content, other metadata, or are gone.
        read, bytes_read: files, and bytes, that were read for their digest.
        expired: former states of names that are kept no longer.
    """

    found: int = 0
    created: int = 0
    updated: int = 0
    metadata: int = 0
    deleted: int = 0
    read: int = 0
    bytes_read: int = 0
    expired: int = 0
    dry_run: bool = False
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        numbers = ("found", "created", "updated", "metadata", "deleted", "read", "bytes_read", "expired")
        return {
            **{name: getattr(self, name) for name in numbers},
            "dry_run": self.dry_run,
            "problems": problem_records(self.problems),
        }


@dataclass(slots=True)
class DiskReport:
    """What a backup to a disk did.

    Attributes:
        written, bytes_written: objects that were stored, and their bytes on the disk.
        found: objects that lay there without the catalogue knowing, and count now.
        evicted, bytes_evicted: copies that gave way.
        lost: copies that the catalogue counted on and that are not there, or not whole.
        no_room: objects that have too few copies and found no room here.
        without_copy: objects that have no copy on any disk after this run.
    """

    disk: str
    written: int = 0
    bytes_written: int = 0
    found: int = 0
    evicted: int = 0
    bytes_evicted: int = 0
    lost: int = 0
    no_room: int = 0
    without_copy: int = 0
    dry_run: bool = False
    problems: list[Problem] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        numbers = (
            "written",
            "bytes_written",
            "found",
            "evicted",
            "bytes_evicted",
            "lost",
            "no_room",
            "without_copy",
        )
        return {
            "disk": self.disk,
            **{name: getattr(self, name) for name in numbers},
            "dry_run": self.dry_run,
            "problems": problem_records(self.problems),
        }


@dataclass(slots=True)
class CheckReport:
    """What verifying or refreshing a disk found.

    Attributes:
        checked, bytes_checked: objects that were looked at, and their bytes on the disk.
        missing, damaged: digests, in hex, of copies that count no longer.
        found: objects that lay there without the catalogue knowing, and count now.
        unknown: objects that no catalogue entry needs; they are left alone.
    """

    disk: str
    checked: int = 0
    bytes_checked: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    found: int = 0
    unknown: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "disk": self.disk,
            "checked": self.checked,
            "bytes_checked": self.bytes_checked,
            "missing": self.missing,
            "damaged": self.damaged,
            "found": self.found,
            "unknown": self.unknown,
        }


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        written, bytes_written: names that were made, and bytes of content.
        unchanged: names that were right already.
        missing: files whose content is on no disk that is there.
        needed_disks: the names of disks that, plugged in, give the rest; the smallest such set, or what the
            greedy rule found where ``is_smallest`` is false.
        unreachable: files whose content is on no disk at all.
    """

    destination: str
    written: int = 0
    bytes_written: int = 0
    unchanged: int = 0
    missing: int = 0
    unreachable: int = 0
    needed_disks: tuple[str, ...] = ()
    is_smallest: bool = True
    dry_run: bool = False
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        numbers = ("destination", "written", "bytes_written", "unchanged", "missing", "unreachable")
        return {
            **{name: getattr(self, name) for name in numbers},
            "needed_disks": list(self.needed_disks),
            "is_smallest": self.is_smallest,
            "dry_run": self.dry_run,
            "problems": problem_records(self.problems),
            "warnings": self.warnings,
        }
