"""One backup in place of a run of them: the same point in time, on another parent or on none.

A run's last backup is written again as the next generation of itself: as an incremental on what stood before
the run, or, of a whole chain, as a full. The source is not needed. What the run's states say of each path is
composed into one line; whole files, deltas and signatures that are still needed are carried as they lie, several
deltas of one file are composed into one, and what no line refers to any more is gone.

Nothing is believed that was not read back: before the state is published, every file that the new backup holds
anything of is rebuilt out of the repository and compared with its digest.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools._version import __version__
from incremental_backups_tools.archive.members import (
    file_member,
    plain_member,
    sparse_member,
    special_member,
)
from incremental_backups_tools.archive.sparse_map import encode_sparse_map
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.backup_options import DEFAULT_LEVEL
from incremental_backups_tools.chain.deltas import open_composed
from incremental_backups_tools.chain.draft import Draft, describe
from incremental_backups_tools.chain.lanes import Lanes, choose_lanes, files_of
from incremental_backups_tools.chain.policy import delta_pays
from incremental_backups_tools.chain.rebuild import iter_content
from incremental_backups_tools.chain.recording import Placement
from incremental_backups_tools.chain.resolve import (
    ChainState,
    ResolvedEntry,
    RunEntry,
    resolve_run,
    resolve_versions,
)
from incremental_backups_tools.chain.signature_delta import make_signature_delta
from incremental_backups_tools.chain.state import (
    ArchiveFile,
    Counts,
    Sizes,
    StateHeader,
    StateLine,
    StateReader,
)
from incremental_backups_tools.chain.volumes import compressing_pool, default_volume_size
from incremental_backups_tools.delta import DeltaBuilder, Signature
from incremental_backups_tools.exceptions import ChainError, IntegrityError
from incremental_backups_tools.repository.layout import Role
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.diff import METADATA, classify
from incremental_backups_tools.tree.entry import FILE, Entry, Location, SignatureRef, printable
from incremental_backups_tools.tree.sparse import Extents, data_len

_WHOLE_ROLES: Final = (Role.FULL, Role.CREATED)
_PIECE_LEN: Final = 1 << 20
_SPOOL_LEN: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriteOptions:
    """How volumes are written again; as in :class:`BackupOptions`."""

    volume_size: int | None = None
    level: int = DEFAULT_LEVEL
    threads: int | None = None
    on_progress: Callable[[bytes, int], None] | None = None
    on_notice: Callable[[str], None] | None = None


def rewrite(
    repository: Repository,
    states: Sequence[ChainState],
    first: int,
    *,
    generation: int,
    options: RewriteOptions,
    confirm: Callable[[], None],
    superfluous: Collection[bytes] = (),
) -> StateHeader:
    """Write the last backup of a chain again, in place of the run ``states[first:]``; return its new header.

    Args:
        states: the chain, full first.
        first: the level at which the run begins; 0 makes a full.
        generation: of the new files; no file of the backup has it yet.
        confirm: called at the last moment; raises if the lock was lost.
        superfluous: paths of which the run holds a whole copy that is to be a delta (``superfluous_copy.py``).

    Raises:
        ChainError, IntegrityError, FormatError, RepositoryError: an old backup is damaged, or something of it
            is not there. Nothing was published then that is a backup.
        OSError: a temporary file cannot be written.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(compressing_pool(options.threads))
        rewriting = _Rewriting(repository, states, first, generation, options, superfluous, stack, pool)
        return rewriting.run(confirm)


