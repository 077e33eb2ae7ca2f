"""What the backups of a key cost: in all, and for each path over all of them.

A member of a volume is what one path stored; where several paths share it, the first of them in sort order bears
its cost. Volumes are compressed as a whole, so that a member's bytes are estimated: its share of the volume by what
it takes in its tar.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from incremental_backups_tools.archive.members import member_len, padded_len
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.lineage import carrying_headers
from incremental_backups_tools.chain.state import StateHeader, StateLine
from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tally import Tally
from incremental_backups_tools.tree.diff import METADATA
from incremental_backups_tools.tree.entry import DIRECTORY, ROOT, Location, printable, sort_key
from incremental_backups_tools.tree.selection import normalised_path

WHOLE: Final = "whole"
DELTAS: Final = "deltas"
SIGNATURES: Final = "signatures"
REPLAY: Final = "replay"
STATES: Final = "states"
OTHER: Final = "other"
KINDS: Final = (WHOLE, DELTAS, SIGNATURES, REPLAY, STATES, OTHER)

_KIND_OF_ROLE: Final[dict[str, str]] = {
    Role.FULL: WHOLE,
    Role.CREATED: WHOLE,
    Role.UPDATED: DELTAS,
    Role.SIGVAULT: SIGNATURES,
    Role.REPLAY: REPLAY,
    Role.STATE: STATES,
    Role.STATE_SIGNATURE: STATES,
    Role.FORGOTTEN: STATES,
}

_SCHEMA: Final = """
    CREATE TABLE line (path BLOB, digest BLOB, change INTEGER);
    CREATE TABLE member (file INTEGER, offset INTEGER, length INTEGER, path BLOB);
    CREATE TABLE volume (file INTEGER PRIMARY KEY, kind TEXT, scale REAL);
    CREATE TABLE cost (path BLOB, versions INTEGER, changes INTEGER, whole REAL, deltas REAL, signatures REAL);
"""
_FILL_COST: Final = f"""
    INSERT INTO cost
    SELECT path, sum(versions), sum(changes), sum(whole), sum(deltas), sum(signatures) FROM (
        SELECT path, count(DISTINCT digest) AS versions, sum(change) AS changes,
            0.0 AS whole, 0.0 AS deltas, 0.0 AS signatures
        FROM line GROUP BY path
        UNION ALL
        SELECT path, 0, 0, iif(kind = '{WHOLE}', bytes, 0.0), iif(kind = '{DELTAS}', bytes, 0.0),
            iif(kind = '{SIGNATURES}', bytes, 0.0)
        FROM (
            SELECT min(path) AS path, kind, max(length) * scale AS bytes
            FROM member JOIN volume USING (file) GROUP BY member.file, offset
        )
    ) GROUP BY path
"""
_SUMS: Final = """
    count(*), ifnull(sum(versions), 0), ifnull(sum(changes), 0), ifnull(sum(whole), 0), ifnull(sum(deltas), 0),
    ifnull(sum(signatures), 0)
"""
_ALL: Final = f"SELECT {_SUMS} FROM cost"
_CHILDREN: Final = f"""
    SELECT child(path) AS name, {_SUMS} FROM cost WHERE name IS NOT NULL
    GROUP BY name ORDER BY sum(whole + deltas + signatures) DESC, name LIMIT ?
"""
_CHANGING: Final = """
    SELECT path, 1, versions, changes, whole, deltas, signatures FROM cost WHERE changes > 0
    ORDER BY changes DESC, whole + deltas + signatures DESC, path LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class KeyTotals:
    """What a key is and takes; sizes in bytes.

    Attributes:
        points: how many backups are listed; *backups* are these and all that they stand on.
        fulls: how many of *backups* are fulls.
        oldest, newest: ids of points.
        tree_files, tree_bytes: of the newest point.
        point_bytes: the sum of the trees of all points.
        stored: what lies in the repository, by kind: ``whole`` copies, ``deltas``, ``signatures``, ``replay``
            lists, ``states``, and ``other``: what none of *backups* names.
    """

    key: str
    points: int
    backups: int
    fulls: int
    oldest: str
    newest: str
    tree_files: int
    tree_bytes: int
    point_bytes: int
    stored: dict[str, int]

    @property
    def stored_bytes(self) -> int:
        """All that lies in the repository for this key."""
        return sum(self.stored.values())


@dataclass(frozen=True, slots=True)
class PathCost:
    """What a path, or a directory with everything below it, costs over all backups of a key.

    Attributes:
        names: how many paths it has been, directories left out.
        versions: how many different contents of files are kept, summed over the paths.
        changes: how often an incremental backup found one of them new, with other content, or gone.
        whole, deltas, signatures: bytes in the repository, estimated.
    """

    path: bytes
    names: int
    versions: int
    changes: int
    whole: int
    deltas: int
    signatures: int

    @property
    def total(self) -> int:
        """Bytes in the repository, estimated."""
        return self.whole + self.deltas + self.signatures


