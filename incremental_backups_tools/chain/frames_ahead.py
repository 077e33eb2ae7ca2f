"""Frames of archives that will be read soon, decompressed by a worker meanwhile."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Final

from incremental_backups_tools.archive.frame_reader import RawFrame
from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.tree.entry import Location

# A file that consists of more is read when its turn comes.
_MAX_FRAMES: Final = 8
# Frames that were asked for lately: what lies in one of them waits for it, and does not ask again.
_MAX_KNOWN: Final = 256

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class FrameBatch:
    """Frames that are decompressed in one go.

    Attributes:
        work: None until a worker has it.
    """

    frames: list[RawFrame] = field(default_factory=list)
    work: Future[None] | None = None


class FramesAhead:
    """Has frames decompressed, one batch at a time: what is asked for meanwhile makes up the next.

    Where a worker and the caller meet often at the interpreter's lock, that costs as much as the work that is given
    away. So frames are read by the caller, and a worker has nothing to do but to decompress them.

    Args:
        archives: keeps the frames until they are read.
        pool: where they are decompressed.
    """

    def __init__(self, archives: Archives, pool: Executor) -> None:
        self._archives = archives
        self._pool = pool
        self._next = FrameBatch()
        self._running: Future[None] | None = None
        self._known: OrderedDict[tuple[str, int], FrameBatch] = OrderedDict()

    def want(self, locations: Sequence[Location]) -> list[FrameBatch]:
        """Ask for the frames that hold bytes at *locations*; what cannot be read is told to whoever reads it.

        Returns:
            What brings them.
        """
        batches: list[FrameBatch] = []
        try:
            wanted = [
                (location.file, number)
                for location in locations
                for number in self._archives.reader(location.file).frame_numbers(
                    location.offset, location.length
                )
            ]
            if len(wanted) <= _MAX_FRAMES:
                batches = [self._batch_with(*frame) for frame in wanted]
        except BackupError as error:
            log.debug("not read ahead: %s", error)
        self.push()
        return batches

    def push(self) -> None:
        """Give the next batch to a worker if none has one."""
        if self._next.frames and (self._running is None or self._running.done()):
            batch, self._next = self._next, FrameBatch()
            self._running = batch.work = self._pool.submit(_decompress, batch.frames)

    def are_there(self, batches: Iterable[FrameBatch]) -> bool:
        """Whether all *batches* are decompressed."""
        self.push()
        return all(batch.work is not None and batch.work.done() for batch in batches)

    def wait(self, batches: Iterable[FrameBatch]) -> None:
        """Wait for those of *batches* that a worker has. The caller reads the others as quickly by itself."""
        for batch in batches:
            if batch.work is not None:
                batch.work.result()

    def _batch_with(self, file_name: str, number: int) -> FrameBatch:
        batch = self._known.get((file_name, number))
        if batch is None:
            raw = self._archives.reader(file_name).raw_frame(number)
            batch = self._known[file_name, number] = self._next
            batch.frames.append(raw)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return batch


def _decompress(frames: list[RawFrame]) -> None:
    while frames:
        frames.pop().keep()
