"""Making a backup: from a source and the newest index to volumes, and at the very end a state.

The order of writing is the promise: volumes, replay list, state. Whatever happens before the state is there,
the repository holds the backups that it held before.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from functools import partial

from blake3 import blake3

from incremental_backups_tools._version import __version__
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.at_hand import (
    can_read_newest,
    chain_at_hand,
    drop_outdated,
    require_newest,
)
from incremental_backups_tools.chain.backup_options import BackupOptions
from incremental_backups_tools.chain.backup_source import BackupSource, key_of, open_source
from incremental_backups_tools.chain.content import ContentStorer
from incremental_backups_tools.chain.draft import Draft
from incremental_backups_tools.chain.history import History, RepositoryPlace, identities
from incremental_backups_tools.chain.index_cache import IndexIdentity
from incremental_backups_tools.chain.merged_deltas import MergedDeltas
from incremental_backups_tools.chain.newest import describe_rollback, remember_newest
from incremental_backups_tools.chain.packing import Packer, PackingResult
from incremental_backups_tools.chain.parent_index import ParentIndex, open_parent_index
from incremental_backups_tools.chain.report import BackupReport, ReportFile
from incremental_backups_tools.chain.resolve import resolve
from incremental_backups_tools.chain.resume import (
    ResumeConflictError,
    UsedVolumes,
    check_leftover,
    find_leftover,
)
from incremental_backups_tools.chain.script import restore_script
from incremental_backups_tools.chain.state import (
    FULL,
    MAX_LISTED_PROBLEMS,
    STATE_FORMAT,
    STATE_VERSION,
    ArchiveFile,
    Counts,
    Sizes,
    SourceProblem,
    StateHeader,
)
from incremental_backups_tools.chain.volumes import VolumeSet, compressing_pool, default_volume_size
from incremental_backups_tools.exceptions import (
    BackupError,
    RepositoryNotFoundError,
    SourceError,
)
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.layout import (
    CONFIG_NAME,
    KEY_NAME,
    RESTORE_SCRIPT_NAME,
    Role,
    make_backup_id,
    parse_backup_id,
)
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.locations import default_repository
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.protection import NO_PROTECTION
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import text_or_b64
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.source import Source


def full_backup(source: Source, repository: RepositoryPlace | None = None, **options: object) -> BackupReport:
    """Back up a directory as the beginning of a new chain.

    Args:
        source: a path, a URL or :class:`StoreAddress`, a :class:`Dir`, or any object with dirtools' interface. A
            plain path or URL leaves out only what a ``.exclude`` file in it or *rules* names.
        repository: a directory or an fsspec URL, made where there is nothing yet; None is a directory of the
            user's own.
        options: as :class:`BackupOptions`.

    Returns:
        The report; ``report.files`` is what an uploader must carry away.

    Raises:
        SourceError: the source is missing, unreadable, or not the tree that the key stands for.
        RepositoryError, FormatError: the repository cannot be used.
        TypeError, ValueError: an option is none, or out of range.
    """
    return _back_up(source, repository, BackupOptions(**options), force_full=True)  # type: ignore[arg-type]


def incremental_backup(
    source: Source, repository: RepositoryPlace | None = None, **options: object
) -> BackupReport:
    """Back up what has changed since the newest backup of the key; a full where there is none.

    Arguments, result and errors as :func:`full_backup`; and:

    Raises:
        ChainError, IntegrityError: the newest backup's states do not form a chain.
    """
    return _back_up(source, repository, BackupOptions(**options), force_full=False)  # type: ignore[arg-type]


def _back_up(
    source: Source, place: RepositoryPlace | None, options: BackupOptions, *, force_full: bool
) -> BackupReport:
    tree = open_source(source, options)
    key = options.key if options.key is not None else key_of(source)
    with _full_disk_named(), ExitStack() as stack:
        repository = _open_target(place, options, stack)
        repository.require_writable()
        lock = None
        if not options.dry_run:
            lock = KeyLock.acquire(
                repository.store,
                key,
                operation="backup",
                wait_seconds=options.wait_seconds,
                on_notice=options.on_notice,
            )
            stack.enter_context(lock)
            repository.clean_temporaries(key)
            stack.push(partial(_clean_after_interrupt, repository, key))
        try:
            return _Run(tree, repository, key, options, stack, lock).run(force_full=force_full)
        except ResumeConflictError:
            # What a killed run had stored has changed meanwhile. Its volumes stay, named by no state, for prune.
            run = _Run(tree, repository, key, options, stack, lock, resume=False)
            return run.run(force_full=force_full)


def _clean_after_interrupt(
    repository: Repository, key: str, kind: type[BaseException] | None, *_: object
) -> None:
    """Ctrl-C comes between any two steps, also between the making of a file and the noting of it."""
    if kind is not None and not issubclass(kind, Exception):
        repository.clean_temporaries(key)


@contextmanager
def _full_disk_named() -> Iterator[None]:
    """Say which disk is full: an error of the repository names it already, one of temporary files does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = tempfile.gettempdir()
        raise BackupError(f"no space left for temporary files in {where} ({error.strerror})") from error


