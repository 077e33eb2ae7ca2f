"""The catalogue's tables, version by version. The database's ``user_version`` is how many of these were applied.

``entries`` holds every path of the source and how it was before: a row is valid from ``since_ns`` until
``until_ns``, which is NULL for what is there now. ``line`` is the entry as a state has it (docs/format.rst),
``sort_key`` the path with NUL for ``/``, so that a directory comes before what is in it, ``identity`` what a moved
file is found by: inode, size and mtime.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x69627444  # "ibtD"

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        """CREATE TABLE disks(
            id INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE,
            size_limit INTEGER, reserve INTEGER, capacity INTEGER NOT NULL, free INTEGER NOT NULL,
            place BLOB NOT NULL, seen_ns INTEGER NOT NULL, backup_ns INTEGER)""",
        "CREATE TABLE maps(virtual BLOB PRIMARY KEY, real BLOB NOT NULL) WITHOUT ROWID",
        """CREATE TABLE rules(
            position INTEGER PRIMARY KEY, pattern TEXT NOT NULL, copies INTEGER, priority INTEGER)""",
        """CREATE TABLE objects(
            id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL)""",
        """CREATE TABLE entries(
            sort_key BLOB NOT NULL, since_ns INTEGER NOT NULL, until_ns INTEGER,
            line BLOB NOT NULL, object INTEGER REFERENCES objects(id), identity BLOB,
            PRIMARY KEY(sort_key, since_ns)) WITHOUT ROWID""",
        "CREATE INDEX entries_by_identity ON entries(identity)",
        "CREATE INDEX entries_by_object ON entries(object)",
        """CREATE TABLE copies(
            object INTEGER NOT NULL REFERENCES objects(id), disk INTEGER NOT NULL REFERENCES disks(id),
            stored_size INTEGER NOT NULL, verified_ns INTEGER NOT NULL,
            PRIMARY KEY(object, disk)) WITHOUT ROWID""",
        "CREATE INDEX copies_by_disk ON copies(disk)",
    ),
)
