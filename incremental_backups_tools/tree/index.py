"""DirIndex: a directory's file list and block signatures at one moment.

An index is a sorted stream of entries, each regular file with its digest and its signature. It is captured
into a file, a temporary one unless the caller names one, so that memory stays flat however large the tree is.
"""

from __future__ import annotations

import base64
import binascii
import functools
import io
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.delta import SignatureBuilder, choose_block_len
from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import SourceError, StateFormatError, UnsupportedVersionError
from incremental_backups_tools.tree.entry import (
    DIRECTORY,
    FILE,
    ROOT,
    Entry,
    EntryLine,
    bytes_of,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
    printable,
    sort_key,
    text_or_b64,
)
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, capture_unread, type_of
from incremental_backups_tools.tree.reading import OpenedFile, read_stable
from incremental_backups_tools.tree.records import RecordReader, RecordWriter
from incremental_backups_tools.tree.source import Source, fs_path_of, walk_source
from incremental_backups_tools.tree.sparse import iter_zeros
from incremental_backups_tools.tree.walk import Found, ProblemHandler

INDEX_FORMAT: Final = "ibt-index"
INDEX_VERSION: Final = 1


class IndexHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """First line of an index file. ``root`` is where the tree lay; it is absent where it is not UTF-8."""

    format: str
    version: int
    root: str | None = None
    root_b64: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """What could not be read, or was skipped: a path and why."""

    path: bytes
    message: str

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.message}"


class IndexedEntry(msgspec.Struct, frozen=True):
    """An entry and, for a regular file, its librsync signature."""

    entry: Entry
    signature: bytes | None = None

    @property
    def path(self) -> bytes:
        """The entry's path."""
        return self.entry.path


class IndexData:
    """An index that was captured or loaded. Iterating yields its :class:`IndexedEntry` in sort order.

    Its file stays open until :meth:`close`, or until nobody holds the object any more.

    Attributes:
        root: where the tree lay when it was captured, a path on this machine or another.
        problems: what could not be read, of an index captured just now.
    """

    def __init__(self, descriptor: int, *, what: str, problems: tuple[Problem, ...] = ()) -> None:
        self._descriptor = descriptor
        self.close = weakref.finalize(self, os.close, descriptor)
        self._what = what
        self.problems = problems
        self.root = _root_of(RecordReader(self._at_start(), what=what).header, what)

    def __iter__(self) -> Iterator[IndexedEntry]:
        previous = b""
        for position, raw in enumerate(RecordReader(self._at_start(), what=self._what)):
            line = parse_line(raw)
            entry = entry_of_line(line)
            key = sort_key(entry.path)
            if position and key <= previous:
                raise StateFormatError(f"{self._what}: {printable(entry.path)} is not in sort order")
            previous = key
            yield IndexedEntry(entry, _signature_of(line, entry))

    @property
    def files(self) -> list[bytes]:
        """Paths of everything but directories."""
        return [item.path for item in self if item.entry.type != DIRECTORY]

    @property
    def subdirs(self) -> list[bytes]:
        """Paths of the directories below the root."""
        return [item.path for item in self if item.entry.type == DIRECTORY and item.path != ROOT]

    def fileno(self) -> int:
        """The descriptor of the stream, which stays this object's."""
        return self._descriptor

    def to_file(self, fs_path: str | os.PathLike[str]) -> None:
        """Write the index to a file, whole or not at all."""
        with atomic_write(fs_path) as out:
            source = self._at_start()
            while chunk := source.read(1 << 20):
                out.write(chunk)

    def _at_start(self) -> BinaryIO:
        """A reader of its own position, so that iterations do not disturb each other."""
        return cast(BinaryIO, io.BufferedReader(_PositionedReader(self, self._descriptor), 1 << 18))


class _PositionedReader(io.RawIOBase):
    """Reads a descriptor by absolute position."""

    def __init__(self, owner: IndexData, descriptor: int) -> None:
        self._owner = owner  # keeps the descriptor open
        self._descriptor = descriptor
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._descriptor, [buffer], self._position)
        self._position += count
        return count


