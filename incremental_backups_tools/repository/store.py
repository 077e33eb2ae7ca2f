"""The storage contract: what every place that holds a repository must do, and which errors may come out.

Names are relative, ``key/file``, and confined to the store. Nothing that has a name is ever replaced: a name
is created once, whole, or not at all. A listing that fails is an error and never an empty list.
"""

from __future__ import annotations

import errno
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from incremental_backups_tools.exceptions import (
    IntegrityError,
    LimitExceededError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    UnsafePathError,
)

NAME_PART_MAX = 255

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class ObjectInfo(msgspec.Struct, frozen=True):
    """One object of a listing: its whole name in the store, and its size in bytes.

    Attributes:
        digest: BLAKE3 of the object as it lies, hexadecimal, from a spool that stores other bytes than it was
            given.
    """

    name: str
    size: int
    digest: str | None = None


class StoreFeatures(msgspec.Struct, frozen=True):
    """What a store can promise.

    Attributes:
        atomic_put: an object is never seen in part, also when its writer is killed.
        exclusive_create: of several writers that create one name at once, exactly one succeeds. Where this
            is false, a name that is there is still refused; two writers in one instant are not told apart.
        durable: what was reported as written survives a power cut.
        read_after_write: what was written shows in every listing and every read that begins afterwards. The
            locks stand on it.
    """

    atomic_put: bool
    exclusive_create: bool
    durable: bool
    read_after_write: bool


