"""The delta kernel in plain Python: what the C extension computes, to be read and to be compared with.

The C sources in ``_kernel/`` are this, made fast. Both give the same bytes and the same counters for any
input.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import msgspec

from incremental_backups_tools.delta._exact_twin import exact_delta
from incremental_backups_tools.delta.formats import (
    COPY_N1_N1,
    DELTA_MAGIC,
    END,
    LITERAL_N1,
    SHORT_LITERAL_MAX,
    WEAK_LEN,
    StrongSum,
    WeakSum,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

__all__ = [
    "apply_delta",
    "build_table",
    "exact_delta",
    "hash_blocks",
    "parse_commands",
    "search",
    "strong_sum",
    "weak_sum",
]

LANES = 8
"""Windows taken at once where matches follow each other."""

BATCH = 4096
"""Most matches or commands returned by one call."""

_MASK = 0xFFFF_FFFF
_ROLLSUM_OFFSET = 31
_RK_SEED = 1
_RK_MULT = 0x08104225
_RK_ADJUST = (_RK_MULT - 1) * _RK_SEED
_RESERVED = 0x55
_INT64_MAX = (1 << 63) - 1
_MAX_BLOCK_LEN = 1 << 30
_TRIPLE = struct.Struct("=QQQ")

PARSE_MORE, PARSE_END, PARSE_UNKNOWN, PARSE_EMPTY, PARSE_WRAPS = range(5)
LITERAL, COPY = range(2)


def weak_sum(data: Buffer, kind: int, /) -> int:
    """The rolling sum of *data*, as 32 bits."""
    if kind == WeakSum.ROLLSUM:
        s1 = s2 = 0
        for byte in memoryview(data):
            s1 += byte + _ROLLSUM_OFFSET
            s2 += s1
        return (s2 & 0xFFFF) << 16 | s1 & 0xFFFF
    digest = _RK_SEED
    for byte in memoryview(data):
        digest = (digest * _RK_MULT + byte) & _MASK
    return digest


def strong_sum(data: Buffer, kind: int, /) -> bytes:
    """The whole strong sum of *data*: 16 bytes (MD4) or 32 (BLAKE2b)."""
    if kind == StrongSum.MD4:
        return _md4(bytes(data))
    return hashlib.blake2b(data, digest_size=32).digest()


def hash_blocks(data: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /) -> bytes:
    """The records of a signature for the blocks of *data*, the last of which may be short."""
    _check_format(block_len, strong_len, weak, strong)
    view = memoryview(data)
    records = []
    for start in range(0, len(view), block_len):
        block = view[start : start + block_len]
        records.append(weak_sum(block, weak).to_bytes(WEAK_LEN, "big"))
        records.append(strong_sum(block, strong)[:strong_len])
    return b"".join(records)


def _check_format(block_len: int, strong_len: int, weak: int, strong: int) -> None:
    WeakSum(weak)
    if not 1 <= block_len <= _MAX_BLOCK_LEN or not 1 <= strong_len <= StrongSum(strong).max_len:
        raise ValueError("block_len or strong_len out of range")


class _Table(msgspec.Struct):
    block_len: int
    strong_len: int
    weak: int
    strong: int
    weak_sums: list[int] = msgspec.field(default_factory=list)
    strong_sums: list[bytes] = msgspec.field(default_factory=list)
    # The first block with both sums.
    blocks: dict[tuple[int, bytes], int] = msgspec.field(default_factory=dict)
    weak_set: set[int] = msgspec.field(default_factory=set)

    def continues(self, block: int, weak: int) -> bool:
        return 0 <= block < len(self.weak_sums) and self.weak_sums[block] == weak

    def find(self, next_block: int, weak: int, strong: bytes) -> int:
        """The block with both sums, -1 without; *next_block* is preferred, so that copies join."""
        if self.continues(next_block, weak) and self.strong_sums[next_block] == strong:
            return next_block
        return self.blocks.get((weak, strong), -1)


def build_table(records: Buffer, block_len: int, strong_len: int, weak: int, strong: int, /) -> object:
    """The records of a signature, ready for :func:`search`.

    The C kernel borrows *records*: leave them as they are.
    """
    _check_format(block_len, strong_len, weak, strong)
    view = memoryview(records)
    stride = WEAK_LEN + strong_len
    if len(view) % stride:
        raise ValueError("records end within a record")
    table = _Table(block_len, strong_len, weak, strong)
    for block, start in enumerate(range(0, len(view), stride)):
        weak_value = int.from_bytes(view[start : start + WEAK_LEN], "big")
        strong_value = bytes(view[start + WEAK_LEN : start + stride])
        table.weak_sums.append(weak_value)
        table.strong_sums.append(strong_value)
        table.blocks.setdefault((weak_value, strong_value), block)
    table.weak_set = set(table.weak_sums)
    return table


class _Search(msgspec.Struct):
    table: _Table
    data: memoryview
    pos: int
    stop: int
    base: int
    next_block: int
    false_bytes: int
    known: memoryview
    known_first: int
    strong_bytes: int = 0
    false_alarms: int = 0
    matches: list[list[int]] = msgspec.field(default_factory=list)

    def has_room(self) -> bool:
        return BATCH - len(self.matches) >= LANES

    def budget_allows(self, pos: int, size: int) -> bool:
        return self.false_bytes + size <= 2 * (self.base + pos + size)

    def sum_strongly(self, pos: int, size: int) -> bytes:
        self.strong_bytes += size
        return strong_sum(self.data[pos : pos + size], self.table.strong)[: self.table.strong_len]

    def count_false_alarms(self, windows: int, size: int) -> None:
        self.false_alarms += windows
        self.false_bytes += size

    def add_match(self, basis: int, length: int) -> None:
        if self.matches:
            last = self.matches[-1]
            if last[0] + last[2] == self.pos and last[1] + last[2] == basis:
                last[2] += length
                self.pos += length
                return
        self.matches.append([self.pos, basis, length])
        self.pos += length

    def known_from(self, pos: int) -> memoryview:
        """Records of the windows side by side from *pos* on that the caller has hashed already."""
        block_len = self.table.block_len
        if pos < self.known_first or (pos - self.known_first) % block_len:
            return self.known[:0]
        return self.known[(pos - self.known_first) // block_len * (WEAK_LEN + self.table.strong_len) :]

    def match_aligned(self) -> tuple[int, int]:
        """Take the windows at ``pos`` while they match: how many did, and the weak sum at ``pos``."""
        table, block_len = self.table, self.table.block_len
        known = self.known_from(self.pos)
        weak, strong = self._collect_lanes(known)
        count = len(weak) if weak[-1] >= 0 else len(weak) - 1
        if not known:
            while count and not self.budget_allows(self.pos, count * block_len):
                count -= 1
            strong = [self.sum_strongly(self.pos + i * block_len, block_len) for i in range(count)]
        matched = 0
        while matched < count:
            block = table.find(self.next_block, weak[matched], strong[matched])
            if block < 0:
                break
            self.add_match(block * block_len, block_len)
            self.next_block = block + 1
            matched += 1
        if not known:
            self.count_false_alarms(count - matched, (count - matched) * block_len)
        return matched, weak[0] if weak[0] >= 0 else ~weak[0]

    def _collect_lanes(self, known: memoryview) -> tuple[list[int], list[bytes]]:
        """Weak sums of the windows from ``pos`` on; the first without a candidate ends them, complemented."""
        table, block_len = self.table, self.table.block_len
        stride = WEAK_LEN + table.strong_len
        limit = min((len(self.data) - self.pos) // block_len, LANES)
        if known:
            limit = min(limit, len(known) // stride)
        weak: list[int] = []
        strong: list[bytes] = []
        for i in range(limit):
            start = self.pos + i * block_len
            if start >= self.stop:
                break
            if known:
                value = int.from_bytes(known[i * stride : i * stride + WEAK_LEN], "big")
                strong.append(bytes(known[i * stride + WEAK_LEN : (i + 1) * stride]))
            else:
                value = weak_sum(self.data[start : start + block_len], table.weak)
            has_next = self.next_block >= 0 and table.continues(self.next_block + i, value)
            if not has_next and value not in table.weak_set:
                weak.append(~value)
                break
            weak.append(value)
        return weak, strong

    def roll_to_match(self, weak: int) -> None:
        """Roll on from ``pos``, where no match begins, to the next match or the end."""
        table, block_len = self.table, self.table.block_len
        last = min(len(self.data) - block_len, self.stop - 1)
        for pos, rolled in _roll(table.weak, weak, self.data, self.pos, last, block_len):
            if rolled not in table.weak_set or not self.budget_allows(pos, block_len):
                continue
            block = table.find(self.next_block, rolled, self.sum_strongly(pos, block_len))
            if block >= 0:
                self.pos = pos
                self.next_block = block + 1
                self.add_match(block * block_len, block_len)
                return
            self.count_false_alarms(1, block_len)
        self.pos = last + 1

    def search_windows(self) -> None:
        if not self.table.weak_sums:
            self.pos = max(self.pos, self.stop)
        last = len(self.data) - self.table.block_len
        while self.pos < self.stop and self.pos <= last and self.has_room():
            matched, weak = self.match_aligned()
            if not matched:
                self.roll_to_match(weak)

    def search_tail(self) -> None:
        """Find the longest suffix of ``data[pos:]`` that is the last, short block of the old file."""
        table = self.table
        if not table.weak_sums:
            return
        weak = weak_sum(self.data[self.pos :], table.weak)
        for pos in range(self.pos, len(self.data)):
            rest = len(self.data) - pos
            if weak == table.weak_sums[-1] and self.budget_allows(pos, rest):
                if self.sum_strongly(pos, rest) == table.strong_sums[-1]:
                    self.pos = pos
                    self.add_match((len(table.weak_sums) - 1) * table.block_len, rest)
                    return
                self.count_false_alarms(1, rest)
            weak = _shrink(table.weak, weak, self.data[pos], rest)


def search(
    table: object,
    data: Buffer,
    pos: int,
    stop: int,
    base: int,
    next_block: int,
    false_bytes: int,
    known: Buffer,
    known_first: int,
    is_last: bool,
    /,
) -> tuple[int, int, int, int, int, bytes, bool]:
    """One step of the search for what of a new file is in the old one.

    Args:
        table: from :func:`build_table`.
        data: part of the new file.
        pos: where in *data* to begin.
        stop: no match begins at or after it.
        base: the offset of *data* in the new file.
        next_block: the block that would continue the last match; -1 without.
        false_bytes: bytes strong-summed in vain so far, as the last step returned them.
        known: records of blocks of *data* that have been hashed already; may be empty.
        known_first: where in *data* the first of them begins.
        is_last: *data* ends where the file does.

    Returns:
        The first position not decided, the next *next_block* and *false_bytes*, bytes strong-summed in this
        step and windows strong-summed in vain, the matches (each three native 64-bit numbers: position in
        *data*, offset in the old file, length) and whether they were too many: then call again from the
        returned position.

    Raises:
        ValueError: a position outside *data*.
    """
    assert isinstance(table, _Table)
    view, known_view = memoryview(data), memoryview(known)
    if not 0 <= pos <= len(view) or not 0 <= stop <= len(view) or known_first < 0:
        raise ValueError("search positions out of range")
    if len(known_view) % (WEAK_LEN + table.strong_len):
        raise ValueError("known records end within a record")
    step = _Search(table, view, pos, stop, base, next_block, false_bytes, known_view, known_first)
    step.search_windows()
    is_full = not step.has_room()
    if is_last and not is_full:
        step.search_tail()
    matches = b"".join(_TRIPLE.pack(*match) for match in step.matches)
    return step.pos, step.next_block, step.false_bytes, step.strong_bytes, step.false_alarms, matches, is_full


def _roll(
    kind: int, weak: int, data: memoryview, pos: int, last: int, block_len: int
) -> Iterator[tuple[int, int]]:
    """Positions and weak sums of the windows after *pos*, up to that at *last*."""
    if kind == WeakSum.RABINKARP:
        leaving = pow(_RK_MULT, block_len, 1 << 32)
        for i in range(pos, last):
            weak = (weak * _RK_MULT + data[i + block_len] - leaving * (data[i] + _RK_ADJUST)) & _MASK
            yield i + 1, weak
        return
    s1, s2 = weak & 0xFFFF, weak >> 16
    for i in range(pos, last):
        s1 = (s1 + data[i + block_len] - data[i]) & 0xFFFF
        s2 = (s2 + s1 - block_len * (data[i] + _ROLLSUM_OFFSET)) & 0xFFFF
        yield i + 1, s2 << 16 | s1


def _shrink(kind: int, weak: int, first: int, length: int) -> int:
    """The weak sum without the first of *length* bytes."""
    if kind == WeakSum.RABINKARP:
        return (weak - pow(_RK_MULT, length - 1, 1 << 32) * (first + _RK_ADJUST)) & _MASK
    value = first + _ROLLSUM_OFFSET
    return ((weak >> 16) - length * value & 0xFFFF) << 16 | (weak & 0xFFFF) - value & 0xFFFF


def parse_commands(data: Buffer, base: int, /) -> tuple[int, int, bytes]:
    """Parse the commands of a delta from *data*, which lies at offset *base* of the delta.

    A literal's bytes are skipped and may lie beyond *data*.

    Returns:
        A status (one of ``PARSE_*``), the offset in the delta of the first command not parsed, and the
        commands (each three native 64-bit numbers: kind, offset in the basis or of the literal's bytes in
        the delta, length).
    """
    view = memoryview(data)
    commands: list[bytes] = []
    following = base
    while len(commands) < BATCH and following - base < len(view):
        opcode = view[following - base]
        if opcode == END:
            return PARSE_END, following + 1, b"".join(commands)
        if opcode >= _RESERVED:
            return PARSE_UNKNOWN, following, b"".join(commands)
        first, second = _parameter_widths(opcode)
        numbers = bytes(view[following - base + 1 : following - base + 1 + first + second])
        if len(numbers) < first + second:
            break
        header_end = following + 1 + first + second
        number = int.from_bytes(numbers[:first], "big") if first else opcode
        kind, offset, length = LITERAL, header_end, number
        if opcode >= COPY_N1_N1:
            kind, offset, length = COPY, number, int.from_bytes(numbers[first:], "big")
        if not length:
            return PARSE_EMPTY, following, b"".join(commands)
        if offset > _INT64_MAX or length > _INT64_MAX - offset:
            return PARSE_WRAPS, following, b"".join(commands)
        commands.append(_TRIPLE.pack(kind, offset, length))
        following = header_end + length if kind == LITERAL else header_end
    return PARSE_MORE, following, b"".join(commands)


def apply_delta(basis: Buffer, delta: Buffer, max_len: int, /) -> bytes | None:
    """The file that *delta* makes of *basis*.

    Returns:
        None where the delta is damaged, not for this basis, or makes more than *max_len* bytes: who wants to know
        which reads its commands.
    """
    old, view = memoryview(basis), memoryview(delta)
    out = bytearray()
    status, following = PARSE_MORE, len(DELTA_MAGIC)
    if view[:following] != DELTA_MAGIC:
        return None
    while status == PARSE_MORE:
        start = following
        status, following, packed = parse_commands(view[start:], start)
        if status == PARSE_MORE and following == start:
            return None
        for kind, offset, length in _TRIPLE.iter_unpack(packed):
            source = old if kind == COPY else view
            if offset + length > len(source) or len(out) + length > max_len:
                return None
            out += source[offset : offset + length]
    return bytes(out) if status == PARSE_END and following == len(view) else None


def _parameter_widths(opcode: int) -> tuple[int, int]:
    """Bytes of the first and of the second number after *opcode*."""
    if opcode <= SHORT_LITERAL_MAX:
        return 0, 0
    if opcode < COPY_N1_N1:
        return 1 << (opcode - LITERAL_N1), 0
    return 1 << (opcode - COPY_N1_N1) // 4, 1 << (opcode - COPY_N1_N1) % 4


def _md4(data: bytes) -> bytes:
    """MD4 (RFC 1320); hashlib has it only where OpenSSL's legacy provider is loaded."""
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476]
    padding = b"\x80" + bytes(-(len(data) + 9) % 64)
    message = data + padding + (len(data) * 8 & (1 << 64) - 1).to_bytes(8, "little")
    for words in struct.iter_unpack("<16I", message):
        a, b, c, d = state
        for i in range(48):
            mixed, constant, word, shift = _md4_step(i, b, c, d)
            total = (a + mixed + words[word] + constant) & _MASK
            a, d, c, b = d, c, b, (total << shift | total >> 32 - shift) & _MASK
        state = [(old + new) & _MASK for old, new in zip(state, (a, b, c, d), strict=True)]
    return struct.pack("<4I", *state)


_MD4_SHIFTS = ((3, 7, 11, 19), (3, 5, 9, 13), (3, 9, 11, 15))
_MD4_THIRD_ROUND = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)


def _md4_step(i: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """Mixed state, constant, message word and rotation of step *i*."""
    turn, step = divmod(i, 16)
    shift = _MD4_SHIFTS[turn][step % 4]
    if turn == 0:
        return d ^ (b & (c ^ d)), 0, step, shift
    if turn == 1:
        return b & c | d & (b | c), 0x5A827999, step % 4 * 4 + step // 4, shift
    return b ^ c ^ d, 0x6ED9EBA1, _MD4_THIRD_ROUND[step], shift
