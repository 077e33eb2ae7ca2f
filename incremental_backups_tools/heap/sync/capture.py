"""Taking a snapshot of a tree: every file's content into the heap, or its digest alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.heap.objects import ObjectHeap
from incremental_backups_tools.heap.sync.snapshot import Snapshot, SnapshotDraft, SnapshotHeader
from incremental_backups_tools.heap.sync.tables import Table
from incremental_backups_tools.heap.sync.tree import FileTree, Listing, Problems
from incremental_backups_tools.tree.diff import merge_join
from incremental_backups_tools.tree.entry import FILE, Entry, Location

_AHEAD: Final = 4  # files on their way for each thread
DEFAULT_MAX_DELETED: Final = 0.5


@dataclass(slots=True)
class CaptureStats:
    """What a pass over a tree did.

    Attributes:
        files: files in the tree.
        read: files that were read; the others were known to be unchanged.
        bytes_read: of content.
        bytes_stored: that the heap grew by.
    """

    files: int = 0
    read: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0


@dataclass(slots=True)
class _Outcome:
    """What became of one name: an entry for the snapshot, and whether it was read."""

    entry: Entry | None
    problem: str | None = None
    was_read: bool = False
    stored: int = 0


@dataclass(slots=True)
class Capture:
    """One pass over a tree.

    Args:
        tree: what is captured.
        heap: takes the contents; None computes digests alone.
        known: the objects that the heap holds, digest to size; an entry of *previous* is believed only where
            its object is among them.
        previous: what a snapshot of the same tree had.
        checksum: read every file, whatever its change key says.
        max_deleted: the share of entries, from 0 to 1, by which the tree may have shrunk since *previous*.
        on_progress: called with each path that is done, and the bytes read for it.
    """

    tree: FileTree
    heap: ObjectHeap | None
    known: Table | None = None
    previous: Snapshot | None = None
    checksum: bool = False
    threads: int = 4
    max_deleted: float = 1.0
    on_problem: Problems = lambda path, message: None
    on_progress: Callable[[bytes, int], None] | None = None
    stats: CaptureStats = field(default_factory=CaptureStats)
    listing: Listing = field(default_factory=Listing.empty)

    def run(self, header: SnapshotHeader) -> Snapshot:
        """Capture the tree.

        What cannot be read is reported, and stands as it was in *previous*.

        Raises:
            SourceError: the root cannot be listed, or most of the tree is gone.
            RepositoryError: the heap failed.
        """
        problems: list[tuple[bytes, str]] = []

        def report(path: bytes, message: str) -> None:
            problems.append((path, message))
            self.on_problem(path, message)

        draft = SnapshotDraft(header)
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                try:
                    for outcome, path in self._outcomes(pool, report):
                        self._take(outcome, path, draft, report)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            self._check_shrinkage(draft.count)
            return draft.finish(problems)
        finally:
            draft.close()

    def _take(self, outcome: _Outcome, path: bytes, draft: SnapshotDraft, report: Problems) -> None:
        if outcome.problem is not None:
            report(path, outcome.problem)
        entry = outcome.entry
        if entry is None:
            return
        draft.add(entry)
        if entry.type == FILE:
            self.stats.files += 1
        if outcome.was_read:
            self.stats.read += 1
            self.stats.bytes_read += entry.size
            self.stats.bytes_stored += outcome.stored
        if self.on_progress is not None:
            self.on_progress(path, entry.size if outcome.was_read else 0)

    def _outcomes(self, pool: ThreadPoolExecutor, report: Problems) -> Iterator[tuple[_Outcome, bytes]]:
        """Everything of the tree in sort order, several files on their way at a time."""
        waiting: deque[tuple[Future[_Outcome] | _Outcome, bytes]] = deque()
        previous: Sequence[Entry] | Snapshot = self.previous if self.previous is not None else ()
        for entry, old in merge_join(
            self.tree.iter_entries(self.listing, report),
            previous,
            new_path=lambda entry: entry.path,
            old_path=lambda entry: entry.path,
        ):
            if entry is None:
                assert old is not None  # one of the two is there
                if self.listing.hides(old.path) and self._is_held(old):
                    waiting.append((_Outcome(old), old.path))
            elif entry.type != FILE:
                waiting.append((_Outcome(entry), entry.path))
            elif old is not None and self._is_unchanged(entry, old):
                kept = msgspec.structs.replace(entry, digest=old.digest, data=old.data)
                waiting.append((_Outcome(kept), entry.path))
            else:
                fallback = old if old is not None and self._is_held(old) else None
                waiting.append((pool.submit(self._read, entry, fallback), entry.path))
            while waiting and (len(waiting) > _AHEAD * self.threads or not isinstance(waiting[0][0], Future)):
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def _is_unchanged(self, entry: Entry, old: Entry) -> bool:
        return (
            not self.checksum
            and old.type == FILE
            and entry.size == old.size
            and entry.change_key is not None
            and entry.change_key == old.change_key
            and self._is_held(old)
        )

    def _is_held(self, old: Entry) -> bool:
        """Whether the content of an old entry is where it is said to be."""
        if self.heap is None or old.type != FILE:
            return True
        if old.digest is None or old.data is None or self.known is None:
            return False
        return self.known.get(old.digest) == old.data.length

    def _read(self, entry: Entry, old: Entry | None) -> _Outcome:
        try:
            (digest, size, data, stored), found = self.tree.read(entry, self._consume)
        except SourceError as error:
            return _Outcome(old if old is not None and old.type == FILE else None, str(error))
        complete = msgspec.structs.replace(found, digest=digest, size=size, data=data)
        return _Outcome(complete, was_read=True, stored=stored)

    def _consume(self, chunks: Iterator[bytes]) -> tuple[bytes, int, Location | None, int]:
        if self.heap is None:
            hasher, size = blake3(), 0
            for chunk in chunks:
                hasher.update(chunk)
                size += len(chunk)
            return hasher.digest(), size, None, 0
        put = self.heap.put(chunks)
        data = Location(self.heap.name_of(put.digest), 0, put.stored_size)
        return put.digest, put.size, data, put.stored_size if put.is_new else 0

    def _check_shrinkage(self, after: int) -> None:
        if self.previous is None:
            return
        before = sum(1 for _ in self.previous)
        if before - after > before * self.max_deleted:
            raise SourceError(
                f"{self.tree.url}: has {after} entries, the snapshot before had {before}: is it mounted? Nothing "
                f"was saved; allow it with max_deleted (--max-deleted 100%)"
            )


def _result(waiting: Future[_Outcome] | _Outcome, path: bytes) -> tuple[_Outcome, bytes]:
    return (waiting.result() if isinstance(waiting, Future) else waiting), path
