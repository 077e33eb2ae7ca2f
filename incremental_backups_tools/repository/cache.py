"""Local copies that spare reading the repository: never needed, never trusted.

One directory for each repository and key, ``<root>/<repository id>/<key>/``. It may be deleted, restored from
an old copy or filled by others at any time, so whoever reads a file from it checks what it says. A cache that
cannot be written is told of once and then does nothing: no backup fails for it.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

import msgspec

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.layout import is_key, validate_key

_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_REPOSITORY_ID = re.compile(r"[0-9a-f]{32}")

# A file that is being written for longer than this belongs to a process that was killed.
_TEMPORARY_AGE_SECONDS = 24 * 3600.0


class Cache:
    """Named files for one key of one repository.

    Attributes:
        fs_path: the directory; it need not exist.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        repository_id: str,
        key: str,
        *,
        on_problem: Callable[[str], None] | None = None,
    ) -> None:
        """Name the cache; nothing is made before something is written.

        Args:
            root: the user's cache directory for this program.
            on_problem: told in a sentence when the cache cannot be read or written, once.

        Raises:
            ValueError: not a repository's id, or not a key.
        """
        if not _REPOSITORY_ID.fullmatch(repository_id):
            raise ValueError(f"{repository_id!r} is not a repository's id")
        self.fs_path = os.path.join(os.fspath(root), repository_id, validate_key(key))
        self._on_problem = on_problem
        self._problem_was_told = False

    def open(self, name: str) -> BinaryIO | None:
        """Open a file for reading; None where it is not there or cannot be read."""
        try:
            descriptor = os.open(self._path(name), _READ_FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell("read", error)
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            return None
        return os.fdopen(descriptor, "rb")

    @contextmanager
    def replace(self, name: str, *, durable: bool = True) -> Iterator[BinaryIO]:
        """Write a file that takes the place of an older one when the block ends, whole.

        Args:
            durable: synchronise it; without that a power cut may leave it empty.

        Yields a file that can be written and told its position, not read. Where the cache cannot be written,
        what is written is dropped; where the block raises, the older file stays.
        """
        path = self._path(name)
        pending = self._begin(path)
        sink = _Sink(self, pending)
        with io.BufferedWriter(sink, 1 << 18) as writer:
            try:
                yield cast(BinaryIO, writer)
                writer.flush()
                sink.publish(durable=durable)
            finally:
                sink.discard()

    def names(self) -> list[str]:
        """List the files, sorted."""
        try:
            return sorted(name for name in os.listdir(self.fs_path) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell("list", error)
            return []

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self._path(name))
        except OSError as error:
            self._tell("clean", error)

    def remove_all(self) -> None:
        """Remove every file, and the directory if nothing else is in it.

        Raises:
            RepositoryError: something could not be removed.
        """
        try:
            with suppress(FileNotFoundError):
                for entry in os.listdir(self.fs_path):
                    if _NAME.fullmatch(entry) or durable.is_temporary_name(entry):
                        os.unlink(os.path.join(self.fs_path, entry))
                os.rmdir(self.fs_path)
        except OSError as error:
            raise RepositoryError(f"cannot remove the cache {self.fs_path}: {error.strerror}") from error
        with suppress(OSError):  # other keys' are there
            os.rmdir(os.path.dirname(self.fs_path))

    def clean_temporaries(self) -> None:
        """Remove what killed processes left unfinished."""
        try:
            directory = durable.open_directory(self.fs_path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._tell("clean", error)
            return
        try:
            durable.remove_temporaries(directory, min_age_seconds=_TEMPORARY_AGE_SECONDS)
        except OSError as error:
            self._tell("clean", error)
        finally:
            os.close(directory)

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name for a cached file")
        return os.path.join(self.fs_path, name)

    def _begin(self, path: str) -> durable.PendingFile | None:
        try:
            durable.make_directories(self.fs_path, mode=_DIRECTORY_MODE)
            directory = durable.open_directory(self.fs_path)
            try:
                return durable.PendingFile(directory, os.path.basename(path), mode=_FILE_MODE)
            finally:
                os.close(directory)
        except OSError as error:
            self._tell("write", error)
            return None

    def _tell(self, action: str, error: OSError) -> None:
        if self._on_problem is not None and not self._problem_was_told:
            self._problem_was_told = True
            self._on_problem(f"cannot {action} the cache {self.fs_path}: {error.strerror or error}")


class CacheInfo(msgspec.Struct, frozen=True):
    """What is cached of one key of one repository, in bytes."""

    repository_id: str
    key: str
    size: int


def list_caches(root: str | os.PathLike[str]) -> list[CacheInfo]:
    """List all caches below *root*, sorted.

    Raises:
        RepositoryError: a directory cannot be read.
    """
    found = []
    try:
        for repository_id in _directories(os.fspath(root)):
            if not _REPOSITORY_ID.fullmatch(repository_id):
                continue
            for key in _directories(os.path.join(root, repository_id)):
                if is_key(key):
                    with os.scandir(os.path.join(root, repository_id, key)) as entries:
                        size = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
                    found.append(CacheInfo(repository_id, key, size))
    except OSError as error:
        raise RepositoryError(f"cannot read the cache {os.fspath(root)}: {error.strerror}") from error
    return found


def _directories(fs_path: str) -> list[str]:
    try:
        with os.scandir(fs_path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


class _Sink(io.RawIOBase):
    """Writes to a pending file, or nowhere from the first failure on."""

    def __init__(self, cache: Cache, pending: durable.PendingFile | None) -> None:
        super().__init__()
        self._cache = cache
        self._pending = pending
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any, /) -> int:
        if self._pending is not None:
            try:
                self._pending.file.write(data)
            except OSError as error:
                self._give_up(error)
        self._position += len(data)
        return len(data)

    def publish(self, *, durable: bool) -> None:
        if self._pending is not None:
            try:
                self._pending.publish(exclusive=False, durable=durable)
            except OSError as error:
                self._give_up(error)

    def discard(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.close()
            except OSError as error:
                self._cache._tell("clean", error)

    def _give_up(self, error: OSError) -> None:
        self._cache._tell("write", error)
        self.discard()
