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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Final, cast

from blake3 import blake3

from incremental_backups_tools._version import __version__
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.content import ContentStorer
from incremental_backups_tools.chain.history import History, RepositoryPlace, identities
from incremental_backups_tools.chain.index_cache import IndexCacheWriter, IndexIdentity
from incremental_backups_tools.chain.known_content import ContentTable, KnownContent
from incremental_backups_tools.chain.packing import Packer, PackingResult
from incremental_backups_tools.chain.parent_index import ParentIndex, keep_index, open_parent_index
from incremental_backups_tools.chain.replay import ReplayList
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
    INCREMENTAL,
    MAX_LISTED_PROBLEMS,
    STATE_FORMAT,
    STATE_VERSION,
    ArchiveFile,
    Counts,
    Sizes,
    SourceProblem,
    StateHeader,
    write_state,
)
from incremental_backups_tools.chain.volumes import DEFAULT_VOLUME_SIZE, MIN_VOLUME_SIZE, VolumeSet
from incremental_backups_tools.exceptions import (
    BackupError,
    ObjectExistsError,
    RepositoryNotFoundError,
    SourceError,
    StateFormatError,
)
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.layout import (
    CONFIG_NAME,
    RESTORE_SCRIPT_NAME,
    ObjectName,
    Role,
    is_key,
    make_backup_id,
    validate_key,
)
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.locations import default_cache_root, default_repository
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import IndexDigest, bytes_of, printable, text_or_b64
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.records import RecordReader, RecordWriter
from incremental_backups_tools.tree.source import Source, fs_path_of, walk_source

