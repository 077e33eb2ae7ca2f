"""One pass over the source in step with the last snapshot's index: what is the same, what is read, what is gone.

Everything that the walk shows goes through a queue, so that files can be read by several threads and still be taken in
the walk's order. A name that cannot be looked at stays as it was in the last snapshot.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import msgspec

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.heap.snapshots.building import TreeBuilder
from incremental_backups_tools.heap.snapshots.index import IndexDraft, object_of
from incremental_backups_tools.heap.snapshots.instances import Instances
from incremental_backups_tools.heap.snapshots.layout import ObjectName
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.heap.snapshots.storing import FileStorer, StoredFile
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, printable, sort_key
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture_unread, type_of
from incremental_backups_tools.tree.unchanged import for_next_time, is_unchanged
from incremental_backups_tools.tree.walk import Found

if TYPE_CHECKING:
    from incremental_backups_tools.heap.snapshots.create import Imported

# Files on their way for each thread: enough that none waits, few enough that little is held in memory.
_AHEAD: Final = 4


@dataclass(slots=True)
class _Item:
    """Something of the walk on its way.

    Attributes:
        found: with a descriptor of its directory that is its own, where a thread reads the file.
        old: what the last snapshot had, if it may stand for the file when that cannot be read.
        reading: what comes of a file that is read.
        entry: what goes into the snapshot as it is, where nothing is read.
    """

    found: Found | None
    old: Entry | None
    reading: Future[StoredFile] | None = None
    entry: Entry | None = None

    def close(self) -> None:
        """Close the descriptor that is its own."""
        if self.reading is not None and self.found is not None:
            os.close(self.found.dir_fd)
            self.found = None


class _AtOnce(Executor):
    """Does the work in the thread that asks for it, when it asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (SourceError, OSError) as error:
            future.set_exception(error)
        return future


