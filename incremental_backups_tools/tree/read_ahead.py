"""Reading the small files of a live tree before they are asked for.

A thread opens, reads and signs them while the caller makes something of those before. The kernel and C do it, so
the thread needs nothing that the caller holds.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from incremental_backups_tools.delta.small_files import SmallFileSigning
from incremental_backups_tools.tree.listing import Listing, Reading
from incremental_backups_tools.tree.walk import AnyWalk, Found

# The longest file that is read ahead.
AHEAD_FILE_LEN: Final = 1 << 18
# How far: names that wait, and bytes of files among them. Directories stay open for as many names.
_AHEAD_NAMES: Final = 96
_AHEAD_LEN: Final = 8 << 20
# Of one reading: most files, and how many bytes begin no other file.
_READING_FILES: Final = 48
_READING_LEN: Final = 2 << 20


class ReadFile(msgspec.Struct, frozen=True):
    """A plain small file that was read whole and stayed as it was: no holes, attributes, flags or other names.

    Attributes:
        stat: as it was when it was opened.
        signature: of the content; None where it gets none.
        begin_ns: a time before all that.
    """

    stat: os.stat_result
    content: bytes
    signature: bytes | None
    begin_ns: int


class ReadAhead:
    """The names of a walk in their order, the small files among them read and signed. Memory is bounded.

    Args:
        walk: nobody else iterates over it.
        signing: how files are signed.
    """

    def __init__(self, walk: AnyWalk, signing: SmallFileSigning) -> None:
        self._walk = walk
        self._signing = signing
        self._begun: _Batch | None = None

    def __iter__(self) -> Iterator[tuple[Found, ReadFile | None]]:
        """Each name, with the file that it is where that was read; None is what needs a closer look."""
        with self._walk.keep_open(_AHEAD_NAMES):
            yield from self._names()

    def _names(self) -> Iterator[tuple[Found, ReadFile | None]]:
        waiting: deque[tuple[Found, _Batch | None]] = deque()
        waiting_len = 0
        for found in self._walk:
            batch = self._batch_of(found)
            waiting.append((found, batch))
            waiting_len += found.stat.st_size if batch is not None else 0
            while len(waiting) >= _AHEAD_NAMES or waiting_len > _AHEAD_LEN:
                first, its_batch = waiting.popleft()
                waiting_len -= first.stat.st_size if its_batch is not None else 0
                yield first, its_batch.take(first) if its_batch is not None else None
        for first, its_batch in waiting:
            yield first, its_batch.take(first) if its_batch is not None else None

    def _batch_of(self, found: Found) -> _Batch | None:
        """What reads *found*, most often begun already; None where nothing does."""
        if found.among is None or found.stat.st_size > AHEAD_FILE_LEN:
            return None
        if self._begun is None or not self._begun.has(found.among, found.number):
            self._begun = self._begin(found, found.among)
        return self._begun

    def _begin(self, found: Found, among: Listing) -> _Batch | None:
        begin_ns = time.time_ns()
        limits = _READING_FILES, AHEAD_FILE_LEN, _READING_LEN
        try:
            reading = among.read_ahead(found.number, found.dir_fd, *limits, self._signing)
        except OSError:  # too many open files: whoever looks closely will say so
            return None
        return _Batch(among, reading, self._signing, begin_ns)


class _Batch:
    """Files of one directory that are read together."""

    def __init__(self, among: Listing, reading: Reading, signing: SmallFileSigning, begin_ns: int) -> None:
        self._among = among
        self._end = reading.end
        self._reading: Reading | None = reading
        self._signing = signing
        self._begin_ns = begin_ns
        self._files: dict[int, ReadFile] = {}

    def has(self, among: Listing, number: int) -> bool:
        """Whether it looks at that name. Names are asked for in order."""
        return among is self._among and number < self._end

    def take(self, found: Found) -> ReadFile | None:
        """The file, once."""
        if self._reading is not None:
            read, self._reading = self._reading.files(), None
            self._files = {file[0]: self._read_file(*file[1:]) for file in read}
        return self._files.pop(found.number, None)

    def _read_file(self, info: os.stat_result, content: bytes, records: bytes | None) -> ReadFile:
        signature = self._signing.signature(len(content), records) if records is not None else None
        return ReadFile(info, content, signature, self._begin_ns)
