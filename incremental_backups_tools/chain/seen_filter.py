"""A filter that tells most contents that are new for certain, by one bit for some bits of a digest's beginning.

Most contents that a backup looks for are new, and asking a table takes longer than all else that is done about a small
file. A filter never says of one that was added that it is new.
"""

from __future__ import annotations

from typing import Final

# A power of two. With a million contents it still spares seven questions in eight.
FILTER_LEN: Final = 1 << 20


def new_filter() -> bytearray:
    """An empty one."""
    return bytearray(FILTER_LEN)


def digest_prefix(digest: bytes) -> int:
    """The first eight bytes of a digest as a signed big-endian number, by which tables and filters have it."""
    return int.from_bytes(digest[:8], "big", signed=True)


def add_to_filter(bits: bytearray, prefix: int) -> None:
    """Add a content by the :func:`digest_prefix` of its digest."""
    bit = prefix & (8 * len(bits) - 1)
    bits[bit >> 3] |= 1 << (bit & 7)


def is_in_filter(bits: bytearray, prefix: int) -> bool:
    """Whether a content may have been added."""
    bit = prefix & (8 * len(bits) - 1)
    return bool(bits[bit >> 3] >> (bit & 7) & 1)
