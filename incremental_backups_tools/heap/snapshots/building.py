"""The tree of a snapshot as it is made: links to objects, and everything that is no regular file.

Names get their place in batches, after one flush of the file system for each. An entry goes into the index when its
name has its place, in the order of the walk.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import Final

from incremental_backups_tools.exceptions import UnsafePathError
from incremental_backups_tools.heap.snapshots.index import IndexDraft, object_of, with_object
from incremental_backups_tools.heap.snapshots.instances import Instances
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.heap.snapshots.storing import StoredFile
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, Entry, printable
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.writer import FATAL_ERRORS, TreeWriter

_NOT_ALLOWED: Final = frozenset({errno.EPERM, errno.EACCES})


class _Slot:
    """An entry on its way into the index."""

    __slots__ = ("entry", "is_done")

    def __init__(self, entry: Entry) -> None:
        self.entry: Entry | None = entry
        self.is_done = False


class TreeBuilder:
    """Makes a tree, an entry at a time in sort order.

    Args:
        destination: an empty directory.
        draft: takes the entries whose names have their place.
    """

    def __init__(
        self,
        destination: Destination,
        applier: MetadataApplier,
        instances: Instances,
        draft: IndexDraft,
        report: SnapshotReport,
    ) -> None:
        self._destination = destination
        self._instances = instances
        self._draft = draft
        self._report = report
        self._slots: deque[_Slot] = deque()
        self._waiting: dict[bytes, _Slot] = {}
        self._holders: dict[bytes, _Slot] = {}  # files that have several names in the source
        self._writer = TreeWriter(
            destination, applier, on_written=self._on_written, on_failed=self._on_failed
        )

    def file(self, stored: StoredFile, *, is_linked: bool) -> None:
        """Link a file that was read, and make it an object if it is none yet.

        Args:
            is_linked: other names of the source may be hard links to it.
        """
        entry = stored.entry
        slot = self._slot(entry)
        if is_linked:
            self._holders[entry.path] = slot

        def place(dir_fd: int, name: bytes) -> None:
            if stored.path is not None and self._instances.publish(stored.path, entry, stored.name):
                self._report.added_objects += 1
                self._report.added_bytes += entry.size
            instance = self._instances.link(stored.name, entry, dir_fd, name)
            slot.entry = with_object(entry, instance)

        self._writer.place(entry, place, size=entry.size if stored.path is not None else None)
        self._write_out()

    def same(self, entry: Entry, *, is_linked: bool) -> None:
        """Link a file whose object is there, as an index says."""
        slot = self._slot(entry)
        if is_linked:
            self._holders[entry.path] = slot

        def place(dir_fd: int, name: bytes) -> None:
            instance = self._instances.link(object_of(entry), entry, dir_fd, name)
            slot.entry = with_object(entry, instance)

        self._writer.place(entry, place, size=None)
        self._write_out()

    def link(self, entry: Entry) -> None:
        """Make a hard link to an earlier path of the tree."""
        assert entry.link_of is not None  # the caller looked
        self._slot(entry)
        holder = self._holders.get(entry.link_of)
        if holder is None:  # of a symlink, FIFO or device node
            self._writer.link(entry, entry.link_of)
            self._write_out()
            return

        def place(dir_fd: int, name: bytes) -> None:
            if holder.entry is None:
                raise OSError(errno.ENOENT, "the file it is a hard link of is not there")
            self._instances.link(object_of(holder.entry), holder.entry, dir_fd, name)

        self._writer.place(entry, place, size=None)
        self._write_out()

    def other(self, entry: Entry) -> None:
        """Make a directory, symlink, FIFO or device node."""
        slot = self._slot(entry)
        if entry.type == DIRECTORY:
            self._writer.directory(entry)
            del self._waiting[entry.path]
            slot.is_done = True
        else:
            try:
                self._writer.special(entry)
            except (OSError, UnsafePathError) as error:
                if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                    raise
                self._on_failed(entry, error)
        self._write_out()

    def finish(self) -> None:
        """Bring everything to its place and onto the disk."""
        self._writer.finish()
        self._write_out()
        assert not self._slots  # every name has its place, or failed

    def _slot(self, entry: Entry) -> _Slot:
        slot = _Slot(entry)
        self._slots.append(slot)
        self._waiting[entry.path] = slot
        return slot

    def _on_written(self, entry: Entry) -> None:
        slot = self._waiting.pop(entry.path, None)  # of a directory it is long done
        if slot is not None:
            slot.is_done = True

    def _on_failed(self, entry: Entry, error: Exception) -> None:
        slot = self._waiting.pop(entry.path, None)
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        is_device = entry.type in (CHAR_DEVICE, BLOCK_DEVICE)
        if slot is not None:
            slot.is_done = True
        if is_device and isinstance(error, OSError) and error.errno in _NOT_ALLOWED:
            # An ordinary user cannot make one; the index has it, and restoring as root brings it back.
            self._report.notices.append(Problem(entry.path, "a device node, in the index alone"))
            return
        if slot is not None:
            slot.entry = None
        shown = message.removeprefix(f"{printable(entry.path)}: ")
        self._report.problems.append(Problem(entry.path, f"cannot be put into the snapshot: {shown}"))

    def _write_out(self) -> None:
        """Hand the entries at the front that are done to the index."""
        while self._slots and self._slots[0].is_done:
            entry = self._slots.popleft().entry
            if entry is not None:
                self._draft.add(entry)
