"""What a backup says of each name: a line of its state, records of its replay list, an entry of its index.

Whoever makes a backup, out of a source or out of other backups, meets every name of the new tree and every one
that goes, together in sort order, has content stored, and tells the recorder. Lines, replay list and index come
out in the same order.
"""

from __future__ import annotations

from typing import Final

import msgspec

from incremental_backups_tools.chain.index_cache import CachedEntry, IndexCacheWriter, encode_resolved_record
from incremental_backups_tools.chain.plain_files import PlainFiles
from incremental_backups_tools.chain.replay import ReplayList
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.state import (
    FULL,
    Counts,
    StateLine,
    encode_state_line,
    encode_state_record,
)
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, UPDATED, classify
from incremental_backups_tools.tree.entry import (
    DIRECTORY,
    FILE,
    Entry,
    EntryLine,
    IndexDigest,
    Location,
    SignatureRef,
    line_of_entry,
    text_or_b64,
)
from incremental_backups_tools.tree.records import RecordWriter
from incremental_backups_tools.tree.walk import Passed

_COUNT_OF_OP: Final = {CREATED: "created", UPDATED: "updated", METADATA: "metadata", DELETED: "deleted"}


class Placement(msgspec.Struct, frozen=True):
    """Where a regular file's content is.

    Attributes:
        data: in this backup; None where it is the parent's.
        is_delta: *data* is a delta.
        sig: the new signature.
        source: the path in the parent's index whose content it has, or is a delta of; None for its own.
        twin: the path of the new tree that this backup has stored the content for.
    """

    data: Location | None = None
    is_delta: bool = False
    sig: SignatureRef | None = None
    source: bytes | None = None
    twin: bytes | None = None


class Tally(msgspec.Struct):
    """What was recorded. ``counts`` are of the new tree and its changes, ``total_bytes`` of all its files."""

    counts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(Counts.__struct_fields__, 0))
    total_bytes: int = 0
    references: int = 0


