"""Checking a repository: that everything it promises is there, and with ``read_data`` that it restores."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from blake3 import blake3

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.in_order import InOrder
from incremental_backups_tools.chain.look import point_header
from incremental_backups_tools.chain.newest import describe_rollback
from incremental_backups_tools.chain.rebuild import Contents
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve_versions
from incremental_backups_tools.chain.script import restore_script
from incremental_backups_tools.chain.state import ArchiveFile, StateHeader
from incremental_backups_tools.exceptions import BackupError, ObjectNotFoundError
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.layout import RESTORE_SCRIPT_NAME, Role
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import FILE, printable

_CHUNK_LEN = 1 << 20
_MAX_SCRIPT_LEN = 1 << 20
# Files of up to a length are rebuilt many at a time, so many or so many bytes.
_MAX_SMALL_LEN: Final = 1 << 20
_BATCH_FILES: Final = 256
_BATCH_LEN: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it was promised: what (a file of the repository, or KEY@ID and a path) and how."""

    what: str
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What a check looked at and found.

    Attributes:
        backups, archives, entries, files_read: how many states, archive files and entries were checked, and how
            many contents rebuilt.
        bytes_read: of archive files.
        faults: what is wrong. With any, exit status 1.
        notices: what is odd but harms nothing, such as volumes that no state names.
    """

    backups: int = 0
    archives: int = 0
    entries: int = 0
    files_read: int = 0
    bytes_read: int = 0
    faults: list[Fault] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backups": self.backups,
            "archives": self.archives,
            "entries": self.entries,
            "files_read": self.files_read,
            "bytes_read": self.bytes_read,
            "faults": [{"what": fault.what, "message": fault.message} for fault in self.faults],
            "notices": self.notices,
        }


def verify(
    repository: RepositoryPlace | None = None,
    key: str | None = None,
    *,
    at: str | datetime | None = None,
    read_data: bool = False,
    read_data_share: float = 1.0,
    threads: int | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> VerifyReport:
    """Check every backup of a repository, of one key, or one backup with all it stands on.

    Every state is read to its trailer and chained up to the index digest that it promises; every archive file
    is read and compared with its size and BLAKE3.

    Args:
        read_data: also rebuild every version of every file and compare it with its digest.
        read_data_share: with *read_data*, the share of versions to rebuild, chosen at random, from 0 to 1.
        threads: how many read and rebuild; None is one a processor.
        on_progress: called with the name of each archive file or path, and bytes; by any thread, one at a time.

    Raises:
        RepositoryNotFoundError: there is no repository.
        ChainError: there is no such key or point in time.
    """
    if not 0 <= read_data_share <= 1:
        raise ValueError(f"a share is from 0 to 1, not {read_data_share}")
    if threads is not None and threads < 1:
        raise ValueError(f"at least one thread is needed, not {threads}")
    target = open_repository(repository)
    report = VerifyReport()
    share = read_data_share if read_data else 0.0
    with InOrder(threads or os.cpu_count() or 1) as work:
        if key is not None and at is not None:
            history, header = point_header(target, key, at)
            _Verification(target, history, share, report, work, on_progress).check_points([header.id])
            return report
        if key is None:
            _check_script(target, report)
        # Also keys without any backup: volumes whose states are all gone must not pass for nothing at all.
        for history in (
            [open_history(target, key)] if key is not None else [History(target, k) for k in target.keys()]
        ):
            check = _Verification(target, history, share, report, work, on_progress)
            check.check_points(history.stored_ids)
            check.check_newest()
            check.note_unnamed()
    return report


def _check_script(repository: Repository, report: VerifyReport) -> None:
    """RESTORE.sh runs as whoever restores: that it is another than this version's deserves a word.

    No fault: the version that began the repository may have had another.
    """
    script = restore_script()
    try:
        found = repository.store.read(RESTORE_SCRIPT_NAME, max_size=_MAX_SCRIPT_LEN)
    except ObjectNotFoundError:
        found = None
    except BackupError as error:
        report.faults.append(Fault(RESTORE_SCRIPT_NAME, str(error)))
        return
    if found != script and any(repository.backups(key) for key in repository.keys()):
        state = (
            "is not there; the next backup puts it back"
            if found is None
            else "is not the one of this version; look at it before you run it"
        )
        report.notices.append(f"{RESTORE_SCRIPT_NAME}: {state}")


_Version = tuple[StateHeader, ResolvedEntry]


class _Verification:
    """The check of one key.

    Args:
        share: of the versions that are rebuilt.
    """

    def __init__(
        self,
        repository: Repository,
        history: History,
        share: float,
        report: VerifyReport,
        work: InOrder,
        on_progress: Callable[[str, int], None] | None,
    ) -> None:
        self._repository = repository
        self._history = history
        self._share = share
        self._report = report
        self._work = work
        self._on_progress = on_progress
        self._progress_lock = threading.Lock()
        self._random = random.Random()
        self._named: set[str] = set()
        self._checked: set[str] = set()

    def check_points(self, backup_ids: Sequence[str]) -> None:
        """These backups and all that they stand on, each of them once."""
        # From the newest on: most backups are checked on the way to the newest of their chain.
        for backup_id in reversed(backup_ids):
            if backup_id not in self._checked:
                self._check_chain(backup_id)
        self._work.finish()

    def _check_chain(self, backup_id: str) -> None:
        try:
            chain = self._history.chain_to(backup_id)
        except BackupError as error:
            self._check_header(backup_id)
            self._fault(f"{self._history.key}@{backup_id}", error)
            return
        new = [header for header in chain if header.id not in self._checked]
        for header in new:
            self._check_header(header.id)
        try:
            self._check_index(chain, {header.id for header in new})
        except BackupError as error:
            self._fault(f"{self._history.key}@{backup_id}", error)

    def _check_header(self, backup_id: str) -> None:
        self._checked.add(backup_id)
        self._report.backups += 1
        try:
            header = self._history.header(backup_id)
        except BackupError:
            return  # told of by whoever asked for its chain
        self._check_stored_state(backup_id)
        for file in header.files:
            self._check_archive(file)

    def _check_stored_state(self, backup_id: str) -> None:
        """Where states are read from this machine's copies, whether the store still has what they are copies of."""
        store = self._repository.store
        if isinstance(store, AgeStore):
            name = self._history.state_name(backup_id)
            try:
                store.compare_with_copy(name)
            except BackupError as error:
                self._fault(name, error)

    def _check_archive(self, file: ArchiveFile) -> None:
        name = f"{self._history.key}/{file.name}"
        self._named.add(file.name)
        self._report.archives += 1
        self._work.submit(partial(self._digest_of, name), partial(self._compare_archive, name, file))

    def _compare_archive(self, name: str, file: ArchiveFile, found: tuple[int, str] | BackupError) -> None:
        if isinstance(found, BackupError):
            self._fault(name, found)
            return
        size, digest = found
        self._report.bytes_read += size
        if size != file.size:
            self._fault(name, f"expected {file.size} bytes, found {size}")
        elif digest != file.digest:
            self._fault(name, f"expected BLAKE3 {file.digest}, got {digest}")

    def _digest_of(self, name: str) -> tuple[int, str] | BackupError:
        """In any thread: size and BLAKE3 of an archive file."""
        hasher = blake3()
        size = 0
        try:
            with self._repository.base.open(name) as stream:
                while not self._work.stop.is_set() and (chunk := stream.read(_CHUNK_LEN)):
                    hasher.update(chunk)
                    size += len(chunk)
                    self._progress(name, len(chunk))
        except BackupError as error:
            return error
        return size, hasher.hexdigest()

    def _check_index(self, chain: list[StateHeader], new: set[str]) -> None:
        """Resolve the chain, every state on the way, and rebuild what the *new* backups brought."""
        contents = Contents(Archives(self._repository.store, self._history.key, chain))
        batch: list[_Version] = []
        batch_len = 0
        try:
            for version in self._new_versions(chain, new):
                if version[1].entry.size > _MAX_SMALL_LEN:
                    self._check_contents(contents, [version])
                    continue
                batch.append(version)
                batch_len += version[1].entry.size
                if len(batch) >= _BATCH_FILES or batch_len >= _BATCH_LEN:
                    self._check_contents(contents, batch)
                    batch, batch_len = [], 0
        finally:
            # What comes before a damaged place in a state is looked at all the same.
            self._check_contents(contents, batch)

    def _new_versions(self, chain: list[StateHeader], new: set[str]) -> Iterator[_Version]:
        """Those versions of the *new* backups that are to be rebuilt; counts all of them."""
        own_files = [{file.name for file in header.files} for header in chain]
        for level, resolved in resolve_versions(self._history.states(chain[-1].id)):
            if chain[level].id in new:
                self._report.entries += 1
                if _is_new(resolved, own_files[level]) and self._random.random() < self._share:
                    yield chain[level], resolved

    def _check_contents(self, contents: Contents, versions: list[_Version]) -> None:
        if versions:
            function = partial(self._digests_of, contents, [resolved for _, resolved in versions])
            self._work.submit(function, partial(self._compare_contents, versions))

    def _digests_of(self, contents: Contents, resolved: list[ResolvedEntry]) -> list[bytes | BackupError]:
        """In any thread: the BLAKE3 of the content of each, or why it cannot be rebuilt."""
        if resolved[0].entry.size > _MAX_SMALL_LEN:
            try:
                return [self._digest(contents, resolved[0])]
            except BackupError as error:
                return [error]
        return [
            content if isinstance(content, BackupError) else blake3(content).digest()
            for content in contents.read_small(resolved)
        ]

    def _digest(self, contents: Contents, resolved: ResolvedEntry) -> bytes:
        hasher = blake3()
        with closing(contents.iter_chunks(resolved, self._work.idle)) as chunks:
            for chunk in chunks:
                hasher.update(chunk)
                if self._work.stop.is_set():
                    break
        return hasher.digest()

    def _compare_contents(self, versions: list[_Version], digests: list[bytes | BackupError]) -> None:
        for (header, resolved), digest in zip(versions, digests, strict=True):
            path = printable(resolved.path)
            what = f"{header.key}@{header.id} {path}"
            if isinstance(digest, BackupError):
                self._fault(what, digest)
                continue
            self._report.files_read += 1
            self._progress(path, resolved.entry.size)
            if digest != resolved.content_digest:
                self._fault(what, "its content is not the one that its digest promises")

    def check_newest(self) -> None:
        """Whether the newest backup that this machine has seen is there."""
        rollback = describe_rollback(self._repository, self._history)
        if rollback is not None:
            self._fault(self._history.key, rollback)

    def note_unnamed(self) -> None:
        """Files that look like a backup's and that no state names: of a run that was killed, most likely."""
        for stored in self._repository.objects(self._history.key):
            name = stored.name
            if name.role in (Role.STATE, Role.STATE_SIGNATURE, Role.FORGOTTEN):
                continue
            if name.file_name not in self._named:
                self._report.notices.append(f"{name.path}: no backup names this file ({stored.size} bytes)")

    def _fault(self, what: str, error: BackupError | str) -> None:
        self._report.faults.append(Fault(what, str(error)))

    def _progress(self, what: str, size: int) -> None:
        if self._on_progress is not None:
            with self._progress_lock:
                self._on_progress(what, size)


def _is_new(resolved: ResolvedEntry, own_files: set[str]) -> bool:
    """Whether the last step to this content was made by the backup whose files these are."""
    entry = resolved.entry
    return (
        entry.type == FILE
        and entry.link_of is None
        and bool(resolved.data)
        and (resolved.data[-1].file in own_files or entry.source is not None)
    )
