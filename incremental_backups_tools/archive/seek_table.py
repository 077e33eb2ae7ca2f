"""The seek table at the end of a volume: where each zstd frame lies, and what part of the tar it holds. No
IO.

The format is "Zstandard Seekable Format" 0.1.0 (facebook/zstd, contrib/seekable_format): a skippable frame,
so that every zstd decoder passes over it. All integers are little-endian:

    0x184D2A5E, length of the rest                                           4 + 4 bytes
    for each frame: its compressed length, its decompressed length           4 + 4 bytes
    number of frames, descriptor, 0x8F92EAB1                                 4 + 1 + 4 bytes

The descriptor written is 0: no checksums, since each frame has its own. A table with checksums is read, they
are passed over.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError

# Frames are about 1 MiB; a larger one than this was not written by any sane encoder and would be held in
# memory whole.
MAX_FRAME_LEN = 64 << 20
# At 1 MiB a frame this is 16 TiB in one volume, and a table of 128 MiB.
MAX_FRAMES = 1 << 24

FOOTER_LEN = 9
_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_CHECKSUM_FLAG = 0x80
_RESERVED_BITS = 0x7C
# What incompressible data grow by: a block header each 128 KiB, the frame's header and checksum; and room to
# spare.
_MAX_GROWTH = 1 << 16


class Frame(msgspec.Struct, frozen=True):
    """Where a frame lies in the file, and which bytes of the tar it holds."""

    offset: int
    length: int
    tar_offset: int
    tar_len: int


class SeekTable:
    """The frames of a volume.

    Attributes:
        frame_count: number of frames.
        frames_len: bytes of the file before the table.
        tar_len: bytes of the uncompressed tar.
    """

    def __init__(self, compressed_lens: Sequence[int], tar_lens: Sequence[int]) -> None:
        self._offsets = array("Q", accumulate(compressed_lens, initial=0))
        self._tar_offsets = array("Q", accumulate(tar_lens, initial=0))
        self.frame_count = len(compressed_lens)
        self.frames_len = self._offsets[-1]
        self.tar_len = self._tar_offsets[-1]

    def frame(self, index: int) -> Frame:
        """The frame number *index*, from 0."""
        offset, tar_offset = self._offsets[index], self._tar_offsets[index]
        return Frame(
            offset, self._offsets[index + 1] - offset, tar_offset, self._tar_offsets[index + 1] - tar_offset
        )

    def find(self, tar_offset: int) -> int:
        """The index of the frame that holds the byte *tar_offset* of the tar, which must be one."""
        return bisect_right(self._tar_offsets, tar_offset) - 1


def encode_seek_table(compressed_lens: Sequence[int], tar_lens: Sequence[int]) -> bytes:
    """The skippable frame that closes a volume."""
    entries = array("I", bytes(8 * len(compressed_lens)))
    entries[0::2] = array("I", compressed_lens)
    entries[1::2] = array("I", tar_lens)
    if sys.byteorder == "big":
        entries.byteswap()
    header = _HEADER.pack(_SKIPPABLE_MAGIC, len(entries) * entries.itemsize + FOOTER_LEN)
    return header + entries.tobytes() + _FOOTER.pack(len(compressed_lens), 0, _SEEKABLE_MAGIC)


def parse_table_len(footer: bytes) -> int:
    """The length of the whole skippable frame, from the last FOOTER_LEN bytes of the file.

    Raises:
        ArchiveFormatError: no seek table.
        LimitExceededError: more than MAX_FRAMES frames.
    """
    if len(footer) != FOOTER_LEN:
        raise ArchiveFormatError(f"no seek table: {len(footer)} bytes, its footer alone has {FOOTER_LEN}")
    frame_count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _SEEKABLE_MAGIC:
        raise ArchiveFormatError(f"no seek table: last bytes {magic:#010x}, expected {_SEEKABLE_MAGIC:#010x}")
    if descriptor & _RESERVED_BITS:
        raise ArchiveFormatError(f"seek table has the unknown descriptor {descriptor:#04x}")
    if frame_count > MAX_FRAMES:
        raise LimitExceededError(f"seek table of {frame_count} frames, at most {MAX_FRAMES} allowed")
    return _HEADER.size + int(frame_count) * _entry_len(descriptor) + FOOTER_LEN


def parse_seek_table(data: bytes, *, file_len: int, max_frame_len: int = MAX_FRAME_LEN) -> SeekTable:
    """The table out of its skippable frame.

    Args:
        data: the last bytes of the file, as many as :func:`parse_table_len` says.
        file_len: size of the file.
        max_frame_len: most bytes that a frame may hold.

    Raises:
        ArchiveFormatError: lengths that contradict one another or the file's, or a frame without content.
        LimitExceededError: a frame of more than *max_frame_len* bytes.
    """
    frame_count, descriptor, _ = _FOOTER.unpack(data[-FOOTER_LEN:])
    magic, rest_len = _HEADER.unpack_from(data)
    if magic != _SKIPPABLE_MAGIC or rest_len != len(data) - _HEADER.size:
        raise ArchiveFormatError(
            f"seek table of {frame_count} frames begins with {magic:#010x} and length {rest_len}, "
            f"expected {_SKIPPABLE_MAGIC:#010x} and {len(data) - _HEADER.size}"
        )
    entries = array("I")
    entries.frombytes(data[_HEADER.size : -FOOTER_LEN])
    if sys.byteorder == "big":
        entries.byteswap()
    step = _entry_len(descriptor) // entries.itemsize
    compressed_lens, tar_lens = entries[0::step], entries[1::step]
    if not frame_count or not min(compressed_lens) or not min(tar_lens):
        raise ArchiveFormatError("seek table without frames, or with an empty one")
    if max(tar_lens) > max_frame_len or max(compressed_lens) > max_frame_len + _MAX_GROWTH:
        raise LimitExceededError(
            f"frames of up to {max(compressed_lens)} bytes, {max(tar_lens)} uncompressed; "
            f"at most {max_frame_len} allowed"
        )
    table = SeekTable(compressed_lens, tar_lens)
    if table.frames_len + len(data) != file_len:
        raise ArchiveFormatError(
            f"seek table accounts for {table.frames_len + len(data)} bytes, the file has {file_len}"
        )
    return table


def _entry_len(descriptor: int) -> int:
    return 12 if descriptor & _CHECKSUM_FLAG else 8
