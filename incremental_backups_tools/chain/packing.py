"""One pass over the source: everything that is new goes into volumes, everything that changed is recorded.

The walk and the parent's index are sorted streams; a merge join pairs them. For each pair this decides what
happened, has content stored, and tells the recorder.
"""

from __future__ import annotations

import stat
import time
from bisect import insort
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial

import msgspec

from incremental_backups_tools.archive.members import special_member
from incremental_backups_tools.chain.content import ContentStorer, StoredContent
from incremental_backups_tools.chain.index_cache import CachedEntry, CachedLines
from incremental_backups_tools.chain.look_ahead import MAX_STEPS, FileAhead, LookAhead, Step, run_in_order
from incremental_backups_tools.chain.plain_files import PlainFiles
from incremental_backups_tools.chain.recording import Placement, Recorder
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.exceptions import LimitExceededError, SourceError
from incremental_backups_tools.tree.diff import METADATA, classify
from incremental_backups_tools.tree.entry import (
    DIRECTORY,
    FILE,
    Entry,
    Location,
    SignatureRef,
    printable,
    sort_key,
)
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.links import HardLinks
from incremental_backups_tools.tree.listing import make_reader
from incremental_backups_tools.tree.metadata import capture_unread, type_of
from incremental_backups_tools.tree.read_ahead import ReadAhead, ReadFile, ReadFiles
from incremental_backups_tools.tree.unchanged import for_next_time, is_unchanged
from incremental_backups_tools.tree.walk import AnyWalk, Found, Passed


class PackingResult(msgspec.Struct):
    """What one pass could not do, and what is worth a word."""

    problems: list[Problem] = msgspec.field(default_factory=list)
    notices: list[Problem] = msgspec.field(default_factory=list)