class Spool(ABC):
    """An object in the making: a local file until it is published.

    A context manager; leaving it without :meth:`publish` removes what there is.

    Attributes:
        name: the object's name.
        file: readable, writable, seekable and truncatable, at position 0. Its errors are RepositoryErrors.
    """

    name: str
    file: BinaryIO

    @abstractmethod
    def publish(self) -> ObjectInfo:
        """Give the object its name. When this returns, it is there, whole and durable.

        Raises:
            ObjectExistsError: the name is taken.
            RepositoryError: it could not be stored.
        """

    def rename(self, name: str) -> None:
        """Choose another name before :meth:`publish`: that of what is named by its content is known last.

        Raises:
            UnsafePathError: it would lead out of the store.
            RepositoryError: the place for it could not be made.
        """
        split_name(name)
        self.name = name

    @abstractmethod
    def close(self) -> None:
        """Remove what was not published. May be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Store(ABC):
    """A place for objects with names. Safe to use from several threads.

    Every method raises RepositoryError (or one of its kinds named there) for whatever the storage does, and
    UnsafePathError for a name that would lead out of the store.

    Attributes:
        url: where it is, for people: without passwords.
        is_encrypted: backups' files have names in ``.age``, and their bytes are encrypted where they lie.
        needs_preparing: what :meth:`prepare` is asked for cannot be read before. Where this is false, nobody works
            out what it would have to be asked for.
        is_at_hand: all that is stored can be read here, from this machine's own file systems: as cheaply as a file
            that is to be stored.
    """

    url: str
    is_encrypted: bool = False
    needs_preparing: bool = False
    is_at_hand: bool = False

    @property
    @abstractmethod
    def features(self) -> StoreFeatures:
        """What the store promises, as far as is known by now."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open an object for streaming; bounded memory, seekable.

        Raises:
            ObjectNotFoundError: it is not there.
        """

    @abstractmethod
    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return exactly *length* bytes from *offset*.

        Raises:
            ObjectNotFoundError: it is not there.
            IntegrityError: it ends before.
        """

    @abstractmethod
    def size(self, name: str) -> int:
        """Return an object's size in bytes.

        Raises:
            ObjectNotFoundError: it is not there.
        """

    @abstractmethod
    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        """List the objects whose name begins with *prefix* and has no further slash, sorted by name.

        Temporary names are left out. A directory that is not there has no objects.

        Raises:
            RepositoryNotFoundError: the store itself is not there.
        """

    @abstractmethod
    def list_directories(self) -> list[str]:
        """List the directories at the top, sorted.

        Raises:
            RepositoryNotFoundError: the store itself is not there.
        """

    @abstractmethod
    def make_root(self) -> None:
        """Make the place itself where it is missing."""

    @abstractmethod
    def spool(self, name: str) -> Spool:
        """Begin an object of any size.

        Nothing at *name* is looked at until it is published.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove an object, durably.

        Raises:
            ObjectNotFoundError: it is not there.
        """

    @abstractmethod
    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        """Remove what killed writers left below a directory (a key, ``locks``, or ``""`` for the top).

        Args:
            min_age_seconds: what is younger may belong to a writer that lives. 0 is right only for who holds
                the key's lock.

        Returns:
            The names that were removed.
        """

    def prepare(self, names: Iterable[str]) -> None:
        """Ask for objects that cannot be read at once, and return when they can be.

        What lies in an archive tier has to be thawed first. Here nothing has to be done. A store that overrides
        this has *needs_preparing*.

        Raises:
            ObjectNotFoundError: one of them is not there.
        """

    def content_size(self, name: str, stored_size: int) -> int:
        """Return how many bytes can be read of an object that has *stored_size* bytes as it lies.

        Raises:
            ObjectNotFoundError: it is not there; not every store looks.
        """
        return stored_size

    def stored_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Which parts of an object, as it lies, are read for *ranges* of its content; offsets and lengths.

        Raises:
            ObjectNotFoundError: it is not there; not every store looks.
        """
        return list(ranges)

    def read(self, name: str, *, max_size: int | None = None) -> bytes:
        """Return a whole object.

        Args:
            max_size: most bytes to take; None is no limit.

        Raises:
            ObjectNotFoundError: it is not there.
            LimitExceededError: it is larger than *max_size*.
        """
        size = self.size(name)
        if max_size is not None and size > max_size:
            raise LimitExceededError(f"{name} in {self.url}: {size} bytes, at most {max_size} expected")
        return self.read_range(name, 0, size)

    def exists(self, name: str) -> bool:
        """Whether an object is there; a store that cannot tell raises."""
        try:
            self.size(name)
        except ObjectNotFoundError:
            return False
        return True

    def create(self, name: str, data: bytes) -> None:
        """Store a small object; when this returns, it is there, whole and durable.

        Raises:
            ObjectExistsError: the name is taken.
        """
        with self.spool(name) as spool:
            spool.file.write(data)
            spool.publish()


def split_name(name: str) -> list[str]:
    """Split an object's name into its parts.

    Raises:
        UnsafePathError: an absolute or empty name, ``..``, or a part that no file can have.
    """
    parts = name.split("/")
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > NAME_PART_MAX:
            raise UnsafePathError(f"{name!r} is not a name within a repository")
    return parts


def split_prefix(prefix: str) -> tuple[str, str]:
    """Split a listing's prefix into its directory, with the slash, and how the names in it begin.

    Raises:
        UnsafePathError: a directory that no object can be in.
    """
    directory, slash, beginning = prefix.rpartition("/")
    if slash:
        split_name(directory)
    return directory + slash, beginning


def check_range(offset: int, length: int) -> None:
    """Refuse a range that cannot be.

    Raises:
        ValueError: a negative offset or length.
    """
    if offset < 0 or length < 0:
        raise ValueError(f"no such range: {length} bytes from {offset}")


def short_read(name: str, url: str, *, offset: int, expected: int, actual: int) -> IntegrityError:
    """Make the error for an object that ends too early."""
    return IntegrityError(
        f"{name} in {url}: {actual} bytes from offset {offset}, expected {expected}",
        path=name,
        expected=expected,
        actual=actual,
    )


def translate_os_error(error: OSError, action: str, name: str, url: str) -> RepositoryError:
    """Make this package's error of the system's.

    Args:
        action: what was tried, as in "cannot <action> <name> in <url>".
    """
    what = f"{name} in {url}" if name else url
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(f"cannot {action} {what}: it is not there")
    if isinstance(error, FileExistsError):
        return ObjectExistsError(f"cannot {action} {what}: the name is taken")
    if error.errno in _NO_SPACE:
        return RepositoryError(f"cannot {action} {what}: no space left there ({error.strerror})")
    if isinstance(error, PermissionError) and error.errno is None:
        # A network library's; the system's own say as much by themselves.
        return RepositoryError(f"cannot {action} {what}: access is denied there ({_one_line(error)})")
    reason = error.strerror or _one_line(error)
    return RepositoryError(f"cannot {action} {what}: {reason}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def translated(action: str, name: str, url: str) -> Iterator[None]:
    """Let only this package's errors out of a block of system calls."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, action, name, url) from error


class TranslatedFile(io.FileIO):
    """An unbuffered local file whose errors are RepositoryErrors that name the object."""

    def __init__(self, descriptor: int, mode: str, *, name: str, url: str) -> None:
        super().__init__(descriptor, mode)
        self._object_name = name
        self._url = url

    def readinto(self, buffer: Any, /) -> int | None:
        """As io.FileIO's."""
        with translated("read", self._object_name, self._url):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        """As io.FileIO's, which does not go through readinto."""
        with translated("read", self._object_name, self._url):
            return super().readall()

    def write(self, data: Any, /) -> int:
        """As io.FileIO's."""
        with translated("write", self._object_name, self._url):
            return super().write(data)

    def truncate(self, size: int | None = None, /) -> int:
        """As io.FileIO's."""
        with translated("truncate", self._object_name, self._url):
            return super().truncate(size)