class Recorder:
    """Records one backup.

    Args:
        kind: ``full`` or ``incremental``.
        lines: receives the state's lines.
        index: receives the resolved index.
        digest: the parent's index digest; it becomes the new one.
    """

    def __init__(
        self,
        *,
        kind: str,
        lines: RecordWriter,
        index: IndexCacheWriter,
        replay: ReplayList,
        digest: IndexDigest,
    ) -> None:
        self.tally = Tally()
        self._kind = kind
        self._lines = lines
        self._index = index
        self._replay = replay
        self._digest = digest
        self._replaced: set[bytes] = set()  # files with several names that replaying makes anew

    def gone(self, entry: Entry) -> None:
        """A name of the parent that the new tree does not have."""
        self._replay.delete(entry.path, is_directory=entry.type == DIRECTORY)
        self._emit(StateLine(DELETED, entry))
        self._digest.remove(entry)
        self._index.leave_out(entry)

    def same(self, cached: CachedEntry) -> None:
        """A name that is as it was, and so is every name of the file it stands for."""
        entry = cached.resolved.entry
        if entry.type == DIRECTORY:
            self._replay.entry(entry, changed=False, metadata=False)
        self._count(entry)
        self._index.write_cached(cached)

    def same_directory(self, path: bytes, cached: CachedEntry) -> None:
        """A directory that is as it was."""
        self._replay.same_directory(path, lambda: cached.resolved.entry)
        self.tally.counts["entries"] += 1
        self.tally.counts["dirs"] += 1
        self._index.write_cached(cached)

    def same_lines(self, lines: bytes, passed: Passed) -> None:
        """Names that are as they were, none of them a directory or one of several of a file: their cached lines."""
        counts = self.tally.counts
        counts["entries"] += passed.count
        counts["files"] += passed.files
        self.tally.total_bytes += passed.total_bytes
        self._index.write_lines(lines, passed.count)

    def file(
        self, resolved: ResolvedEntry, before: Entry | None, placement: Placement, *, is_linked: bool
    ) -> None:
        """A regular file under its first name.

        Args:
            resolved: as it is now, with every location, without the line's own.
            before: what the parent has under that path.
            is_linked: whether it has other names.
        """
        entry = resolved.entry
        op = classify(entry, before)
        raw = None
        if op is not None:
            self._replay_file(entry, op, before, placement)
            record = line_of_entry(entry, None if self._kind == FULL else op)
            if op != METADATA:
                record.data, record.sig = placement.data, placement.sig
                record.from_, record.from_b64 = text_or_b64(placement.source)
                if is_linked:
                    self._replaced.add(entry.path)
            raw = self._emit_record(op, record, resolved, is_reference=placement.source is not None)
        self._present(resolved, before, raw)

    def plain_files(self, prefix: bytes, first_name: bytes, plain: PlainFiles) -> None:
        """Plain files of one directory that the parent does not have, in a full."""
        self._replay.archived(prefix + first_name)
        self._lines.write_block(plain.state, plain.count)
        self._digest.add_sum(plain.digest)
        counts = self.tally.counts
        counts["created"] += plain.count
        counts["entries"] += plain.count
        counts["files"] += plain.count
        self.tally.total_bytes += plain.total_bytes
        self._index.write_new_files(prefix, plain.index, plain.count, plain.rows)

    def special(
        self, resolved: ResolvedEntry, before: Entry | None, *, is_archived: bool, is_linked: bool
    ) -> None:
        """A directory, symlink, FIFO, device node, or another name of a file.

        Args:
            is_archived: an archive of this backup has it, where it was created or changed.
            is_linked: whether it has other names, and this is the first.
        """
        entry = resolved.entry
        op = classify(entry, before)
        if op is None:
            if entry.type == DIRECTORY:
                self._replay.entry(entry, changed=False, metadata=False)
            elif entry.link_of in self._replaced:
                self._replay.entry(entry, changed=True, metadata=True)
        else:
            if op == METADATA:
                self._replay.entry(entry, changed=True, metadata=entry.type != DIRECTORY)
            else:
                if before is not None:
                    self._replay.delete(entry.path, is_directory=before.type == DIRECTORY)
                if entry.link_of is not None and not is_archived:
                    self._replay.link(entry.path, entry.link_of)
                self._replay.entry(entry, changed=True, metadata=False)
                if is_linked and entry.type != DIRECTORY:
                    self._replaced.add(entry.path)
            self._emit(StateLine(op, entry))
        self._present(resolved, before)

    def detached(self, resolved: ResolvedEntry, before: Entry) -> None:
        """Another name *before* of a file that stands for itself from now on, its content unseen and unchanged.

        What is no regular file is in an archive of this backup.
        """
        entry = resolved.entry
        is_file = entry.type == FILE
        if is_file:
            assert before.link_of is not None  # it was another name
            self._replay.place(entry.path, before.link_of)
        else:
            self._replay.delete(entry.path, is_directory=False)
        self._replay.entry(entry, changed=True, metadata=is_file)
        line = msgspec.structs.replace(entry, source=before.link_of if is_file else None)
        self._emit(StateLine(UPDATED, line))
        self._present(resolved, before)

    def _replay_file(self, entry: Entry, op: str, before: Entry | None, placement: Placement) -> None:
        is_archived = placement.data is not None and not placement.is_delta and placement.twin is None
        source = placement.source if placement.source is not None else entry.path
        if op == CREATED and before is not None:
            self._replay.delete(entry.path, is_directory=before.type == DIRECTORY)
        if op != METADATA and not is_archived:
            if placement.twin is not None:
                self._replay.duplicate(entry.path, placement.twin)
            elif placement.is_delta:
                self._replay.patch(entry.path, source)
            else:
                self._replay.place(entry.path, source)
        self._replay.entry(entry, changed=True, metadata=op == METADATA or not is_archived)

    def _present(self, resolved: ResolvedEntry, before: Entry | None, raw: bytes | None = None) -> None:
        if before is not None:
            self._digest.remove(before)
            self._index.leave_out(before)
        self._digest.add(resolved.entry)
        self._count(resolved.entry)
        self._index.write(resolved, raw)

    def _emit(self, line: StateLine) -> None:
        self._lines.write(encode_state_line(line, kind=self._kind))
        if line.op != DELETED and (line.entry.link_of is not None or line.entry.source is not None):
            self.tally.references += 1
        self.tally.counts[_COUNT_OF_OP[line.op]] += 1

    def _emit_record(
        self, op: str, record: EntryLine, resolved: ResolvedEntry, *, is_reference: bool
    ) -> bytes:
        """Write the line of a regular file's first name; return the one that the index has for it."""
        local = record.ctime_ns, record.inode, record.dev
        self._lines.write(encode_state_record(record))
        if is_reference and op != METADATA:
            self.tally.references += 1
        self.tally.counts[_COUNT_OF_OP[op]] += 1
        record.ctime_ns, record.inode, record.dev = local
        return encode_resolved_record(record, resolved)

    def _count(self, entry: Entry) -> None:
        counts = self.tally.counts
        counts["entries"] += 1
        if entry.type == DIRECTORY:
            counts["dirs"] += 1
        elif entry.type == FILE:
            counts["files"] += 1
            if entry.link_of is None:
                self.tally.total_bytes += entry.size
