"""The backups of one key, as a repository holds them: their headers, their parents, their states."""

from __future__ import annotations

import functools
import io
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, Final

from incremental_backups_tools.chain.resolve import ChainState, check_chain
from incremental_backups_tools.chain.signatures import open_verified
from incremental_backups_tools.chain.state import (
    HEADER_READ_LEN,
    StateHeader,
    StateLine,
    StateReader,
    header_of_start,
)
from incremental_backups_tools.exceptions import BackupError, ChainError, IntegrityError, StateFormatError
from incremental_backups_tools.repository.encryption import SUFFIX
from incremental_backups_tools.repository.layout import Role, validate_key
from incremental_backups_tools.repository.locations import default_repository
from incremental_backups_tools.repository.protection import NO_PROTECTION, Protection
from incremental_backups_tools.repository.repository import Repository, select_backups
from incremental_backups_tools.tree.records import MAX_HEADER_LEN

# A chain that goes in a circle is refused by its ids, which must fall; this bounds hostile length.
MAX_CHAIN_LEN: Final = 100_000

# Resolving reads all states of a chain side by side. Small ones are held, so that a chain may be longer than a
# process may have files open.
_HELD_STATE_LEN: Final = 64 << 10

# A chain is most often made of the backups one after the other: so many before one are read with it.
_HEADERS_AHEAD: Final = 16
_HEADER_THREADS: Final = 8
_FEW_HEADERS: Final = 4

# What a caller names a repository by.
RepositoryPlace = str | os.PathLike[str] | Repository


