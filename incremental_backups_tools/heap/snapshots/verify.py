"""Checking snapshots: indexes, objects byte by byte, and whether the trees link to them.

Whoever may write to a file of a snapshot may change it, and with it every snapshot that shares it. Here that is found.
An object with wrong bytes is set aside, so that the next snapshot of a source that still holds the file stores it anew
and heals all others; see ``healing.py``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from incremental_backups_tools.exceptions import BackupError, UnsafePathError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import object_of
from incremental_backups_tools.heap.snapshots.instances import Instances, hash_file
from incremental_backups_tools.heap.snapshots.layout import ObjectName, parse_object_path
from incremental_backups_tools.tally import Tally
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import (
    Entry,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
    printable,
)
from incremental_backups_tools.tree.metadata import MetadataApplier, type_of

_SCHEMA: Final = "CREATE TABLE objects (path TEXT, line BLOB, holder TEXT);"
_ONCE: Final = "SELECT path, line, MIN(holder) FROM objects GROUP BY path ORDER BY path"
_AHEAD: Final = 4


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, with what."""

    what: str
    message: str


@dataclass(slots=True)
class VerifyReport:
    """What checking found.

    Attributes:
        snapshots, objects: how many were checked.
        bytes_read: of objects.
        faults: with any, something is not as it was stored.
    """

    snapshots: int = 0
    objects: int = 0
    bytes_read: int = 0
    faults: list[Fault] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "snapshots": self.snapshots,
            "objects": self.objects,
            "bytes_read": self.bytes_read,
            "faults": [{"what": fault.what, "message": fault.message} for fault in self.faults],
        }


def verify_snapshots(
    depot: Depot,
    name: str | None = None,
    snapshot_id: str | None = None,
    *,
    threads: int | None = None,
    wait_seconds: float = 0.0,
    on_progress: Callable[[str, int], None] | None = None,
) -> VerifyReport:
    """Check every snapshot, those of one root, or one, and read every object that they have.

    Args:
        threads: how many objects are read at a time; None is one a processor.
        on_progress: called with each object's name and size when it was read.

    Raises:
        RepositoryLockedError: garbage is being collected.
        RepositoryError: the snapshots cannot be listed.
    """
    report = VerifyReport()
    with depot.shared(wait_seconds=wait_seconds), Tally(_SCHEMA) as tally:
        checking = _Checking(depot, report, tally)
        for root in depot.names() if name is None else [name]:
            for known in depot.snapshot_ids(root) if snapshot_id is None else [snapshot_id]:
                checking.snapshot(root, known)
        checking.objects(threads or os.cpu_count() or 1, on_progress)
    return report


class _Checking:
    def __init__(self, depot: Depot, report: VerifyReport, tally: Tally) -> None:
        self._depot = depot
        self._report = report
        self._tally = tally
        applier = MetadataApplier(numeric_owner=True, on_problem=lambda kind, path, message: None)
        self._instances = Instances(depot.objects_path, None, applier)

    def _fault(self, what: str, message: str) -> None:
        self._report.faults.append(Fault(what, message))

    # --- indexes and trees ----------------------------------------------------------------------------------

    def snapshot(self, root: str, snapshot_id: str) -> None:
        """Read an index to its end, and compare it with its tree."""
        shown = f"{root}@{snapshot_id}"
        self._report.snapshots += 1
        try:
            with Destination(self._depot.tree_path(root, snapshot_id), create=False) as tree:
                for entry in self._depot.entries(root, snapshot_id):
                    name = object_of(entry) if entry.is_content_holder else None
                    if name is not None:
                        line = encode_line(line_of_entry(entry))
                        self._tally.add("objects", (name.path, line, shown))
                    message = self._find_tree_fault(tree, entry, name)
                    if message is not None:
                        self._fault(f"{shown}:{printable(entry.path)}", message)
        except (BackupError, OSError) as error:
            self._fault(shown, str(error))

    def _find_tree_fault(self, tree: Destination, entry: Entry, name: ObjectName | None) -> str | None:
        try:
            info = tree.lstat(entry.path)
            if info is None:
                return "is not in the snapshot's tree"
            if type_of(info.st_mode) != entry.type:
                return f"is no {entry.type} any more"
            if name is None or self._is_link_to(name, info):
                return None
            # Not all names of a content are links to one instance: an inode may have so many and no more.
            message = "is another file than the object that it was a link to"
            fd = tree.open_regular(entry.path)
            try:
                fault = self._instances.find_metadata_fault(info, entry)
                return f"{message}, with other bytes" if hash_file(fd) != name.digest else fault
            finally:
                os.close(fd)
        except (OSError, UnsafePathError) as error:
            return f"cannot be looked at: {error}"

    def _is_link_to(self, name: ObjectName, info: os.stat_result) -> bool:
        try:
            return os.path.samestat(info, os.lstat(self._instances.path(name)))
        except FileNotFoundError:
            return True  # that there is no such object is said once

    # --- objects ---------------------------------------------------------------------------------------------

    def objects(self, threads: int, on_progress: Callable[[str, int], None] | None) -> None:
        """Read every object once."""
        for row, fault in _in_threads(threads, self._find_fault, self._tally.rows(_ONCE)):
            path, line, holder = row
            self._report.objects += 1
            size = entry_of_line(parse_line(line)).size
            self._report.bytes_read += size
            if fault is not None:
                self._fault(f"object {path}", f"{fault}; {holder} has it")
            if on_progress is not None:
                on_progress(path, size)

    def _find_fault(self, row: tuple[Any, ...]) -> str | None:
        name = parse_object_path(row[0])
        assert name is not None  # the index was checked
        entry = entry_of_line(parse_line(row[1]))
        what = f"as {printable(entry.path)}"
        try:
            info = os.lstat(self._instances.path(name))
        except FileNotFoundError:
            return f"is not there, {what}"
        except OSError as error:
            return f"cannot be looked at: {error.strerror}, {what}"
        try:
            if not stat.S_ISREG(info.st_mode) or not self._instances.has_content(name, entry.size):
                return f"has other bytes than it should, {what}; {self._set_aside(name)}"
        except OSError as error:
            return f"cannot be read: {error.strerror}, {what}"
        fault = self._instances.find_metadata_fault(info, entry)
        return None if fault is None else f"{fault}, {what}"

    def _set_aside(self, name: ObjectName) -> str:
        try:
            self._instances.set_aside(name)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return "it stays where it is, since nothing can be written here"
        return "it was set aside, and the next snapshot of its source stores it anew"


def _in_threads(
    threads: int, work: Callable[[tuple[Any, ...]], str | None], rows: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """Each row with what *work* says of it, in order; few are on their way at a time."""
    waiting: deque[tuple[tuple[Any, ...], Future[str | None]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ibt verify") as pool:
        for row in rows:
            waiting.append((row, pool.submit(work, row)))
            if len(waiting) > threads * _AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
