"""One pass over the source: everything that is new goes into volumes, everything that changed into lines.

The walk and the parent's index are sorted streams; a merge join pairs them. For each pair this decides what
happened, has content stored, and writes three streams in the same order: the state's lines, the replay list,
and the resolved index of the new backup.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from incremental_backups_tools.archive.members import special_member
from incremental_backups_tools.chain.content import ContentStorer, StoredContent
from incremental_backups_tools.chain.index_cache import CachedEntry, IndexCacheWriter
from incremental_backups_tools.chain.replay import ReplayList
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.state import FULL, Counts, StateLine, encode_state_line
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.exceptions import LimitExceededError, SourceError
from incremental_backups_tools.tree.diff import (
    CREATED,
    DELETED,
    METADATA,
    UPDATED,
    classify,
    merge_join,
)
from incremental_backups_tools.tree.entry import (
    DIRECTORY,
    FILE,
    Entry,
    IndexDigest,
    Location,
    SignatureRef,
    printable,
    sort_key,
)
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.metadata import capture, type_of
from incremental_backups_tools.tree.records import RecordWriter
from incremental_backups_tools.tree.walk import Found

# A write within one tick of the clock that stamps files may leave size, mtime and ctime as they are. Kernels
# tick every 1 to 10 ms, but the clock may be a file server's; some file systems know seconds alone.
CLOCK_GRANULARITY_NS: Final = 1 * 10**9
COARSE_GRANULARITY_NS: Final = 2 * 10**9


@dataclass(slots=True)
class PackingResult:
    """What one pass found. ``counts`` are of the new tree and its changes, ``total_bytes`` of all its files."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Counts.__struct_fields__, 0))
    total_bytes: int = 0
    references: int = 0
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)


