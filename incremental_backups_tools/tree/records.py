"""Streams of JSON lines that know whether they are whole.

A stream is zstd-compressed JSON Lines: a header line in a frame of its own, so that it can be read from the
first few hundred bytes; records, one a line, in frames of about 1 MiB; and a trailer with the number of
records and the BLAKE3 of all lines before it. States, cached indexes and index files are such streams.

tar, zstd and JSON Lines all accept a file that was cut at a boundary; the trailer does not.
"""

from __future__ import annotations

import threading
from array import array
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from itertools import chain
from typing import BinaryIO, Final, cast

import msgspec
import zstandard
from blake3 import blake3

from incremental_backups_tools.exceptions import StateFormatError

FRAME_LEN: Final = 1 << 20
MAX_LINE_LEN: Final = 1 << 26  # an entry with many extents or large extended attributes
MAX_HEADER_LEN: Final = 1 << 24
MAX_WINDOW_LEN: Final = 1 << 27
_CHUNK_LEN: Final = 1 << 18
_MAX_IN_FLIGHT: Final = 4
_EMPTY_FRAME: Final = (0x184D2A50).to_bytes(4, "little") + bytes(4)


class Trailer(msgspec.Struct, frozen=True):
    """The last line: how many records there are, and the BLAKE3 (hex) of every line before this one."""

    entries: int
    blake3: str


_trailer_decoder = msgspec.json.Decoder(Trailer)


class RecordWriter:
    """Writes one stream to a binary file. Call :meth:`close` to make it whole; without it, it never is.

    Args:
        level: zstd's.
        pool: where frames are compressed; None is in the calling thread, and then each is in the file at once.

    Attributes:
        frame_lens: bytes of each frame in the file so far.
        content_lens: bytes that each holds.
        begun_frames: how many are in the file, or on their way to it.
    """

    def __init__(
        self, file: BinaryIO, header: bytes, *, level: int = 3, pool: Executor | None = None
    ) -> None:
        self._file = file
        self._level = level
        self._threads = threading.local()  # a compressor for each
        self._pool = pool
        self._in_flight: deque[tuple[Future[bytes], int]] = deque()
        self.frame_lens, self.content_lens = array("I"), array("I")
        self.begun_frames = 0
        self._hasher = blake3()
        self._pending: list[bytes] = []
        self._pending_len = 0
        self._count = 0
        self._add_line(header)
        self._flush()

    @property
    def count(self) -> int:
        """Records written so far."""
        return self._count

    def write(self, record: bytes) -> None:
        """Append one record: JSON without a newline."""
        self._add_line(record)
        self._count += 1
        if self._pending_len >= FRAME_LEN:
            self._flush()

    def write_block(self, block: bytes, count: int) -> None:
        """Append *count* records at once, each with its newline."""
        self._pending.append(block)
        self._pending_len += len(block)
        self._count += count
        if self._pending_len >= FRAME_LEN:
            self._flush()

    def write_frame(self, frame: bytes, content: bytes) -> None:
        """Append a frame that another writer has made at the same level, with its *content*: whole records."""
        self._flush()
        self._write_oldest(0)
        self._hasher.update(content)
        self._count += content.count(b"\n")
        self.begun_frames += 1
        self._write_frame(frame, len(content))

    def close(self) -> None:
        """Write the trailer. The file itself stays open."""
        self._flush()
        trailer = Trailer(self._count, self._hasher.hexdigest())
        self._add_line(msgspec.json.encode(trailer))
        self._flush()
        self._write_oldest(0)

    def written_frames(self) -> Iterator[tuple[bytes, bytes]]:
        """The frames with records as they lie in the file, each with its content; once it is closed.

        Raises:
            StateFormatError: the file has not what was written to it.
        """
        decompressor = zstandard.ZstdDecompressor()
        lens = zip(
            self.frame_lens[1:-1], self.content_lens[1:-1], strict=True
        )  # of neither header nor trailer
        self._file.seek(self.frame_lens[0])
        for frame_len, content_len in lens:
            frame = self._file.read(frame_len)
            try:
                content = decompressor.decompress(frame, max_output_size=content_len)
            except zstandard.ZstdError as error:
                raise StateFormatError(f"a temporary file is damaged: {error}") from None
            if len(content) != content_len:
                raise StateFormatError("a temporary file is not what was written to it")
            yield frame, content

    def _add_line(self, line: bytes) -> None:
        self._pending += (line, b"\n")
        self._pending_len += len(line) + 1

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._hasher.update(data)
        self._pending, self._pending_len = [], 0
        self.begun_frames += 1
        if self._pool is None:
            self._write_frame(self._compress(data), len(data))
            return
        self._in_flight.append((self._pool.submit(self._compress, data), len(data)))
        self._write_oldest(_MAX_IN_FLIGHT)

    def _compress(self, data: bytes) -> bytes:
        compressor: zstandard.ZstdCompressor | None = getattr(self._threads, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True)
            self._threads.compressor = compressor
        return compressor.compress(data)

    def _write_oldest(self, but: int) -> None:
        """Write all frames that are in flight but so many."""
        while len(self._in_flight) > but:
            frame, content_len = self._in_flight.popleft()
            self._write_frame(frame.result(), content_len)

    def _write_frame(self, frame: bytes, content_len: int) -> None:
        self._file.write(frame)
        self.frame_lens.append(len(frame))
        self.content_lens.append(content_len)