class Scan:
    """One pass.

    Args:
        build: makes the tree; None in a dry run.
        draft: takes the entries in a dry run; otherwise *build* has it.
        find_old: an entry of the last snapshot by its path.
        imported: what another tool made, in place of a live directory.
    """

    def __init__(
        self,
        instances: Instances,
        build: TreeBuilder | None,
        draft: IndexDraft,
        report: SnapshotReport,
        *,
        threads: int | None,
        find_old: Callable[[bytes], Entry | None],
        imported: Imported | None,
        on_progress: Callable[[bytes, int], None] | None,
    ) -> None:
        self._instances = instances
        self._build = build
        self._draft = draft
        self._report = report
        self._threads = threads or os.cpu_count() or 1
        self._find_old = find_old
        self._imported = imported
        self._on_progress = on_progress
        self._storer = FileStorer(instances, dry_run=build is None, on_read=self._count_read)
        self._mutex = Lock()
        self._queue: deque[_Item] = deque()
        self._links = HardLinks()
        self._failed: set[bytes] = (
            set()
        )  # of files with several names, those that are not in the snapshot as they were listed
        self._unlisted: deque[bytes] = deque()
        self._planned: set[ObjectName] = set()  # of a dry run

    def run(self, walk: Iterable[Found], before: Iterable[Entry]) -> None:
        """Make the pass.

        Raises:
            SourceError: the root cannot be read.
            FormatError, RepositoryError: *before* cannot be read.
            OSError: something cannot be written.
        """
        pairs = merge_join(walk, before, new_path=lambda item: item.rel_path, old_path=lambda item: item.path)
        pool: Executor = _AtOnce()
        if self._threads > 1:
            pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ibt snapshot")
        try:
            for found, old in pairs:
                if found is not None and type_of(found.stat.st_mode) is None:
                    self._report.notices.append(Problem(found.rel_path, "a socket, skipped"))
                    found = None
                if found is not None:
                    self._present(pool, found, old)
                elif old is not None and self._is_unknown(old.path):
                    self._add(_Item(None, None, entry=self._kept(old)))
                self._take(self._threads * _AHEAD)
            self._take(0)
        finally:
            pool.shutdown(cancel_futures=True)
            for item in self._queue:
                item.close()

    # --- what the walk tells on the way --------------------------------------------------------------------------

    def problem(self, path: bytes, message: str) -> None:
        """Note what could not be read."""
        self._report.problems.append(Problem(path, message))

    def unlisted(self, path: bytes) -> None:
        """Note a directory of which the walk shows nothing, or nothing more: its rest is not gone."""
        self._unlisted.append(path)

    def left_out(self, path: bytes) -> None:
        """Note a directory that the walk passes over."""
        self._report.notices.append(Problem(path, "the snapshots themselves, left out"))

    def _is_unknown(self, path: bytes) -> bool:
        """Whether *path* is or lies below a directory that could not be looked at. Asked in sort order."""
        while self._unlisted:
            directory = self._unlisted[0]
            if path == directory or path.startswith(directory + b"/"):
                return True
            if sort_key(path) < sort_key(directory):
                return False
            self._unlisted.popleft()
        return False

    # --- into the queue --------------------------------------------------------------------------------------

    def _present(self, pool: Executor, found: Found, old: Entry | None) -> None:
        if self._is_unknown(found.rel_path):
            if old is not None:
                self._add(_Item(None, None, entry=self._kept(old)))
            return
        link_of = None
        if self._imported is None:  # another tool's links are no links of the source
            link_of = self._links.earlier_link(found.rel_path, found.stat)
        if old is not None and self._imported is None and is_unchanged(found.stat, old, link_of):
            if not old.is_content_holder or self._is_usable(old):
                self._report.unchanged += old.is_content_holder
                self._add(_Item(found, old, entry=old))
                self._list_rest(found)
                return
        if type_of(found.stat.st_mode) == FILE and link_of is None:
            self._read(pool, found, old)
        else:
            self._capture(found, old, link_of)
        self._list_rest(found)

    def _is_usable(self, old: Entry) -> bool:
        name = object_of(old)
        if self._build is None:  # nothing is put right in a dry run
            return self._instances.find_fault(name, old) is None
        return self._instances.is_usable(name, old)

    def _list_rest(self, found: Found) -> None:
        if not found.listed:
            self.unlisted(found.rel_path)

    def _read(self, pool: Executor, found: Found, old: Entry | None) -> None:
        if self._imported is not None and (reason := self._imported.refuse(found.stat)) is not None:
            self._refuse(found, None, reason)
            return
        # The walk's own descriptor is closed when it goes on.
        own = msgspec.structs.replace(found, dir_fd=os.dup(found.dir_fd))
        before = old if old is not None and old.is_content_holder else None
        hint = object_of(before) if before is not None else None
        self._add(_Item(own, old, pool.submit(self._storer.store, own, before, hint)))

    def _capture(self, found: Found, old: Entry | None, link_of: bytes | None) -> None:
        try:
            entry = capture_unread(found, link_of=link_of)
        except SourceError as error:
            self._refuse(found, old, str(error).removeprefix(f"{printable(found.rel_path)}: "))
            if stat.S_ISDIR(found.stat.st_mode):
                self.unlisted(found.rel_path)
            return
        self._links.confirm(found.rel_path, found.stat, entry)
        self._add(_Item(found, old, entry=entry))

    def _refuse(self, found: Found, old: Entry | None, reason: str) -> None:
        self._links.forget(found.rel_path, found.stat)
        self.problem(found.rel_path, reason)
        self._failed.add(found.rel_path)
        if old is not None and _may_stand_for(old, found):
            self._add(_Item(None, None, entry=self._kept(old)))

    def _kept(self, old: Entry) -> Entry:
        """What could not be looked at, as the last snapshot had it, standing for itself."""
        kept = msgspec.structs.replace(old, ctime_ns=None)
        if old.link_of is None:
            return kept
        holder = self._find_old(old.link_of)
        if holder is None:
            return kept
        return msgspec.structs.replace(holder, path=old.path, ctime_ns=None, link_of=None)

    def _add(self, item: _Item) -> None:
        self._queue.append(item)

    # --- out of the queue ------------------------------------------------------------------------------------

    def _take(self, left: int) -> None:
        """Take what is at the front of the queue, until no more than *left* files are being read."""
        while self._queue and (len(self._queue) > left or self._is_ready(self._queue[0])):
            item = self._queue[0]
            if item.reading is None:
                self._queue.popleft()
                self._finish_known(item)
                continue
            try:
                self._finish_read(item, item.reading)
            finally:
                self._queue.popleft()
                item.close()

    @staticmethod
    def _is_ready(item: _Item) -> bool:
        return item.reading is None or item.reading.done()

    def _finish_read(self, item: _Item, reading: Future[StoredFile]) -> None:
        found = item.found
        assert found is not None  # whatever is read was found
        is_linked = found.stat.st_nlink > 1
        try:
            stored = reading.result()
        except SourceError as error:
            self.problem(found.rel_path, str(error).removeprefix(f"{printable(found.rel_path)}: "))
            self._failed.add(found.rel_path)
            if item.old is not None and _may_stand_for(item.old, found):
                self._finish_known(_Item(None, None, entry=self._kept(item.old)))
            return
        if is_linked and not self._links.confirm(found.rel_path, found.stat, stored.entry):
            # Those of its other names that wait in the queue would not be what they were when they were listed.
            self._failed.add(found.rel_path)
        stored = replace(stored, entry=for_next_time(stored.entry, stored.seen_ns))
        if stored.entry.unstable:
            self.problem(found.rel_path, "changed while it was read; stored as the last read found it")
        if self._imported is not None:
            stored = replace(stored, entry=self._imported.amend(stored.entry))
        if self._build is not None:
            self._build.file(stored, is_linked=is_linked)
        else:
            self._plan(stored)
        self._progress(stored.entry)

    def _plan(self, stored: StoredFile) -> None:
        """Count, in a dry run, what would be added."""
        name, entry = stored.name, stored.entry
        self._draft.add(entry)
        if name not in self._planned and self._instances.find_fault(name, entry) is not None:
            self._planned.add(name)
            self._report.added_objects += 1
            self._report.added_bytes += entry.size

    def _finish_known(self, item: _Item) -> None:
        entry = item.entry
        assert entry is not None  # otherwise it is read
        if self._imported is not None:
            entry = self._imported.amend(entry)
        if entry.link_of is not None and entry.link_of in self._failed:
            # Its other name could not be read, or not as it was listed: this one would be no better.
            self._failed.add(entry.path)
            self.problem(entry.path, "the file it is a hard link of could not be read as it was")
            if item.old is None or item.old.type == DIRECTORY:
                return
            entry = self._kept(item.old)
        if self._build is None:
            self._draft.add(entry)
        elif entry.link_of is not None:
            self._build.link(entry)
        elif entry.type == FILE:
            self._build.same(entry, is_linked=item.found is not None and item.found.stat.st_nlink > 1)
        else:
            self._build.other(entry)
        self._progress(entry)

    def _progress(self, entry: Entry) -> None:
        if self._on_progress is not None and entry.type != DIRECTORY:
            self._on_progress(entry.path, entry.size if entry.link_of is None else 0)

    def _count_read(self, size: int) -> None:
        with self._mutex:
            self._report.bytes_read += size


def _may_stand_for(old: Entry, found: Found) -> bool:
    """Whether what the last snapshot had may stand for what cannot be read: what was in a directory is gone."""
    return old.type != DIRECTORY or stat.S_ISDIR(found.stat.st_mode)
