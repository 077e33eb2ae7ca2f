"""Healing: an object that was damaged and is right again takes its damaged place in every snapshot.

A damaged inode is linked to by the trees of all snapshots that had the file. When the source still held it, it was
stored anew under the object's name, or an instance of the same content was; here the trees get links to it, one rename
for each name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import BackupError, UnsafePathError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import object_of
from incremental_backups_tools.heap.snapshots.instances import Instances
from incremental_backups_tools.heap.snapshots.layout import ObjectName, parse_damaged_path
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.tree.destination import Destination, temporary_name
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.metadata import MetadataApplier


def heal(depot: Depot, instances: Instances, applier: MetadataApplier, report: SnapshotReport) -> None:
    """Have every snapshot link to right objects in place of those that were found damaged or missing.

    What nothing has the content of stays as it is, and so does, with a notice, a snapshot whose index cannot be read.

    Raises:
        OSError: the file system fails.
    """
    aside = (parse_damaged_path(file_name) for file_name in depot.damaged())
    wanted = {*instances.healed, *(name for name in aside if name is not None)}
    if not wanted:
        return
    healing = _Healing(instances, applier, wanted)
    is_complete = True
    for root in depot.names():
        for snapshot_id in depot.snapshot_ids(root):
            try:
                tree = depot.tree_path(root, snapshot_id)
                healing.snapshot(tree, depot.entries(root, snapshot_id))
            except (BackupError, FileNotFoundError) as error:
                is_complete = False
                report.notices.append(Problem(ROOT, f"{root}@{snapshot_id} could not be healed: {error}"))
    report.healed = len(healing.healed)
    if is_complete:
        for name in healing.healed:
            with suppress(FileNotFoundError):
                os.unlink(instances.damaged_path(name))


class _Healing:
    """Healing snapshot by snapshot.

    Attributes:
        healed: the instances that are right again.
    """

    def __init__(self, instances: Instances, applier: MetadataApplier, wanted: set[ObjectName]) -> None:
        self._instances = instances
        self._applier = applier
        self._wanted = wanted
        self.healed: set[ObjectName] = set()

    def snapshot(self, tree: str, entries: Iterable[Entry]) -> None:
        """Link the names in *tree* whose objects are wanted to what is right."""
        touched: dict[bytes, Entry] = {}
        directories: dict[bytes, Entry] = {}  # those that lead to the current path
        holders: dict[bytes, ObjectName] = {}
        with Destination(tree, create=False) as destination:
            for entry in entries:
                if entry.type == DIRECTORY:
                    directories = {
                        path: known for path, known in directories.items() if _leads_to(path, entry.path)
                    }
                    directories[entry.path] = entry
                if entry.type != FILE:
                    continue
                name = holders.get(entry.link_of) if entry.link_of is not None else object_of(entry)
                if name is None or not self._is_right(name, entry):
                    continue
                holders[entry.path] = name
                if _relink(destination, self._instances, name, entry):
                    parent = entry.path.rpartition(b"/")[0] or ROOT
                    touched[parent] = directories[parent]
            for parent, entry in touched.items():
                self._applier.apply_to_fd(destination.directory(parent), entry)
            if touched:
                sync_filesystem(destination.fd)

    def _is_right(self, name: ObjectName, entry: Entry) -> bool:
        """Whether *name* is wanted, and there is something to link to now."""
        if name not in self._wanted:
            return False
        if name not in self.healed and self._instances.make_again(name, entry):
            self.healed.add(name)
        return name in self.healed


def _relink(destination: Destination, instances: Instances, name: ObjectName, entry: Entry) -> bool:
    """Have one name link to its object; False where it does."""
    info = destination.lstat(entry.path)
    if info is not None and stat.S_ISDIR(info.st_mode):
        raise UnsafePathError(f"{printable(entry.path)}: a directory has a file's place")
    if info is not None and os.path.samestat(info, os.lstat(instances.path(name))):
        return False
    dir_fd, file_name = destination.parent(entry.path)
    temporary = temporary_name()
    instances.link(name, entry, dir_fd, temporary)
    try:
        os.rename(temporary, file_name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=dir_fd)
    return True


def _leads_to(directory: bytes, path: bytes) -> bool:
    return directory == ROOT or path.startswith(directory + b"/")