@dataclass(frozen=True, slots=True)
class CostReport:
    """The cost of a path.

    Attributes:
        total: of the path with everything below it.
        children: of what lies directly below it, the costliest first.
        changing: the paths at or below it that changed most often, the one that did most first.
    """

    total: PathCost
    children: tuple[PathCost, ...]
    changing: tuple[PathCost, ...]


def key_totals(repository: Repository, history: History) -> KeyTotals:
    """What the backups of a key take, from their headers and a listing alone. *history* has a point.

    Raises:
        ChainError, FormatError, RepositoryError: a header is damaged or not there.
    """
    headers = carrying_headers(history)
    points = history.headers()
    named = {file.name for header in headers for file in header.files}
    named |= {history.state_name(header.id).rpartition("/")[2] for header in headers}
    beside_states = {header.id for header in headers}
    stored: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    for item in repository.objects(history.key):
        name = item.name
        is_beside = name.role in (Role.STATE_SIGNATURE, Role.FORGOTTEN) and name.backup_id in beside_states
        kind = _KIND_OF_ROLE[name.role] if is_beside or name.file_name in named else OTHER
        stored[kind] += item.size
    return KeyTotals(
        key=history.key,
        points=len(points),
        backups=len(headers),
        fulls=sum(header.parent is None for header in headers),
        oldest=points[0].id,
        newest=points[-1].id,
        tree_files=points[-1].counts.files,
        tree_bytes=points[-1].bytes.total,
        point_bytes=sum(header.bytes.total for header in points),
        stored=dict(stored),
    )


def path_cost(history: History, path: str | bytes | os.PathLike[str] = ROOT, *, top: int = 10) -> CostReport:
    """What *path* costs over all backups of a key.

    Every state is read once; memory does not grow with the tree.

    Args:
        top: at most so many children and changing paths.

    Raises:
        ChainError: no backup has anything at *path*.
        UnsafePathError: *path* leads out of the backup.
        FormatError, LimitExceededError, RepositoryError: a state is damaged or not there.
        OSError: a temporary file cannot be written.
    """
    wanted = normalised_path(path)
    with Tally(_SCHEMA) as tally:
        counting = _Counting(tally, wanted)
        for header in carrying_headers(history):
            counting.add(header, history.lines(header.id))
        if not counting.is_found:
            raise ChainError(f"no backup of {history.key} has anything named {printable(wanted)}")
        tally.run(_FILL_COST)
        tally.define("child", _child_finder(wanted), arguments=1)
        (total,) = tally.rows(_ALL)
        return CostReport(
            _cost_of((sort_key(wanted), *total)),
            tuple(_cost_of(row) for row in tally.rows(_CHILDREN, (top,))),
            tuple(_cost_of(row) for row in tally.rows(_CHANGING, (top,))),
        )


class _Counting:
    """Notes what the states say of *wanted* and of everything below it."""

    def __init__(self, tally: Tally, wanted: bytes) -> None:
        self.is_found = False
        self._tally = tally
        self._wanted = wanted
        self._below = wanted + b"/"
        self._file_count = 0

    def add(self, header: StateHeader, lines: Iterator[StateLine]) -> None:
        """Note the lines of one state."""
        numbers = {file.name: self._file_count + position for position, file in enumerate(header.files)}
        self._file_count += len(numbers)
        tar_lens: Counter[str] = Counter()
        for line in lines:
            is_wanted = self._is_wanted(line.path)
            self.is_found |= is_wanted
            if is_wanted and line.entry.type != DIRECTORY:
                change = header.parent is not None and line.op != METADATA
                digest = line.entry.digest[:8] if line.entry.digest is not None else None
                self._tally.add("line", (sort_key(line.path), digest, int(change)))
            for location in _own_locations(line):
                end = location.offset + padded_len(location)
                tar_lens[location.file] = max(tar_lens[location.file], end)
                if is_wanted:
                    row = (numbers[location.file], location.offset, member_len(location), sort_key(line.path))
                    self._tally.add("member", row)
        for file in header.files:
            scale = file.size / max(tar_lens[file.name], 1)
            self._tally.add("volume", (numbers[file.name], _KIND_OF_ROLE.get(file.role, OTHER), scale))

    def _is_wanted(self, path: bytes) -> bool:
        return self._wanted == ROOT or path == self._wanted or path.startswith(self._below)


def _own_locations(line: StateLine) -> Iterator[Location]:
    if line.entry.data is not None:
        yield line.entry.data
    if line.entry.sig is not None:
        yield line.entry.sig.location


def _child_finder(wanted: bytes) -> Any:
    """A function from a path's sort key to the one of what lies directly below *wanted* on the way to it."""
    start = 0 if wanted == ROOT else len(sort_key(wanted)) + 1

    def child(key: bytes) -> bytes | None:
        if len(key) <= start:
            return None  # *wanted* itself
        end = key.find(b"\0", start)
        return key if end < 0 else key[:end]

    return child


def _cost_of(row: tuple[Any, ...]) -> PathCost:
    key, names, versions, changes, whole, deltas, signatures = row
    path = key.replace(b"\0", b"/") or ROOT
    return PathCost(path, names, versions, changes, round(whole), round(deltas), round(signatures))
