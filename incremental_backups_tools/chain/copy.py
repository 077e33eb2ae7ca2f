"""Carrying backups to another repository: the same names and bytes, each file compared with its digest on the way.

Oldest first, archives first, the state last: killed at any instant, the other repository has each backup whole or
not at all, and the next run goes on with the file that was not finished. Nothing that is there is written over.

An encrypted backup is carried as it lies, into an encrypted repository alone. A state that was signed names the
repository it was signed for, so that nobody can pass it off in another: it is read, checked and signed anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final

import msgspec

from incremental_backups_tools.chain.draft import describe
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    identities,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.lineage import carrying_headers
from incremental_backups_tools.chain.script import restore_script
from incremental_backups_tools.chain.signatures import put_signature, signature_name
from incremental_backups_tools.chain.state import (
    ArchiveFile,
    StateHeader,
    StateReader,
    encode_state_line,
    write_state,
)
from incremental_backups_tools.exceptions import (
    ChainError,
    FormatError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.layout import KEY_NAME, RESTORE_SCRIPT_NAME, ObjectName, Role
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.signing import SIGNATURE_LEN_MAX, Digests, Signer, Verifier
from incremental_backups_tools.repository.store import Store

_CHUNK_LEN: Final = 1 << 20
_KEY_FILE_LEN_MAX: Final = 64 << 10
# Of two states of one size these bytes tell whether they are one: a state ends with the digest of all that is
# before it, and an age file begins with a key that no other has.
_STATE_START_LEN: Final = 64 << 10
_STATE_END_LEN: Final = 4 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """What is copied, and how.

    Attributes:
        at: the chain to this point in time (``chain/when.py``); None is every point, with what it stands on.
        wait_seconds: how long to wait for another process that works on the key over there.
        dry_run: change nothing; report what would be copied.
        on_notice: told in a sentence what is worth a word.
        on_progress: called with each archive's name and its size in bytes when it is there.
    """

    at: str | datetime | None = None
    wait_seconds: float = 0.0
    dry_run: bool = False
    on_notice: Callable[[str], None] | None = None
    on_progress: Callable[[str, int], None] | None = None


@dataclass(slots=True)
class CopyReport:
    """What was copied.

    Attributes:
        source, target: where from and where to.
        copied: ids of the backups that were not there before.
        present: ids of those that were.
        files, bytes_copied: archives that were carried, and their bytes.
        files_present: archives that were there already, of backups whose state was not.
    """

    backup_key: str
    source: str
    target: str
    copied: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    files: int = 0
    bytes_copied: int = 0
    files_present: int = 0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backup_key": self.backup_key,
            "source": self.source,
            "target": self.target,
            "copied": self.copied,
            "present": self.present,
            "files": self.files,
            "bytes_copied": self.bytes_copied,
            "files_present": self.files_present,
            "dry_run": self.dry_run,
        }


def copy_backups(
    key: str,
    to: str | os.PathLike[str] | Store,
    *,
    repository: RepositoryPlace | None = None,
    **options: Any,
) -> CopyReport:
    """Carry backups of *key* into the repository at *to*, which is made where there is none.

    Ids and generations stay what they are. With a signer in *repository*'s protection, states that were not
    signed for the other repository are signed anew.

    Args:
        to: a directory, an fsspec URL, or a store.
        repository: where they are; None is the user's own directory.
        options: as :class:`CopyOptions`.

    Raises:
        RepositoryNotFoundError: there is no repository to copy from.
        RepositoryError: one is encrypted and the other is not, or has another key of its own; a store failed.
        ChainError: no such key or point in time; the other repository has another backup of the same id.
        DecryptionError: what has to be read is encrypted, and no identity opens it.
        IntegrityError, FormatError: something is damaged. Backups that were carried before are whole.
        RepositoryLockedError: another process works on the key over there.
    """
    chosen = CopyOptions(**options)
    source = open_repository(repository)
    history = open_history(source, key)
    if chosen.at is not None:
        at = select_backup(history.backup_ids, chosen.at, now=datetime.now(UTC), what=key)
        chosen = replace(chosen, at=at)
    headers = _wanted(history, chosen.at)
    target = _open_target(to, source, create=False)
    _check_signing(source, headers, target)
    if target is None and not chosen.dry_run:
        target = _open_target(to, source, create=True)
    report = CopyReport(key, source.base.url, _url_of(to, target), dry_run=chosen.dry_run)
    with ExitStack() as stack:
        lock = None
        if target is not None and not chosen.dry_run:
            lock = stack.enter_context(
                KeyLock.acquire(
                    target.store,
                    key,
                    operation="copy",
                    wait_seconds=chosen.wait_seconds,
                    on_notice=chosen.on_notice,
                )
            )
            _carry_own_key(source, target)
            target.clean_temporaries(key)
            target.put_once(RESTORE_SCRIPT_NAME, restore_script())
        try:
            _Copying(source, history, target, lock, chosen, report).run(headers)
        except ObjectNotFoundError:
            # It was pruned meanwhile, or written again: then its backups stand on other files now.
            now = open_history(source, key)
            newer = _wanted(now, chosen.at)
            if identities(newer) == identities(headers):
                raise
            _check_signing(source, newer, target)
            _Copying(source, now, target, lock, chosen, report).run(newer)
    return report


def _wanted(history: History, at: str | datetime | None) -> list[StateHeader]:
    return carrying_headers(history) if at is None else history.chain_to(str(at))


def _url_of(to: str | os.PathLike[str] | Store, target: Repository | None) -> str:
    if target is not None:
        return target.base.url
    return to.url if isinstance(to, Store) else os.fspath(to)


def _open_target(
    to: str | os.PathLike[str] | Store, source: Repository, *, create: bool
) -> Repository | None:
    """The other repository, of the same kind as *source* and opened with the same keys; None where there is none."""
    try:
        target = Repository.open(
            to,
            create=create,
            encryption=source.encryption,
            # The passphrase is that of the source's own key, which may not be there yet.
            protection=replace(source.protection, passphrase=None, verifier=None),
            cache_root=source.cache_root,
        )
    except RepositoryNotFoundError:
        if create:
            raise
        return None
    if target.encryption != source.encryption:
        words = {True: "encrypted", False: "not encrypted"}
        raise RepositoryError(
            f"{source.base.url} is {words[source.is_encrypted]} and {target.base.url} is "
            f"{words[target.is_encrypted]}: backups are copied between repositories of one kind"
        )
    if target.base.url == source.base.url:
        raise RepositoryError(f"{source.base.url} cannot be copied to itself")
    if not target.is_encrypted:
        target.require_writable()
    return target


def _check_signing(source: Repository, headers: Sequence[StateHeader], target: Repository | None) -> None:
    """Refuse before anything is written what could not be signed for the other repository."""
    own_id = target.repository_id if target is not None else None
    protection = source.protection
    foreign = [header for header in headers if header.repository and header.repository != own_id]
    if foreign and (protection.signer is None or protection.verifier is None):
        raise RepositoryError(
            f"{foreign[0].key}@{foreign[0].id} is signed for its own repository: a copy is signed anew "
            "(--sign-key), once the signature that it has was checked (--verify-key); nothing was copied"
        )
    if target is not None and protection.signer is not None and target.is_encrypted:
        target.require_writable()


def _carry_own_key(source: Repository, target: Repository) -> None:
    """Let the passphrase of *source* open the copies too.

    Raises:
        RepositoryError: *target* has a key of its own, or backups that no passphrase opens.
    """
    key = _read_own_key(source)
    there = _read_own_key(target)
    if key is None or key == there:
        return
    if there is not None or any(target.backups(name) for name in target.keys()):
        raise RepositoryError(
            f"{target.base.url} has another {KEY_NAME} than {source.base.url}, or none: no passphrase would open "
            "all that it held; nothing was copied"
        )
    target.base.create(KEY_NAME, key)


def _read_own_key(repository: Repository) -> bytes | None:
    if repository.is_encrypted:
        with suppress(ObjectNotFoundError):
            return repository.base.read(KEY_NAME, max_size=_KEY_FILE_LEN_MAX)
    return None


class _Copying:
    """One run. *target* is None in a dry run where there is no repository yet, *lock* in every dry run."""

    def __init__(
        self,
        source: Repository,
        history: History,
        target: Repository | None,
        lock: KeyLock | None,
        options: CopyOptions,
        report: CopyReport,
    ) -> None:
        self._source = source
        self._history = history
        self._lock = lock
        self._options = options
        self._report = report
        self._target = target
        self._there: History | None = None
        self._sizes: dict[str, int] = {}
        if target is not None:
            self._there = History(target, history.key)
            self._sizes = {stored.name.path: stored.size for stored in target.objects(history.key)}

    def run(self, headers: Sequence[StateHeader]) -> None:
        unsigned = self._there.describe_lost_signing() if self._there is not None else None
        if unsigned is not None and self._options.on_notice is not None:
            self._options.on_notice(unsigned)
        for header in headers:
            is_there = self._is_there(header)
            if is_there is None:
                self._note(header.id, is_copied=False)
                continue
            for file in header.files:
                self._carry(f"{header.key}/{file.name}", file, is_proved=is_there)
            if not is_there and self._target is not None and self._lock is not None:
                self._put_state(header, self._target, self._lock)
            self._note(header.id, is_copied=not is_there)

    def _note(self, backup_id: str, *, is_copied: bool) -> None:
        if backup_id not in self._report.copied and backup_id not in self._report.present:
            (self._report.copied if is_copied else self._report.present).append(backup_id)

    # --- what is there -----------------------------------------------------------------------------------

    def _is_there(self, header: StateHeader) -> bool | None:
        """Whether the state is there; None where the backup is, in a later generation.

        Raises:
            ChainError: another backup has its id, or it was forgotten there.
        """
        if self._there is None or self._target is None:
            return False
        what = f"{header.key}@{header.id}"
        if header.id not in self._there.stored_ids:
            if header.id in self._there.forgotten_ids - self._history.forgotten_ids:
                raise ChainError(
                    f"{what} was forgotten in {self._target.base.url} and would not be listed: let ibt prune clear "
                    "it away there first"
                )
            return False
        generation = self._there.generation(header.id)
        if generation < header.generation:
            return False
        if generation == header.generation and self._is_same_state(header):
            return True
        there = self._there.header(header.id)
        if generation > header.generation and there.index_digest == header.index_digest:
            return None
        if generation == header.generation and _without_signing(there) == _without_signing(header):
            return True
        raise ChainError(f"{self._target.base.url} has another backup {what}; nothing of it was changed")

    def _is_same_state(self, header: StateHeader) -> bool:
        assert self._target is not None  # the caller looked
        name = self._history.state_name(header.id)
        size = self._source.base.size(name)
        if self._sizes.get(name) != size:
            return False
        start = min(size, _STATE_START_LEN)
        end = min(size, _STATE_END_LEN)
        return all(
            self._source.base.read_range(name, offset, length)
            == self._target.base.read_range(name, offset, length)
            for offset, length in ((0, start), (size - end, end))
        )

    # --- archives ----------------------------------------------------------------------------------------

    def _carry(self, name: str, file: ArchiveFile, *, is_proved: bool) -> None:
        """Copy an archive unless it is there.

        Args:
            is_proved: its backup is there whole, so that its size is enough.
        """
        size = self._sizes.get(name)
        if size is None:
            if self._target is not None and self._lock is not None:
                self._copy(name, file, self._target)
            self._report.files += 1
            self._report.bytes_copied += file.size
        else:
            self._compare(name, file, size, is_proved=is_proved)
            self._report.files_present += not is_proved
        if self._options.on_progress is not None:
            self._options.on_progress(name, file.size)

    def _copy(self, name: str, file: ArchiveFile, target: Repository) -> None:
        with self._source.base.open(name) as content, target.base.spool(name) as spool:
            while chunk := content.read(_CHUNK_LEN):
                spool.file.write(chunk)
            found = describe(spool.file, file.name, file.role)
            if found != file:
                raise _differs(name, self._source, file, found)
            spool.publish()
        self._sizes[name] = file.size

    def _compare(self, name: str, file: ArchiveFile, size: int, *, is_proved: bool) -> None:
        assert self._target is not None  # or nothing would be there
        found = msgspec.structs.replace(file, size=size)
        if found == file and not is_proved and isinstance(self._target.base, LocalStore):
            # Reading costs little there; elsewhere objects are whole or not seen at all.
            with self._target.base.open(name) as stored:
                found = describe(stored, file.name, file.role)
        if found != file:
            raise _differs(name, self._target, file, found)

    # --- states ------------------------------------------------------------------------------------------

    def _put_state(self, header: StateHeader, target: Repository, lock: KeyLock) -> None:
        name = ObjectName(header.key, header.id, Role.STATE, header.generation, encrypted=target.is_encrypted)
        if header.id in self._history.forgotten_ids and self._there is not None:
            if header.id not in self._there.stored_ids:
                target.put_once(ObjectName(header.key, header.id, Role.FORGOTTEN).path, b"")
        signer = self._source.protection.signer
        with ExitStack() as stack:
            if signer is not None and header.repository != target.repository_id:
                spool = stack.enter_context(target.store.spool(name.path))
                signed = msgspec.structs.replace(header, repository=target.repository_id)
                write_state(spool.file, signed, self._lines(header))
                spool.file.flush()
                _sign(name, spool.file, target, signer)
            else:
                if header.repository:
                    self._copy_signature(name, target)
                spool = stack.enter_context(target.base.spool(name.path))
                with self._source.base.open(name.path) as content:
                    while chunk := content.read(_CHUNK_LEN):
                        spool.file.write(chunk)
                spool.file.flush()
                self._prove_state(header, name.path, spool.file)
            lock.confirm()
            spool.publish()

    def _lines(self, header: StateHeader) -> Iterator[bytes]:
        return (encode_state_line(line, kind=header.kind) for line in self._history.lines(header.id))

    def _prove_state(self, header: StateHeader, name: str, file: BinaryIO) -> None:
        """Read what is about to be published to its end.

        Raises:
            IntegrityError, FormatError: it is damaged.
        """
        store = self._source.store
        if isinstance(store, AgeStore):
            for _ in self._history.lines(header.id):
                pass  # each chunk is authenticated
            if not self._source.protection.identities:
                store.compare_with_copy(name)
            return
        file.seek(0)
        reader = StateReader(file, what=name)
        if reader.header != header:
            raise IntegrityError(
                f"{name} was changed while it was copied",
                path=name,
                expected=header.index_digest,
                actual=reader.header.index_digest,
            )
        for _ in reader:
            pass

    def _copy_signature(self, state: ObjectName, target: Repository) -> None:
        name = signature_name(state).path
        try:
            signature = self._source.base.read(name, max_size=SIGNATURE_LEN_MAX)
        except ObjectNotFoundError:
            return  # it lost it; who asks for signatures will refuse it there as here
        if not target.put_once(name, signature):
            there = target.base.read(name, max_size=SIGNATURE_LEN_MAX)
            if there != signature:
                raise RepositoryError(f"{target.base.url} has another signature {name}; nothing was changed")


def _sign(state: ObjectName, file: BinaryIO, target: Repository, signer: Signer) -> None:
    """Publish the signature of a state, unless a run that was killed left it already.

    Raises:
        RepositoryError: what is there is the signature of something else.
    """
    try:
        put_signature(target.base, state, file, signer)
    except ObjectExistsError:
        digests = Digests()
        file.seek(0)
        while chunk := file.read(_CHUNK_LEN):
            digests.update(chunk)
        name = signature_name(state)
        there = target.base.read(name.path, max_size=SIGNATURE_LEN_MAX)
        try:
            Verifier(frozenset({signer.public_key})).check(there, digests, what=state.path)
        except (IntegrityError, FormatError):
            raise RepositoryError(
                f"{target.base.url} has {name.path}, of a run that was killed, and it is the signature of something "
                "else; ibt prune clears it away there"
            ) from None


def _without_signing(header: StateHeader) -> StateHeader:
    return msgspec.structs.replace(header, repository="")


def _differs(name: str, where: Repository, promised: ArchiveFile, found: ArchiveFile) -> IntegrityError:
    expected, actual = (
        (promised.size, found.size) if promised.size != found.size else (promised.digest, found.digest)
    )
    return IntegrityError(
        f"{name} in {where.base.url}: expected {expected}, got {actual}: not what its state promises",
        path=name,
        expected=expected,
        actual=actual,
    )
