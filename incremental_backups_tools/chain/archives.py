"""Reading locations: any byte range of any volume of a key, by range, and signatures resolved and checked."""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from typing import Final

from blake3 import blake3

from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.sigvault import MAX_SIGNATURE_LEN
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.delta import Signature, patch
from incremental_backups_tools.exceptions import BackupError, ChainError, DeltaFormatError, IntegrityError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.tree.entry import Location, printable

# A chain of a hundred backups has some two hundred volumes, and reading in the order of paths takes a little of
# each in turn: a seek table has 16 bytes a frame, and the frames that all of them keep have one bound.
_MAX_OPEN: Final = 256
_CACHE_LEN: Final = 48 << 20
_DELTA_MAGIC: Final = b"rs\x026"

log = logging.getLogger(__name__)


class Archives:
    """The volumes that the backups of a chain consist of. Safe to share between threads.

    Args:
        chain: whose files may be read; their sizes are what the states promise.
    """

    def __init__(self, store: Store, key: str, chain: Iterable[StateHeader]) -> None:
        self._store = store
        self._key = key
        self._sizes = {file.name: file.size for header in chain for file in header.files}
        self._readers: OrderedDict[str, VolumeReader] = OrderedDict()
        self._lock = threading.Lock()
        self._cache: FrameCache[bytes] = FrameCache(_CACHE_LEN)

    def read(self, location: Location) -> bytes:
        """The bytes at *location*.

        Raises:
            ChainError: no backup of the chain has such a volume.
            ArchiveFormatError, IntegrityError, RepositoryError: it is damaged or not there.
        """
        return self.reader(location.file).read(location.offset, location.length)

    def iter_range(self, location: Location, idle: IdleWorkers | None = None) -> Generator[bytes, None, None]:
        """The bytes at *location*, piece by piece. Raises as :meth:`read`.

        Args:
            idle: read some of them ahead.
        """
        return self.reader(location.file).iter_range(location.offset, location.length, idle)

    def read_many(self, locations: Sequence[Location]) -> list[bytes | memoryview | BackupError]:
        """The bytes at each of *locations*, or the error that :meth:`read` would raise there.

        Each volume is read once from front to back, neighbours together.
        """
        results: list[bytes | memoryview | BackupError] = [b""] * len(locations)
        by_file: dict[str, list[int]] = {}
        for position, location in enumerate(locations):
            by_file.setdefault(location.file, []).append(position)
        for file_name, positions in by_file.items():
            ranges = [(locations[position].offset, locations[position].length) for position in positions]
            found: Sequence[bytes | memoryview | BackupError]
            try:
                found = self.reader(file_name).read_many(ranges)
            except BackupError as error:
                found = [error] * len(ranges)
            for position, content in zip(positions, found, strict=True):
                results[position] = content
        return results

    def reader(self, file_name: str) -> VolumeReader:
        """The reader of a volume.

        Raises:
            ChainError: no backup of the chain has such a volume.
            ArchiveFormatError, LimitExceededError, RepositoryError: its seek table is damaged or not there.
        """
        with self._lock:
            reader = self._readers.get(file_name)
            if reader is not None:
                self._readers.move_to_end(file_name)
                return reader
        # Not under the lock, since it takes a round trip: at worst two threads open the same one.
        reader = self._open(file_name)
        with self._lock:
            self._readers[file_name] = reader
            if len(self._readers) > _MAX_OPEN:
                self._readers.popitem(last=False)
        return reader

    def _open(self, file_name: str) -> VolumeReader:
        size = self._sizes.get(file_name)
        if size is None:
            raise ChainError(f"{self._key}: no backup of this chain has a volume {file_name!r}")
        name = f"{self._key}/{file_name}"
        size = self._store.content_size(name, size)
        return VolumeReader(
            functools.partial(self._store.read_range, name), size, name=name, cache=self._cache
        )

    def signature_of(
        self, resolved: ResolvedEntry, *, otherwise: str = "the file is stored whole"
    ) -> Signature | None:
        """The signature of an entry's content; None where there is none that can be trusted.

        A wrong signature would be silent loss: a delta against it patches to wrong bytes without an error. So
        it is compared with the digest that its state promises, and whatever fails means a whole copy.

        Args:
            otherwise: what the log says that happens without it.
        """
        if resolved.sig_digest is None or not resolved.sigs:
            return None
        try:
            raw = self.raw_signature(resolved.sigs)
            actual = blake3(raw).hexdigest()
            if actual != resolved.sig_digest:
                raise IntegrityError(
                    f"signature of {printable(resolved.path)}: expected BLAKE3 {resolved.sig_digest}, got {actual}",
                    path=printable(resolved.path),
                    expected=resolved.sig_digest,
                    actual=actual,
                )
            return Signature.from_bytes(raw)
        except BackupError as error:
            log.warning("%s; %s", error, otherwise)
            return None

    def raw_signature(self, locations: tuple[Location, ...]) -> bytes:
        """The newest signature: the last location, or deltas applied to the last one that is whole.

        What it must be, the caller checks.

        Raises:
            ChainError, ArchiveFormatError, DeltaFormatError, IntegrityError, LimitExceededError, RepositoryError:
                one of them is damaged or not there.
        """
        deltas: list[bytes] = []
        for location in reversed(locations):
            raw = self.read(location)
            if raw[:4] != _DELTA_MAGIC:
                for delta in reversed(deltas):
                    raw = patch(raw, delta, max_output=MAX_SIGNATURE_LEN)
                return raw
            deltas.append(raw)
        raise DeltaFormatError("a delta of a signature without the signature that it stands on")
