"""What a restore reads of the repository: which objects, and which bytes of them.

To find it out, the states are read, and of each archive the seek table at its end.

For storage that must be thawed before it is read, or that is paid for by the byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from incremental_backups_tools.archive.frame_reader import READ_LEN
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.signatures import signature_name
from incremental_backups_tools.exceptions import (
    DecryptionError,
    FormatError,
    IntegrityError,
    ObjectNotFoundError,
    RepositoryError,
)
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.layout import parse_object_name
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import FILE
from incremental_backups_tools.tree.selection import Selection

STATES: Final = "states"
ARCHIVES: Final = "archives"

_Range = tuple[int, int]


class PlannedObject(msgspec.Struct, frozen=True):
    """An object that is read.

    Attributes:
        name: in the repository.
        tier: ``states`` (which planning has read already) or ``archives``.
        size: of the whole, as it lies, in bytes.
        ranges: offset and length of each part that is read, as it lies; sorted, apart from each other.
        is_exact: whether it is these parts; else its seek table could not be read, and the whole of it stands for them.
    """

    name: str
    tier: str
    size: int
    ranges: tuple[_Range, ...]
    is_exact: bool = True

    @property
    def bytes_read(self) -> int:
        """Of all its parts."""
        return sum(length for _, length in self.ranges)


class PlannedTier(msgspec.Struct, frozen=True):
    """The objects of one kind, taken together.

    Attributes:
        objects: how many.
        size: of the whole objects, in bytes: what has to be thawed.
        bytes_read: of the parts that are read.
        requests: how many reads that is, about.
    """

    name: str
    objects: int
    size: int
    bytes_read: int
    requests: int


class RestorePlan(msgspec.Struct, frozen=True):
    """What a restore reads.

    Attributes:
        files, bytes_restored: how many files there will be, and their bytes.
        objects: states first.
    """

    backup_key: str
    backup_date: str
    files: int
    bytes_restored: int
    objects: tuple[PlannedObject, ...]

    @property
    def tiers(self) -> tuple[PlannedTier, ...]:
        """States, and archives where there are any."""
        return tuple(
            PlannedTier(
                tier,
                len(found),
                sum(one.size for one in found),
                sum(one.bytes_read for one in found),
                sum(-(-length // READ_LEN) for one in found for _, length in one.ranges),
            )
            for tier in (STATES, ARCHIVES)
            if (found := [one for one in self.objects if one.tier == tier])
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "backup_key": self.backup_key,
            "backup_date": self.backup_date,
            "files": self.files,
            "bytes_restored": self.bytes_restored,
            "bytes_read": sum(one.bytes_read for one in self.objects),
            "tiers": {
                tier.name: {
                    "objects": tier.objects,
                    "size": tier.size,
                    "bytes_read": tier.bytes_read,
                    "requests": tier.requests,
                }
                for tier in self.tiers
            },
            "objects": [
                {
                    "name": one.name,
                    "tier": one.tier,
                    "size": one.size,
                    "bytes_read": one.bytes_read,
                    "exact": one.is_exact,
                    "ranges": [{"offset": offset, "length": length} for offset, length in one.ranges],
                }
                for one in self.objects
            ],
        }


def plan_restore(
    key: str,
    *,
    repository: RepositoryPlace | None = None,
    at: str | datetime | None = None,
    paths: Iterable[str | bytes | os.PathLike[str]] | None = None,
) -> RestorePlan:
    """Find out what restoring a point in time into an empty directory reads. Nothing is asked to be prepared.

    Of a file with deltas the whole copy counts in full, though parts of it that a delta has replaced may not be read.

    Memory grows with the number of gaps between what is read, not with the tree.

    Args:
        at, paths: as for :func:`restore_backup`.

    Raises:
        ChainError: no such key, point in time or path, or a state is missing.
        FormatError, IntegrityError, DecryptionError, RepositoryError: a state cannot be read; an archive is missing.
    """
    target = open_repository(repository)
    history = open_history(target, key)
    backup_id = select_backup(history.backup_ids, at, now=datetime.now(UTC), what=key)
    selection = Selection(paths)
    wanted = _Wanted()
    for resolved in selection.filter(resolve(history.states(backup_id))):
        wanted.add(resolved)
    selection.check_all_matched()
    return RestorePlan(
        key,
        backup_id,
        wanted.files,
        wanted.bytes_restored,
        (*_states(target, history, backup_id), *_archives(target, history, backup_id, wanted.ranges)),
    )


def needed_archives(key: str, entries: Iterable[ResolvedEntry]) -> list[str]:
    """The names in the repository of all archives that hold content of *entries*, sorted."""
    return sorted(
        {f"{key}/{location.file}" for resolved in entries for location in resolved.data if location.length}
    )


class _Wanted:
    """The ranges of each volume's tar that hold content."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes_restored = 0
        self.ranges: dict[str, list[_Range]] = {}

    def add(self, resolved: ResolvedEntry) -> None:
        if resolved.entry.type == FILE:
            self.files += 1
            self.bytes_restored += resolved.entry.size if resolved.entry.link_of is None else 0
        for location in resolved.data:
            if location.length:
                _append(self.ranges.setdefault(location.file, []), (location.offset, location.length))


def _append(ranges: list[_Range], new: _Range) -> None:
    """Add a range to the end, as a part of the last one where the two touch."""
    offset, length = new
    if ranges and ranges[-1][0] <= offset <= sum(ranges[-1]):
        first, known = ranges[-1]
        ranges[-1] = first, max(known, offset + length - first)
    else:
        ranges.append(new)


def _merged(ranges: Iterable[_Range]) -> tuple[_Range, ...]:
    merged: list[_Range] = []
    for one in sorted(ranges):
        if one[1]:
            _append(merged, one)
    return tuple(merged)


def _states(repository: Repository, history: History, backup_id: str) -> list[PlannedObject]:
    sizes = {stored.name.path: stored.size for stored in repository.objects(history.key)}
    names: list[str] = []
    for header in history.chain_to(backup_id):
        path = history.state_name(header.id)
        state = parse_object_name(history.key, path.rpartition("/")[2])
        assert state is not None  # it was listed
        names.append(path)
        if repository.protection.verifier is not None:
            names.append(signature_name(state).path)
    return [PlannedObject(name, STATES, sizes[name], ((0, sizes[name]),)) for name in names if name in sizes]


def _archives(
    repository: Repository, history: History, backup_id: str, wanted: dict[str, list[_Range]]
) -> list[PlannedObject]:
    chain = history.chain_to(backup_id)
    archives = Archives(repository.store, history.key, chain)
    planned = []
    for header in chain:
        for file in header.files:
            if file.name in wanted:
                name = f"{history.key}/{file.name}"
                ranges = _exact_ranges(repository, archives, name, wanted[file.name])
                whole = ((0, file.size),)
                planned.append(
                    PlannedObject(name, ARCHIVES, file.size, ranges or whole, is_exact=ranges is not None)
                )
    return planned


def _exact_ranges(
    repository: Repository, archives: Archives, name: str, wanted: Sequence[_Range]
) -> tuple[_Range, ...] | None:
    """The parts of an archive, as it lies, that hold *wanted* of its tar; None where its end cannot be read."""
    try:
        reader = archives.reader(name.rpartition("/")[2])
        content = _merged([reader.frames_for(offset, length) for offset, length in _merged(wanted)])
        return _merged(repository.store.stored_ranges(name, [*content, reader.opening_range]))
    except (ObjectNotFoundError, DecryptionError):
        raise
    except (RepositoryError, FormatError, IntegrityError):
        return None  # it lies where it must be thawed first, or is damaged