class _Rewriting:
    """One run on its way to be one backup."""

    def __init__(
        self,
        repository: Repository,
        states: Sequence[ChainState],
        first: int,
        generation: int,
        options: RewriteOptions,
        superfluous: Collection[bytes],
        stack: ExitStack,
        pool: Executor | None,
    ) -> None:
        headers = [state.header for state in states]
        self._repository = repository
        self._states = states
        self._headers = headers
        self._first = first
        self._options = options
        self._superfluous = superfluous
        self._stack = stack
        self._pool = pool
        self._last = headers[-1]
        self._run_files = files_of(headers[first:])
        self._archives = Archives(repository.store, self._last.key, headers)
        self._draft = Draft(
            repository.store,
            self._last.key,
            self._last.id,
            generation=generation,
            chain=headers[:first],
            stack=stack,
            pool=pool,
        )
        self._known = self._draft.known_content(None)
        self._whole = self._lanes(self._draft.whole_role, choose_lanes(headers[first:], _WHOLE_ROLES))
        self._updated = self._lanes(Role.UPDATED, choose_lanes(headers[first:], (Role.UPDATED,)))
        self._sigvault = self._lanes(Role.SIGVAULT, choose_lanes(headers[first:], (Role.SIGVAULT,)))
        self._link_targets: dict[bytes, ResolvedEntry] = {}
        self._delta_bases: dict[bytes, bytes] = {}  # of deltas of another path's content

    def _lanes(self, role: Role, sources: frozenset[str]) -> Lanes:
        lanes = Lanes(
            self._repository.store,
            self._draft.name(role, 0),
            sources=sources,
            archives=self._archives,
            volume_size=self._options.volume_size or default_volume_size(self._repository.store),
            level=self._options.level,
            pool=self._pool,
        )
        self._stack.callback(lanes.close)
        return lanes

    def run(self, confirm: Callable[[], None]) -> StateHeader:
        for item in resolve_run(self._states, self._first):
            self._record(item)
            if self._options.on_progress is not None and item.new is not None:
                self._options.on_progress(item.path, item.new.entry.size)
        if self._draft.index_digest != self._last.index_digest:
            raise IntegrityError(
                f"{self._last.key}@{self._last.id}: written again, its index has another digest; nothing was changed",
                path=f"{self._last.key}@{self._last.id}",
                expected=self._last.index_digest,
                actual=self._draft.index_digest,
            )
        archives = [file for lanes in (self._whole, self._updated, self._sigvault) for file in lanes.finish()]
        archives = self._draft.finish(self._repository.repository_id, archives)
        header = self._header(archives)
        self._read_back(header)
        signer = self._repository.protection.signer
        self._draft.put_state(header, confirm=confirm, prove=self._prove_state, signer=signer)
        return header

    def _header(self, archives: list[ArchiveFile]) -> StateHeader:
        parent, tally = self._draft.parent, self._draft.recorder.tally
        return msgspec.structs.replace(
            self._last,
            kind=self._draft.kind,
            generation=self._draft.generation,
            parent=parent.id if parent is not None else None,
            parent_index_digest=parent.index_digest if parent is not None else None,
            lines=self._draft.line_count,
            references=tally.references,
            files=archives,
            counts=Counts(**tally.counts),
            bytes=Sizes(
                total=tally.total_bytes,
                read=self._last.bytes.read,
                added=sum(file.size for file in archives),
            ),
            tool=f"incremental-backups-tools {__version__}",
        )

    # --- one path ----------------------------------------------------------------------------------------

    def _record(self, item: RunEntry) -> None:
        recorder = self._draft.recorder
        if item.new is None:
            assert item.old is not None  # or there would be no item
            recorder.gone(item.old.entry)
            return
        # What its line said of places is of the old backups.
        entry = msgspec.structs.replace(item.new.entry, data=None, source=None, sig=None)
        before = item.old.entry if item.old is not None else None
        if entry.type == FILE and entry.link_of is None:
            resolved, placement = self._file(item, item.new.with_entry(entry))
            recorder.file(resolved, before, placement, is_linked=item.is_referenced)
            if item.is_referenced:
                self._link_targets[entry.path] = resolved
            return
        op = classify(entry, before)
        if op not in (None, METADATA) and entry.link_of is None:
            self._whole.carry_special(special_member(entry))
        resolved = ResolvedEntry(entry)
        if entry.type == FILE and entry.link_of is not None:
            target = self._link_targets.get(entry.link_of)
            if target is None:
                raise ChainError(
                    f"{printable(entry.path)}: is a link of {printable(entry.link_of)}, which comes later"
                )
            resolved = target.with_entry(entry)
        recorder.special(resolved, before, is_archived=entry.link_of is None, is_linked=item.is_referenced)

    def _file(self, item: RunEntry, new: ResolvedEntry) -> tuple[ResolvedEntry, Placement]:
        """Store what is new about a regular file's content."""
        entry = new.entry
        if item.old is not None and classify(entry, item.old.entry) in (None, METADATA):
            return item.old.with_entry(entry), Placement()
        own = [location for location in new.data if location.file in self._run_files]
        # A file that stands on its own path's content need not say so. A hard link's is another path's.
        is_own = item.source == entry.path and item.old is not None and item.old.entry.is_content_holder
        source = None if is_own else item.source
        if item.source is not None and not own:
            return new, Placement(source=source)
        if entry.digest is not None:
            known = self._known.find(entry.size, entry.digest)
            if known is not None:
                return self._twin(entry, known.resolved)
        if not own:
            raise ChainError(f"{printable(entry.path)}: no backup holds its content")
        if item.source is not None:
            stored = self._store_delta(new, own, source)
        elif item.old is not None and entry.path in self._superfluous:
            stored = self._store_as_delta(item.old, new)
        else:
            stored = None
        return stored if stored is not None else self._store_whole(new)

    def _twin(self, entry: Entry, holder: ResolvedEntry) -> tuple[ResolvedEntry, Placement]:
        """A content that was stored for another path."""
        is_delta = len(holder.data) > 1
        source = self._delta_bases.get(holder.path, holder.path) if is_delta else None
        sig = None
        if holder.sigs and holder.sig_digest is not None:
            place = holder.sigs[-1]
            sig = SignatureRef(place.file, place.offset, place.length, holder.sig_digest)
        placement = Placement(holder.data[-1], is_delta, sig, source, twin=holder.path)
        return holder.with_entry(entry), placement

    def _store_delta(
        self, new: ResolvedEntry, own: list[Location], source: bytes | None
    ) -> tuple[ResolvedEntry, Placement] | None:
        """Store the one delta that *own* come to; None where a whole copy is better.

        Those below it do not matter: with one in place of several, restoring the file reads no more than before.
        """
        entry = new.entry
        base = new.data[: len(new.data) - len(own)]
        if len(own) == 1:
            if not delta_pays(_stored_len(entry), own[0].length, ()):
                return None
            location = self._updated.carry(file_member(entry, size=own[0].length), own[0])
        else:
            with open_composed(own, self._archives, entry.size) as composed:
                length = composed.seek(0, os.SEEK_END)
                composed.seek(0)
                if not delta_pays(_stored_len(entry), length, ()):
                    return None
                pieces = iter(functools.partial(composed.read, _PIECE_LEN), b"")
                location = self._updated.add_pieces(file_member(entry, size=length), pieces)
        if source is not None:
            self._delta_bases[entry.path] = source
        base_sigs = tuple(sig for sig in new.sigs if sig.file not in self._run_files)
        return self._delta_at(location, new, base, base_sigs, source)

    def _store_as_delta(
        self, old: ResolvedEntry, new: ResolvedEntry
    ) -> tuple[ResolvedEntry, Placement] | None:
        """Store a whole copy of the run as a delta of what is before it; None where that is not smaller."""
        signature = self._archives.signature_of(old)
        if signature is None:
            return None
        with tempfile.SpooledTemporaryFile(_SPOOL_LEN, prefix="ibt-delta-") as out:
            builder = DeltaBuilder(signature, out=cast(BinaryIO, out))
            for piece in _iter_proven(new, self._archives):
                builder.update(piece)
            length = builder.finish().delta_len
            if length >= new.entry.size:
                return None
            out.seek(0)
            pieces = iter(functools.partial(out.read, _PIECE_LEN), b"")
            location = self._updated.add_pieces(file_member(new.entry, size=length), pieces)
        return self._delta_at(location, new, old.data, old.sigs, None)

    def _delta_at(
        self,
        location: Location,
        new: ResolvedEntry,
        base: tuple[Location, ...],
        base_sigs: tuple[Location, ...],
        source: bytes | None,
    ) -> tuple[ResolvedEntry, Placement]:
        """What *new* comes to with its delta of *base* at *location*."""
        sig, sigs = self._signature(new, base_sigs)
        entry = new.entry
        resolved = ResolvedEntry(entry, (*base, location), sigs, sig.digest if sig else None, entry.digest)
        return resolved, Placement(location, is_delta=True, sig=sig, source=source)

    def _store_whole(self, new: ResolvedEntry) -> tuple[ResolvedEntry, Placement]:
        entry = new.entry
        if len(new.data) == 1 and new.data[0].file in self._run_files:
            copy = new.data[0]
            if copy.sparse is None:
                location = self._whole.carry(file_member(entry), copy)
            else:
                location = self._carry_sparse(entry, copy, copy.sparse)
        elif entry.sparse is None:
            location = self._whole.add_pieces(file_member(entry), _iter_proven(new, self._archives))
        else:
            location = self._add_sparse(new, entry.sparse)
        sig, sigs = self._signature(new, ())
        resolved = ResolvedEntry(entry, (location,), sigs, sig.digest if sig else None, entry.digest)
        return resolved, Placement(location, sig=sig)

    def _carry_sparse(self, entry: Entry, copy: Location, extents: Extents) -> Location:
        """A whole copy without its holes. The map is the copy's: the entry's own may be newer."""
        map_len = len(encode_sparse_map(extents))
        member = sparse_member(entry, map_len + copy.length)
        return self._whole.carry(member, copy, map_len=map_len)

    def _add_sparse(self, new: ResolvedEntry, extents: Extents) -> Location:
        encoded = encode_sparse_map(extents)
        length = data_len(extents)
        member = sparse_member(new.entry, len(encoded) + length)
        pieces = _without_holes(_iter_proven(new, self._archives), extents)
        location = self._whole.add_pieces(member, _chain(encoded, pieces))
        return Location(location.file, location.offset + len(encoded), length, extents)

    def _signature(
        self, new: ResolvedEntry, base: tuple[Location, ...]
    ) -> tuple[SignatureRef | None, tuple[Location, ...]]:
        """Carry the signature of *new*: as a delta of what *base* leads to, where that is smaller, or whole."""
        if new.sig_digest is None or not new.sigs:
            return None, ()
        entry = new.entry
        is_on_base = new.sigs[: len(base)] == base  # else *new* was a whole copy
        own = new.sigs[len(base) :] if is_on_base else ()
        if len(own) == 1 and (base or len(new.sigs) == 1):
            member = plain_member(entry.path, own[0].length, mtime_ns=entry.mtime_ns)
            location = self._sigvault.carry(member, own[0])
        else:
            signature = self._archives.signature_of(new)
            if signature is None:
                # It was damaged before: the next change of the file stores it whole.
                return None, ()
            raw = signature.to_bytes()
            # The old one need not be trusted: what the delta makes of it is read back.
            old = Signature.from_bytes(self._archives.raw_signature(base)) if base else None
            delta = make_signature_delta(old, raw) if old is not None else None
            data = raw if delta is None else delta
            location = self._sigvault.add(plain_member(entry.path, len(data), mtime_ns=entry.mtime_ns), data)
        return SignatureRef(location.file, location.offset, location.length, new.sig_digest), (
            *base,
            location,
        )

    # --- reading back ------------------------------------------------------------------------------------

    def _prove_state(self, file: BinaryIO) -> None:
        """Resolve the chain with the state in *file* at its end; each index on the way has its digest."""

        def lines() -> Iterator[StateLine]:
            file.seek(0)
            return iter(StateReader(file, what="state being written"))

        file.seek(0)
        header = StateReader(file, what="state being written").header
        for _ in resolve_versions([*self._states[: self._first], ChainState(header, lines)]):
            pass

    def _read_back(self, header: StateHeader) -> None:
        """Rebuild everything that the new backup holds a part of, out of the repository.

        Raises:
            IntegrityError: something is not what it must be.
        """
        store = self._repository.store
        for file in header.files:
            with self._repository.base.open(f"{header.key}/{file.name}") as stored:
                found = describe(stored, file.name, file.role)
            if found != file:
                raise IntegrityError(
                    f"{file.name}: not what was written",
                    path=file.name,
                    expected=file.digest,
                    actual=found.digest,
                )
        own = files_of([header])
        archives = Archives(store, header.key, [*self._draft.chain, header])
        for resolved in self._draft.entries():
            if resolved.entry.link_of is not None:
                continue
            if any(location.file in own for location in resolved.data):
                for _ in _iter_proven(resolved, archives):
                    pass
            if any(location.file in own for location in resolved.sigs):
                if archives.signature_of(resolved) is None:
                    raise IntegrityError(
                        f"{printable(resolved.path)}: its signature cannot be read back",
                        path=printable(resolved.path),
                        expected=resolved.sig_digest or "none",
                        actual=None,
                    )


