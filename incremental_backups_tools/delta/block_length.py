"""How long the blocks of a signature are, and how much of each strong sum is kept."""

from __future__ import annotations

from math import isqrt

__all__ = [
    "MAX_CHOSEN_LEN",
    "MIN_CHOSEN_LEN",
    "choose_block_len",
    "rdiff_block_len",
    "rdiff_min_strong_len",
]

MIN_CHOSEN_LEN = 1024
MAX_CHOSEN_LEN = 64 * 1024
_STEP = 512


def choose_block_len(file_size: int) -> int:
    """The block length for the signature of a file of *file_size* bytes.

    An edit of one byte costs a block in the delta, a block costs 20 bytes in the signature. For one edit per
    version the two are in balance near the square root of the size, which is also librsync's choice; the
    bounds keep small files from signatures larger than themselves and edits of large files from costing more
    than 64 KiB.

    Returns:
        A multiple of 512 from 1,024 (files up to 1 MiB) to 65,536 (files from 4 GiB).

    Raises:
        ValueError: *file_size* is negative.
    """
    if file_size < 0:
        raise ValueError(f"a file size must not be negative, got {file_size}")
    wanted = -(-isqrt(file_size) // _STEP) * _STEP
    return min(max(wanted, MIN_CHOSEN_LEN), MAX_CHOSEN_LEN)


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
