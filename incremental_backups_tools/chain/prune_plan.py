"""What pruning does, worked out before anything is touched.

Points that are not kept are forgotten: they are no longer listed. One that nothing stands on goes at once. One
that a kept point stands on stays as a link of the chain, unlisted, until writing the links and the kept point
again as one backup frees a share of their bytes that is worth the writing: then they are merged, or, down to
and with an expired full, rebased. So the bytes that are written again stay in proportion to those that are freed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Literal

import msgspec

from incremental_backups_tools.chain.state import FULL, StateHeader
from incremental_backups_tools.chain.waste import Waste

DEFAULT_MAX_UNUSED: Final = 0.1
# Increments are small beside their full, so that merging them sooner costs little, and what several runs of them
# have too much does not add up to more than a full may have.
MERGE_SHARE: Final = 0.5
# Each unlisted link is one more state to read. Merging every so many of them, however little that frees, writes
# each byte again once in so many prunings.
MAX_UNLISTED_LINKS: Final = 32


class PlannedRewrite(msgspec.Struct, frozen=True):
    """One backup that is written again in place of those before it.

    Attributes:
        backup_id: which one.
        operation: ``merge`` or ``rebase``.
        links: ids of the unlisted backups whose place it takes, oldest first; none where it is written again for
            whole copies that become deltas.
        waste: bytes of all of them, and how many will be free.
    """

    backup_id: str
    operation: Literal["merge", "rebase"]
    links: tuple[str, ...]
    waste: Waste


class PrunePlan(msgspec.Struct, frozen=True):
    """What pruning does to a key.

    Attributes:
        kept: ids of the points in time that stay.
        forgotten: ids of those that are no longer listed.
        rewrites: what is written again, oldest first.
        unlisted: ids of the backups that stay only because others stand on them.
        dropped: ids of the backups that go, with all their files.
    """

    kept: tuple[str, ...]
    forgotten: tuple[str, ...]
    rewrites: tuple[PlannedRewrite, ...]
    unlisted: tuple[str, ...]
    dropped: tuple[str, ...]


def plan_prune(
    headers: Sequence[StateHeader],
    listed: Collection[str],
    kept: Collection[str],
    measure: Callable[[str, str | None], Waste],
    *,
    max_unused: float,
    with_copies: Collection[str] = (),
) -> PrunePlan:
    """Plan it.

    Args:
        headers: of every backup of the key, also of those that were forgotten.
        listed: ids of the points in time.
        kept: those of them that stay.
        measure: called with the ids of a backup and of the oldest link to be merged into it, None for the whole
            chain.
        max_unused: the share of dead bytes, from 0 to 1, below which nothing is written again.
        with_copies: ids of those kept that hold whole copies in place of deltas: what nothing is to be merged into
            is looked at for these alone.
    """
    by_id = {header.id: header for header in headers}
    needed = needed_ids({header.id: header.parent for header in headers}, kept)
    anchors = _anchors(by_id, needed, kept)
    rewrites = []
    parents = {header.id: header.parent for header in headers}
    for backup_id in sorted(anchors):
        rewrite = _plan_rewrite(by_id, anchors, backup_id, measure, max_unused, backup_id in with_copies)
        if rewrite is not None:
            rewrites.append(rewrite)
            parents[backup_id] = by_id[(*rewrite.links, backup_id)[0]].parent
    left = needed_ids(parents, kept)
    return PrunePlan(
        kept=tuple(sorted(kept)),
        forgotten=tuple(sorted(set(listed) - set(kept))),
        rewrites=tuple(rewrites),
        unlisted=tuple(sorted(left - set(kept))),
        dropped=tuple(sorted(set(by_id) - left)),
    )


def needed_ids(parents: Mapping[str, str | None], kept: Collection[str]) -> set[str]:
    """The ids in *kept* and those of all that they stand on."""
    needed: set[str] = set()
    for backup_id in kept:
        current: str | None = backup_id
        while current is not None and current not in needed:
            needed.add(current)
            current = parents.get(current)
    return needed


def _anchors(by_id: Mapping[str, StateHeader], needed: Collection[str], kept: Collection[str]) -> set[str]:
    """The backups that stay themselves: those kept, and those on which several stand."""
    children: dict[str, int] = {}
    for backup_id in needed:
        parent = by_id[backup_id].parent
        if parent is not None:
            children[parent] = children.get(parent, 0) + 1
    return set(kept) | {backup_id for backup_id, count in children.items() if count > 1}


def _plan_rewrite(
    by_id: Mapping[str, StateHeader],
    anchors: Collection[str],
    backup_id: str,
    measure: Callable[[str, str | None], Waste],
    max_unused: float,
    has_copies: bool,
) -> PlannedRewrite | None:
    links: list[str] = []
    below = by_id[backup_id].parent
    while below is not None and below not in anchors and by_id[below].kind != FULL:
        links.insert(0, below)
        below = by_id[below].parent
    if below is not None and below not in anchors:
        waste = measure(backup_id, None)
        if waste.share >= max_unused:
            return PlannedRewrite(backup_id, "rebase", (below, *links), waste)
    if links:
        waste = measure(backup_id, links[0])
        if waste.share >= max_unused * MERGE_SHARE or len(links) >= MAX_UNLISTED_LINKS:
            return PlannedRewrite(backup_id, "merge", tuple(links), waste)
    elif has_copies and by_id[backup_id].kind != FULL:
        waste = measure(backup_id, backup_id)
        if waste.dead_bytes and waste.share >= max_unused * MERGE_SHARE:
            return PlannedRewrite(backup_id, "merge", (), waste)
    return None