DEFAULT_LEVEL: Final = 3
# People do delete half of what they have, but seldom; an unmounted disk "deletes" all of it.
DEFAULT_MAX_DELETED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """How a backup is made.

    Attributes:
        key: the name under which the tree is kept; None is the directory's own name.
        rules: what is left out; None is what a ``.exclude`` file in the source names.
        one_file_system: do not enter other file systems.
        volume_size: bytes of uncompressed tar after which a new volume is begun.
        level: zstd's compression level.
        threads: how many compress; None is one for each processor.
        tags: kept with the backup.
        cache_root: directory of the local cache; None is the user's.
        wait_seconds: how long to wait for another process that works on the key.
        dry_run: find out what would be done, and write nothing.
        max_deleted: the share of entries, from 0 to 1, by which a tree may shrink since its newest backup. One
            that shrinks more is most likely not mounted: nothing is published. 1 allows everything.
        on_progress: called with each path and its size in bytes as it is done.
        on_notice: called with a sentence that is worth a word: a lock taken over, a cache not writable.
    """

    key: str | None = None
    rules: ExclusionRules | None = None
    one_file_system: bool = False
    volume_size: int = DEFAULT_VOLUME_SIZE
    level: int = DEFAULT_LEVEL
    threads: int | None = None
    tags: Sequence[str] = ()
    cache_root: str | os.PathLike[str] | None = None
    wait_seconds: float = 0.0
    dry_run: bool = False
    max_deleted: float = DEFAULT_MAX_DELETED
    on_progress: Callable[[bytes, int], None] | None = None
    on_notice: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.volume_size < MIN_VOLUME_SIZE:
            raise ValueError(f"a volume has at least {MIN_VOLUME_SIZE} bytes, not {self.volume_size}")
        if not -7 <= self.level <= 22:
            raise ValueError(f"zstd's levels are -7 to 22, not {self.level}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"at least one thread is needed, not {self.threads}")
        if not 0 <= self.max_deleted <= 1:
            raise ValueError(f"max_deleted is a share from 0 to 1, not {self.max_deleted}")
        if self.key is not None:
            validate_key(self.key)


def full_backup(source: Source, repository: RepositoryPlace | None = None, **options: object) -> BackupReport:
    """Back up a directory as the beginning of a new chain.

    Args:
        source: a path, a :class:`Dir`, or any object with dirtools' interface. A plain path leaves out only
            what a ``.exclude`` file in it or *rules* names.
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


def key_of(source: Source) -> str:
    """The key that *source* has unless another is given: its base name.

    Raises:
        ValueError: that is not a possible key.
    """
    name = os.path.basename(fs_path_of(source))
    if not is_key(name):
        raise ValueError(f"{printable(os.fsencode(name))!r} cannot be a key: name one with key (--key)")
    return name


def _back_up(
    source: Source, place: RepositoryPlace | None, options: BackupOptions, *, force_full: bool
) -> BackupReport:
    fs_path = fs_path_of(source)
    _check_source(fs_path)
    key = options.key if options.key is not None else key_of(source)
    with _full_disk_named(), ExitStack() as stack:
        repository = _open_target(place, options, stack)
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
            return _Run(source, fs_path, repository, key, options, stack, lock).run(force_full=force_full)
        except ResumeConflictError:
            # What a killed run had stored has changed meanwhile. Its volumes stay, named by no state, for prune.
            run = _Run(source, fs_path, repository, key, options, stack, lock, resume=False)
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


def _check_source(fs_path: str) -> None:
    shown = printable(os.fsencode(fs_path))
    try:
        descriptor = os.open(fs_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceError(f"{shown}: there is no such directory") from None
    except NotADirectoryError:
        raise SourceError(f"{shown}: is not a directory") from None
    except OSError as error:
        raise SourceError(f"{shown}: {error.strerror}") from error
    os.close(descriptor)


def _open_target(place: RepositoryPlace | None, options: BackupOptions, stack: ExitStack) -> Repository:
    """The repository to write to; of a dry run a throw-away one where there is none yet."""
    if isinstance(place, Repository):
        return place
    chosen = default_repository() if place is None else place
    if not options.dry_run:
        return Repository.open(chosen, create=True)
    try:
        return Repository.open(chosen)
    except RepositoryNotFoundError:
        return Repository.open(stack.enter_context(tempfile.TemporaryDirectory(prefix="ibt-")), create=True)


class _Run:
    """One backup of one key."""

    def __init__(
        self,
        source: Source,
        fs_path: str,
        repository: Repository,
        key: str,
        options: BackupOptions,
        stack: ExitStack,
        lock: KeyLock | None,
        *,
        resume: bool = True,
    ) -> None:
        self._lock = lock
        self._resume = resume and lock is not None
        self._source = source
        self._fs_path = fs_path
        self._repository = repository
        self._key = key
        self._options = options
        self._stack = stack
        self._start_ns = time.time_ns()
        self._history = History(repository, key)
        self._cache = Cache(
            options.cache_root if options.cache_root is not None else default_cache_root(),
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
        latest = self._history.latest()
        if latest is not None and self._options.key is None:
            self._check_identity(latest)
        self._chain = [] if force_full or latest is None else self._history.chain_to(latest.id)
        self._kind = INCREMENTAL if self._chain else FULL
        self._whole_role = Role.CREATED if self._chain else Role.FULL
        self._choose_id(latest.id if latest is not None else None)
        return self._make()

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
        leftover = find_leftover(objects, after=latest_id, role=self._whole_role)
        if leftover is not None:
            self._used = check_leftover(leftover, self._store, self._fs_path, self._options.on_notice)
        if leftover is not None and self._used is not None:
            self._id, self._next_numbers = leftover.backup_id, leftover.next_numbers

    def _check_identity(self, latest: StateHeader) -> None:
        """Two trees with one base name must not become one chain."""
        source, host = _source_of(latest), latest.host
        if source == os.fsencode(self._fs_path) and host == socket.gethostname():
            return
        raise SourceError(
            f"key {self._key}: its newest backup {latest.id} is of {printable(source)} on {printable(host.encode())}, "
            f"not of {printable(os.fsencode(self._fs_path))} on {socket.gethostname()}; "
            "give key (--key) to say which tree it stands for"
        )

    def _make(self) -> BackupReport:
        lines_file = self._scratch_file()
        index_file = self._scratch_file()
        lines = RecordWriter(lines_file, b"{}", level=1)
        identity_chain = identities(self._chain) + [(self._id, 0)]
        contents = ContentTable.create()
        self._stack.callback(contents.close)
        index = IndexCacheWriter(index_file, note=contents.add)
        parent = self._parent_index()
        known = KnownContent(
            parent=(parent.file, parent.contents) if parent is not None else None,
            own=index,
            own_file=index_file,
            own_contents=contents,
            backup_id=self._id,
        )
        replay = ReplayList()
        self._stack.callback(replay.close)
        digest = IndexDigest(self._chain[-1].index_digest if self._chain else None)
        with ThreadPoolExecutor(self._options.threads or os.cpu_count() or 1) as pool:
            result, archives, bytes_read = self._pack(pool, parent, known, lines, index, replay, digest)
        lines.close()
        index.close(
            IndexIdentity(self._repository.repository_id, self._key, identity_chain, digest.hexdigest())
        )
        # A full of one volume brings the metadata of its directories itself.
        is_one_volume = self._kind == FULL and sum(file.role == Role.FULL for file in archives) < 2
        if not replay.is_empty or (replay.has_directories and not is_one_volume):
            archives.append(self._put_replay(replay))
        header = self._header(result, archives, digest, bytes_read, lines.count)
        files = self._opening_files()
        files += [self._report_file(file) for file in archives]
        files.append(self._put_state(header, lines_file))
        if not self._options.dry_run:
            keep_index(self._cache, index_file, index.token, contents)
        return self._report(header, result, files)

    def _pack(
        self,
        pool: ThreadPoolExecutor,
        parent: ParentIndex | None,
        known: KnownContent,
        lines: RecordWriter,
        index: IndexCacheWriter,
        replay: ReplayList,
        digest: IndexDigest,
    ) -> tuple[PackingResult, list[ArchiveFile], int]:
        whole = self._volumes(self._whole_role, pool, self._used)
        updated = self._volumes(Role.UPDATED, pool) if self._chain else None
        sigvault = self._volumes(Role.SIGVAULT, pool)
        archives = Archives(self._repository.store, self._key, self._chain) if self._chain else None
        storer = ContentStorer(
            whole=whole, updated=updated, sigvault=sigvault, archives=archives, known=known
        )
        packer = Packer(
            kind=self._kind,
            storer=storer,
            whole=whole,
            lines=lines,
            index=index,
            replay=replay,
            digest=digest,
            on_progress=self._options.on_progress,
        )
        walk = walk_source(
            self._source,
            rules=self._options.rules,
            one_file_system=self._options.one_file_system,
            on_problem=packer.problem,
            on_unlisted=packer.unlisted,
            leave_out=self._own_directories(),
            on_left_out=packer.left_out,
        )
        result = packer.pack(walk, parent.entries if parent is not None else ())
        self._check_shrinkage(result)
        files = [file for volumes in (whole, updated, sigvault) if volumes for file in volumes.finish()]
        return result, files, storer.bytes_read

    def _own_directories(self) -> set[tuple[int, int]]:
        """The repository and the cache, should they lie in the source: a backup of them would never end."""
        store = self._repository.store
        places = [self._cache.fs_path] + ([store.url] if isinstance(store, LocalStore) else [])
        found = set()
        for place in places:
            with suppress(OSError):  # not there, so not in the source
                info = os.stat(place)
                found.add((info.st_dev, info.st_ino))
        source = os.stat(self._fs_path)
        if (source.st_dev, source.st_ino) in found:
            raise SourceError(
                f"{printable(os.fsencode(self._fs_path))}: is the repository that it is to be kept in"
            )
        return found

    def _check_shrinkage(self, result: PackingResult) -> None:
        """Stop where the source lost most of its entries: see ``max_deleted``."""
        if not self._chain:
            return
        before, after = self._chain[-1].counts.entries, result.counts["entries"]
        if before - after > before * self._options.max_deleted:
            raise SourceError(
                f"{printable(os.fsencode(self._fs_path))}: has {after} entries, the backup before had {before}: is it "
                f"mounted? Nothing was backed up; allow it with max_deleted (--max-deleted 100%)"
            )

    def _volumes(self, role: Role, pool: ThreadPoolExecutor, used: UsedVolumes | None = None) -> VolumeSet:
        volumes = VolumeSet(
            self._store,
            ObjectName(self._key, self._id, role, volume=self._next_numbers.get(role, 0)),
            volume_size=self._options.volume_size,
            level=self._options.level,
            pool=pool,
            used=used,
        )
        self._stack.callback(volumes.close)
        return volumes

    def _parent_index(self) -> ParentIndex | None:
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
        parent = open_parent_index(self._cache, expected, lambda: resolve(states()), self._scratch_file)
        self._stack.callback(parent.close)
        return parent

    def _scratch_file(self) -> BinaryIO:
        return cast(BinaryIO, self._stack.enter_context(tempfile.TemporaryFile(prefix="ibt-backup-")))

    # --- publishing --------------------------------------------------------------------------------------

    def _put_replay(self, replay: ReplayList) -> ArchiveFile:
        name = ObjectName(self._key, self._id, Role.REPLAY)
        with self._store.spool(name.path) as spool:
            replay.write(spool.file)
            file = _describe(spool.file, name.file_name, str(Role.REPLAY))
            try:
                spool.publish()
            except ObjectExistsError:
                # The killed run that this one goes on with was past this point: the list must be the same.
                with self._store.open(name.path) as stored:
                    if _describe(stored, file.name, file.role) != file:
                        raise ResumeConflictError("the metadata changed since it was stored") from None
        return file

    def _opening_files(self) -> list[ReportFile]:
        """``ibt.json`` and ``RESTORE.sh``, where this is the repository's first backup."""
        if self._options.dry_run:
            return []
        data = restore_script()
        files = []
        if self._repository.put_once(RESTORE_SCRIPT_NAME, data):
            config = self._store.read(CONFIG_NAME)
            for name, role, content in (
                (CONFIG_NAME, "config", config),
                (RESTORE_SCRIPT_NAME, "script", data),
            ):
                digest = blake3(content).hexdigest()
                files.append(ReportFile(name, len(content), role, digest, self._local_path(name)))
        return files

    def _put_state(self, header: StateHeader, lines_file: BinaryIO) -> ReportFile:
        name = ObjectName(self._key, self._id, Role.STATE)
        lines_file.seek(0)
        with self._store.spool(name.path) as spool:
            write_state(spool.file, header, iter(RecordReader(lines_file, what="state being written")))
            file = _describe(spool.file, name.file_name, str(Role.STATE))
            if self._lock is not None:
                # A process that was stopped for minutes may have lost it: then another's backup goes first.
                self._lock.confirm()
            spool.publish()
        return self._report_file(file)

    def _header(
        self,
        result: PackingResult,
        archives: list[ArchiveFile],
        digest: IndexDigest,
        bytes_read: int,
        line_count: int,
    ) -> StateHeader:
        source, source_b64 = text_or_b64(os.fsencode(self._fs_path))
        parent = self._chain[-1] if self._chain else None
        return StateHeader(
            format=STATE_FORMAT,
            version=STATE_VERSION,
            kind=self._kind,
            key=self._key,
            id=self._id,
            parent=parent.id if parent is not None else None,
            parent_index_digest=parent.index_digest if parent is not None else None,
            index_digest=digest.hexdigest(),
            lines=line_count,
            references=result.references,
            files=archives,
            source=source,
            source_b64=source_b64,
            host=socket.gethostname(),
            start_ns=self._start_ns,
            end_ns=time.time_ns(),
            tags=list(self._options.tags),
            counts=Counts(**result.counts),
            bytes=Sizes(total=result.total_bytes, read=bytes_read, added=sum(file.size for file in archives)),
            problem_count=len(result.problems),
            problems=[_source_problem(problem) for problem in result.problems[:MAX_LISTED_PROBLEMS]],
            tool=f"incremental-backups-tools {__version__}",
        )

    def _report(self, header: StateHeader, result: PackingResult, files: list[ReportFile]) -> BackupReport:
        return BackupReport(
            backup_key=self._key,
            backup_date=self._id,
            kind=self._kind,
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
        store = self._repository.store
        return os.path.join(store.url, name) if isinstance(store, LocalStore) else None


def _describe(file: BinaryIO, name: str, role: str) -> ArchiveFile:
    """Size and digest of a file from its beginning to its end."""
    file.flush()
    file.seek(0)
    hasher = blake3()
    size = 0
    while chunk := file.read(1 << 20):
        hasher.update(chunk)
        size += len(chunk)
    return ArchiveFile(name, role, size, hasher.hexdigest())


def _source_of(header: StateHeader) -> bytes:
    try:
        return bytes_of(header.source, header.source_b64) or b""
    except ValueError as error:
        raise StateFormatError(f"{header.key}@{header.id}: its source cannot be read: {error}") from None


def _source_problem(problem: Problem) -> SourceProblem:
    path, path_b64 = text_or_b64(problem.path)
    return SourceProblem(path=path, path_b64=path_b64, message=problem.message)
