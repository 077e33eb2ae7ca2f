"""What a backup will need soon, read while it is at what comes before.

The frames that hold the old version of a small file that changed are decompressed by a worker. The pass goes on over
the source meanwhile; what it does about each name waits for its turn, in order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from incremental_backups_tools.chain.frames_ahead import FrameBatch, FramesAhead
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.tree.listing import Reader
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN, ReadFile
from incremental_backups_tools.tree.walk import AnyWalk, Found, LastName

# What waits at most: steps, for each of which the walk may keep a directory open; and bytes of cached lines.
MAX_STEPS: Final = 96
_MAX_HELD_LEN: Final = 8 << 20


class FileAhead:
    """A changed small file, whose old version is being read.

    Attributes:
        begin_ns: a time before the file was read.
    """

    def __init__(
        self, name: LastName, reader: Reader, frames: FramesAhead, batches: list[FrameBatch]
    ) -> None:
        self._name = name
        self._reader = reader
        self._frames = frames
        self._batches = batches
        self.begin_ns = 0

    def is_ready(self) -> bool:
        """Whether :meth:`read` would hardly wait."""
        return self._frames.are_there(self._batches)

    def read(self, found: Found) -> ReadFile | None:
        """Read the file, once its old version can be read; None of one that has to be looked at more closely."""
        self._frames.wait(self._batches)
        self.begin_ns = time.time_ns()
        reading = self._name.read(AHEAD_FILE_LEN, self._reader)
        if reading is None or not len(reading):
            return None
        read = ReadFile._make(reading.file(0))
        return read if read.name == found.name else None


class Step(msgspec.Struct, frozen=True):
    """Something that is to be done in the order of names.

    Attributes:
        run: does it.
        ahead: what it waits for, if anything.
        held_len: bytes that are held for it.
    """

    run: Callable[[], None]
    ahead: FileAhead | None = None
    held_len: int = 0

    def is_ready(self) -> bool:
        """Whether it would not wait."""
        return self.ahead is None or self.ahead.is_ready()


def run_in_order(steps: Iterable[Step]) -> None:
    """Run each step in its turn, and ask for further ones while the first is not ready. What waits is bounded."""
    waiting: deque[Step] = deque()
    held_len = 0
    for step in steps:
        waiting.append(step)
        held_len += step.held_len
        while waiting and (waiting[0].is_ready() or len(waiting) > MAX_STEPS or held_len > _MAX_HELD_LEN):
            held_len -= waiting[0].held_len
            waiting.popleft().run()
    while waiting:
        waiting.popleft().run()


class LookAhead:
    """Has the old versions of small files that changed read before it is their turn.

    Args:
        walk: comes by the files.
        reader: reads them.
        frames: has frames decompressed.
    """

    def __init__(self, walk: AnyWalk, reader: Reader, frames: FramesAhead) -> None:
        self._walk = walk
        self._reader = reader
        self._frames = frames

    def begin(self, found: Found, base: ResolvedEntry) -> FileAhead | None:
        """Begin with the name that the walk gave last, which is an edited version of *base*; None where it cannot."""
        if found.stat.st_nlink > 1 or found.stat.st_size > AHEAD_FILE_LEN:
            return None
        name = self._walk.last_name()
        if name is None:
            return None
        return FileAhead(name, self._reader, self._frames, self._frames.want(base.data))
