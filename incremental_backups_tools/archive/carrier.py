"""Carrying members from one volume into another: frame by frame as they lie, where whole frames stay as they are.

A member's place in the tar is nowhere in its bytes, so frames that hold nothing but members to be kept, one after
the other, need neither be decompressed nor compressed. Where a run of such members begins or ends within a frame,
the members there are written anew.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from incremental_backups_tools.archive.seek_table import Frame
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.archive.volume_writer import FRAME_LEN, VolumeWriter

# Frames are cut short where runs begin and end. Those below this length are written anew with their neighbours,
# so that a volume does not crumble when it is carried again and again.
MIN_CARRIED_LEN: Final = FRAME_LEN // 4


class _Run(msgspec.Struct):
    """Neighbouring members of one volume, of which the tar up to *position* was written."""

    reader: VolumeReader
    position: int
    end: int
    # Beginning and end of those that are not written yet.
    members: deque[tuple[int, int]] = msgspec.field(default_factory=deque)


class Carrier:
    """Writes members of other volumes into *writer*. :meth:`flush` comes before anything else is written to it."""

    def __init__(self, writer: VolumeWriter) -> None:
        self._writer = writer
        self._run: _Run | None = None
        self.carried_bytes = 0  # of tar, in frames that were copied as they lie

    @property
    def tar_len(self) -> int:
        """Bytes of the uncompressed tar with all members taken so far."""
        return self._writer.tar_len + (self._run.end - self._run.position if self._run is not None else 0)

    def take(self, reader: VolumeReader, start: int, length: int) -> int:
        """Carry one member: header, data and padding, *length* bytes of *reader*'s tar from *start* on.

        Returns:
            Where it begins in the new tar.

        Raises:
            ArchiveFormatError, IntegrityError, LimitExceededError, RepositoryError: *reader*'s volume is damaged
                or not there.
        """
        if self._run is None or self._run.reader is not reader or self._run.end != start:
            self.flush()
            self._run = _Run(reader, start, start)
        run = self._run
        offset = self.tar_len
        run.end = start + length
        run.members.append((start, run.end))
        while run.position < run.end:
            frame = reader.frame_at(run.position)
            if frame.tar_offset + frame.tar_len > run.end:
                break
            self._pass_frame(run, frame)
        return offset

    def flush(self) -> None:
        """Write what waits for the rest of its frame. Raises as :meth:`take`."""
        if self._run is not None:
            self._write_anew(self._run, self._run.end)
            self._run = None

    def _pass_frame(self, run: _Run, frame: Frame) -> None:
        """Bring all of *frame* that belongs to the run into the new volume."""
        end = frame.tar_offset + frame.tar_len
        if run.position != frame.tar_offset or frame.tar_len < MIN_CARRIED_LEN:
            self._write_anew(run, end)
            return
        beginning = sum(1 for start, _ in run.members if run.position <= start < end)
        self._writer.add_frame(run.reader.read_frame(frame), frame.tar_len, member_count=beginning)
        self.carried_bytes += frame.tar_len
        self._advance(run, end)

    def _write_anew(self, run: _Run, end: int) -> None:
        """Write the members up to *end*; of the last one perhaps a part."""
        while run.position < end:
            member_start, member_end = run.members[0]
            stop = min(member_end, end)
            member_len = member_end - member_start if run.position == member_start else None
            for piece in run.reader.iter_range(run.position, stop - run.position):
                self._writer.add_encoded(piece, member_len=member_len)
                member_len = None
            self._advance(run, stop)

    def _advance(self, run: _Run, position: int) -> None:
        run.position = position
        while run.members and run.members[0][1] <= position:
            run.members.popleft()
