"""Snapshots: the index of a tree at one moment, whose files name objects of a heap.

    snapshots/<id>.jsonl.zst    what was asked for
    undo/<id>.jsonl.zst         what a restore replaced: never "the latest"
    root.json                   the identity of this place, by which the heap knows it

A snapshot is a stream as ``tree/records.py`` writes it, and an index that ``DirIndex.from_file`` reads: sorted
entries, files with their digest and, as ``data``, the object's name and its size in the heap. It appears when it
is whole.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Final, cast

import msgspec

from incremental_backups_tools.exceptions import (
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    StateFormatError,
)
from incremental_backups_tools.repository.layout import encode_backup_id, is_backup_id, parse_backup_id
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.entry import FILE, ROOT, Entry, encode_line, line_of_entry, printable
from incremental_backups_tools.tree.index import INDEX_FORMAT, INDEX_VERSION, IndexData
from incremental_backups_tools.tree.records import RecordReader, RecordWriter, read_header

SNAPSHOTS: Final = "snapshots"
UNDO: Final = "undo"
ROOT_NAME: Final = "root.json"
_SUFFIX: Final = ".jsonl.zst"
_HEADER_READ_LEN: Final = 4096
_ROOT_MAX_LEN: Final = 4096
_COPY_LEN: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a snapshot: that of an index, and what a snapshot has besides.

    Attributes:
        root: where the tree is, a directory or URL.
        id: the time at which the snapshot was begun.
        has_metadata: the tree is a directory of a machine, and its entries have modes, owners and times.
        heap: the identity of the heap that holds the objects.
    """

    format: str = INDEX_FORMAT
    version: int = INDEX_VERSION
    root: str
    id: str
    has_metadata: bool
    heap: str