class Packer:
    """Packs one backup.

    Args:
        kind: ``full`` or ``incremental``.
        storer: takes the content of regular files.
        whole: the volumes for everything else that is new.
        lines: receives the state's lines.
        index: receives the resolved index.
        digest: the parent's index digest; it becomes the new one.
        on_progress: called with each name and the bytes read so far.
    """

    def __init__(
        self,
        *,
        kind: str,
        storer: ContentStorer,
        whole: VolumeSet,
        lines: RecordWriter,
        index: IndexCacheWriter,
        replay: ReplayList,
        digest: IndexDigest,
        on_progress: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self.result = PackingResult()
        self._kind = kind
        self._storer = storer
        self._whole = whole
        self._lines = lines
        self._index = index
        self._replay = replay
        self._digest = digest
        self._on_progress = on_progress
        self._links = HardLinks()
        self._link_targets: dict[bytes, ResolvedEntry] = {}
        self._replaced: set[bytes] = set()  # files with several names that replaying makes anew
        self._delta_bases: dict[bytes, bytes] = {}  # of deltas of another path's content
        self._left_out_of_tar: set[bytes] = set()  # files with several names that a full's archive lacks
        self._unlisted: deque[bytes] = deque()

    def pack(self, walk: Iterable[Found], parent: Iterable[CachedEntry]) -> PackingResult:
        """Run the pass.

        Raises:
            SourceError: the root cannot be read.
            RepositoryError: a volume cannot be written.
        """
        pairs = merge_join(walk, parent, new_path=lambda item: item.rel_path, old_path=lambda item: item.path)
        for found, old in pairs:
            if found is not None and type_of(found.stat.st_mode) is None:
                self.result.notices.append(Problem(found.rel_path, "a socket, skipped"))
                found = None
            if found is not None:
                self._present(found, old)
            elif old is not None:
                self._absent(old)
        return self.result

    def problem(self, path: bytes, message: str) -> None:
        """Note what could not be read."""
        self.result.problems.append(Problem(path, message))

    def unlisted(self, path: bytes) -> None:
        """Note a directory of which the walk shows nothing, or nothing more: its rest is not gone."""
        self._unlisted.append(path)

    def _is_unknown(self, path: bytes) -> bool:
        """Whether *path* is or lies below a directory that could not be looked at. Asked in sort order."""
        while self._unlisted:
            directory = self._unlisted[0]
            if path == directory or path.startswith(directory + b"/"):
                return True
            if sort_key(path) < sort_key(directory):
                return False
            self._unlisted.popleft()
        return False

    def left_out(self, path: bytes) -> None:
        """Note a directory that the walk passes over."""
        self.result.notices.append(Problem(path, "the repository or its cache, left out"))

    # --- what the walk no longer shows -----------------------------------------------------------------

    def _absent(self, old: CachedEntry) -> None:
        if self._is_unknown(old.path):
            self._keep(old)
            return
        entry = old.resolved.entry
        self._replay.delete(entry.path, is_directory=entry.type == DIRECTORY)
        self._emit(StateLine(DELETED, entry))
        self._digest.remove(entry)

    def _keep(self, old: CachedEntry) -> None:
        """What could not be looked at stays as it is in the parent."""
        resolved = old.resolved
        entry = resolved.entry
        if entry.type == DIRECTORY:
            self._replay.entry(entry, changed=False, metadata=False)
        if entry.link_of is None:
            self._count(entry)
            self._index.write_cached(old)
            return
        # The name it was a link of may be gone or another file by now: from here on it stands for itself.
        kept = msgspec.structs.replace(entry, link_of=None)
        if entry.type == FILE:
            kept = msgspec.structs.replace(kept, digest=resolved.content_digest)
            self._replay.place(entry.path, entry.link_of)
        else:
            self._whole.add(special_member(kept))
            self._replay.delete(entry.path, is_directory=False)
        self._replay.entry(kept, changed=True, metadata=entry.type == FILE)
        self._digest.remove(entry)
        self._digest.add(kept)
        self._count(kept)
        self._emit(StateLine(UPDATED, _with(kept, None, entry.link_of if entry.type == FILE else None, None)))
        self._index.write(resolved.with_entry(kept))

    # --- what the walk shows ---------------------------------------------------------------------------

    def _present(self, found: Found, old: CachedEntry | None) -> None:
        if self._is_unknown(found.rel_path):
            if old is not None:
                self._keep(old)
            return
        link_of = self._links.earlier_link(found.rel_path, found.stat)
        if old is not None and is_unchanged(found.stat, old.resolved.entry, link_of):
            self._unchanged(found, old)
        else:
            self._look_at(found, old, link_of)
        if not found.listed:
            self.unlisted(found.rel_path)

    def _look_at(self, found: Found, old: CachedEntry | None, link_of: bytes | None) -> None:
        before = old.resolved if old is not None else None
        now_ns = time.time_ns()
        try:
            if type_of(found.stat.st_mode) == FILE and link_of is None:
                line, resolved = self._file(found, before)
            else:
                line, resolved = self._special(found, before, link_of)
        except (SourceError, LimitExceededError) as error:
            self._links.forget(found.rel_path, found.stat)
            self.problem(found.rel_path, str(error).removeprefix(f"{printable(found.rel_path)}: "))
            if old is not None:
                self._keep(old)
            if stat.S_ISDIR(found.stat.st_mode):
                # Its old entry, if any, may be no directory: nothing new can lie below it.
                self.unlisted(found.rel_path)
            return
        self._changed(found, before, line, resolved, now_ns)

    def _unchanged(self, found: Found, old: CachedEntry) -> None:
        entry = old.resolved.entry
        self._count(entry)
        if entry.type == DIRECTORY:
            self._replay.entry(entry, changed=False, metadata=False)
        elif found.stat.st_nlink > 1 and entry.link_of is None:
            self._link_targets[entry.path] = old.resolved
        self._index.write_cached(old)
        self._progress(found)

    def _changed(
        self,
        found: Found,
        before: ResolvedEntry | None,
        line: StateLine | None,
        resolved: ResolvedEntry,
        now_ns: int,
    ) -> None:
        entry = resolved.entry
        if before is not None:
            self._digest.remove(before.entry)
        self._digest.add(entry)
        if line is not None:
            self._emit(line)
            if line.op != METADATA and found.stat.st_nlink > 1 and entry.type != DIRECTORY:
                self._replaced.add(entry.path)
        self._count(entry)
        if found.stat.st_nlink > 1 and entry.link_of is None and entry.type == FILE:
            self._link_targets[entry.path] = resolved
        self._index.write(_for_cache(resolved, now_ns))
        self._progress(found)

    def _file(self, found: Found, before: ResolvedEntry | None) -> tuple[StateLine | None, ResolvedEntry]:
        """Store a regular file; return the state's line, None where nothing changed, and what it resolves to."""
        parent = before if before is not None and before.entry.type == FILE else None
        stored = self._storer.store(found, parent)
        entry = stored.entry
        if not stored.stable:
            entry = msgspec.structs.replace(entry, unstable=True)
            self.problem(found.rel_path, "changed while it was read; stored as the last read found it")
        if stored.known is not None:
            return self._known_elsewhere(found, before, stored)
        path = entry.path
        if stored.data is None or stored.is_delta:
            assert parent is not None  # only then there is anything to build on
            own = (stored.data,) if stored.data is not None else ()
            sigs = parent.sigs if stored.data is None else parent.sigs + _sig_locations(stored.sig)
            sig_digest = parent.sig_digest if stored.data is None else _sig_digest(stored.sig)
            resolved = ResolvedEntry(
                entry, parent.data + own, sigs if sig_digest else (), sig_digest, entry.digest
            )
            source = parent.entry.link_of
        else:
            own = (stored.data,)
            resolved = ResolvedEntry(
                entry, own, _sig_locations(stored.sig), _sig_digest(stored.sig), entry.digest
            )
            source = None
        op = classify(entry, before.entry if before is not None else None)
        if op is None:
            return None, resolved
        if stored.is_delta and source is not None:
            self._delta_bases[path] = source
        self._replay_file(
            entry, op, before, source if source is not None else path, stored.data, stored.is_delta
        )
        if op == METADATA:
            return StateLine(op, entry), resolved
        return StateLine(op, _with(entry, stored.data, source, stored.sig)), resolved

    def _known_elsewhere(
        self, found: Found, before: ResolvedEntry | None, stored: StoredContent
    ) -> tuple[StateLine, ResolvedEntry]:
        """A file whose content another path has: one of the parent, or one that this backup has stored."""
        assert stored.known is not None  # the caller looked
        entry, holder = stored.entry, stored.known.resolved
        op = classify(entry, before.entry if before is not None else None)
        assert op in (CREATED, UPDATED)  # or it would have the content that it had
        if op == CREATED and before is not None:
            self._replay.delete(entry.path, is_directory=before.entry.type == DIRECTORY)
        source = None
        if stored.known.is_parent:
            source = holder.path
            self._replay.place(entry.path, source)
        else:
            if stored.is_delta:
                # The one delta stands on the same file of the parent for both.
                source = self._delta_bases.get(holder.path, holder.path)
            self._replay.duplicate(entry.path, holder.path)
        if self._kind == FULL and found.stat.st_nlink > 1:
            self._left_out_of_tar.add(entry.path)
        self._replay.entry(entry, changed=True, metadata=True)
        line = StateLine(op, _with(entry, stored.data, source, stored.sig))
        return line, holder.with_entry(entry)

    def _replay_file(
        self,
        entry: Entry,
        op: str,
        before: ResolvedEntry | None,
        source: bytes,
        data: object | None,
        is_delta: bool,
    ) -> None:
        if op == CREATED and before is not None:
            self._replay.delete(entry.path, is_directory=before.entry.type == DIRECTORY)
        if is_delta:
            self._replay.patch(entry.path, source)
        elif op == UPDATED and data is None:
            self._replay.place(entry.path, source)
        self._replay.entry(entry, changed=True, metadata=data is None or is_delta)

    def _special(
        self, found: Found, before: ResolvedEntry | None, link_of: bytes | None
    ) -> tuple[StateLine | None, ResolvedEntry]:
        """Store a directory, symlink, FIFO, device node or hard link."""
        try:
            entry = capture(found, found.stat, link_of=link_of)
        except (OSError, ValueError) as error:
            raise SourceError(f"{printable(found.rel_path)}: cannot read its metadata: {error}") from error
        op = classify(entry, before.entry if before is not None else None)
        resolved = ResolvedEntry(entry)
        if entry.link_of is not None and entry.type == FILE:
            target = self._link_targets.get(entry.link_of)
            if target is None:
                raise SourceError(f"{printable(entry.path)}: the file it is a hard link of could not be read")
            resolved = ResolvedEntry(
                entry, target.data, target.sigs, target.sig_digest, target.content_digest
            )
        if op is None:
            if entry.type == DIRECTORY:
                self._replay.entry(entry, changed=False, metadata=False)
            elif entry.link_of in self._replaced:
                self._replay.entry(entry, changed=True, metadata=True)
            return None, resolved
        if op == METADATA:
            self._replay.entry(entry, changed=True, metadata=entry.type != DIRECTORY)
            return StateLine(op, entry), resolved
        # A link in an archive needs its target there.
        is_archived = self._kind == FULL and entry.link_of not in self._left_out_of_tar
        if entry.link_of is None or is_archived:
            self._whole.add(special_member(entry))
        if before is not None:
            self._replay.delete(entry.path, is_directory=before.entry.type == DIRECTORY)
        if entry.link_of is not None and not is_archived:
            self._replay.link(entry.path, entry.link_of)
        self._replay.entry(entry, changed=True, metadata=False)
        return StateLine(op, entry), resolved

    # --- what comes out --------------------------------------------------------------------------------

    def _emit(self, line: StateLine) -> None:
        self._lines.write(encode_state_line(line, kind=self._kind))
        if line.op != DELETED and (line.entry.link_of is not None or line.entry.source is not None):
            self.result.references += 1
        self.result.counts[_COUNT_OF_OP[line.op]] += 1

    def _count(self, entry: Entry) -> None:
        counts = self.result.counts
        counts["entries"] += 1
        if entry.type == DIRECTORY:
            counts["dirs"] += 1
        elif entry.type == FILE:
            counts["files"] += 1
            if entry.link_of is None:
                self.result.total_bytes += entry.size

    def _progress(self, found: Found) -> None:
        if self._on_progress is not None:
            self._on_progress(found.rel_path, found.stat.st_size if stat.S_ISREG(found.stat.st_mode) else 0)


_COUNT_OF_OP: Final = {CREATED: "created", UPDATED: "updated", METADATA: "metadata", DELETED: "deleted"}


def is_unchanged(info: os.stat_result, old: Entry, link_of: bytes | None) -> bool:
    """Whether a name needs no second look: nothing that a change would leave a mark on differs.

    An entry without ``ctime_ns`` is always looked at: it was racy, unstable, or came from a state.
    """
    return (
        old.ctime_ns == info.st_ctime_ns
        and old.mtime_ns == info.st_mtime_ns
        and old.inode == info.st_ino
        and type_of(info.st_mode) == old.type
        and (old.type != FILE or old.size == info.st_size)
        and old.mode == stat.S_IMODE(info.st_mode)
        and old.uid == info.st_uid
        and old.gid == info.st_gid
        and old.link_of == link_of
    )


def _for_cache(resolved: ResolvedEntry, now_ns: int) -> ResolvedEntry:
    """*resolved* without its ``ctime_ns`` if that cannot vouch for it the next time."""
    entry = resolved.entry
    newest = max(entry.mtime_ns, entry.ctime_ns or 0)
    is_coarse = entry.mtime_ns % 10**9 == 0 and (entry.ctime_ns or 0) % 10**9 == 0
    granularity = COARSE_GRANULARITY_NS if is_coarse else CLOCK_GRANULARITY_NS
    if entry.unstable or newest > now_ns - granularity:
        entry = msgspec.structs.replace(entry, ctime_ns=None)
    return resolved.with_entry(entry)


def _with(entry: Entry, data: Location | None, source: bytes | None, sig: SignatureRef | None) -> Entry:
    return msgspec.structs.replace(entry, data=data, source=source, sig=sig)


def _sig_locations(sig: SignatureRef | None) -> tuple[Location, ...]:
    return (sig.location,) if sig is not None else ()


def _sig_digest(sig: SignatureRef | None) -> str | None:
    return sig.digest if sig is not None else None
