"""The frames of a volume, fetched by range and decompressed, trusting neither the table nor the frames."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
import zstandard

from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.seek_table import MAX_FRAME_LEN, Frame, SeekTable
from incremental_backups_tools.exceptions import ArchiveFormatError, BackupError, IntegrityError
from incremental_backups_tools.idle import IdleWorkers, Offer

# Neighbouring frames are fetched together up to this length, so that a store is not asked for each MiB.
READ_LEN = 4 << 20
# Content that idle workers have ready or in work, ahead of who reads: some eight frames.
_AHEAD_LEN: Final = 8 << 20

_Load = Callable[[], bytes | BackupError]


class LoadedFrame(msgspec.Struct, frozen=True):
    """A frame, and what is in it or why that cannot be had."""

    index: int
    frame: Frame
    content: bytes | BackupError


class RawFrame(msgspec.Struct, frozen=True):
    """A frame as it lies."""

    reader: FrameReader
    index: int
    raw: bytes

    def keep(self) -> None:
        """Decompress it for those who will read it; in any thread. That it is damaged they will be told."""
        self.reader.keep_raw(self)


class FrameReader:
    """Reads the frames of one volume. Safe to share between threads if *read_range* is.

    Args:
        read_range: called with offset and length, returns bytes of the file or raises; fewer are an error.
        name: of the volume, for errors.
        cache: where frames are looked for first.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        table: SeekTable,
        *,
        name: str,
        cache: FrameCache[bytes],
    ) -> None:
        self._read_range = read_range
        self._table = table
        self._name = name
        self._cache = cache
        self._threads = threading.local()

    def iter_frames(
        self, indexes: Iterable[int], idle: IdleWorkers | None = None
    ) -> Generator[LoadedFrame, None, None]:
        """Frames in the order of *indexes*. Of those that adjoin, up to READ_LEN are fetched together.

        Args:
            idle: load some of them ahead; once the generator is closed, nobody does any more.

        Raises:
            InterruptedError: see :meth:`IdleWorkers.check`.
        """
        if idle is not None:
            yield from _iter_ahead(self._loads(indexes), idle)
            return
        for index, frame, load in self._loads(indexes):
            yield LoadedFrame(index, frame, load())

    def at_hand(self, index: int) -> bytes | None:
        """The content of a frame that was kept; None where it was not."""
        return self._cache.get(self, index)

    def keep(self, loaded: LoadedFrame) -> None:
        """Have a frame at hand for the next time."""
        if not isinstance(loaded.content, BackupError):
            self._cache.put(self, loaded.index, loaded.content)

    def drop(self, index: int) -> None:
        """Have a frame at hand no more."""
        self._cache.drop(self, index)

    def raw(self, index: int) -> RawFrame:
        """A frame that is not decompressed yet.

        Raises:
            IntegrityError: the volume ends within it.
            BackupError: as *read_range*.
        """
        frame = self._table.frame(index)
        return RawFrame(self, index, fetch(self._read_range, frame.offset, frame.length, name=self._name))

    def keep_raw(self, raw: RawFrame) -> None:
        """As :meth:`keep`, of one that is decompressed first; not of one that is damaged."""
        with suppress(BackupError):
            content = self._decompress(self._table.frame(raw.index), memoryview(raw.raw))
            self._cache.put(self, raw.index, content)

    def _loads(self, indexes: Iterable[int]) -> Iterator[tuple[int, Frame, _Load]]:
        """Each frame with what loads it."""
        for run in self._runs(indexes):
            if isinstance(run, LoadedFrame):
                yield run.index, run.frame, partial(_content_of, run)
                continue
            frames = [self._table.frame(index) for index in run]
            fetched = _Fetched(self._read_range, frames, self._name)
            for index, frame in zip(run, frames, strict=True):
                yield index, frame, partial(self._load, fetched, frame)

    def _runs(self, indexes: Iterable[int]) -> Iterator[range | LoadedFrame]:
        """Frames that are fetched together, and those that are at hand."""
        run = range(0)
        run_len = 0
        for index in indexes:
            frame = self._table.frame(index)
            cached = self._cache.get(self, index)
            if run and (cached is not None or index != run.stop or run_len + frame.length > READ_LEN):
                yield run
                run = range(0)
            if cached is not None:
                yield LoadedFrame(index, frame, cached)
                continue
            run_len = frame.length + (run_len if run else 0)
            run = range(run.start if run else index, index + 1)
        if run:
            yield run

    def _load(self, fetched: _Fetched, frame: Frame) -> bytes | BackupError:
        try:
            return self._decompress(frame, fetched.frame(frame))
        except BackupError as error:
            return error

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


class _Fetched:
    """Adjoining frames as they lie, fetched by the first thread that needs one of them."""

    def __init__(self, read_range: Callable[[int, int], bytes], frames: list[Frame], name: str) -> None:
        self._read_range = read_range
        self._frames = frames
        self._name = name
        self._lock = threading.Lock()
        self._raw: memoryview | BackupError | None = None

    def frame(self, frame: Frame) -> memoryview:
        """One of them.

        Raises:
            BackupError: it cannot be read.
        """
        first, last = self._frames[0], self._frames[-1]
        with self._lock:
            if self._raw is None:
                try:
                    self._raw = self._fetch(first.offset, last.offset + last.length - first.offset)
                except BackupError as error:
                    self._raw = error
            raw = self._raw
        if not isinstance(raw, BackupError):
            start = frame.offset - first.offset
            return raw[start : start + frame.length]
        if len(self._frames) == 1:
            raise raw
        # A part of it cannot be read: what can be is not to be lost with it.
        return self._fetch(frame.offset, frame.length)

    def _fetch(self, offset: int, length: int) -> memoryview:
        return memoryview(fetch(self._read_range, offset, length, name=self._name))


def fetch(read_range: Callable[[int, int], bytes], offset: int, length: int, *, name: str) -> bytes:
    """Exactly *length* bytes of the volume *name*.

    Raises:
        IntegrityError: it ends within them.
        BackupError: as *read_range*.
    """
    data = read_range(offset, length)
    if len(data) != length:
        raise IntegrityError(
            f"{name}: {len(data)} bytes at {offset}, expected {length}",
            path=name,
            expected=length,
            actual=len(data),
        )
    return data


def _iter_ahead(
    loads: Iterator[tuple[int, Frame, _Load]], idle: IdleWorkers
) -> Generator[LoadedFrame, None, None]:
    ahead: deque[tuple[int, Frame, Offer[bytes | BackupError]]] = deque()
    ahead_len = 0
    try:
        for index, frame, load in loads:
            ahead.append((index, frame, idle.offer(load)))
            ahead_len += frame.tar_len
            idle.check()
            while ahead_len > _AHEAD_LEN:
                index, frame, offer = ahead.popleft()
                ahead_len -= frame.tar_len
                yield LoadedFrame(index, frame, offer.result())
        while ahead:
            idle.check()
            index, frame, offer = ahead.popleft()
            yield LoadedFrame(index, frame, offer.result())
    finally:
        for _, _, offer in ahead:
            offer.withdraw()


def _content_of(loaded: LoadedFrame) -> bytes | BackupError:
    return loaded.content