class Packer:
    """Packs one backup.

    Args:
        is_full: whether the archive is to hold the whole tree.
        storer: takes the content of regular files.
        whole: the volumes for everything else that is new.
        recorder: is told of every name.
        on_progress: called with each name and the bytes read so far.
    """

    def __init__(
        self,
        *,
        is_full: bool,
        storer: ContentStorer,
        whole: VolumeSet,
        recorder: Recorder,
        on_progress: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self.result = PackingResult()
        self._is_full = is_full
        self._storer = storer
        self._whole = whole
        self._recorder = recorder
        self._on_progress = on_progress
        self._links = HardLinks()
        self._link_targets: dict[bytes, ResolvedEntry] = {}
        self._delta_bases: dict[bytes, bytes] = {}  # of deltas of another path's content
        self._left_out_of_tar: set[bytes] = set()  # files with several names that a full's archive lacks
        self._unlisted: list[bytes] = []  # in sort order

    def pack(
        self, walk: AnyWalk, parent: CachedLines | None, *, pool: Executor | None = None
    ) -> PackingResult:
        """Run the pass.

        Args:
            pool: where changed files are prepared; None is nowhere.

        Raises:
            SourceError: the root cannot be read.
            RepositoryError: a volume cannot be written.
        """
        if parent is None:
            for item in ReadAhead(walk, self._storer.small_file_signing):
                if isinstance(item, ReadFiles):
                    self._pack_files(item)
                elif not self._is_socket(item):
                    self._present(item, None)
            return self.result
        signing = self._storer.small_file_signing
        reader = make_reader(signing)
        reader.close()  # what it reads are single files, which are not worth a thread
        with walk.keep_open(MAX_STEPS + 1):
            run_in_order(self._steps(walk, parent, self._storer.look_ahead(walk, reader, pool)))
        return self.result

    def _steps(self, walk: AnyWalk, parent: CachedLines, ahead: LookAhead | None) -> Iterator[Step]:
        """What is to be done about each name of the walk and the parent's index, or about many of them."""
        names = iter(walk)
        found: Found | None = None
        old: CachedEntry | None = None
        while True:
            if found is None and old is None:
                yield from self._passed_over(walk, parent)
            found = next(names, None) if found is None else found
            old = next(parent, None) if old is None else old
            if found is None and old is None:
                return
            if found is not None and old is not None and self._is_same_directory(found, old):
                yield Step(partial(self._same_directory, found, old))
                found = old = None
                continue
            order = _compare(found, old)
            yield self._step(found if order <= 0 else None, old if order >= 0 else None, ahead)
            found, old = None if order <= 0 else found, None if order >= 0 else old

    def _step(self, found: Found | None, old: CachedEntry | None, ahead: LookAhead | None) -> Step:
        if found is None or self._is_socket(found):
            return Step(partial(self._absent, old) if old is not None else _nothing)
        file = self._begin(found, old.resolved, ahead) if old is not None and ahead is not None else None
        return Step(partial(self._present_ahead, found, old, file), file)

    def _begin(self, found: Found, old: ResolvedEntry, ahead: LookAhead) -> FileAhead | None:
        """Begin to read a file that will most likely be stored as a delta of *old*."""
        is_file = stat.S_ISREG(found.stat.st_mode) and old.entry.type == FILE
        if (
            not is_file
            or _needs_no_look(found, old.entry, None)
            or not self._storer.may_be_edited(found, old)
        ):
            return None
        return ahead.begin(found, old)

    def _is_socket(self, found: Found) -> bool:
        """Whether it is nothing that can be stored."""
        if type_of(found.stat.st_mode) is not None:
            return False
        self.result.notices.append(Problem(found.rel_path, "a socket, skipped"))
        return True

    def _is_same_directory(self, found: Found, old: CachedEntry) -> bool:
        """Whether both are one directory without a change, as far as that shows without a closer look."""
        return (
            found.listing is not None and not self._unlisted and found.listing.agrees(found.rel_path, old.raw)
        )

    def _same_directory(self, found: Found, old: CachedEntry) -> None:
        self._recorder.same_directory(found.rel_path, old)
        self._progress(found)

    def _passed_over(self, walk: AnyWalk, parent: CachedLines) -> Iterator[Step]:
        """Take together what is next in the walk and in the parent's index, as far as nothing changed."""
        while not self._unlisted and parent.has_more():
            passed = walk.pass_over(parent.block, parent.offset)
            if passed is None:
                return
            lines = parent.take(passed.count, passed.end)
            yield Step(partial(self._same_lines, lines, passed), held_len=len(lines))

    def _same_lines(self, lines: bytes, passed: Passed) -> None:
        self._recorder.same_lines(lines, passed)
        if self._on_progress is not None:
            for path, size in passed.names():
                self._on_progress(path, size)

    def problem(self, path: bytes, message: str) -> None:
        """Note what could not be read."""
        self.result.problems.append(Problem(path, message))

    def unlisted(self, path: bytes) -> None:
        """Note a directory of which the walk shows nothing, or nothing more: its rest is not gone."""
        # The walk may be ahead of what is done about its names.
        insort(self._unlisted, path, key=sort_key)

    def _is_unknown(self, path: bytes) -> bool:
        """Whether *path* is or lies below a directory that could not be looked at. Asked in sort order."""
        while self._unlisted:
            directory = self._unlisted[0]
            if path == directory or path.startswith(directory + b"/"):
                return True
            if sort_key(path) < sort_key(directory):
                return False
            del self._unlisted[0]
        return False

    def left_out(self, path: bytes) -> None:
        """Note a directory that the walk passes over."""
        self.result.notices.append(Problem(path, "the repository or its cache, left out"))

    # --- what the walk no longer shows -----------------------------------------------------------------

    def _absent(self, old: CachedEntry) -> None:
        if self._is_unknown(old.path):
            self._keep(old)
        else:
            self._recorder.gone(old.resolved.entry)

    def _keep(self, old: CachedEntry) -> None:
        """What could not be looked at stays as it is in the parent."""
        resolved = old.resolved
        entry = resolved.entry
        if entry.link_of is None:
            self._recorder.same(old)
            return
        # The name it was a link of may be gone or another file by now: from here on it stands for itself.
        kept = msgspec.structs.replace(entry, link_of=None)
        if entry.type == FILE:
            kept = msgspec.structs.replace(kept, digest=resolved.content_digest)
        else:
            self._whole.add(special_member(kept))
        self._recorder.detached(resolved.with_entry(kept), entry)

    # --- what the walk shows ---------------------------------------------------------------------------

    def _present_ahead(self, found: Found, old: CachedEntry | None, ahead: FileAhead | None) -> None:
        read = ahead.read(found) if ahead is not None else None
        self._present(found, old, read, ahead.begin_ns if ahead is not None else 0)

    def _present(
        self,
        found: Found,
        old: CachedEntry | None,
        read: ReadFile | None = None,
        begin_ns: int = 0,
    ) -> None:
        if self._is_unknown(found.rel_path):
            if old is not None:
                self._keep(old)
            return
        link_of = self._links.earlier_link(found.rel_path, found.stat)
        if old is not None and _needs_no_look(found, old.resolved.entry, link_of):
            self._unchanged(found, old)
        else:
            self._look_at(found, old, link_of, read, begin_ns)
        if not found.listed:
            self.unlisted(found.rel_path)

    def _pack_files(self, read: ReadFiles) -> None:
        """Pack files that were read ahead, in a full: many together, and each that is not so plain by itself."""
        while len(read):
            stored = self._storer.store_plain(read) if not self._unlisted else None
            if stored is not None and stored.count:
                self._pack_plain(read.until(read.begin + stored.count), stored)
                read = read.since(read.begin + stored.count)
            if len(read):
                self._present(read.found(read.begin), None, read.file(read.begin), read.begin_ns)
                read = read.since(read.begin + 1)

    def _pack_plain(self, read: ReadFiles, stored: PlainFiles) -> None:
        self._recorder.plain_files(read.prefix, read.file(read.begin).name, stored)
        if self._on_progress is not None:
            for position in range(read.begin, read.end):
                file = read.file(position)
                self._on_progress(read.prefix + file.name, len(file.content))

    def _look_at(
        self,
        found: Found,
        old: CachedEntry | None,
        link_of: bytes | None,
        read: ReadFile | None,
        begin_ns: int,
    ) -> None:
        before = old.resolved if old is not None else None
        now_ns = time.time_ns()
        placement = None
        try:
            if type_of(found.stat.st_mode) == FILE and link_of is None:
                now_ns = begin_ns if read is not None else now_ns
                resolved, placement = self._file(found, before, read)
            else:
                now_ns = found.seen_ns
                resolved = self._special(found, before, link_of)
        except (SourceError, LimitExceededError) as error:
            self._links.forget(found.rel_path, found.stat)
            self.problem(found.rel_path, str(error).removeprefix(f"{printable(found.rel_path)}: "))
            if old is not None:
                self._keep(old)
            if stat.S_ISDIR(found.stat.st_mode):
                # Its old entry, if any, may be no directory: nothing new can lie below it.
                self.unlisted(found.rel_path)
            return
        is_linked = found.stat.st_nlink > 1
        entry = resolved.entry
        if (
            is_linked
            and entry.link_of is None
            and self._links.confirm(found.rel_path, found.stat, entry)
            and entry.type == FILE
        ):
            self._link_targets[entry.path] = resolved
        resolved = resolved.with_entry(for_next_time(resolved.entry, now_ns))
        was = before.entry if before is not None else None
        if placement is not None:
            self._recorder.file(resolved, was, placement, is_linked=is_linked)
        else:
            self._recorder.special(resolved, was, is_archived=self._is_archived(entry), is_linked=is_linked)
        self._progress(found)

    def _unchanged(self, found: Found, old: CachedEntry) -> None:
        entry = old.resolved.entry
        if entry.type != DIRECTORY and found.stat.st_nlink > 1 and entry.link_of is None:
            self._link_targets[entry.path] = old.resolved
        self._recorder.same(old)
        self._progress(found)

    def _file(
        self, found: Found, before: ResolvedEntry | None, read: ReadFile | None
    ) -> tuple[ResolvedEntry, Placement]:
        """Store a regular file; return what it resolves to, and where it is."""
        parent = before if before is not None and before.entry.type == FILE else None
        stored = self._storer.store(found, parent, read)
        entry = stored.entry
        if not stored.stable:
            entry = msgspec.structs.replace(entry, unstable=True, change_key=None)
            self.problem(found.rel_path, "changed while it was read; stored as the last read found it")
        if stored.known is not None:
            return self._known_elsewhere(found, entry, stored)
        return self._of_its_own(entry, parent, stored)

    def _of_its_own(
        self, entry: Entry, parent: ResolvedEntry | None, stored: StoredContent
    ) -> tuple[ResolvedEntry, Placement]:
        """A file that stands on what its path had, on another path of the parent, or on nothing."""
        if stored.data is not None and not stored.is_delta:
            resolved = ResolvedEntry(
                entry, (stored.data,), _sig_locations(stored.sig), _sig_digest(stored.sig), entry.digest
            )
            return resolved, Placement(stored.data, sig=stored.sig)
        source = stored.base.path if stored.base is not None else None
        parent = stored.base if stored.base is not None else parent
        assert parent is not None  # only then there is anything to build on
        own = (stored.data,) if stored.data is not None else ()
        sigs = parent.sigs if stored.data is None else parent.sigs + _sig_locations(stored.sig)
        sig_digest = parent.sig_digest if stored.data is None else _sig_digest(stored.sig)
        resolved = ResolvedEntry(
            entry, parent.data + own, sigs if sig_digest else (), sig_digest, entry.digest
        )
        source = parent.entry.link_of if source is None else source
        if stored.is_delta and source is not None:
            self._delta_bases[entry.path] = source
        return resolved, Placement(stored.data, is_delta=stored.is_delta, sig=stored.sig, source=source)

    def _known_elsewhere(
        self, found: Found, entry: Entry, stored: StoredContent
    ) -> tuple[ResolvedEntry, Placement]:
        """A file whose content another path has: one of the parent, or one that this backup has stored."""
        assert stored.known is not None  # the caller looked
        holder = stored.known.resolved
        if self._is_full and found.stat.st_nlink > 1:
            self._left_out_of_tar.add(entry.path)
        if stored.known.is_parent:
            placement = Placement(source=holder.path)
        else:
            # The one delta stands on the same file of the parent for both.
            source = self._delta_bases.get(holder.path, holder.path) if stored.is_delta else None
            placement = Placement(stored.data, stored.is_delta, stored.sig, source, twin=holder.path)
        return holder.with_entry(entry), placement

    def _special(self, found: Found, before: ResolvedEntry | None, link_of: bytes | None) -> ResolvedEntry:
        """Store a directory, symlink, FIFO, device node or hard link; return what it resolves to."""
        if link_of is not None and type_of(found.stat.st_mode) == FILE:
            target = self._link_targets.get(link_of)
            if target is None:
                raise SourceError(
                    f"{printable(found.rel_path)}: the file it is a hard link of could not be read"
                )
            resolved = target.with_entry(_further_name(target.entry, link_of, found))
        else:
            resolved = ResolvedEntry(capture_unread(found, link_of=link_of))
        entry = resolved.entry
        op = classify(entry, before.entry if before is not None else None)
        if op not in (None, METADATA) and self._is_archived(entry):
            self._whole.add(special_member(entry))
        return resolved

    def _is_archived(self, entry: Entry) -> bool:
        """Whether an archive may have what is no regular file. A link in one needs its target there."""
        return entry.link_of is None or (self._is_full and entry.link_of not in self._left_out_of_tar)

    def _progress(self, found: Found) -> None:
        if self._on_progress is not None:
            self._on_progress(found.rel_path, found.stat.st_size if stat.S_ISREG(found.stat.st_mode) else 0)


def _nothing() -> None:
    """Of a socket where nothing was."""


def _compare(found: Found | None, old: CachedEntry | None) -> int:
    """Below 0 where *found* comes first, above 0 where *old* does, 0 where both are one path."""
    if found is None or old is None:
        return 1 if found is None else -1
    left, right = sort_key(found.rel_path), sort_key(old.path)
    return (left > right) - (left < right)


def _further_name(entry: Entry, link_of: bytes, found: Found) -> Entry:
    """The entry of a hard link of a file whose inode has been read: what its name leads to by now does not matter."""
    return Entry(
        path=found.rel_path,
        type=FILE,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        user=entry.user,
        group=entry.group,
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        link_of=link_of,
        xattrs=entry.xattrs,
        acl=entry.acl,
        ctime_ns=found.stat.st_ctime_ns,
        inode=found.stat.st_ino,
        dev=found.stat.st_dev,
    )


def _needs_no_look(found: Found, old: Entry, link_of: bytes | None) -> bool:
    if found.remote is None:
        return is_unchanged(found.stat, old, link_of)
    # What is read from elsewhere has no ctime; its key stands in the states, too.
    return (
        found.remote.change_key is not None
        and found.remote.change_key == old.change_key
        and old.link_of is None
        and (old.type, old.size, old.mtime_ns) == (FILE, found.stat.st_size, found.stat.st_mtime_ns)
        and (old.mode, old.uid, old.gid)
        == (stat.S_IMODE(found.stat.st_mode), found.stat.st_uid, found.stat.st_gid)
        and _has_nothing_more(old)
    )


def _has_nothing_more(entry: Entry) -> bool:
    """Whether a file has only what any other machine tells."""
    return not (entry.xattrs or entry.acl or entry.flags or entry.user or entry.group)


def _sig_locations(sig: SignatureRef | None) -> tuple[Location, ...]:
    return (sig.location,) if sig is not None else ()


def _sig_digest(sig: SignatureRef | None) -> str | None:
    return sig.digest if sig is not None else None
