"""Bringing the catalogue to what the source is now.

Files that look unchanged by size, mtime, ctime and inode are not read; all others are, for their digest. A
moved directory is known again by inode, size, mtime and ctime of what is in it, and not read either. A file
that was itself moved has a new ctime, which a write with the mtime set back would leave too: it is read once.
In neither case is anything stored that a disk has.

What is gone stays in the catalogue, and its content on the disks, for as long as the catalogue keeps deleted files.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.disks import iter_disks
from incremental_backups_tools.heap.disk.entries import (
    StoredEntry,
    begin_entry,
    current_entry,
    end_entry,
    entries_like,
    number_of_object,
    path_of_key,
    refresh_entry,
)
from incremental_backups_tools.heap.disk.report import UpdateReport
from incremental_backups_tools.heap.disk.rules import (
    SourceMap,
    Wishes,
    exclusion_of,
    read_maps,
    read_rules,
)
from incremental_backups_tools.tree.entry import (
    DIRECTORY,
    FILE,
    ROOT,
    Entry,
    canonical_encoding,
    printable,
    sort_key,
)
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, capture_unread, type_of
from incremental_backups_tools.tree.reading import OpenedFile, read_stable
from incremental_backups_tools.tree.sparse import iter_zeros
from incremental_backups_tools.tree.unchanged import for_next_time, is_unchanged
from incremental_backups_tools.tree.walk import Found, Walk

DEFAULT_MAX_DELETED: Final = 0.5
_BATCH: Final = 1000  # names, or files that were read, between two commits
_BATCH_BYTES: Final = 1 << 30

OnProgress = Callable[[bytes, int], None]


@dataclass(frozen=True, slots=True)
class UpdateOptions:
    """How to update.

    Attributes:
        max_deleted: the share of a map's names, from 0 to 1, that may be gone at once. More of them stop the
            run before anything counts as deleted: the directory may not be mounted.
        dry_run: read no file and write nothing.
        on_progress: called with each path and the bytes of it.
    """

    max_deleted: float = DEFAULT_MAX_DELETED
    dry_run: bool = False
    on_progress: OnProgress | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_deleted <= 1:
            raise ValueError(f"max_deleted is a share from 0 to 1, not {self.max_deleted}")


def update_catalogue(catalogue: Catalogue, options: UpdateOptions | None = None) -> UpdateReport:
    """Walk all source maps and record what has changed.

    Raises:
        SourceError: no source is mapped, or most of one is gone. What was found anew is recorded nevertheless,
            and nothing counts as deleted.
    """
    return _Update(catalogue, options or UpdateOptions()).run()


@dataclass(slots=True)
class _Digesting:
    """Takes a file's content for its digest."""

    entry: Entry
    extents: tuple[tuple[int, int], ...] | None
    hasher: blake3 = field(default_factory=blake3)

    def update(self, chunk: bytes) -> None:
        self.hasher.update(chunk)

    def hole(self, length: int) -> None:
        for zeros in iter_zeros(length):
            self.hasher.update(zeros)

    def abandon(self) -> None:
        """Nothing outlives this object."""