def _open_target(place: RepositoryPlace | None, options: BackupOptions, stack: ExitStack) -> Repository:
    """The repository to write to; of a dry run a throw-away one where there is none yet."""
    if isinstance(place, Repository):
        return place
    chosen = default_repository() if place is None else place
    open_place = partial(
        Repository.open, protection=options.protection or NO_PROTECTION, cache_root=options.cache_root
    )
    if not options.dry_run:
        return open_place(chosen, create=True)
    try:
        return open_place(chosen)
    except RepositoryNotFoundError:
        return open_place(stack.enter_context(tempfile.TemporaryDirectory(prefix="ibt-")), create=True)


class _Run:
    """One backup of one key."""

    def __init__(
        self,
        source: BackupSource,
        repository: Repository,
        key: str,
        options: BackupOptions,
        stack: ExitStack,
        lock: KeyLock | None,
        *,
        resume: bool = True,
    ) -> None:
        self._lock = lock
        # What a killed run has encrypted cannot be compared with the source, not without an identity.
        self._resume = resume and source.can_resume and lock is not None and not repository.is_encrypted
        self._source = source
        self._repository = repository
        self._key = key
        self._options = options
        self._stack = stack
        self._start_ns = time.time_ns()
        self._chain: list[StateHeader] = []
        self._history = History(repository, key)
        self._cache = Cache(
            options.cache_root if options.cache_root is not None else repository.cache_root,
            repository.repository_id,
            key,
            on_problem=options.on_notice,
        )
        # Where volumes go: a dry run builds them too, to know their sizes, and throws them away.
        self._store = repository.store
        if options.dry_run:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="ibt-dry-run-"))
            self._store = LocalStore(scratch)

    def run(self, *, force_full: bool) -> BackupReport:
        for notice in (
            describe_rollback(self._repository, self._history),
            self._history.describe_lost_signing(),
        ):
            if notice is not None and self._options.on_notice is not None:
                self._options.on_notice(notice)
        newest = self._history.newest_point()
        # A full stands on nothing; where it cannot be read, of which tree the newest backup is cannot be told.
        if not force_full or can_read_newest(self._repository, self._history):
            require_newest(self._repository, self._history)
            self._stand_on(self._history.latest(), force_full=force_full)
        self._choose_id(newest[0] if newest is not None else None)
        return self._make()

    def _stand_on(self, latest: StateHeader | None, *, force_full: bool) -> None:
        if latest is not None and self._options.key is None:
            self._source.check_identity(latest)
        if latest is not None and not force_full:
            self._chain = chain_at_hand(self._repository, self._history, latest.id)
            if self._is_old(self._chain[0]):
                self._chain = []

    def _is_old(self, full: StateHeader) -> bool:
        """Whether it is time for another full."""
        every = self._options.full_every
        return every is not None and self._start_ns - parse_backup_id(full.id) >= every.total_seconds() * 1e9

    def _choose_id(self, latest_id: str | None) -> None:
        """A new id, or that of a killed run whose volumes can be used."""
        objects = self._repository.objects(self._key)
        # Also after what killed runs left: their names are taken.
        newest = max((stored.name.backup_id for stored in objects), default=None)
        self._id = make_backup_id(self._start_ns, after=newest)
        self._used: UsedVolumes | None = None
        self._next_numbers: dict[Role, int] = {}
        if not self._resume:
            return
        leftover = find_leftover(objects, after=latest_id, role=Role.CREATED if self._chain else Role.FULL)
        if leftover is not None:
            self._used = check_leftover(leftover, self._store, self._source.place, self._options.on_notice)
        if leftover is not None and self._used is not None:
            self._id, self._next_numbers = leftover.backup_id, leftover.next_numbers

    def _make(self) -> BackupReport:
        with compressing_pool(self._options.threads) as pool:
            draft = Draft(self._store, self._key, self._id, chain=self._chain, stack=self._stack, pool=pool)
            parent = self._parent_index(draft)
            if parent is not None:
                parent.entries.read_ahead(pool)
            result, archives, bytes_read = self._pack(pool, draft, parent)
            archives = draft.finish(self._repository.repository_id, archives)
        header = self._header(draft, result, archives, bytes_read)
        files = self._opening_files()
        files += [self._report_file(file) for file in archives]
        # A process that was stopped for minutes may have lost its lock: then another's backup goes first.
        confirm = self._lock.confirm if self._lock is not None else None
        signer = self._repository.protection.signer
        files += map(self._report_file, draft.put_state(header, confirm=confirm, signer=signer))
        if not self._options.dry_run:
            draft.keep_index(self._cache)
            self._tidy_cache(header)
        return self._report(header, result, files)

    def _tidy_cache(self, header: StateHeader) -> None:
        remember_newest(self._cache, self._repository, self._key, (header.id, header.generation))
        if self._repository.is_encrypted:
            history = History(self._repository, self._key)
            drop_outdated(self._repository, history, [*self._chain, header])

    def _pack(
        self, pool: Executor | None, draft: Draft, parent: ParentIndex | None
    ) -> tuple[PackingResult, list[ArchiveFile], int]:
        whole = self._volumes(draft, draft.whole_role, pool, self._used)
        updated = self._volumes(draft, Role.UPDATED, pool) if self._chain else None
        sigvault = self._volumes(draft, Role.SIGVAULT, pool)
        archives = Archives(self._repository.store, self._key, self._chain) if self._chain else None
        moved = self._source.moved_files(parent) if parent is not None else None
        if moved is not None:
            self._stack.callback(moved.close)
        storer = ContentStorer(
            whole=whole,
            updated=updated,
            sigvault=sigvault,
            archives=archives,
            deltas=MergedDeltas(self._points(), archives) if archives is not None else None,
            known=draft.known_content(parent),
            moved=moved,
            reads_old=self._repository.store.is_at_hand,
        )
        packer = Packer(
            is_full=draft.kind == FULL,
            storer=storer,
            whole=whole,
            recorder=draft.recorder,
            on_progress=self._options.on_progress,
        )
        walk = self._source.walk(
            options=self._options,
            repository=self._repository,
            cache_path=self._cache.fs_path,
            on_problem=packer.problem,
            on_unlisted=packer.unlisted,
            on_left_out=packer.left_out,
        )
        result = packer.pack(walk, parent.entries if parent is not None else None, pool=pool)
        self._check_shrinkage(draft)
        files = [file for volumes in (whole, updated, sigvault) if volumes for file in volumes.finish()]
        return result, files, storer.bytes_read

    def _points(self) -> list[str]:
        """Ids of the points in time of the chain that is stood on."""
        return [header.id for header in self._chain if header.id not in self._history.forgotten_ids]

    def _check_shrinkage(self, draft: Draft) -> None:
        """Stop where the source lost most of its entries: see ``max_deleted``."""
        if not self._chain:
            return
        before, after = self._chain[-1].counts.entries, draft.recorder.tally.counts["entries"]
        if before - after > before * self._options.max_deleted:
            raise SourceError(
                f"{self._source.shown}: has {after} entries, the backup before had {before}: is it "
                f"mounted? Nothing was backed up; allow it with max_deleted (--max-deleted 100%)"
            )

    def _volumes(
        self, draft: Draft, role: Role, pool: Executor | None, used: UsedVolumes | None = None
    ) -> VolumeSet:
        volumes = VolumeSet(
            self._store,
            draft.name(role, self._next_numbers.get(role, 0)),
            volume_size=self._options.volume_size or default_volume_size(self._repository.store),
            level=self._options.level,
            pool=pool,
            used=used,
        )
        self._stack.callback(volumes.close)
        return volumes

    def _parent_index(self, draft: Draft) -> ParentIndex | None:
        """The parent's resolved index: from the cache, or rebuilt from the states; None of a full."""
        if not self._chain:
            return None
        expected = IndexIdentity(
            self._repository.repository_id,
            self._key,
            identities(self._chain),
            self._chain[-1].index_digest,
        )
        states = partial(self._history.states, self._chain[-1].id)
        parent = open_parent_index(self._cache, expected, lambda: resolve(states()), draft.scratch_file)
        self._stack.callback(parent.close)
        return parent

    # --- publishing --------------------------------------------------------------------------------------

    def _opening_files(self) -> list[ReportFile]:
        """``ibt.json``, its key and ``RESTORE.sh``, where this is the repository's first backup."""
        if self._options.dry_run:
            return []
        data = restore_script()
        files = []
        if self._repository.put_once(RESTORE_SCRIPT_NAME, data):
            contents = [(CONFIG_NAME, "config", self._store.read(CONFIG_NAME))]
            if self._repository.protection.passphrase is not None:
                contents.append((KEY_NAME, "key", self._store.read(KEY_NAME)))
            for name, role, content in (*contents, (RESTORE_SCRIPT_NAME, "script", data)):
                digest = blake3(content).hexdigest()
                files.append(ReportFile(name, len(content), role, digest, self._local_path(name)))
        return files

    def _header(
        self, draft: Draft, result: PackingResult, archives: list[ArchiveFile], bytes_read: int
    ) -> StateHeader:
        source, source_b64 = text_or_b64(os.fsencode(self._source.place))
        parent, tally = draft.parent, draft.recorder.tally
        return StateHeader(
            format=STATE_FORMAT,
            version=STATE_VERSION,
            kind=draft.kind,
            key=self._key,
            id=self._id,
            parent=parent.id if parent is not None else None,
            parent_index_digest=parent.index_digest if parent is not None else None,
            index_digest=draft.index_digest,
            lines=draft.line_count,
            references=tally.references,
            files=archives,
            source=source,
            source_b64=source_b64,
            host=socket.gethostname(),
            start_ns=self._start_ns,
            end_ns=time.time_ns(),
            tags=list(self._options.tags),
            counts=Counts(**tally.counts),
            bytes=Sizes(total=tally.total_bytes, read=bytes_read, added=sum(file.size for file in archives)),
            problem_count=len(result.problems),
            problems=[_source_problem(problem) for problem in result.problems[:MAX_LISTED_PROBLEMS]],
            tool=f"incremental-backups-tools {__version__}",
        )

    def _report(self, header: StateHeader, result: PackingResult, files: list[ReportFile]) -> BackupReport:
        return BackupReport(
            backup_key=self._key,
            backup_date=self._id,
            kind=header.kind,
            parent=header.parent,
            repository=self._repository.store.url,
            files=tuple(files),
            counts=header.counts,
            bytes=header.bytes,
            problems=tuple(result.problems),
            notices=tuple(result.notices),
            duration=(time.time_ns() - self._start_ns) / 1e9,
            dry_run=self._options.dry_run,
        )

    def _report_file(self, file: ArchiveFile) -> ReportFile:
        path = f"{self._key}/{file.name}"
        return ReportFile(path, file.size, file.role, file.digest, self._local_path(path))

    def _local_path(self, name: str) -> str | None:
        store = self._repository.base
        return os.path.join(store.url, name) if isinstance(store, LocalStore) else None


def _source_problem(problem: Problem) -> SourceProblem:
    path, path_b64 = text_or_b64(problem.path)
    return SourceProblem(path=path, path_b64=path_b64, message=problem.message)