class RecordReader:
    """Reads one stream. Iterating to the end proves that it is whole and unaltered.

    Args:
        file: binary, at the stream's start.
        what: names the stream in errors.

    Raises:
        StateFormatError: from the constructor and while iterating: not such a stream, cut, altered, or
            with something after its end.
    """

    def __init__(self, file: BinaryIO, *, what: str) -> None:
        self._what = what
        self._hasher = blake3()
        self._chunks = _iter_whole_lines(file, what)
        first = next(self._chunks, None)
        if first is None:
            raise StateFormatError(f"{what}: empty")
        header, _, self._rest = first.partition(b"\n")
        if len(header) > MAX_HEADER_LEN:
            raise StateFormatError(f"{what}: the header is longer than {MAX_HEADER_LEN} bytes")
        self.header: bytes = header

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks():
            yield from block[:-1].split(b"\n")

    def blocks(self) -> Iterator[bytes]:
        """The same records, some hundred at a time, each with its newline."""
        hasher = self._hasher
        hasher.update(self.header + b"\n")
        count = 0
        last = b""  # may be the trailer
        for chunk in chain((self._rest,), self._chunks):
            data = last + chunk
            cut = data.rfind(b"\n", 0, -1) + 1
            block, last = data[:cut], data[cut:]
            if block:
                hasher.update(block)
                count += block.count(b"\n")
                yield block
        self._check_trailer(last[:-1] or None, count)

    def _check_trailer(self, line: bytes | None, count: int) -> None:
        if line is None:
            raise StateFormatError(f"{self._what}: cut: the trailer is missing")
        try:
            trailer = _trailer_decoder.decode(line)
        except msgspec.DecodeError:
            raise StateFormatError(f"{self._what}: cut: the last line is not a trailer") from None
        if trailer.entries != count:
            raise StateFormatError(
                f"{self._what}: the trailer promises {trailer.entries} entries, there are {count}"
            )
        if trailer.blake3 != self._hasher.hexdigest():
            raise StateFormatError(
                f"{self._what}: altered: expected BLAKE3 {trailer.blake3}, got {self._hasher.hexdigest()}"
            )


def read_header(start: bytes, *, what: str) -> bytes:
    """The header line out of the first bytes of a stream.

    Args:
        start: at least the whole first frame.

    Raises:
        StateFormatError: *start* does not begin with a whole frame that holds one line.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
    try:
        with decompressor.stream_reader(start) as reader:
            line = reader.read(MAX_HEADER_LEN + 1)
    except zstandard.ZstdError as error:
        raise StateFormatError(f"{what}: {error}") from None
    if not line.endswith(b"\n") or b"\n" in line[:-1]:
        raise StateFormatError(f"{what}: does not begin with a header of one line")
    return line[:-1]


class _WithEnd:
    """A compressed file, and behind it an empty skippable frame.

    The decoder says nothing of a file that ends in the checksum of its last frame, of which all content is there;
    zstd's command refuses it. So it takes the beginning of this frame for the rest of the checksum.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = _EMPTY_FRAME

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if not data:
            data, self._end = self._end, b""
        return data


def _iter_whole_lines(file: BinaryIO, what: str) -> Iterator[bytes]:
    """Lines with their newlines, some at a time; memory is bounded by the longest allowed line."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
    begun: list[bytes] = []  # pieces of a line whose end is still to come
    begun_len = 0
    try:
        source = cast(BinaryIO, _WithEnd(file))
        with decompressor.stream_reader(source, read_across_frames=True, closefd=False) as reader:
            while chunk := reader.read(_CHUNK_LEN):
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    yield b"".join((*begun, chunk[:cut]))
                    begun, begun_len = [], 0
                begun.append(chunk[cut:])
                begun_len += len(chunk) - cut
                if begun_len > MAX_LINE_LEN:
                    raise StateFormatError(f"{what}: a line is longer than {MAX_LINE_LEN} bytes")
    except zstandard.ZstdError as error:
        raise StateFormatError(f"{what}: damaged: {error}") from None
    if begun_len:
        raise StateFormatError(f"{what}: cut in the middle of a line")
