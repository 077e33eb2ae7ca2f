"""Files of any fsspec filesystem, to be backed up: listing them, looking at them and reading them.

Nothing is ever written. No listing comes from a filesystem's own cache, and one that fails is an error, never an
empty directory. Failures that pass are tried again, as a store does it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from blake3 import blake3
from fsspec import AbstractFileSystem

from incremental_backups_tools.exceptions import RepositoryError, SourceError
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.change_keys import (
    ChangeKeyGetter,
    change_key_getter,
    modification_time_ns,
)
from incremental_backups_tools.repository.open import open_filesystem
from incremental_backups_tools.repository.remote import OBJECT_STORES, protocols_of
from incremental_backups_tools.repository.retrying import Retrier, describe

ResultT = TypeVar("ResultT")

FILE: Final = "file"
DIRECTORY: Final = "directory"

_PIECE_LEN: Final = 4 << 20
# Some file systems count whole seconds, FAT two, and clocks differ.
_RACY_NS: Final = 10 * 10**9
_SFTP: Final = frozenset({"sftp", "ssh"})
_WEBDAV: Final = frozenset({"webdav", "dav"})
# What listings have of objects alone.
_VERSION_FIELDS: Final = frozenset({"ETag", "etag", "generation"})
# The options of the libraries that say which server a URL is on.
_SERVER_OPTIONS: Final = ("account_name", "base_url", "endpoint_url", "host", "port")


class SourceName(NamedTuple):
    """One name of a directory.

    Attributes:
        base: the last component, as the filesystem has it; it may be one that no tree can hold.
        kind: ``file``, ``directory``, or what else the filesystem calls it.
        size: in bytes; None where the filesystem does not tell.
        mtime_ns: when it was modified, nanoseconds since 1970; 0 where the filesystem does not tell.
        change_key: differs whenever the content does, among the files of every place; None where nothing of the
            kind is known.
    """

    base: str
    kind: str
    size: int | None
    mtime_ns: int
    change_key: str | None


@dataclass(slots=True)
class SourceListing:
    """What a directory holds, sorted by nothing.

    Attributes:
        odd: what is there and is no name of the directory, in words.
    """

    names: list[SourceName] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


class SourceFiles:
    """The files below a path on a filesystem. Paths are relative, with ``/``; ``""`` is the top.

    Attributes:
        url: without passwords.
    """

    def __init__(self, address: StoreAddress, *, change_keys: Mapping[str, ChangeKeyGetter]) -> None:
        """Connect as far as the library does; nothing is looked at before it is used.

        Raises:
            SourceError: an unknown protocol, a library that is not installed, options it does not take.
        """
        self._retrier = Retrier(address.remote_options.retry)
        try:
            opened = self._retrier.call(lambda: open_filesystem(address.url, address.storage_options))
        except RepositoryError as error:
            raise SourceError(str(error)) from error
        except Exception as error:
            # What passes by itself and did not: each library has errors of its own.
            raise SourceError(f"cannot connect to the source: {describe(error)}") from error
        filesystem, root, shown = opened
        self.url = shown.rstrip("/")
        self._fs: AbstractFileSystem = filesystem
        self._root = root.rstrip("/")
        protocols = protocols_of(filesystem)
        if not protocols.isdisjoint(_WEBDAV):
            weakref.finalize(self, filesystem.client.http.close)
        self._is_object_store = not protocols.isdisjoint(OBJECT_STORES)
        self._is_sftp = not protocols.isdisjoint(_SFTP)
        self._key_of = change_key_getter(protocols, change_keys)
        server = [str(address.storage_options.get(name)) for name in _SERVER_OPTIONS]
        named = "\0".join([self.url, *server]).encode("utf-8", "surrogateescape")
        # Keys of two places may be equal, such as times.
        self._place = blake3(named).hexdigest()[:16]

    def list_directory(self, directory: str) -> SourceListing:
        """List a directory, in any order.

        Raises:
            SourceError: it is not there, is none, or cannot be listed.
        """
        path = self._path(directory)
        found = self._call("list", lambda: self._fs.ls(path, detail=True))
        listing = SourceListing()
        is_file = False
        for info in found:
            full = str(info["name"])
            if full.strip("/") != path.strip("/"):
                listing.names.append(self._name_of(full.rstrip("/").rpartition("/")[2], info))
            elif info.get("type") == FILE and not full.endswith("/"):
                is_file = True
                listing.odd.append("a file has the same path as this directory, and is not backed up")
            elif info.get("type") == FILE and info.get("size"):
                listing.odd.append("a file whose name ends in a slash, not backed up")
            elif full.endswith("/") and self._is_object_store and _VERSION_FIELDS.isdisjoint(info):
                # No object that marks the directory: a prefix whose last name is empty.
                listing.odd.append("a path with two slashes in a row, not backed up")
        if is_file and not listing.names:
            raise SourceError("is not a directory")
        if (
            self._is_object_store
            and directory
            and not found
            and self._call("list", lambda: self._fs.find(path))
        ):
            # A prefix is there because something is: adlfs drops names that begin with a slash.
            raise SourceError("cannot list: what is below it has two slashes in a row")
        return listing

    def look(self, path: str) -> SourceName:
        """Look at one file.

        Raises:
            SourceError: it is not there or cannot be looked at.
        """
        info = self._call("look at it", lambda: self._fs.info(self._path(path)))
        return self._name_of(path.rpartition("/")[2], info)

    def iter_content(self, path: str, size: int) -> Iterator[bytes]:
        """The first *size* bytes of a file in pieces of bounded length, fewer where it ends before.

        Raises:
            SourceError: it is gone or cannot be read.
        """
        full, offset = self._path(path), 0
        while offset < size:
            # Not through a file object: memory:// has one for all readers, others cache as they like.
            piece = self._fetch(full, offset, min(offset + _PIECE_LEN, size))
            yield piece
            if len(piece) < min(_PIECE_LEN, size - offset):
                return
            offset += len(piece)

    def _fetch(self, full: str, start: int, end: int) -> bytes:
        # sshfs' own cat_file knows no ranges; fsspec's opens the file and seeks.
        fetch = partial(AbstractFileSystem.cat_file, self._fs) if self._is_sftp else self._fs.cat_file
        piece = bytes(self._call("read", lambda: fetch(full, start=start, end=end)))
        if len(piece) > end - start:
            raise SourceError(f"cannot read: {len(piece)} bytes came where {end - start} were asked for")
        return piece

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _name_of(self, base: str, info: Mapping[str, Any]) -> SourceName:
        kind, size = str(info.get("type")), info.get("size")
        mtime_ns = modification_time_ns(info) or 0
        key = self._key_of(info) if kind == FILE else None
        if key is not None and not self._is_object_store and mtime_ns > time.time_ns() - _RACY_NS:
            key = None  # it may be written again within the same tick
        return SourceName(
            base,
            kind,
            size if isinstance(size, int) and size >= 0 else None,
            mtime_ns,
            None if key is None else f"{self._place}:{key}",
        )

    def _call(self, action: str, function: Callable[[], ResultT]) -> ResultT:
        def call() -> ResultT:
            self._fs.invalidate_cache()
            return function()

        try:
            return self._retrier.call(call)
        except FileNotFoundError as error:
            raise SourceError(f"cannot {action}: it is not there") from error
        except Exception as error:
            # Each protocol's library has errors of its own, which have no other base in common.
            raise SourceError(f"cannot {action}: {describe(error)}") from error
