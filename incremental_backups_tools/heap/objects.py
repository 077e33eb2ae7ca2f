"""The heap of objects: whole contents, each stored once under the BLAKE3 of its bytes.

An object is a row of zstd frames of at most 4 MiB of content, each with its size and checksum; ``zstd -d`` reads
it, and where compression does not pay a frame holds the bytes as they are. Its name is
``<prefix>/<first two digits>/<the other 62>.zst``, the digits being those of the BLAKE3 of the plain content: so
a content is there once, and every reader can tell whether it is the right one.

Nothing is ever overwritten, and an object that is there is believed only where its size fits: what a full disk
cut under a final name is found, and replaced by the next who has that content.
"""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

import zstandard
from blake3 import blake3

from incremental_backups_tools.exceptions import IntegrityError, ObjectExistsError, ObjectNotFoundError
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.store import Spool, Store

OBJECTS_PREFIX: Final = "objects"
DIGEST_LEN: Final = 32
FRAME_LEN: Final = 4 << 20

_LEVEL: Final = 3
_MAX_WINDOW_LEN: Final = 8 << 20
_READ_LEN: Final = 1 << 18
_FRAME_HEADER_MAX_LEN: Final = 18
_STORED_FRAME_MAX_LEN: Final = FRAME_LEN + (64 << 10)  # what does not compress takes three bytes a block more
_DIRECTORIES: Final = tuple(f"{number:02x}" for number in range(256))
_NAME: Final = re.compile(r"[0-9a-f]{62}\.zst")
_UNNAMED: Final = "unnamed"
_HEALING_KEY: Final = "heal"
_HEALING_WAIT_SECONDS: Final = 300

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What :meth:`ObjectHeap.put` stored, or found.

    Attributes:
        digest: BLAKE3 of the plain content.
        size: of the plain content, in bytes.
        stored_size: of the object as it lies in the store, in bytes.
        is_new: whether it was not there before.
    """

    digest: bytes
    size: int
    stored_size: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a listing: the BLAKE3 of its plain content, and its size in the store in bytes."""

    digest: bytes
    stored_size: int


