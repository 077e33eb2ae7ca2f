"""Plaintext copies, in the local cache, of encrypted objects that the next backup reads.

A machine that backs up with public keys alone cannot read what it stored. What its next incremental needs,
states and signatures, it keeps here when it stores it. A copy is its content, followed by a seal that says which
object of which repository it is of, and whose digest covers everything before it: a copy that was cut, altered,
or lies under another name or in another repository's place is none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Final, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import IntegrityError
from incremental_backups_tools.repository.cache import Cache

_SEAL_LEN_MAX: Final = 4096
_LENGTH_LEN: Final = 4
_DIGEST_LEN: Final = 32
_CHUNK_LEN: Final = 1 << 20
_PREFIX: Final = "copy-"


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy is of.

    Attributes:
        name: of the object.
        stored_size, stored_digest: of the object as it lies: bytes, and BLAKE3.
    """

    repository_id: str
    name: str
    stored_size: int
    stored_digest: str


class Copy:
    """A copy that was found whole. Safe to share between threads; it holds nothing open.

    Attributes:
        length: bytes of the content.
    """

    def __init__(
        self, open_file: Callable[[], BinaryIO | None], mark: _Mark, length: int, seal: Seal
    ) -> None:
        """Take what opens the file, and what it looked like when it was proved."""
        self._open_file = open_file
        self._mark = mark
        self.length = length
        self.seal = seal

    def read_range(self, offset: int, length: int) -> bytes:
        """Bytes of the content, fewer at its end.

        Raises:
            IntegrityError: the file is not the one that was proved any more.
        """
        with self._reopen() as file:
            return os.pread(file.fileno(), max(0, min(length, self.length - offset)), offset)

    def open(self) -> BinaryIO:
        """The content as a file. Raises as :meth:`read_range`."""
        return cast(BinaryIO, io.BufferedReader(_CopyFile(self._reopen(), self.length), _CHUNK_LEN))

    def _reopen(self) -> BinaryIO:
        file = self._open_file()
        if file is not None:
            if _mark_of(file) == self._mark:
                return file
            file.close()
        raise IntegrityError(
            f"the local copy of {self.seal.name} was changed while it was in use",
            path=self.seal.name,
            expected=self.seal.stored_digest,
            actual=None,
        )


# Device, inode, size, mtime and ctime.
_Mark = tuple[int, int, int, int, int]


def _mark_of(file: BinaryIO) -> _Mark:
    info = os.fstat(file.fileno())
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


class _CopyFile(io.RawIOBase):
    def __init__(self, file: BinaryIO, length: int) -> None:
        super().__init__()
        self._file = file
        self._length = length
        self._position = 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        length = max(0, min(len(buffer), self._length - self._position))
        data = os.pread(self._file.fileno(), length, self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class LocalCopies:
    """The copies of one repository.

    Args:
        cache_of: the cache of a key.
    """

    def __init__(self, repository_id: str, cache_of: Callable[[str], Cache]) -> None:
        self._repository_id = repository_id
        self._cache_of = cache_of

    def find(self, name: str) -> Copy | None:
        """The copy of an object, read once to prove it whole; None where there is none that is."""
        cache, base = self._place(name)
        open_file = partial(cache.open, base)
        file = open_file()
        if file is None:
            return None
        with file:
            proved = _proved(file)
            mark = _mark_of(file)
        if proved is None:
            return None
        length, seal = proved
        if (seal.repository_id, seal.name) != (self._repository_id, name):
            return None
        return Copy(open_file, mark, length, seal)

    @contextmanager
    def keep(self, name: str) -> Iterator[_CopyWriter]:
        """Write the copy of an object. It counts if it is sealed within the block."""
        cache, base = self._place(name)
        with cache.replace(base) as file:
            writer = _CopyWriter(file, self._repository_id, name)
            yield writer
        if not writer.is_sealed:
            cache.remove(base)

    def remove(self, name: str) -> None:
        """Remove the copy of an object if there is one."""
        cache, base = self._place(name)
        cache.remove(base)

    def retain(self, key: str, names: set[str]) -> None:
        """Remove the copies of all objects of a key but *names*."""
        cache = self._cache_of(key)
        kept = {self._place(name)[1] for name in names}
        for base in cache.names():
            if base.startswith(_PREFIX) and base not in kept:
                cache.remove(base)

    def _place(self, name: str) -> tuple[Cache, str]:
        key, _, file_name = name.partition("/")
        return self._cache_of(key), _PREFIX + file_name


class _CopyWriter:
    """A copy in the making."""

    def __init__(self, file: BinaryIO, repository_id: str, name: str) -> None:
        self._file = file
        self._repository_id = repository_id
        self._name = name
        self._hasher = blake3()
        self.is_sealed = False

    def write(self, data: bytes) -> None:
        """More of the content."""
        self._hasher.update(data)
        self._file.write(data)

    def seal(self, stored_size: int, stored_digest: str) -> None:
        """The content is whole, and this is what the object is as it lies."""
        seal = msgspec.json.encode(
            Seal(
                repository_id=self._repository_id,
                name=self._name,
                stored_size=stored_size,
                stored_digest=stored_digest,
            )
        )
        self.write(seal + len(seal).to_bytes(_LENGTH_LEN, "big"))
        self._file.write(self._hasher.digest())
        self.is_sealed = True


def _proved(file: BinaryIO) -> tuple[int, Seal] | None:
    """The length of the content in *file*, and its seal, if the digest is right."""
    try:
        size = os.fstat(file.fileno()).st_size
        covered = size - _DIGEST_LEN
        hasher = blake3()
        position = 0
        while position < covered:
            chunk = os.pread(file.fileno(), min(_CHUNK_LEN, covered - position), position)
            if not chunk:
                return None
            hasher.update(chunk)
            position += len(chunk)
        tail = os.pread(file.fileno(), _LENGTH_LEN + _DIGEST_LEN, max(0, covered - _LENGTH_LEN))
        if covered < _LENGTH_LEN or tail[_LENGTH_LEN:] != hasher.digest():
            return None
        seal_len = int.from_bytes(tail[:_LENGTH_LEN], "big")
        length = covered - _LENGTH_LEN - seal_len
        if length < 0 or seal_len > _SEAL_LEN_MAX:
            return None
        return length, msgspec.json.decode(os.pread(file.fileno(), seal_len, length), type=Seal)
    except (OSError, msgspec.DecodeError):
        return None  # the cache may be anything; what is no copy is not there
