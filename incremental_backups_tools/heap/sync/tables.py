"""Sets and lists that may be too large for memory: tables in a temporary file."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Self

_BATCH: Final = 1000
_CACHE_KIB: Final = 32 << 10


class Table:
    """Values by keys, both bytes or integers, on disk; gone when it is closed. For one thread."""

    def __init__(self) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="ibt-table-")
        self._connection = sqlite3.connect(self._file.name, isolation_level=None, check_same_thread=False)
        for setting in (
            "journal_mode=OFF",
            "synchronous=OFF",
            f"cache_size=-{_CACHE_KIB}",
            "temp_store=FILE",
        ):
            self._connection.execute(f"PRAGMA {setting}")
        self._connection.execute("CREATE TABLE pairs (key BLOB PRIMARY KEY, value) WITHOUT ROWID")

    def fill(self, pairs: Iterable[tuple[bytes, bytes | int | str]]) -> None:
        """Add pairs; of a key that is there the new value stands."""
        batch: list[tuple[bytes, bytes | int | str]] = []
        for pair in pairs:
            batch.append(pair)
            if len(batch) == _BATCH:
                self._insert(batch)
                batch = []
        self._insert(batch)

    def _insert(self, batch: list[tuple[bytes, bytes | int | str]]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT OR REPLACE INTO pairs VALUES (?, ?)", batch)
        self._connection.execute("COMMIT")

    def get(self, key: bytes) -> bytes | int | str | None:
        """The value of a key; None where it is not there."""
        row = self._connection.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM pairs").fetchone()[0])

    def items(self, *, backwards: bool = False) -> Iterator[tuple[bytes, bytes | int | str]]:
        """All pairs in the order of their keys."""
        order = "DESC" if backwards else "ASC"
        yield from self._connection.execute(f"SELECT key, value FROM pairs ORDER BY key {order}")

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
