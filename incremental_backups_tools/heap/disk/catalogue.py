"""The catalogue: which files there are, which objects they need, and which disk holds which object.

One SQLite database in a directory of its own, in WAL mode, written by one process at a time. A copy of it lies
on every disk, so it can be had again from any of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from incremental_backups_tools.durable import fsync_directory, make_directories
from incremental_backups_tools.exceptions import (
    RepositoryError,
    RepositoryLockedError,
    RepositoryNotFoundError,
    StateFormatError,
    UnsupportedVersionError,
)
from incremental_backups_tools.heap.disk.schema import APPLICATION_ID, MIGRATIONS

FILE_NAME: Final = "catalogue.sqlite"
_LOCK_NAME: Final = "catalogue.lock"
Branch = tuple[str, int]

_DAY_NS: Final = 24 * 3600 * 10**9

DEFAULT_COPIES: Final = 2
DEFAULT_KEEP_DELETED_NS: Final = 90 * _DAY_NS


class Catalogue:
    """An open catalogue. A context manager.

    Every method raises StateFormatError where the database is damaged, and RepositoryError for whatever else
    SQLite says.

    Attributes:
        directory: where it lies; None for a copy on a disk, which is only read.
    """

    def __init__(self, connection: sqlite3.Connection, *, directory: str | None, lock: int | None) -> None:
        """Use :meth:`create`, :meth:`open` or :meth:`open_copy` instead."""
        self._connection = connection
        self._lock = lock
        self.directory = directory

    @classmethod
    def create(cls, directory: str | os.PathLike[str], *, catalogue_id: str | None = None) -> Self:
        """Make an empty catalogue in *directory*, which may be missing, and open it for writing.

        Raises:
            RepositoryError: there is one already.
        """
        fs_path = os.path.join(directory, FILE_NAME)
        make_directories(directory, mode=0o700)
        lock = _take_lock(os.fspath(directory))
        try:
            if os.path.lexists(fs_path):
                raise RepositoryError(f"{fs_path}: there is a catalogue already")
            _fill_and_rename(
                os.fspath(directory),
                lambda temporary: _make_empty(temporary, catalogue_id or str(uuid.uuid4())),
            )
            catalogue = cls._open_locked(directory, lock)
            catalogue.begin_branch()
            return catalogue
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *, writing: bool = True) -> Self:
        """Open the catalogue in *directory*.

        Args:
            writing: take the lock, and bring an older catalogue to this version. Without it nothing is written.

        Raises:
            RepositoryNotFoundError: there is none.
            RepositoryLockedError: another process writes to it.
            UnsupportedVersionError: a newer program made it.
        """
        fs_path = os.path.join(directory, FILE_NAME)
        if not os.path.isfile(fs_path):
            raise RepositoryNotFoundError(
                f"{os.fspath(directory)}: no catalogue of disks there; make one with 'ibt disk init', or get it "
                "back from a disk with 'ibt disk adopt DIR'"
            )
        if not writing:
            return cls._open_reading(fs_path, os.fspath(directory))
        lock = _take_lock(os.fspath(directory))
        try:
            return cls._open_locked(directory, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open_copy(cls, fs_path: str | os.PathLike[str]) -> Self:
        """Open a copy on a disk for reading; nothing is written beside it.

        Raises:
            RepositoryNotFoundError: there is none.
        """
        if not os.path.isfile(fs_path):
            raise RepositoryNotFoundError(f"{os.fspath(fs_path)}: no catalogue there")
        return cls._open_reading(os.fspath(fs_path), None)

    @classmethod
    def _open_locked(cls, directory: str | os.PathLike[str], lock: int) -> Self:
        connection = _connect(os.path.join(directory, FILE_NAME), "mode=rw")
        catalogue = cls(connection, directory=os.fspath(directory), lock=lock)
        try:
            with _translated(catalogue.what):
                check_structure(connection, catalogue.what)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                migrate(connection, MIGRATIONS)
        except BaseException:
            connection.close()
            raise
        return catalogue

    @classmethod
    def _open_reading(cls, fs_path: str, directory: str | None) -> Self:
        # An open WAL must be read, and is only there while somebody writes, or after a kill. Without one no
        # file needs to be made beside the database.
        has_log = directory is not None and os.path.exists(fs_path + "-wal")
        connection = _connect(fs_path, "mode=ro" if has_log else "mode=ro&immutable=1")
        catalogue = cls(connection, directory=directory, lock=None)
        try:
            with _translated(fs_path):
                check_structure(connection, fs_path)
                if connection.execute("PRAGMA user_version").fetchone()[0] != len(MIGRATIONS):
                    raise UnsupportedVersionError(
                        f"{fs_path}: an older catalogue, to be opened for writing once"
                    )
        except BaseException:
            connection.close()
            raise
        return catalogue

    @property
    def what(self) -> str:
        """Names it in errors."""
        return f"the catalogue in {self.directory}" if self.directory else "the disk's catalogue"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it and give back the lock. May be called again."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> None:
        """Run one statement."""
        with _translated(self.what):
            self._connection.execute(sql, values)

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query."""
        with _translated(self.what):
            yield from self._connection.execute(sql, values)

    def row(self, sql: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, None where there is none."""
        with _translated(self.what):
            found: tuple[Any, ...] | None = self._connection.execute(sql, values).fetchone()
            return found

    def number(self, sql: str, values: tuple[Any, ...] = ()) -> int:
        """The number that a query answers; 0 for NULL."""
        row = self.row(sql, values)
        return int(row[0] or 0) if row else 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing of it. Counts up the generation."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.set("generation", str(self.generation + 1))
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def get(self, name: str) -> str | None:
        """A setting."""
        row = self.row("SELECT value FROM settings WHERE name = ?", (name,))
        return None if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Change a setting."""
        self.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    @property
    def catalogue_id(self) -> str:
        """The same in all copies of this catalogue."""
        return self.get("id") or ""

    @property
    def generation(self) -> int:
        """How many transactions were made: of two copies the higher one is newer."""
        return int(self.get("generation") or 0)

    @property
    def branches(self) -> list[Branch]:
        """Each time the catalogue was made, or had again from a disk: a mark of its own, and the generation then.

        Two catalogues that were changed apart from each other are told by it, whatever their generations.
        """
        return [(str(mark), int(number)) for mark, number in json.loads(self.get("branches") or "[]")]

    def begin_branch(self) -> None:
        """What happens from now on happens to this catalogue alone."""
        with self.transaction():
            branches = [*self.branches, (secrets.token_hex(16), self.generation)]
            self.set("branches", json.dumps(branches))

    def contains(self, older: Catalogue) -> bool:
        """Whether all that is recorded in *older* was recorded in this one, now or before."""
        mine, theirs = self.branches, older.branches
        if mine[: len(theirs)] != theirs:
            return False
        end = self.generation if len(mine) == len(theirs) else mine[len(theirs)][1]
        return older.generation <= end

    @property
    def copies(self) -> int:
        """How many copies an object gets that no rule says otherwise about."""
        return int(self.get("copies") or DEFAULT_COPIES)

    @property
    def keep_deleted_ns(self) -> int:
        """How long what the source deleted or replaced stays, in nanoseconds."""
        return int(self.get("keep_deleted_ns") or DEFAULT_KEEP_DELETED_NS)

    def check(self) -> None:
        """Let SQLite look at every page.

        Raises:
            StateFormatError: a page is damaged.
        """
        with _translated(self.what):
            found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise StateFormatError(f"{self.what} is damaged: {found}")

    def size(self) -> int:
        """Bytes that a copy needs at most."""
        return self.number("PRAGMA page_count") * self.number("PRAGMA page_size")

    @contextmanager
    def snapshot(self) -> Iterator[str]:
        """A file with a checked copy of this moment, which is gone after the block."""
        with tempfile.TemporaryDirectory(prefix="ibt-catalogue-", dir=self.directory) as directory:
            fs_path = os.path.join(directory, FILE_NAME)
            self.execute("VACUUM INTO ?", (fs_path,))
            with Catalogue.open_copy(fs_path) as copy:
                copy.check()
            yield fs_path


def replace_catalogue(directory: str | os.PathLike[str], copy_path: str) -> str | None:
    """Put a copy from a disk in the place of the catalogue in *directory*; what was there is set aside.

    Returns:
        Where the old one is now; None where there was none.

    Raises:
        RepositoryLockedError: another process writes to it.
        StateFormatError: the copy is damaged; nothing was changed.
    """
    make_directories(directory, mode=0o700)
    fs_path = os.path.join(directory, FILE_NAME)
    lock = _take_lock(os.fspath(directory))
    try:
        aside = None
        if os.path.lexists(fs_path):
            with Catalogue._open_locked(directory, os.dup(lock)):
                pass  # what a killed process left in its log comes into the database
            aside = f"{fs_path}.before-{time.time_ns()}"
            os.link(fs_path, aside)
        _fill_and_rename(os.fspath(directory), lambda temporary: _copy_checked(copy_path, temporary))
    finally:
        os.close(lock)
    return aside


def migrate(connection: sqlite3.Connection, migrations: tuple[tuple[str, ...], ...]) -> None:
    """Bring a database to the newest version, each step a transaction."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for number, statements in enumerate(migrations[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def check_structure(connection: sqlite3.Connection, what: str) -> None:
    """Refuse what is no catalogue, is damaged, or is of a newer version.

    Raises:
        StateFormatError, UnsupportedVersionError: so it is.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StateFormatError(f"{what}: not a catalogue of disks")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise UnsupportedVersionError(
            f"{what}: catalogue format {version}; this program reads up to {len(MIGRATIONS)}"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StateFormatError(f"{what} is damaged: {found}")


def _make_empty(fs_path: str, catalogue_id: str) -> None:
    connection = _connect(fs_path, "mode=rwc")
    with _translated(fs_path):
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        migrate(connection, MIGRATIONS)
        connection.execute("INSERT INTO settings VALUES ('id', ?), ('generation', '1')", (catalogue_id,))
        connection.close()


def _copy_checked(copy_path: str, fs_path: str) -> None:
    with Catalogue.open_copy(copy_path) as copy:
        copy.check()
        copy.execute("VACUUM INTO ?", (fs_path,))


def _fill_and_rename(directory: str, fill: Callable[[str], None]) -> None:
    """Make the catalogue of *directory* under a temporary name, and give it its own when it is on the disk."""
    with tempfile.TemporaryDirectory(prefix="ibt-catalogue-", dir=directory) as made:
        temporary = os.path.join(made, FILE_NAME)
        fill(temporary)
        os.chmod(temporary, 0o600)
        descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, os.path.join(directory, FILE_NAME))
        fsync_directory(directory)


def _connect(fs_path: str, options: str) -> sqlite3.Connection:
    uri = f"file:{quote(os.path.abspath(fs_path).encode('utf-8', 'surrogateescape'))}?{options}"
    with _translated(fs_path):
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def _take_lock(directory: str) -> int:
    fs_path = os.path.join(directory, _LOCK_NAME)
    lock = os.open(fs_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RepositoryLockedError(f"another process works with the catalogue in {directory}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RepositoryError(f"{what}: {error}") from error
    except sqlite3.IntegrityError as error:
        raise RepositoryError(f"{what}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StateFormatError(f"{what} is damaged, or no catalogue: {error}") from error
