"""Snapshots of a tree on any filesystem, kept on another, with the contents in a heap on a third.

snapshooter = Snapshooter(src_fs, src_root, snap_fs, snap_root, heap_fs, heap_root)
snapshot, timestamp = snapshooter.make_snapshot()
snapshooter.save_snapshot(snapshot)
report = snapshooter.restore_snapshot()
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, Final, Self

from incremental_backups_tools.exceptions import (
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.heap.objects import ObjectHeap
from incremental_backups_tools.heap.sync.apply import Applier, ApplyReport
from incremental_backups_tools.heap.sync.capture import DEFAULT_MAX_DELETED, Capture, CaptureStats
from incremental_backups_tools.heap.sync.compare import Comparison, compare_snapshots
from incremental_backups_tools.heap.sync.leases import lease_for_adding
from incremental_backups_tools.heap.sync.places import (
    DEFAULT_THREADS,
    check_apart,
    open_tree,
    open_tree_at,
)
from incremental_backups_tools.heap.sync.snapshot import (
    SNAPSHOTS,
    UNDO,
    SavedSnapshot,
    Snapshot,
    SnapshotHeader,
    SnapshotStore,
    identity_of,
    new_id,
)
from incremental_backups_tools.heap.sync.tables import Table
from incremental_backups_tools.heap.sync.tree import FileTree, Problems
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS, ChangeKeyGetter
from incremental_backups_tools.repository.filesystems import store_at, store_on
from incremental_backups_tools.repository.layout import encode_backup_id
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.entry import Entry

HEAP_IDENTITY: Final = "heap.json"
ROOTS: Final = "roots"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COPY_LEN: Final = 1 << 20


class Snapshooter:
    """Makes, keeps, lists, compares and restores snapshots of one tree. For one thread at a time.

    Every method raises RepositoryError for what the snapshots' place or the heap does.
    """

    def __init__(
        self,
        src_fs: Any,
        src_root: str,
        snap_fs: Any,
        snap_root: str,
        heap_fs: Any,
        heap_root: str,
        *,
        threads: int = DEFAULT_THREADS,
        change_keys: Mapping[str, ChangeKeyGetter] = CHANGE_KEYS,
        on_problem: Problems | None = None,
        on_progress: Callable[[bytes, int], None] | None = None,
    ) -> None:
        """Take three fsspec filesystems and a path on each; nothing is looked at before it is used.

        Args:
            threads: how many files are read or written at a time.
            change_keys: what tells a file's versions apart without reading it, by protocol: see ``CHANGE_KEYS``.
            on_problem: told of each path that could not be read, and why.
            on_progress: called with each path that is done, and the bytes read or written for it.

        Raises:
            ValueError: the tree and one of the other two places lie within each other.
        """
        self._init(
            open_tree(src_fs, src_root, change_keys=change_keys, threads=threads),
            store_on(snap_fs, snap_root),
            store_on(heap_fs, heap_root),
            threads,
            on_problem,
            on_progress,
        )

    @classmethod
    def at(
        cls,
        source: StoreAddress,
        snapshots: StoreAddress,
        heap: StoreAddress,
        *,
        threads: int = DEFAULT_THREADS,
        on_problem: Problems | None = None,
        on_progress: Callable[[bytes, int], None] | None = None,
    ) -> Self:
        """The same for three directories or URLs."""
        self = cls.__new__(cls)
        self._init(
            open_tree_at(source, threads=threads),
            store_at(snapshots),
            store_at(heap),
            threads,
            on_problem,
            on_progress,
        )
        return self

    def _init(
        self,
        tree: FileTree,
        snapshot_store: Store,
        heap_store: Store,
        threads: int,
        on_problem: Problems | None,
        on_progress: Callable[[bytes, int], None] | None,
    ) -> None:
        for store in (snapshot_store, heap_store):
            check_apart(tree.url, store.url)
        self.tree = tree
        self.snapshots = SnapshotStore(snapshot_store)
        self.heap = ObjectHeap(heap_store)
        self._heap_store = heap_store
        self._threads = threads
        self._on_problem = on_problem or (lambda path, message: None)
        self._on_progress = on_progress
        self._heap_id = ""
        self.stats = CaptureStats()

    def make_snapshot(
        self, *, checksum: bool = False, max_deleted: float = DEFAULT_MAX_DELETED
    ) -> tuple[Snapshot, datetime]:
        """Store what is new in the tree in the heap, and return the snapshot and its time in UTC.

        It is kept by :meth:`save_snapshot`; until then, or until it is closed or let go of, what it needs is not
        collected. What could not be read is in its ``problems``, and stands in it as the snapshot before has it.

        Args:
            checksum: read every file, also where nothing speaks for a change.
            max_deleted: the share of names, from 0 to 1, by which the tree may have shrunk since the last time.

        Raises:
            SourceError: the tree is not there, or most of it is gone. Nothing was saved.
            RepositoryLockedError: the heap is being cleaned.
        """
        return self._make(SNAPSHOTS, checksum=checksum, max_deleted=max_deleted)

    def save_snapshot(self, snapshot: Snapshot, timestamp: datetime | None = None) -> str:
        """Keep a snapshot and return its name; when this returns, it is there, whole and durable.

        Args:
            timestamp: what :meth:`make_snapshot` returned with it; the snapshot knows it.

        Raises:
            ObjectExistsError: there is one of that time.
            RepositoryLockedError: the heap was cleaned meanwhile: make the snapshot anew.
            ValueError: the time is another one's.
        """
        if timestamp is not None and timestamp != snapshot.timestamp:
            raise ValueError(f"the snapshot is of {snapshot.timestamp}, not of {timestamp}")
        return self._save(snapshot, SNAPSHOTS).name

    _save_snapshot = save_snapshot

    def list(self) -> Sequence[SavedSnapshot]:
        """The snapshots, oldest first; those that restoring made for undoing it are not among them."""
        return self._list(SNAPSHOTS)

    def list_undo(self) -> Sequence[SavedSnapshot]:
        """What restoring has replaced, oldest first."""
        return self._list(UNDO)

    def load_snapshot(
        self, snapshot: Snapshot | SavedSnapshot | str | None = None, *, latest_before: datetime | None = None
    ) -> Snapshot:
        """Fetch a snapshot: one that is named, or the latest, or the latest at or before a time.

        Args:
            snapshot: a name, an id, or one of a listing.
            latest_before: without a time zone it is local time.

        Raises:
            ObjectNotFoundError: there is no such snapshot.
            StateFormatError: it is cut or altered.
        """
        if isinstance(snapshot, Snapshot):
            return snapshot
        if snapshot is not None:
            return self.snapshots.load(snapshot if isinstance(snapshot, str) else snapshot.name)
        found = self.list()
        if latest_before is not None:
            moment = (latest_before.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
            limit = encode_backup_id(moment * 1000)
            found = [saved for saved in found if saved.id <= limit]
        if not found:
            when = f" at or before {latest_before}" if latest_before is not None else ""
            raise ObjectNotFoundError(f"there is no snapshot in {self.snapshots.store.url}{when}")
        return self.snapshots.load(found[-1].name)

    def compare(
        self, left: Snapshot | SavedSnapshot | str | None, right: Snapshot | SavedSnapshot | str | None
    ) -> Comparison:
        """Compare two snapshots by content; None is the latest."""
        return compare_snapshots(self.load_snapshot(left), self.load_snapshot(right))

    def restore_snapshot(
        self,
        snapshot: Snapshot | SavedSnapshot | str | None = None,
        *,
        latest_before: datetime | None = None,
        delete: bool = True,
        undo: bool = True,
        dry_run: bool = False,
        on_action: Callable[[str, bytes], None] | None = None,
    ) -> ApplyReport:
        """Make the tree what a snapshot says.

        What is there is captured first, into the heap, and saved apart from the snapshots. A file is replaced when
        its new content was found right, at once, and never in part. What cannot be restored is reported.

        Args:
            snapshot: as for :meth:`load_snapshot`.
            delete: remove what the snapshot does not have; otherwise add and replace only.
            undo: save what is there now; its name is in the report.
            dry_run: change nothing, and say what would be done.
            on_action: told ``+ ~ m -`` and a path before it is done.

        Raises:
            ObjectNotFoundError: there is no such snapshot.
            RepositoryLockedError: the heap is being cleaned.
        """
        wanted = self.load_snapshot(snapshot, latest_before=latest_before)
        report = ApplyReport(dry_run=dry_run)
        if dry_run or not undo or not self.tree.exists():
            self._apply(wanted, self._capture_digests(), delete, report, on_action)
            return report
        capture = self._capture(UNDO, threads=self._threads)
        before = self._run_capture(capture, UNDO)
        with closing(before):
            report.undo = self._save(before, UNDO, release=False).name
            self._apply(wanted, (capture, before), delete, report, on_action)
        return report

    # --- parts ----------------------------------------------------------------------------------------------

    def _apply(
        self,
        wanted: Snapshot,
        current: tuple[Capture, Snapshot] | None,
        delete: bool,
        report: ApplyReport,
        on_action: Callable[[str, bytes], None] | None,
    ) -> None:
        capture = current[0] if current is not None else self._capture(UNDO, threads=self._threads)
        entries: Iterable[Entry] = current[1] if current is not None else ()
        protected = dict(current[1].problems) if current is not None else {}
        Applier(
            tree=self.tree,
            fetch=self._fetch,
            listing=capture.listing,
            protected=protected,
            hidden=lambda path: False,
            use_metadata=wanted.header.has_metadata and self.tree.has_metadata,
            delete=delete,
            threads=self._threads,
            report=report,
            on_action=on_action,
            on_progress=self._on_progress,
        ).run(lambda: wanted, entries)

    def _fetch(self, entry: Entry, out: BinaryIO) -> Entry:
        assert entry.digest is not None  # a snapshot's files have one
        with self.heap.open(entry.digest, size=entry.size) as content:
            while chunk := content.read(_COPY_LEN):
                out.write(chunk)
        return entry

    def _capture_digests(self) -> tuple[Capture, Snapshot] | None:
        """What the tree holds, without storing anything."""
        if not self.tree.exists():
            return None
        capture = Capture(self.tree, None, threads=self._threads)
        return capture, capture.run(self._header(new_id(())))

    def _make(self, kind: str, *, checksum: bool, max_deleted: float) -> tuple[Snapshot, datetime]:
        capture = self._capture(kind, threads=self._threads)
        capture.checksum = checksum
        capture.max_deleted = max_deleted
        snapshot = self._run_capture(capture, kind)
        return snapshot, snapshot.timestamp

    def _capture(self, kind: str, *, threads: int) -> Capture:
        on_problem = self._on_problem if kind == SNAPSHOTS else (lambda path, message: None)
        on_progress = self._on_progress if kind == SNAPSHOTS else None
        return Capture(self.tree, self.heap, threads=threads, on_problem=on_problem, on_progress=on_progress)

    def _run_capture(self, capture: Capture, kind: str) -> Snapshot:
        self.snapshots.store.make_root()
        lease = self._lease("snapshot")
        try:
            with Table() as known:
                known.fill((item.digest, item.stored_size) for item in self.heap.iter_objects())
                capture.known = known
                # A snapshot for undoing compares with the newest of either kind: the tree was restored meanwhile.
                capture.previous = self._find_previous(
                    (SNAPSHOTS,) if kind == SNAPSHOTS else (SNAPSHOTS, UNDO)
                )
                taken = [saved.id for saved in self._list(kind)]
                # Known to the heap before anything in it is needed, so that cleaning never misses this place.
                self._register()
                snapshot = capture.run(self._header(new_id(taken)))
        except BaseException:
            lease.release()
            raise
        self.stats = capture.stats
        snapshot.lease = lease
        snapshot.release = weakref.finalize(snapshot, lease.release)
        return snapshot

    def _save(self, snapshot: Snapshot, kind: str, *, release: bool = True) -> SavedSnapshot:
        if snapshot.lease is not None:
            snapshot.lease.confirm()
        saved = self.snapshots.save(snapshot, kind)
        if release:
            snapshot.release()
            snapshot.lease = None
        return saved

    def _list(self, kind: str) -> Sequence[SavedSnapshot]:
        try:
            return self.snapshots.list(kind)
        except RepositoryNotFoundError:
            # A place that was never used; whoever asks for a snapshot of it is told that there is none.
            return []

    def _find_previous(self, kinds: tuple[str, ...]) -> Snapshot | None:
        """The newest snapshot of this very tree."""
        found = [saved for kind in kinds for saved in self._list(kind)]
        for saved in sorted(found, key=lambda saved: saved.id, reverse=True):
            header = self.snapshots.header(saved)
            if (header.root, header.heap) == (self.tree.url, self._heap_id):
                return self.snapshots.load(saved.name)
        return None

    def _lease(self, operation: str) -> KeyLock:
        self._heap_store.make_root()
        # First: an object store is not there before there is something in it.
        self._heap_id = identity_of(self._heap_store, HEAP_IDENTITY, create=not self._heap_id) or ""
        return lease_for_adding(self._heap_store, operation)

    def _register(self) -> None:
        identity = self.snapshots.identity(create=True)
        name = f"{ROOTS}/{identity}"
        if not self._heap_store.exists(name):
            with suppress(ObjectExistsError):  # another one was faster
                self._heap_store.create(name, os.fsencode(self.snapshots.store.url) + b"\n")

    def _header(self, snapshot_id: str) -> SnapshotHeader:
        return SnapshotHeader(
            root=self.tree.url,
            id=snapshot_id,
            has_metadata=self.tree.has_metadata,
            heap=self._heap_id,
        )
