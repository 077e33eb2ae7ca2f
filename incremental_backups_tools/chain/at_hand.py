"""What a machine that cannot decrypt keeps at hand, so that its next backup can be an incremental.

Of an encrypted repository the local copies of the newest chain's states and signatures; the states of all other
backups stay too, so that they can be listed.
"""

from __future__ import annotations

from collections.abc import Sequence

from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.exceptions import DecryptionError
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.repository.repository import Repository


def can_read_newest(repository: Repository, history: History) -> bool:
    """Whether the newest backup's state can be read here."""
    point = history.newest_point()
    if point is None or not isinstance(repository.store, AgeStore):
        return True
    return bool(repository.protection.identities) or repository.store.has_copy(history.state_name(point[0]))


def require_newest(repository: Repository, history: History) -> None:
    """Make sure that an incremental can be made here.

    Raises:
        DecryptionError: it cannot; the message says what can be done.
    """
    if not can_read_newest(repository, history):
        raise _lacking(history.key)


def chain_at_hand(repository: Repository, history: History, backup_id: str) -> list[StateHeader]:
    """The chain to *backup_id*, with its states and signatures at hand; what is not is fetched.

    Raises:
        DecryptionError: something is not, and there is no identity.
        ChainError, FormatError, RepositoryError: as :meth:`History.chain_to`.
    """
    store = repository.store
    if not isinstance(store, AgeStore):
        return history.chain_to(backup_id)
    try:
        chain = history.chain_to(backup_id)
        for name in _names(history, chain):
            if not store.has_copy(name):
                store.fetch_copy(name)
    except DecryptionError:
        if repository.protection.identities:
            raise
        raise _lacking(history.key) from None
    return chain


def drop_outdated(repository: Repository, history: History, chain: Sequence[StateHeader]) -> None:
    """Remove what no backup that may come needs: signatures of other chains than *chain*, states of what is gone."""
    store = repository.store
    if isinstance(store, AgeStore) and store.copies is not None:
        states = {history.state_name(backup_id) for backup_id in history.stored_ids}
        store.copies.retain(history.key, states | set(_names(history, chain)))


def _names(history: History, chain: Sequence[StateHeader]) -> list[str]:
    names = []
    for header in chain:
        names.append(history.state_name(header.id))
        names += [f"{header.key}/{file.name}" for file in header.files if file.role == Role.SIGVAULT]
    return names


def _lacking(key: str) -> DecryptionError:
    return DecryptionError(
        f"{key}: the cache of this machine lacks what the next incremental stands on: rebuild it with an identity "
        "(--identity), or begin a new chain (--full)"
    )
