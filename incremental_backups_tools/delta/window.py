"""The search over a new file that comes in pieces: a window slides over it.

What of the window has been searched is written out as copies and literals; the rest, less than a block,
moves to the window's front and more is taken in.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, Protocol

import msgspec

from incremental_backups_tools.delta.commands import CommandWriter
from incremental_backups_tools.delta.formats import WEAK_LEN, SignatureMagic
from incremental_backups_tools.delta.signature import encode_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from incremental_backups_tools.delta.kernels import Kernel
    from incremental_backups_tools.delta.signature import Signature

__all__ = ["DeltaStats", "Found", "Hasher", "MatchWriter", "NewSignature", "WindowSearch", "search_steps"]

_WINDOW_LEN = 512 * 1024
"""Bytes searched by one call of the kernel: few enough for the second-level cache, enough that a call costs
nothing."""

_WINDOW_BLOCKS = 16
_TRIPLE = struct.Struct("=QQQ")


class Hasher(Protocol):
    """Anything that digests bytes, such as the objects of hashlib."""

    def update(self, data: memoryview, /) -> object:
        """Take in the next bytes."""


class DeltaStats(msgspec.Struct, frozen=True):
    """What a delta holds and what it cost to find.

    Attributes:
        delta_len: bytes of the delta.
        literal_bytes: bytes of the new file that stand in it.
        copied_bytes: bytes of the new file that it copies.
        commands: its commands, END not counted.
        false_alarms: windows whose rolling sum was that of a block, but whose hash was not.
        strong_bytes: bytes hashed by the search; at most four times the new file, whatever it holds.
    """

    delta_len: int
    literal_bytes: int
    copied_bytes: int
    commands: int
    false_alarms: int
    strong_bytes: int


class Found(msgspec.Struct, frozen=True):
    """What one step of the kernel's search found; see ``_twin.search``."""

    pos: int
    next_block: int
    false_bytes: int
    strong_bytes: int
    false_alarms: int
    matches: bytes


def search_steps(
    kernel: Kernel,
    table: object,
    data: memoryview,
    *,
    pos: int = 0,
    stop: int | None = None,
    base: int = 0,
    next_block: int = -1,
    false_bytes: int = 0,
    known: bytes = b"",
    known_first: int = 0,
    is_last: bool = False,
) -> Iterator[Found]:
    """Search *data* whole, in as many steps as its matches need; the last ends at its ``pos``."""
    is_full = True
    while is_full:
        result = kernel.search(
            table,
            data,
            pos,
            len(data) if stop is None else stop,
            base,
            next_block,
            false_bytes,
            known,
            known_first,
            is_last,
        )
        step, is_full = Found(*result[:6]), result[6]
        pos, next_block, false_bytes = step.pos, step.next_block, step.false_bytes
        yield step


class MatchWriter:
    """Turns matches and what lies between them into the commands of a delta, and counts."""

    def __init__(self, out: BinaryIO) -> None:
        self._commands = CommandWriter(out)
        self._strong_bytes = 0
        self._false_alarms = 0

    def write(self, data: memoryview, begin: int, found: Found) -> int:
        """Write what makes ``data[begin:found.pos]``; returns where that ends, which is *begin* if it lies
        beyond.

        What a match covers before *begin*, always less than a block, is cut off: any part of a match is one.
        """
        self._strong_bytes += found.strong_bytes
        self._false_alarms += found.false_alarms
        for start, basis, length in _TRIPLE.iter_unpack(found.matches):
            if start < begin:
                basis += begin - start
                length -= begin - start
                start = begin
            if begin < start:
                self._commands.literal(data[begin:start])
            self._commands.copy(basis, length)
            begin = start + length
        if begin < found.pos:
            self._commands.literal(data[begin : found.pos])
            begin = found.pos
        return begin

    def finish(self, rest: Buffer) -> DeltaStats:
        """Write *rest* as a literal, and END."""
        self._commands.literal(rest)
        self._commands.finish()
        return DeltaStats(
            delta_len=self._commands.written,
            literal_bytes=self._commands.literal_bytes,
            copied_bytes=self._commands.copied_bytes,
            commands=self._commands.commands,
            false_alarms=self._false_alarms,
            strong_bytes=self._strong_bytes,
        )


