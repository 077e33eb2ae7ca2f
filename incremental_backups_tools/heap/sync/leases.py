"""Who uses a heap: many who add to it at once, or one who deletes from it.

Who adds takes a lock of its own, then looks for one who deletes; who deletes takes the one lock there is for
that, then looks for those who add. Each writes before it looks, so of two who come at once one sees the other.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from incremental_backups_tools.exceptions import RepositoryLockedError
from incremental_backups_tools.repository.layout import LOCKS_DIRECTORY
from incremental_backups_tools.repository.locks import KeyLock, find_live_lock
from incremental_backups_tools.repository.store import Store

_ADDING: Final = "add-"
_DELETING: Final = "delete"
_WAIT_SECONDS: Final = 300.0
_POLL_SECONDS: Final = 1.0


def lease_for_adding(store: Store, operation: str, *, wait_seconds: float = _WAIT_SECONDS) -> KeyLock:
    """Take the right to add to a heap and to count on what is in it, beside others.

    Args:
        wait_seconds: how long to wait for one who deletes.

    Raises:
        RepositoryLockedError: somebody deletes from it.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        lease = KeyLock.acquire(store, _ADDING + secrets.token_hex(16), operation=operation)
        try:
            holder = find_live_lock(store, _DELETING)
        except BaseException:
            lease.release()
            raise
        if holder is None:
            return lease
        lease.release()
        if time.monotonic() >= deadline:
            raise RepositoryLockedError(f"{store.url} is being cleaned by {holder.describe()}")
        time.sleep(_POLL_SECONDS)


@contextmanager
def lease_for_deleting(store: Store, operation: str) -> Iterator[KeyLock]:
    """Have the right to delete from a heap, alone.

    Raises:
        RepositoryLockedError: somebody adds to it, or deletes.
    """
    with KeyLock.acquire(store, _DELETING, operation=operation) as lease:
        beginning = f"{LOCKS_DIRECTORY}/{_ADDING}"
        infos = store.list_objects(beginning)
        keys = {_ADDING + info.name.removeprefix(beginning).partition(".")[0] for info in infos}
        for key in sorted(keys):
            holder = find_live_lock(store, key)
            if holder is not None:
                raise RepositoryLockedError(f"{store.url} is used by {holder.describe()}")
        yield lease
