"""The numbers of librsync's file formats, and nothing else.

Source: librsync's ``doc/formats.md``; every detail is held against ``rdiff`` by ``tests/interop``.
All integers are big-endian.

A signature::

    magic        4 bytes
    block_len    4
    strong_len   4
    then for each block of the file, the last of which may be shorter:
    weak sum     4
    strong sum   strong_len

A delta is a magic and commands, the last of which is END::

    0x00         END
    0x01-0x40    literal of that many bytes, which follow
    0x41-0x44    literal, its length in the next 1, 2, 4 or 8 bytes, then its bytes
    0x45-0x54    copy: offset in the basis and length, each in 1, 2, 4 or 8 bytes
    0x55-0xff    reserved
"""

from __future__ import annotations

import enum
import struct

__all__ = [
    "COPY_N1_N1",
    "DELTA_MAGIC",
    "END",
    "LITERAL_N1",
    "MAX_BLOCK_LEN",
    "MAX_FILE_LEN",
    "SHORT_LITERAL_MAX",
    "SIGNATURE_HEADER",
    "WEAK_LEN",
    "SignatureMagic",
    "StrongSum",
    "WeakSum",
]

DELTA_MAGIC = b"rs\x026"
SIGNATURE_HEADER = struct.Struct(">III")
WEAK_LEN = 4

END = 0x00
SHORT_LITERAL_MAX = 0x40
LITERAL_N1 = 0x41
COPY_N1_N1 = 0x45

# librsync sets no limit. Windows of a block's length are held in memory, so a signature that declares more
# is refused; block_len grows with the square root of a file's size and gets nowhere near.
MAX_BLOCK_LEN = 1 << 24

# No file system holds a longer file.
MAX_FILE_LEN = (1 << 63) - 1


class WeakSum(enum.IntEnum):
    """The rolling sum of a block; the values are the kernel's."""

    ROLLSUM = 0
    RABINKARP = 1


class StrongSum(enum.IntEnum):
    """The hash of a block; the values are the kernel's."""

    MD4 = 0
    BLAKE2 = 1

    @property
    def max_len(self) -> int:
        """Bytes of the whole sum."""
        return 16 if self is StrongSum.MD4 else 32


class SignatureMagic(enum.IntEnum):
    """The first four bytes of a signature: which sums it holds."""

    MD4 = 0x72730136
    BLAKE2 = 0x72730137
    RK_MD4 = 0x72730146
    RK_BLAKE2 = 0x72730147

    @property
    def weak(self) -> WeakSum:
        """The rolling sum."""
        return WeakSum.RABINKARP if self & 0xF0 == 0x40 else WeakSum.ROLLSUM

    @property
    def strong(self) -> StrongSum:
        """The hash."""
        return StrongSum.BLAKE2 if self & 0x0F == 0x07 else StrongSum.MD4
