"""The table of contents that stands beside a cached index: who has a content, by its size and digest.

A row names a path, and nothing that changes when the index is written anew. So the table outlives the index it was
made with: an incremental copies it, takes out the rows of what it found gone or changed, and adds those of what it
met anew. Each file with content has a row of its own, also where several have one content: when one of them goes
the others are still found. The table is bound to its index by the index's token.

It is a hint that need not be trusted: the index gives the entry at the path, and the entry's whole digest decides.
It lies on disk, as the index does, so that memory stays flat.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from typing import BinaryIO, Final, cast
from urllib.parse import quote

from incremental_backups_tools.chain.seen_filter import (
    add_to_filter,
    digest_prefix,
    is_in_filter,
    new_filter,
)
from incremental_backups_tools.tree.entry import sort_key

# Rows have sort keys of paths, so that the first of several is the one that a backup came to first. Rows of "gone" are
# of the index that the one with this table comes after.
_SCHEMA: Final = """
    CREATE TABLE owner (token TEXT NOT NULL);
    CREATE TABLE content (
        size INTEGER, digest INTEGER, path BLOB, PRIMARY KEY (size, digest, path)
    ) WITHOUT ROWID;
    CREATE TABLE gone (
        size INTEGER, digest INTEGER, path BLOB, PRIMARY KEY (size, digest, path)
    ) WITHOUT ROWID;
    BEGIN;
"""
_SETTINGS: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA temp_store = MEMORY;
    PRAGMA cache_size = -16384;
"""
_ADD: Final = "INSERT OR IGNORE INTO content VALUES (?, ?, ?)"
_ADD_GONE: Final = "INSERT OR IGNORE INTO gone VALUES (?, ?, ?)"
_REMOVE: Final = "DELETE FROM content WHERE size = ? AND digest = ? AND path = ?"
_FIRST_PATH: Final = "SELECT path FROM content WHERE size = ? AND digest = ? ORDER BY path LIMIT 1"
_WITH_SIZE: Final = "SELECT 1 FROM content WHERE size = ? LIMIT 1"
# Other contents than one in two ranges: very many files may have that one.
_BELOW: Final = "SELECT 1 FROM content WHERE size = ? AND digest < ? LIMIT 1"
_ABOVE: Final = "SELECT 1 FROM content WHERE size = ? AND digest > ? LIMIT 1"
_PENDING_ROWS: Final = 4096
_CHUNK_LEN: Final = 1 << 18

log = logging.getLogger(__name__)

_Row = tuple[int, int, bytes]


