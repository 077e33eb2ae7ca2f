"""How long the blocks of a signature are, and how much of each strong sum is kept."""

from __future__ import annotations

from math import isqrt

__all__ = [
    "MAX_CHOSEN_LEN",
    "MIN_CHOSEN_LEN",
    "choose_block_len",
    "keep_block_len",
    "rdiff_block_len",
    "rdiff_min_strong_len",
]

MIN_CHOSEN_LEN = 512
MAX_CHOSEN_LEN = 64 * 1024
_LARGE_LEN = 2048
_MAX_LARGE_BLOCKS = 1 << 20


def choose_block_len(file_size: int, *, before: int | None = None) -> int:
    """The block length for the signature of a file of *file_size* bytes.

    An edit costs a block in the delta; a block costs 20 bytes in the signature, and in the next one again where
    an insertion moved it. The two are in balance near the square root of the size. By how much was measured
    on source code, where a block of text compresses to a quarter: near six times the root
    (``python -m benchmarks.sizes --sweep``; the table is in ``docs/delta.rst``). Powers of two divide the
    pages of databases, and let a file that grows keep its length, without which no record of its signature
    stays as it was.

    Above 64 KiB more and more files are databases and images rather than texts: their edits are many and in
    place, where short blocks cost least. There the length is 2 KiB as long as the signature has a million
    blocks: one of 20 MiB, and in memory about as much again for its table. Beyond, it doubles with the size.

    Args:
        before: the block length of the file's signature so far. It is kept while it is at most twice or half of
            what would be chosen, so that a file whose size swings around a step is not signed anew each time.

    Returns:
        A power of two from 512 (files below 16 KiB) to 65,536 (files above 32 GiB), or *before*.

    Raises:
        ValueError: *file_size* is negative.
    """
    if file_size < 0:
        raise ValueError(f"a file size must not be negative, got {file_size}")
    # The power of two nearest to sqrt(32 * size), on the scale of logarithms: 2^n while 32 * size < 2^(2n + 1).
    wanted = 1 << ((32 * file_size).bit_length() // 2)
    fewest = -(-file_size // _MAX_LARGE_BLOCKS)
    wanted = max(min(wanted, _LARGE_LEN), 1 << max(fewest - 1, 0).bit_length())
    return keep_block_len(min(max(wanted, MIN_CHOSEN_LEN), MAX_CHOSEN_LEN), before)


def keep_block_len(chosen: int, before: int | None) -> int:
    """The block length *before* while it is at most twice or half of the one *chosen*; else that."""
    return before if before is not None and chosen <= 2 * before <= 4 * chosen else chosen


def rdiff_block_len(file_size: int | None) -> int:
    """The block length that ``rdiff signature`` takes where none is given; None is a size that is not known."""
    if file_size is None:
        return 2048
    return 256 if file_size <= 256 * 256 else isqrt(file_size) & ~127


def rdiff_min_strong_len(file_size: int | None, block_len: int) -> int:
    """The fewest bytes of a strong sum that rdiff holds safe against chance (``-S -1``).

    Enough that a delta of a file of this size, not chosen by an enemy, goes wrong once in 2^16 or more.
    """
    if file_size is None:
        return 12
    bits = (file_size + (1 << 24)).bit_length() - 1 + (file_size // block_len + 1).bit_length() - 1
    return 2 + (bits + 7) // 8
