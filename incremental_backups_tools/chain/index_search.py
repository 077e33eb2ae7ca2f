"""Looking a few paths up in the cached index, without reading it whole.

The index is sorted, in zstd frames that begin with whole lines, and ends with a table of them
(``archive/seek_table.py``): a path is found by bisection. Each frame has its own checksum; that the index is the
one that is asked for stands in its last record.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from typing import BinaryIO, Final

import zstandard

from incremental_backups_tools.chain.index_cache import (
    INDEX_NAME,
    IndexIdentity,
    parse_resolved,
    token_of,
)
from incremental_backups_tools.chain.line_search import read_frame, read_frame_table
from incremental_backups_tools.chain.parent_index import read_kept_identity
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import BackupError, StateFormatError
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.tree.entry import ROOT, parse_line, path_of_line, sort_key
from incremental_backups_tools.tree.records import MAX_WINDOW_LEN

log = logging.getLogger(__name__)

# The header of the index has the first frame, its trailer the last one.
_FIRST_FRAME: Final = 1
_OTHER_FRAMES: Final = 2
_CACHED_FRAMES: Final = 8


class IndexSearch:
    """Entries of a cached index by their paths.

    Args:
        file: the cached index; the caller keeps it open.

    Raises:
        FormatError, LimitExceededError, UnsafePathError, OSError: from all methods: it is damaged, or cannot be
            read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_LEN)
        self._table = read_frame_table(file)
        self._last = self._table.frame_count - _OTHER_FRAMES
        if self._last < _FIRST_FRAME:
            raise StateFormatError("cached index: it has no entries")
        self._frames: OrderedDict[int, list[bytes]] = OrderedDict()

    def is_of(self, expected: IndexIdentity, kept: bytes) -> bool:
        """Whether it is the index of *expected*, given what is kept beside it."""
        header, identity = self._lines(0)[0], self._lines(self._last)[-1]
        return token_of(header, identity, expected, kept_identity=kept) is not None

    def entries(self, paths: Iterable[bytes]) -> Iterator[ResolvedEntry]:
        """What is at *paths* and below, and the directories that lead there, all in sort order."""
        wanted = dict.fromkeys(paths, True)  # whether with all that is below
        for path in tuple(wanted):
            for directory in _directories_above(path):
                wanted.setdefault(directory, False)
        after = b""  # what begins so was given
        is_first = True
        for path in sorted(wanted, key=sort_key):
            if not is_first and wanted.get(after) and path.startswith(after + b"/"):
                continue
            yield from self._at(path, with_below=wanted[path])
            after, is_first = path, False

    def _at(self, path: bytes, *, with_below: bool) -> Iterator[ResolvedEntry]:
        key, below = sort_key(path), path + b"/"
        for raw in self._lines_from(key):
            found = _path_of(raw)
            if found == path or (with_below and found.startswith(below)):
                yield parse_resolved(raw)
            elif sort_key(found) > key:
                return

    def _lines_from(self, key: bytes) -> Iterator[bytes]:
        """The lines of entries from some line before *key* on."""
        low, high = _FIRST_FRAME, self._last
        while low < high:  # the last frame that begins at or before the key
            middle = (low + high + 1) // 2
            if self._begins_behind(middle, key):
                high = middle - 1
            else:
                low = middle
        for number in range(low, self._last + 1):
            lines = self._lines(number)
            yield from lines[:-1] if number == self._last else lines

    def _begins_behind(self, number: int, key: bytes) -> bool:
        lines = self._lines(number)
        is_identity_alone = number == self._last and len(lines) == 1
        return is_identity_alone or sort_key(_path_of(lines[0])) > key

    def _lines(self, number: int) -> list[bytes]:
        lines = self._frames.get(number)
        if lines is None:
            lines = self._frames[number] = self._read_lines(number)
            if len(self._frames) > _CACHED_FRAMES:
                self._frames.popitem(last=False)
        return lines

    def _read_lines(self, number: int) -> list[bytes]:
        return read_frame(self._file, self._table.frame(number), self._decompressor)[:-1].split(b"\n")


def search_cached_index(
    cache: Cache, expected: IndexIdentity, paths: Iterable[bytes], resolve_all: Iterator[ResolvedEntry]
) -> Iterator[ResolvedEntry]:
    """The entries of *paths*, of all below and of the directories above, out of the cached index of *expected*.

    Where that is not there, or as soon as it proves to be damaged, *resolve_all* serves: all entries of the
    index, in sort order.
    """
    last: bytes | None = None
    with ExitStack() as stack:
        file = cache.open(INDEX_NAME)
        if file is not None:
            stack.enter_context(closing(file))
            try:
                search = IndexSearch(file)
                if search.is_of(expected, read_kept_identity(cache)):
                    for resolved in search.entries(paths):
                        yield resolved
                        last = sort_key(resolved.path)
                    return
            except (BackupError, OSError) as error:
                log.info("the repository is asked instead: %s", error)
    for resolved in resolve_all:
        if last is None or sort_key(resolved.path) > last:
            yield resolved


def _path_of(raw: bytes) -> bytes:
    return path_of_line(parse_line(raw))


def _directories_above(path: bytes) -> Iterator[bytes]:
    while path != ROOT:
        path = path.rpartition(b"/")[0] or ROOT
        yield path
