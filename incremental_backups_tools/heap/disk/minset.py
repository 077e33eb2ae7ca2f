"""The smallest set of disks that together hold what is needed: set cover.

With few disks every combination is tried, smallest first, so the answer is the smallest there is. With many the
greedy rule is followed (always the disk with most of what is still missing), whose answer is at most
``ln(objects) + 1`` times as large (Chvatal 1979).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

# 2^16 combinations, each held against the distinct sets of holders, are a matter of a second.
EXACT_DISKS: Final = 16


@dataclass(frozen=True, slots=True)
class DiskSet:
    """A set of disks.

    Attributes:
        disks: sorted.
        is_smallest: no smaller one would do; False where the greedy rule was followed.
        unreachable: how many of the needed objects are on no disk.
    """

    disks: tuple[int, ...]
    is_smallest: bool
    unreachable: int


def find_smallest_set(needed: Iterable[frozenset[int]], have: frozenset[int] = frozenset()) -> DiskSet:
    """The disks that are needed for objects, given for each the disks that hold it.

    Args:
        needed: the holders of each object.
        have: disks that are there anyway; they are not in the answer.
    """
    weights = Counter(needed)
    unreachable = weights.pop(frozenset(), 0)
    missing = {holders: count for holders, count in weights.items() if not holders & have}
    # Whoever covers a set of holders covers all that contain it.
    minimal = [holders for holders in missing if not any(other < holders for other in missing)]
    certain = frozenset(disk for holders in minimal if len(holders) == 1 for disk in holders)
    open_sets = [holders for holders in minimal if not holders & certain]
    disks = sorted(frozenset().union(*open_sets))
    if len(disks) <= EXACT_DISKS:
        chosen = _try_all(open_sets, disks)
        return DiskSet(tuple(sorted(certain | chosen)), True, unreachable)
    chosen = _be_greedy({holders: missing[holders] for holders in open_sets})
    return DiskSet(tuple(sorted(certain | chosen)), False, unreachable)


def _try_all(open_sets: list[frozenset[int]], disks: list[int]) -> frozenset[int]:
    for length in range(len(disks) + 1):
        for combination in combinations(disks, length):
            chosen = frozenset(combination)
            if all(holders & chosen for holders in open_sets):
                return chosen
    raise AssertionError("all disks together hold everything that any of them holds")


def _be_greedy(missing: dict[frozenset[int], int]) -> frozenset[int]:
    chosen: set[int] = set()
    while missing:
        gains: Counter[int] = Counter()
        for holders, count in missing.items():
            for disk in holders:
                gains[disk] += count
        best = min(gains, key=lambda disk: (-gains[disk], disk))
        chosen.add(best)
        missing = {holders: count for holders, count in missing.items() if best not in holders}
    return frozenset(chosen)