class History:
    """Backups of *key*, read when they are asked for.

    Attributes:
        stored_ids: of every backup whose state is there, sorted, oldest first.
        backup_ids: those of them that are points in time. One that was forgotten is not: it is kept because others
            stand on it.
        forgotten_ids: of which there is a marker that says so, whether their state is there or not.
    """

    def __init__(self, repository: Repository, key: str) -> None:
        self._repository = repository
        self.key = key
        objects = repository.objects(key)
        forgotten = {stored.name.backup_id for stored in objects if stored.name.role is Role.FORGOTTEN}
        stored_states = select_backups(objects)
        self._backups = {stored.name.backup_id: stored.name for stored in stored_states}
        self._sizes = {stored.name.backup_id: stored.size for stored in stored_states}
        self.stored_ids: list[str] = sorted(self._backups)
        self.backup_ids: list[str] = [
            backup_id for backup_id in self.stored_ids if backup_id not in forgotten
        ]
        self.forgotten_ids = frozenset(forgotten)
        self._is_signed = any(stored.name.role is Role.STATE_SIGNATURE for stored in objects)
        self._headers: dict[str, StateHeader] = {}

    def header(self, backup_id: str) -> StateHeader:
        """The header of one backup's state, read by range.

        Raises:
            ChainError: there is no such backup.
            StateFormatError, UnsupportedVersionError: its state is damaged or newer.
            RepositoryError: it cannot be read.
        """
        if backup_id not in self._headers:
            self._headers[backup_id] = self._read_header(backup_id)
        return self._headers[backup_id]

    def headers(self) -> list[StateHeader]:
        """The headers of all points in time, oldest first."""
        self.fetch_headers(self.backup_ids)
        return [self.header(backup_id) for backup_id in self.backup_ids]

    def stored_headers(self) -> list[StateHeader]:
        """The headers of all backups, also of those that were forgotten, oldest first."""
        self.fetch_headers(self.stored_ids)
        return [self.header(backup_id) for backup_id in self.stored_ids]

    def fetch_headers(self, backup_ids: Iterable[str]) -> None:
        """Read several headers at once, for whoever asks for each: far away, most of the time is waiting.

        What fails here fails again when it is asked for, and says so there.
        """
        missing = [backup_id for backup_id in backup_ids if backup_id not in self._headers]
        if len(missing) < _FEW_HEADERS:
            return
        with suppress(BackupError):
            self.header(missing.pop())  # the first one may have to ask somebody for a passphrase
        with ThreadPoolExecutor(_HEADER_THREADS, thread_name_prefix="ibt-headers") as pool:
            reading = [(backup_id, pool.submit(self._read_header, backup_id)) for backup_id in missing]
            for backup_id, future in reading:
                with suppress(BackupError):
                    self._headers[backup_id] = future.result()

    def generation(self, backup_id: str) -> int:
        """The generation of a backup of :attr:`stored_ids`."""
        return self._backups[backup_id].generation

    def newest_point(self) -> tuple[str, int] | None:
        """Id and generation of the newest point in time; None where there is none."""
        if not self.backup_ids:
            return None
        return self.backup_ids[-1], self._backups[self.backup_ids[-1]].generation

    def describe_lost_signing(self) -> str | None:
        """A sentence where states are signed, and what this run writes will not be; None where all is as it was."""
        if not self._is_signed or self._repository.protection.signer is not None:
            return None
        return (
            f"{self.key}: its states are signed, and what is written now will not be (--sign-key): whoever asks "
            "for signatures will refuse it"
        )

    def latest(self) -> StateHeader | None:
        """The newest point in time; None where there is none."""
        return self.header(self.backup_ids[-1]) if self.backup_ids else None

    def chain_to(self, backup_id: str) -> list[StateHeader]:
        """The headers from the full that *backup_id* stands on to itself.

        Raises:
            ChainError: one of them is missing, or they contradict each other.
        """
        chain = [self.header(backup_id)]
        while (parent := chain[-1].parent) is not None:
            if parent not in self._backups:
                raise ChainError(
                    f"{self.key}@{backup_id} stands on backup {parent}, which the repository does not have"
                )
            if len(chain) >= MAX_CHAIN_LEN:
                raise ChainError(f"{self.key}@{backup_id} stands on more than {MAX_CHAIN_LEN} backups")
            if parent not in self._headers:
                end = bisect_right(self.stored_ids, parent)
                self.fetch_headers(self.stored_ids[max(end - _HEADERS_AHEAD, 0) : end])
            chain.append(self.header(parent))
        chain.reverse()
        check_chain(chain)
        return chain

    def states(self, backup_id: str) -> list[ChainState]:
        """The states of the chain to *backup_id*, full first, for resolving."""
        return [
            ChainState(header, functools.partial(self.lines, header.id))
            for header in self.chain_to(backup_id)
        ]

    def lines(self, backup_id: str) -> Iterator[StateLine]:
        """Every line of one state. Iterating to the end proves the state whole."""
        name = self.state_name(backup_id)
        with self._open(backup_id) as file:
            reader = StateReader(file, what=name)
            self._check_identity(reader.header, backup_id, name)
            yield from reader

    def state_name(self, backup_id: str) -> str:
        """The name of a backup's state in the repository."""
        if backup_id not in self._backups:
            raise ChainError(f"{self.key}: there is no backup {backup_id}")
        return self._backups[backup_id].path

    def _open(self, backup_id: str) -> BinaryIO:
        """A state as a file; where signatures are asked for, one that was checked."""
        name = self._backups[backup_id]
        verifier = self._repository.protection.verifier
        if verifier is not None:
            return open_verified(self._repository.store, name, verifier)
        stored_size = self._sizes[backup_id]
        if stored_size <= _HELD_STATE_LEN:
            return io.BytesIO(self._repository.store.read(name.path))
        return self._repository.store.open(name.path)

    def _read_header(self, backup_id: str) -> StateHeader:
        name = self.state_name(backup_id)
        if self._repository.protection.verifier is not None:
            # The whole of it is signed, so the whole of it is read.
            with self._open(backup_id) as file:
                header = StateReader(file, what=name).header
            self._check_identity(header, backup_id, name)
            return header
        store = self._repository.store
        size = store.size(name) if self._repository.is_encrypted else self._sizes[backup_id]
        length = HEADER_READ_LEN
        while True:
            start = store.read_range(name, 0, min(length, size))
            try:
                header = header_of_start(start, what=name)
                break
            except StateFormatError:
                if length >= min(size, MAX_HEADER_LEN):
                    raise
                length *= 8
        self._check_identity(header, backup_id, name)
        return header

    def _check_identity(self, header: StateHeader, backup_id: str, name: str) -> None:
        """A state under another backup's name is damage, or somebody's trick."""
        generation = self._backups[backup_id].generation
        if (header.key, header.id, header.generation) != (self.key, backup_id, generation):
            raise StateFormatError(
                f"{name}: holds the state of {header.key}@{header.id}, generation {header.generation}"
            )
        if any(file.name.endswith(SUFFIX) != self._repository.is_encrypted for file in header.files):
            raise StateFormatError(f"{name}: names files of the other kind, encrypted or not, than it may")
        own_id = self._repository.repository_id
        if self._repository.protection.verifier is not None and header.repository != own_id:
            raise IntegrityError(
                f"{name}: was signed for another repository",
                path=name,
                expected=own_id,
                actual=header.repository or None,
            )


def identities(chain: Iterable[StateHeader]) -> list[tuple[str, int]]:
    """What a resolved index was made from: id and generation of each state, full first."""
    return [(header.id, header.generation) for header in chain]


def open_repository(
    place: RepositoryPlace | None,
    *,
    protection: Protection = NO_PROTECTION,
    cache_root: str | os.PathLike[str] | None = None,
) -> Repository:
    """The repository at *place*, for reading.

    Args:
        protection: the keys of this run; an open repository has its own.

    Raises:
        RepositoryNotFoundError: there is none.
    """
    if isinstance(place, Repository):
        return place
    return Repository.open(
        default_repository() if place is None else place, protection=protection, cache_root=cache_root
    )


def open_history(repository: Repository, key: str) -> History:
    """The backups of *key*.

    Raises:
        ChainError: there are none.
    """
    try:
        validate_key(key)
    except ValueError as error:
        raise ChainError(str(error)) from None
    history = History(repository, key)
    if not history.backup_ids:
        where = repository.store.url
        if repository.objects(key):
            raise ChainError(
                f"{where} has no backup of {key!r} that is whole, only files without a state: of a run that was "
                "killed, or whose state was lost; ibt salvage gets what is in them"
            )
        known = ", ".join(name for name in repository.keys() if repository.backups(name)) or "none"
        raise ChainError(f"{where} has no backup of {key!r}; its keys: {known}")
    return history