def _iter_proven(resolved: ResolvedEntry, archives: Archives) -> Iterator[bytes | memoryview]:
    """The content of a file, which at its end turns out to be what its digest promises, or an IntegrityError."""
    hasher = blake3()
    for piece in iter_content(resolved, archives):
        hasher.update(piece)
        yield piece
    if hasher.digest() != resolved.content_digest:
        raise IntegrityError(
            f"{printable(resolved.path)}: its content cannot be rebuilt; the old backups stay as they are",
            path=printable(resolved.path),
            expected=(resolved.content_digest or b"").hex(),
            actual=hasher.hexdigest(),
        )


def _stored_len(entry: Entry) -> int:
    """Bytes of a whole copy."""
    return entry.size if entry.sparse is None else data_len(entry.sparse)


def _chain(first: bytes, rest: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    yield first
    yield from rest


def _without_holes(content: Iterator[bytes | memoryview], extents: Extents) -> Iterator[bytes | memoryview]:
    """Of a whole content what lies in *extents*."""
    position = 0
    spans = iter(extents)
    span = next(spans, None)
    for piece in content:
        end = position + len(piece)
        while span is not None and span[0] < end:
            offset, length = span
            yield piece[max(0, offset - position) : offset + length - position]
            if offset + length > end:
                break
            span = next(spans, None)
        position = end