class DirIndex:
    """The index of a directory as it is now.

    Args:
        directory: a path, a :class:`Dir`, or any object with dirtools' interface.
        on_problem: called for each name that cannot be read or backed up; without it an unreadable name is a
            ``SourceError``, and skipped sockets are only listed in ``data().problems``.
    """

    def __init__(self, directory: Source, *, on_problem: ProblemHandler | None = None) -> None:
        self._directory = directory
        self._on_problem = on_problem

    def data(self) -> IndexData:
        """Capture the index.

        Raises:
            SourceError: the directory, or without ``on_problem`` anything in it, cannot be read.
        """
        with tempfile.TemporaryFile(prefix="ibt-index-") as file:
            problems = self._capture(cast(BinaryIO, file))
            file.flush()
            return IndexData(os.dup(file.fileno()), what="index", problems=tuple(problems))

    def to_file(self, fs_path: str | os.PathLike[str]) -> IndexData:
        """Capture the index and write it to a file, whole or not at all.

        Raises:
            SourceError: as :meth:`data`.
            OSError: the file cannot be written.
        """
        data = self.data()
        data.to_file(fs_path)
        return data

    @classmethod
    def from_file(cls, fs_path: str | os.PathLike[str]) -> IndexData:
        """Open an index that :meth:`to_file` wrote. It is read as it is iterated.

        Raises:
            OSError: the file cannot be opened.
            StateFormatError, UnsupportedVersionError: it is no index; here, or while iterating.
        """
        return IndexData(os.open(fs_path, os.O_RDONLY | os.O_CLOEXEC), what=os.fspath(fs_path))

    def _capture(self, file: BinaryIO) -> list[Problem]:
        problems: list[Problem] = []
        writer = RecordWriter(file, _encode_header(fs_path_of(self._directory)))
        links = HardLinks()

        def report(path: bytes, message: str) -> None:
            problems.append(Problem(path, message))
            if self._on_problem is not None:
                self._on_problem(path, message)

        def fail(path: bytes, message: str) -> None:
            report(path, message)
            if self._on_problem is None:
                raise SourceError(f"{printable(path)}: {message}")

        for found in walk_source(self._directory, on_problem=fail):
            if type_of(found.stat.st_mode) is None:
                report(found.rel_path, "a socket, skipped")
                continue
            try:
                item = _index_entry(found, links)
            except SourceError as error:
                if self._on_problem is None:
                    raise
                links.forget(found.rel_path, found.stat)
                report(found.rel_path, str(error))
                continue
            line = line_of_entry(item.entry)
            if item.signature is not None:
                line.signature = base64.b64encode(item.signature).decode()
            writer.write(encode_line(line))
        writer.close()
        return problems


class _Fingerprint:
    """Takes a file's content; gives its entry with its digest, and its signature."""

    def __init__(self, found: Found, opened: OpenedFile) -> None:
        self._entry = capture(found, opened.stat, fd=opened.fd)
        self._extents = opened.extents
        self._hasher = blake3()
        self._signature = SignatureBuilder(block_len=choose_block_len(opened.stat.st_size))

    def update(self, chunk: bytes) -> None:
        self._hasher.update(chunk)
        self._signature.update(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self.update(zeros)

    def abandon(self) -> None:
        """Nothing outlives this object."""

    def finish(self, *, stable: bool) -> IndexedEntry:
        entry = msgspec.structs.replace(
            self._entry, sparse=self._extents, digest=self._hasher.digest(), unstable=not stable
        )
        return IndexedEntry(entry, self._signature.finish())


def _index_entry(found: Found, links: HardLinks) -> IndexedEntry:
    link_of = links.earlier_link(found.rel_path, found.stat)
    if type_of(found.stat.st_mode) != FILE or link_of is not None:
        item = IndexedEntry(capture_unread(found, link_of=link_of))
    else:
        try:
            fingerprint, _, stable = read_stable(found, functools.partial(_Fingerprint, found))
        except (OSError, ValueError) as error:
            raise SourceError(f"{printable(found.rel_path)}: {error}") from error
        item = fingerprint.finish(stable=stable)
    links.confirm(found.rel_path, found.stat, item.entry)
    return item


def _encode_header(root: str) -> bytes:
    text, text_b64 = text_or_b64(os.fsencode(root))
    return msgspec.json.encode(IndexHeader(INDEX_FORMAT, INDEX_VERSION, root=text, root_b64=text_b64))


def _root_of(raw: bytes, what: str) -> str:
    try:
        header = msgspec.json.decode(raw, type=IndexHeader)
        root = bytes_of(header.root, header.root_b64) or b""
    except ValueError as error:  # msgspec.DecodeError is one
        raise StateFormatError(f"{what}: not an index: {error}") from None
    if header.format != INDEX_FORMAT:
        raise StateFormatError(f"{what}: not an index but {header.format!r}")
    if header.version > INDEX_VERSION:
        raise UnsupportedVersionError(
            f"{what}: index format {header.version}; this program reads up to {INDEX_VERSION}"
        )
    return os.fsdecode(root)


def _signature_of(line: EntryLine, entry: Entry) -> bytes | None:
    if line.signature is None:
        return None
    try:
        return base64.b64decode(line.signature, validate=True)
    except binascii.Error:
        raise StateFormatError(f"{printable(entry.path)}: its signature is not base64") from None
