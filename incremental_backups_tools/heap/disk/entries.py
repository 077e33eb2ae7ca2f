"""The rows of a catalogue that say which paths there are, and were."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.tree.entry import (
    ROOT,
    Entry,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
    sort_key,
)


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """A path's state, and the number of the object that holds its content, where it has one of its own."""

    entry: Entry
    object: int | None

    @property
    def path(self) -> bytes:
        """The virtual path."""
        return self.entry.path


def parse_entry(line: bytes) -> Entry:
    """An entry of its line. Raises StateFormatError, UnsafePathError."""
    return entry_of_line(parse_line(line))


def current_entry(catalogue: Catalogue, path: bytes) -> StoredEntry | None:
    """What the catalogue has at *path* now."""
    row = catalogue.row(
        "SELECT line, object FROM entries WHERE sort_key = ? AND until_ns IS NULL", (sort_key(path),)
    )
    return None if row is None else StoredEntry(parse_entry(row[0]), row[1])


def iter_entries(catalogue: Catalogue, *, at_ns: int | None = None) -> Iterator[StoredEntry]:
    """All paths in sort order, as they are now or were at a moment."""
    if at_ns is None:
        rows = catalogue.rows("SELECT line, object FROM entries WHERE until_ns IS NULL ORDER BY sort_key")
    else:
        rows = catalogue.rows(
            "SELECT line, object FROM entries WHERE since_ns <= ? AND (until_ns IS NULL OR until_ns > ?)"
            " ORDER BY sort_key",
            (at_ns, at_ns),
        )
    for line, number in rows:
        yield StoredEntry(parse_entry(line), number)


def end_entry(catalogue: Catalogue, path: bytes, now_ns: int) -> None:
    """What is at *path* is there no more. Call it within a transaction."""
    catalogue.execute(
        "UPDATE entries SET until_ns = ? WHERE sort_key = ? AND until_ns IS NULL", (now_ns, sort_key(path))
    )


def identity_of(inode: int, size: int, mtime_ns: int) -> bytes:
    """What a file that was moved is found by."""
    return struct.pack(">QQq", inode & 0xFFFFFFFFFFFFFFFF, size, mtime_ns)


def entries_like(catalogue: Catalogue, inode: int, size: int, mtime_ns: int) -> Iterator[Entry]:
    """Present and former entries with that inode, size and mtime."""
    identity = identity_of(inode, size, mtime_ns)
    rows = catalogue.rows("SELECT line FROM entries WHERE identity = ?", (identity,))
    return (parse_entry(line) for (line,) in rows)


def begin_entry(catalogue: Catalogue, entry: Entry, number: int | None, now_ns: int) -> None:
    """*entry* is what is at its path from now on. Call it within a transaction."""
    catalogue.execute(
        "INSERT INTO entries(sort_key, since_ns, line, object, identity) VALUES (?, ?, ?, ?, ?)",
        (sort_key(entry.path), now_ns, encode_line(line_of_entry(entry)), number, _identity(entry)),
    )


def _identity(entry: Entry) -> bytes | None:
    if entry.digest is None or entry.inode is None:
        return None
    return identity_of(entry.inode, entry.size, entry.mtime_ns)


def refresh_entry(catalogue: Catalogue, entry: Entry) -> None:
    """Remember better how *entry*, which has not changed, is known again. Call it within a transaction."""
    catalogue.execute(
        "UPDATE entries SET line = ?, identity = ? WHERE sort_key = ? AND until_ns IS NULL",
        (encode_line(line_of_entry(entry)), _identity(entry), sort_key(entry.path)),
    )


def number_of_object(catalogue: Catalogue, digest: bytes, size: int) -> int:
    """The number of the object with that content, a new one if need be. Call it within a transaction."""
    catalogue.execute("INSERT OR IGNORE INTO objects(digest, size) VALUES (?, ?)", (digest, size))
    return catalogue.number("SELECT id FROM objects WHERE digest = ?", (digest,))


def path_of_key(key: bytes) -> bytes:
    """The path that a row's sort key stands for."""
    return key.replace(b"\0", b"/") or ROOT
