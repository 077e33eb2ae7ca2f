"""The delta of two buffers in plain Python: what ``_kernel/exact.c`` computes, to be read and to be compared with.

Both give the same delta and the same count for any input.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import msgspec

from incremental_backups_tools.delta.formats import (
    COPY_N1_N1,
    DELTA_MAGIC,
    END,
    LITERAL_N1,
    SHORT_LITERAL_MAX,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["exact_delta"]

_MAX_LEN: Final = 1 << 30
_WINDOW: Final = 16
_STEP: Final = 4
_SHORTEST: Final = 24
_CONTINUED: Final = 16
_ENOUGH: Final = 1024
_CANDIDATES: Final = 8
_MASK: Final = (1 << 64) - 1


class _Match(msgspec.Struct, frozen=True):
    """A range of the new bytes that the old ones have."""

    new_pos: int
    old_pos: int
    length: int


class _Pair(msgspec.Struct):
    old: bytes
    new: bytes
    end: int  # no match reaches beyond it in new
    compared: int
    bits: int = 4
    index: dict[int, list[int]] = msgspec.field(default_factory=dict)  # by hash: where windows of old begin

    def build_index(self) -> None:
        starts = range(0, len(self.old) - _WINDOW + 1, _STEP)
        while 1 << self.bits < len(starts):
            self.bits += 1
        for start in starts:
            self.index.setdefault(self.hash_window(self.old, start), []).append(start)

    def hash_window(self, data: bytes, start: int) -> int:
        first = int.from_bytes(data[start : start + 8], sys.byteorder)
        second = int.from_bytes(data[start + 8 : start + 16], sys.byteorder)
        mixed = first * 0x9E3779B97F4A7C15 + second & _MASK
        return (mixed * 0xD6E8FEB86659FD93 & _MASK) >> 64 - self.bits

    def forward(self, old_pos: int, pos: int) -> int:
        """How much is the same from there on."""
        same = 0
        limit = min(len(self.old) - old_pos, self.end - pos)
        while same < limit and self.old[old_pos + same] == self.new[pos + same]:
            same += 1
        self.compared += same + 1
        return same

    def backward(self, old_pos: int, pos: int, begin: int) -> int:
        """How much is the same before, not before *begin* of the new bytes."""
        same = 0
        limit = min(old_pos, pos - begin)
        while same < limit and self.old[old_pos - same - 1] == self.new[pos - same - 1]:
            same += 1
        self.compared += same + 1
        return same

    def find_match(self, begin: int, pos: int, old_pos: int) -> _Match | None:
        """The longest match of which *pos* is a part.

        Of several the one that goes on where the last copy would, at *old_pos*, then the first.
        """
        best = None
        if old_pos < len(self.old):
            length = self.forward(old_pos, pos)
            if length >= _CONTINUED:
                best = _Match(pos, old_pos, length)
            if length >= _ENOUGH:
                return best
        for start in self.index.get(self.hash_window(self.new, pos), [])[:_CANDIDATES]:
            after = self.forward(start, pos)
            if after < _WINDOW:
                continue
            before = self.backward(start, pos, begin)
            if after + before >= _SHORTEST and (best is None or after + before > best.length):
                best = _Match(pos - before, start - before, after + before)
        return best


class _Writer:
    """Encodes commands; the last copy waits, since another may go on where it ends."""

    def __init__(self, new: bytes) -> None:
        self.out = bytearray(DELTA_MAGIC)
        self._new = new
        self._copy: tuple[int, int] | None = None

    def literal(self, begin: int, end: int) -> None:
        """What of the new bytes no copy gives."""
        if begin == end:
            return
        self.end_copy()
        length = end - begin
        if length <= SHORT_LITERAL_MAX:
            self.out.append(length)
        else:
            width, number = _number(length)
            self.out.append(LITERAL_N1 + width)
            self.out += number
        self.out += self._new[begin:end]

    def match(self, begin: int, found: _Match) -> int:
        """What is new from *begin* on, then the match; returns where that ends."""
        self.literal(begin, found.new_pos)
        if self._copy is not None and sum(self._copy) == found.old_pos:
            self._copy = self._copy[0], self._copy[1] + found.length
        else:
            self.end_copy()
            self._copy = found.old_pos, found.length
        return found.new_pos + found.length

    def end_copy(self) -> None:
        """Write the copy that waits."""
        if self._copy is not None:
            (offset_width, offset), (length_width, length) = map(_number, self._copy)
            self.out.append(COPY_N1_N1 + 4 * offset_width + length_width)
            self.out += offset + length
            self._copy = None


def exact_delta(old: Buffer, new: Buffer, /) -> tuple[bytes, int]:
    """The delta that makes *new* of *old*, and how many bytes were compared to find it.

    Raises:
        ValueError: either has more than 2^30 bytes.
    """
    if max(memoryview(old).nbytes, memoryview(new).nbytes) > _MAX_LEN:
        raise ValueError("more bytes than a delta is made of at once")
    before, after = bytes(old), bytes(new)
    pair = _Pair(before, after, min(len(before), len(after)), 0)
    prefix = pair.forward(0, 0)
    pair.end = len(after)
    suffix = pair.backward(len(before), len(after), max(prefix, prefix + len(after) - len(before)))
    prefix, suffix = (length if length >= _CONTINUED else 0 for length in (prefix, suffix))
    pair.end = len(after) - suffix
    delta = _Writer(after)
    begin = delta.match(0, _Match(0, 0, prefix)) if prefix else 0
    pos = next_old = begin
    if pair.end - pos >= _WINDOW:
        pair.build_index()
    while pair.end - pos >= _WINDOW:
        found = pair.find_match(begin, pos, next_old)
        if found is not None:
            pos = begin = delta.match(begin, found)
            next_old = found.old_pos + found.length
        else:
            pos += 1
            next_old += 1
    delta.literal(begin, pair.end)
    if suffix:
        delta.match(pair.end, _Match(pair.end, len(before) - suffix, suffix))
    delta.end_copy()
    delta.out.append(END)
    return bytes(delta.out), pair.compared


def _number(number: int) -> tuple[int, bytes]:
    """Its width, 0 to 2 for 1, 2 or 4 bytes, and its bytes."""
    width = 0 if number < 1 << 8 else 1 if number < 1 << 16 else 2
    return width, number.to_bytes(1 << width, "big")
