"""How much of a run of backups nothing needs any more: what writing it again as one backup would free.

Counted are the bytes of members and lines of states, and each archive's size on disk is divided by them: exact
for what is not compressed, an estimate for the rest.
"""

from __future__ import annotations

import heapq
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Final

import msgspec

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.deltas import open_composed
from incremental_backups_tools.chain.lanes import files_of
from incremental_backups_tools.chain.resolve import ChainState, RunEntry, resolve_run
from incremental_backups_tools.chain.state import StateHeader, StateLine
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.tree.diff import METADATA, classify
from incremental_backups_tools.tree.entry import FILE, Location, sort_key

_SCHEMA: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA temp_store = MEMORY;
    CREATE TABLE member (
        file INTEGER, offset INTEGER, length INTEGER, used REAL, PRIMARY KEY (file, offset)
    ) WITHOUT ROWID;
    BEGIN;
"""
# Of a member that several paths share, what the one needs that needs most of it.
_USE: Final = """
    INSERT INTO member VALUES (?, ?, ?, ?)
    ON CONFLICT (file, offset) DO UPDATE SET used = MAX(used, excluded.used)
"""
_PENDING_ROWS: Final = 4096


class Waste(msgspec.Struct, frozen=True):
    """Bytes of a run's files, and how many of them are dead."""

    total_bytes: int
    dead_bytes: int

    @property
    def share(self) -> float:
        """The dead ones, from 0 to 1."""
        return self.dead_bytes / self.total_bytes if self.total_bytes else 0.0


def measure_waste(
    states: Sequence[ChainState],
    first: int,
    archives: Archives,
    *,
    state_sizes: Sequence[int],
    copies: Mapping[bytes, int] | None = None,
    worth: float = 0.0,
) -> Waste:
    """What would be free if the run ``states[first:]`` were one backup.

    Args:
        archives: reads the volumes of the whole chain. Only deltas of files that have several are read.
        state_sizes: bytes of each state's file.
        copies: of paths whose whole copy becomes a delta, about how long that is (``superfluous_copy.py``).
        worth: a share from 0 to 1. Where it cannot be reached the result is an upper bound, which takes reading no
            other states than the run's.

    Raises:
        ChainError, IntegrityError, FormatError, RepositoryError: a state or a delta is damaged or not there.
    """
    run = [state.header for state in states[first:]]
    own_state_bytes = sum(state_sizes[first:])
    sizes = {file.name: file.size for header in run for file in header.files}
    lists = {file.name for header in run for file in header.files if file.role == Role.REPLAY}
    lines_bytes = sum(sizes[name] for name in lists) + own_state_bytes
    total = sum(sizes.values()) + own_state_bytes

    def waste(dead: dict[str, float], dead_lines: int) -> Waste:
        dead_bytes = sum(size * dead[name] for name, size in sizes.items() if name not in lists)
        return Waste(total, int(dead_bytes + lines_bytes * dead_lines / max(1, line_count)))

    with _open_members(run) as members:
        line_count, repeated_lines = _note_members(states[first:], members)
        bound = waste(members.dead_by_file(), repeated_lines)
        if bound.share < worth and not copies:  # a copy's path may have no other line in the run
            return bound
        members.forget_use()
        kept_count = sum(
            _count_item(item, members, archives, copies or {}) for item in resolve_run(states, first)
        )
        return waste(members.dead_by_file(), max(0, line_count - kept_count))


def _note_members(states: Sequence[ChainState], members: _Members) -> tuple[int, int]:
    """Note all members of a run, as used those of paths that only one of its states has a line for.

    What one state alone tells of a path is needed in any case.

    Returns:
        How many lines there are, and how many of them a single state could do without at most.
    """
    streams = [map(_keyed, state.lines()) for state in states]
    line_count = repeated = 0
    for _, group in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        lines = [line for _, line in group]
        places = [place for line in lines for place in _locations(line)]
        line_count += len(lines)
        if len(lines) == 1:
            members.use(places)
        else:
            members.note(places)
            repeated += len(lines)
    return line_count, repeated


def _count_item(item: RunEntry, members: _Members, archives: Archives, copies: Mapping[bytes, int]) -> bool:
    """Note what one path still needs of the run; return whether the one state would have a line for it."""
    new = item.new
    if new is None:
        return True
    entry = new.entry
    op = classify(entry, item.old.entry if item.old is not None else None)
    if op in (None, METADATA) or entry.type != FILE or entry.link_of is not None:
        return op is not None
    own = members.own(new.data)
    own_sigs = members.own(new.sigs)
    if item.source is None:
        # Deltas of a whole copy that is in the run too become one with it.
        own, own_sigs = own[:1], own_sigs[:1]
    members.use(own_sigs)
    if len(own) > 1:
        with open_composed(own, archives, entry.size) as composed:
            members.use(own, composed.seek(0, os.SEEK_END))
    elif item.source is None and item.old is not None:
        members.use(own, copies.get(item.path))
    else:
        members.use(own)
    return True


class _Members:
    """The members of a run's volumes, on disk: which of them are needed."""

    def __init__(self, connection: sqlite3.Connection, headers: Sequence[StateHeader]) -> None:
        self._connection = connection
        self._numbers = {name: number for number, name in enumerate(sorted(files_of(headers)))}
        self._pending: list[tuple[int, int, int, float]] = []

    def own(self, locations: Iterable[Location]) -> list[Location]:
        """Those that lie in the run."""
        return [location for location in locations if location.file in self._numbers]

    def note(self, locations: Iterable[Location]) -> None:
        """There are members there."""
        self._add(locations, 0.0)

    def use(self, locations: Sequence[Location], length: int | None = None) -> None:
        """They are needed: as they are, or in *length* bytes that take their place."""
        total = sum(location.length for location in locations)
        self._add(locations, min(1.0, length / total) if length is not None and total else 1.0)

    def forget_use(self) -> None:
        """None of those noted is needed so far."""
        self._flush()
        self._connection.execute("UPDATE member SET used = 0")

    def dead_by_file(self) -> dict[str, float]:
        """The share of each file that nothing needs, from 0 to 1."""
        self._flush()
        query = "SELECT file, SUM(length), SUM(length * used) FROM member GROUP BY file"
        sums = {file: (total, used) for file, total, used in self._connection.execute(query)}
        dead = {}
        for name, number in self._numbers.items():
            total, used = sums.get(number, (0, 0))
            # A volume of nothing but empty files and directories is as good as used.
            dead[name] = (total - used) / total if total else 0.0
        return dead

    def _add(self, locations: Iterable[Location], used: float) -> None:
        self._pending += [
            (self._numbers[place.file], place.offset, place.length, used) for place in locations
        ]
        if len(self._pending) >= _PENDING_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._connection.executemany(_USE, self._pending)
        self._pending.clear()


@contextmanager
def _open_members(headers: Sequence[StateHeader]) -> Iterator[_Members]:
    with tempfile.TemporaryDirectory(prefix="ibt-waste-") as directory:
        with closing(sqlite3.connect(os.path.join(directory, "members"), isolation_level=None)) as connection:
            connection.executescript(_SCHEMA)
            yield _Members(connection, headers)


def _keyed(line: StateLine) -> tuple[bytes, StateLine]:
    return sort_key(line.path), line


def _locations(line: StateLine) -> list[Location]:
    """Where the members lie that *line* brings."""
    entry = line.entry
    places = [entry.data, entry.sig.location if entry.sig is not None else None]
    return [place for place in places if place is not None]
