"""Reading a volume by range, or from front to back, trusting none of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO, cast

from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.frame_reader import FrameReader, LoadedFrame, RawFrame, fetch
from incremental_backups_tools.archive.seek_table import (
    FOOTER_LEN,
    Frame,
    SeekTable,
    parse_seek_table,
    parse_table_len,
)
from incremental_backups_tools.archive.tar import TarMember
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.delta.streams import Part
from incremental_backups_tools.exceptions import (
    ArchiveFormatError,
    BackupError,
    LimitExceededError,
)
from incremental_backups_tools.idle import IdleWorkers

# One fetch for the table of a volume of up to 2,046 frames (2 GiB of tar).
_TAIL_LEN = 16 << 10
_CACHE_LEN = 4 << 20
# Views of so many frames at a time may leave :meth:`VolumeReader.read_many`; of more, copies of what was wanted.
_MAX_VIEWED_FRAMES = 8
_TAR_BLOCK_LEN = 512
_STREAM_BUFFER_LEN = 64 << 10


class VolumeReader:
    """A volume whose bytes come from anywhere. Safe to share between threads if *read_range* is.

    Memory: the seek table (16 bytes a frame), READ_LEN of compressed frames (or one frame) for each thread that reads,
    and in *cache* the last few frames of which only a part was wanted, since small members share frames. Where idle
    workers read ahead, 8 MiB of content and as much of compressed frames (or one frame) come to that.

    Args:
        read_range: called with offset and length, returns exactly that many bytes of the file or raises.
        size: of the file.
        name: of the volume, for errors.
        cache: where frames are kept, to be shared with other volumes; None is a small one of its own.

    Raises:
        ArchiveFormatError: no volume, or a seek table that contradicts itself or *size*.
        LimitExceededError: more or larger frames than are allowed.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: int,
        *,
        name: str,
        cache: FrameCache[bytes] | None = None,
    ) -> None:
        self._read_range = read_range
        self._size = size
        self._name = name
        try:
            self._table = self._read_table()
        except (ArchiveFormatError, LimitExceededError) as error:
            raise type(error)(f"{name}: {error}") from error
        own_cache: FrameCache[bytes] = FrameCache(_CACHE_LEN) if cache is None else cache
        self._frames = FrameReader(read_range, self._table, name=name, cache=own_cache)

    @property
    def name(self) -> str:
        return self._name

    @property
    def tar_len(self) -> int:
        """Bytes of the uncompressed tar."""
        return self._table.tar_len

    @property
    def opening_range(self) -> tuple[int, int]:
        """Offset and length of the part of the *file* that was read to open it: its end."""
        return self._size - self._opening_len, self._opening_len

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the uncompressed tar.

        Raises:
            ArchiveFormatError: a range that reaches beyond the tar, or a frame that is not what the table
                says.
            IntegrityError: a damaged frame.
        """
        self._check_range(offset, length)
        index = self._table.find(offset)
        if length and (content := self._frames.at_hand(index)) is not None:
            frame = self._table.frame(index)
            start = offset - frame.tar_offset
            piece = content[start : start + length]
            if len(piece) == length:
                if _is_read_up(frame, offset + length):
                    self._frames.drop(index)
                return piece
        return b"".join(self.iter_range(offset, length))

    def iter_range(
        self, offset: int, length: int, idle: IdleWorkers | None = None
    ) -> Generator[bytes, None, None]:
        """As :meth:`read`, in pieces of at most a frame.

        The range is checked at once, everything else as it is read.

        Args:
            idle: fetch and decompress some frames ahead.
        """
        self._check_range(offset, length)
        return self._iter_frames(offset, length, idle)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | BackupError]:
        """As :meth:`read` for each of several ranges, (offset, length), in whatever order they come.

        Neighbouring frames are fetched together and each is decompressed once. A range that cannot be read has
        its error in its place; what lies in other frames is none the worse for it.
        """
        results: list[bytes | memoryview | BackupError] = [b""] * len(ranges)
        spans: list[tuple[int, int, int]] = []  # first frame, last frame, position in *ranges*
        wanted: set[int] = set()
        ends: dict[int, int] = {}  # up to where a frame is read in which a range ends
        for position, (offset, length) in enumerate(ranges):
            try:
                self._check_range(offset, length)
            except ArchiveFormatError as error:
                results[position] = error
                continue
            if length:
                first, last = self._table.find(offset), self._table.find(offset + length - 1)
                spans.append((first, last, position))
                wanted.update(range(first, last + 1))
                if ends.get(last, 0) < offset + length:
                    ends[last] = offset + length
        spans.sort()
        frames = self._frames.iter_frames(sorted(wanted))
        is_viewed = len(wanted) <= _MAX_VIEWED_FRAMES
        held: dict[int, LoadedFrame] = {}
        for first, last, position in spans:
            for index in [index for index in held if index < first]:
                self._keep(held.pop(index), ends.get(index))
            while last not in held:
                loaded = next(frames)
                held[loaded.index] = loaded
            results[position] = self._cut(
                ranges[position], [held[i] for i in range(first, last + 1)], is_viewed
            )
        for index, loaded in held.items():
            self._keep(loaded, ends.get(index))
        return results

    def iter_frames(
        self, indexes: Iterable[int], idle: IdleWorkers | None = None
    ) -> Generator[LoadedFrame, None, None]:
        """Frames by their numbers, in any order; see :meth:`FrameReader.iter_frames`."""
        return self._frames.iter_frames(indexes, idle)

    def frame_number(self, offset: int) -> int:
        """The number of the frame that holds the byte *offset* of the tar.

        Raises:
            ArchiveFormatError: there is no such byte.
        """
        self._check_range(offset, 1)
        return self._table.find(offset)

    def frame_numbers(self, offset: int, length: int) -> range:
        """The numbers of the frames that hold a range of the tar.

        Raises:
            ArchiveFormatError: a range that reaches beyond the tar.
        """
        self._check_range(offset, length)
        if not length:
            return range(0)
        return range(self._table.find(offset), self._table.find(offset + length - 1) + 1)

    def raw_frame(self, number: int) -> RawFrame:
        """A frame that will be wanted soon, as it lies; see :meth:`FrameReader.raw`."""
        return self._frames.raw(number)

    def frames_for(self, offset: int, length: int) -> tuple[int, int]:
        """Offset and length of the part of the *file* that holds this range of the tar.

        Raises:
            ArchiveFormatError: a range that reaches beyond the tar.
        """
        self._check_range(offset, length)
        if not length:
            return 0, 0
        first = self._table.frame(self._table.find(offset))
        last = self._table.frame(self._table.find(offset + length - 1))
        return first.offset, last.offset + last.length - first.offset

    def frame_at(self, offset: int) -> Frame:
        """The frame that holds the byte at *offset* of the tar.

        Raises:
            ArchiveFormatError: the tar has no such byte.
        """
        self._check_range(offset, 1)
        return self._table.frame(self._table.find(offset))

    def read_frame(self, frame: Frame) -> bytes:
        """A frame as it lies. What is in it is not looked at.

        Raises:
            IntegrityError: the file ends within it.
        """
        return self._fetch(frame.offset, frame.length)

    def members(self) -> Iterator[tuple[TarMember, int]]:
        """Every member with the offset of its data. Frames that hold only data are not read.

        Iterating raises as TarParser and as :meth:`read`.
        """
        return iter(TarParser(self.open_tar(), name=self._name, tar_len=self.tar_len))

    def open_tar(self) -> BinaryIO:
        """The uncompressed tar as a file that can seek. Reading raises as :meth:`read`."""
        return cast(BinaryIO, io.BufferedReader(Part(self._read_at, 0, self.tar_len), _STREAM_BUFFER_LEN))

    def _read_at(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.read(offset, len(buffer))
        return len(buffer)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise ValueError(f"offset {offset} and length {length} must not be negative")
        if offset + length > self.tar_len:
            raise ArchiveFormatError(
                f"{self._name}: bytes {offset} to {offset + length} wanted, its tar has {self.tar_len}"
            )

    def _read_table(self) -> SeekTable:
        tail_len = min(self._size, _TAIL_LEN)
        tail = self._fetch(self._size - tail_len, tail_len)
        table_len = parse_table_len(tail[-FOOTER_LEN:])
        if table_len > self._size:
            raise ArchiveFormatError(f"seek table of {table_len} bytes in a file of {self._size}")
        if table_len > tail_len:
            tail = self._fetch(self._size - table_len, table_len - tail_len) + tail
        self._opening_len = len(tail)
        return parse_seek_table(tail[-table_len:], file_len=self._size)

    def _fetch(self, offset: int, length: int) -> bytes:
        return fetch(self._read_range, offset, length, name=self._name)

    def _iter_frames(
        self, offset: int, length: int, idle: IdleWorkers | None
    ) -> Generator[bytes, None, None]:
        end = offset + length
        with closing(self._frames.iter_frames(self.frame_numbers(offset, length), idle)) as frames:
            for loaded in frames:
                if isinstance(loaded.content, BackupError):
                    raise loaded.content
                self._keep(loaded, end)
                start = loaded.frame.tar_offset
                yield loaded.content[max(0, offset - start) : min(loaded.frame.tar_len, end - start)]

    def _cut(
        self, wanted: tuple[int, int], frames: list[LoadedFrame], is_viewed: bool
    ) -> bytes | memoryview | BackupError:
        offset, length = wanted
        pieces: list[memoryview] = []
        for loaded in frames:
            if isinstance(loaded.content, BackupError):
                return loaded.content
            start = loaded.frame.tar_offset
            view = memoryview(loaded.content)
            pieces.append(view[max(0, offset - start) : min(len(view), offset + length - start)])
        return pieces[0] if is_viewed and len(pieces) == 1 else b"".join(pieces)

    def _keep(self, loaded: LoadedFrame, end: int | None) -> None:
        """Keep a frame of which the part up to *end* was read: what comes next mostly lies behind that.

        None is a frame that was read to its end.
        """
        if end is None or _is_read_up(loaded.frame, end):
            self._frames.drop(loaded.index)
        else:
            self._frames.keep(loaded)


def _is_read_up(frame: Frame, end: int) -> bool:
    """Whether nothing but padding comes in a frame after the byte *end*."""
    return end + -end % _TAR_BLOCK_LEN >= frame.tar_offset + frame.tar_len


@contextmanager
def open_volume(fs_path: str | os.PathLike[str]) -> Iterator[VolumeReader]:
    """A volume that is a local file.

    Raises:
        OSError: it cannot be opened or read.
        ArchiveFormatError, LimitExceededError: as VolumeReader; also where the file was cut after it was
        opened.
    """
    name = os.fspath(fs_path)
    with open(name, "rb", buffering=0) as file:
        descriptor = file.fileno()

        def read_range(offset: int, length: int) -> bytes:
            return os.pread(descriptor, length, offset)

        yield VolumeReader(read_range, os.fstat(descriptor).st_size, name=name)
