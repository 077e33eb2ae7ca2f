"""A directory of this machine as a store.

Each call opens the directories from the root downwards and follows no link on the way, so nothing that lies
in the repository can lead out of it. The root itself may be a link.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO, cast

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.repository.store import (
    ObjectInfo,
    Spool,
    Store,
    StoreFeatures,
    TranslatedFile,
    check_range,
    short_read,
    split_name,
    split_prefix,
    translated,
)

# Backups hold what their owner alone may read: nobody else gets at them through their copies.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO in the place of an object must not stop the reader for ever.
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalStore(Store):
    """A directory; see :class:`Store` for what the methods promise."""

    is_at_hand = True

    def __init__(self, fs_path: str | os.PathLike[str], *, file_mode: int = _FILE_MODE) -> None:
        """Name the directory; it is not looked at before it is used.

        Args:
            file_mode: permissions of each object, before the umask.
        """
        self._file_mode = file_mode
        self._root = os.path.abspath(os.fspath(fs_path))
        self.url = self._root
        self._hard_links = True
        self._durable_directories: set[str] = set()

    @property
    def features(self) -> StoreFeatures:
        return StoreFeatures(
            atomic_put=True, exclusive_create=self._hard_links, durable=True, read_after_write=True
        )

    def open(self, name: str) -> BinaryIO:
        descriptor, _ = self._open_regular(name)
        return cast(BinaryIO, io.BufferedReader(TranslatedFile(descriptor, "rb", name=name, url=self.url)))

    def _open_regular(self, name: str) -> tuple[int, int]:
        """The descriptor of an object, the caller's to close, and its size."""
        with translated("open", name, self.url), self._directory_of(name) as (directory, base):
            descriptor = os.open(base, _READ_FLAGS, dir_fd=directory)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise RepositoryError(f"{name} in {self.url} is not a regular file")
        return descriptor, status.st_size

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        descriptor, size = self._open_regular(name)
        try:
            # The length may come from a damaged index: it is compared before memory is taken for it.
            if size - offset < length:
                raise short_read(name, self.url, offset=offset, expected=length, actual=max(size - offset, 0))
            with translated("read", name, self.url):
                data = _read_at(descriptor, offset, length)
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise short_read(name, self.url, offset=offset, expected=length, actual=len(data))
        return data

    def size(self, name: str) -> int:
        with translated("look at", name, self.url), self._directory_of(name) as (directory, base):
            status = os.stat(base, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise RepositoryError(f"{name} in {self.url} is not a regular file")
        return status.st_size

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        directory_name, beginning = split_prefix(prefix)
        parents = split_name(directory_name.rstrip("/")) if directory_name else []
        objects = []
        with translated("list", prefix, self.url), self._open_root() as root:
            try:
                directory = self._open_below(root, parents)
            except FileNotFoundError:
                return []
            try:
                for name, status in _iter_statuses(directory, beginning):
                    if stat.S_ISREG(status.st_mode):
                        objects.append(ObjectInfo(directory_name + name, status.st_size))
            finally:
                os.close(directory)
        return sorted(objects, key=lambda info: info.name)

    def list_directories(self) -> list[str]:
        with translated("list", "", self.url), self._open_root() as root:
            return sorted(name for name, status in _iter_statuses(root, "") if stat.S_ISDIR(status.st_mode))

    def make_root(self) -> None:
        with translated("make", "", self.url):
            durable.make_directories(self._root, mode=_DIRECTORY_MODE)

    def spool(self, name: str) -> LocalSpool:
        parents = split_name(name)[:-1]
        with translated("create", name, self.url):
            self._make_directories(parents)
            with self._directory_of(name) as (directory, base):
                pending = durable.PendingFile(
                    directory,
                    base,
                    mode=self._file_mode,
                    open_raw=partial(_open_raw, name=name, url=self.url),
                )
        return LocalSpool(self, name, pending)

    def delete(self, name: str) -> None:
        with translated("delete", name, self.url), self._directory_of(name) as (directory, base):
            os.unlink(base, dir_fd=directory)
            durable.fsync_directory(directory)

    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        parents = split_name(directory) if directory else []
        with translated("clean", directory, self.url), self._open_root() as root:
            try:
                descriptor = self._open_below(root, parents)
            except FileNotFoundError:
                return []
            try:
                names = durable.remove_temporaries(descriptor, min_age_seconds=min_age_seconds)
            finally:
                os.close(descriptor)
        return ["/".join([*parents, name]) for name in names]

    def move_pending(self, pending: durable.PendingFile, name: str) -> None:
        """Take a file in the making to where an object of another name is made."""
        with translated("create", name, self.url):
            self._make_directories(split_name(name)[:-1])
            with self._directory_of(name) as (directory, base):
                pending.move(directory, base)

    def note_publication(self, *, exclusion_is_certain: bool) -> None:
        """Remember what publishing a file has shown of the file system."""
        self._hard_links = self._hard_links and exclusion_is_certain

    @contextmanager
    def _open_root(self) -> Iterator[int]:
        try:
            root = os.open(self._root, _DIRECTORY_FLAGS)
        except FileNotFoundError as error:
            raise RepositoryNotFoundError(f"{self.url} is not there") from error
        except NotADirectoryError as error:
            raise RepositoryNotFoundError(f"{self.url} is not a directory") from error
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _directory_of(self, name: str) -> Iterator[tuple[int, str]]:
        *parents, base = split_name(name)
        with self._open_root() as root:
            directory = self._open_below(root, parents)
            try:
                yield directory, base
            finally:
                os.close(directory)

    def _open_below(self, root: int, parents: list[str]) -> int:
        if not parents:
            return os.dup(root)
        descriptor = os.open(parents[0], _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=root)
        for part in parents[1:]:
            try:
                child = os.open(part, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = child
        return descriptor

    def _make_directories(self, parents: list[str]) -> None:
        path = "/".join(parents)
        if not parents or path in self._durable_directories:
            return
        with self._open_root() as root:
            for depth, part in enumerate(parents):
                above = self._open_below(root, parents[:depth])
                try:
                    self._make_directory(above, part)
                finally:
                    os.close(above)
        self._durable_directories.add(path)

    def _make_directory(self, above: int, part: str) -> None:
        # One that is there is synchronised as well: the process that made it may have died before it did so.
        try:
            os.mkdir(part, _DIRECTORY_MODE, dir_fd=above)
        except FileExistsError:
            status = os.stat(part, dir_fd=above, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise RepositoryError(f"{part} in {self.url} is not a directory") from None
        durable.fsync_directory(above)


class LocalSpool(Spool):
    """A temporary file beside its final place."""

    def __init__(self, store: LocalStore, name: str, pending: durable.PendingFile) -> None:
        self.name = name
        self.file = pending.file
        self._store = store
        self._pending = pending

    def publish(self) -> ObjectInfo:
        with translated("create", self.name, self._store.url):
            size = self.file.seek(0, os.SEEK_END)
            certain = self._pending.publish(exclusive=True)
        self._store.note_publication(exclusion_is_certain=certain)
        return ObjectInfo(self.name, size)

    def rename(self, name: str) -> None:
        self._store.move_pending(self._pending, name)
        self.name = name

    def close(self) -> None:
        with translated("discard", self.name, self._store.url):
            self._pending.close()


def _open_raw(descriptor: int, *, name: str, url: str) -> io.RawIOBase:
    return TranslatedFile(descriptor, "r+b", name=name, url=url)


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    """A range of a file, which is shorter only where the file ends."""
    data = os.pread(descriptor, length, offset)
    while len(data) < length and (more := os.pread(descriptor, length - len(data), offset + len(data))):
        data += more
    return data


def _iter_statuses(directory: int, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith(prefix) or durable.is_temporary_name(entry.name):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since the directory was read
            yield entry.name, status
