"""Writing a file of independent zstd frames, compressed in parallel and in order, that can be rewound."""

from __future__ import annotations

import errno
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

import zstandard
from blake3 import blake3

from incremental_backups_tools.archive.seek_table import MAX_FRAMES, encode_seek_table
from incremental_backups_tools.exceptions import LimitExceededError

# How many frames the first level is for: at the highest usual one they take two to three seconds of one processor.
HARD_FRAMES: Final = 8
# At this level and below, a frame takes a worker less time than it waits for the interpreter's lock before and after:
# there it takes several in one go.
_FAST_LEVEL: Final = 4
_FAST_FRAMES: Final = 4

# Each thread's compressor: one, of the last level it was asked for: at the highest usual one it takes
# 19 MB, and a frame takes far longer than making another.
_threads: Final = threading.local()


@dataclass(slots=True, eq=False)
class _Next:
    """What comes next in the file: a frame, once it is compressed, or a mark.

    Attributes:
        tar_len: bytes that the frame holds.
    """

    tar_len: int = 0
    is_mark: bool = False
    frame: bytes | None = None


class FrameWriter:
    """Compresses what it is given, a frame a call, and closes the file with its seek table.

    The digest of the file is taken as the frames are written, so nothing is read back. Frames after the mark
    may be taken back by :meth:`rewind`; the state of the hash at the mark is kept for that (about 2 KB).

    With a pool, the worker that has compressed the frame that comes next in the file writes it, and with it those
    behind it that are compressed by then: none waits for another.

    After an exception from the file or the compression nothing more can be written: what lies in the file is
    unknown, and every later call raises ``ValueError``.

    Args:
        file: as for VolumeWriter.
        level: zstd's.
        first_level: of the first frames, so many as HARD_FRAMES; None is *level*.
        pool: where to compress and write, in whatever order; None is in the calling thread.
        max_in_flight: most calls that the pool has to do at a time: of a frame each, or of four at a fast level.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        level: int,
        pool: Executor | None,
        max_in_flight: int,
        first_level: int | None = None,
    ) -> None:
        self._file = file
        self._level = level
        self._first_level = level if first_level is None else first_level
        self._pool = pool
        self._max_in_flight = max_in_flight
        self._in_flight: deque[Future[None]] = deque()
        self._order: deque[_Next] = deque()
        self._batch: list[tuple[_Next, bytearray]] = []  # not in the pool yet
        self._batch_level = level
        self._lock = threading.Lock()  # of the order, and of who writes
        self._is_writing = False
        self._has_failed = False  # then nobody writes any more
        self._frame_count = 0  # with those in flight
        self._compressed_lens = array("I")
        self._tar_lens = array("I")
        self._hasher = blake3()
        self._mark: int | None = None
        self._hasher_at_mark = self._hasher
        self._unusable = False

    def submit(self, data: bytearray) -> None:
        """Take *data*, which must not change any more, as the next frame."""
        with self._all_or_unusable():
            self._require_room()
            level = self._first_level if self._frame_count < HARD_FRAMES else self._level
            self._frame_count += 1
            self._append(data, level)
            while len(self._in_flight) > self._max_in_flight or (
                self._in_flight and self._in_flight[0].done()
            ):
                self._in_flight.popleft().result()

    def submit_compressed(self, frame: bytes, tar_len: int) -> None:
        """Take *frame*, whose content has *tar_len* bytes, as the next one."""
        with self._all_or_unusable():
            self._require_room()
            self._settle()
            self._frame_count += 1
            self._write_frame(frame, tar_len)

    def set_mark(self) -> None:
        """Let :meth:`rewind` come back to here. There is one mark, the newest."""
        with self._all_or_unusable():
            self._mark = self._frame_count
            self._begin_batch()
            self._order.append(_Next(is_mark=True))
            self._write_ready()

    def rewind(self) -> None:
        """Forget all frames since the mark and cut the file there."""
        if self._mark is None:
            raise ValueError("rewind() without a mark")
        with self._all_or_unusable():
            self._settle()
            if self._frame_count > self._mark:
                self._frame_count = self._mark
                del self._compressed_lens[self._mark :], self._tar_lens[self._mark :]
                self._file.seek(sum(self._compressed_lens))
                self._file.truncate()
                self._hasher = self._hasher_at_mark.copy()

    def finish(self) -> tuple[int, bytes]:
        """Write what is in flight and the seek table, and flush.

        Returns:
            The file's size and BLAKE3 digest.
        """
        with self._all_or_unusable():
            self._settle()
            table = encode_seek_table(self._compressed_lens, self._tar_lens)
            self._write(table)
            self._file.flush()
        return sum(self._compressed_lens) + len(table), self._hasher.digest()

    def abandon(self) -> None:
        """Wait until nobody writes to the file any more. What was in flight may or may not be in it."""
        self._batch.clear()
        for future in self._in_flight:
            future.cancel()
        wait(self._in_flight)

    def _require_room(self) -> None:
        if self._frame_count >= MAX_FRAMES:
            raise LimitExceededError(f"a volume has at most {MAX_FRAMES} frames")

    @contextmanager
    def _all_or_unusable(self) -> Iterator[None]:
        if self._unusable:
            raise ValueError("this volume failed before and cannot be continued")
        self._unusable = True
        yield
        self._unusable = False

    def _settle(self) -> None:
        """Wait until nothing is in flight."""
        self._begin_batch(one_by_one=True)
        while self._in_flight:
            self._in_flight.popleft().result()
        self._write_ready()

    def _append(self, data: bytearray, level: int) -> None:
        """Compress and write a frame: in the pool side by side with others, in their order."""
        if self._pool is None:
            [frame] = _compress([data], level)
            self._write_frame(frame, len(data))
            return
        item = _Next(len(data))
        self._order.append(item)
        if level != self._batch_level:
            self._begin_batch()
            self._batch_level = level
        self._batch.append((item, data))
        if level > _FAST_LEVEL or len(self._batch) == _FAST_FRAMES:
            self._begin_batch()

    def _begin_batch(self, *, one_by_one: bool = False) -> None:
        """Give what was gathered to the pool: to one worker, or each frame to another."""
        batch, self._batch = self._batch, []
        size = 1 if one_by_one else _FAST_FRAMES
        for begin in range(0, len(batch), size):
            part = batch[begin : begin + size]
            assert self._pool is not None  # only for it something is gathered
            self._in_flight.append(self._pool.submit(self._compress_next, part, self._batch_level))

    def _compress_next(self, batch: list[tuple[_Next, bytearray]], level: int) -> None:
        frames = _compress([data for _, data in batch], level)
        for (item, _), frame in zip(batch, frames, strict=True):
            item.frame = frame
        self._write_ready()

    def _write_ready(self) -> None:
        """Write what can be written, unless somebody is at it: that one looks again before it stops."""
        with self._lock:
            if self._is_writing:
                return
            self._is_writing = True
        try:
            while ready := self._take_ready():
                self._write_next(ready)
        except BaseException:
            self._has_failed = True
            raise

    def _take_ready(self) -> list[_Next]:
        """The frames that come next and are compressed, or a mark; none where nobody writes from now on."""
        ready: list[_Next] = []
        with self._lock:
            while self._order and not self._has_failed:
                first = self._order[0]
                if first.is_mark:
                    return ready or [self._order.popleft()]
                if first.frame is None:
                    break
                ready.append(self._order.popleft())
            self._is_writing = bool(ready)
        return ready

    def _write_next(self, ready: list[_Next]) -> None:
        if ready[0].is_mark:
            self._hasher_at_mark = self._hasher.copy()
            return
        frames = [item.frame for item in ready if item.frame is not None]
        self._write(b"".join(frames) if len(frames) > 1 else frames[0])
        self._compressed_lens.extend(map(len, frames))
        self._tar_lens.extend(item.tar_len for item in ready)

    def _write_frame(self, compressed: bytes, tar_len: int) -> None:
        self._write(compressed)
        self._compressed_lens.append(len(compressed))
        self._tar_lens.append(tar_len)

    def _write(self, data: bytes) -> None:
        if self._file.write(data) != len(data):
            raise OSError(errno.EIO, "the file took only a part of what was written")
        self._hasher.update(data)


def _compress(contents: Sequence[bytearray], level: int) -> list[bytes]:
    """Each of *contents* in a frame of its own."""
    known: tuple[int, zstandard.ZstdCompressor] | None = getattr(_threads, "compressor", None)
    if known is None or known[0] != level:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        known = _threads.compressor = (level, compressor)
    if len(contents) > 1 and hasattr(known[1], "multi_compress_to_buffer"):
        # The same frames, without meeting the interpreter's lock between them.
        segments = known[1].multi_compress_to_buffer([*contents], threads=1)
        return [segments[number].tobytes() for number in range(len(segments))]
    return [known[1].compress(content) for content in contents]
