"""Which file of the parent a new one may have been before it was moved and edited.

An identical file is found by its digest (``chain/known_content.py``). One that was edited, too, is found by what
a move leaves behind: its inode; its base name in another directory; its directory and the end of its name. Each
is a guess, and costs a delta that may not pay, so that only files of about the same size are tried, few of them,
and such of another inode only where their own name is gone.

The names of the parent's index are put into a table by the first file that asks. The table lies on disk, so that
memory stays flat. Of names that are there still, with the inode that they had, nothing was moved, so that they are
left out; and a directory that is as it was is not even listed, since to take a name away is to change it. Only a
file that has several names may be found by one that it still has: for its sake all are put in.
"""

from __future__ import annotations

import logging
import os
import posixpath
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO, Final

import msgspec

from incremental_backups_tools.chain.index_cache import parse_resolved
from incremental_backups_tools.chain.line_search import LineSearch, iter_record_frames, read_frame_table
from incremental_backups_tools.chain.lost_names import lost_names
from incremental_backups_tools.chain.policy import MAX_MOVED_RATIO, MAX_MOVED_TRIES, MIN_MOVED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import FormatError, UnsafePathError
from incremental_backups_tools.tree.entry import FILE, bytes_of

# An empty name is a temporary database in a file that SQLite makes and removes.
_SCHEMA: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE file (id INTEGER PRIMARY KEY, path BLOB);
    CREATE TABLE sign (sign INTEGER, size INTEGER, id INTEGER);
    BEGIN;
"""
_LARGER: Final = """
    SELECT size, path FROM sign JOIN file USING (id)
    WHERE sign = ? AND size >= ? AND size <= ? ORDER BY size LIMIT ?
"""
_SMALLER: Final = """
    SELECT size, path FROM sign JOIN file USING (id)
    WHERE sign = ? AND size < ? AND size >= ? ORDER BY size DESC LIMIT ?
"""
_CACHE_KIB: Final = 8 << 10
_PENDING_ROWS: Final = 16 << 10

# A name such as "Makefile" may be there a thousand times. Of each kind so many are looked at, nearest size first.
_MAX_LOOKED_AT: Final = 32

log = logging.getLogger(__name__)


class _Line(msgspec.Struct):
    """What of an index's line a sign is made of. Its header and its end have nothing of it."""

    path: str | None = None
    path_b64: str | None = None
    type: str | None = None
    size: int = 0
    link_of: str | None = None
    link_of_b64: str | None = None
    inode: int | None = None
    dev: int | None = None
    sig_digest: str | None = None


_decoder = msgspec.json.Decoder(_Line)


