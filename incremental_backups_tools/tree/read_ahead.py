"""Reading the small files of a live tree before they are asked for.

A thread opens, reads and signs them while the caller makes something of those before. The kernel and C do it, so
the thread needs nothing that the caller holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import Final, NamedTuple

import msgspec

from incremental_backups_tools.delta.small_files import SmallFileSigning
from incremental_backups_tools.tree.listing import Reader, ReadLimits, make_reader
from incremental_backups_tools.tree.walk import AnyWalk, Found, Run

# The longest file that is read ahead.
AHEAD_FILE_LEN: Final = 1 << 18
# Of one reading: most files, and how many bytes begin no other file.
_LIMITS: Final = ReadLimits(max_files=48, max_len=AHEAD_FILE_LEN, max_total=2 << 20)
# How far: names that wait before another is asked for, and readings. Directories stay open for as many names.
_AHEAD_NAMES: Final = 96
_AHEAD_READINGS: Final = 8


class ReadFile(NamedTuple):
    """A plain small file that was read whole and stayed as it was: no holes, attributes, flags or other names.

    Attributes:
        number: in its directory's listing.
        name: its last component.
        mode: permission bits.
        signature: of the content; None where it gets none.
        digest, sig_digest: BLAKE3 of the content and of the signature.
    """

    number: int
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    dev: int
    content: memoryview
    signature: bytes | None
    digest: bytes
    sig_digest: bytes | None


class ReadFiles(msgspec.Struct, frozen=True):
    """Plain small files of one directory, one after the other in the order of the walk.

    Attributes:
        run: what has them, and perhaps others.
        begin, end: positions in the reading of the first, and after the last.
    """

    run: Run
    begin: int
    end: int

    @property
    def prefix(self) -> bytes:
        """The directory's path with a slash; empty for the root."""
        return self.run.prefix

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def begin_ns(self) -> int:
        """A time before they were read."""
        return self.run.begin_ns

    def since(self, begin: int) -> ReadFiles:
        """Those from a position on."""
        return ReadFiles(self.run, begin, self.end)

    def until(self, end: int) -> ReadFiles:
        """Those before a position."""
        return ReadFiles(self.run, self.begin, end)

    def file(self, position: int) -> ReadFile:
        """The file at a position."""
        return ReadFile._make(self.run.reading.file(position))

    def found(self, position: int) -> Found:
        """As the walk shows that file. Until the next names are asked for."""
        return self.run.found(self.run.reading.number(position))


class ReadAhead:
    """The names of a walk in their order, the small files among them read and signed. Memory is bounded.

    Args:
        walk: nobody else iterates over it.
        signing: how files are signed.
    """

    def __init__(self, walk: AnyWalk, signing: SmallFileSigning) -> None:
        self._walk = walk
        self._signing = signing

    def __iter__(self) -> Iterator[Found | ReadFiles]:
        """Files that were read together, and each other name, which needs a closer look."""
        with self._walk.keep_open(_AHEAD_NAMES), closing(make_reader(self._signing)) as reader:
            waiting: deque[Found | Run] = deque()
            names = readings = 0
            for item in self._items(reader):
                waiting.append(item)
                if isinstance(item, Run):
                    names, readings = names + item.count, readings + 1
                else:
                    names += 1
                is_full = names >= _AHEAD_NAMES or readings >= _AHEAD_READINGS
                while is_full and (names > _AHEAD_NAMES // 2 or readings > _AHEAD_READINGS // 2):
                    first = waiting.popleft()
                    if isinstance(first, Run):
                        names, readings = names - first.count, readings - 1
                        yield from _read(first)
                    else:
                        names -= 1
                        yield first
            for item in waiting:
                if isinstance(item, Run):
                    yield from _read(item)
                else:
                    yield item

    def _items(self, reader: Reader) -> Iterator[Found | Run]:
        names = iter(self._walk)
        while True:
            item = self._walk.read_run(_LIMITS, reader) or next(names, None)
            if item is None:
                return
            yield item


def _read(run: Run) -> Iterator[Found | ReadFiles]:
    """What there is of *run* once it was read."""
    reading = run.reading
    count = len(reading)
    if count == run.count:
        yield ReadFiles(run, 0, count)
        return
    number, begun = run.first, 0
    for position in range(count):
        read = reading.number(position)
        if read != number:
            if begun < position:
                yield ReadFiles(run, begun, position)
            yield from map(run.found, range(number, read))
            begun = position
        number = read + 1
    if begun < count:
        yield ReadFiles(run, begun, count)
    yield from map(run.found, range(number, run.end))
