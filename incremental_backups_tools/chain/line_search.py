"""Single lines of an index by their paths, while it is written or read elsewhere through the same file.

An index is sorted, in zstd frames that begin with whole lines: a path is found by bisection. Which path a frame
begins with is remembered, some tens of bytes for each MiB of an index.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import BinaryIO, Final, Protocol, cast

import msgspec
import zstandard
from blake3 import blake3

from incremental_backups_tools.archive.seek_table import (
    FOOTER_LEN,
    Frame,
    SeekTable,
    parse_seek_table,
    parse_table_len,
)
from incremental_backups_tools.exceptions import FormatError, LimitExceededError, StateFormatError
from incremental_backups_tools.tree.entry import bytes_of, sort_key
from incremental_backups_tools.tree.records import MAX_LINE_LEN, MAX_WINDOW_LEN

# What follows the table of frames: see ``encode_index_end``.
INDEX_END_LEN: Final = 40
_END_HEADER: Final = (0x184D2A50).to_bytes(4, "little") + (32).to_bytes(4, "little")

# The header of an index has the first frame.
_FIRST_FRAME: Final = 1
_CACHED_FRAMES: Final = 4
_FRAMES_AHEAD: Final = 2
# Frames are about 1 MiB, and more where lines are longer: two of the longest are copied at once.
_MAX_FRAME_LEN: Final = 4 * MAX_LINE_LEN
_CHUNK_LEN: Final = 1 << 18
_HASHED_LEN: Final = 1 << 20
_FIRST_LINE_LEN: Final = 1 << 16

log = logging.getLogger(__name__)


class _PathOfLine(msgspec.Struct):
    path: str | None = None
    path_b64: str | None = None


_path_decoder = msgspec.json.Decoder(_PathOfLine)


class FrameTable(Protocol):
    """Where the frames of an index lie."""

    @property
    def frame_count(self) -> int:
        """How many there are."""

    def frame(self, index: int, /) -> Frame:
        """The frame number *index*, from 0."""


class WrittenFrames:
    """The frames that a writer has written so far.

    Args:
        frame_lens: bytes of each in the file.
        content_lens: bytes that each holds. Both are the writer's own, and grow.
    """

    def __init__(self, frame_lens: array[int], content_lens: array[int]) -> None:
        self._frame_lens = frame_lens
        self._content_lens = content_lens
        self._offsets = array("Q", [0])
        self._content_offsets = array("Q", [0])

    @property
    def frame_count(self) -> int:
        """How many there are by now."""
        return len(self._frame_lens)

    def frame(self, index: int, /) -> Frame:
        """The frame number *index*, from 0."""
        for number in range(len(self._offsets) - 1, index + 1):
            self._offsets.append(self._offsets[number] + self._frame_lens[number])
            self._content_offsets.append(self._content_offsets[number] + self._content_lens[number])
        return Frame(
            self._offsets[index],
            self._frame_lens[index],
            self._content_offsets[index],
            self._content_lens[index],
        )


class LineSearch:
    """Finds lines of one index. What cannot be read is said in the log once, and nothing more is found.

    Args:
        file: the index; the caller keeps it open.
        frames: of one that is being written; None takes the table at the end of the file.
    """

    def __init__(self, file: BinaryIO, frames: FrameTable | None = None) -> None:
        self._file = file
        self._frames = frames
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
        self._first_keys: dict[int, bytes | None] = {}
        self._contents: OrderedDict[int, bytes] = OrderedDict()
        self._is_usable = True

    def line_of(self, path: bytes) -> bytes | None:
        """The line of *path*, without its newline; None where there is none."""
        if not self._is_usable:
            return None
        try:
            self._file.flush()
            if self._frames is None:
                self._frames = read_frame_table(self._file)
            key = sort_key(path)
            number = self._frame_with(self._frames, key)
            return _line_in(self._content(self._frames, number), key) if number is not None else None
        except (FormatError, LimitExceededError, zstandard.ZstdError, OSError, OverflowError) as error:
            self._is_usable = False
            log.warning("no single line of the cached index can be read any more: %s", error)
            return None

    def _frame_with(self, frames: FrameTable, key: bytes) -> int | None:
        """The last frame that begins at or before *key*."""
        low, high = _FIRST_FRAME - 1, frames.frame_count - 1
        while low < high:
            middle = (low + high + 1) // 2
            first = self._first_key(frames, middle)
            if first is None or first > key:
                high = middle - 1
            else:
                low = middle
        return low if low >= _FIRST_FRAME else None

    def _first_key(self, frames: FrameTable, number: int) -> bytes | None:
        """The sort key of the path that a frame begins with; None where that is no entry, behind them all."""
        if number not in self._first_keys:
            self._first_keys[number] = _key_of(self._first_line(frames.frame(number)))
        return self._first_keys[number]

    def _first_line(self, frame: Frame) -> bytes:
        source = cast(BinaryIO, ReaderFrom(self._file.fileno(), frame.offset))
        parts = []
        with self._decompressor.stream_reader(source, closefd=False) as reader:
            while chunk := reader.read(_FIRST_LINE_LEN):
                line, newline, _ = chunk.partition(b"\n")
                parts.append(line)
                if newline:
                    break
        return b"".join(parts)

    def _content(self, frames: FrameTable, number: int) -> bytes:
        content = self._contents.get(number)
        if content is None:
            frame = frames.frame(number)
            content = self._contents[number] = read_frame(self._file, frame, self._decompressor)
            if len(self._contents) > _CACHED_FRAMES:
                self._contents.popitem(last=False)
        self._contents.move_to_end(number)
        return content


def encode_index_end(digest: bytes) -> bytes:
    """What an index ends with: a skippable frame with the BLAKE3 of all bytes of the file before it."""
    return _END_HEADER + digest


def is_whole_index(file: BinaryIO) -> bool:
    """Whether the end of an index says of all before it that it is as it was written.

    Raises:
        OSError: it cannot be read.
    """
    fd = file.fileno()
    rest = os.fstat(fd).st_size - INDEX_END_LEN
    hasher = blake3()
    source = ReaderFrom(fd, 0)
    while rest > 0 and (chunk := source.read(min(rest, _HASHED_LEN))):
        hasher.update(chunk)
        rest -= len(chunk)
    return source.read(INDEX_END_LEN + 1) == encode_index_end(hasher.digest())


class ReaderFrom:
    """Reads an open file from an offset on, without moving its position."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most *size*; none at the end."""
        data = os.pread(self._fd, size if size >= 0 else _CHUNK_LEN, self._offset)
        self._offset += len(data)
        return data


