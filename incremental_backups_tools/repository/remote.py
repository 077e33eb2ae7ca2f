"""Any fsspec filesystem as a store.

Filesystems differ in what a put means. There are three ways to make an object appear whole or not at all:

- object stores show an object when its upload is complete, and refuse ``mode="create"`` on a taken name;
- ``memory://`` takes all bytes in one assignment, and only this process can see it;
- every other one (SFTP, SMB, WebDAV, ...) is given a temporary name beside the final one, and then renames.

Listings are never taken from a filesystem's own cache: another machine may have written since.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from fsspec import AbstractFileSystem

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import (
    BackupError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.repository.spool_files import make_spool_file, remove_dead_spool_files
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
    translate_os_error,
    translated,
)

_READ_BUFFER_LEN = 1 << 20
_COMPARE_LEN = 4 << 20
# A longer range is held against the object's size first: the length may come from a damaged index.
_UNCHECKED_RANGE_MAX = 64 << 20

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
# Not S3: some servers that speak its protocol ignore the condition (rclone serve s3, JuiceFS).
_EXCLUSIVE_OBJECT_STORES = frozenset({"gs", "gcs", "az", "abfs", "abfss"})

# memory:// looks and then assigns. Within the one process that can see it, this makes the two one step.
_MEMORY_LOCK = threading.Lock()


class FsspecStore(Store):
    """An fsspec filesystem and a path on it; see :class:`Store` for what the methods promise."""

    def __init__(
        self, filesystem: AbstractFileSystem, root: str, *, url: str, spool_directory: str | None = None
    ) -> None:
        """Take a filesystem; nothing is looked at before it is used.

        Args:
            root: the path of the store on that filesystem.
            url: for messages, without passwords.
            spool_directory: where objects wait for their upload; None is the system's temporary directory.
        """
        self.url = url
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._spool_directory = spool_directory
        protocol = filesystem.protocol
        self._protocols = frozenset({protocol} if isinstance(protocol, str) else protocol)

    @property
    def features(self) -> StoreFeatures:
        is_memory = "memory" in self._protocols
        is_object_store = not self._protocols.isdisjoint(_OBJECT_STORES)
        return StoreFeatures(
            atomic_put=is_memory or is_object_store or not self._moves_by_copying(),
            exclusive_create=is_memory or not self._protocols.isdisjoint(_EXCLUSIVE_OBJECT_STORES),
            durable=is_object_store,
        )

    def open(self, name: str) -> BinaryIO:
        raw = _RangeFile(self, name, self.size(name))
        return cast(BinaryIO, io.BufferedReader(raw, _READ_BUFFER_LEN))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        if length == 0 or length > _UNCHECKED_RANGE_MAX:
            available = self.size(name) - offset
            if available < length:
                raise short_read(name, self.url, offset=offset, expected=length, actual=max(available, 0))
        if length == 0:
            return b""
        with self._translated("read", name):
            data = bytes(self._fs.cat_file(self._path(name), start=offset, end=offset + length))
        if len(data) != length:
            raise short_read(name, self.url, offset=offset, expected=length, actual=len(data))
        return data

    def size(self, name: str) -> int:
        path = self._path(name)
        with self._translated("look at", name):
            self._fs.invalidate_cache()
            entry = self._fs.info(path)
        if entry.get("type") == "directory":
            raise ObjectNotFoundError(f"cannot look at {name} in {self.url}: it is not there")
        return self._entry_size(entry, name)

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        directory, beginning = split_prefix(prefix)
        objects = []
        for base, entry in self._iter_entries(directory.rstrip("/")):
            if entry.get("type") != "file" or not base.startswith(beginning):
                continue
            if not durable.is_temporary_name(base):
                objects.append(ObjectInfo(directory + base, self._entry_size(entry, directory + base)))
        return sorted(objects, key=lambda info: info.name)

    def list_directories(self) -> list[str]:
        return sorted(base for base, entry in self._iter_entries("") if entry.get("type") == "directory")

    def make_root(self) -> None:
        # An object store has no directories; a bucket is made by its owner, not by a mistyped URL.
        if self._protocols.isdisjoint(_OBJECT_STORES):
            with self._translated("make", ""):
                self._fs.makedirs(self._root, exist_ok=True)

    def spool(self, name: str) -> RemoteSpool:
        split_name(name)
        return RemoteSpool(self, name, directory=self._spool_directory)

    def delete(self, name: str) -> None:
        self.size(name)  # object stores delete what is not there without a word
        with self._translated("delete", name):
            self._fs.rm_file(self._path(name))

    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        with translated("clean spool files of", "", self.url):
            removed = remove_dead_spool_files(self._spool_directory)
        for base, entry in self._iter_entries(directory):
            if entry.get("type") != "file" or not durable.is_temporary_name(base):
                continue
            name = f"{directory}/{base}" if directory else base
            if self._age_is_known_to_exceed(name, min_age_seconds):
                with self._translated("clean", name), suppress(FileNotFoundError):
                    self._fs.rm_file(self._path(name))
                    removed.append(name)
        return removed

    def upload(self, file: BinaryIO, fs_path: str, name: str) -> ObjectInfo:
        """Store a complete local file under a name that is free; the spool's last step.

        Args:
            file: the same file as *fs_path*, open.
        """
        size = file.seek(0, os.SEEK_END)
        if self.exists(name):
            raise ObjectExistsError(f"cannot create {name} in {self.url}: the name is taken")
        with self._translated("create", name):
            try:
                if "memory" in self._protocols:
                    self._put_in_memory(file, name)
                elif not self._protocols.isdisjoint(_OBJECT_STORES):
                    self._put_object(file, fs_path, name)
                else:
                    self._put_by_rename(fs_path, name, size)
            except FileNotFoundError as error:
                raise RepositoryNotFoundError(f"cannot create {name}: {self.url} is not there") from error
        self._check_size(name, size)
        return ObjectInfo(name, size)

    def _put_in_memory(self, file: BinaryIO, name: str) -> None:
        file.seek(0)
        data = file.read()
        with _MEMORY_LOCK:
            self._fs.pipe_file(self._path(name), data, mode="create")

    def _put_object(self, file: BinaryIO, fs_path: str, name: str) -> None:
        try:
            self._fs.put_file(fs_path, self._path(name), mode="create")
        except FileExistsError:
            # The reply to a put that succeeded may be lost; repeated, it finds the object that it made.
            if not self._holds_same_bytes(name, file):
                raise

    def _put_by_rename(self, fs_path: str, name: str, size: int) -> None:
        *parents, base = split_name(name)
        temporary_base = os.fsdecode(durable.make_temporary_name(os.fsencode(base)))
        temporary = "/".join([*parents, temporary_base])
        try:
            self._fs.makedirs("/".join([self._root, *parents]), exist_ok=True)
            self._fs.put_file(fs_path, self._path(temporary))
            self._check_size(temporary, size)
            if self.exists(name):
                raise ObjectExistsError(f"cannot create {name} in {self.url}: the name is taken")
            self._rename(self._path(temporary), self._path(name))
        except BaseException:
            # The first error is the one to tell; what stays is taken away by clean_temporaries.
            with suppress(Exception):
                self._fs.rm_file(self._path(temporary))
            raise

    def _moves_by_copying(self) -> bool:
        return type(self._fs).mv is AbstractFileSystem.mv

    def _rename(self, old: str, new: str) -> None:
        if self._moves_by_copying():
            # fsspec's own mv would take '*' and '[' in a path for a pattern.
            self._fs.cp_file(old, new)
            self._fs.rm_file(old)
        else:
            self._fs.mv(old, new)

    def _holds_same_bytes(self, name: str, file: BinaryIO) -> bool:
        file.seek(0)
        with self.open(name) as there:
            while True:
                mine, theirs = file.read(_COMPARE_LEN), there.read(_COMPARE_LEN)
                if mine != theirs:
                    return False
                if not mine:
                    return True

    def _check_size(self, name: str, expected: int) -> None:
        actual = self.size(name)
        if actual != expected:
            raise RepositoryError(
                f"{name} in {self.url} has {actual} bytes after its upload, expected {expected}: it was cut"
            )

    def _path(self, name: str) -> str:
        return "/".join([self._root, *split_name(name)])

    def _iter_entries(self, directory: str) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self._path(directory) if directory else self._root
        for entry in self._list(path, directory):
            full = entry["name"].rstrip("/")
            # A marker object for the directory, or the path when it is a file, stands in its own listing.
            if full.strip("/") != path.strip("/"):
                yield full.rpartition("/")[2], entry

    def _list(self, path: str, directory: str) -> list[dict[str, Any]]:
        with self._translated("list", directory):
            self._fs.invalidate_cache()
            try:
                return list(self._fs.ls(path, detail=True))
            except FileNotFoundError as error:
                if not directory:
                    raise RepositoryNotFoundError(f"{self.url} is not there") from error
        self._list(self._root, "")  # nothing in this directory is one thing, no store at all another
        return []

    def _entry_size(self, entry: dict[str, Any], name: str) -> int:
        size = entry.get("size")
        if not isinstance(size, int) or size < 0:
            raise RepositoryError(f"{self.url} does not tell the size of {name} (it says {size!r})")
        return size

    def _age_is_known_to_exceed(self, name: str, seconds: float) -> bool:
        if seconds <= 0:
            return True
        with self._translated("look at", name):
            try:
                modified = self._fs.modified(self._path(name))
            except (FileNotFoundError, NotImplementedError):
                return False
            age_seconds: float = time.time() - modified.timestamp()
            return age_seconds > seconds

    @contextmanager
    def _translated(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except BackupError:
            raise
        except OSError as error:
            raise translate_os_error(error, action, name, self.url) from error
        except Exception as error:
            # Each protocol's library has errors of its own, which have no other base in common.
            what = f"{name} in {self.url}" if name else self.url
            raise RepositoryError(f"cannot {action} {what}: {type(error).__name__}: {error}") from error


class RemoteSpool(Spool):
    """A local temporary file that is uploaded as a whole."""

    def __init__(self, store: FsspecStore, name: str, *, directory: str | None) -> None:
        self.name = name
        self._store = store
        with translated("make a temporary file for", name, store.url):
            descriptor, self._fs_path = make_spool_file(directory)
        self._raw = TranslatedFile(
            descriptor, "r+b", name=f"the temporary file {self._fs_path}", url=store.url
        )
        self.file = cast(BinaryIO, io.BufferedRandom(self._raw))
        self._open = True

    def publish(self) -> ObjectInfo:
        self.file.flush()
        return self._store.upload(self.file, self._fs_path, self.name)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._raw.close()
            with translated("remove the temporary file of", self.name, self._store.url):
                os.unlink(self._fs_path)


class _RangeFile(io.RawIOBase):
    """Reads an object by ranges: fsspec's own file objects share a position (memory) or cache at will."""

    def __init__(self, store: FsspecStore, name: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._name = name
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        if length:
            buffer[:length] = self._store.read_range(self._name, self._position, length)
            self._position += length
        return length
