"""Ranges of a volume's tar in any order, of which is known beforehand which frames they take.

A frame is decompressed whole, for however little of it. So a few that were used last are held, and a plan goes
through the same steps as the reading does: it tells how often a frame must be loaded again, and in what order, so that
idle workers can do it ahead.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.volume_reader import VolumeReader
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.idle import IdleWorkers

# What is held of the frames that were used last.
WINDOW_LEN: Final = 8 << 20


class WindowPlan:
    """Which frames must be loaded to read some ranges one after the other.

    Attributes:
        loads: the numbers of the frames, in order; one that was let go of meanwhile is there again.
        loaded_len: bytes of content that they have, together.
        jumps: how many of them do not follow the one before, so that they are not fetched together.
    """

    def __init__(self, volume: VolumeReader) -> None:
        self.loads = array("Q")
        self.loaded_len = self.jumps = 0
        self._volume = volume
        # A range of as many numbers stands for the content.
        self._window: FrameCache[range] = FrameCache(WINDOW_LEN)
        self._start = self._end = 0

    def add(self, offset: int, length: int) -> None:
        """A range that is read next.

        Raises:
            ArchiveFormatError: it reaches beyond the tar.
        """
        end = offset + length
        while offset < end:
            if not self._start <= offset < self._end:
                index, frame = self._volume.frame_number(offset), self._volume.frame_at(offset)
                if self._window.get(self, index) is None:
                    self._window.put(self, index, range(frame.tar_len))
                    self.jumps += not self.loads or self.loads[-1] + 1 != index
                    self.loads.append(index)
                    self.loaded_len += frame.tar_len
                self._start, self._end = frame.tar_offset, frame.tar_offset + frame.tar_len
            offset = self._end


class WindowReader:
    """Reads the ranges of a plan, each once and in its order. A context: nobody reads ahead any more when it is left.

    Args:
        idle: load frames ahead.
    """

    def __init__(self, volume: VolumeReader, plan: WindowPlan, idle: IdleWorkers | None = None) -> None:
        self._volume = volume
        self._frames = volume.iter_frames(plan.loads, idle)
        self._window: FrameCache[bytes] = FrameCache(WINDOW_LEN)
        self._start = self._end = 0
        self._content = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._frames.close()

    def iter_range(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes there, in pieces of at most a frame.

        Raises:
            BackupError: a frame is damaged or cannot be read.
        """
        end = offset + length
        while offset < end:
            if not self._start <= offset < self._end:
                self._turn_to(offset)
            stop = min(end, self._end)
            yield self._content[offset - self._start : stop - self._start]
            offset = stop

    def _turn_to(self, offset: int) -> None:
        index, frame = self._volume.frame_number(offset), self._volume.frame_at(offset)
        content = self._window.get(self, index)
        if content is None:
            loaded = next(self._frames)
            assert loaded.index == index  # the plan went the same way
            if isinstance(loaded.content, BackupError):
                raise loaded.content
            content = loaded.content
            self._window.put(self, index, content)
        self._content = memoryview(content)
        self._start, self._end = frame.tar_offset, frame.tar_offset + frame.tar_len
