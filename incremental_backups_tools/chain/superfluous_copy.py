"""Whole copies that need not be, once the backups between the points that stay are merged.

A file is stored whole when its deltas since the last copy come to too much. Later most of the points with these
deltas are forgotten, and those that stay come to less (``merged_deltas.py``): then one delta of the point before can
take the copy's place. It does where the file gains by it for good: where a later point has a whole copy of its own, or
where there is room for all deltas up to the newest point as well. Else the next backup would store another copy at
once. The deltas below a copy and those above it were counted apart: together they come to twice as much at most.

What the delta would come to shows in the two signatures, without reading the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.merged_deltas import MergedDeltas, changed_len, lying_lengths
from incremental_backups_tools.chain.policy import delta_may_wait, delta_pays, is_signed
from incremental_backups_tools.chain.resolve import ChainState, ResolvedEntry, resolve_versions
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.repository.layout import Role, id_in_name, parse_object_name
from incremental_backups_tools.tree.diff import UPDATED
from incremental_backups_tools.tree.entry import Entry, Location

# Of points in time, by id: the paths of which they hold a whole copy in place of a delta of about so many bytes.
SuperfluousCopies = dict[str, dict[bytes, int]]


def find_superfluous_copies(
    states: Sequence[ChainState],
    points: Iterable[str],
    archives: Archives,
    *,
    is_worth: Callable[[str, int], bool],
) -> SuperfluousCopies:
    """The whole copies of a chain that may be deltas.

    Args:
        states: the chain to the newest of *points*, full first.
        points: ids of the points in time that stay.
        archives: reads the volumes of the whole chain: of signatures alone.
        is_worth: called with a point and the length of a copy; of others the signatures are not compared.

    Raises:
        ChainError, IntegrityError, FormatError, RepositoryError: a state is damaged or not there.
    """
    return _Search(states, points, archives, is_worth).run()


@dataclass(frozen=True, slots=True)
class _Deltas:
    """The lengths of a file's deltas: as they will be, and as they lie."""

    merged: list[int]
    lying: list[int]


class _Search:
    """One pass over a chain."""

    def __init__(
        self,
        states: Sequence[ChainState],
        points: Iterable[str],
        archives: Archives,
        is_worth: Callable[[str, int], bool],
    ) -> None:
        self._states = states
        self._merged = MergedDeltas(points, archives)
        self._archives = archives
        self._is_worth = is_worth

    def run(self) -> SuperfluousCopies:
        found: SuperfluousCopies = {}
        paths = self._paths()
        if not paths:
            return found
        versions = resolve_versions(self._states, only=paths)
        for path, group in groupby(versions, key=lambda item: item[1].path):
            for point, length in self._of_path(self._at_points(group)):
                found.setdefault(point, {})[path] = length
        return found

    def _paths(self) -> set[bytes]:
        """Those that an increment has a whole copy of in place of a delta: only their lines are resolved."""
        return {
            line.path
            for state in self._states[1:]
            for line in state.lines()
            if line.op == UPDATED and self._has_copy(state.header, line.entry)
        }

    def _has_copy(self, header: StateHeader, entry: Entry) -> bool:
        if entry.data is None or not is_signed(entry.size):
            return False
        name = parse_object_name(header.key, entry.data.file)
        point = self._merged.point_of(header.id)
        return (
            name is not None
            and name.role is Role.CREATED
            and point is not None
            and self._is_worth(point, entry.data.length)
        )

    def _at_points(self, versions: Iterable[tuple[int, ResolvedEntry]]) -> list[tuple[str, ResolvedEntry]]:
        """What a path was in the full, and at each point that changed it."""
        found = {}
        for level, version in versions:
            backup_id = self._states[level].header.id
            point = self._merged.point_of(backup_id) if level else backup_id
            if point is not None:
                found[point] = version
        return list(found.items())

    def _of_path(self, versions: list[tuple[str, ResolvedEntry]]) -> Iterator[tuple[str, int]]:
        newest = versions[-1][1]
        replacing: dict[Location, _Deltas] = {}  # what takes the place of the copies found so far
        for (_, old), (point, new) in pairwise(versions):
            if not self._is_copy(point, old, new) or not self._is_worth(point, new.data[0].length):
                continue
            length = self._delta_len(old, new)
            if length is None:
                continue
            below = self._deltas(old, replacing)
            if self._is_superfluous(length, below, new, newest):
                replacing[new.data[0]] = _Deltas([*below.merged, length], [*below.lying, length])
                yield point, length

    def _is_copy(self, point: str, old: ResolvedEntry, new: ResolvedEntry) -> bool:
        """Whether the backups that are merged into *point* hold a whole copy of *new*."""
        return (
            new.data[:1] not in ((), old.data[:1])
            and new.entry.is_content_holder
            and is_signed(new.entry.size)
            and self._merged.point_of(id_in_name(new.data[0].file)) == point
        )

    def _delta_len(self, old: ResolvedEntry, new: ResolvedEntry) -> int | None:
        """About how long the delta is that leads from *old* to *new*; None where none can be made."""
        if not old.entry.is_content_holder or old.entry.sparse is not None or new.entry.sparse is not None:
            return None
        before = self._archives.signature_of(old, otherwise="the file stays whole")
        after = self._archives.signature_of(new, otherwise="the file stays whole")
        return changed_len(before, after) if before is not None and after is not None else None

    def _deltas(self, resolved: ResolvedEntry, replacing: dict[Location, _Deltas]) -> _Deltas:
        before = replacing.get(resolved.data[0], _Deltas([], []))
        merged, lying = self._merged.lengths(resolved), lying_lengths(resolved)
        return _Deltas([*before.merged, *merged], [*before.lying, *lying])

    def _is_superfluous(self, length: int, below: _Deltas, new: ResolvedEntry, newest: ResolvedEntry) -> bool:
        size = new.entry.size
        if not delta_pays(size, length, below.merged) or not delta_may_wait(size, length, below.lying):
            return False
        if not newest.data or newest.data[0] != new.data[0]:
            return True
        above = self._merged.lengths(newest)
        return delta_pays(newest.entry.size, length, [*below.merged, *above])
