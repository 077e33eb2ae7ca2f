"""Making a tree what a list of entries says: adding, replacing, and removing where that is asked for.

Every content is fetched into a temporary file of this machine and held against its digest before anything in the
tree is touched. What goes wrong with one name is reported, and the rest goes on. Deleting comes last.
"""

from __future__ import annotations

import errno
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, cast

from incremental_backups_tools.exceptions import BackupError, UnsafePathError
from incremental_backups_tools.heap.sync.tables import Table
from incremental_backups_tools.heap.sync.tree import FileTree, Listing, TreeWriterAt, Written
from incremental_backups_tools.tree.diff import classify, merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, check_rel_path, sort_key
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.writer import FATAL_ERRORS

_IN_MEMORY_LEN: Final = 1 << 20
_AHEAD: Final = 4
_NOT_EMPTY: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})

# Fetches a content into a file and returns the entry with its size and digest.
Fetch = Callable[[Entry, BinaryIO], Entry]


@dataclass(slots=True)
class ApplyReport:
    """What was done, or in a dry run would be.

    Attributes:
        written: names that were added or got another content.
        deleted: names that were removed.
        unchanged: names that were right already.
        kept: names that the tree alone has, and that were left.
        bytes_written: of content.
        problems: what went wrong, name by name.
        undo: the snapshot of what was there before, by its name in the store.
    """

    dry_run: bool = False
    written: int = 0
    deleted: int = 0
    unchanged: int = 0
    kept: int = 0
    bytes_written: int = 0
    problems: list[Problem] = field(default_factory=list)
    undo: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dry_run": self.dry_run,
            "written": self.written,
            "deleted": self.deleted,
            "unchanged": self.unchanged,
            "kept": self.kept,
            "bytes_written": self.bytes_written,
            "undo": self.undo,
            "problems": [str(problem) for problem in self.problems],
        }


