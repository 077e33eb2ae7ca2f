"""The chains of a key: which of its backups are points in time, and which only carry others.

A point is a backup that the history lists. What a point stands on need not be one: it may have been forgotten,
and is there only because others need its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.state import StateHeader


def iter_chains(history: History) -> Iterator[list[StateHeader]]:
    """The chain to each point on which no other point stands, full first; the newest of these points first.

    Every point is in one of them; in several, where two points stand on one.

    Raises:
        ChainError, FormatError, RepositoryError: as :meth:`History.chain_to`.
    """
    covered: set[str] = set()
    # A child is newer than its parent: what is not covered yet is no other point's ancestor.
    for backup_id in reversed(history.backup_ids):
        if backup_id in covered:
            continue
        chain = history.chain_to(backup_id)
        covered.update(header.id for header in chain)
        yield chain


def carrying_headers(history: History) -> list[StateHeader]:
    """The headers of all points and of everything that they stand on, each once, oldest first.

    Raises:
        as :func:`iter_chains`.
    """
    found = {header.id: header for chain in iter_chains(history) for header in chain}
    return [found[backup_id] for backup_id in sorted(found)]
