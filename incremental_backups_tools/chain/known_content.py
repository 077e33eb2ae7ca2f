"""Which contents are held already: by the parent's index, or by what this backup has stored so far.

Beside each index stands a table: for each content the paths that have it. Of a content that is looked for it gives
a path, the index gives the entry, and the entry's whole digest decides. So a table is a hint that need not be
trusted: a wrong one finds nothing (``chain/content_table.py``).
"""

from __future__ import annotations

from contextlib import suppress
from typing import BinaryIO

import msgspec

from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.index_cache import IndexCacheWriter, parse_resolved
from incremental_backups_tools.chain.line_search import LineSearch
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import FormatError, UnsafePathError
from incremental_backups_tools.tree.entry import FILE


class Known(msgspec.Struct, frozen=True):
    """A content that is held already.

    Attributes:
        resolved: the entry that has it, a regular file and no hard link.
        is_parent: of the parent's index; otherwise this backup has stored it.
    """

    resolved: ResolvedEntry
    is_parent: bool


class KnownContent:
    """Looks contents up while a backup is made.

    Args:
        parent: file and table of the index that it stands on; None in a full.
        own: the index that is written, its file, and its table.
        own_files: what the names of this backup's files begin with, and no other's: tells what it stored from
            what its parent had.
    """

    def __init__(
        self,
        *,
        parent: tuple[BinaryIO, ContentTable] | None,
        own: IndexCacheWriter,
        own_file: BinaryIO,
        own_contents: ContentTable,
        own_files: str,
    ) -> None:
        self._parent = (LineSearch(parent[0]), parent[1]) if parent is not None else None
        self._own = own
        self._own_lines = LineSearch(own_file, own.frames)
        self._own_contents = own_contents
        self._own_files = own_files

    def has_size(self, size: int, *, but: bytes | None) -> bool:
        """Whether hashing a file of *size* bytes first may spare storing it: another content is as long.

        Args:
            but: the digest of what the same path had: a file that is edited in place most often keeps its size.
        """
        if size < MIN_SHARED_LEN:
            return False
        tables = [self._own_contents] if self._parent is None else [self._parent[1], self._own_contents]
        return any(table.has_size(size, but=but) for table in tables)

    @property
    def seen(self) -> bytearray:
        """The filter of what this backup has stored."""
        assert self._own_contents.seen is not None  # it is new
        return self._own_contents.seen

    def find(self, size: int, digest: bytes) -> Known | None:
        """Who has the content of *size* bytes with the BLAKE3 *digest*; the parent first."""
        if size < MIN_SHARED_LEN:
            return None
        if self._parent is not None:
            lines, contents = self._parent
            path = contents.path_of(size, digest)
            line = lines.line_of(path) if path is not None else None
            if (resolved := _holder(line, size, digest)) is not None:
                return Known(resolved, is_parent=True)
        path = self._own_contents.path_of(size, digest)
        if path is None:
            return None
        # The frame that is being written is not in the file yet.
        line = self._own.open_line(path) or self._own_lines.line_of(path)
        resolved = _holder(line, size, digest)
        if resolved is None or not resolved.data[-1].file.startswith(self._own_files):
            return None
        return Known(resolved, is_parent=False)


def _holder(line: bytes | None, size: int, digest: bytes) -> ResolvedEntry | None:
    """The entry in *line*, if it is one and has that content."""
    if line is None:
        return None
    with suppress(FormatError, UnsafePathError):  # a path that the table made up
        resolved = parse_resolved(line)
        entry = resolved.entry
        if (entry.type, entry.link_of, entry.size) == (FILE, None, size):
            if entry.digest == resolved.content_digest == digest and resolved.data:
                return resolved
    return None