class ObjectHeap:
    """Objects by content in a store. Safe to use from several threads; processes may share one store.

    Every method raises RepositoryError for whatever the store does.
    """

    def __init__(self, store: Store, prefix: str = OBJECTS_PREFIX) -> None:
        """Nothing is looked at before it is used.

        Args:
            prefix: the directory in the store.
        """
        self._store = store
        self._prefix = prefix
        self._threads = threading.local()

    def put(self, content: BinaryIO | Iterable[bytes]) -> StoredObject:
        """Store a content of any size, in bounded memory; when this returns, it is there, whole and durable.

        An object that is there already is left alone if its size fits. If not, it is read; one that is damaged
        is replaced.

        Args:
            content: a binary file, read to its end, or pieces of any length. What it raises ends the storing,
                and nothing of it stays.
        """
        frames = _iter_frames(_iter_chunks(content))
        first = next(frames, b"")
        second = next(frames, None)
        hasher = blake3(first)
        if second is None:
            stored = self._compress(first)
            return self._put_small(hasher.digest(), len(first), stored)
        with self._store.spool(f"{self._prefix}/{_UNNAMED}") as spool:
            size, stored_size = len(first), spool.file.write(self._compress(first))
            frame: bytes | None = second
            while frame is not None:
                hasher.update(frame)
                size += len(frame)
                stored_size += spool.file.write(self._compress(frame))
                frame = next(frames, None)
            digest = hasher.digest()
            if self._is_stored(digest, stored_size):
                return StoredObject(digest, size, stored_size, is_new=False)
            spool.rename(self.name_of(digest))
            is_new = self._publish(spool, digest, stored_size)
        return StoredObject(digest, size, stored_size, is_new)

    def open(self, digest: bytes, *, size: int | None = None) -> BinaryIO:
        """Open an object's plain content for streaming, checked while it is read.

        An ``IntegrityError`` comes while it is read, at the latest in place of its last 4 MiB: who has read all
        bytes has the right ones.

        Args:
            size: of the plain content in bytes, where it is known: of an object that holds more, no more is read.

        Raises:
            ObjectNotFoundError: it is not there.
        """
        file = self._store.open(self.name_of(digest))
        raw = _ObjectReader(file, digest, size, what=f"object {digest.hex()} in {self._store.url}")
        return cast(BinaryIO, io.BufferedReader(raw, _READ_LEN))

    def verify(self, digest: bytes) -> int:
        """Read a whole object and check it; return the size of its plain content in bytes.

        Raises:
            ObjectNotFoundError: it is not there.
            IntegrityError: it does not hold the content of its name.
        """
        size = 0
        with self.open(digest) as reader:
            while chunk := reader.read(_READ_LEN):
                size += len(chunk)
        return size

    def has(self, digest: bytes, *, stored_size: int | None = None) -> bool:
        """Whether an object is there, of that size in the store where one is given; a store that cannot tell raises."""
        try:
            return self.stored_size(digest) == stored_size or stored_size is None
        except ObjectNotFoundError:
            return False

    def stored_size(self, digest: bytes) -> int:
        """An object's size in the store, in bytes.

        Raises:
            ObjectNotFoundError: it is not there.
        """
        return self._store.size(self.name_of(digest))

    def iter_objects(self) -> Iterator[ListedObject]:
        """All objects, sorted by digest, in bounded memory: one directory is listed at a time."""
        for directory in _DIRECTORIES:
            for info in self._store.list_objects(f"{self._prefix}/{directory}/"):
                base = info.name.rpartition("/")[2]
                if _NAME.fullmatch(base):
                    yield ListedObject(bytes.fromhex(directory + base.removesuffix(".zst")), info.size)

    def delete(self, digest: bytes) -> None:
        """Remove an object, durably. Whether anything needs it is the caller's to know.

        Raises:
            ObjectNotFoundError: it is not there.
        """
        self._store.delete(self.name_of(digest))

    def name_of(self, digest: bytes) -> str:
        """The name in the store of the object with that digest, whether it is there or not."""
        if len(digest) != DIGEST_LEN:
            raise ValueError(f"a digest has {DIGEST_LEN} bytes, not {len(digest)}")
        digits = digest.hex()
        return f"{self._prefix}/{digits[:2]}/{digits[2:]}.zst"

    def clean_temporaries(self, *, min_age_seconds: float) -> list[str]:
        """Remove what killed writers left, and return the names.

        Args:
            min_age_seconds: what is younger may belong to a writer that lives.
        """
        directories = (self._prefix, *(f"{self._prefix}/{part}" for part in _DIRECTORIES))
        removed = []
        for directory in directories:
            removed += self._store.clean_temporaries(directory, min_age_seconds=min_age_seconds)
        return removed

    def _put_small(self, digest: bytes, size: int, stored: bytes) -> StoredObject:
        is_new = False
        if not self._is_stored(digest, len(stored)):
            with self._store.spool(self.name_of(digest)) as spool:
                spool.file.write(stored)
                is_new = self._publish(spool, digest, len(stored))
        return StoredObject(digest, size, len(stored), is_new)

    def _publish(self, spool: Spool, digest: bytes, stored_size: int) -> bool:
        """Give an object its name; return whether that was this call's doing."""
        try:
            spool.publish()
        except ObjectExistsError:
            if self._is_stored(digest, stored_size):
                return False  # another thread or process was faster
            spool.publish()
        return True

    def _is_stored(self, digest: bytes, stored_size: int) -> bool:
        """Whether the object is there and whole. One that is there and damaged is taken away."""
        try:
            if self.stored_size(digest) == stored_size:
                return True
            return self._is_whole(digest) or not self._remove_damaged(digest)
        except ObjectNotFoundError:
            return False

    def _is_whole(self, digest: bytes) -> bool:
        # Other versions of zstd make other sizes, so a size that differs is a reason to look.
        try:
            self.verify(digest)
        except IntegrityError:
            return False
        return True

    def _remove_damaged(self, digest: bytes) -> bool:
        """Take a damaged object away; False where another process has replaced it meanwhile.

        Under a lock: of two who find the damage, the second must not take away what the first has put there.
        """
        operation = f"replacing the damaged object {digest.hex()}"
        with KeyLock.acquire(
            self._store, _HEALING_KEY, operation=operation, wait_seconds=_HEALING_WAIT_SECONDS
        ) as lock:
            if self._is_whole(digest):
                return False
            lock.confirm()
            _LOGGER.warning("object %s in %s is damaged and is replaced", digest.hex(), self._store.url)
            with suppress(ObjectNotFoundError):
                self.delete(digest)
        return True

    def _compress(self, frame: bytes) -> bytes:
        compressor = getattr(self._threads, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
            self._threads.compressor = compressor
        return bytes(compressor.compress(frame))


class _ObjectReader(io.RawIOBase):
    """Reads an object frame by frame; the last frame is shown when the digest of all has been found right."""

    def __init__(self, file: BinaryIO, digest: bytes, size: int | None, *, what: str) -> None:
        super().__init__()
        self._file = file
        self._digest = digest
        self._size = size
        self._what = what
        self._hasher = blake3()
        self._count = 0
        self._stored = bytearray()
        self._frame = memoryview(b"")
        self._is_checked = False
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_LEN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._frame and not self._is_checked:
            self._next_frame()
        chunk = self._frame[: len(buffer)]
        buffer[: len(chunk)] = chunk
        self._frame = self._frame[len(chunk) :]
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _next_frame(self) -> None:
        frame = self._read_frame()
        self._hasher.update(frame)
        self._count += len(frame)
        if self._size is not None and self._count > self._size:
            raise self._damage(f"it holds more than {self._size} bytes")
        if not self._fill(1):
            self._is_checked = True
            actual = self._hasher.digest()
            if actual != self._digest:
                raise self._damage(f"its {self._count} bytes have BLAKE3 {actual.hex()}", actual.hex())
        self._frame = memoryview(frame)

    def _read_frame(self) -> bytes:
        """Read one whole frame. Its length is found block by block (RFC 8878, 3.1.1), since zstd's own streaming
        reader takes a frame without its last bytes for a whole one."""
        self._fill(_FRAME_HEADER_MAX_LEN)
        try:
            declared = zstandard.frame_content_size(bytes(self._stored))
            length = zstandard.frame_header_size(bytes(self._stored))
            has_checksum = zstandard.get_frame_parameters(bytes(self._stored)).has_checksum
            if not 0 <= declared <= FRAME_LEN:
                raise self._damage(f"it has a frame of {declared} bytes")
            is_last = False
            while not is_last:
                self._require(length + 3)
                header = int.from_bytes(self._stored[length : length + 3], "little")
                is_last = bool(header & 1)
                is_run = (header >> 1) & 3 == 1
                length += 3 + (1 if is_run else header >> 3)
            length += 4 if has_checksum else 0
            self._require(length)
            frame = bytes(self._decompressor.decompress(bytes(self._stored[:length])))
        except zstandard.ZstdError as error:
            raise self._damage(str(error)) from None
        del self._stored[:length]
        return frame

    def _fill(self, length: int) -> bool:
        """Have *length* bytes of the object at hand; False where it ends before."""
        while len(self._stored) < length:
            chunk = self._file.read(max(_READ_LEN, length - len(self._stored)))
            if not chunk:
                return False
            self._stored += chunk
        return True

    def _require(self, length: int) -> None:
        if length > _STORED_FRAME_MAX_LEN:
            raise self._damage(f"it has a frame of more than {_STORED_FRAME_MAX_LEN} bytes")
        if not self._fill(length):
            raise self._damage("it is cut")

    def _damage(self, reason: str, actual: str | None = None) -> IntegrityError:
        return IntegrityError(
            f"{self._what} is damaged: {reason}", path=self._what, expected=self._digest.hex(), actual=actual
        )


def _iter_chunks(content: BinaryIO | Iterable[bytes]) -> Iterator[bytes]:
    if not hasattr(content, "read"):
        yield from content
        return
    while chunk := content.read(FRAME_LEN):
        yield chunk


def _iter_frames(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of any length as pieces of FRAME_LEN, so that one content always makes one object."""
    pending = bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= FRAME_LEN:
            yield bytes(pending[:FRAME_LEN])
            del pending[:FRAME_LEN]
    if pending:
        yield bytes(pending)
