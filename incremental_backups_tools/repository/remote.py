"""Any fsspec filesystem as a store.

Filesystems differ in what a put means. There are three ways to make an object appear whole or not at all:

- object stores show an object when its upload is complete, and refuse ``mode="create"`` on a taken name;
- ``memory://`` takes all bytes in one assignment, and only this process can see it;
- every other one is given a temporary name beside the final one, is read back, and then renamed.

S3, Azure and SFTP have modules of their own, which know more of them than fsspec does.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fsspec import AbstractFileSystem

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import UnsafePathError
from incremental_backups_tools.repository.remote_base import Kind, Listed, RemoteOptions, RemoteStore, Upload
from incremental_backups_tools.repository.store import StoreFeatures, split_name

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
# Not S3: some servers that speak its protocol ignore the condition (rclone serve s3, JuiceFS).
_EXCLUSIVE_OBJECT_STORES = frozenset({"gs", "gcs", "az", "abfs", "abfss"})
# Of any other one nothing is known, and a cache may be among what lies in between.
_CONSISTENT = OBJECT_STORES | {"memory", "file", "local", "webdav", "dav", "sftp", "ssh", "smb"}

_UNQUOTED = frozenset("%?#")

# memory:// looks and then assigns. Within the one process that can see it, this makes the two one step.
_MEMORY_LOCK = threading.Lock()

_KINDS = {"file": Kind.FILE, "directory": Kind.DIRECTORY}


class FsspecStore(RemoteStore):
    """An fsspec filesystem and a path on it; see :class:`Store` for what the methods promise."""

    def __init__(
        self, filesystem: AbstractFileSystem, root: str, *, url: str, options: RemoteOptions | None = None
    ) -> None:
        """Take a filesystem; nothing is looked at before it is used.

        Args:
            root: the path of the store on that filesystem.
            url: for messages, without passwords.
        """
        super().__init__(root, url=url, options=options)
        self._fs = filesystem
        self._protocols = protocols_of(filesystem)

    @property
    def features(self) -> StoreFeatures:
        is_memory = "memory" in self._protocols
        is_object_store = self._is_object_store()
        return StoreFeatures(
            atomic_put=is_memory or is_object_store or not self._moves_by_copying(),
            exclusive_create=is_memory or not self._protocols.isdisjoint(_EXCLUSIVE_OBJECT_STORES),
            durable=is_object_store,
            read_after_write=not self._protocols.isdisjoint(_CONSISTENT),
        )

    def _is_object_store(self) -> bool:
        return not self._protocols.isdisjoint(OBJECT_STORES)

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self._fs.cat_file(self._path(name), start=offset, end=offset + length))

    def _stat(self, name: str) -> Listed:
        self._fs.invalidate_cache()
        return _listed(name, self._fs.info(self._path(name)))

    def _scan(self, directory: str) -> list[Listed]:
        path = self._path(directory) if directory else self._root
        self._fs.invalidate_cache()
        entries = []
        for entry in self._fs.ls(path, detail=True):
            full = entry["name"].rstrip("/")
            # A marker object for the directory, or the path when it is a file, stands in its own listing.
            if full.strip("/") != path.strip("/"):
                entries.append(_listed(full.rpartition("/")[2], entry))
        return entries

    def _remove(self, name: str) -> None:
        self._fs.rm_file(self._path(name))

    def _make_root(self) -> None:
        # An object store has no directories; a bucket is made by its owner, not by a mistyped URL.
        if not self._is_object_store():
            self._fs.makedirs(self._root, exist_ok=True)

    def _age_seconds(self, name: str) -> float | None:
        try:
            modified = self._fs.modified(self._path(name))
        except NotImplementedError:
            return None
        return time.time() - float(modified.timestamp())

    def _publish(self, upload: Upload) -> None:
        if "memory" in self._protocols:
            self._put_in_memory(upload)
        elif self._is_object_store():
            self._put_object(upload)
        else:
            self._put_by_rename(upload)

    def _put_in_memory(self, upload: Upload) -> None:
        upload.file.seek(0)
        data = upload.file.read()
        with _MEMORY_LOCK:
            self._fs.pipe_file(self._path(upload.name), data, mode="create")
        self._check_size(upload.name, upload.size)

    def _put_object(self, upload: Upload) -> None:
        def put() -> None:
            self._options.limits.before_upload(upload.size)
            self._fs.put_file(upload.fs_path, self._path(upload.name), mode="create")

        try:
            self._retry(put)
        except FileExistsError:
            # The reply to a put that succeeded may be lost; repeated, it finds the object that it made.
            if not self._holds_same_bytes(upload.name, upload):
                raise
        self._check_size(upload.name, upload.size)

    def _put_by_rename(self, upload: Upload) -> None:
        *parents, base = split_name(upload.name)
        self._retry(lambda: self._fs.makedirs("/".join([self._root, *parents]), exist_ok=True))
        temporary = "/".join([*parents, os.fsdecode(durable.make_temporary_name(os.fsencode(base)))])

        def put() -> None:
            self._options.limits.before_upload(upload.size)
            self._fs.put_file(upload.fs_path, self._path(temporary))

        try:
            self._retry(put)
            self._check_size(temporary, upload.size)
            self._check_bytes(upload, temporary)
            if self.exists(upload.name):
                raise FileExistsError(upload.name)
            self._rename_surely(temporary, upload)
        except BaseException:
            # The first error is the one to tell; what stays is taken away by clean_temporaries.
            with suppress(Exception):
                self._fs.rm_file(self._path(temporary))
            raise

    def _rename_surely(self, temporary: str, upload: Upload) -> None:
        failures = 0

        def rename() -> None:
            nonlocal failures
            try:
                self._rename(self._path(temporary), self._path(upload.name))
            except (FileNotFoundError, FileExistsError):
                # The reply to a first try that succeeded may be lost: then the name has these very bytes.
                if not failures or not self._holds_same_bytes(upload.name, upload):
                    raise
            except Exception:
                failures += 1
                raise

        self._retry(rename)
        self._check_size(upload.name, upload.size)

    def _moves_by_copying(self) -> bool:
        return type(self._fs).mv is AbstractFileSystem.mv

    def _rename(self, old: str, new: str) -> None:
        """Give a file another name, on which there was nothing a moment ago."""
        if self._moves_by_copying():
            # fsspec's own mv would take '*' and '[' in a path for a pattern.
            self._fs.cp_file(old, new)
            self._fs.rm_file(old)
        else:
            self._fs.mv(old, new)


class WebdavStore(FsspecStore):
    """A WebDAV server, through webdav4: its MOVE is told not to overwrite."""

    def __init__(
        self, filesystem: AbstractFileSystem, root: str, *, url: str, options: RemoteOptions | None = None
    ) -> None:
        """As FsspecStore's; the connections are closed with the store."""
        super().__init__(filesystem, root, url=url, options=options)
        weakref.finalize(self, filesystem.client.http.close)

    def _path(self, name: str) -> str:
        # webdav4 quotes none of these: 'a%20b' would be 'a b'.
        if not _UNQUOTED.isdisjoint(name):
            raise UnsafePathError(f"{name!r}: a WebDAV repository can have no '%', '?' or '#' in a name")
        return super()._path(name)

    def _moves_by_copying(self) -> bool:
        return False

    def _rename(self, old: str, new: str) -> None:
        # webdav4's mv copies and deletes.
        self._fs.client.move(old, new, overwrite=False)


def protocols_of(filesystem: AbstractFileSystem) -> frozenset[str]:
    """The protocols that a filesystem says it speaks."""
    protocol: str | Iterable[str] = filesystem.protocol
    return frozenset({protocol} if isinstance(protocol, str) else protocol)


def _listed(base: str, entry: dict[str, Any]) -> Listed:
    size = entry.get("size")
    is_size = isinstance(size, int) and size >= 0
    return Listed(base, _KINDS.get(str(entry.get("type")), Kind.OTHER), size if is_size else None)
