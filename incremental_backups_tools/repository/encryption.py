"""A store whose ``.age`` objects are plain to whoever reads and writes through it, and encrypted where they lie.

Writing needs recipients alone. Reading needs an identity; without one, the local copies of what this machine wrote
itself serve. Who has an identity reads what is stored, copies or not.
An object in the making is an anonymous temporary file of this machine; what reaches the store underneath is
encrypted before it does. Reading fetches and decrypts only the chunks that a range touches.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO, Final, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import (
    DecryptionError,
    FormatError,
    IntegrityError,
    ObjectExistsError,
    RepositoryError,
)
from incremental_backups_tools.repository import age
from incremental_backups_tools.repository.copies import Copy, LocalCopies
from incremental_backups_tools.repository.identities import load_recipient
from incremental_backups_tools.repository.layout import Role, parse_object_name
from incremental_backups_tools.repository.store import (
    ObjectInfo,
    Spool,
    Store,
    StoreFeatures,
    check_range,
    short_read,
    translated,
)

SUFFIX: Final = ".age"

# Enough for the header of a few recipients; a longer one takes another request.
_START_LEN: Final = 4 << 10
_READ_LEN: Final = 1 << 20
_COPY_LEN: Final = 1 << 20
_OPENED_MAX: Final = 1024
# What the next incremental reads.
_COPIED_ROLES: Final = frozenset({Role.STATE, Role.SIGVAULT})


class _Opened(msgspec.Struct, frozen=True):
    """An object whose key is known.

    Attributes:
        stored_size: of the whole, as it lies.
        start: where its first chunk begins.
        length: of its content.
    """

    stored_size: int
    start: int
    length: int
    key: bytes


class AgeStore(Store):
    """Encrypts and decrypts on the way to another store; see :class:`Store` for what the methods promise.

    Of ``.age`` objects, sizes, offsets and bytes are those of their content; listings tell sizes as they lie.

    Raises:
        DecryptionError: from every method that reads content: there is no identity that opens it, and no copy.
        IntegrityError, FormatError: from these too: it is damaged or altered.

    Args:
        base: where the objects lie.
        recipients: who can read what is written; none, and nothing can be.
        copies: of what this machine wrote; None keeps and reads none.
    """

    is_encrypted = True

    def __init__(
        self,
        base: Store,
        *,
        recipients: Sequence[str],
        identities: tuple[age.Identity, ...],
        copies: LocalCopies | None,
    ) -> None:
        self.base = base
        self.url = base.url
        self.copies = copies
        self.recipients = tuple(recipients)
        self.identities = identities
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._found: dict[str, Copy] = {}
        self._listed_sizes: dict[str, int] = {}
        self._mutex = threading.Lock()

    @property
    def features(self) -> StoreFeatures:
        return self.base.features

    @property
    def needs_preparing(self) -> bool:  # type: ignore[override]
        return self.base.needs_preparing

    @property
    def is_at_hand(self) -> bool:  # type: ignore[override]
        return self.base.is_at_hand and bool(self.identities)

    # --- what is the same ---------------------------------------------------------------------------------

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        objects = self.base.list_objects(prefix)
        with self._mutex:
            self._listed_sizes.update((info.name, info.size) for info in objects if _is_age(info.name))
        return objects

    def list_directories(self) -> list[str]:
        return self.base.list_directories()

    def make_root(self) -> None:
        self.base.make_root()

    def delete(self, name: str) -> None:
        self._forget(name)
        self.base.delete(name)

    def clean_temporaries(self, directory: str, *, min_age_seconds: float = 0) -> list[str]:
        return self.base.clean_temporaries(directory, min_age_seconds=min_age_seconds)

    def prepare(self, names: Iterable[str]) -> None:
        self.base.prepare(names)

    def exists(self, name: str) -> bool:
        return self.base.exists(name)

    # --- reading ------------------------------------------------------------------------------------------

    def open(self, name: str) -> BinaryIO:
        if not _is_age(name):
            return self.base.open(name)
        copy = self._read_copy(name)
        if copy is not None:
            return copy.open()
        opened = self._open_object(name)
        raw = _ContentFile(partial(self._read_chunks, name, opened), opened.length)
        return cast(BinaryIO, io.BufferedReader(raw, _READ_LEN))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if not _is_age(name):
            return self.base.read_range(name, offset, length)
        check_range(offset, length)
        copy = self._read_copy(name)
        if copy is not None:
            data = copy.read_range(offset, length)
        else:
            opened = self._open_object(name)
            # The length may come from a damaged index: it is compared before memory is taken for it.
            available = max(0, opened.length - offset)
            data = self._read_chunks(name, opened, offset, length) if length <= available else b""
            if length > available:
                raise short_read(name, self.url, offset=offset, expected=length, actual=available)
        if len(data) != length:
            raise short_read(name, self.url, offset=offset, expected=length, actual=len(data))
        return data

    def size(self, name: str) -> int:
        if not _is_age(name):
            return self.base.size(name)
        copy = self._read_copy(name)
        return copy.length if copy is not None else self._open_object(name).length

    def content_size(self, name: str, stored_size: int) -> int:
        if not _is_age(name):
            return self.base.content_size(name, stored_size)
        copy = self._read_copy(name)
        if copy is not None and copy.seal.stored_size == stored_size:
            return copy.length
        return self._open_object(name, stored_size).length

    def stored_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        if not _is_age(name):
            return self.base.stored_ranges(name, ranges)
        opened = self._open_object(name)
        stored = [(0, max(opened.start, min(opened.stored_size, _START_LEN)))]
        for offset, length in ranges:
            if length:
                first, last = offset // age.CHUNK_LEN, (offset + length - 1) // age.CHUNK_LEN
                begin, stop = self._sealed_range(opened, first, last + 1)
                stored.append((begin, stop - begin))
        return stored

    def check_identities(self, name: str) -> None:
        """Make sure that an identity opens an object, whether there is a copy or not.

        Raises:
            DecryptionError: none does.
        """
        self._open_object(name)

    def has_copy(self, name: str) -> bool:
        """Whether there is a local copy of an object, so that it can be read without an identity."""
        return self._copy_of(name) is not None

    def fetch_copy(self, name: str) -> None:
        """Make the local copy of an object if it is missing.

        Raises:
            DecryptionError: there is no identity that opens it.
        """
        if self.copies is None or self._copy_of(name) is not None:
            return
        hasher = blake3()
        size = 0
        with self.base.open(name) as stored:
            while piece := stored.read(_COPY_LEN):
                hasher.update(piece)
                size += len(piece)
        with self.open(name) as content, self.copies.keep(name) as copy:
            while piece := content.read(_COPY_LEN):
                copy.write(piece)
            copy.seal(size, hasher.hexdigest())

    def compare_with_copy(self, name: str) -> None:
        """Make sure that an object which is read from its copy lies in the store as it was stored.

        Raises:
            IntegrityError: it does not.
        """
        copy = self._read_copy(name)
        if copy is None:
            return
        hasher = blake3()
        with self.base.open(name) as stored:
            while piece := stored.read(_COPY_LEN):
                hasher.update(piece)
        if hasher.hexdigest() != copy.seal.stored_digest:
            raise IntegrityError(
                f"{name} in {self.url}: expected BLAKE3 {copy.seal.stored_digest}, got {hasher.hexdigest()}",
                path=name,
                expected=copy.seal.stored_digest,
                actual=hasher.hexdigest(),
            )

    def _read_copy(self, name: str) -> Copy | None:
        return self._copy_of(name) if not self.identities else None

    def _copy_of(self, name: str) -> Copy | None:
        if self.copies is None or not _is_copied(name):
            return None
        with self._mutex:
            copy = self._found.get(name)
            listed = self._listed_sizes.get(name)
        if copy is None:
            copy = self.copies.find(name)
            if copy is None:
                return None
            with self._mutex:
                self._found[name] = copy
        return copy if listed in (None, copy.seal.stored_size) else None

    def _open_object(self, name: str, stored_size: int | None = None) -> _Opened:
        with self._mutex:
            opened = self._opened.get(name)
        if opened is not None and stored_size in (None, opened.stored_size):
            return opened
        if not self.identities:
            raise DecryptionError(f"{name} in {self.url} is encrypted: name an identity (--identity)")
        if stored_size is None:
            stored_size = self.base.size(name)
        opened = self._read_key(name, stored_size)
        with self._mutex:
            self._opened[name] = opened
            if len(self._opened) > _OPENED_MAX:
                self._opened.popitem(last=False)
        return opened

    def _read_key(self, name: str, stored_size: int) -> _Opened:
        what = f"{name} in {self.url}"
        start = self.base.read_range(name, 0, min(stored_size, _START_LEN))
        header = age.parse_header(start, what=what)
        if header is None or len(start) < header.length + age.NONCE_LEN:
            start = self.base.read_range(name, 0, min(stored_size, age.HEADER_LEN_MAX + age.NONCE_LEN))
            header = age.parse_header(start, what=what)
        if header is None or len(start) < header.length + age.NONCE_LEN:
            raise FormatError(f"{what}: an age file that was cut")
        file_key = age.open_file_key(header, self.identities, what=what)
        begin = header.length + age.NONCE_LEN
        length = age.plain_length(stored_size - begin, what=what)
        return _Opened(stored_size, begin, length, age.payload_key(file_key, start[header.length : begin]))

    def _read_chunks(self, name: str, opened: _Opened, offset: int, length: int) -> bytes:
        """Content from *offset*, decrypted from the chunks that hold it."""
        length = max(0, min(length, opened.length - offset))
        if not length:
            # The one chunk of an empty file still proves that it is meant to be empty.
            return self._read_chunk_run(name, opened, 0, 1) if not opened.length else b""
        first, last = offset // age.CHUNK_LEN, (offset + length - 1) // age.CHUNK_LEN
        content = self._read_chunk_run(name, opened, first, last + 1)
        begin = offset - first * age.CHUNK_LEN
        return content[begin : begin + length]

    def _read_chunk_run(self, name: str, opened: _Opened, first: int, end: int) -> bytes:
        what = f"{name} in {self.url}"
        last_of_all = max(0, -(-opened.length // age.CHUNK_LEN) - 1)
        begin, stop = self._sealed_range(opened, first, end)
        sealed = memoryview(self.base.read_range(name, begin, stop - begin))
        return b"".join(
            age.open_chunk(
                opened.key,
                number,
                bytes(sealed[at : at + age.SEALED_CHUNK_LEN]),
                is_last=number == last_of_all,
                what=what,
            )
            for number, at in zip(range(first, end), range(0, len(sealed), age.SEALED_CHUNK_LEN), strict=True)
        )

    @staticmethod
    def _sealed_range(opened: _Opened, first: int, end: int) -> tuple[int, int]:
        """Where the chunks from *first* to before *end* lie: from, and to before."""
        begin = opened.start + first * age.SEALED_CHUNK_LEN
        return begin, min(opened.start + end * age.SEALED_CHUNK_LEN, opened.stored_size)

    def _forget(self, name: str) -> None:
        with self._mutex:
            self._opened.pop(name, None)
            self._found.pop(name, None)
            self._listed_sizes.pop(name, None)

    # --- writing ------------------------------------------------------------------------------------------

    def spool(self, name: str) -> Spool:
        if not _is_age(name):
            return self.base.spool(name)
        return AgeSpool(self, name)

    def publish(self, name: str, plain: BinaryIO) -> ObjectInfo:
        """Encrypt *plain* from its beginning into an object; a spool's last step."""
        if not self.recipients:
            raise RepositoryError(f"{self.url} is encrypted: name recipients (--recipient)")
        with self.base.spool(name) as spool:
            sink = _HashingSink(spool.file)
            _encrypt(plain, sink, self.recipients, what=f"{name} in {self.url}")
            self._forget(name)
            # Before the object: killed in between, a run leaves a copy of nothing, which nobody asks for. The
            # other way round this machine could not read its own newest backup.
            self._keep_copy(name, plain, sink)
            try:
                spool.publish()
            except ObjectExistsError:
                # The object is another one. After any other failure it may be there all the same, and is this one.
                if self.copies is not None and _is_copied(name):
                    self.copies.remove(name)
                raise
        return ObjectInfo(name, sink.size, sink.hasher.hexdigest())

    def _keep_copy(self, name: str, plain: BinaryIO, sink: _HashingSink) -> None:
        if self.copies is None or not _is_copied(name):
            return
        plain.seek(0)
        with self.copies.keep(name) as copy:
            while piece := plain.read(_COPY_LEN):
                copy.write(piece)
            copy.seal(sink.size, sink.hasher.hexdigest())


