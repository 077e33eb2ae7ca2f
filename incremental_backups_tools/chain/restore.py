"""Restoring a point in time: each file from its own locations, written once, verified, then named."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import msgspec
from blake3 import blake3

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import (
    History,
    RepositoryPlace,
    identities,
    open_history,
    open_repository,
)
from incremental_backups_tools.chain.index_cache import IndexIdentity
from incremental_backups_tools.chain.index_search import search_cached_index
from incremental_backups_tools.chain.rebuild import Contents
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.restore_plan import needed_archives
from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import (
    BackupError,
    IntegrityError,
    ObjectNotFoundError,
    UnsafePathError,
)
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.fidelity import metadata_differences
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import MetadataApplier, capture, type_of
from incremental_backups_tools.tree.parallel_writer import ParallelWriter
from incremental_backups_tools.tree.reading import CHUNK_LEN
from incremental_backups_tools.tree.selection import Selection
from incremental_backups_tools.tree.walk import Walk
from incremental_backups_tools.tree.writer import FATAL_ERRORS

Overwrite = Literal["never", "changed", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How a backup is restored.

    Attributes:
        at: which point in time: see ``points/when.py``; None is the newest.
        paths: paths or glob patterns to restore; None is everything.
        overwrite: what happens to files that are there: ``never`` touched; replaced if ``changed`` in content
            (the default); ``always`` replaced.
        delete: remove what is in the destination and not in the backup, below the restored paths.
        numeric_owner: take owners by number, not by name.
        verify_metadata: when all is in place, compare the metadata of every restored name with its entry.
        durable: flush everything to the disk before reporting success.
        dry_run: change nothing; report what would be done.
        threads: how many fetch, decompress and write besides the one that plans; 1 is all in one. None is one a
            processor.
        on_progress: called with each path and its size in bytes when it is in place.
    """

    at: str | datetime | None = None
    paths: Iterable[str | bytes | os.PathLike[str]] | None = None
    overwrite: Overwrite = "changed"
    delete: bool = False
    numeric_owner: bool = False
    verify_metadata: bool = False
    durable: bool = True
    dry_run: bool = False
    threads: int | None = None
    on_progress: Callable[[bytes, int], None] | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"at least one thread is needed, not {self.threads}")
        if self.overwrite not in get_args(Overwrite):
            raise ValueError(f"overwrite is never, changed or always, not {self.overwrite!r}")


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        written, unchanged, kept, removed: how many names were restored; were right already; were there and left
            alone by ``overwrite='never'``; were removed by ``delete``.
        bytes_written: of file contents.
        problems: names that were not restored, and why. With any, exit status 3.
        warnings: metadata that the destination could not take, one for each kind with the first path.
    """

    backup_key: str
    backup_date: str
    destination: str
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    removed: int = 0
    bytes_written: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    duration: float = 0.0
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "backup_key": self.backup_key,
            "backup_date": self.backup_date,
            "destination": printable(os.fsencode(self.destination)),
            "written": self.written,
            "unchanged": self.unchanged,
            "kept": self.kept,
            "removed": self.removed,
            "bytes_written": self.bytes_written,
            "problems": [
                {"path": printable(problem.path), "message": problem.message} for problem in self.problems
            ],
            "warnings": self.warnings,
            "duration": round(self.duration, 3),
            "dry_run": self.dry_run,
        }


def restore_backup(
    key: str,
    dest: str | os.PathLike[str],
    *,
    repository: RepositoryPlace | None = None,
    **options: Any,
) -> RestoreReport:
    """Restore one point in time of *key* into the directory *dest*.

    Nothing outside *dest* is written to, whatever the backup or the destination holds. A file that cannot be
    restored is listed in the report's problems and what was in its place stays as it was.

    Args:
        repository: a directory or an fsspec URL; None is the user's own directory.
        options: as :class:`RestoreOptions`.

    Raises:
        RepositoryNotFoundError: there is no repository.
        ChainError: no such key, point in time or path, or a state is missing.
        FormatError, IntegrityError: a state is damaged.
        OSError: *dest* cannot be made or written to.
    """
    chosen = RestoreOptions(**options)
    start = time.monotonic()
    target = open_repository(repository)
    history = open_history(target, key)
    backup_id = select_backup(history.backup_ids, chosen.at, now=datetime.now(UTC), what=key)
    report = RestoreReport(key, backup_id, os.fspath(dest), dry_run=chosen.dry_run)
    if not _run(target, history, backup_id, chosen, report):
        history = open_history(target, key)
        first, report = report, RestoreReport(key, backup_id, os.fspath(dest), dry_run=chosen.dry_run)
        _run(target, history, backup_id, chosen, report, is_last=True)
        report.bytes_written += first.bytes_written
    report.duration = time.monotonic() - start
    return report


def _run(
    repository: Repository,
    history: History,
    backup_id: str,
    options: RestoreOptions,
    report: RestoreReport,
    *,
    is_last: bool = False,
) -> bool:
    """Restore; return whether that is all there is to do.

    It is not where something was missed because the key was pruned meanwhile, or backups written again: then the
    point stands on other files now. Without *is_last* that is looked for.
    """
    try:
        run = _Restore(repository, history, backup_id, options, report)
        run.run()
        if is_last or not run.has_missed:
            return True
    except ObjectNotFoundError:
        if is_last or not _is_outdated(repository, history, backup_id):
            raise
        return False
    return not _is_outdated(repository, history, backup_id)


def _is_outdated(repository: Repository, history: History, backup_id: str) -> bool:
    """Whether *backup_id* stands on other states by now."""
    now = History(repository, history.key)
    if backup_id not in now.backup_ids:
        return False
    try:
        before = identities(history.chain_to(backup_id))
    except ObjectNotFoundError:
        return True  # one was deleted before it was read
    return identities(now.chain_to(backup_id)) != before


class _Restore:
    """One restore."""

    def __init__(
        self,
        repository: Repository,
        history: History,
        backup_id: str,
        options: RestoreOptions,
        report: RestoreReport,
    ) -> None:
        chain = history.chain_to(backup_id)
        self._states = history.states(backup_id)
        self._archives = Archives(repository.store, history.key, chain)
        self._store = repository.store
        self._key = history.key
        self._repository = repository
        self._identity = IndexIdentity(
            repository.repository_id, history.key, identities(chain), chain[-1].index_digest
        )
        self._options = options
        self._report = report
        self._selection = Selection(options.paths)
        self._warned: dict[str, tuple[int, str]] = {}  # how often, and the first time
        self._warned_lock = threading.Lock()
        self._first_links: dict[bytes, bytes] = {}
        self._failed: set[bytes] = set()
        self._kept: set[bytes] = set()  # by overwrite='never': whose content is there, nobody knows
        self.has_missed = False  # something that lies in no file that is there
        # Files with the right content that wait for their metadata; the writer's batches bound them.
        self._right_already: set[bytes] = set()

    def run(self) -> None:
        if self._options.dry_run:
            self._plan()
            return
        if self._store.needs_preparing:
            self._store.prepare(
                needed_archives(self._key, Selection(self._options.paths).filter(resolve(self._states)))
            )
        with ExitStack() as stack:
            destination = stack.enter_context(Destination(self._report.destination))
            applier = MetadataApplier(numeric_owner=self._options.numeric_owner, on_problem=self._warn)
            writer = ParallelWriter(
                destination,
                applier,
                Contents(self._archives),
                threads=self._options.threads or os.cpu_count() or 1,
                durable=self._options.durable,
                replace_directories=self._options.delete,
                on_written=self._on_written,
                on_failed=lambda entry, error: self._problem(entry.path, error),
            )
            stack.callback(writer.abort)
            for resolved in self._selection.filter(self._entries()):
                self._restore(resolved, destination, writer)
            writer.finish()
            self._selection.check_all_matched()
            if self._options.delete:
                self._remove_extra(destination, applier)
                if self._options.durable:
                    sync_filesystem(destination.fd)
            if self._options.verify_metadata:
                self._verify_metadata(destination, applier)
        self._report.warnings = [
            f"{kind} could not be set for {count} name{'s' if count > 1 else ''}; the first is {first}"
            for kind, (count, first) in self._warned.items()
        ]

    def _entries(self) -> Iterator[ResolvedEntry]:
        """The entries that may be selected: all, or those that the index on this machine has of a few paths."""
        entries = resolve(self._states)
        if (paths := self._selection.plain_paths) is None:
            return entries
        cache = self._repository.cache(self._key)
        return search_cached_index(cache, self._identity, paths, entries)

    # --- one entry -------------------------------------------------------------------------------------

    def _restore(
        self, resolved: ResolvedEntry, destination: Destination, writer: ParallelWriter[ResolvedEntry]
    ) -> None:
        entry = resolved.entry
        try:
            if entry.type == DIRECTORY:
                self._restore_directory(entry, writer)
                return
            existing = writer.lstat(entry.path)
            if existing is not None and self._options.overwrite == "never":
                writer.leave_until(entry.path)
                self._report.kept += 1
                self._kept.add(entry.path)
                return
            if entry.link_of is not None and self._restore_link(resolved, writer):
                return
            if entry.type == FILE:
                self._restore_file(resolved, existing, destination, writer)
            else:
                writer.special(entry)
        except (BackupError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._problem(entry.path, error)

    def _restore_directory(self, entry: Entry, writer: ParallelWriter[ResolvedEntry]) -> None:
        if self._options.overwrite == "never":
            existing = writer.lstat(entry.path)
            if existing is not None and not stat.S_ISDIR(existing.st_mode):
                raise NotADirectoryError(f"{printable(entry.path)}: a file stands in its place")
        writer.directory(entry)

    def _restore_link(self, resolved: ResolvedEntry, writer: ParallelWriter[ResolvedEntry]) -> bool:
        """Link to the first restored name of the inode; False where there is none yet, and this is the first."""
        entry = resolved.entry
        assert entry.link_of is not None  # the caller looked
        target = self._first_links.get(entry.link_of)
        if target is None and self._selection.matches(entry.link_of):
            if entry.link_of not in self._failed and entry.link_of not in self._kept:
                target = entry.link_of
        if target is None:
            self._first_links[entry.link_of] = entry.path
            return False
        if entry.type == FILE and resolved.content_digest is not None:
            writer.link_or_make(entry, target, _with_digest(entry, resolved), resolved)
        else:
            writer.link(entry, target)
        return True

    def _restore_file(
        self,
        resolved: ResolvedEntry,
        existing: os.stat_result | None,
        destination: Destination,
        writer: ParallelWriter[ResolvedEntry],
    ) -> None:
        entry = resolved.entry
        if resolved.content_digest is None:
            raise IntegrityError(
                f"{printable(entry.path)}: its state has no digest",
                path=printable(entry.path),
                expected="a digest",
                actual=None,
            )
        if self._options.overwrite == "changed" and _may_be_equal(existing, entry):
            if _digest_of(destination, entry.path) == resolved.content_digest:
                self._right_already.add(entry.path)
                writer.metadata(entry)
                return
        writer.submit(_with_digest(entry, resolved), resolved, replaces=existing is not None)

    # --- what came out of it ---------------------------------------------------------------------------

    def _on_written(self, entry: Entry) -> None:
        if entry.path in self._right_already:
            self._right_already.remove(entry.path)
            self._report.unchanged += 1
        else:
            self._report.written += 1
            if entry.is_content_holder:
                self._report.bytes_written += entry.size
        if self._options.on_progress is not None:
            self._options.on_progress(entry.path, entry.size)

    def _problem(self, path: bytes, error: Exception) -> None:
        self._failed.add(path)
        self._right_already.discard(path)
        self.has_missed |= isinstance(error, ObjectNotFoundError)
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._report.problems.append(Problem(path, message.removeprefix(f"{printable(path)}: ")))

    def _warn(self, kind: str, path: bytes, message: str) -> None:
        with self._warned_lock:  # workers have metadata to tell of too
            count, first = self._warned.get(kind, (0, f"{printable(path)}: {message}"))
            self._warned[kind] = (count + 1, first)

    # --- the rest ----------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """A dry run: compare with what is there, by what ``lstat`` says."""
        destination = None
        if os.path.isdir(self._report.destination):
            destination = Destination(self._report.destination, create=False)
        with ExitStack() as stack:
            if destination is not None:
                stack.enter_context(destination)
            for resolved in self._selection.filter(resolve(self._states)):
                entry = resolved.entry
                existing = destination.lstat(entry.path) if destination is not None else None
                if (
                    existing is None
                    or self._options.overwrite == "always"
                    or not _looks_equal(existing, entry)
                ):
                    if existing is not None and self._options.overwrite == "never":
                        self._report.kept += 1
                    else:
                        self._report.written += 1
                        self._report.bytes_written += entry.size if entry.link_of is None else 0
                else:
                    self._report.unchanged += 1
            self._selection.check_all_matched()
            if destination is not None and self._options.delete:
                self._remove_extra(destination, None)

    def _remove_extra(self, destination: Destination, applier: MetadataApplier | None) -> None:
        """Remove what is there and not in the backup, children before parents.

        Args:
            applier: gives the directories that lost a name their times again; None in a dry run.
        """
        extra, parents = self._find_extra(destination)
        self._report.removed = len(extra)
        if applier is None:
            return
        for path in reversed(extra):
            try:
                destination.remove(path)
            except (OSError, UnsafePathError) as error:
                self._report.removed -= 1
                self._problem(path, error)
        for parent in reversed(parents.values()):
            try:
                applier.apply_to_fd(destination.directory(parent.path), parent)
            except (OSError, UnsafePathError) as error:
                self._problem(parent.path, error)

    def _find_extra(self, destination: Destination) -> tuple[list[bytes], dict[bytes, Entry]]:
        """Paths that only the destination has, in sort order, and the restored directories they lie in."""
        extra: list[bytes] = []
        parents: dict[bytes, Entry] = {}
        directories: dict[bytes, Entry] = {}  # those that lead to the current path
        walk = Walk(destination.fs_path, on_problem=self._unreadable)
        for found, resolved in merge_join(
            walk,
            resolve(self._states),
            new_path=lambda found: found.rel_path,
            old_path=lambda item: item.path,
        ):
            if resolved is not None:
                if resolved.entry.type == DIRECTORY:
                    directories = {
                        path: entry for path, entry in directories.items() if _leads_to(path, resolved.path)
                    }
                    directories[resolved.path] = resolved.entry
            elif found is not None and self._selection.matches(found.rel_path):
                extra.append(found.rel_path)
                parent = found.rel_path.rpartition(b"/")[0] or ROOT
                if parent in directories:
                    parents[parent] = directories[parent]
        return extra, parents

    def _verify_metadata(self, destination: Destination, applier: MetadataApplier) -> None:
        """Compare every name that was restored with its entry; what differs is a problem."""
        links = HardLinks()
        walk = Walk(destination.fs_path, on_problem=self._unreadable)
        for found, resolved in merge_join(
            walk,
            self._selection.filter(resolve(self._states)),
            new_path=lambda found: found.rel_path,
            old_path=lambda item: item.path,
        ):
            if found is not None:
                link_of = links.earlier_link(found.rel_path, found.stat)
            if resolved is None or resolved.path in self._failed:
                continue
            if found is None:
                self._report.problems.append(Problem(resolved.path, "is not there"))
                continue
            owner = applier.owner_of(resolved.entry) if applier.as_root else None
            wrong = metadata_differences(
                resolved.entry, capture(found, found.stat, link_of=link_of), owner=owner
            )
            if wrong:
                self._report.problems.append(Problem(resolved.path, f"restored with {', '.join(wrong)}"))

    def _unreadable(self, path: bytes, message: str) -> None:
        self._report.problems.append(Problem(path, message))


def _with_digest(entry: Entry, resolved: ResolvedEntry) -> Entry:
    """*entry* as a file of its own, also where it is a hard link whose other names are not restored."""
    if entry.digest is not None:
        return entry
    # Its target's map is not at hand. That of the copy tells as well where to look for holes.
    sparse = resolved.data[0].sparse if resolved.data else None
    return msgspec.structs.replace(entry, digest=resolved.content_digest, link_of=None, sparse=sparse)


def _digest_of(destination: Destination, path: bytes) -> bytes:
    hasher = blake3()
    with open(destination.open_regular(path), "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_LEN):
            hasher.update(chunk)
    return hasher.digest()


def _leads_to(directory: bytes, path: bytes) -> bool:
    return directory == ROOT or path.startswith(directory + b"/")


def _may_be_equal(existing: os.stat_result | None, entry: Entry) -> bool:
    """Whether comparing contents is worth reading. A file with other names is replaced, not shared."""
    return (
        existing is not None
        and stat.S_ISREG(existing.st_mode)
        and existing.st_size == entry.size
        and existing.st_nlink == 1
    )


def _looks_equal(existing: os.stat_result, entry: Entry) -> bool:
    if type_of(existing.st_mode) != entry.type:
        return False
    if entry.type != FILE:
        return True
    return existing.st_size == entry.size and existing.st_mtime_ns == entry.mtime_ns
