"""Reading a live file once, for whatever is to be made of it: a digest, a delta, the content, a whole copy.

Each class takes the pieces of one read and can forget them, see ``tree/reading.py``.
"""

from __future__ import annotations

import tempfile
from typing import BinaryIO, Final, Protocol, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.archive.members import file_member, sparse_member
from incremental_backups_tools.archive.sparse_map import encode_sparse_map
from incremental_backups_tools.chain.policy import MAX_EXACT_LEN, Signing, is_signed
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.delta import DeltaAndSignatureBuilder, Signature, SignatureBuilder
from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.entry import Location, printable
from incremental_backups_tools.tree.metadata import capture
from incremental_backups_tools.tree.reading import OpenedFile
from incremental_backups_tools.tree.sparse import data_len, iter_zeros
from incremental_backups_tools.tree.walk import Found

# A file up to this size is held in memory while it is read, so that it needs no rollback.
SMALL_FILE_LEN: Final = 1 << 20
_DELTA_SPOOL_LEN: Final = 4 << 20


class Storer(Protocol):
    """On whose behalf a file is read.

    Attributes:
        bytes_read: of all files.
        signing: how the file is signed.
    """

    bytes_read: int
    signing: Signing


class Reading:
    """Part of every consumer: the file as it is read, its digest, how much was read."""

    def __init__(self, storer: Storer, found: Found, opened: OpenedFile) -> None:
        try:
            entry = capture(found, opened.stat, fd=opened.fd)
        except (OSError, ValueError) as error:
            raise SourceError(f"{printable(found.rel_path)}: cannot read its metadata: {error}") from error
        self.entry = msgspec.structs.replace(entry, sparse=opened.extents, change_key=opened.change_key)
        self.hasher = blake3()
        self._storer = storer

    @property
    def data_len(self) -> int:
        """How much of the content is not in holes."""
        return self.entry.size if self.entry.sparse is None else data_len(self.entry.sparse)

    def update(self, chunk: bytes) -> None:
        """Data of the file."""
        self._storer.bytes_read += len(chunk)
        self.take(chunk)
        self.store(chunk)

    def hole(self, length: int) -> None:
        """A hole, which is part of the content, but needs neither reading nor storing."""
        for zeros in iter_zeros(length):
            self.take(zeros)

    def take(self, chunk: bytes) -> None:
        """Whatever is made of the whole content."""
        self.hasher.update(chunk)

    def store(self, chunk: bytes) -> None:
        """Keep data."""


class HashOnly(Reading):
    """Reads to compare: most likely nothing changed."""

    def abandon(self) -> None:
        """Nothing was stored."""


class DeltaReading(Reading):
    """Makes a delta against the old signature, and the new signature, in one pass."""

    def __init__(self, storer: Storer, found: Found, opened: OpenedFile, old: Signature) -> None:
        super().__init__(storer, found, opened)
        self.out = cast(BinaryIO, tempfile.SpooledTemporaryFile(_DELTA_SPOOL_LEN, prefix="ibt-delta-"))
        block_len = storer.signing.block_len(opened.stat.st_size, before=old.block_len)
        self._builder = DeltaAndSignatureBuilder(old, out=self.out, block_len=block_len)

    def take(self, chunk: bytes) -> None:
        super().take(chunk)
        self._builder.update(chunk)

    def abandon(self) -> None:
        self.out.close()

    def finish(self) -> tuple[int, bytes]:
        """The length of the delta and the new signature."""
        result = self._builder.finish()
        return result.stats.delta_len, result.signature


class InMemory(Reading):
    """Holds the whole content, holes as zeros.

    Attributes:
        is_too_long: the file has grown beyond what may be held; nothing is.
    """

    def __init__(self, storer: Storer, found: Found, opened: OpenedFile) -> None:
        super().__init__(storer, found, opened)
        self.is_too_long = opened.stat.st_size > MAX_EXACT_LEN
        self._chunks: list[bytes] = []

    def take(self, chunk: bytes) -> None:
        super().take(chunk)
        if not self.is_too_long:
            self._chunks.append(chunk)

    def abandon(self) -> None:
        self._chunks = []

    def content(self) -> bytes:
        """What was read."""
        return b"".join(self._chunks)


class WholeReading(Reading):
    """Puts the whole content into a volume: at once from memory, or as it comes when it is large.

    A file with holes is a sparse member: its map, then its data alone.
    """

    def __init__(self, storer: Storer, found: Found, opened: OpenedFile, volumes: VolumeSet) -> None:
        super().__init__(storer, found, opened)
        size = opened.stat.st_size
        self._volumes = volumes
        self._map = b"" if opened.extents is None else encode_sparse_map(opened.extents)
        if opened.extents is None:
            self._member = file_member(self.entry)
        else:
            self._member = sparse_member(self.entry, len(self._map) + self.data_len)
        block_len = storer.signing.block_len(size)
        self._signature = SignatureBuilder(block_len=block_len) if is_signed(size) else None
        self._chunks: list[bytes] | None = None
        self._location: Location | None = None
        if self._member.size <= SMALL_FILE_LEN:
            self._chunks = [self._map]
        else:
            self._location = volumes.begin(self._member)
            volumes.write(self._map)

    def take(self, chunk: bytes) -> None:
        super().take(chunk)
        if self._signature is not None:
            self._signature.update(chunk)

    def store(self, chunk: bytes) -> None:
        if self._chunks is None:
            self._volumes.write(chunk)
        else:
            self._chunks.append(chunk)

    @property
    def is_held(self) -> bool:
        """Whether nothing is in a volume yet."""
        return self._chunks is not None

    def abandon(self) -> None:
        if self._chunks is None:
            self._volumes.rollback()
        self._chunks = []

    def finish(self) -> tuple[Location, bytes | None]:
        """Where the content lies, and its signature."""
        location = self._location
        if location is None:
            location = self._volumes.add(self._member, b"".join(self._chunks or ()))
        else:
            self._volumes.end()
        if self.entry.sparse is not None:
            offset = location.offset + len(self._map)
            location = Location(location.file, offset, self.data_len, self.entry.sparse)
        return location, self._signature.finish() if self._signature is not None else None