class Snapshot:
    """A tree at one moment: an iterable of sorted entries, kept in a temporary file.

    Attributes:
        header: what it is of.
        problems: what could not be read when it was made: ``(path, why)``.
        lease: keeps its objects from being collected until it is saved; None where that is done.
        release: gives the lease back. May be called again.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        what: str,
        problems: tuple[tuple[bytes, str], ...] = (),
    ) -> None:
        """Take a whole stream in a file, of which the descriptor is duplicated."""
        self._data = IndexData(os.dup(file.fileno()), what=what)
        self.what = what
        self.problems = problems
        self.lease: KeyLock | None = None
        self.release: Callable[[], object] = lambda: None
        file.seek(0)
        raw = RecordReader(file, what=what).header
        try:
            self.header = msgspec.json.decode(raw, type=SnapshotHeader)
        except msgspec.DecodeError as error:
            raise StateFormatError(f"{what}: an index, but no snapshot: {error}") from None
        if not is_backup_id(self.header.id):
            raise StateFormatError(f"{what}: {self.header.id!r} is not a time")

    @property
    def id(self) -> str:
        """Its time, ``20261120T072531.123456Z``."""
        return self.header.id

    @property
    def timestamp(self) -> datetime:
        """When it was begun, in UTC."""
        return timestamp_of(self.id)

    def __iter__(self) -> Iterator[Entry]:
        """The entries in sort order.

        Raises:
            StateFormatError: cut or altered.
            UnsafePathError: a path that leads out of the tree.
            IntegrityError: a file without a digest.
        """
        for item in self._data:
            entry = item.entry
            if entry.path == ROOT:
                continue
            if entry.type == FILE and (entry.digest is None or entry.link_of is not None):
                shown = printable(entry.path)
                raise IntegrityError(
                    f"{self.what}: {shown} has no digest", path=shown, expected="", actual=None
                )
            yield entry

    def copy_to(self, out: BinaryIO) -> None:
        """Write the stream as it is."""
        position = 0
        descriptor = self._data.fileno()
        while chunk := os.pread(descriptor, _COPY_LEN, position):
            out.write(chunk)
            position += len(chunk)

    def close(self) -> None:
        """Remove the temporary file; what was not saved is gone, and its objects are not held any longer."""
        self._data.close()
        self.release()


class SnapshotDraft:
    """A snapshot in the making."""

    def __init__(self, header: SnapshotHeader) -> None:
        self._file = tempfile.TemporaryFile(prefix="ibt-snapshot-")
        self._writer = RecordWriter(cast(BinaryIO, self._file), msgspec.json.encode(header))
        self._id = header.id

    @property
    def count(self) -> int:
        """Entries so far."""
        return self._writer.count

    def add(self, entry: Entry) -> None:
        """Append the next entry in sort order."""
        self._writer.write(encode_line(line_of_entry(entry)))

    def finish(self, problems: Iterable[tuple[bytes, str]]) -> Snapshot:
        """The whole snapshot."""
        self._writer.close()
        self._file.flush()
        file = cast(BinaryIO, self._file)
        return Snapshot(file, what=f"snapshot {self._id}", problems=tuple(problems))

    def finish_entries(self) -> IndexData:
        """The entries as they are, files without a digest too."""
        self._writer.close()
        self._file.flush()
        return IndexData(os.dup(self._file.fileno()), what="entries")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """A snapshot of a listing.

    Attributes:
        name: its name in the store.
        size: of the index in the store, in bytes.
    """

    name: str
    id: str
    size: int

    @property
    def timestamp(self) -> datetime:
        """When it was begun, in UTC."""
        return timestamp_of(self.id)


class SnapshotStore:
    """The snapshots at one place. Every method raises RepositoryError for whatever the store does."""

    def __init__(self, store: Store) -> None:
        """Nothing is looked at before it is used."""
        self.store = store

    def list(self, kind: str = SNAPSHOTS) -> list[SavedSnapshot]:
        """The snapshots of a kind, oldest first.

        Raises:
            RepositoryNotFoundError: the place is not there.
        """
        found = []
        for info in self.store.list_objects(f"{kind}/"):
            base = info.name.removeprefix(f"{kind}/")
            if base.endswith(_SUFFIX) and is_backup_id(base.removesuffix(_SUFFIX)):
                found.append(SavedSnapshot(info.name, base.removesuffix(_SUFFIX), info.size))
        return found

    def header(self, saved: SavedSnapshot) -> SnapshotHeader:
        """The header alone, by a short read.

        Raises:
            StateFormatError: it is none.
        """
        start = self.store.read_range(saved.name, 0, min(saved.size, _HEADER_READ_LEN))
        try:
            raw = read_header(start, what=saved.name)
            return msgspec.json.decode(raw, type=SnapshotHeader)
        except msgspec.DecodeError as error:
            raise StateFormatError(f"{saved.name}: not a snapshot: {error}") from None

    def load(self, name: str) -> Snapshot:
        """Fetch a snapshot and check that it is whole.

        Args:
            name: its name in the store, or an id.

        Raises:
            ObjectNotFoundError: it is not there.
            StateFormatError: cut or altered.
        """
        if is_backup_id(name):
            name = f"{SNAPSHOTS}/{name}{_SUFFIX}"
        with tempfile.TemporaryFile(prefix="ibt-snapshot-") as raw, self.store.open(name) as source:
            while chunk := source.read(_COPY_LEN):
                raw.write(chunk)
            raw.flush()
            snapshot = Snapshot(cast(BinaryIO, raw), what=f"{name} in {self.store.url}")
        for _ in snapshot:
            pass
        return snapshot

    def save(self, snapshot: Snapshot, kind: str = SNAPSHOTS) -> SavedSnapshot:
        """Store a snapshot; when this returns, it is there, whole and durable.

        Raises:
            ObjectExistsError: there is one of that time.
        """
        with self.store.spool(f"{kind}/{snapshot.id}{_SUFFIX}") as spool:
            snapshot.copy_to(spool.file)
            info = spool.publish()
        return SavedSnapshot(info.name, snapshot.id, info.size)

    def identity(self, *, create: bool) -> str | None:
        """What the heap knows this place by; None where it has none yet."""
        return identity_of(self.store, ROOT_NAME, create=create)

    def clean(self) -> None:
        """Remove what killed writers left; to be called while nobody writes."""
        for kind in (SNAPSHOTS, UNDO):
            self.store.clean_temporaries(kind)


def identity_of(store: Store, name: str, *, create: bool) -> str | None:
    """The random identity that the object *name* gives a place; None where there is none and none is made.

    Raises:
        RepositoryError: it cannot be read, or is nothing of the kind.
    """
    if create:
        with suppress(ObjectExistsError):  # the usual case
            store.create(name, msgspec.json.encode({"id": os.urandom(16).hex()}))
    try:
        record = msgspec.json.decode(store.read(name, max_size=_ROOT_MAX_LEN), type=dict[str, str])
        return record["id"]
    except ObjectNotFoundError:
        return None
    except (msgspec.DecodeError, KeyError):
        raise RepositoryError(f"{name} in {store.url} is not readable as an identity") from None


def new_id(taken: Iterable[str]) -> str:
    """The present as an id; a later one where the newest of *taken* is not before it."""
    now_ns = time.time_ns()
    newest = max(taken, default="")
    if newest >= encode_backup_id(now_ns):
        now_ns = parse_backup_id(newest) + 1000
    return encode_backup_id(now_ns)


def timestamp_of(snapshot_id: str) -> datetime:
    """The time that an id says, in UTC."""
    return _EPOCH + timedelta(microseconds=parse_backup_id(snapshot_id) // 1000)
