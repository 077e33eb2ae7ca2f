"""Making one tree equal to another, wherever the two are.

A file is copied unless it is known to be the same. It is known by the record of the last time, where neither
side's size nor change key has moved since; otherwise contents of the same size are read and compared. The record
is a cache: without it more is read, and nothing else is different.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, Final

import msgspec
from blake3 import blake3

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import SourceError, StateFormatError
from incremental_backups_tools.heap.sync.apply import Applier, ApplyReport
from incremental_backups_tools.heap.sync.capture import DEFAULT_MAX_DELETED
from incremental_backups_tools.heap.sync.places import DEFAULT_THREADS, check_apart
from incremental_backups_tools.heap.sync.snapshot import SnapshotDraft, SnapshotHeader, new_id
from incremental_backups_tools.heap.sync.tables import Table
from incremental_backups_tools.heap.sync.tree import FileTree, Listing, with_digest
from incremental_backups_tools.repository.locations import default_cache_root
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry
from incremental_backups_tools.tree.index import IndexData, Problem
from incremental_backups_tools.tree.records import RecordReader, RecordWriter

_LOGGER = logging.getLogger(__name__)

_FORMAT: Final = "ibt-sync"
_VERSION: Final = 1
_AHEAD: Final = 4
# Stands for the digest of a content that is known to be the same, and was not read.
_SAME: Final = bytes(32)


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int
    source: str
    target: str


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """A file that was the same on both sides: its path in hexadecimal, its size, and each side's change key."""

    path: str
    size: int
    source_key: str
    target_key: str


def sync_trees(
    source: FileTree,
    target: FileTree,
    *,
    delete: bool = False,
    dry_run: bool = False,
    checksum: bool = False,
    max_deleted: float = DEFAULT_MAX_DELETED,
    threads: int = DEFAULT_THREADS,
    record_directory: str | os.PathLike[str] | None = None,
    on_action: Callable[[str, bytes], None] | None = None,
    on_progress: Callable[[bytes, int], None] | None = None,
) -> ApplyReport:
    """Make *target* hold what *source* holds.

    Each file is read as one state, into a file of this machine, before the target is touched; it replaces the old
    one at once. What cannot be read is reported, left as it is in the target, and never deleted there.

    Args:
        delete: remove from the target what the source does not have; otherwise add and replace only.
        dry_run: change nothing, and say what would be done.
        checksum: compare contents also where the record of the last time speaks for a file.
        max_deleted: with *delete*, the share of the target's names, from 0 to 1, by which it may shrink.
        record_directory: where the records are; None is the user's cache directory.
        on_action: told ``+ ~ m -`` and a path before it is done.
        on_progress: called with each path that is done, and the bytes written for it.

    Raises:
        SourceError: the source is not there, or most of the target would be deleted. Nothing was changed.
        RepositoryError: the target cannot be made.
        ValueError: one tree lies within the other.
    """
    check_apart(source.url, target.url)
    directory = os.path.join(default_cache_root(), "sync") if record_directory is None else record_directory
    records_path = os.path.join(directory, _record_name(source, target))
    report = ApplyReport(dry_run=dry_run)
    with Table() as old, Table() as new, ExitStack() as stack:
        old.fill(_read_records(records_path, source, target))
        pairing = _Pairing(source, target, old, new, checksum=checksum, threads=threads, report=report)
        wanted, current = pairing.run()
        stack.callback(wanted.close)
        stack.callback(current.close)
        if delete and pairing.target_count - pairing.source_count > pairing.target_count * max_deleted:
            raise SourceError(
                f"{source.url}: has {pairing.source_count} names, {target.url} has {pairing.target_count}: is it "
                f"mounted? Nothing was changed; allow it with max_deleted (--max-deleted 100%)"
            )
        Applier(
            tree=target,
            fetch=partial(_fetch, source),
            listing=pairing.target_listing,
            protected={},
            hidden=pairing.source_listing.hides,
            use_metadata=source.has_metadata and target.has_metadata,
            delete=delete,
            threads=threads,
            report=report,
            on_action=on_action,
            on_progress=on_progress,
            on_written=pairing.note,
        ).run(lambda: _entries(wanted), _entries(current))
        if not dry_run:
            _write_records(records_path, source, target, new)
    return report