class MovedFiles:
    """Finds what new files may have been in the parent.

    Args:
        index: the parent's index, whole; it may be read elsewhere through the same file.
        source: the directory that is backed up.
    """

    def __init__(self, index: BinaryIO, source: str) -> None:
        self._index = index
        self._source = os.fsencode(source)
        self._lines = LineSearch(index)
        self._connection: sqlite3.Connection | None = None
        self._has_all = False
        self._is_usable = True

    def candidates(self, path: bytes, info: os.stat_result) -> list[ResolvedEntry]:
        """Files of the parent of which the new file *path* may be an edited version, the likeliest first."""
        size = info.st_size
        if size < MIN_MOVED_LEN or not self._is_usable:
            return []
        found: dict[bytes, ResolvedEntry] = {}
        try:
            connection = self._table(has_all=info.st_nlink > 1)
            for number, sign in enumerate(_signs(path, info.st_dev, info.st_ino)):
                for old_path in _with_sign(connection, sign, size):
                    # The first sign is the inode: what has that may have its old name, too.
                    if (
                        old_path not in found
                        and old_path != path
                        and (number == 0 or self._is_gone(old_path))
                    ):
                        found.update(self._entry_of(old_path))
                    if len(found) >= MAX_MOVED_TRIES:
                        return list(found.values())
        except (sqlite3.Error, FormatError, OSError) as error:
            self._is_usable = False
            log.warning(
                "files that were moved and edited cannot be found any more, and are stored whole: %s", error
            )
        return list(found.values())

    def close(self) -> None:
        """Free the table. May be called again."""
        if self._connection is not None:
            self._connection.close()

    def _is_gone(self, path: bytes) -> bool:
        try:
            return not stat.S_ISREG(os.lstat(os.path.join(self._source, path)).st_mode)
        except OSError:
            return True

    def _entry_of(self, path: bytes) -> dict[bytes, ResolvedEntry]:
        line = self._lines.line_of(path)
        if line is not None:
            with suppress(FormatError, UnsafePathError):  # another index by now: nothing is found
                resolved = parse_resolved(line)
                return {resolved.path: resolved}
        return {}

    def _table(self, *, has_all: bool) -> sqlite3.Connection:
        """The table of names, of *has_all* also of those that are still there."""
        if self._connection is None or (has_all and not self._has_all):
            self.close()
            self._connection = self._read_index(has_all=has_all)
            self._has_all = has_all
        return self._connection

    def _read_index(self, *, has_all: bool) -> sqlite3.Connection:
        connection = sqlite3.connect("", isolation_level=None)
        try:
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            files: list[tuple[int, bytes]] = []
            signs: list[tuple[int, int, int]] = []
            for number, raw in enumerate(self._iter_lines(has_all=has_all)):
                if (known := _file_of(raw)) is not None:
                    path, line = known
                    files.append((number, path))
                    signs += ((sign, line.size, number) for sign in _signs(path, line.dev, line.inode))
                if len(signs) >= _PENDING_ROWS:
                    _insert(connection, files, signs)
            _insert(connection, files, signs)
            connection.execute("CREATE INDEX by_sign ON sign (sign, size, id)")
        except BaseException:
            connection.close()
            raise
        return connection

    def _iter_lines(self, *, has_all: bool) -> Iterator[bytes]:
        """Lines of the parent's index: all, or those of files that may be gone."""
        lost = lost_names(self._source)
        for block in iter_record_frames(self._index, read_frame_table(self._index)):
            yield from block[:-1].split(b"\n") if has_all else lost.of(block)


def _with_sign(connection: sqlite3.Connection, sign: int, size: int) -> list[bytes]:
    larger = connection.execute(_LARGER, (sign, size, size * MAX_MOVED_RATIO, _MAX_LOOKED_AT)).fetchall()
    smaller = connection.execute(_SMALLER, (sign, size, size // MAX_MOVED_RATIO, _MAX_LOOKED_AT)).fetchall()
    nearest = sorted(larger + smaller, key=lambda row: abs(row[0] - size))[:_MAX_LOOKED_AT]
    return [path for _, path in nearest]


def _insert(
    connection: sqlite3.Connection,
    files: list[tuple[int, bytes]],
    signs: list[tuple[int, int, int]],
) -> None:
    connection.executemany("INSERT INTO file VALUES (?, ?)", files)
    connection.executemany("INSERT INTO sign VALUES (?, ?, ?)", signs)
    files.clear()
    signs.clear()


def _signs(path: bytes, dev: int | None, inode: int | None) -> Iterator[int]:
    """What a file that was moved may have kept, the surest first, as numbers."""
    directory, name = posixpath.split(path)
    # Python's own hashes, which hold for this process, as the table does.
    yield hash((dev, inode))
    yield hash(name)
    yield hash((directory, posixpath.splitext(name)[1]))


def _file_of(raw: bytes) -> tuple[bytes, _Line] | None:
    """The path and the line of a regular file that may be a base; None of all else."""
    with suppress(msgspec.DecodeError, ValueError):  # a name that the walk did not give
        line = _decoder.decode(raw)
        if line.type != FILE or line.size < MIN_MOVED_LEN // MAX_MOVED_RATIO or line.sig_digest is None:
            return None
        if line.link_of is None and line.link_of_b64 is None:
            return bytes_of(line.path, line.path_b64) or b"", line
    return None
