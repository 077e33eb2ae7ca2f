"""Writing a volume: a POSIX pax tar in independent zstd frames, closed by a seek table.

The frame rule, which is part of the format (a reader needs only the seek table and may not rely on it):

1. A frame holds whole members (headers, data and padding). Before a member begins, the open frame is closed
   if the member would make it longer than ``frame_len``.
2. A member that is longer than ``frame_len`` by itself therefore begins at a frame boundary. It is cut every
   ``frame_len`` bytes, and its last piece stays open for the members that follow.
3. The two blocks of zeros that end the tar have a frame of their own, the last one.

So merging backups can copy frames as they lie, one after the other (``carrier.py``), and taking back a member
that is being written cuts the file at a frame boundary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import BinaryIO

import msgspec

from incremental_backups_tools.archive.frame_writer import FrameWriter
from incremental_backups_tools.archive.seek_table import MAX_FRAME_LEN
from incremental_backups_tools.archive.tar import (
    BLOCK_LEN,
    END_OF_ARCHIVE,
    TarMember,
    encode_member_header,
    padding_len,
)

FRAME_LEN = 1 << 20
_ZEROS = bytes(BLOCK_LEN)


class VolumeInfo(msgspec.Struct, frozen=True):
    """A finished volume.

    Attributes:
        size: bytes of the file.
        digest: BLAKE3 of the file as it lies.
        tar_len: bytes of the uncompressed tar, with the blocks that end it.
        member_count: members in it.
    """

    size: int
    digest: bytes
    tar_len: int
    member_count: int


class _OpenMember(msgspec.Struct):
    """The member being streamed, and what to go back to."""

    name: bytes
    size: int
    written: int
    tar_offset: int
    frame_offset: int
    has_own_frames: bool


class VolumeWriter:
    """Writes members one after the other. For one thread.

    Args:
        file: a local binary file at position 0, writable, seekable and truncatable. It is flushed at the end,
            neither synchronised nor closed.
        level: zstd's level.
        first_level: of the first frames; see FrameWriter.
        pool: where frames are compressed; None is in the calling thread. Waiting for it from one of its own
            workers would be a deadlock: a writer must not run in its own pool.
        frame_len: see the frame rule.
        workers: threads of *pool*; twice as many frames are in flight. None is the number of processors.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        level: int = 3,
        pool: Executor | None = None,
        frame_len: int = FRAME_LEN,
        workers: int | None = None,
        first_level: int | None = None,
    ) -> None:
        if not len(END_OF_ARCHIVE) <= frame_len <= MAX_FRAME_LEN:
            raise ValueError(
                f"frame_len is {frame_len}, must be from {len(END_OF_ARCHIVE)} to {MAX_FRAME_LEN}"
            )
        self._frames = FrameWriter(
            file,
            level=level,
            pool=pool,
            max_in_flight=(workers or os.cpu_count() or 1) + 1,
            first_level=first_level,
        )
        self._frame_len = frame_len
        self._frame = bytearray()
        self._tar_len = 0
        self._member_count = 0
        self._member: _OpenMember | None = None
        self._finished = False

    @property
    def tar_len(self) -> int:
        """Bytes of the uncompressed tar so far."""
        return self._tar_len

    def add(self, member: TarMember, data: bytes | bytearray | memoryview = b"") -> int:
        """Write a whole member.

        Returns:
            The offset of its data in the uncompressed tar.

        Raises:
            ValueError: the length of *data* is not the member's size, or the member cannot stand in a tar.
            LimitExceededError: its extended headers are too long; nothing was written.
        """
        view = memoryview(data).cast("B")
        if len(view) != member.size:
            raise ValueError(f"{member.name!r}: {len(view)} bytes of data, its header says {member.size}")
        self._require_no_member("add")
        header = encode_member_header(member)
        padding = padding_len(member.size)
        length = len(header) + member.size + padding
        if len(self._frame) + length > self._frame_len:
            self._close_frame()
        offset = self._tar_len + len(header)
        if length <= self._frame_len:
            self._frame += header
            self._frame += view
            self._frame += _ZEROS[:padding]
            self._tar_len += length
        else:
            for piece in (header, view, _ZEROS[:padding]):
                self._append(piece)
        self._member_count += 1
        return offset

    def begin(self, member: TarMember) -> int:
        """Begin a member whose data are then given to :meth:`write`. Returns and raises as :meth:`add`."""
        return self._begin(member, can_roll_back=True)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Add data to the member begun. What exceeds its size is not stored, but makes :meth:`end` fail."""
        member = self._require_member("write")
        view = memoryview(chunk).cast("B")
        room = max(0, member.size - member.written)
        member.written += len(view)
        self._append(view[:room])

    def end(self) -> None:
        """End the member begun.

        Raises:
            ValueError: more or fewer bytes were written than its size. It stays open: roll it back.
        """
        member = self._require_member("end")
        if member.written != member.size:
            raise ValueError(
                f"{member.name!r}: {member.written} bytes of data, its header says {member.size}"
            )
        self._end()

    def rollback(self) -> None:
        """Forget the member that was begun and not ended: the volume is as if it never had been."""
        member = self._require_member("rollback")
        if member.has_own_frames:
            self._frames.rewind()
        del self._frame[member.frame_offset :]
        self._tar_len = member.tar_offset
        self._member = None

    def add_encoded(self, piece: bytes | memoryview, *, member_len: int | None = None) -> None:
        """Write a piece of a member as it stands in another volume's tar: header, data, padding.

        Args:
            member_len: of the whole, where *piece* is its beginning; the rest follows in further calls, or as
                frames.
        """
        self._require_no_member("add_encoded")
        if member_len is not None:
            if len(self._frame) + member_len > self._frame_len:
                self._close_frame()
            self._member_count += 1
        self._append(piece)

    def members_buffer(self, most: int) -> bytearray:
        """Where to append whole members, of *most* bytes together, for :meth:`add_members`, the next call.

        It is the frame itself where they fit, so that they are written once.
        """
        self._require_no_member("members_buffer")
        return self._frame if len(self._frame) + most <= self._frame_len else bytearray()

    def add_members(self, members: bytearray, lens: Sequence[int]) -> None:
        """Take the whole members that *members*, of :meth:`members_buffer`, was given: of *lens* bytes each."""
        self._require_no_member("add_members")
        if members is not self._frame and len(self._frame) + len(members) <= self._frame_len:
            self._frame += members
            members = self._frame
        if members is self._frame:
            self._tar_len += sum(lens)
            self._member_count += len(lens)
            return
        begin = 0
        view = memoryview(members)
        for length in lens:
            self.add_encoded(view[begin : begin + length], member_len=length)
            begin += length

    def add_frame(self, frame: bytes, tar_len: int, *, member_count: int) -> None:
        """Write another volume's frame as it lies: *tar_len* bytes of tar, in which *member_count* begin.

        It must begin where what was written ended: with a member, or going on with one.
        """
        self._require_no_member("add_frame")
        self._close_frame()
        self._frames.submit_compressed(frame, tar_len)
        self._tar_len += tar_len
        self._member_count += member_count

    def finish(self) -> VolumeInfo:
        """End the tar, write the seek table and flush the file.

        Raises:
            ValueError: a member is open, or the volume failed or was finished before.
        """
        self._require_no_member("finish")
        self._finished = True
        self._close_frame()
        self._append(END_OF_ARCHIVE)
        self._close_frame()
        size, digest = self._frames.finish()
        return VolumeInfo(size, digest, self._tar_len, self._member_count)

    def abandon(self) -> None:
        """Nothing more is written to the file once this returns. To be called before an unfinished one is closed."""
        self._finished = True
        self._frames.abandon()

    def _begin(self, member: TarMember, *, can_roll_back: bool) -> int:
        self._require_no_member("begin")
        header = encode_member_header(member)
        length = len(header) + member.size + padding_len(member.size)
        if len(self._frame) + length > self._frame_len:
            self._close_frame()
        is_cut = length > self._frame_len
        if is_cut and can_roll_back:
            self._frames.set_mark()
        self._member = _OpenMember(member.name, member.size, 0, self._tar_len, len(self._frame), is_cut)
        self._append(header)
        return self._tar_len

    def _end(self) -> None:
        member = self._require_member("end")
        self._append(bytes(padding_len(member.size)))
        self._member_count += 1
        self._member = None

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        self._tar_len += len(data)
        if len(self._frame) + len(data) <= self._frame_len:
            self._frame += data
            return
        view = memoryview(data)
        while view:
            if len(self._frame) == self._frame_len:
                self._close_frame()
            room = self._frame_len - len(self._frame)
            self._frame += view[:room]
            view = view[room:]

    def _close_frame(self) -> None:
        if self._frame:
            frame, self._frame = self._frame, bytearray()
            self._frames.submit(frame)

    def _require_member(self, call: str) -> _OpenMember:
        if self._member is None:
            raise ValueError(f"{call}() without begin()")
        return self._member

    def _require_no_member(self, call: str) -> None:
        if self._finished:
            raise ValueError(f"{call}() after finish()")
        if self._member is not None:
            raise ValueError(f"{call}() while {self._member.name!r} is being written")
