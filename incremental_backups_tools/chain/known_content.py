"""Which contents are held already: by the parent's index, or by what this backup has stored so far.

Beside each index stands a table: for each content one place in that index. Of a content that is looked for it
gives the place, the index gives the entry, and the entry's whole digest decides. So a table is a hint that need
not be trusted: a wrong one finds nothing. It lies on disk, as the index does, so that memory stays flat.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from collections import OrderedDict
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, cast
from urllib.parse import quote

import zstandard

from incremental_backups_tools.chain.index_cache import (
    IndexCacheWriter,
    Place,
    ReaderFrom,
    parse_resolved,
)
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import FormatError, UnsafePathError
from incremental_backups_tools.tree.entry import FILE
from incremental_backups_tools.tree.records import FRAME_LEN, MAX_LINE_LEN, MAX_WINDOW_LEN

_SCHEMA: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA temp_store = MEMORY;
    CREATE TABLE owner (token TEXT NOT NULL);
    CREATE TABLE content (
        size INTEGER, digest INTEGER, frame INTEGER, offset INTEGER, PRIMARY KEY (size, digest)
    ) WITHOUT ROWID;
    BEGIN;
"""
_CACHE_KIB: Final = 16 << 10
_PENDING_ROWS: Final = 4096
_CACHED_FRAMES: Final = 4
_CHUNK_LEN: Final = 1 << 18
# One byte for each beginning of a digest: most contents that a backup looks for are new, and asking the table takes
# longer than all else that is done about a small file. With a million contents it still spares one question in three.
_SEEN_LEN: Final = 1 << 20
_SEEN_MASK: Final = _SEEN_LEN - 1

log = logging.getLogger(__name__)


