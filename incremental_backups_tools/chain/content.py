"""Storing the content of one regular file: nothing, a delta, or a whole copy, with its signature.

Nothing is stored of a content that is held already, by the same path of the parent or by any other, or that
this backup has stored before. A file is known by its digest, which is there only after it was read: a small
one is held in memory until then, a large one is hashed first where a content of its size is known.

The file is live. Each read is one consistent state of it or is repeated (``tree/reading.py``); what an
abandoned read had put into a volume is taken back.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor

import msgspec
from blake3 import blake3

from incremental_backups_tools.archive.members import file_member, plain_member
from incremental_backups_tools.archive.tar import PLAIN_OVERHEAD, TarMember
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.content_reading import (
    SMALL_FILE_LEN,
    DeltaReading,
    HashOnly,
    InMemory,
    Reading,
    WholeReading,
)
from incremental_backups_tools.chain.frames_ahead import FramesAhead
from incremental_backups_tools.chain.known_content import Known, KnownContent
from incremental_backups_tools.chain.look_ahead import LookAhead
from incremental_backups_tools.chain.merged_deltas import MergedDeltas
from incremental_backups_tools.chain.moved_files import MovedFiles
from incremental_backups_tools.chain.plain_files import PlainFiles, encode_plain, find_seen
from incremental_backups_tools.chain.policy import (
    COARSE_SIGNING,
    FINE_SIGNING,
    is_signed,
    may_delta,
)
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.signature_delta import make_signature_delta
from incremental_backups_tools.chain.small_delta import HeldFile, SmallDelta, SmallDeltas
from incremental_backups_tools.chain.volumes import VolumeSet
from incremental_backups_tools.delta import Signature
from incremental_backups_tools.delta.small_files import SmallFileSigning
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.tree.entry import Entry, Location, SignatureRef, printable
from incremental_backups_tools.tree.listing import Reader
from incremental_backups_tools.tree.metadata import plain_entry
from incremental_backups_tools.tree.read_ahead import ReadFile, ReadFiles
from incremental_backups_tools.tree.reading import read_stable
from incremental_backups_tools.tree.walk import AnyWalk, Found

log = logging.getLogger(__name__)


class StoredContent(msgspec.Struct, frozen=True):
    """What became of a file's content.

    Attributes:
        entry: the file as it was read, with its digest, without locations.
        data: where the bytes are; None when the content is the parent's.
        is_delta: *data* is a delta of the parent's content.
        sig: where the new signature is.
        known: who else has the content, in the parent or in this backup, where it is not the same path.
        base: the parent's entry that *data* is a delta of, where it is not the same path.
        bytes_read: from the source, over all attempts.
    """

    entry: Entry
    data: Location | None
    is_delta: bool
    sig: SignatureRef | None
    stable: bool
    bytes_read: int
    known: Known | None = None
    base: ResolvedEntry | None = None


class ContentStorer:
    """Stores contents for one backup.

    Args:
        whole: the volumes that take whole copies.
        updated: the volumes that take deltas; None in a full.
        sigvault: the volumes that take signatures.
        archives: where the parent's signatures are read; None in a full.
        deltas: the parent's, as they will be; None in a full.
        known: the contents that need not be stored again.
        moved: what new files may have been; None in a full.
        reads_old: *archives* gives the old contents as cheaply as the new ones are read.
    """

    def __init__(
        self,
        *,
        whole: VolumeSet,
        updated: VolumeSet | None,
        sigvault: VolumeSet,
        archives: Archives | None,
        deltas: MergedDeltas | None,
        known: KnownContent,
        moved: MovedFiles | None = None,
        reads_old: bool = False,
    ) -> None:
        self._whole = whole
        self._updated = updated
        self._sigvault = sigvault
        self._archives = archives
        self._deltas = deltas
        self._known = known
        self._moved = moved
        self.signing = COARSE_SIGNING if reads_old else FINE_SIGNING
        self._small_deltas = (
            SmallDeltas(archives, self.signing) if archives is not None and reads_old else None
        )
        self.bytes_read = 0

    @property
    def small_file_signing(self) -> SmallFileSigning:
        """How the files are to be signed that are read ahead."""
        return self.signing.small_files

    def look_ahead(self, walk: AnyWalk, reader: Reader, pool: Executor | None) -> LookAhead | None:
        """What reads small files that *walk* comes by; None where their old versions are not read either."""
        if self._small_deltas is None or self._archives is None or pool is None:
            return None
        return LookAhead(walk, reader, FramesAhead(self._archives, pool))

    def may_be_edited(self, found: Found, parent: ResolvedEntry) -> bool:
        """Whether a file that needs a look is most likely an edited version of *parent* that a delta is made of."""
        size = found.stat.st_size
        return (
            self._small_deltas is not None
            and self._small_deltas.can_make(size, parent)
            and parent.content_digest is not None
            and not _looks_unchanged(found.stat, parent.entry)
            and _takes_delta(size, parent)
        )

    def store(
        self,
        found: Found,
        parent: ResolvedEntry | None,
        read: ReadFile | None = None,
    ) -> StoredContent:
        """Read *found* and store what is new about it.

        Args:
            parent: the same path in the parent's index, where it had content.
            read: what was read ahead of it: nothing was there before, or it is :meth:`may_be_edited`.

        Raises:
            SourceError: gone, unreadable, its metadata too, or shrinking at every attempt.
            OSError: a temporary file cannot be written.
        """
        holder = parent if parent is not None and parent.content_digest is not None else None
        if read is not None:
            return self._store_read(found, read, holder)
        size = found.stat.st_size
        is_alike = holder is not None and _looks_unchanged(found.stat, holder.entry)
        before = holder.content_digest if holder is not None else None
        bases = self._moved.candidates(found.rel_path, found.stat) if self._moved and parent is None else []
        is_held = holder is not None and self.may_be_edited(found, holder)  # whole, and known if it is
        if is_alike or (
            not is_held and (size > SMALL_FILE_LEN or bases) and self._known.has_size(size, but=before)
        ):
            reading, _, stable = read_stable(found, lambda opened: HashOnly(self, found, opened))
            held = self._held(_with_digest(reading), stable, holder)
            if held is not None:
                return held
        stored = self._store_delta(found, holder, holder) if holder is not None else None
        for base in bases:
            stored = stored or self._store_delta(found, base, None)
        return stored if stored is not None else self._store_whole(found, holder)

    def store_plain(self, read: ReadFiles) -> PlainFiles | None:
        """Store files that were read ahead, together; in a full.

        Returns:
            What the first of them are, perhaps none: up to one that is not plain, whose content is held already, or
            that the volume has no room for. None where they cannot be stored together.
        """
        most = read.run.reading.most_bytes + len(read) * PLAIN_OVERHEAD
        whole = self._whole.place_for(most)
        sigvault = self._sigvault.place_for(most)
        if whole is None or sigvault is None:
            return None
        new = read.until(self._first_held(read))
        plain = encode_plain(new, whole=whole, sigvault=sigvault, seen=self._known.seen)
        self._whole.add_members(whole.out, plain.whole_lens)
        self._sigvault.add_members(sigvault.out, plain.sigvault_lens)
        self.bytes_read += plain.total_bytes
        return plain

    def _first_held(self, read: ReadFiles) -> int:
        """The position of the first whose content is held already, or is another's of them; the end if none is."""
        for position in find_seen(read, self._known.seen):
            file = read.file(position)
            before = (read.file(earlier).digest for earlier in range(read.begin, position))
            if file.digest in before or self._known.find(len(file.content), file.digest) is not None:
                return position
        return read.end

    def _store_read(self, found: Found, read: ReadFile, parent: ResolvedEntry | None) -> StoredContent:
        """Store what was read ahead."""
        self.bytes_read += len(read.content)
        entry = plain_entry(found.rel_path, read, read.digest)
        file = HeldFile(entry, read.content, entry.size, stable=True, signature=read.signature)
        held = self._held(entry, True, parent)
        if held is None and parent is not None:
            held = self._store_small(file, parent, parent)
        return held if held is not None else self._add_held(file)

    def _held(self, entry: Entry, stable: bool, parent: ResolvedEntry | None) -> StoredContent | None:
        """What was read, if nothing need be stored of it."""
        assert entry.digest is not None  # it was read
        if parent is not None and entry.digest == parent.content_digest:
            return self._same(entry, stable, parent)
        known = self._known.find(entry.size, entry.digest) if stable else None
        return self._known_as(entry, stable, known) if known is not None else None

    def _known_as(self, entry: Entry, stable: bool, known: Known) -> StoredContent:
        if known.is_parent:
            return StoredContent(entry, None, False, None, stable, self.bytes_read, known)
        data, sigs = known.resolved.data, known.resolved.sigs
        sig = None
        if sigs and known.resolved.sig_digest is not None:
            place = sigs[-1]
            sig = SignatureRef(place.file, place.offset, place.length, known.resolved.sig_digest)
        return StoredContent(entry, data[-1], len(data) > 1, sig, stable, self.bytes_read, known)

    def _same(self, entry: Entry, stable: bool, parent: ResolvedEntry) -> StoredContent:
        if parent.entry.sparse is not None and entry.sparse is not None:
            # Where exactly holes are may change without anybody writing; that alone is no change.
            entry = msgspec.structs.replace(entry, sparse=parent.entry.sparse)
        return StoredContent(entry, None, False, None, stable, self.bytes_read)

    def _store_delta(
        self, found: Found, base: ResolvedEntry, parent: ResolvedEntry | None
    ) -> StoredContent | None:
        """Store a delta of *base* if one can be made and it pays; None where a whole copy is better."""
        if self._updated is None or self._archives is None:
            return None
        size = found.stat.st_size
        if not _takes_delta(size, base):
            return None
        if self._small_deltas is not None and self._small_deltas.can_make(size, base):
            file = self._hold(found)
            held = self._held(file.entry, file.stable, parent)
            return held if held is not None else self._store_small(file, base, parent)
        old = self._archives.signature_of(base)
        if old is None:
            return None
        reading, info, stable = read_stable(found, lambda opened: DeltaReading(self, found, opened, old))
        try:
            held = self._held(_with_digest(reading), stable, parent)
            if held is not None:
                return held
            delta_len, signature = reading.finish()
            if not self._allows(reading.data_len, delta_len, base):
                return None
            location = self._add_delta(self._updated, reading, delta_len)
            sig = self._add_signature(reading.entry, signature, old) if is_signed(info.st_size) else None
            entry = _with_digest(reading)
            moved_from = base if parent is None else None
            return StoredContent(entry, location, True, sig, stable, self.bytes_read, base=moved_from)
        finally:
            reading.out.close()

    def _add_held(self, file: HeldFile) -> StoredContent:
        """Store a whole file that is held, with the signature that it has."""
        assert file.content is not None  # it was read ahead
        location = self._whole.add(file_member(file.entry), file.content)
        sig = self._add_signature(file.entry, file.signature) if file.signature is not None else None
        return StoredContent(file.entry, location, False, sig, file.stable, self.bytes_read)

    def _store_small(
        self, file: HeldFile, base: ResolvedEntry, parent: ResolvedEntry | None
    ) -> StoredContent | None:
        """As :meth:`_store_delta`, of a file that is held, from the bytes of *base* if those can be reached."""
        assert self._small_deltas is not None  # the caller looked
        try:
            delta = self._small_deltas.make(file, base)
        except BackupError as error:
            log.warning("%s; %s is stored whole", error, printable(file.entry.path))
            return None
        return self._add_small_delta(file, delta, base, parent)

    def _hold(self, found: Found) -> HeldFile:
        reading, _, stable = read_stable(found, lambda opened: InMemory(self, found, opened))
        content = None if reading.is_too_long else reading.content()
        return HeldFile(_with_digest(reading), content, reading.data_len, stable)

    def _add_small_delta(
        self, file: HeldFile, delta: SmallDelta | None, base: ResolvedEntry, parent: ResolvedEntry | None
    ) -> StoredContent | None:
        if self._updated is None or delta is None or not self._allows(file.data_len, len(delta.data), base):
            return None
        location = self._updated.add(file_member(file.entry, size=len(delta.data)), delta.data)
        sig = None
        if delta.signature is not None:
            sig = self._add_signature(file.entry, delta.signature, delta.old)
        moved_from = base if parent is None else None
        return StoredContent(file.entry, location, True, sig, file.stable, self.bytes_read, base=moved_from)

    def _allows(self, data_len: int, delta_len: int, base: ResolvedEntry) -> bool:
        """Whether a delta of *base* is kept in place of a whole copy."""
        return self._deltas is not None and self._deltas.allow(data_len, delta_len, base)

    def _add_delta(self, volumes: VolumeSet, reading: DeltaReading, delta_len: int) -> Location:
        member = file_member(reading.entry, size=delta_len)
        reading.out.seek(0)
        if delta_len <= SMALL_FILE_LEN:
            return volumes.add(member, reading.out.read())
        location = volumes.begin(member)
        while chunk := reading.out.read(SMALL_FILE_LEN):
            volumes.write(chunk)
        volumes.end()
        return location

    def _store_whole(self, found: Found, parent: ResolvedEntry | None) -> StoredContent:
        reading, _, stable = read_stable(found, lambda opened: WholeReading(self, found, opened, self._whole))
        # One that is in a volume already was hashed before, or its size is nobody's: it would not be found.
        held = self._held(_with_digest(reading), stable and reading.is_held, parent)
        if held is not None:
            reading.abandon()
            return held
        location, signature = reading.finish()
        sig = self._add_signature(reading.entry, signature) if signature is not None else None
        return StoredContent(_with_digest(reading), location, False, sig, stable, self.bytes_read)

    def _add_signature(self, entry: Entry, signature: bytes, old: Signature | None = None) -> SignatureRef:
        """Store a signature, as a delta from *old* where that is smaller."""
        delta = make_signature_delta(old, signature) if old is not None else None
        data = signature if delta is None else delta
        member: TarMember = plain_member(entry.path, len(data), mtime_ns=entry.mtime_ns)
        location = self._sigvault.add(member, data)
        return SignatureRef(location.file, location.offset, location.length, blake3(signature).hexdigest())


def _with_digest(reading: Reading) -> Entry:
    return msgspec.structs.replace(reading.entry, digest=reading.hasher.digest())


def _looks_unchanged(info: os.stat_result, old: Entry) -> bool:
    """Size and mtime agree, so that reading will most likely show the same content."""
    return info.st_size == old.size and info.st_mtime_ns == old.mtime_ns


def _takes_delta(size: int, base: ResolvedEntry) -> bool:
    """Whether a file of *size* bytes may be stored as a delta of *base*, if that is short enough."""
    return is_signed(size) and bool(base.data) and may_delta(size, len(base.data) - 1)
