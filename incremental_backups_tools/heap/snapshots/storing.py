"""Reading a live file into a file that may become an object, hashing it on the way.

The file is read as ``tree/reading.py`` reads: what was taken is one state of it, or is said to be none. A small one is
held in memory until its digest says whether anything has to be written. A large one that is likely to be the same
as before is hashed first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.heap.snapshots.instances import Instances
from incremental_backups_tools.heap.snapshots.layout import ObjectName
from incremental_backups_tools.tree.entry import Entry, printable
from incremental_backups_tools.tree.metadata import capture
from incremental_backups_tools.tree.reading import OpenedFile, read_stable
from incremental_backups_tools.tree.sparse import SparseWriter, iter_zeros
from incremental_backups_tools.tree.walk import Found

SMALL_FILE_LEN: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was read.

    Attributes:
        entry: as it was read, with its digest.
        name: the object that has its content and metadata, or is to have them.
        path: a finished file that is to become the object; None where there is an object already.
        seen_ns: a time before it was looked at.
    """

    entry: Entry
    name: ObjectName
    path: str | None
    seen_ns: int


class _Hashed:
    """Takes the content of a file for its digest alone."""

    def __init__(self, found: Found, opened: OpenedFile) -> None:
        try:
            entry = capture(found, opened.stat, fd=opened.fd)
        except (OSError, ValueError) as error:
            raise SourceError(f"{printable(found.rel_path)}: cannot read its metadata: {error}") from error
        self.entry = msgspec.structs.replace(entry, sparse=opened.extents)
        self.hasher = blake3()

    def update(self, chunk: bytes) -> None:
        self.hasher.update(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self.hasher.update(zeros)

    def abandon(self) -> None:
        """Nothing was stored."""


class _Copied(_Hashed):
    """Takes the content and keeps it, in memory as long as it is small."""

    def __init__(self, instances: Instances, found: Found, opened: OpenedFile) -> None:
        super().__init__(found, opened)
        self._instances = instances
        self._held: list[bytes] | None = [] if opened.stat.st_size <= SMALL_FILE_LEN else None
        self.path: str | None = None
        self.fd = -1
        self._out: SparseWriter | None = None

    def update(self, chunk: bytes) -> None:
        super().update(chunk)
        if self._held is not None:
            self._held.append(chunk)
        else:
            self._writer().write(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self.hasher.update(zeros)
            if self._held is not None:
                self._held.append(zeros)
            else:
                self._writer().write(zeros)

    def _writer(self) -> SparseWriter:
        if self._out is None:
            self.path, self.fd = self._instances.new_file()
            self._out = SparseWriter(self.fd, self.entry.sparse or ((0, self.entry.size),))
        return self._out

    def write_out(self) -> None:
        """Write what is held, and give the file its length."""
        writer = self._writer()
        held, self._held = self._held or [], None
        for chunk in held:
            writer.write(chunk)
        writer.finish()

    def abandon(self) -> None:
        """Remove what was written."""
        if self.path is not None:
            os.close(self.fd)
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        self.path, self.fd, self._out = None, -1, None
        self._held = []


class FileStorer:
    """Stores files; several threads may use one at a time.

    Args:
        instances: None where nothing is to be written: then files are read and hashed only.
        on_read: called with the bytes read of each file.
    """

    def __init__(self, instances: Instances, *, dry_run: bool, on_read: Callable[[int], None]) -> None:
        self._instances = instances
        self._dry_run = dry_run
        self._on_read = on_read

    def store(self, found: Found, old: Entry | None, hint: ObjectName | None) -> StoredFile:
        """Read *found*.

        Args:
            old: what the last snapshot had under this path, if that was a file.
            hint: the object that *old* has.

        Raises:
            SourceError: gone, unreadable, its metadata too, or shrinking at every attempt.
            OSError: what was read cannot be written.
        """
        now_ns = time.time_ns()
        is_likely = old is not None and old.size == found.stat.st_size and old.size > SMALL_FILE_LEN
        if self._dry_run or is_likely:
            hashed, _, stable = read_stable(found, partial(_Hashed, found))
            self._on_read(hashed.entry.size)
            entry = _finished(hashed, stable)
            name = _name_of(entry, hint)
            if self._dry_run or self._instances.find_fault(name, entry) is None:
                return StoredFile(entry, name, None, now_ns)
        copied, _, stable = read_stable(found, partial(_Copied, self._instances, found))
        self._on_read(copied.entry.size)
        try:
            entry = _finished(copied, stable)
            name = _name_of(entry, hint)
            if self._instances.find_fault(name, entry) is None:
                copied.abandon()
                return StoredFile(entry, name, None, now_ns)
            copied.write_out()
            assert copied.path is not None  # written out
            self._instances.finish_file(copied.path, copied.fd, entry, hint)
        except BaseException:
            copied.abandon()
            raise
        os.close(copied.fd)
        return StoredFile(entry, name, copied.path, now_ns)


def _finished(read: _Hashed, stable: bool) -> Entry:
    return msgspec.structs.replace(read.entry, digest=read.hasher.digest(), unstable=not stable)


def _name_of(entry: Entry, hint: ObjectName | None) -> ObjectName:
    """The instance that *entry* had before, where it would be another of the same, or else the first."""
    first = ObjectName.of(entry)
    if hint is not None and (hint.digest, hint.metadata) == (first.digest, first.metadata):
        return hint
    return first
