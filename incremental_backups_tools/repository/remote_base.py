"""What all stores beyond this machine have in common.

An object is a local file until it is complete, and is then uploaded as a whole. What fails in a way that
passes is tried again, what a library raises becomes one of this package's errors, and limits are kept. How
bytes, listings and names are had from a particular kind of storage is for the subclasses to say.
"""

from __future__ import annotations

import io
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, BinaryIO, TypeVar, cast

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import (
    BackupError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.repository.limits import UNLIMITED, Limits
from incremental_backups_tools.repository.retrying import Retrier, RetryPolicy, describe
from incremental_backups_tools.repository.spool_files import make_spool_file, remove_dead_spool_files
from incremental_backups_tools.repository.store import (
    ObjectInfo,
    Spool,
    Store,
    TranslatedFile,
    check_range,
    short_read,
    split_name,
    split_prefix,
    translate_os_error,
    translated,
)

ResultT = TypeVar("ResultT")

_LOGGER = logging.getLogger(__name__)

_READ_BUFFER_LEN = 1 << 20
_COMPARE_LEN = 4 << 20
# A longer range is held against the object's size first: the length may come from a damaged index.
_UNCHECKED_RANGE_MAX = 64 << 20
# So much is asked for at once: what is cut is not fetched again from its beginning.
_PIECE_LEN = 8 << 20
_LIMITED_PIECE_LEN = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """What holds for every remote store.

    Attributes:
        spool_directory: where objects wait for their upload; None is the system's temporary directory.
        limits: bytes a second.
        retry: what is tried again, how often and when.
    """

    spool_directory: str | None = None
    limits: Limits = UNLIMITED
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class Kind(Enum):
    """What a name in a listing is."""

    FILE = auto()
    DIRECTORY = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Listed:
    """A name in a listing; *size* is in bytes, None where the storage does not tell it."""

    base: str
    kind: Kind
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A complete local file on its way to a name.

    Attributes:
        file: readable and seekable, at any position.
        fs_path: the same file's path.
        size: in bytes.
    """

    name: str
    file: BinaryIO
    fs_path: str
    size: int


class RemoteStore(Store):
    """A store beyond this machine; see :class:`Store` for what the methods promise.

    The methods that a subclass gives begin with one underscore. They may raise anything: FileNotFoundError for
    what is not there, and FileExistsError for a name that is taken, have a meaning here.
    """

    def __init__(self, root: str, *, url: str, options: RemoteOptions | None = None) -> None:
        """Nothing is looked at before it is used.

        Args:
            root: the path of the store.
            url: for messages, without passwords.
        """
        self.url = url
        self._root = root.rstrip("/")
        self._options = options or RemoteOptions()
        self._retrier = Retrier(self._options.retry)
        self._was_warned = False

    # --- what a kind of storage does ------------------------------------------------------------------------

    @abstractmethod
    def _fetch(self, name: str, offset: int, length: int) -> bytes:
        """Return at most *length* bytes, which is at least 1, from *offset*."""

    @abstractmethod
    def _stat(self, name: str) -> Listed:
        """Look at one name."""

    @abstractmethod
    def _scan(self, directory: str) -> list[Listed]:
        """List a directory, ``""`` for the top, in any order, from the storage and from no cache.

        Raises:
            FileNotFoundError: it is not there.
        """

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove an object; one that is not there may be removed without a word."""

    @abstractmethod
    def _make_root(self) -> None:
        """Make the place itself where it is missing; may do nothing where there are no directories."""

    @abstractmethod
    def _publish(self, upload: Upload) -> None:
        """Give a file its name, whole, and make sure of its bytes as far as the storage can tell.

        The name was free a moment ago. Tries again by itself, with :meth:`_retry`.
        """

    @abstractmethod
    def _age_seconds(self, name: str) -> float | None:
        """How long ago an object was written; None where the storage does not tell."""

    def _clean_unfinished(self, directory: str, min_age_seconds: float) -> list[str]:
        """Remove what is left of uploads besides files, and return what it was."""
        return []

    # --- the contract ---------------------------------------------------------------------------------------

    def open(self, name: str) -> BinaryIO:
        raw = _RangeFile(self, name, self.size(name))
        return cast(BinaryIO, io.BufferedReader(raw, _READ_BUFFER_LEN))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        split_name(name)
        if length == 0 or length > _UNCHECKED_RANGE_MAX:
            available = self.size(name) - offset
            if available < length:
                raise short_read(name, self.url, offset=offset, expected=length, actual=max(available, 0))
        limits = self._options.limits
        piece_len = _LIMITED_PIECE_LEN if limits.download else _PIECE_LEN
        pieces: list[bytes] = []
        done = 0
        while done < length:
            wanted = min(piece_len, length - done)
            limits.before_download(wanted)
            piece = self._fetch_piece(name, offset + done, wanted)
            pieces.append(piece)
            done += len(piece)
            if len(piece) != wanted:
                raise short_read(name, self.url, offset=offset, expected=length, actual=done)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fetch_piece(self, name: str, offset: int, length: int) -> bytes:
        with self._translated("read", name):
            return self._retry(lambda: self._fetch(name, offset, length))

    def size(self, name: str) -> int:
        split_name(name)
        with self._translated("look at", name):
            found = self._retry(lambda: self._stat(name))
        if found.kind is Kind.DIRECTORY:
            raise ObjectNotFoundError(f"cannot look at {name} in {self.url}: it is not there")
        if found.kind is Kind.OTHER:
            raise RepositoryError(f"{name} in {self.url} is not a regular file")
        return self._known_size(found, name)

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        directory, beginning = split_prefix(prefix)
        objects = []
        for entry in self._list(directory.rstrip("/")):
            if entry.kind is not Kind.FILE or not entry.base.startswith(beginning):
                continue
            if not durable.is_temporary_name(entry.base):
                name = directory + entry.base
                objects.append(ObjectInfo(name, self._known_size(entry, name)))
        return sorted(objects, key=lambda info: info.name)

    def list_directories(self) -> list[str]:
        return sorted(entry.base for entry in self._list("") if entry.kind is Kind.DIRECTORY)

    def make_root(self) -> None:
        with self._translated("make", ""):
            self._retry(self._make_root)

    def spool(self, name: str) -> RemoteSpool:
        split_name(name)
        return RemoteSpool(self, name, directory=self._options.spool_directory)

    def delete(self, name: str) -> None:
        self.size(name)  # object stores delete what is not there without a word
        self._delete_found("delete", name)

    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        if directory:
            split_name(directory)
        with translated("clean spool files of", "", self.url):
            removed = remove_dead_spool_files(self._options.spool_directory)
        for entry in self._list(directory):
            if entry.kind is not Kind.FILE or not durable.is_temporary_name(entry.base):
                continue
            name = f"{directory}/{entry.base}" if directory else entry.base
            if self._is_known_to_be_older(name, min_age_seconds):
                self._delete_found("clean", name)
                removed.append(name)
        with self._translated("clean", directory):
            removed += self._retry(lambda: self._clean_unfinished(directory, min_age_seconds))
        return removed

    def upload(self, file: BinaryIO, fs_path: str, name: str) -> ObjectInfo:
        """Store a complete local file under a name that is free; the spool's last step.

        Args:
            file: the same file as *fs_path*, open.

        Raises:
            ObjectExistsError: the name is taken.
            RepositoryNotFoundError: the store is not there.
            RepositoryError: it failed, or the store has other bytes than were sent.
        """
        size = file.seek(0, os.SEEK_END)
        if self.exists(name):
            raise ObjectExistsError(f"cannot create {name} in {self.url}: the name is taken")
        with self._translated("create", name):
            try:
                self._publish(Upload(name, file, fs_path, size))
            except FileNotFoundError as error:
                raise RepositoryNotFoundError(f"cannot create {name}: {self.url} is not there") from error
        self._warn_once()
        return ObjectInfo(name, size)

    # --- for the subclasses ---------------------------------------------------------------------------------

    def _retry(self, function: Callable[[], ResultT]) -> ResultT:
        return self._retrier.call(function)

    def _path(self, name: str) -> str:
        return "/".join([self._root, *split_name(name)])

    def _check_size(self, name: str, expected: int) -> None:
        actual = self.size(name)
        if actual != expected:
            raise RepositoryError(
                f"{name} in {self.url} has {actual} bytes after its upload, expected {expected}: it was cut"
            )

    def _check_bytes(self, upload: Upload, name: str) -> None:
        """Read an object back and compare it with what was sent; for storage that vouches for nothing."""
        if not self._holds_same_bytes(name, upload):
            raise RepositoryError(f"{name} in {self.url} has other bytes after its upload than were sent")

    def _holds_same_bytes(self, name: str, upload: Upload) -> bool:
        if self.size(name) != upload.size:
            return False
        upload.file.seek(0)
        with self.open(name) as there:
            while True:
                mine, theirs = upload.file.read(_COMPARE_LEN), there.read(_COMPARE_LEN)
                if mine != theirs:
                    return False
                if not mine:
                    return True

    def _list(self, directory: str) -> list[Listed]:
        with self._translated("list", directory):
            try:
                return self._retry(lambda: self._scan(directory))
            except FileNotFoundError as error:
                if not directory:
                    raise RepositoryNotFoundError(f"{self.url} is not there") from error
        self._list("")  # nothing in this directory is one thing, no store at all another
        return []

    def _delete_found(self, action: str, name: str) -> None:
        failures = 0

        def remove() -> None:
            nonlocal failures
            try:
                self._remove(name)
            except FileNotFoundError:
                # The reply to a first try that succeeded was lost.
                if not failures and action == "delete":
                    raise
            except Exception:
                failures += 1
                raise

        with self._translated(action, name):
            self._retry(remove)

    def _known_size(self, entry: Listed, name: str) -> int:
        if entry.size is None:
            raise RepositoryError(f"{self.url} does not tell the size of {name}")
        return entry.size

    def _is_known_to_be_older(self, name: str, seconds: float) -> bool:
        if seconds <= 0:
            return True
        with self._translated("look at", name):
            try:
                age_seconds = self._retry(lambda: self._age_seconds(name))
            except FileNotFoundError:
                return False
        return age_seconds is not None and age_seconds > seconds

    def _warn_once(self) -> None:
        features = self.features
        if self._was_warned or (features.exclusive_create and features.read_after_write):
            return
        self._was_warned = True
        if features.read_after_write:
            reason = "it cannot create a name exclusively"
        else:
            reason = "nothing is known of when it shows what was written"
        _LOGGER.warning(
            "%s does not keep two writers apart by itself (%s): never let two machines back up to one key at once",
            self.url,
            reason,
        )

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
            raise RepositoryError(f"cannot {action} {what}: {describe(error)}") from error


class RemoteSpool(Spool):
    """A local temporary file that is uploaded as a whole."""

    def __init__(self, store: RemoteStore, name: str, *, directory: str | None) -> None:
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

    def __init__(self, store: RemoteStore, name: str, size: int) -> None:
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
