"""Restoring a tree from entries in sort order: what is replaced, kept, linked and removed, and what came of it.

Where entries and contents come from is for the callers to say. Each file is written once, verified, and then named;
one that cannot be restored is a problem, and what was in its place stays as it was.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, Literal, TypeVar, get_args

from blake3 import blake3

from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import BackupError, UnsafePathError
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable, sort_key
from incremental_backups_tools.tree.fidelity import metadata_differences
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import MetadataApplier, capture, type_of
from incremental_backups_tools.tree.parallel_writer import Contents, ParallelWriter
from incremental_backups_tools.tree.reading import CHUNK_LEN
from incremental_backups_tools.tree.selection import HasEntry, Selection
from incremental_backups_tools.tree.walk import Walk
from incremental_backups_tools.tree.writer import FATAL_ERRORS

ItemT = TypeVar("ItemT", bound=HasEntry)

Overwrite = Literal["never", "changed", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRestoreOptions:
    """How a tree is restored.

    Attributes:
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


@dataclass(slots=True, kw_only=True)
class TreeRestoreReport:
    """What a restore did.

    Attributes:
        written, unchanged, kept, removed: how many names were restored; were right already; were there and left
            alone by ``overwrite='never'``; were removed by ``delete``.
        bytes_written: of file contents.
        problems: names that were not restored, and why. With any, exit status 3.
        warnings: metadata that the destination could not take, one for each kind with the first path.
    """

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

    def counts(self) -> dict[str, Any]:
        """All but what was restored, as plain data."""
        return {
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


class Warnings:
    """Metadata that could not be given: one warning for each kind, with the first name. Threads may share it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, bytes, str]] = {}
        self._mutex = Lock()

    def add(self, kind: str, path: bytes, message: str) -> None:
        """Note one."""
        with self._mutex:
            count, first, its_message = self._found.get(kind, (0, path, message))
            if sort_key(path) < sort_key(first):
                first, its_message = path, message
            self._found[kind] = (count + 1, first, its_message)

    @property
    def texts(self) -> list[str]:
        """A sentence for each kind."""
        return [
            f"{kind} could not be set for {count} name{'s' if count > 1 else ''}; the first is "
            f"{printable(path)}: {message}"
            for kind, (count, path, message) in self._found.items()
        ]


class TreeRestore(Generic[ItemT]):
    """One restore.

    Args:
        items: the tree's entries in sort order, with what else is known of each; anew at each call.
        whole: an item's entry as a regular file with its digest, also of a hard link whose other names are not
            restored. It raises IntegrityError where the content is not known.
        contents: where the contents come from.
        candidates: those of the items that a selection may select, where some can be passed over.
        on_error: told of every error that is the reason of a problem.
    """

    def __init__(
        self,
        items: Callable[[], Iterable[ItemT]],
        whole: Callable[[ItemT], Entry],
        contents: Contents[ItemT],
        options: TreeRestoreOptions,
        report: TreeRestoreReport,
        *,
        candidates: Callable[[Selection], Iterable[ItemT]] | None = None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._items = items
        self._whole = whole
        self._contents = contents
        self._options = options
        self._report = report
        self._candidates = candidates or (lambda selection: items())
        self._on_error = on_error
        self._selection = Selection(options.paths)
        self._warnings = Warnings()
        self._first_links: dict[bytes, bytes] = {}
        self._failed: set[bytes] = set()
        self._kept: set[bytes] = set()  # by overwrite='never': whose content is there, nobody knows
        # Files with the right content that wait for their metadata; the writer's batches bound them.
        self._right_already: set[bytes] = set()

    def run(self) -> None:
        """Restore, or in a dry run count; what came of it is in the report.

        Raises:
            ChainError: a path selects nothing.
            OSError: the destination cannot be made or written to.
            BackupError: the items end in one.
        """
        if self._options.dry_run:
            self._plan()
            return
        with ExitStack() as stack:
            destination = stack.enter_context(Destination(self._report.destination))
            applier = MetadataApplier(
                numeric_owner=self._options.numeric_owner, on_problem=self._warnings.add
            )
            writer = ParallelWriter(
                destination,
                applier,
                self._contents,
                threads=self._options.threads or os.cpu_count() or 1,
                durable=self._options.durable,
                replace_directories=self._options.delete,
                on_written=self._on_written,
                on_failed=lambda entry, error: self._problem(entry.path, error),
            )
            stack.callback(writer.abort)
            for item in self._selection.filter(self._candidates(self._selection)):
                self._restore(item, destination, writer)
            writer.finish()
            self._selection.check_all_matched()
            if self._options.delete:
                self._remove_extra(destination, applier)
                if self._options.durable:
                    sync_filesystem(destination.fd)
            if self._options.verify_metadata:
                self._verify_metadata(destination, applier)
        self._report.warnings = self._warnings.texts

    def _selected(self) -> Iterator[ItemT]:
        return self._selection.filter(self._items())

    # --- one entry -------------------------------------------------------------------------------------

    def _restore(self, item: ItemT, destination: Destination, writer: ParallelWriter[ItemT]) -> None:
        entry = item.entry
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
            if entry.link_of is not None and self._restore_link(item, writer):
                return
            if entry.type == FILE:
                self._restore_file(item, existing, destination, writer)
            else:
                writer.special(entry)
        except (BackupError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._problem(entry.path, error)

    def _restore_directory(self, entry: Entry, writer: ParallelWriter[ItemT]) -> None:
        if self._options.overwrite == "never":
            existing = writer.lstat(entry.path)
            if existing is not None and not stat.S_ISDIR(existing.st_mode):
                raise NotADirectoryError(f"{printable(entry.path)}: a file stands in its place")
        writer.directory(entry)

    def _restore_link(self, item: ItemT, writer: ParallelWriter[ItemT]) -> bool:
        """Link to the first restored name of the inode; False where there is none yet, and this is the first."""
        entry = item.entry
        assert entry.link_of is not None  # the caller looked
        target = self._first_links.get(entry.link_of)
        if target is None and self._selection.matches(entry.link_of):
            if entry.link_of not in self._failed and entry.link_of not in self._kept:
                target = entry.link_of
        if target is None:
            self._first_links[entry.link_of] = entry.path
            return False
        if entry.type == FILE:
            writer.link_or_make(entry, target, self._whole(item), item)
        else:
            writer.link(entry, target)
        return True

    def _restore_file(
        self,
        item: ItemT,
        existing: os.stat_result | None,
        destination: Destination,
        writer: ParallelWriter[ItemT],
    ) -> None:
        whole = self._whole(item)
        if self._options.overwrite == "changed" and _may_be_equal(existing, whole):
            if _digest_of(destination, whole.path) == whole.digest:
                self._right_already.add(whole.path)
                writer.metadata(item.entry)
                return
        writer.submit(whole, item, replaces=existing is not None)

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
        self._on_error(error)
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._report.problems.append(Problem(path, message.removeprefix(f"{printable(path)}: ")))

    # --- the rest ----------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """A dry run: compare with what is there, by what ``lstat`` says."""
        destination = None
        if os.path.isdir(self._report.destination):
            destination = Destination(self._report.destination, create=False)
        with ExitStack() as stack:
            if destination is not None:
                stack.enter_context(destination)
            for item in self._selected():
                entry = item.entry
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
        for found, item in merge_join(
            walk,
            self._items(),
            new_path=lambda found: found.rel_path,
            old_path=lambda item: item.entry.path,
        ):
            if item is not None:
                if item.entry.type == DIRECTORY:
                    directories = {
                        path: entry for path, entry in directories.items() if _leads_to(path, item.entry.path)
                    }
                    directories[item.entry.path] = item.entry
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
        for found, item in merge_join(
            walk,
            self._selected(),
            new_path=lambda found: found.rel_path,
            old_path=lambda item: item.entry.path,
        ):
            if found is not None:
                link_of = links.earlier_link(found.rel_path, found.stat)
            if item is None or item.entry.path in self._failed:
                continue
            if found is None:
                self._report.problems.append(Problem(item.entry.path, "is not there"))
                continue
            owner = applier.owner_of(item.entry) if applier.as_root else None
            wrong = metadata_differences(item.entry, capture(found, found.stat, link_of=link_of), owner=owner)
            if wrong:
                self._report.problems.append(Problem(item.entry.path, f"restored with {', '.join(wrong)}"))

    def _unreadable(self, path: bytes, message: str) -> None:
        self._report.problems.append(Problem(path, message))


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