class NewSignature:
    """The new file's own signature, made of blocks as they come in.

    Where its blocks are cut and summed as the old signature's, the search uses the same records: a block is
    hashed once.

    Attributes:
        block_len: bytes of a block.
    """

    def __init__(self, old: Signature, *, block_len: int, strong_len: int, kernel: Kernel) -> None:
        magic = SignatureMagic.RK_BLAKE2
        self._parts = [encode_header(block_len=block_len, strong_len=strong_len, magic=magic)]
        self._kernel = kernel
        self._parameters = (block_len, strong_len, magic.weak, magic.strong)
        self.block_len = block_len
        self._record_len = WEAK_LEN + strong_len
        self._serves_search = (old.magic, old.block_len, old.strong_len) == (magic, block_len, strong_len)

    def hash_blocks(self, data: Buffer) -> bytes:
        """The records of *data*; safe in any thread."""
        return self._kernel.hash_blocks(data, *self._parameters)

    def whole_records(self, records: bytes, data_len: int) -> bytes:
        """Those of *records*, made of *data_len* bytes, that the search may use: of whole blocks."""
        return records[: data_len // self.block_len * self._record_len] if self._serves_search else b""

    def append(self, records: bytes) -> None:
        """Add the records of the file's next blocks."""
        self._parts.append(records)

    def to_bytes(self) -> bytes:
        """The signature file."""
        return b"".join(self._parts)


class WindowSearch:
    """The window over the new file and the search in it.

    Args:
        old: the old file's signature.
        out: where the delta goes.
        new: if given, gets the new file's blocks.
        hasher: if given, gets the new file's bytes.
    """

    def __init__(
        self,
        old: Signature,
        *,
        out: BinaryIO,
        kernel: Kernel,
        new: NewSignature | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        longest = max(old.block_len, new.block_len if new is not None else 0)
        self._kernel = kernel
        self._table = old.table(kernel)
        self._writer = MatchWriter(out)
        self._new = new
        self._hasher = hasher
        self._window = memoryview(bytearray(max(_WINDOW_LEN, _WINDOW_BLOCKS * longest) + longest))
        self._base = 0  # offset in the new file of the window's first byte
        self._end = 0  # bytes in the window
        self._pos = 0  # first byte of the window that is not decided
        self._hashed = 0  # first byte of the window that is not in a record of the new signature
        self._next_block = -1
        self._false_bytes = 0

    @property
    def size(self) -> int:
        """Bytes of the new file so far."""
        return self._base + self._end

    def free_space(self) -> memoryview:
        """Where the next bytes go, never empty; then tell :meth:`filled`."""
        return self._window[self._end :]

    def filled(self, count: int) -> None:
        """Take in *count* bytes that were put into the free space."""
        if self._hasher is not None:
            self._hasher.update(self._window[self._end : self._end + count])
        self._end += count
        if self._end == len(self._window):
            self._search(is_last=False)
            self._slide()

    def update(self, chunk: Buffer) -> None:
        """Take in the next bytes."""
        view = memoryview(chunk).cast("B")
        while len(view):
            space = self.free_space()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            self.filled(count)
            view = view[count:]

    def finish(self) -> DeltaStats:
        """Search and write what is left."""
        self._search(is_last=True)
        return self._writer.finish(self._window[self._pos : self._end])

    def _search(self, *, is_last: bool) -> None:
        window = self._window[: self._end]
        known_first = self._hashed
        known = self._hash_blocks(window, is_last=is_last)
        for found in search_steps(
            self._kernel,
            self._table,
            window,
            pos=self._pos,
            base=self._base,
            next_block=self._next_block,
            false_bytes=self._false_bytes,
            known=known,
            known_first=known_first,
            is_last=is_last,
        ):
            self._next_block, self._false_bytes = found.next_block, found.false_bytes
            self._pos = self._writer.write(window, self._pos, found)

    def _hash_blocks(self, window: memoryview, *, is_last: bool) -> bytes:
        """Hash the window's blocks for the new signature; returns the records that the search may use."""
        if self._new is None:
            return b""
        whole = self._hashed + (len(window) - self._hashed) // self._new.block_len * self._new.block_len
        records = self._new.hash_blocks(window[self._hashed : whole])
        self._new.append(records)
        if is_last:
            self._new.append(self._new.hash_blocks(window[whole:]))
        whole_len, self._hashed = whole - self._hashed, whole
        return self._new.whole_records(records, whole_len)

    def _slide(self) -> None:
        """Move what is not decided, or not yet in a record of the new signature, to the front."""
        keep = self._pos
        if self._new is not None:
            keep = min(keep, self._hashed)
            self._hashed -= keep
        kept = self._end - keep
        self._window[:kept] = bytes(self._window[keep : self._end])
        self._base += keep
        self._pos -= keep
        self._end = kept
