"""The newest backup that this machine has seen of a key, so that a repository put back in time is noticed.

A store that lost its last days, or whose owner took them away, looks like a repository that is a few days old.
Nothing in it can tell the difference; what the cache remembers can. It may be forgotten, and then nothing is said.
"""

from __future__ import annotations

from typing import Final

import msgspec

from incremental_backups_tools.chain.history import History
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.repository import Repository

NEWEST_NAME: Final = "newest"
_LEN_MAX: Final = 64 << 10


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """A backup that was there.

    Attributes:
        url: where the repository was then.
    """

    repository_id: str
    key: str
    id: str
    generation: int
    url: str


def recall_newest(cache: Cache, repository_id: str, key: str) -> Newest | None:
    """What was remembered; None where nothing was, or of another repository."""
    file = cache.open(NEWEST_NAME)
    if file is None:
        return None
    with file:
        data = file.read(_LEN_MAX)
    try:
        newest = msgspec.json.decode(data, type=Newest)
    except msgspec.DecodeError:
        return None
    return newest if (newest.repository_id, newest.key) == (repository_id, key) else None


def remember_newest(cache: Cache, repository: Repository, key: str, point: tuple[str, int] | None) -> None:
    """Remember *point*, id and generation, as the newest backup of a key, unless a newer one is remembered."""
    if point is None:
        return
    known = recall_newest(cache, repository.repository_id, key)
    if known is not None and (known.id, known.generation) >= point:
        return
    newest = Newest(
        repository_id=repository.repository_id,
        key=key,
        id=point[0],
        generation=point[1],
        url=repository.base.url,
    )
    # Lost in a power cut, it is nothing but forgotten.
    with cache.replace(NEWEST_NAME, durable=False) as file:
        file.write(msgspec.json.encode(newest))


def describe_rollback(repository: Repository, history: History) -> str | None:
    """A sentence where *history* ends before what this machine has seen; None where it does not."""
    seen = recall_newest(repository.cache(history.key), repository.repository_id, history.key)
    point = history.newest_point()
    if seen is None or (point is not None and point >= (seen.id, seen.generation)):
        return None
    newest = f"its newest backup is {point[0]}" if point is not None else "it has no backup"
    return (
        f"{history.key}: {newest}, this machine has seen {seen.id}"
        f"{f' in generation {seen.generation}' if seen.generation else ''}: the repository was put back to an older "
        "state, or lost backups"
    )
