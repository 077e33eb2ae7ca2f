"""Making the delta of a file that is held in memory, without storing anything: in any thread."""

from __future__ import annotations

import msgspec

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.old_content import OldContents
from incremental_backups_tools.chain.policy import MAX_EXACT_LEN, Signing, is_signed
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.delta import Signature, exact_delta
from incremental_backups_tools.delta import delta as make_delta
from incremental_backups_tools.delta import signature as make_signature
from incremental_backups_tools.delta.signature import block_len_of
from incremental_backups_tools.tree.entry import Entry


class HeldFile(msgspec.Struct, frozen=True):
    """A file that was read whole, holes as zeros.

    Attributes:
        entry: the file as it was read, with its digest, without locations.
        content: None of one that has grown beyond what may be held.
        data_len: how much of the content is not in holes.
        stable: whether the file stayed as it was meanwhile.
        signature: of the content, with some block length, where there is one already.
    """

    entry: Entry
    content: bytes | memoryview | None
    data_len: int
    stable: bool
    signature: bytes | None = None


class SmallDelta(msgspec.Struct, frozen=True):
    """A delta, and what the next backup needs to make another.

    Attributes:
        signature: of the new content; None where it gets none.
        old: the signature of the old one, where that can be read.
    """

    data: bytes
    signature: bytes | None
    old: Signature | None


class SmallDeltas:
    """Makes deltas of the old bytes where those can be reached, else of their signature. For several threads.

    Args:
        archives: where both are read.
        signing: how new contents are signed.
    """

    def __init__(self, archives: Archives, signing: Signing) -> None:
        self._archives = archives
        self._contents = OldContents(archives)
        self._signing = signing

    @staticmethod
    def can_make(size: int, base: ResolvedEntry) -> bool:
        """Whether a file of *size* bytes and the one that it was are small enough."""
        return max(size, base.entry.size) <= MAX_EXACT_LEN

    def make(self, file: HeldFile, base: ResolvedEntry) -> SmallDelta | None:
        """The delta that makes *file* of what *base* has; None where neither its bytes nor its signature can be had.

        Raises:
            BackupError: the old bytes are damaged: they are no base for anything.
        """
        if file.content is None:
            return None
        before = self._contents.read(base)
        otherwise = "the file is stored whole" if before is None else "its new signature is stored whole"
        old = self._archives.signature_of(base, otherwise=otherwise)
        if before is not None:
            data = exact_delta(before, file.content)
        elif old is not None:
            data = make_delta(file.content, old)
        else:
            return None
        return SmallDelta(data, self._signature(file, file.content, old), old)

    def _signature(self, file: HeldFile, content: bytes | memoryview, old: Signature | None) -> bytes | None:
        if not is_signed(file.entry.size):
            return None
        before = old.block_len if old is not None else None
        block_len = self._signing.block_len(file.entry.size, before=before)
        if file.signature is not None and block_len_of(file.signature) == block_len:
            return file.signature
        return make_signature(content, block_len=block_len)
