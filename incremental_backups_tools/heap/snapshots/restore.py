"""Restoring a snapshot, all of it or some paths, out of its index and its objects.

The trees could be copied just as well. But what they show may have been changed by anybody who may write to them; what
is restored here is checked against its digest before the file that it replaces is touched, and has the metadata of
the index.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import BackupError, IntegrityError, RepositoryError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import object_of
from incremental_backups_tools.heap.snapshots.instances import Instances, iter_chunks
from incremental_backups_tools.heap.snapshots.layout import ObjectName
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.entry import FILE, Entry, printable
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.restoring import (
    TreeRestore,
    TreeRestoreOptions,
    TreeRestoreReport,
    Warnings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions(TreeRestoreOptions):
    """How a snapshot is restored; see :class:`TreeRestoreOptions` for the rest.

    Attributes:
        wait_seconds: how long to wait while garbage is collected.
    """

    wait_seconds: float = 0.0


@dataclass(slots=True)
class RestoreReport(TreeRestoreReport):
    """What a restore did; see :class:`TreeRestoreReport` for the rest."""

    name: str
    id: str

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"name": self.name, "id": self.id, **self.counts()}


@dataclass(frozen=True, slots=True)
class _Item:
    """An entry, and the object with its content: a hard link has its first name's."""

    entry: Entry
    name: ObjectName | None


def restore_snapshot(
    depot: Depot, name: str, snapshot_id: str, dest: str | os.PathLike[str], **options: Any
) -> RestoreReport:
    """Restore a snapshot into the directory *dest*, and write nothing outside of it.

    A file that cannot be restored is listed in the report's problems and what was in its place stays as it was.

    Args:
        options: as :class:`RestoreOptions`.

    Raises:
        ChainError: a path selects nothing.
        RepositoryLockedError: garbage is being collected.
        RepositoryError, FormatError: the index cannot be read.
        OSError: *dest* cannot be made or written to.
        TypeError, ValueError: an option is none, or out of range.
    """
    chosen = RestoreOptions(**options)
    start = time.monotonic()
    report = RestoreReport(name, snapshot_id, destination=os.fspath(dest), dry_run=chosen.dry_run)
    with depot.shared(wait_seconds=chosen.wait_seconds):
        contents = _Contents(Instances(depot.objects_path, None, MetadataApplier(on_problem=Warnings().add)))
        TreeRestore(partial(_items, depot, name, snapshot_id), _whole, contents, chosen, report).run()
    report.duration = time.monotonic() - start
    return report


def _items(depot: Depot, name: str, snapshot_id: str) -> Iterator[_Item]:
    holders: dict[bytes, ObjectName] = {}
    for entry in depot.entries(name, snapshot_id):
        if entry.type != FILE:
            yield _Item(entry, None)
        elif entry.link_of is not None:
            yield _Item(entry, holders.get(entry.link_of))
        else:
            holders[entry.path] = object_of(entry)
            yield _Item(entry, holders[entry.path])


def _whole(item: _Item) -> Entry:
    """The entry as a file of its own, also where it is a hard link whose other names are not restored."""
    return msgspec.structs.replace(item.entry, digest=bytes.fromhex(_object_of(item).digest), link_of=None)


def _object_of(item: _Item) -> ObjectName:
    if item.name is None:
        raise IntegrityError(
            "the file that it is a hard link of is not in the index",
            path=printable(item.entry.path),
            expected="an object",
            actual=None,
        )
    return item.name


class _Contents:
    """The contents of a snapshot's files: each from its object, or from another one with the same content where
    that is damaged.
    """

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def place_of(self, item: _Item, /) -> None:
        """No object is cheaper to read beside another."""

    def read_small(self, items: Sequence[_Item], /) -> Sequence[bytes | BackupError]:
        """The whole content of each, or why there is none."""
        return [self._read(item) for item in items]

    def _read(self, item: _Item) -> bytes | BackupError:
        with suppress(BackupError):  # told of below, unless another one has it
            name = _object_of(item)
            content = b"".join(self._chunks(name, item.entry.size))
            if blake3(content).hexdigest() == name.digest:
                return content
        try:
            return b"".join(self.iter_chunks(item))
        except BackupError as error:
            return error

    def iter_chunks(self, item: _Item, /, idle: IdleWorkers | None = None) -> Generator[bytes, None, None]:
        """The content of one, piece by piece.

        Raises:
            RepositoryError: its object cannot be read.
            IntegrityError: it has another size, or the index names none.
        """
        name = _object_of(item)
        others = (other for other in self._instances.iter_same_content(name.digest) if other != name)
        if (other := next(others, None)) is not None and not self._is_good(name, item):
            for candidate in (other, *others):
                if self._is_good(candidate, item):
                    name = candidate
                    break
        return self._chunks(name, item.entry.size)

    def _is_good(self, name: ObjectName, item: _Item) -> bool:
        try:
            return self._instances.has_content(name, item.entry.size)
        except OSError:
            return False  # then another one is looked for

    def _chunks(self, name: ObjectName, size: int) -> Generator[bytes, None, None]:
        try:
            fd = self._instances.open(name)
            try:
                found = os.fstat(fd).st_size
                if found != size:
                    raise IntegrityError(
                        f"its object has {found} bytes, expected {size}",
                        path=name.path,
                        expected=size,
                        actual=found,
                    )
                yield from iter_chunks(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise RepositoryError(f"{self._instances.path(name)}: {error.strerror}") from error