class ContentTable:
    """Finds the place of a content in one index by its size and the first eight bytes of its digest.

    Where two contents agree in these the first stays, and the other is not found. A table that fails, on a
    full disk or because its file is damaged, says so in the log and finds nothing more.
    """

    def __init__(self, connection: sqlite3.Connection, file: BinaryIO | None) -> None:
        self._connection = connection
        self._file = file
        self._pending: dict[tuple[int, int], Place] = {}
        self._seen = bytearray(_SEEN_LEN) if file is not None else None
        self._is_usable = True

    @classmethod
    def create(cls) -> ContentTable:
        """An empty table in a temporary file that has no name."""
        with ExitStack() as stack:
            with tempfile.TemporaryDirectory(prefix="ibt-contents-") as directory:
                path = os.path.join(directory, "contents")
                connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                file = stack.enter_context(open(path, "rb", buffering=0))
                table = cls(connection, cast(BinaryIO, file))
                try:
                    connection.executescript(_SCHEMA)
                    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                except sqlite3.Error as error:
                    table._give_up(error)
            stack.pop_all()
            return table

    @classmethod
    def open(cls, path: str, token: str) -> ContentTable | None:
        """The table in the file *path*; None where it is not there, damaged, or not of the index *token*."""
        name = quote(os.fsencode(os.path.abspath(path)))
        try:
            connection = sqlite3.connect(f"file:{name}?mode=ro&immutable=1", uri=True, isolation_level=None)
        except sqlite3.Error:
            return None
        try:
            if connection.execute("SELECT token FROM owner").fetchall() == [(token,)]:
                return cls(connection, None)
        except sqlite3.Error as error:
            log.info("the table of contents is made anew: %s", error)
        connection.close()
        return None

    def add(self, size: int, digest: bytes, place: Place) -> None:
        """Note where a content is, unless a place of it is known."""
        if self._seen is not None:
            self._seen[int.from_bytes(digest[:3], "big") & _SEEN_MASK] = 1
        self._pending.setdefault((size, _prefix(digest)), place)
        if len(self._pending) >= _PENDING_ROWS:
            self._flush()

    def has_size(self, size: int, *, but: bytes | None = None) -> bool:
        """Whether any content has *size* bytes, other than the one with the digest *but*."""
        self._flush()
        query = "SELECT 1 FROM content WHERE size = ? AND digest IS NOT ? LIMIT 1"
        return self._row(query, size, _prefix(but) if but is not None else None) is not None

    def place_of(self, size: int, digest: bytes) -> Place | None:
        """Where a content should be; what is there decides whether it is."""
        if self._seen is not None and not self._seen[int.from_bytes(digest[:3], "big") & _SEEN_MASK]:
            return None
        key = (size, _prefix(digest))
        row = self._row("SELECT frame, offset FROM content WHERE size = ? AND digest = ?", *key)
        if row is None:
            return self._pending.get(key)
        frame, offset = row
        if not (isinstance(frame, int) and isinstance(offset, int) and frame >= 0 and offset >= 0):
            return None
        return Place(frame, offset)

    def save(self, token: str, out: BinaryIO) -> None:
        """Write the table of the index *token* to *out*. Nothing can be added afterwards.

        A table that failed writes nothing, and an empty file is no table.
        """
        self._flush()
        if self._is_usable and self._file is not None:
            try:
                self._connection.execute("INSERT INTO owner VALUES (?)", (token,))
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                self._give_up(error)
                return
            self._file.seek(0)
            while chunk := self._file.read(_CHUNK_LEN):
                out.write(chunk)

    def close(self) -> None:
        """Free it. May be called again."""
        self._connection.close()
        if self._file is not None:
            self._file.close()

    def _row(self, query: str, *values: int | None) -> tuple[object, ...] | None:
        if not self._is_usable:
            return None
        try:
            return cast(tuple[object, ...] | None, self._connection.execute(query, values).fetchone())
        except sqlite3.Error as error:
            self._give_up(error)
            return None

    def _flush(self) -> None:
        if self._is_usable and self._pending:
            rows = sorted((*key, *place) for key, place in self._pending.items())
            try:
                self._connection.executemany("INSERT OR IGNORE INTO content VALUES (?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                self._give_up(error)
        self._pending.clear()

    def _give_up(self, error: sqlite3.Error) -> None:
        self._is_usable = False
        log.warning("what is stored already cannot be looked up any more, and is stored again: %s", error)


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big", signed=True)


class IndexLines:
    """Reads single lines of an index that is written or read elsewhere through the same file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frames: OrderedDict[int, bytes] = OrderedDict()

    def line_at(self, place: Place) -> bytes | None:
        """The line at *place*; None where none begins or ends."""
        frame = self._frames.get(place.frame)
        if frame is None:
            frame = self._frames[place.frame] = self._read_frame(place.frame)
            if len(self._frames) > _CACHED_FRAMES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(place.frame)
        end = frame.find(b"\n", place.offset)
        return frame[place.offset : end] if end >= 0 else None

    def _read_frame(self, offset: int) -> bytes:
        self._file.flush()
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
        source = cast(BinaryIO, ReaderFrom(self._file.fileno(), offset))
        try:
            with decompressor.stream_reader(source, closefd=False) as reader:
                return reader.read(FRAME_LEN + MAX_LINE_LEN + 1)
        except (zstandard.ZstdError, OSError, OverflowError) as error:
            log.warning("cached index: nothing can be read at byte %d: %s", offset, error)
            return b""


@dataclass(frozen=True, slots=True)
class Known:
    """A content that is held already.

    Attributes:
        resolved: the entry that has it, a regular file and no hard link.
        is_parent: of the parent's index; otherwise this backup has stored it.
    """

    resolved: ResolvedEntry
    is_parent: bool


class KnownContent:
    """Looks contents up while a backup is made.

    Args:
        parent: file and table of the index that it stands on; None in a full.
        own: the index that is written, its file, and its table.
        own_files: what the names of this backup's files begin with, and no other's: tells what it stored from
            what its parent had.
    """

    def __init__(
        self,
        *,
        parent: tuple[BinaryIO, ContentTable] | None,
        own: IndexCacheWriter,
        own_file: BinaryIO,
        own_contents: ContentTable,
        own_files: str,
    ) -> None:
        self._parent = (IndexLines(parent[0]), parent[1]) if parent is not None else None
        self._own = own
        self._own_lines = IndexLines(own_file)
        self._own_contents = own_contents
        self._own_files = own_files

    def has_size(self, size: int, *, but: bytes | None) -> bool:
        """Whether hashing a file of *size* bytes first may spare storing it: another content is as long.

        Args:
            but: the digest of what the same path had: a file that is edited in place most often keeps its size.
        """
        if size < MIN_SHARED_LEN:
            return False
        tables = [self._own_contents] if self._parent is None else [self._parent[1], self._own_contents]
        return any(table.has_size(size, but=but) for table in tables)

    def find(self, size: int, digest: bytes) -> Known | None:
        """Who has the content of *size* bytes with the BLAKE3 *digest*; the parent first."""
        if size < MIN_SHARED_LEN:
            return None
        if self._parent is not None:
            lines, contents = self._parent
            place = contents.place_of(size, digest)
            line = lines.line_at(place) if place is not None else None
            if (resolved := _holder(line, size, digest)) is not None:
                return Known(resolved, is_parent=True)
        place = self._own_contents.place_of(size, digest)
        if place is None:
            return None
        # The frame that is being written is not in the file yet.
        line = self._own.open_line(place) if self._own.is_open(place) else self._own_lines.line_at(place)
        resolved = _holder(line, size, digest)
        if resolved is None or not resolved.data[-1].file.startswith(self._own_files):
            return None
        return Known(resolved, is_parent=False)


def _holder(line: bytes | None, size: int, digest: bytes) -> ResolvedEntry | None:
    """The entry in *line*, if it is one and has that content."""
    if line is None:
        return None
    with suppress(FormatError, UnsafePathError):  # a place that the table made up
        resolved = parse_resolved(line)
        entry = resolved.entry
        if (entry.type, entry.link_of, entry.size) == (FILE, None, size):
            if entry.digest == resolved.content_digest == digest and resolved.data:
                return resolved
    return None
