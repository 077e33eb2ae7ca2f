"""A directory on a server that is reached by SSH, through sshfs and asyncssh.

A file is written under a temporary name, flushed to the disk where the server offers that, and then given its
final name by a hard link: that fails where the name is taken, so that of two writers one succeeds. A server
without hard links is asked for a plain rename, which must refuse a taken name as well, but not every server
keeps two renames of one instant apart.

fsspec's own SFTP filesystem stands on paramiko, may not be used by several threads, and reads a whole file for
a range of it in no fewer steps; sshfs is the one that its makers point to.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from asyncssh.sftp import (
    SFTPAttrs,
    SFTPClient,
    SFTPClientFile,
    SFTPError,
    SFTPName,
    SFTPNoSuchFile,
    SFTPNoSuchPath,
    SFTPOpUnsupported,
    SFTPPermissionDenied,
)
from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from incremental_backups_tools import durable
from incremental_backups_tools.repository.remote_base import Kind, Listed, RemoteOptions, RemoteStore, Upload
from incremental_backups_tools.repository.retrying import is_transient
from incremental_backups_tools.repository.store import StoreFeatures, split_name

ResultT = TypeVar("ResultT")

# Backups hold what their owner alone may read.
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_WRITE_LEN = 1 << 20


@dataclass(frozen=True, slots=True)
class _Session:
    """A connection, and a channel of its own in it."""

    filesystem: AbstractFileSystem
    sftp: SFTPClient

    def run(self, function: Callable[[SFTPClient], Awaitable[ResultT]]) -> ResultT:
        """Return what *function* comes to, which is given the channel."""
        result: ResultT = sync(self.filesystem.loop, function, self.sftp)
        return result


class SftpStore(RemoteStore):
    """A directory on an SFTP server; see :class:`Store` for what the methods promise."""

    def __init__(
        self,
        connect: Callable[[], AbstractFileSystem],
        root: str,
        *,
        url: str,
        options: RemoteOptions | None = None,
    ) -> None:
        """Nothing is connected to before it is used.

        Args:
            connect: makes a new connection, by sshfs.
            root: the directory on the server.
            url: for messages, without passwords.
        """
        super().__init__(root, url=url, options=options)
        self._connect = connect
        self._mutex = threading.Lock()
        self._session: _Session | None = None
        self._has_hard_links: bool | None = None
        self._made_directories: set[str] = set()

    @property
    def features(self) -> StoreFeatures:
        return StoreFeatures(
            atomic_put=True,
            exclusive_create=bool(self._has_hard_links),
            durable=False,  # the directory cannot be flushed
            read_after_write=True,
        )

    # --- reading --------------------------------------------------------------------------------------------

    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        async def fetch(sftp: SFTPClient) -> bytes:
            async with sftp.open(self._path(name), "rb") as file:
                data = await file.read(length, offset)
                return data if isinstance(data, bytes) else data.encode()

        return self._ask(fetch)

    def _stat(self, name: str) -> Listed:
        return _listed(name, self._ask(lambda sftp: sftp.lstat(self._path(name))))

    def _scan(self, directory: str) -> list[Listed]:
        path = os.fsencode(self._path(directory) if directory else self._root or "/")
        found: Sequence[SFTPName] = self._ask(lambda sftp: sftp.readdir(path))
        return [
            _listed(os.fsdecode(entry.filename), entry.attrs)
            for entry in found
            if entry.filename not in (b".", b"..")
        ]

    def _age_seconds(self, name: str) -> float | None:
        mtime = self._ask(lambda sftp: sftp.lstat(self._path(name))).mtime
        return None if mtime is None else time.time() - float(mtime)

    # --- writing --------------------------------------------------------------------------------------------

    def _make_root(self) -> None:
        self._make_directories(self._root)

    def _make_directories(self, path: str) -> None:
        attributes = SFTPAttrs(permissions=_DIRECTORY_MODE)
        self._ask(lambda sftp: sftp.makedirs(path, attrs=attributes, exist_ok=True))

    def _remove(self, name: str) -> None:
        self._ask(lambda sftp: sftp.unlink(self._path(name)))

    def _publish(self, upload: Upload) -> None:
        *parents, _ = split_name(upload.name)
        directory = "/".join([self._root, *parents])
        if directory not in self._made_directories:
            self._retry(lambda: self._make_directories(directory))
            self._made_directories.add(directory)
        temporary = self._retry(lambda: self._send(upload))
        try:
            self._check_size(temporary, upload.size)
            self._retry(lambda: self._take_name(temporary, upload))
            self._check_size(upload.name, upload.size)
        finally:
            # What stays is taken away by clean_temporaries.
            with suppress(Exception):
                self._remove(temporary)

    def _send(self, upload: Upload) -> str:
        """Write a file under a temporary name, and return that."""
        *parents, base = split_name(upload.name)
        temporary = "/".join([*parents, os.fsdecode(durable.make_temporary_name(os.fsencode(base)))])
        session = self._get_session()
        attributes = SFTPAttrs(permissions=_FILE_MODE)

        async def begin(sftp: SFTPClient) -> SFTPClientFile:
            return await sftp.open(self._path(temporary), "xb", attributes)

        async def end(sftp: SFTPClient) -> None:
            with suppress(SFTPOpUnsupported):
                await file.fsync()
            await file.close()

        with _SessionErrors(self, session):
            file = session.run(begin)
            upload.file.seek(0)
            while data := upload.file.read(_WRITE_LEN):
                self._options.limits.before_upload(len(data))
                session.run(lambda sftp: file.write(data))
            session.run(end)
        return temporary

    def _take_name(self, temporary: str, upload: Upload) -> None:
        old, new = self._path(temporary), self._path(upload.name)
        try:
            if self._has_hard_links is not False:
                try:
                    self._ask(lambda sftp: sftp.link(old, new))
                    self._has_hard_links = True
                except SFTPOpUnsupported:
                    self._has_hard_links = False
            if not self._has_hard_links:
                # Some servers let a rename replace.
                if self.exists(upload.name):
                    raise FileExistsError(upload.name)
                self._ask(lambda sftp: sftp.rename(old, new))
        except (SFTPError, FileNotFoundError, FileExistsError) as error:
            # SFTP has but one word for most failures.
            if is_transient(error) or not self.exists(upload.name):
                raise
            # The reply to a first try that succeeded may be lost; the next one then finds the name taken.
            if not self._holds_same_bytes(upload.name, upload):
                raise FileExistsError(upload.name) from error

    # --- the connection -------------------------------------------------------------------------------------

    def _ask(self, function: Callable[[SFTPClient], Awaitable[ResultT]]) -> ResultT:
        session = self._get_session()
        with _SessionErrors(self, session):
            return session.run(function)

    def _get_session(self) -> _Session:
        with self._mutex:
            if self._session is None:
                filesystem = self._connect()
                self._session = _Session(
                    filesystem, sync(filesystem.loop, filesystem.client.start_sftp_client)
                )
            return self._session

    def drop(self, session: _Session) -> None:
        """Let a connection go that was lost; the next request makes another."""
        with self._mutex:
            if self._session is session:
                self._session = None


class _SessionErrors:
    """Translates the words of SFTP, and lets a lost connection go."""

    def __init__(self, store: SftpStore, session: _Session) -> None:
        self._store = store
        self._session = session

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        if isinstance(error, (SFTPNoSuchFile, SFTPNoSuchPath)):
            raise FileNotFoundError(error.reason) from error
        if isinstance(error, SFTPPermissionDenied):
            raise PermissionError(error.reason) from error
        if is_transient(error):
            self._store.drop(self._session)


def _listed(base: str, attributes: SFTPAttrs) -> Listed:
    mode = attributes.permissions or 0
    if stat.S_ISREG(mode):
        return Listed(base, Kind.FILE, attributes.size)
    return Listed(base, Kind.DIRECTORY if stat.S_ISDIR(mode) else Kind.OTHER)
