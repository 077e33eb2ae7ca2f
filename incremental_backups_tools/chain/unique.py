"""How much only one point needs: the bytes that would be freed if it went and all others stayed.

A member of a volume is unique to a point if that point's index uses it, to rebuild a file or its signature, and no
other point's does. What lies in a volume is compressed together, so a member has no size of its own there: a
volume's bytes are divided among its members by what they take in its tar. That is an estimate, but for a volume all
of whose members are one point's: its bytes are counted exactly.

One pass over the states of each chain; memory does not grow with the tree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from incremental_backups_tools.archive.members import member_len
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.lineage import iter_chains
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve_versions
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.tally import Tally
from incremental_backups_tools.tree.diff import DELETED
from incremental_backups_tools.tree.entry import sort_key

# first and last: the oldest and the newest point that uses a member, NULL where none does.
_SCHEMA: Final = """
    CREATE TABLE used (file INTEGER, offset INTEGER, length INTEGER, first INTEGER, last INTEGER);
    CREATE TABLE gone (path BLOB, level INTEGER);
"""
# The members of each volume that one point alone uses, summed; owner -1 stands for all others.
_SHARES: Final = """
    SELECT file, owner, sum(length) FROM (
        SELECT file, max(length) AS length,
            CASE WHEN min(first) = max(last) THEN min(first) ELSE -1 END AS owner
        FROM used GROUP BY file, offset
    ) GROUP BY file, owner ORDER BY file
"""
_SHARED: Final = -1


def unique_sizes(history: History) -> dict[str, int]:
    """Of every point of *history*, by its id, the bytes of archives that it alone needs.

    Raises:
        ChainError, FormatError, IntegrityError, UnsafePathError, LimitExceededError, RepositoryError: a state is
            damaged or not there.
        OSError: a temporary file cannot be written.
    """
    with Tally(_SCHEMA) as tally:
        counting = _Counting(history, tally)
        for chain in iter_chains(history):
            counting.add(chain)
        return counting.sizes()


class _Counting:
    def __init__(self, history: History, tally: Tally) -> None:
        self._history = history
        self._tally = tally
        self._ranks = {backup_id: rank for rank, backup_id in enumerate(history.backup_ids)}
        self._numbers: dict[str, int] = {}
        self._file_sizes: list[int] = []
        # A replay list is of its own backup alone.
        self._sizes = [0] * len(self._ranks)

    def add(self, chain: Sequence[StateHeader]) -> None:
        """Note every member that the states of *chain* name, and which of its points use it."""
        for header in chain:
            self._note_files(header)
        self._note_deletions(chain)
        spans = _Spans([self._ranks.get(header.id) for header in chain])
        gone = self._tally.rows("SELECT path, level FROM gone ORDER BY path, level")
        deletion = next(gone, None)
        states = self._history.states(chain[-1].id)
        for path, group in groupby(resolve_versions(states), key=lambda item: item[1].path):
            key = sort_key(path)
            ends: list[int] = []
            while deletion is not None and deletion[0] <= key:
                if deletion[0] == key:
                    ends.append(deletion[1])
                deletion = next(gone, None)
            self._note_path(list(group), ends, spans)
        gone.close()
        self._tally.clear("gone")

    def sizes(self) -> dict[str, int]:
        """The sums, when all chains are in."""
        for number, rows in groupby(self._tally.rows(_SHARES), key=lambda row: row[0]):
            lengths = {owner: length for _, owner, length in rows}
            total = sum(lengths.values())
            for owner, length in lengths.items():
                if owner != _SHARED:
                    self._sizes[owner] += self._file_sizes[number] * length // total
        return {backup_id: self._sizes[rank] for backup_id, rank in self._ranks.items()}

    def _note_files(self, header: StateHeader) -> None:
        for file in header.files:
            if file.name in self._numbers:
                continue
            self._numbers[file.name] = len(self._file_sizes)
            self._file_sizes.append(file.size)
            if file.role == Role.REPLAY and header.id in self._ranks:
                self._sizes[self._ranks[header.id]] += file.size

    def _note_deletions(self, chain: Sequence[StateHeader]) -> None:
        # Resolving does not tell of them. State by state, not merged: no second file of each is open at once.
        for level, header in enumerate(chain):
            if header.parent is None:
                continue
            for line in self._history.lines(header.id):
                if line.op == DELETED:
                    self._tally.add("gone", (sort_key(line.path), level))

    def _note_path(self, versions: list[tuple[int, ResolvedEntry]], ends: list[int], spans: _Spans) -> None:
        used: dict[tuple[str, int], tuple[int, int | None, int | None]] = {}
        starts = sorted([*(level for level, _ in versions), *ends, spans.end])
        for level, resolved in versions:
            if not resolved.entry.is_content_holder:
                continue  # a link uses what its target does, and that is in the same tree
            first, last = spans.points(level, starts[bisect_right(starts, level)])
            for location in (*resolved.data, *resolved.sigs):
                place = (location.file, location.offset)
                known = used.get(place, (0, None, None))
                used[place] = (
                    max(known[0], member_len(location)),
                    known[1] if known[1] is not None else first,
                    last if last is not None else known[2],
                )
        for (name, offset), row in used.items():
            self._tally.add("used", (self._numbers[name], offset, *row))


class _Spans:
    """Which points see what is there from one level of a chain to before another.

    Args:
        ranks: the rank of each level's point among all points, None for a level that is none.
    """

    def __init__(self, ranks: Sequence[int | None]) -> None:
        self.end = len(ranks)
        self._from: list[tuple[int, int] | None] = [None] * (self.end + 1)
        self._before: list[int | None] = [None] * (self.end + 1)
        for level in reversed(range(self.end)):
            rank = ranks[level]
            self._from[level] = self._from[level + 1] if rank is None else (level, rank)
        for level, rank in enumerate(ranks):
            self._before[level + 1] = self._before[level] if rank is None else rank

    def points(self, start: int, end: int) -> tuple[int | None, int | None]:
        """The ranks of the oldest and of the newest point at a level from *start* to before *end*."""
        found = self._from[start]
        if found is None or found[0] >= end:
            return None, None
        return found[1], self._before[end]
