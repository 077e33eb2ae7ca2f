"""Trees of files on any fsspec filesystem: listing them, reading, replacing and deleting their files.

A store holds objects that are created once; here lie files that people own and change. So there is replacing,
which shows the old file or the new one and never a part, and there are change keys: what a filesystem offers
to see a change by without reading.

No listing comes from a filesystem's own cache, and one that fails is an error, never an empty directory. Failures
that pass are tried again, as a store does it.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import (
    BackupError,
    IntegrityError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.repository.address import StoreAddress, is_url
from incremental_backups_tools.repository.change_keys import (
    BY_TIME,
    ChangeKeyGetter,
    change_key_getter,
    modification_time_ns,
)
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.open import open_filesystem as open_remote
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.remote import FsspecStore
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.retrying import Retrier, describe
from incremental_backups_tools.repository.store import Store, translate_os_error

ResultT = TypeVar("ResultT")

_OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_LOCAL_URL: Final = re.compile(r"(?:file|local)://", re.IGNORECASE)
_PIECE_LEN: Final = 4 << 20
# Some file systems count whole seconds, FAT two, and clocks differ.
_RACY_NS: Final = 10 * 10**9
# Read-only, as everything is that a heap holds.
_OBJECT_MODE: Final = 0o400


def protocols_of(filesystem: Any) -> frozenset[str]:
    """The names that a filesystem goes by."""
    protocol = filesystem.protocol
    return frozenset({protocol} if isinstance(protocol, str) else protocol)


def local_path_of(filesystem: Any, root: str) -> str | None:
    """The directory of this machine that *root* on *filesystem* is; None where it is none."""
    if not isinstance(filesystem, LocalFileSystem):
        return None
    return os.path.abspath(str(filesystem._strip_protocol(root)))


def open_filesystem(address: StoreAddress) -> tuple[Any, str, str]:
    """Connect to what a directory or URL names.

    Returns:
        The fsspec filesystem, the path on it, and the URL as it may be shown, without passwords.

    Raises:
        RepositoryError: an unknown protocol, a library that is not installed, options it does not take, no connection.
    """
    url = address.url
    if not url:
        raise RepositoryError("the name of a directory or URL is empty")
    if not is_url(url):
        return fsspec.filesystem("file"), os.path.abspath(_LOCAL_URL.sub("", url, count=1)), url
    retrier = Retrier(address.remote_options.retry)
    try:
        return retrier.call(lambda: open_remote(url, address.storage_options))
    except BackupError:
        raise
    except Exception as error:
        # What passes by itself and did not: each library has errors of its own.
        raise RepositoryError(f"cannot connect to {url.partition('://')[0]}://: {describe(error)}") from error


def store_on(filesystem: Any, root: str, *, url: str | None = None) -> Store:
    """A store for the objects of a heap, or for snapshots, at a path on a filesystem."""
    fs_path = local_path_of(filesystem, root)
    if fs_path is not None:
        return LocalStore(fs_path, file_mode=_OBJECT_MODE)
    shown = url or f"{sorted(protocols_of(filesystem))[0]}://{root}"
    return FsspecStore(filesystem, filesystem._strip_protocol(root), url=shown)


def store_at(address: StoreAddress) -> Store:
    """As :func:`store_on`, for a directory or URL.

    Raises:
        RepositoryError: it cannot be opened.
    """
    if not is_url(address.url):
        return LocalStore(_LOCAL_URL.sub("", address.url, count=1), file_mode=_OBJECT_MODE)
    return open_store(address)


@dataclass(frozen=True, slots=True)
class RemoteName:
    """One name of a directory.

    Attributes:
        base: the last component, as the filesystem has it; it may be one that no tree can hold.
        kind: ``file``, ``directory`` or ``other``.
        size: in bytes; None where the filesystem does not tell.
        mtime_ns: when it was modified; 0 where the filesystem does not tell.
        change_key: see ``CHANGE_KEYS``.
    """

    base: str
    kind: str
    size: int | None
    mtime_ns: int
    change_key: str | None


class RemoteFiles:
    """The files below a path on a filesystem that is not this machine's. Safe to use from several threads.

    Paths are relative, with ``/``. Every method raises RepositoryError for what the filesystem does.
    """

    def __init__(
        self,
        filesystem: Any,
        root: str,
        *,
        url: str | None = None,
        change_keys: Mapping[str, ChangeKeyGetter],
        options: RemoteOptions | None = None,
    ) -> None:
        """Nothing is looked at before it is used.

        Args:
            options: limits and retries.
        """
        options = options or RemoteOptions()
        self._limits = options.limits
        self._retrier = Retrier(options.retry)
        self._fs: AbstractFileSystem = filesystem
        self._root = filesystem._strip_protocol(root).rstrip("/")
        self._protocols = protocols_of(filesystem)
        self.url = url or f"{sorted(self._protocols)[0]}://{self._root}"
        self._change_key = change_key_getter(self._protocols, change_keys)
        self.has_directories = self._protocols.isdisjoint(_OBJECT_STORES)

    def list_directory(self, directory: str) -> list[RemoteName]:
        """List a directory, ``""`` for the top, sorted by the names' bytes. One that is not there is empty.

        Raises:
            RepositoryNotFoundError: the top is not there.
        """
        path = self._path(directory)

        def list_it() -> list[dict[str, Any]] | None:
            self._fs.invalidate_cache()
            try:
                return list(self._fs.ls(path, detail=True))
            except FileNotFoundError:
                return None

        found = self._call("list", directory, list_it)
        if found is None and not directory:
            raise RepositoryNotFoundError(f"{self.url} is not there")
        names = []
        for info in found or ():
            # A marker object for the directory, or the path when it is a file, stands in its own listing.
            full = str(info["name"]).rstrip("/")
            if full.strip("/") != path.strip("/"):
                names.append(self._name_of(full.rpartition("/")[2], info))
        return sorted(names, key=lambda name: os.fsencode(name.base))

    def look(self, path: str) -> RemoteName | None:
        """Look at one name; None where there is nothing."""

        def look() -> dict[str, Any] | None:
            self._fs.invalidate_cache()
            try:
                return dict(self._fs.info(self._path(path)))
            except FileNotFoundError:
                return None

        info = self._call("look at", path, look)
        return None if info is None else self._name_of(path.rpartition("/")[2], info)

    def iter_content(self, path: str, size: int | None) -> Iterator[bytes]:
        """A file's content in pieces of bounded length: exactly *size* bytes, where that is known.

        Raises:
            IntegrityError: the file ends before *size*.
        """
        if size is None:
            yield from self._iter_stream(path)
            return
        # sshfs' own cat_file knows no ranges; fsspec's opens the file and seeks.
        is_sftp = not self._protocols.isdisjoint({"sftp", "ssh"})
        fetch = partial(AbstractFileSystem.cat_file, self._fs) if is_sftp else self._fs.cat_file
        offset = 0
        while offset < size:
            end = min(offset + _PIECE_LEN, size)
            self._limits.before_download(end - offset)
            # Not through a file object: memory:// has one for all readers, others cache as they like.
            piece = bytes(self._call("read", path, partial(fetch, self._path(path), start=offset, end=end)))
            if len(piece) != end - offset:
                raise IntegrityError(
                    f"{path} in {self.url}: {offset + len(piece)} bytes, expected {size}",
                    path=path,
                    expected=size,
                    actual=offset + len(piece),
                )
            yield piece
            offset = end

    def replace(self, path: str, file: BinaryIO, size: int) -> RemoteName:
        """Give *path* the content of a seekable file in place of what it had: never a part of it.

        Returns:
            The file as it is now.

        Raises:
            RepositoryError: it failed; what was there is there still, unless the storage cut the upload.
        """

        def put() -> None:
            self._limits.before_upload(size)
            file.seek(0)
            if "memory" in self._protocols:
                self._fs.pipe_file(self._path(path), file.read())
            elif self.has_directories:
                self._replace_by_rename(path, file)
            elif size <= _PIECE_LEN:
                self._fs.pipe_file(self._path(path), file.read())
            else:
                self._upload(file, self._path(path))

        self._call("write", path, put)
        written = self.look(path)
        if written is None or written.size not in (size, None):
            found = "nothing" if written is None else f"{written.size} bytes"
            raise RepositoryError(f"{path} in {self.url}: {found} there after writing {size} bytes")
        return written

    def delete(self, path: str) -> None:
        """Remove a file; one that is gone already, or gave way to a directory, is no error."""
        if self.has_directories:
            there = self.look(path)
            if there is None or there.kind == "directory":
                return
        self._call("delete", path, partial(_unless_gone, self._fs.rm_file, self._path(path)))
        there = self.look(path)
        # On object stores a file and what looks like a directory may share a name.
        if there is not None and there.kind != "directory":
            raise RepositoryError(f"cannot delete {path} in {self.url}: it is still there")

    def delete_directory(self, path: str) -> None:
        """Remove an empty directory, where there are such things; one that is gone already is no error."""
        if not self.has_directories:
            return
        self._call("delete", path, partial(_unless_gone, self._fs.rmdir, self._path(path)))

    def delete_tree(self, path: str) -> None:
        """Remove a directory with everything below it. Not by patterns, which fsspec would make of a ``*``."""
        for name in self.list_directory(path):
            below = f"{path}/{name.base}"
            if name.kind == "directory":
                self.delete_tree(below)
            else:
                self.delete(below)
        self.delete_directory(path)

    def make_way(self, path: str, *, replace_directories: bool) -> None:
        """Remove a file that stands where a directory above *path* has to be, and a directory in its own place.

        Raises:
            RepositoryError: a directory stands in its place and may not be replaced.
        """
        if not self.has_directories:
            return
        parts = path.split("/")
        for depth in range(1, len(parts)):
            above = self.look("/".join(parts[:depth]))
            if above is None:
                break
            if above.kind != "directory":
                self.delete("/".join(parts[:depth]))
        there = self.look(path)
        if there is not None and there.kind == "directory":
            if not replace_directories and self.list_directory(path):
                raise RepositoryError(
                    f"{path} in {self.url}: a directory that is not empty stands in its place"
                )
            self.delete_tree(path)

    def make_root(self) -> None:
        """Make the place itself where there are directories; a bucket is its owner's to make."""
        if self.has_directories:
            self._call("make", "", lambda: self._fs.makedirs(self._root, exist_ok=True))

    def _replace_by_rename(self, path: str, file: BinaryIO) -> None:
        full = self._path(path)
        parent, _, base = full.rpartition("/")
        temporary = f"{parent}/{os.fsdecode(durable.make_temporary_name(os.fsencode(base)))}"
        self._fs.makedirs(parent, exist_ok=True)
        try:
            self._upload(file, temporary)
            self._rename_over(temporary, full)
        except BaseException:
            # The first error is the one to tell.
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _rename_over(self, temporary: str, full: str) -> None:
        if not self._fs.exists(full):
            self._rename(temporary, full)
            return
        # SFTP's plain rename does not replace. The old file is set aside, and comes back if that fails.
        parent, _, base = full.rpartition("/")
        aside = f"{parent}/{os.fsdecode(durable.make_temporary_name(os.fsencode(base)))}"
        self._rename(full, aside)
        try:
            self._rename(temporary, full)
        except BaseException:
            self._rename(aside, full)
            raise
        self._fs.rm_file(aside)

    def _rename(self, old: str, new: str) -> None:
        if type(self._fs).mv is AbstractFileSystem.mv:
            # fsspec's own mv would take '*' and '[' in a path for a pattern.
            self._fs.cp_file(old, new)
            self._fs.rm_file(old)
        else:
            self._fs.mv(old, new)

    def _upload(self, file: BinaryIO, full: str) -> None:
        with tempfile.NamedTemporaryFile(prefix="ibt-upload-") as copy:
            while chunk := file.read(_PIECE_LEN):
                copy.write(chunk)
            copy.flush()
            self._fs.put_file(copy.name, full)

    def _iter_stream(self, path: str) -> Iterator[bytes]:
        stream = self._call("read", path, lambda: cast(BinaryIO, self._fs.open(self._path(path), "rb")))
        with stream:
            while True:
                try:
                    piece = stream.read(
                        _PIECE_LEN
                    )  # not again: nobody knows where a stream stands that failed
                except Exception as error:
                    raise self._error("read", path, error) from error
                if not piece:
                    return
                self._limits.before_download(len(piece))
                yield piece

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _name_of(self, base: str, info: Mapping[str, Any]) -> RemoteName:
        kind = info.get("type")
        size = info.get("size")
        mtime_ns = modification_time_ns(info) or 0
        key = self._change_key(info) if kind == "file" else None
        if key is not None and key.startswith(BY_TIME) and mtime_ns > time.time_ns() - _RACY_NS:
            key = None  # it may be written again within the same tick
        return RemoteName(
            base,
            kind if kind in ("file", "directory") else "other",
            size if isinstance(size, int) and size >= 0 else None,
            mtime_ns,
            key,
        )

    def _call(self, action: str, path: str, function: Callable[[], ResultT]) -> ResultT:
        """What *function* returns, called again where it fails in a way that passes: twice must do no harm."""
        try:
            return self._retrier.call(function)
        except BackupError:
            raise
        except Exception as error:
            raise self._error(action, path, error) from error

    def _error(self, action: str, path: str, error: Exception) -> BackupError:
        if isinstance(error, OSError):
            return translate_os_error(error, action, path, self.url)
        # Each protocol's library has errors of its own, which have no other base in common.
        what = f"{path} in {self.url}" if path else self.url
        return RepositoryError(f"cannot {action} {what}: {type(error).__name__}: {error}")


def _unless_gone(remove: Callable[[str], object], path: str) -> None:
    with suppress(FileNotFoundError):
        remove(path)
