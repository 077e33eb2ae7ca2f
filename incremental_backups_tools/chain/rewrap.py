"""Encrypting what is stored again, to the recipients of today.

Each backup is written as its next generation: the same archives and the same state, encrypted anew. What was
there before stays until it is pruned: until then, whoever could read it still can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from incremental_backups_tools.chain.draft import describe
from incremental_backups_tools.chain.history import History, RepositoryPlace, open_repository
from incremental_backups_tools.chain.merge import Rewriter
from incremental_backups_tools.chain.rewrite import RewriteOptions
from incremental_backups_tools.chain.signatures import put_signature
from incremental_backups_tools.chain.state import (
    ArchiveFile,
    StateHeader,
    StateLine,
    encode_state_line,
    write_state,
)
from incremental_backups_tools.exceptions import ChainError, DecryptionError, IntegrityError
from incremental_backups_tools.repository.layout import ObjectName, Role, parse_object_name
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import Location, SignatureRef

_CHUNK_LEN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class RewrapReport:
    """What was encrypted again.

    Attributes:
        backups: ids.
        bytes_written: by their files.
    """

    backup_key: str
    backups: tuple[str, ...]
    bytes_written: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backup_key": self.backup_key,
            "backups": list(self.backups),
            "bytes_written": self.bytes_written,
        }


def rewrap_backups(
    key: str,
    *,
    repository: RepositoryPlace | None = None,
    cache_root: str | os.PathLike[str] | None = None,
    wait_seconds: float = 0.0,
    on_notice: Callable[[str], None] | None = None,
) -> RewrapReport:
    """Encrypt every backup of a key again, to the recipients that *repository* was opened with.

    Killed at any instant, each backup is there in one generation or the other.

    Raises:
        ChainError: there is no such key, or the repository is not encrypted.
        DecryptionError: there is no identity that opens what is stored.
        RepositoryLockedError: another process works on the key.
        IntegrityError, FormatError, RepositoryError: something is damaged; what came before it is done.
    """
    target = open_repository(repository)
    if not target.is_encrypted:
        raise ChainError(f"{target.base.url} is not encrypted: there is nothing to encrypt again")
    options = RewriteOptions(on_notice=on_notice)
    with Rewriter(target, key, "rewrap", cache_root, wait_seconds, options) as rewriter:
        written = 0
        ids = tuple(rewriter.history.stored_ids)
        for backup_id in ids:
            written += _Rewrapping(target, rewriter, backup_id).run()
        # Read from this machine's copies: the identity of before may open none of the new files.
        with suppress(DecryptionError):  # a cache that cannot be written has none; the index is rebuilt then
            rewriter.history = History(target.without_identities(), key)
            rewriter.refresh_cache()
        return RewrapReport(key, ids, written)


class _Rewrapping:
    """One backup on its way to its next generation."""

    def __init__(self, repository: Repository, rewriter: Rewriter, backup_id: str) -> None:
        self._repository = repository
        self._rewriter = rewriter
        self._header = rewriter.history.header(backup_id)
        generations = [
            stored.name.generation
            for stored in repository.objects(self._header.key)
            if stored.name.backup_id == backup_id
        ]
        self._generation = max(generations) + 1
        self._names: dict[str, str] = {}

    def run(self) -> int:
        """Write it; return the bytes."""
        files = [self._copy(file) for file in self._header.files]
        for file in files:
            self._read_back(file)
        header = msgspec.structs.replace(self._header, generation=self._generation, files=files)
        return self._put_state(header) + sum(file.size for file in files)

    def _copy(self, file: ArchiveFile) -> ArchiveFile:
        """Encrypt an archive again, after a look at whether it is the one that the state promises."""
        key = self._header.key
        old = parse_object_name(key, file.name)
        assert old is not None  # the header was checked
        new = replace(old, generation=self._generation)
        self._read_back(file)
        store = self._repository.store
        with store.open(old.path) as content, store.spool(new.path) as spool:
            while chunk := content.read(_CHUNK_LEN):
                spool.file.write(chunk)
            stored = spool.publish()
        self._names[file.name] = new.file_name
        return ArchiveFile(new.file_name, file.role, stored.size, stored.digest or "")

    def _read_back(self, file: ArchiveFile) -> None:
        with self._repository.base.open(f"{self._header.key}/{file.name}") as stored:
            found = describe(stored, file.name, file.role)
        if found != file:
            raise IntegrityError(
                f"{file.name}: not what its state promises, or not what was written",
                path=file.name,
                expected=file.digest,
                actual=found.digest,
            )

    def _put_state(self, header: StateHeader) -> int:
        store = self._repository.store
        signer = self._repository.protection.signer
        if signer is not None:
            header = msgspec.structs.replace(header, repository=self._repository.repository_id)
        name = ObjectName(header.key, header.id, Role.STATE, self._generation, encrypted=True)
        with ExitStack() as stack:
            spool = stack.enter_context(store.spool(name.path))
            write_state(spool.file, header, self._lines())
            spool.file.flush()
            if signer is not None:
                put_signature(store, name, spool.file, signer)
            self._rewriter.confirm_lock()
            return spool.publish().size

    def _lines(self) -> Iterator[bytes]:
        for line in self._rewriter.history.lines(self._header.id):
            entry = msgspec.structs.replace(
                line.entry, data=self._moved(line.entry.data), sig=self._moved_sig(line.entry.sig)
            )
            yield encode_state_line(StateLine(line.op, entry), kind=self._header.kind)

    def _moved(self, place: Location | None) -> Location | None:
        if place is None:
            return None
        return Location(self._names[place.file], place.offset, place.length, place.sparse)

    def _moved_sig(self, sig: SignatureRef | None) -> SignatureRef | None:
        if sig is None:
            return None
        return SignatureRef(self._names[sig.file], sig.offset, sig.length, sig.digest)
