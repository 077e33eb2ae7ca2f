"""Reading a volume by range, or from front to back, trusting none of it."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.seek_table import (
    FOOTER_LEN,
    MAX_FRAME_LEN,
    Frame,
    SeekTable,
    parse_seek_table,
    parse_table_len,
)
from incremental_backups_tools.archive.tar import TarMember
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.exceptions import (
    ArchiveFormatError,
    BackupError,
    IntegrityError,
    LimitExceededError,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Neighbouring frames are fetched together up to this length, so that a store is not asked for each MiB.
READ_LEN = 4 << 20
# One fetch for the table of a volume of up to 2,046 frames (2 GiB of tar).
_TAIL_LEN = 16 << 10
_CACHE_LEN = 4 << 20
# Views of so many frames at a time may leave :meth:`VolumeReader.read_many`; of more, copies of what was wanted.
_MAX_VIEWED_FRAMES = 8
_TAR_BLOCK_LEN = 512
_STREAM_BUFFER_LEN = 64 << 10


class VolumeReader:
    """A volume whose bytes come from anywhere. Safe to share between threads if *read_range* is.

    Memory: the seek table (16 bytes a frame), READ_LEN of compressed frames (or one frame), and in *cache* the
    last few frames of which only a part was wanted, since small members share frames.

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
        cache: FrameCache | None = None,
    ) -> None:
        self._read_range = read_range
        self._size = size
        self._name = name
        self._cache = FrameCache(_CACHE_LEN) if cache is None else cache
        self._threads = threading.local()
        try:
            self._table = self._read_table()
        except (ArchiveFormatError, LimitExceededError) as error:
            raise type(error)(f"{name}: {error}") from error

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
        return b"".join(self.iter_range(offset, length))

    def iter_range(self, offset: int, length: int) -> Iterator[bytes]:
        """As :meth:`read`, in pieces of at most a frame.

        The range is checked at once, everything else as it is read.
        """
        self._check_range(offset, length)
        return self._iter_frames(offset, length) if length else iter(())

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | memoryview | BackupError]:
        """As :meth:`read` for each of several ranges, (offset, length), in whatever order they come.

        Neighbouring frames are fetched together and each is decompressed once. A range that cannot be read has
        its error in its place; what lies in other frames is none the worse for it.
        """
        results: list[bytes | memoryview | BackupError] = [b""] * len(ranges)
        spans: list[tuple[int, int, int]] = []  # first frame, last frame, position in *ranges*
        wanted: set[int] = set()
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
        spans.sort()
        ends: dict[int, int] = {}
        for _, last, position in spans:
            ends[last] = max(ends.get(last, 0), sum(ranges[position]))
        frames = self._iter_wanted(sorted(wanted))
        is_viewed = len(wanted) <= _MAX_VIEWED_FRAMES
        held: dict[int, tuple[Frame, bytes | BackupError]] = {}
        for first, last, position in spans:
            for index in [index for index in held if index < first]:
                self._keep(index, *held.pop(index), ends.get(index))
            while last not in held:
                index, frame, content = next(frames)
                held[index] = frame, content
            results[position] = self._cut(
                ranges[position], [held[i] for i in range(first, last + 1)], is_viewed
            )
        for index, loaded in held.items():
            self._keep(index, *loaded, ends.get(index))
        return results

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
        """A frame that will be wanted soon, as it lies.

        Raises:
            IntegrityError, RepositoryError: it is not there.
        """
        frame = self._table.frame(number)
        return RawFrame(self, number, self._fetch(frame.offset, frame.length))

    def keep_frame(self, number: int, raw: bytes) -> None:
        """Decompress a frame for those who will read it; one that is damaged they will be told of."""
        try:
            content = self._decompress(self._table.frame(number), memoryview(raw))
        except BackupError:
            return
        self._cache.put(self, number, content)

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
        return cast(BinaryIO, io.BufferedReader(_TarStream(self), _STREAM_BUFFER_LEN))

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
        data = self._read_range(offset, length)
        if len(data) != length:
            raise IntegrityError(
                f"{self._name}: {len(data)} bytes at {offset}, expected {length}",
                path=self._name,
                expected=length,
                actual=len(data),
            )
        return data

    def _iter_frames(self, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        indexes = range(self._table.find(offset), self._table.find(end - 1) + 1)
        for index, frame, content in self._iter_wanted(indexes):
            if isinstance(content, BackupError):
                raise content
            self._keep(index, frame, content, end)
            yield content[max(0, offset - frame.tar_offset) : min(frame.tar_len, end - frame.tar_offset)]

    def _iter_wanted(self, indexes: Sequence[int]) -> Iterator[tuple[int, Frame, bytes | BackupError]]:
        """The frames *indexes*, ascending; those that adjoin are fetched together, READ_LEN at a time."""
        position = 0
        while position < len(indexes):
            index = indexes[position]
            frame = self._table.frame(index)
            cached = self._cache.get(self, index)
            if cached is not None:
                yield index, frame, cached
                position += 1
                continue
            frames = [frame]
            fetched_len = frame.length
            for following in indexes[position + 1 :]:
                frame = self._table.frame(following)
                fetched_len += frame.length
                if (
                    following != index + len(frames)
                    or fetched_len > READ_LEN
                    or self._cache.get(self, following) is not None
                ):
                    break
                frames.append(frame)
            for loaded in self._load(frames):
                yield indexes[position], *loaded
                position += 1

    def _load(self, frames: list[Frame]) -> Iterator[tuple[Frame, bytes | BackupError]]:
        first = frames[0]
        try:
            raw = memoryview(self._fetch(first.offset, frames[-1].offset + frames[-1].length - first.offset))
        except BackupError as error:
            if len(frames) == 1:
                yield first, error
                return
            # A part of it cannot be read: what can be is not to be lost with it.
            for frame in frames:
                yield from self._load([frame])
            return
        for frame in frames:
            start = frame.offset - first.offset
            try:
                yield frame, self._decompress(frame, raw[start : start + frame.length])
            except BackupError as error:
                yield frame, error

    def _cut(
        self, wanted: tuple[int, int], frames: list[tuple[Frame, bytes | BackupError]], is_viewed: bool
    ) -> bytes | memoryview | BackupError:
        offset, length = wanted
        pieces: list[memoryview] = []
        for frame, content in frames:
            if isinstance(content, BackupError):
                return content
            start = max(0, offset - frame.tar_offset)
            pieces.append(memoryview(content)[start : min(frame.tar_len, offset + length - frame.tar_offset)])
        return pieces[0] if is_viewed and len(pieces) == 1 else b"".join(pieces)

    def _keep(self, index: int, frame: Frame, content: bytes | BackupError, end: int | None) -> None:
        """Keep a frame of which the part up to *end* was read: what comes next mostly lies behind that.

        None is a frame that was read to its end.
        """
        if isinstance(content, BackupError):
            return
        if end is not None and end + -end % _TAR_BLOCK_LEN < frame.tar_offset + frame.tar_len:
            self._cache.put(self, index, content)
        else:
            self._cache.drop(self, index)

    def _decompress(self, frame: Frame, raw: memoryview) -> bytes:
        """The content of one frame.

        python-zstandard's ``decompress`` allocates whatever length the frame declares, ignores
        max_window_size, and passes over what follows the frame unless told otherwise. So the header is
        compared with the table first; that the content has the declared length, zstd itself sees to.
        """
        where = f"{self._name}: frame at byte {frame.offset}"
        try:
            header = zstandard.get_frame_parameters(raw)
        except zstandard.ZstdError as error:
            raise ArchiveFormatError(f"{where}: {error}") from error
        if header.content_size != frame.tar_len:
            raise ArchiveFormatError(
                f"{where}: content of {header.content_size} bytes, the seek table says {frame.tar_len}"
            )
        if not header.has_checksum or header.dict_id or header.window_size > MAX_FRAME_LEN:
            raise ArchiveFormatError(
                f"{where}: has no checksum, needs a dictionary, or a window of {header.window_size} bytes"
            )
        try:
            return self._decompressor().decompress(raw, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise IntegrityError(
                f"{where}: damaged: {error}", path=self._name, expected=frame.tar_len, actual=None
            ) from error

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._threads, "decompressor", None)
        if decompressor is None:
            decompressor = self._threads.decompressor = zstandard.ZstdDecompressor()
        return decompressor


@dataclass(frozen=True, slots=True)
class RawFrame:
    """A frame of a volume as it lies."""

    volume: VolumeReader
    number: int
    raw: bytes

    def keep(self) -> None:
        """Decompress it for those who will read it; in any thread."""
        self.volume.keep_frame(self.number, self.raw)


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


class _TarStream(io.RawIOBase):
    """The uncompressed tar of a volume as a file."""

    def __init__(self, volume: VolumeReader) -> None:
        self._volume = volume
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._volume.tar_len}[whence]
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._volume.tar_len - self._offset))
        view[:length] = self._volume.read(self._offset, length)
        self._offset += length
        return length