@dataclass(slots=True)
class Applier:
    """One change of one tree.

    Args:
        tree: what is changed.
        fetch: brings contents.
        listing: what of the tree could not be seen: nothing there is touched.
        protected: further paths that are not to be touched, and why.
        hidden: whether the wanted entries say nothing about a path: it is not deleted then.
        use_metadata: the entries' modes, owners, times and directories count.
        delete: remove what is not wanted.
        on_action: told ``+ ~ m -`` and a path before it is done, in a dry run too.
        on_progress: called with each path that is done, and the bytes written for it.
    """

    tree: FileTree
    fetch: Fetch
    listing: Listing
    protected: dict[bytes, str]
    hidden: Callable[[bytes], bool]
    use_metadata: bool
    delete: bool
    threads: int
    report: ApplyReport
    on_action: Callable[[str, bytes], None] | None = None
    on_progress: Callable[[bytes, int], None] | None = None
    on_written: Written | None = None
    _last_file: bytes | None = None
    _failed: set[bytes] = field(default_factory=set)

    def run(self, wanted: Callable[[], Iterable[Entry]], current: Iterable[Entry]) -> None:
        """Make the tree what *wanted* yields.

        Args:
            wanted: begins the sorted entries anew; files with their digest.
            current: the tree's own, sorted, files with their digest.

        Raises:
            OSError: the disk is full or fails.
            BackupError: the wanted entries cannot be read on.
        """
        with Table() as extras:
            if self.report.dry_run:
                for _ in self._steps(wanted(), current, None, extras):
                    pass
                self._delete_extras(extras, None)
                return
            with (
                self.tree.writer(
                    self._problem,
                    replace_directories=self.delete,
                    use_metadata=self.use_metadata,
                    on_written=self.on_written,
                ) as writer,
                ThreadPoolExecutor(self.threads) as pool,
            ):
                try:
                    self._carry_out(self._steps(wanted(), current, writer, extras), writer, pool)
                    writer.finish()  # what failed is known before anything is deleted
                    parents = self._delete_extras(extras, writer)
                    self._renew_directories(wanted(), parents, writer)
                    writer.finish()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
            self._report_protected()

    # --- what is to be done ---------------------------------------------------------------------------------

    def _steps(
        self, wanted: Iterable[Entry], current: Iterable[Entry], writer: TreeWriterAt | None, extras: Table
    ) -> Iterator[tuple[str, Entry]]:
        """Yield what has to be written, and note what is to be deleted."""
        for new, old in merge_join(
            wanted, current, new_path=lambda entry: entry.path, old_path=lambda entry: entry.path
        ):
            if new is None:
                assert old is not None  # one of the two is there
                if not self.delete or self.hidden(old.path):
                    self.report.kept += 1
                else:
                    extras.fill([(sort_key(old.path), old.type)])
                continue
            if self._last_file is not None and new.path.startswith(self._last_file + b"/"):
                self._problem(new.path, "lies below a file")
                continue
            if new.type == FILE and self.tree.is_hierarchical:
                self._last_file = new.path
            op = self._operation(new, old)
            refusal = self._refusal(new) if op is not None else None
            if refusal is not None:
                self._problem(new.path, refusal)
            elif op is None:
                self.report.unchanged += 1
                if new.type == DIRECTORY and self.use_metadata and writer is not None:
                    writer.directory(new)  # what changes in it must not change its time
            else:
                self._announce(op, new.path)
                yield op, new

    def _operation(self, new: Entry, old: Entry | None) -> str | None:
        if new.type == DIRECTORY and not self.tree.has_metadata:
            return None
        # A digest that is not known is equal to nothing, not even to another such one.
        if (
            old is not None
            and new.type == old.type == FILE
            and (new.digest is None or new.digest != old.digest)
        ):
            return "~"
        op = classify(new, old)
        return None if op == "m" and not self.use_metadata else op

    def _refusal(self, new: Entry) -> str | None:
        """Why a name cannot be written, if so."""
        check_rel_path(new.path)
        if new.path in self.protected:
            return f"is left as it is: {self.protected[new.path]}"
        if self.listing.hides(new.path):
            return "is left as it is: what is there could not be seen"
        if new.type != DIRECTORY and (self.protected or self.listing.unlisted or self.listing.blocked):
            below = new.path + b"/"
            unseen = (*self.protected, *self.listing.unlisted, *self.listing.blocked)
            if any(path.startswith(below) for path in unseen):
                return "takes the place of a directory in which something could not be read"
        return None

    # --- doing it -------------------------------------------------------------------------------------------

    def _carry_out(
        self, steps: Iterator[tuple[str, Entry]], writer: TreeWriterAt, pool: ThreadPoolExecutor
    ) -> None:
        """Contents are fetched side by side; a writer that can has them written so, too."""
        waiting: deque[tuple[str, Entry, Future[tuple[Entry, BinaryIO]] | None]] = deque()
        for op, entry in steps:
            future = None
            if entry.type == FILE and op != "m":
                future = pool.submit(self._bring, entry, writer if writer.is_concurrent else None)
            waiting.append((op, entry, future))
            while len(waiting) > _AHEAD * self.threads or (waiting and waiting[0][2] is None):
                self._finish_step(*waiting.popleft(), writer)
        while waiting:
            self._finish_step(*waiting.popleft(), writer)

    def _bring(self, entry: Entry, writer: TreeWriterAt | None) -> tuple[Entry, BinaryIO]:
        spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(_IN_MEMORY_LEN, prefix="ibt-content-"))
        try:
            complete = self.fetch(entry, spool)
            spool.seek(0)
            if writer is not None:
                writer.file(complete, spool)
        except BaseException:
            spool.close()
            raise
        return complete, spool

    def _finish_step(
        self,
        op: str,
        entry: Entry,
        future: Future[tuple[Entry, BinaryIO]] | None,
        writer: TreeWriterAt,
    ) -> None:
        size = 0
        try:
            if future is not None:
                complete, spool = future.result()
                size = complete.size
                with spool:
                    if not writer.is_concurrent:
                        writer.file(complete, spool)
            elif op == "m":
                writer.metadata(entry)
            elif entry.type == DIRECTORY:
                writer.directory(entry)
            else:
                writer.special(entry)
        except (BackupError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._problem(entry.path, _reason(error))
            return
        self.report.written += 1
        self.report.bytes_written += size
        if self.on_progress is not None:
            self.on_progress(entry.path, size)

    def _delete_extras(self, extras: Table, writer: TreeWriterAt | None) -> set[bytes]:
        """Delete what was noted, children before parents; return the directories that lost a name."""
        parents: set[bytes] = set()
        for key, kind in extras.items(backwards=True):
            path = key.replace(b"\0", b"/")
            if path in self.protected or self.listing.hides(path):
                self._problem(
                    path, f"is not deleted: {self.protected.get(path, 'it could not be seen whole')}"
                )
                continue
            if not self._failed.isdisjoint(_above(path)):
                continue  # what was to take its place did not: that is told
            is_unsaid = kind == DIRECTORY and not self.use_metadata
            if is_unsaid and writer is None:
                continue
            if not is_unsaid:
                self._announce("-", path)
            if writer is not None:
                try:
                    writer.remove(path, str(kind))
                except (BackupError, OSError) as error:
                    # Of a source without directories nobody knows which ones it wants: those with files in them.
                    if is_unsaid and isinstance(error, OSError) and error.errno in _NOT_EMPTY:
                        continue
                    self._problem(path, f"could not be deleted: {_reason(error)}")
                    continue
                parents.add(path.rpartition(b"/")[0])
            self.report.deleted += 1
        return parents

    def _renew_directories(self, wanted: Iterable[Entry], parents: set[bytes], writer: TreeWriterAt) -> None:
        """Give the directories that lost a name their times again."""
        if not self.use_metadata or not parents:
            return
        for entry in wanted:
            if entry.type == DIRECTORY and entry.path in parents and entry.path not in self._failed:
                writer.metadata(entry)

    def _announce(self, op: str, path: bytes) -> None:
        if self.report.dry_run and op != "-":
            self.report.written += 1
        if self.on_action is not None:
            self.on_action(op, path)

    def _report_protected(self) -> None:
        for path, reason in self.protected.items():
            if self.delete and path not in self._failed:
                self._problem(path, f"is left as it is: {reason}")

    def _problem(self, path: bytes, message: str) -> None:
        self._failed.add(path)
        self.report.problems.append(Problem(path, message))


def _above(path: bytes) -> list[bytes]:
    """The directories that a path lies in."""
    parts = path.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(1, len(parts))]


def _reason(error: BackupError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnsafePathError):
        return f"unsafe: {error}"
    return str(error)
