"""The resolved index of the newest backup, kept on this machine so that the next one need not rebuild it.

It is a cache and nothing else: it holds for exactly the repository and the set of states it was made from, and
is rebuilt from them whenever it is missing, damaged, or of others. What it has and the states do not are the
``ctime_ns``, ``inode`` and ``dev`` of each file, which tell the next run that a file need not be read; rebuilt
from states it lacks them, and every file is read and hashed once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO, Final, NamedTuple, cast

import msgspec

from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import StateFormatError
from incremental_backups_tools.tree.entry import (
    FILE,
    encode_line,
    entry_of_line,
    line_of_entry,
    parse_line,
)
from incremental_backups_tools.tree.records import RecordReader, RecordWriter

CACHE_FORMAT: Final = "ibt-cached-index"
CACHE_VERSION: Final = 1
INDEX_NAME: Final = "index"


class IndexIdentity(msgspec.Struct, frozen=True):
    """Which index a cached one is: of which repository and key, and made from which states.

    Attributes:
        states: id and generation of each state of the chain, full first.
        index_digest: of the newest.
    """

    repository_id: str
    key: str
    states: list[tuple[str, int]]
    index_digest: str


class Place(NamedTuple):
    """Where a line lies: where its frame begins in the file, and where the line does in the frame's content."""

    frame: int
    offset: int


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    token: str = ""  # random: tells this file from all others, to what refers to places in it


@dataclass(frozen=True, slots=True)
class CachedEntry:
    """A resolved entry as the cache holds it, and its encoded line, to be copied where nothing changed."""

    resolved: ResolvedEntry
    raw: bytes

    @property
    def path(self) -> bytes:
        """The entry's path."""
        return self.resolved.path


class IndexCacheWriter:
    """Writes a cached index in sort order. It counts only once :meth:`close` was called.

    Which index it is stands in the last record: the digest is known when all entries are.

    Args:
        file: empty, binary.
        note: told of the content of each regular file: size, BLAKE3, and the place of its line.

    Attributes:
        token: tells this file from all others.
    """

    def __init__(self, file: BinaryIO, *, note: Callable[[int, bytes, Place], None] | None = None) -> None:
        self.token = secrets.token_hex(16)
        header = _Header(CACHE_FORMAT, CACHE_VERSION, self.token)
        self._sink = _Counted(file)
        self._records = RecordWriter(cast(BinaryIO, self._sink), msgspec.json.encode(header), level=1)
        self._note = note
        self._place = Place(self._sink.position, 0)
        self._open_lines: dict[int, bytes] = {}

    def write(self, resolved: ResolvedEntry) -> None:
        """Append an entry."""
        self._append(resolved, encode_resolved(resolved))

    def write_cached(self, cached: CachedEntry) -> None:
        """Append an entry that is encoded already."""
        self._append(cached.resolved, cached.raw)

    def is_open(self, place: Place) -> bool:
        """Whether *place* lies in the frame that is not written yet."""
        return place.frame == self._place.frame

    def open_line(self, place: Place) -> bytes | None:
        """The line with noted content at *place* in the frame that is not written yet."""
        return self._open_lines.get(place.offset)

    def close(self, identity: IndexIdentity) -> None:
        """Make it whole."""
        self._records.write(msgspec.json.encode(identity))
        self._records.close()

    def _append(self, resolved: ResolvedEntry, raw: bytes) -> None:
        place = self._place
        self._records.write(raw)
        if self._sink.position != place.frame:
            self._place = Place(self._sink.position, 0)
            self._open_lines.clear()
        else:
            self._place = Place(place.frame, place.offset + len(raw) + 1)
        entry = resolved.entry
        if self._note is None or entry.type != FILE or entry.link_of is not None or entry.digest is None:
            return
        self._note(entry.size, entry.digest, place)
        if self.is_open(place):
            self._open_lines[place.offset] = raw


class _Counted:
    """Counts what is written: a record writer writes a frame at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def write(self, data: bytes) -> int:
        self.position += len(data)
        return self._file.write(data)


def encode_resolved(resolved: ResolvedEntry) -> bytes:
    """The line of a resolved entry."""
    line = line_of_entry(resolved.entry)
    line.data = line.sig = line.from_ = line.from_b64 = None
    line.locations = list(resolved.data)
    line.sig_locations = list(resolved.sigs)
    line.content_digest = resolved.content_digest.hex() if resolved.content_digest is not None else None
    line.sig_digest = resolved.sig_digest
    return encode_line(line)


def open_cached_index(file: BinaryIO, expected: IndexIdentity) -> Iterator[CachedEntry] | None:
    """The entries of a cached index; None where it is damaged or not the *expected* one.

    The file is read twice: once to prove it whole and to know it, before anything relies on it.
    """
    last = b""
    count = 0
    file.seek(0)
    try:
        records = RecordReader(file, what="cached index")
        header = msgspec.json.decode(records.header, type=_Header)
        if (header.format, header.version) != (CACHE_FORMAT, CACHE_VERSION):
            return None
        for raw in records:
            last, count = raw, count + 1
        if msgspec.json.decode(last, type=IndexIdentity) != expected:
            return None
    except (StateFormatError, msgspec.DecodeError):
        return None
    return _entries(file, count - 1)


def cached_index_token(file: BinaryIO) -> str:
    """The token of a cached index that :func:`open_cached_index` has opened."""
    file.seek(0)
    return msgspec.json.decode(RecordReader(file, what="cached index").header, type=_Header).token


def _entries(file: BinaryIO, count: int) -> Iterator[CachedEntry]:
    file.seek(0)
    for raw in islice(RecordReader(file, what="cached index"), count):
        yield CachedEntry(parse_resolved(raw), raw)


def parse_resolved(raw: bytes) -> ResolvedEntry:
    """The resolved entry that a line of a cached index stands for.

    Raises:
        StateFormatError, UnsafePathError: it stands for none.
    """
    line = parse_line(raw)
    entry = entry_of_line(line)
    try:
        digest = bytes.fromhex(line.content_digest) if line.content_digest is not None else None
    except ValueError as error:
        raise StateFormatError(f"cached index: {error}") from None
    return ResolvedEntry(
        entry, tuple(line.locations or ()), tuple(line.sig_locations or ()), line.sig_digest, digest
    )
