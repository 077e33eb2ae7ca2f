"""One repository in two places: archives where room is cheap, and all that is small where it is read at once.

Hot is whatever every command reads or writes: ``ibt.json``, states, signatures of states and of files, replay lists,
markers, locks, ``RESTORE.sh``. Cold are the archives of files: ``full``, ``created`` and ``updated``.

``ibt.json``, the same in both, says that there are two: opened as one place alone, neither is a repository, so that
nothing is ever written to the wrong one. Both may be one directory, as where two were downloaded into one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, TypeVar

from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.repository.layout import Role, parse_object_name
from incremental_backups_tools.repository.store import ObjectInfo, Spool, Store, StoreFeatures

FoundT = TypeVar("FoundT")

_COLD_ROLES: Final = frozenset({Role.FULL, Role.CREATED, Role.UPDATED})


@dataclass(frozen=True, slots=True)
class TieredAddress(os.PathLike[str]):
    """Two directories or URLs that are one repository; stands wherever one may stand.

    Attributes:
        cold: of the archives; the repository is called by it.
        hot: of everything else.
    """

    cold: str | os.PathLike[str]
    hot: str | os.PathLike[str]

    def __fspath__(self) -> str:
        return os.fspath(self.cold)


class TieredStore(Store):
    """Each object in one of two stores, by its name; see :class:`Store` for what the methods promise."""

    def __init__(self, hot: Store, cold: Store) -> None:
        self.hot = hot
        self.cold = cold
        self.url = cold.url

    @property
    def features(self) -> StoreFeatures:
        both = self.hot.features, self.cold.features
        return StoreFeatures(
            atomic_put=all(one.atomic_put for one in both),
            exclusive_create=all(one.exclusive_create for one in both),
            durable=all(one.durable for one in both),
            read_after_write=all(one.read_after_write for one in both),
        )

    @property
    def needs_preparing(self) -> bool:  # type: ignore[override]
        return self.hot.needs_preparing or self.cold.needs_preparing

    def open(self, name: str) -> BinaryIO:
        return self._place_of(name).open(name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self._place_of(name).read_range(name, offset, length)

    def size(self, name: str) -> int:
        return self._place_of(name).size(name)

    def exists(self, name: str) -> bool:
        return self._place_of(name).exists(name)

    def content_size(self, name: str, stored_size: int) -> int:
        return self._place_of(name).content_size(name, stored_size)

    def stored_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        return self._place_of(name).stored_ranges(name, ranges)

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        hot, cold = self._listings(lambda store: store.list_objects(prefix))
        # An object counts where it belongs, should there be one of its name in both.
        found = [info for info in hot if self._place_of(info.name) is self.hot]
        found += [info for info in cold if self._place_of(info.name) is self.cold]
        return sorted(found, key=lambda info: info.name)

    def list_directories(self) -> list[str]:
        hot, cold = self._listings(lambda store: store.list_directories())
        return sorted({*hot, *cold})

    def make_root(self) -> None:
        self.cold.make_root()
        self.hot.make_root()

    def spool(self, name: str) -> Spool:
        return self._place_of(name).spool(name)

    def delete(self, name: str) -> None:
        self._place_of(name).delete(name)

    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        return [
            name
            for store in (self.hot, self.cold)
            for name in store.clean_temporaries(directory, min_age_seconds=min_age_seconds)
        ]

    def prepare(self, names: Iterable[str]) -> None:
        wanted = list(names)
        for store in (self.hot, self.cold):
            if store.needs_preparing:
                store.prepare([name for name in wanted if self._place_of(name) is store])

    def _place_of(self, name: str) -> Store:
        key, _, file_name = name.partition("/")
        try:
            parsed = parse_object_name(key, file_name)
        except ValueError:
            return self.hot  # no key; it says what is wrong with the name
        return self.cold if parsed is not None and parsed.role in _COLD_ROLES else self.hot

    def _listings(self, read: Callable[[Store], list[FoundT]]) -> tuple[list[FoundT], list[FoundT]]:
        """Both listings; of what was not found only if both were not, or there is nothing in the other."""
        listings: list[list[FoundT]] = []
        missing: list[RepositoryNotFoundError] = []
        for store in (self.hot, self.cold):
            try:
                listings.append(read(store))
            except RepositoryNotFoundError as error:
                listings.append([])
                missing.append(error)
        hot, cold = listings
        if missing and not hot and not cold:
            raise missing[0]
        if missing:
            raise RepositoryError(f"one of two places of a repository is not there: {missing[0]}")
        return hot, cold
