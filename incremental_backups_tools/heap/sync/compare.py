"""Two snapshots side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from incremental_backups_tools.tree.diff import content_identity, merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, Entry

ONLY_LEFT: Final = "only_left"
ONLY_RIGHT: Final = "only_right"
DIFFERENT: Final = "different"
EQUAL: Final = "equal"


class ComparedName(NamedTuple):
    """One name of two snapshots: ``only_left``, ``only_right``, ``different`` or ``equal``."""

    path: bytes
    status: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two snapshots side by side: an iterable of every file in sort order, and lists of paths by status."""

    left: Iterable[Entry]
    right: Iterable[Entry]

    def __iter__(self) -> Iterator[ComparedName]:
        for left, right in merge_join(
            self.left, self.right, new_path=lambda entry: entry.path, old_path=lambda entry: entry.path
        ):
            if left is not None and right is not None:
                if left.type == right.type == DIRECTORY:
                    continue
                status = (
                    EQUAL
                    if left.type == right.type and content_identity(left) == content_identity(right)
                    else DIFFERENT
                )
                yield ComparedName(left.path, status)
            elif left is not None and left.type != DIRECTORY:
                yield ComparedName(left.path, ONLY_LEFT)
            elif right is not None and right.type != DIRECTORY:
                yield ComparedName(right.path, ONLY_RIGHT)

    @property
    def only_left(self) -> list[bytes]:
        """Paths that only the left one has."""
        return self._paths(ONLY_LEFT)

    @property
    def only_right(self) -> list[bytes]:
        """Paths that only the right one has."""
        return self._paths(ONLY_RIGHT)

    @property
    def different(self) -> list[bytes]:
        """Paths that both have, with other contents."""
        return self._paths(DIFFERENT)

    @property
    def equal(self) -> list[bytes]:
        """Paths that both have, with one content."""
        return self._paths(EQUAL)

    def _paths(self, status: str) -> list[bytes]:
        return [name.path for name in self if name.status == status]


def compare_snapshots(left: Iterable[Entry], right: Iterable[Entry]) -> Comparison:
    """Compare two snapshots, or any two sorted streams of entries, by content."""
    return Comparison(left, right)
