"""Where bytes come from and where they go: paths, binary file objects and buffers."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import WriteableBuffer
    from typing_extensions import Buffer

__all__ = [
    "FileOrBuffer",
    "Part",
    "Reservation",
    "open_seekable",
    "open_stream",
    "read_into",
    "reader_at",
    "write_all",
]

FileOrBuffer: TypeAlias = "BinaryIO | str | os.PathLike[str] | bytes | bytearray | memoryview"


@contextmanager
def open_stream(source: FileOrBuffer) -> Iterator[BinaryIO]:
    """*source* as a binary file object to read from where it stands; what was opened here is closed here.

    Raises:
        OSError: a path cannot be opened.
        TypeError: *source* is none of path, binary file object and buffer.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        with open(source, "rb", buffering=0) as file:
            yield file
    elif hasattr(source, "read"):
        yield source
    else:
        raise TypeError(f"expected a path, a binary file object or a buffer, got {type(source).__name__}")


@contextmanager
def open_seekable(source: FileOrBuffer) -> Iterator[BinaryIO]:
    """As :func:`open_stream`, but for reading at any offset.

    Raises:
        ValueError: a file object that cannot seek.
    """
    with open_stream(source) as file:
        if not file.seekable():
            raise ValueError("the file must be seekable")
        yield file


def read_into(file: BinaryIO, buffer: memoryview) -> int:
    """Fill *buffer* from *file*; less than all of it only at the end of the file.

    Raises:
        BlockingIOError: a non-blocking file has no data now.
    """
    readinto = getattr(file, "readinto", None)
    filled = 0
    while filled < len(buffer):
        if readinto is not None:
            count = readinto(buffer[filled:])
        else:
            data = file.read(len(buffer) - filled)
            count = None if data is None else len(data)
            buffer[filled : filled + len(data or b"")] = data or b""
        if count is None:
            raise BlockingIOError("the file has no data now; it must be opened for blocking reads")
        if count == 0:
            break
        filled += count
    return filled


def reader_at(file: BinaryIO) -> Callable[[int, memoryview], int]:
    """A function that reads at an offset into a buffer and returns how many bytes; 0 only at the file's end.

    A plain file is read by one call of the system a time, any other by seeking.
    """
    if type(file) in (io.FileIO, io.BufferedReader) and hasattr(os, "preadv"):
        descriptor = file.fileno()
        return lambda offset, buffer: os.preadv(descriptor, (buffer,), offset)

    def read_at(offset: int, buffer: memoryview) -> int:
        file.seek(offset)
        return read_into(file, buffer)

    return read_at


class Part(io.RawIOBase):
    """A part of what can be read at any place, as a file.

    Args:
        read_at: as :func:`reader_at` gives it.
        start, length: where the part lies.
    """

    def __init__(self, read_at: Callable[[int, memoryview], int], start: int, length: int) -> None:
        self._read_at = read_at
        self._start = start
        self._length = length
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._length}[whence]
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._length - self._offset))
        count = self._read_at(self._start + self._offset, view[:length]) if length else 0
        self._offset += count
        return count


def write_all(file: BinaryIO, data: Buffer) -> None:
    """Write *data* whole; an unbuffered file may take it in parts."""
    view = memoryview(data)
    while len(view):
        written = file.write(view)
        if written is None:
            raise BlockingIOError("the file takes no data now; it must be opened for blocking writes")
        view = view[written:]


# A class that only has a descriptor, such as gzip's, writes something else to it than what it is given.
_PLAIN_FILES = (io.FileIO, io.BufferedWriter, io.BufferedRandom)

_FALLOC_FL_KEEP_SIZE = 1  # linux/falloc.h
_RESERVE_STEP = 128 * 1024 * 1024
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS)


class Reservation:
    """Reserves room on disk ahead of what is appended to a file, where the file system knows how.

    Writing into space that was reserved in large pieces took two thirds of the time on ext4, and a full disk is
    noticed before the work is done. The file's size and content are not touched. Not posix_fallocate(3): where
    the file system cannot reserve, that one writes to every block instead.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = _appendable_descriptor(file)
        self._start = file.tell() if self._descriptor is not None else 0
        self._reserved = 0

    @property
    def is_held(self) -> bool:
        """Whether there is room to give back."""
        return self._descriptor is not None and self._reserved > 0

    def cover(self, length: int) -> None:
        """Make sure that *length* bytes from the file's first position on have their room.

        Raises:
            OSError: there is no room.
        """
        while self._descriptor is not None and self._reserved < length:
            try:
                _fallocate(self._descriptor, self._start + self._reserved, _RESERVE_STEP)
            except OSError as error:
                if error.errno not in _CANNOT_RESERVE:
                    raise
                self._descriptor = None
            self._reserved += _RESERVE_STEP

    def release(self, length: int) -> None:
        """Give back what lies behind the *length* bytes that were written; they must have been flushed."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, self._start + length)


def _appendable_descriptor(file: BinaryIO) -> int | None:
    """The descriptor of a plain file at its end; None for anything else."""
    if type(file) not in _PLAIN_FILES:
        return None
    descriptor = file.fileno()
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode) or file.tell() != info.st_size:
        return None
    return descriptor


def _fallocate(descriptor: int, offset: int, length: int) -> None:
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(descriptor, _FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