class _Pairing:
    """Walks both trees at once and finds out which files are the same."""

    def __init__(
        self,
        source: FileTree,
        target: FileTree,
        old_records: Table,
        new_records: Table,
        *,
        checksum: bool,
        threads: int,
        report: ApplyReport,
    ) -> None:
        self._source = source
        self._target = target
        self._old = old_records
        self._new = new_records
        self._checksum = checksum
        self._threads = threads
        self._report = report
        self._mutex = threading.Lock()
        self.source_listing = Listing.empty()
        self.target_listing = Listing.empty()
        self.source_count = 0
        self.target_count = 0

    def run(self) -> tuple[IndexData, IndexData]:
        """Return what the source and the target hold; files that are the same have the same digest."""
        wanted, current = (
            SnapshotDraft(SnapshotHeader(root=tree.url, id=new_id(()), has_metadata=False, heap=""))
            for tree in (self._source, self._target)
        )
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for left, right in self._pairs(pool):
                    if left is not None:
                        wanted.add(left)
                        self.source_count += left.type != DIRECTORY  # not every tree has directories
                    if right is not None:
                        current.add(right)
                        self.target_count += right.type != DIRECTORY
                return wanted.finish_entries(), current.finish_entries()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                wanted.close()
                current.close()

    def note(self, entry: Entry, target_key: str | None) -> None:
        """Remember that a file is now the same on both sides; *entry* has the source's change key."""
        if entry.change_key is not None and target_key is not None:
            pair = (entry.path, _encode_pair(entry.size, entry.change_key, target_key))
            with self._mutex:
                self._new.fill([pair])

    def _pairs(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Entry | None, Entry | None]]:
        waiting: deque[Future[tuple[Entry, Entry]] | tuple[Entry | None, Entry | None]] = deque()
        current: Iterable[Entry] = ()
        if self._target.exists():
            current = self._target.iter_entries(self.target_listing, self._problem)
        for left, right in merge_join(
            self._source.iter_entries(self.source_listing, self._problem),
            current,
            new_path=lambda entry: entry.path,
            old_path=lambda entry: entry.path,
        ):
            if (
                left is None
                or right is None
                or not left.type == right.type == FILE
                or left.size != right.size
            ):
                waiting.append((left, right))
            elif self._is_recorded(left, right):
                self.note(left, right.change_key)
                waiting.append((_marked(left, _SAME), _marked(right, _SAME)))
            else:
                waiting.append(pool.submit(self._compare, left, right))
            while waiting and (len(waiting) > _AHEAD * self._threads or not isinstance(waiting[0], Future)):
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())

    def _is_recorded(self, left: Entry, right: Entry) -> bool:
        if self._checksum or left.change_key is None or right.change_key is None:
            return False
        pair = _encode_pair(left.size, left.change_key, right.change_key)
        return self._old.get(left.path) == pair

    def _compare(self, left: Entry, right: Entry) -> tuple[Entry, Entry]:
        try:
            left_digest, found = self._source.read(left, _digest_of)
        except SourceError as error:
            self._problem(left.path, str(error))
            return _marked(left, _SAME), _marked(right, _SAME)  # it stays as it is
        try:
            right_digest, there = self._target.read(right, _digest_of)
        except SourceError:
            return left, right  # what cannot be read is no copy of anything
        if left_digest == right_digest:
            self.note(found, there.change_key)
        return _marked(found, left_digest), _marked(there, right_digest)

    def _problem(self, path: bytes, message: str) -> None:
        with self._mutex:
            self._report.problems.append(Problem(path, message))


def _fetch(source: FileTree, entry: Entry, out: BinaryIO) -> Entry:
    def consume(chunks: Iterator[bytes]) -> tuple[bytes, int]:
        out.seek(0)
        out.truncate()
        hasher, size = blake3(), 0
        for chunk in chunks:
            out.write(chunk)
            hasher.update(chunk)
            size += len(chunk)
        return hasher.digest(), size

    (digest, size), found = source.read(entry, consume)
    return with_digest(found, digest, size)


def _digest_of(chunks: Iterator[bytes]) -> bytes:
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def _marked(entry: Entry, digest: bytes) -> Entry:
    return msgspec.structs.replace(entry, digest=digest)


def _result(
    waiting: Future[tuple[Entry, Entry]] | tuple[Entry | None, Entry | None],
) -> tuple[Entry | None, Entry | None]:
    return waiting.result() if isinstance(waiting, Future) else waiting


def _entries(data: IndexData) -> Iterator[Entry]:
    return (item.entry for item in data)


# --- the record of the last time ------------------------------------------------------------------------------


def _record_name(source: FileTree, target: FileTree) -> str:
    urls = b"\0".join((os.fsencode(source.url), os.fsencode(target.url)))
    return blake3(urls).hexdigest() + ".jsonl.zst"


def _encode_pair(size: int, source_key: str, target_key: str) -> bytes:
    return msgspec.json.encode((size, source_key, target_key))


def _read_records(fs_path: str, source: FileTree, target: FileTree) -> Iterator[tuple[bytes, bytes]]:
    """The records of the last run, or none: whatever is wrong with them, files are read instead."""
    try:
        with open(fs_path, "rb") as file:
            reader = RecordReader(file, what=fs_path)
            header = msgspec.json.decode(reader.header, type=_Header)
            if header != _Header(_FORMAT, _VERSION, source.url, target.url):
                return
            pairs = []
            for raw in reader:
                record = msgspec.json.decode(raw, type=_Record)
                pair = _encode_pair(record.size, record.source_key, record.target_key)
                pairs.append((bytes.fromhex(record.path), pair))
            yield from pairs
    except FileNotFoundError:
        return
    except (OSError, ValueError, StateFormatError) as error:
        _LOGGER.warning("%s cannot be read, so more is compared: %s", fs_path, error)


def _write_records(fs_path: str, source: FileTree, target: FileTree, records: Table) -> None:
    header = msgspec.json.encode(_Header(_FORMAT, _VERSION, source.url, target.url))
    try:
        durable.make_directories(os.path.dirname(fs_path), mode=0o700)
        with durable.atomic_write(fs_path, mode=0o600) as file:
            writer = RecordWriter(file, header)
            for path, pair in records.items():
                assert isinstance(pair, bytes)  # as _encode_pair makes them
                writer.write(msgspec.json.encode(_Record(path.hex(), *msgspec.json.decode(pair))))
            writer.close()
    except OSError as error:
        _LOGGER.warning("%s cannot be written, so the next run reads more: %s", fs_path, error)
