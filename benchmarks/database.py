"""A SQLite database before and after random updates, as successive versions of a directory."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.corpora import VERSIONS
from benchmarks.measure import MIB

UPDATES: Final = 10_000
_NOTE_BYTES: Final = 180
_ROW_BYTES: Final = 242  # what a row comes to on the disk
_WORDS: Final = (
    "paid",
    "open",
    "shipped",
    "returned",
    "north",
    "south",
    "invoice",
    "order",
    "customer",
    "due",
)


def database_versions(directory: Path, mib: int) -> tuple[list[Path], int]:
    """Directories with a database of *mib* MiB each, every one updated in random rows from the one before.

    Returns:
        The directories, and how many rows were updated between two: 10,000, fewer where the database is so
        small that these would be most of it.
    """
    first = directory / "1"
    first.mkdir(parents=True)
    rows = mib * MIB // _ROW_BYTES
    updates = min(UPDATES, max(1, rows // 400))
    rng = random.Random(mib)
    _fill(first / "data.sqlite", rows, rng)
    versions = [first]
    for number in range(2, VERSIONS + 1):
        version = directory / str(number)
        shutil.copytree(versions[-1], version)
        _update(version / "data.sqlite", rows, updates, rng)
        versions.append(version)
    return versions, updates


def _fill(path: Path, rows: int, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance REAL, name TEXT, note TEXT)"
        )
        connection.executemany("INSERT INTO account VALUES (?, ?, ?, ?)", _rows(rows, rng))
        connection.commit()


def _rows(count: int, rng: random.Random) -> Iterator[tuple[int, float, str, str]]:
    for number in range(count):
        yield number, rng.random() * 1e6, f"account of customer {number:08d}", _note(rng)


def _update(path: Path, rows: int, updates: int, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        changed = ((rng.random() * 1e6, _note(rng), row) for row in rng.sample(range(rows), updates))
        connection.executemany("UPDATE account SET balance = ?, note = ? WHERE id = ?", changed)
        connection.commit()


def _note(rng: random.Random) -> str:
    """Text of one length, half words and half hexadecimal digits: it shrinks to less than half, as records do."""
    words = " ".join(rng.choices(_WORDS, k=12))
    return f"{words} {rng.randbytes(_NOTE_BYTES // 2).hex()}"[:_NOTE_BYTES]