class ContentTable:
    """Finds the path of a content in one index by its size and the first eight bytes of its digest.

    Where several have it, or two contents agree in these, the first path in sort order is found. A table that
    fails, on a full disk or because its file is damaged, says so in the log, finds nothing more and is not kept.

    Attributes:
        seen: a filter that has all contents; None of a table that was opened.
    """

    def __init__(self, connection: sqlite3.Connection, file: BinaryIO, token: str | None) -> None:
        self._connection = connection
        self._file = file
        self._token = token
        self._pending: list[_Row] = []
        self._found: dict[
            tuple[int, int], bytes
        ] = {}  # who has a content, of the first so many that are pending
        self._found_len = 0
        self._pending_gone: list[_Row] = []
        self.seen = new_filter() if token is None else None
        self._is_usable = True

    @classmethod
    def create(cls) -> ContentTable:
        """An empty table in a temporary file that has no name."""
        connection, file = _temporary_database(None)
        table = cls(connection, file, None)
        try:
            connection.executescript(_SETTINGS + _SCHEMA)
        except sqlite3.Error as error:
            table._give_up(error)
        return table

    @classmethod
    def open(cls, path: str, token: str) -> ContentTable | None:
        """The table in the file *path*; None where it is not there, damaged, or not of the index *token*."""
        name = quote(os.fsencode(os.path.abspath(path)))
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "rb", buffering=0))
                uri = f"file:{name}?mode=ro&immutable=1"
                connection = stack.enter_context(
                    closing(sqlite3.connect(uri, uri=True, isolation_level=None))
                )
                if not _is_of(connection, token):
                    return None
            except (OSError, sqlite3.Error) as error:
                log.info("the table of contents is made anew: %s", error)
                return None
            stack.pop_all()
        return cls(connection, cast(BinaryIO, file), token)

    def add(self, size: int, digest: bytes, path: bytes) -> None:
        """Note that *path* has a content."""
        prefix = digest_prefix(digest)
        if self.seen is not None:
            add_to_filter(self.seen, prefix)
        self.add_rows([(size, prefix, sort_key(path))])

    def add_rows(self, rows: list[_Row]) -> None:
        """Note contents that the filter has: size, :func:`digest_prefix`, and the sort key of a path."""
        self._pending += rows
        if len(self._pending) >= _PENDING_ROWS:
            self._flush()

    def remove(self, size: int, digest: bytes, path: bytes) -> None:
        """Note that *path* had a content in the index before, and has it no more."""
        self._pending_gone.append((size, digest_prefix(digest), sort_key(path)))
        if len(self._pending_gone) >= _PENDING_ROWS:
            self._flush()

    def has_size(self, size: int, *, but: bytes | None = None) -> bool:
        """Whether any content has *size* bytes, other than the one with the digest *but*."""
        self._flush()
        if but is None:
            return self._row(_WITH_SIZE, size) is not None
        prefix = digest_prefix(but)
        return any(self._row(query, size, prefix) is not None for query in (_BELOW, _ABOVE))

    def path_of(self, size: int, digest: bytes) -> bytes | None:
        """Who should have a content; the index decides whether it does."""
        prefix = digest_prefix(digest)
        if self.seen is not None and not is_in_filter(self.seen, prefix):
            return None
        row = self._row(_FIRST_PATH, size, prefix)
        found = row[0] if row is not None else self._first_pending(size, prefix)
        return found.replace(b"\0", b"/") if isinstance(found, bytes) else None

    def _first_pending(self, size: int, prefix: int) -> bytes | None:
        """The first path that has a content among the rows that are not in the file yet."""
        for row in self._pending[self._found_len :]:
            self._found.setdefault(row[:2], row[2])
        self._found_len = len(self._pending)
        return self._found.get((size, prefix))

    def save(self, token: str, out: BinaryIO, *, before: ContentTable | None = None) -> None:
        """Write the table of the index *token* to *out*. Nothing can be added afterwards.

        A table that failed writes nothing, and an empty file is no table.

        Args:
            before: of the index before: what it has and this one neither removed nor added is there, too.
        """
        try:
            if before is not None:
                self._save_onto(before, token, out)
            elif self._commit(token):
                _copy(self._file, out)
        except (sqlite3.Error, OSError) as error:
            log.warning("the table of contents cannot be kept, and is made anew next time: %s", error)

    def close(self) -> None:
        """Free it. May be called again."""
        self._connection.close()
        self._file.close()

    def _save_onto(self, before: ContentTable, token: str, out: BinaryIO) -> None:
        self._flush()
        is_whole = before._is_usable if before._token is not None else before._commit(None)
        if not (self._is_usable and is_whole):
            return
        connection, file = _temporary_database(before._file)
        with closing(connection), file:
            if before._token is not None and not _is_of(connection, before._token):
                return  # another process has replaced it
            connection.executescript(_SETTINGS + "BEGIN;")
            connection.executemany(_REMOVE, self._connection.execute("SELECT size, digest, path FROM gone"))
            connection.executemany(_ADD, self._connection.execute("SELECT size, digest, path FROM content"))
            connection.execute("DELETE FROM owner")
            connection.execute("INSERT INTO owner VALUES (?)", (token,))
            connection.execute("COMMIT")
            _copy(file, out)

    def _commit(self, token: str | None) -> bool:
        """Have all that was added in the file; tell whether it is."""
        self._flush()
        if self._is_usable:
            if token is not None:
                self._connection.execute("INSERT INTO owner VALUES (?)", (token,))
            self._connection.execute("COMMIT")
        return self._is_usable

    def _row(self, query: str, *values: int) -> tuple[object, ...] | None:
        if not self._is_usable:
            return None
        try:
            return cast(tuple[object, ...] | None, self._connection.execute(query, values).fetchone())
        except sqlite3.Error as error:
            self._give_up(error)
            return None

    def _flush(self) -> None:
        if self._is_usable and (self._pending or self._pending_gone):
            try:
                self._connection.executemany(_ADD, sorted(self._pending))
                self._connection.executemany(_ADD_GONE, sorted(self._pending_gone))
            except sqlite3.Error as error:
                self._give_up(error)
        self._pending.clear()
        self._found.clear()
        self._found_len = 0
        self._pending_gone.clear()

    def _give_up(self, error: sqlite3.Error) -> None:
        self._is_usable = False
        log.warning("what is stored already cannot be looked up any more, and is stored again: %s", error)


def _temporary_database(content: BinaryIO | None) -> tuple[sqlite3.Connection, BinaryIO]:
    """A database in a temporary file that has no name any more, and that file.

    Args:
        content: of which it is a copy; None is an empty one.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="ibt-contents-") as directory:
        path = os.path.join(directory, "contents")
        with open(path, "wb") as copy:
            if content is not None:
                _copy(content, copy)
        connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
        connection.execute("PRAGMA schema_version").fetchone()  # opens it, while it has a name
        file = cast(BinaryIO, stack.enter_context(open(path, "rb", buffering=0)))
        stack.pop_all()
    return connection, file


def _copy(file: BinaryIO, out: BinaryIO) -> None:
    file.seek(0)
    while chunk := file.read(_CHUNK_LEN):
        out.write(chunk)


def _is_of(connection: sqlite3.Connection, token: str) -> bool:
    return connection.execute("SELECT token FROM owner").fetchall() == [(token,)]
