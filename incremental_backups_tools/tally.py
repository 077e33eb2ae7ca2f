"""A table of more rows than memory holds, to be sorted and summed: a temporary database that nobody else sees.

Rows go in as they are met and come out grouped; SQLite sorts them on disk. It is gone when it is closed, or when
the process is.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

_PRAGMAS: Final = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA temp_store = FILE;
    PRAGMA cache_size = -8192;
"""
_PENDING_ROWS: Final = 4096


class Tally:
    """A temporary database.

    Args:
        schema: the statements that make its tables.

    Raises:
        OSError: the temporary file cannot be written, here and wherever rows are added or asked for.
    """

    def __init__(self, schema: str) -> None:
        self._pending: dict[str, list[tuple[Any, ...]]] = {}
        with _translated():
            # The empty name is a temporary file, deleted as soon as it is open.
            self._connection = sqlite3.connect("", isolation_level=None)
            self._connection.executescript(_PRAGMAS + schema + "BEGIN;")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, table: str, row: tuple[Any, ...]) -> None:
        """Add a row with a value for each column of *table*."""
        pending = self._pending.setdefault(table, [])
        pending.append(row)
        if len(pending) >= _PENDING_ROWS:
            self._flush(table)

    def clear(self, table: str) -> None:
        """Take all rows out of *table*."""
        self._pending.pop(table, None)
        with _translated():
            self._connection.execute(f"DELETE FROM {table}")

    def define(self, name: str, function: Callable[..., Any], *, arguments: int) -> None:
        """Make a pure *function* known to queries under *name*."""
        self._connection.create_function(name, arguments, function, deterministic=True)

    def run(self, statement: str) -> None:
        """Run a statement that yields nothing."""
        for _ in self.rows(statement):
            pass

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> Generator[tuple[Any, ...], None, None]:
        """The rows that *query* yields, one at a time."""
        for table in list(self._pending):
            self._flush(table)
        with _translated():
            cursor = self._connection.execute(query, values)
            while rows := cursor.fetchmany(_PENDING_ROWS):
                yield from rows

    def _flush(self, table: str) -> None:
        rows = self._pending.pop(table, None)
        if not rows:
            return
        places = ",".join("?" * len(rows[0]))
        with _translated():
            self._connection.executemany(f"INSERT INTO {table} VALUES ({places})", rows)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error), "temporary database") from error
