"""A snapshot's index: what it holds, in sort order, and which object has each file's content.

A stream of records as in ``tree/records.py``. The header says what the snapshot is. Then one entry a line: a regular
file's ``data`` names its object; a hard link of an earlier path has none of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import msgspec

from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import StateFormatError, UnsupportedVersionError
from incremental_backups_tools.heap.snapshots.layout import ObjectName, parse_object_path
from incremental_backups_tools.tree.entry import (
    FILE,
    Entry,
    Location,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
    printable,
    sort_key,
)
from incremental_backups_tools.tree.records import RecordReader, RecordWriter, read_header

INDEX_FORMAT: Final = "ibt-snapshot"
INDEX_VERSION: Final = 1
# A header is a few hundred bytes: this much of a file has its whole frame.
_HEADER_START_LEN: Final = 1 << 16
_SPOOL_LEN: Final = 8 << 20


class SnapshotHeader(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a snapshot is.

    Attributes:
        id: its time, as a backup's id.
        source: the directory it is of; what is not UTF-8 in it is escaped.
        start_ns, end_ns: when it was begun and when it was whole, in nanoseconds since 1970 UTC.
        entries, files, bytes: how many names it has, how many of them regular files, and their sizes added up.
        added_objects, added_bytes: what it brought that no snapshot had.
        problems: how many names could not be read.
        imported: the name that another tool had given it.
    """

    format: str = INDEX_FORMAT
    version: int = INDEX_VERSION
    name: str
    id: str
    source: str
    host: str
    start_ns: int
    end_ns: int
    entries: int = 0
    files: int = 0
    bytes: int = 0
    added_objects: int = 0
    added_bytes: int = 0
    problems: int = 0
    imported: str | None = None


class IndexDraft:
    """The entries of an index that is being made, in sort order; the header comes last, with the counts.

    Attributes:
        entries, files, bytes: as in :class:`SnapshotHeader`.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.files = 0
        self.bytes = 0
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_LEN, prefix="ibt-index-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def add(self, entry: Entry) -> None:
        """Append *entry*."""
        self.entries += 1
        if entry.type == FILE:
            self.files += 1
            self.bytes += entry.size
        self._spool.write(encode_line(line_of_entry(entry)) + b"\n")

    def publish(self, fs_path: str, header: SnapshotHeader) -> None:
        """Write the index, whole and durable or not at all.

        Raises:
            OSError: it cannot be written, or there is one already.
        """
        with atomic_write(fs_path, mode=0o600, exclusive=True) as out:
            writer = RecordWriter(out, msgspec.json.encode(header))
            self._spool.seek(0)
            for line in self._spool:
                writer.write(line[:-1])
            writer.close()


def iter_index(fs_path: str | os.PathLike[str]) -> Iterator[Entry]:
    """The entries of an index. To come to the end without an error proves that it is whole.

    Raises:
        OSError: it cannot be read.
        StateFormatError, UnsafePathError, UnsupportedVersionError: it is damaged, or none.
    """
    what = os.fspath(fs_path)
    with open(fs_path, "rb") as file:
        reader = RecordReader(file, what=what)
        _parse_header(reader.header, what)
        previous: bytes | None = None
        for raw in reader:
            entry = entry_of_line(parse_line(raw))
            key = sort_key(entry.path)
            if previous is not None and key <= previous:
                raise StateFormatError(f"{what}: {printable(entry.path)} is not in sort order")
            previous = key
            if entry.is_content_holder and not _names_its_object(entry):
                raise StateFormatError(f"{what}: {printable(entry.path)} names no object of its content")
            yield entry


def check_index(fs_path: str | os.PathLike[str]) -> None:
    """Read an index to its end, and see that it is as it was written; entries are not looked at.

    Raises:
        OSError: it cannot be read.
        StateFormatError, UnsupportedVersionError: it is damaged, or none.
    """
    what = os.fspath(fs_path)
    with open(fs_path, "rb") as file:
        reader = RecordReader(file, what=what)
        _parse_header(reader.header, what)
        for _ in reader:
            pass


def read_snapshot_header(fs_path: str | os.PathLike[str]) -> SnapshotHeader:
    """The header of an index alone.

    Raises:
        OSError: it cannot be read.
        StateFormatError, UnsupportedVersionError: it is damaged, or none.
    """
    what = os.fspath(fs_path)
    with open(fs_path, "rb") as file:
        return _parse_header(read_header(file.read(_HEADER_START_LEN), what=what), what)


def object_of(entry: Entry) -> ObjectName:
    """The object that has the content of *entry*, a regular file of an index and no link."""
    name = parse_object_path(entry.data.file) if entry.data is not None else None
    assert name is not None  # iter_index and with_object let no other through
    return name


def with_object(entry: Entry, name: ObjectName) -> Entry:
    """*entry*, whose content is in the object *name*."""
    return msgspec.structs.replace(entry, data=Location(name.path, 0, entry.size))


def _names_its_object(entry: Entry) -> bool:
    name = parse_object_path(entry.data.file) if entry.data is not None else None
    return name is not None and entry.digest is not None and name.digest == entry.digest.hex()


def _parse_header(raw: bytes, what: str) -> SnapshotHeader:
    try:
        header = msgspec.json.decode(raw, type=SnapshotHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFormatError(f"{what}: not a snapshot's index: {error}") from None
    if header.format != INDEX_FORMAT:
        raise StateFormatError(f"{what}: not a snapshot's index but {header.format!r}")
    if header.version > INDEX_VERSION:
        raise UnsupportedVersionError(
            f"{what}: snapshot format {header.version}; this program reads up to {INDEX_VERSION}"
        )
    return header