def read_frame_table(file: BinaryIO) -> SeekTable:
    """The table at the end of a whole index.

    Raises:
        FormatError, LimitExceededError, OSError: it is damaged, or cannot be read.
    """
    fd = file.fileno()
    size = max(os.fstat(fd).st_size - INDEX_END_LEN, 0)
    footer = os.pread(fd, min(FOOTER_LEN, size), max(size - FOOTER_LEN, 0))
    table_len = parse_table_len(footer)
    begin = max(size - table_len, 0)
    data = os.pread(fd, size - begin, begin)
    return parse_seek_table(data, file_len=size, max_frame_len=_MAX_FRAME_LEN)


def read_frame(file: BinaryIO, frame: Frame, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The content of a frame, whose checksum says that it is whole.

    Raises:
        StateFormatError, OSError: it is damaged, or cannot be read.
    """
    raw = os.pread(file.fileno(), frame.length, frame.offset)
    try:
        content = decompressor.decompress(raw, max_output_size=frame.tar_len)
    except zstandard.ZstdError as error:
        raise StateFormatError(f"cached index: the frame at byte {frame.offset}: {error}") from None
    if len(content) != frame.tar_len or not content.endswith(b"\n"):
        raise StateFormatError(f"cached index: the frame at byte {frame.offset} is not what the table says")
    return content


def iter_record_frames(
    file: BinaryIO, frames: FrameTable, *, pool: Executor | None = None
) -> Iterator[bytes]:
    """The contents of the frames of a whole index that hold its records, one after the other.

    Args:
        pool: where the next ones are decompressed; None is in the calling thread, when they are asked for.

    Raises:
        StateFormatError, OSError: as :func:`read_frame`, while iterating.
    """
    numbers = range(_FIRST_FRAME, frames.frame_count - 1)  # the last one has the trailer
    if pool is None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
        yield from (read_frame(file, frames.frame(number), decompressor) for number in numbers)
        return
    waiting: deque[Future[bytes]] = deque()
    for number in numbers:
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
        waiting.append(pool.submit(read_frame, file, frames.frame(number), decompressor))
        if len(waiting) > _FRAMES_AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _line_in(content: bytes, key: bytes) -> bytes | None:
    """The line of the path with a sort key in some whole lines."""
    low, high = 0, len(content)  # where a line begins; where one ends
    while low < high:
        middle = content.rfind(b"\n", low, (low + high) // 2) + 1 or low
        end = content.index(b"\n", middle)
        found = _key_of(content[middle:end])
        if found == key:
            return content[middle:end]
        if found is None or found > key:
            high = middle
        else:
            low = end + 1
    return None


def _key_of(raw: bytes) -> bytes | None:
    with suppress(msgspec.DecodeError, ValueError):  # the identity, or the trailer
        line = _path_decoder.decode(raw)
        path = bytes_of(line.path, line.path_b64)
        return sort_key(path) if path is not None else None
    return None
