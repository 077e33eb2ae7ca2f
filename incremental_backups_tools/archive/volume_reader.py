"""Reading a volume by range, or from front to back, trusting none of it."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

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
from incremental_backups_tools.exceptions import ArchiveFormatError, IntegrityError, LimitExceededError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Neighbouring frames are fetched together up to this length, so that a store is not asked for each MiB.
READ_LEN = 4 << 20
# One fetch for the table of a volume of up to 2,046 frames (2 GiB of tar).
_TAIL_LEN = 16 << 10
_CACHED_FRAMES = 4
_STREAM_BUFFER_LEN = 64 << 10


class VolumeReader:
    """A volume whose bytes come from anywhere. Safe to share between threads if *read_range* is.

    Memory: the seek table (16 bytes a frame), READ_LEN of compressed frames (or one frame), and the last few
        frames
    of which only a part was wanted, since small members share frames.

    Args:
        read_range: called with offset and length, returns exactly that many bytes of the file or raises.
        size: of the file.
        name: of the volume, for errors.

    Raises:
        ArchiveFormatError: no volume, or a seek table that contradicts itself or *size*.
        LimitExceededError: more or larger frames than are allowed.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int, *, name: str) -> None:
        self._read_range = read_range
        self._size = size
        self._name = name
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
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
        index, last = self._table.find(offset), self._table.find(end - 1)
        while index <= last:
            for frame, content in self._load_frames(index, last):
                start = max(0, offset - frame.tar_offset)
                stop = min(frame.tar_len, end - frame.tar_offset)
                # A frame that was taken whole is not wanted again.
                if stop - start < frame.tar_len:
                    self._remember(index, content)
                index += 1
                yield content[start:stop]

    def _load_frames(self, index: int, last: int) -> Iterator[tuple[Frame, bytes]]:
        """The frame *index*, and those after it that are worth fetching together with it."""
        first = self._table.frame(index)
        cached = self._recall(index)
        if cached is not None:
            yield first, cached
            return
        frames = [first]
        fetched_len = first.length
        for following in range(index + 1, last + 1):
            frame = self._table.frame(following)
            fetched_len += frame.length
            if fetched_len > READ_LEN or following in self._cache:
                break
            frames.append(frame)
        end = frames[-1].offset + frames[-1].length
        raw = memoryview(self._fetch(first.offset, end - first.offset))
        for frame in frames:
            start = frame.offset - first.offset
            yield frame, self._decompress(frame, raw[start : start + frame.length])

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

    def _recall(self, index: int) -> bytes | None:
        with self._lock:
            content = self._cache.get(index)
            if content is not None:
                self._cache.move_to_end(index)
            return content

    def _remember(self, index: int, content: bytes) -> None:
        with self._lock:
            self._cache[index] = content
            self._cache.move_to_end(index)
            if len(self._cache) > _CACHED_FRAMES:
                self._cache.popitem(last=False)


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
