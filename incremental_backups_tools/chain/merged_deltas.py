"""What the deltas of a file come to once the backups between points in time are merged.

A point that was forgotten stays as a link between two others, until merging frees a share of their bytes that is
worth the writing. Of what lies between two points one delta will be left, without what was overwritten on the way;
between a whole copy and the first point that has it none will be, since the copy will be that point's own. If deltas
were counted as they lie, a file would be stored whole again while those that stay leave room for another: sooner than
where nothing but the points had ever been backed up, and once too often.

What several deltas will come to shows in the signatures before and after them. No delta is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import groupby

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.policy import delta_may_wait, delta_pays
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import Signature
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.layout import id_in_name
from incremental_backups_tools.tree.entry import Location


class MergedDeltas:
    """The deltas of a chain's files, as they will be.

    Args:
        points: ids of the chain's points in time that stay.
        archives: reads the signatures of the chain.
    """

    def __init__(self, points: Iterable[str], archives: Archives) -> None:
        self._points = sorted(points)
        self._archives = archives
        self._last: tuple[ResolvedEntry, list[int]] | None = None

    def point_of(self, backup_id: str) -> str | None:
        """The point that *backup_id* will be merged into, or is; None where it is newer than all."""
        number = bisect_left(self._points, backup_id)
        return self._points[number] if number < len(self._points) else None

    def allow(self, size: int, delta_len: int, base: ResolvedEntry) -> bool:
        """Whether a delta of *delta_len* bytes is kept for a file of *size* bytes, in place of a whole copy.

        Args:
            base: what it is a delta of. Its signatures are read only where it depends on them.
        """
        lying = lying_lengths(base)
        if delta_pays(size, delta_len, lying):
            return True
        if not delta_pays(size, delta_len, ()) or not delta_may_wait(size, delta_len, lying):
            return False  # whatever the others come to
        at_most = [_total_len(run) for run in self._runs(base)]
        return delta_pays(size, delta_len, at_most) or delta_pays(size, delta_len, self.lengths(base))

    def lengths(self, resolved: ResolvedEntry) -> list[int]:
        """About how long each delta of a file's content will be."""
        if self._last is None or self._last[0] is not resolved:
            self._last = resolved, [self._merged_len(resolved, run) for run in self._runs(resolved)]
        return self._last[1]

    def _runs(self, resolved: ResolvedEntry) -> list[list[Location]]:
        """The deltas of which one will be left each; those that go into the whole copy are not among them."""
        copy, *deltas = resolved.data
        runs = [(point, list(run)) for point, run in groupby(deltas, key=self._point_at)]
        return [run for point, run in runs if point is None or point != self._point_at(copy)]

    def _merged_len(self, resolved: ResolvedEntry, run: Sequence[Location]) -> int:
        length = _total_len(run)
        if len(run) == 1:
            return length
        before = self._signature(resolved, resolved.data[resolved.data.index(run[0]) - 1])
        after = self._signature(resolved, run[-1])
        return min(length, changed_len(before, after)) if before is not None and after is not None else length

    def _signature(self, resolved: ResolvedEntry, location: Location) -> Signature | None:
        """The signature of the content that *location*, one of *resolved*'s, led to; None where it cannot be read.

        It serves for an estimate alone: nothing is lost if it is wrong.
        """
        backup_id = id_in_name(location.file)
        ends = [end for end, sig in enumerate(resolved.sigs, 1) if id_in_name(sig.file) == backup_id]
        if not ends:
            return None
        try:
            return Signature.from_bytes(self._archives.raw_signature(resolved.sigs[: ends[-1]]))
        except BackupError:
            return None

    def _point_at(self, location: Location) -> str | None:
        return self.point_of(id_in_name(location.file))


def lying_lengths(resolved: ResolvedEntry) -> list[int]:
    """How long each delta of a file's content is now."""
    return [delta.length for delta in resolved.data[1:]]


def _total_len(deltas: Sequence[Location]) -> int:
    return sum(delta.length for delta in deltas)


def changed_len(old: Signature, new: Signature) -> int:
    """Bytes of the blocks of *new* that *old* has nowhere.

    A delta finds blocks at any offset, signatures tell of those at multiples of their length alone: after an
    insertion this is far more than the delta.
    """
    if old.block_len != new.block_len:
        return new.block_count * new.block_len
    known = set(old)
    return sum(block not in known for block in new) * new.block_len