class AgeSpool(Spool):
    """An object in the making: an anonymous file of this machine, in plain, gone with the process."""

    def __init__(self, store: AgeStore, name: str) -> None:
        self.name = name
        self._store = store
        with translated("make a temporary file for", name, store.url):
            self.file = cast(BinaryIO, tempfile.TemporaryFile(prefix="ibt-plain-"))

    def publish(self) -> ObjectInfo:
        self.file.flush()
        self.file.seek(0)
        return self._store.publish(self.name, self.file)

    def close(self) -> None:
        with suppress(OSError):  # what could not be flushed is wanted no more
            self.file.close()


class _HashingSink:
    """What pyrage writes to. It makes its own error of every other, so the first is kept here."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hasher = blake3()
        self.size = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self.hasher.update(data)
            self.size += len(data)
            return self._file.write(data)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        """The spool does it when it is published."""


class _Source:
    """What pyrage reads from; see :class:`_HashingSink`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def read(self, length: int = -1) -> bytes:
        try:
            return self._file.read(length)
        except BaseException as error:
            self.error = error
            raise


def _encrypt(plain: BinaryIO, sink: _HashingSink, recipients: Sequence[str], *, what: str) -> None:
    import pyrage  # only who encrypts waits for it

    source = _Source(plain)
    try:
        pyrage.encrypt_io(source, sink, [load_recipient(text) for text in recipients])
    except pyrage.EncryptError as error:
        first = sink.error or source.error
        if first is not None:
            raise first from None
        raise RepositoryError(f"cannot encrypt {what}: {error}") from None


class _ContentFile(io.RawIOBase):
    """The content of an object as a file."""

    def __init__(self, read: Callable[[int, int], bytes], length: int) -> None:
        super().__init__()
        self._read = read
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        data = self._read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _is_age(name: str) -> bool:
    return name.endswith(SUFFIX) and "/" in name


def _is_copied(name: str) -> bool:
    key, _, file_name = name.partition("/")
    parsed = parse_object_name(key, file_name)
    return parsed is not None and parsed.role in _COPIED_ROLES