class _Update:
    def __init__(self, catalogue: Catalogue, options: UpdateOptions) -> None:
        self._catalogue = catalogue
        self._options = options
        self._report = UpdateReport(dry_run=options.dry_run)
        self._maps = read_maps(catalogue)
        self._wishes = Wishes(read_rules(catalogue), copies=catalogue.copies)
        self._unknown: list[bytes] = []  # what lies below stays as it was
        self._now_ns = max(time.time_ns(), catalogue.number("SELECT max(since_ns) FROM entries") + 1)
        self._pending: list[Callable[[], None]] = []
        self._pending_bytes = 0
        self._before = self._count_by_map(
            path_of_key(key)
            for (key,) in catalogue.rows("SELECT sort_key FROM entries WHERE until_ns IS NULL")
        )
        # Neither the catalogue nor a disk is part of what is backed up.
        places = [disk.place for disk in iter_disks(catalogue)]
        places += [os.fsencode(catalogue.directory)] if catalogue.directory else []
        infos = [os.stat(place) for place in places if os.path.isdir(place)]
        self._own = [(info.st_dev, info.st_ino) for info in infos]

    def run(self) -> UpdateReport:
        if not len(self._maps):
            raise SourceError("no source is mapped; do so with 'ibt disk map PATH DIRECTORY'")
        self._catalogue.execute("CREATE TEMP TABLE seen(sort_key BLOB PRIMARY KEY) WITHOUT ROWID")
        try:
            for item in self._maps:
                self._walk(item)
            self._make_parents()
            self._flush()
            self._end_gone()
        finally:
            self._catalogue.execute("DROP TABLE temp.seen")
        return self._report

    # --- one map -------------------------------------------------------------------------------------------

    def _walk(self, item: SourceMap) -> None:
        nested = self._maps.nested_points(item)
        links = HardLinks()
        walk = Walk(
            item.real,
            rules=exclusion_of(self._catalogue),
            on_problem=lambda path, message: self._problem(item.path_of(path), message),
            on_unlisted=lambda path: self._unknown.append(item.path_of(path)),
            keep=lambda rel_path: self._is_kept(item.path_of(rel_path), nested),
            leave_out=self._own,
        )
        try:
            for found in walk:
                self._take(item, found, links)
        except SourceError as error:
            self._problem(item.virtual, str(error))
            self._unknown.append(item.virtual)

    def _is_kept(self, path: bytes, nested: frozenset[bytes]) -> bool:
        if path in nested:
            return False
        return not (self._wishes.excludes(path, is_dir=False) and self._wishes.excludes(path, is_dir=True))

    def _take(self, item: SourceMap, found: Found, links: HardLinks) -> None:
        path = item.path_of(found.rel_path)
        kind = type_of(found.stat.st_mode)
        if kind is None or self._wishes.excludes(path, is_dir=kind == DIRECTORY):
            return  # a socket holds nothing
        if not found.listed:
            self._unknown.append(path)
        link_of = links.earlier_link(found.rel_path, found.stat)
        old = current_entry(self._catalogue, path)
        self._saw(path)
        self._report.found += 1
        virtual_link = None if link_of is None else item.path_of(link_of)
        if old is not None and is_unchanged(found.stat, old.entry, virtual_link):
            self._progress(path, found.stat)
            return
        if self._options.dry_run:
            self._count(old, kind, found.stat)
            return
        try:
            entry = self._record(path, found, old, virtual_link)
            links.confirm(found.rel_path, found.stat, entry)
        except SourceError as error:
            links.forget(found.rel_path, found.stat)
            self._problem(path, str(error).removeprefix(f"{printable(found.rel_path)}: "))
        self._progress(path, found.stat)

    def _saw(self, path: bytes) -> None:
        self._catalogue.execute("INSERT OR IGNORE INTO temp.seen VALUES (?)", (sort_key(path),))

    def _count(self, old: StoredEntry | None, kind: str, info: os.stat_result) -> None:
        """What a dry run can say without reading."""
        if old is None:
            self._report.created += 1
        elif kind != old.entry.type or (kind == FILE and _looks_changed(info, old.entry)):
            self._report.updated += 1
        else:
            self._report.metadata += 1

    def _record(self, path: bytes, found: Found, old: StoredEntry | None, link_of: bytes | None) -> Entry:
        """Have a name's entry stored; return it as it was read."""
        scanned_ns = time.time_ns()
        if type_of(found.stat.st_mode) == FILE and link_of is None:
            try:
                read = self._moved(found) or self._read(found)
            except (OSError, ValueError) as error:
                raise SourceError(f"{printable(found.rel_path)}: {error}") from error
        else:
            read = capture_unread(found, link_of=link_of)
        entry = for_next_time(msgspec.structs.replace(read, path=path), scanned_ns)
        self._pending.append(partial(self._store, entry, old))
        if len(self._pending) >= _BATCH or self._pending_bytes >= _BATCH_BYTES:
            self._flush()
        return read

    def _moved(self, found: Found) -> Entry | None:
        """The entry of a file in a directory that was moved, without reading it."""
        info = found.stat
        for old in entries_like(self._catalogue, info.st_ino, info.st_size, info.st_mtime_ns):
            if old.digest is not None and old.dev == info.st_dev and is_unchanged(info, old, None):
                captured = capture(found, info)
                return msgspec.structs.replace(
                    captured, digest=old.digest, sparse=old.sparse, flags=old.flags
                )
        return None

    def _read(self, found: Found) -> Entry:
        def begin(opened: OpenedFile) -> _Digesting:
            return _Digesting(capture(found, opened.stat, fd=opened.fd), opened.extents)

        digesting, _, stable = read_stable(found, begin)
        self._report.read += 1
        self._report.bytes_read += digesting.entry.size
        self._pending_bytes += digesting.entry.size
        return msgspec.structs.replace(
            digesting.entry,
            digest=digesting.hasher.digest(),
            sparse=digesting.extents,
            unstable=not stable,
        )

    def _store(self, entry: Entry, old: StoredEntry | None) -> None:
        """Record one entry, within a transaction."""
        if old is not None and canonical_encoding(old.entry) == canonical_encoding(entry):
            refresh_entry(self._catalogue, entry)
            return
        number = None
        if entry.is_content_holder:
            assert entry.digest is not None  # every file was read, or known
            number = number_of_object(self._catalogue, entry.digest, entry.size)
        if old is None:
            self._report.created += 1
        else:
            end_entry(self._catalogue, entry.path, self._now_ns)
            if number == old.object and entry.type == old.entry.type:
                self._report.metadata += 1
            else:
                self._report.updated += 1
        begin_entry(self._catalogue, entry, number, self._now_ns)

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if pending:
            with self._catalogue.transaction():
                for action in pending:
                    action()

    def _make_parents(self) -> None:
        """The directories that lead to mapped ones, where none was found there."""
        for path in sorted(self._maps.leading_paths(), key=sort_key):
            if self._catalogue.row("SELECT 1 FROM temp.seen WHERE sort_key = ?", (sort_key(path),)):
                continue
            self._saw(path)
            self._report.found += 1
            old = current_entry(self._catalogue, path)
            if old is None or old.entry.type != DIRECTORY:
                entry = Entry(path=path, type=DIRECTORY, mode=0o755, uid=os.getuid(), gid=os.getgid())
                if not self._options.dry_run:
                    self._pending.append(partial(self._store, entry, old))

    # --- what is gone --------------------------------------------------------------------------------------

    def _end_gone(self) -> None:
        rows = self._catalogue.rows(
            "SELECT sort_key FROM entries WHERE until_ns IS NULL AND sort_key NOT IN temp.seen"
        )
        unseen = [path_of_key(key) for (key,) in rows]
        gone = [path for path in unseen if not self._is_unknown(path)]
        self._check_share(gone, kept=len(unseen) - len(gone))
        self._report.deleted = len(gone)
        expired_ns = self._now_ns - self._catalogue.keep_deleted_ns
        condition = "FROM entries WHERE until_ns <= ?"
        self._report.expired = self._catalogue.number(f"SELECT count(*) {condition}", (expired_ns,))
        if self._options.dry_run:
            return
        with self._catalogue.transaction():
            for path in gone:
                end_entry(self._catalogue, path, self._now_ns)
            self._catalogue.execute(f"DELETE {condition}", (expired_ns,))
            self._catalogue.execute(
                "DELETE FROM objects WHERE id NOT IN (SELECT object FROM entries WHERE object IS NOT NULL)"
                " AND id NOT IN (SELECT object FROM copies)"
            )

    def _is_unknown(self, path: bytes) -> bool:
        return any(at == ROOT or path == at or path.startswith(at + b"/") for at in self._unknown)

    def _count_by_map(self, paths: Iterable[bytes]) -> Counter[SourceMap | None]:
        return Counter(self._maps.map_of(path) for path in paths)

    def _check_share(self, gone: list[bytes], *, kept: int) -> None:
        lost = self._count_by_map(gone)
        seen = self._count_by_map(
            path_of_key(key) for (key,) in self._catalogue.rows("SELECT sort_key FROM temp.seen")
        )
        for item in lost:
            before, now = self._before[item], seen[item] + kept
            # What no map holds any more was unmapped on purpose; what was only renamed is seen elsewhere.
            if item is not None and before - now > before * self._options.max_deleted:
                raise SourceError(
                    f"{printable(item.real)}: of {before} names {now} are left; is it mounted? Nothing counts "
                    "as deleted; allow it with --max-deleted 100%"
                )

    def _problem(self, path: bytes, message: str) -> None:
        self._report.problems.append(Problem(path, message))

    def _progress(self, path: bytes, info: os.stat_result) -> None:
        if self._options.on_progress is not None:
            self._options.on_progress(path, info.st_size if stat.S_ISREG(info.st_mode) else 0)


def _looks_changed(info: os.stat_result, old: Entry) -> bool:
    return (info.st_size, info.st_mtime_ns) != (old.size, old.mtime_ns)
