"""A directory of snapshots: opening it, locking it, and what it holds.

A snapshot exists if and only if its tree has its name and its index is there. The index comes first and the tree is
renamed into place; removing goes the other way round. So an index without a tree is of a run that was killed, or of a
snapshot whose tree somebody removed by hand: both are no snapshots.

Who makes, removes or reads snapshots holds the depot's lock shared, and who makes or removes those of one root
that root's alone; who collects garbage holds the depot's alone. Locks are flock(2)'s: the system gives them back when
their process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final

import msgspec

from incremental_backups_tools.durable import (
    atomic_write,
    fsync_directory,
    make_directories,
    open_directory,
    remove_temporaries,
)
from incremental_backups_tools.exceptions import (
    ChainError,
    RepositoryError,
    RepositoryLockedError,
    RepositoryNotFoundError,
    UnsupportedVersionError,
)
from incremental_backups_tools.heap.snapshots.index import (
    SnapshotHeader,
    iter_index,
    read_snapshot_header,
)
from incremental_backups_tools.heap.snapshots.layout import (
    CONFIG,
    CONTROL,
    DAMAGED,
    INDEX,
    LOCKS,
    OBJECTS,
    STAGING,
    index_file,
    is_unfinished_name,
    parse_index_file,
    validate_name,
)
from incremental_backups_tools.points.when import select_backup
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.removal import remove_tree

FORMAT: Final = "ibt-snapshots"
VERSION: Final = 1

_POLL_SECONDS: Final = 0.2
_CREATION_SECONDS: Final = 3600.0  # longer than writing a file of a line takes
_DEPOT_LOCK: Final = "depot"
_ROOT_LOCK: Final = "root."
# Trees show modes as they were, but not what kept strangers from reaching them: only the owner gets in.
_PRIVATE: Final = 0o700


class _Config(msgspec.Struct, frozen=True):
    format: str
    version: int
    id: str


class Depot:
    """The snapshots in one directory.

    Attributes:
        fs_path: the directory.
    """

    def __init__(self, fs_path: str) -> None:
        """Callers want :meth:`open` or :meth:`create`."""
        self.fs_path = fs_path

    @classmethod
    def open(cls, dest: str | os.PathLike[str]) -> Depot:
        """The snapshots that are in *dest*.

        Raises:
            RepositoryNotFoundError: there are none.
            UnsupportedVersionError: a newer program made them.
            RepositoryError: what says what this is cannot be read.
        """
        depot = cls(os.path.abspath(dest))
        config = depot._path(CONFIG)
        try:
            with open(config, "rb") as file:
                raw = file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise RepositoryNotFoundError(f"{depot.fs_path}: no snapshots are kept here") from None
        except OSError as error:
            raise RepositoryError(f"{config}: {error.strerror}") from error
        try:
            read = msgspec.json.decode(raw, type=_Config)
        except msgspec.DecodeError as error:
            raise RepositoryError(f"{config}: does not say what this directory is: {error}") from None
        if read.format != FORMAT:
            raise RepositoryError(f"{config}: expected the format {FORMAT!r}, got {read.format!r}")
        if read.version > VERSION:
            raise UnsupportedVersionError(
                f"{config}: format {read.version}; this program reads up to {VERSION}"
            )
        return depot

    @classmethod
    def create(cls, dest: str | os.PathLike[str]) -> Depot:
        """As :meth:`open`; makes *dest* a directory of snapshots where it is none yet.

        Raises:
            OSError: it cannot be made.
        """
        with suppress(RepositoryNotFoundError):
            return cls.open(dest)
        depot = cls(os.path.abspath(dest))
        for part in (OBJECTS, INDEX, STAGING, LOCKS):
            make_directories(depot._path(part), mode=_PRIVATE)
        config = msgspec.json.encode(_Config(FORMAT, VERSION, secrets.token_hex(16)))
        # Another process may make it at the same time; either's will do.
        with suppress(FileExistsError), atomic_write(depot._path(CONFIG), exclusive=True) as file:
            file.write(config + b"\n")
        return cls.open(dest)

    def _path(self, *parts: str) -> str:
        return os.path.join(self.fs_path, CONTROL, *parts)

    @property
    def objects_path(self) -> str:
        """The directory of objects."""
        return self._path(OBJECTS)

    @property
    def control_path(self) -> str:
        """The directory of everything but the trees."""
        return self._path()

    def damaged(self) -> list[str]:
        """The names of the objects that were set aside as damaged.

        Raises:
            RepositoryError: they cannot be listed.
        """
        return _listed(self._path(DAMAGED))

    def root_path(self, name: str) -> str:
        """The directory that holds the trees of a root."""
        return os.path.join(self.fs_path, name)

    def tree_path(self, name: str, snapshot_id: str) -> str:
        """The tree of a snapshot."""
        return os.path.join(self.fs_path, name, snapshot_id)

    def index_path(self, name: str, snapshot_id: str) -> str:
        """The index of a snapshot."""
        return self._path(INDEX, name, index_file(snapshot_id))

    def staging_path(self, name: str) -> str:
        """The directory for unfinished files of a root."""
        return self._path(STAGING, name)

    def make_root(self, name: str) -> None:
        """Make the directories of a root where they are missing.

        Raises:
            OSError: one cannot be made.
        """
        for path in (self.root_path(name), self._path(INDEX, name), self.staging_path(name)):
            make_directories(path, mode=_PRIVATE)

    # --- what there is ---------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The roots that have a snapshot, sorted."""
        return [name for name in self._indexed_names() if self.snapshot_ids(name)]

    def snapshot_ids(self, name: str) -> list[str]:
        """The snapshots of a root, oldest first.

        Raises:
            RepositoryError: they cannot be listed: that is not the same as none.
        """
        return [snapshot_id for snapshot_id in self.indexed_ids(name) if self._has_tree(name, snapshot_id)]

    def _has_tree(self, name: str, snapshot_id: str) -> bool:
        path = self.tree_path(name, snapshot_id)
        try:
            return stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError as error:  # what cannot be looked at is not gone
            raise RepositoryError(f"{path}: {error.strerror}") from error

    def indexed_ids(self, name: str) -> list[str]:
        """The ids that a root has an index of, also where their trees are not there."""
        found = (parse_index_file(file_name) for file_name in _listed(self._path(INDEX, name)))
        return sorted(snapshot_id for snapshot_id in found if snapshot_id is not None)

    def header(self, name: str, snapshot_id: str) -> SnapshotHeader:
        """What a snapshot's index says of it.

        Raises:
            RepositoryError, FormatError: it cannot be read.
        """
        path = self.index_path(name, snapshot_id)
        try:
            return read_snapshot_header(path)
        except OSError as error:
            raise RepositoryError(f"{path}: {error.strerror}") from error

    def entries(self, name: str, snapshot_id: str) -> Iterator[Entry]:
        """The entries of a snapshot, in sort order.

        Raises:
            RepositoryError, FormatError, UnsafePathError: its index cannot be read to its end.
        """
        path = self.index_path(name, snapshot_id)
        try:
            yield from iter_index(path)
        except OSError as error:
            raise RepositoryError(f"{path}: {error.strerror}") from error

    def select(self, name: str, when: str | None) -> str:
        """The snapshot of a root that *when* means; None is the newest.

        Raises:
            ChainError: there is no such root or snapshot.
            ValueError: *when* is nothing that could be a time.
        """
        ids = self.snapshot_ids(name)
        if not ids:
            raise ChainError(f"{self.fs_path} has no snapshots of {name}")
        return select_backup(ids, when, now=datetime.now(UTC), what=name)

    def only_name(self) -> str:
        """The one root that there is.

        Raises:
            ChainError: there is none, or there are several.
        """
        names = self.names()
        if len(names) == 1:
            return names[0]
        if not names:
            raise ChainError(f"{self.fs_path} has no snapshots yet")
        raise ChainError(f"{self.fs_path} has snapshots of several roots, name one: {', '.join(names)}")

    def _indexed_names(self) -> list[str]:
        return sorted(name for name in _listed(self._path(INDEX)) if _is_name(name))

    # --- what was left unfinished --------------------------------------------------------------------------------

    def all_roots(self) -> list[str]:
        """The roots that have anything at all here: also unfinished files alone."""
        return sorted({*self._indexed_names(), *(n for n in _listed(self._path(STAGING)) if _is_name(n))})

    def clean(self, name: str) -> None:
        """Remove what killed runs left of a root. The root's lock, or the depot's alone, must be held.

        Raises:
            OSError: something cannot be removed.
        """
        root = self.root_path(name)
        for unfinished in _listed(root):
            if is_unfinished_name(unfinished):
                _remove(root, unfinished)
        for snapshot_id in self.indexed_ids(name):
            if not self._has_tree(name, snapshot_id):
                os.unlink(self.index_path(name, snapshot_id))
        staging = self.staging_path(name)
        for left in _listed(staging):
            os.unlink(os.path.join(staging, left))
        _remove_temporaries(self._path(INDEX, name), min_age_seconds=0)

    def clean_control(self) -> None:
        """Remove what was left by runs that were killed when they made this a directory of snapshots.

        Raises:
            OSError: something cannot be removed.
        """
        # That is done under no lock: there was none yet.
        _remove_temporaries(self._path(), min_age_seconds=_CREATION_SECONDS)

    # --- locks -----------------------------------------------------------------------------------------------

    @contextmanager
    def shared(self, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the depot's lock with others: no object goes meanwhile.

        Raises:
            RepositoryLockedError: garbage is being collected.
        """
        with self._locked(_DEPOT_LOCK, fcntl.LOCK_SH, wait_seconds, f"{self.fs_path} is being cleaned up"):
            yield

    @contextmanager
    def alone(self, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the depot's lock alone: nobody makes, removes or reads snapshots meanwhile.

        Raises:
            RepositoryLockedError: somebody does.
        """
        with self._locked(
            _DEPOT_LOCK, fcntl.LOCK_EX, wait_seconds, f"{self.fs_path} is locked: snapshots are in use"
        ):
            yield

    @contextmanager
    def root_alone(self, name: str, *, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold a root's lock, and the depot's with others: nobody else makes or removes its snapshots.

        Raises:
            RepositoryLockedError: somebody does, or garbage is being collected.
        """
        what = f"{name} in {self.fs_path} is locked: another process makes or removes its snapshots"
        with (
            self.shared(wait_seconds=wait_seconds),
            self._locked(_ROOT_LOCK + name, fcntl.LOCK_EX, wait_seconds, what),
        ):
            yield

    @contextmanager
    def _locked(self, lock: str, how: int, wait_seconds: float, refusal: str) -> Iterator[None]:
        descriptor = self._open_lock(lock)
        deadline = time.monotonic() + wait_seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise RepositoryLockedError(refusal) from None
                    time.sleep(min(left, _POLL_SECONDS))
            yield
        finally:
            os.close(descriptor)

    def _open_lock(self, lock: str) -> int:
        """A lock's file, which stays for ever: one that went would be another one to each of two processes."""
        path = self._path(LOCKS, lock)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_CREAT, 0o600)
        except OSError as error:
            if (
                error.errno == errno.EROFS
            ):  # a medium that nobody can write to need not be locked by its own file
                return os.open(self._path(LOCKS), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            raise


def _listed(directory: str) -> list[str]:
    """The names in a directory; none where it is not there.

    Raises:
        RepositoryError: it cannot be listed.
    """
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RepositoryError(f"{directory}: {error.strerror}") from error


def _is_name(name: str) -> bool:
    try:
        validate_name(name)
    except ValueError:
        return False
    return True


def _remove_temporaries(directory: str, *, min_age_seconds: float) -> None:
    with suppress(FileNotFoundError):
        descriptor = open_directory(directory)
        try:
            remove_temporaries(descriptor, min_age_seconds=min_age_seconds)
        finally:
            os.close(descriptor)


def _remove(directory: str, name: str) -> None:
    descriptor = open_directory(directory)
    try:
        remove_tree(descriptor, os.fsencode(name))
        fsync_directory(descriptor)
    finally:
        os.close(descriptor)
