"""The index that a backup stands on, and the table of its contents: cached on this machine, or rebuilt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import BinaryIO, Final

import msgspec

from incremental_backups_tools.chain.content_table import ContentTable
from incremental_backups_tools.chain.index_cache import (
    IDENTITY_NAME,
    INDEX_NAME,
    CachedLines,
    IndexCacheWriter,
    IndexIdentity,
    encode_kept_identity,
    open_cached_index,
    read_contents,
)
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.tree.diff import merge_join, metadata_identity

CONTENTS_NAME: Final = "index-contents"
_MAX_IDENTITY_LEN: Final = 1 << 26  # it names every backup of the chain


class ParentIndex(msgspec.Struct, frozen=True):
    """The index that a backup stands on.

    Attributes:
        entries: to be iterated once.
        file: the same, for single lines.
        contents: of all of them.
        is_cached: whether all that lies in the cache.
    """

    entries: CachedLines
    file: BinaryIO
    contents: ContentTable
    is_cached: bool = False

    def close(self) -> None:
        """Close the file and the table."""
        self.contents.close()
        self.file.close()


def open_parent_index(
    cache: Cache,
    expected: IndexIdentity,
    resolve_states: Callable[[], Iterable[ResolvedEntry]],
    make_file: Callable[[], BinaryIO],
) -> ParentIndex:
    """The *expected* index out of the cache; what of it is missing, damaged or of another index is made again.

    Args:
        resolve_states: the same entries from the repository, without what only this machine knows.
        make_file: makes an empty temporary file.

    Raises:
        ChainError, IntegrityError, StateFormatError, RepositoryError: from *resolve_states*.
    """
    file = cache.open(INDEX_NAME)
    if file is None:
        return rebuild_parent_index(resolve_states(), expected, make_file())
    try:
        entries = _open_cached(cache, file, expected)
        if entries is not None:
            path = os.path.join(cache.fs_path, CONTENTS_NAME)
            contents = ContentTable.open(path, entries.token)
            is_cached = contents is not None
            contents = contents or read_contents(entries)
            kept, file = file, None
            return ParentIndex(entries, kept, contents, is_cached=is_cached)
    finally:
        if file is not None:
            file.close()
    return rebuild_parent_index(resolve_states(), expected, make_file())


def rebuild_parent_index(
    entries: Iterable[ResolvedEntry], identity: IndexIdentity, file: BinaryIO
) -> ParentIndex:
    """The same from resolved entries, in the empty file *file*.

    Raises:
        ChainError, IntegrityError, StateFormatError: from *entries*.
    """
    contents = ContentTable.create()
    try:
        writer = IndexCacheWriter(file, contents=contents)
        for resolved in entries:
            writer.write(resolved)
        writer.close(identity)
        read = open_cached_index(file, identity)
        if read is None:
            raise ChainError("the index could not be read back from a temporary file")
    except BaseException:
        contents.close()
        raise
    return ParentIndex(read, file, contents, is_cached=False)


def carry_over_index(
    cache: Cache, old: IndexIdentity, new: IndexIdentity, entries: Iterable[ResolvedEntry], file: BinaryIO
) -> None:
    """Make the cached index that holds for *old* hold for *new*, which leads to the same tree by other archives.

    What only this machine knows, and spares reading the source, stays. Without an index of *old* in the cache
    nothing is done.

    Args:
        entries: what *new* resolves to.
        file: an empty temporary file.

    Raises:
        ChainError, IntegrityError, StateFormatError, RepositoryError: from *entries*.
    """
    cached_file = cache.open(INDEX_NAME)
    if cached_file is None:
        return
    with cached_file, closing(ContentTable.create()) as contents:
        cached = _open_cached(cache, cached_file, old)
        if cached is None:
            return
        writer = IndexCacheWriter(file, contents=contents)
        pairs = merge_join(entries, cached, new_path=lambda item: item.path, old_path=lambda item: item.path)
        for resolved, known in pairs:
            if resolved is None or known is None:
                return  # one of them is not what it says: it is rebuilt when it is needed
            entry = known.resolved.entry
            if metadata_identity(entry) != metadata_identity(resolved.entry):
                return
            writer.write(resolved.with_entry(entry))
        writer.close(new)
        keep_index(cache, file, writer, new, contents)


def keep_index(
    cache: Cache,
    index_file: BinaryIO,
    writer: IndexCacheWriter,
    identity: IndexIdentity,
    contents: ContentTable,
    *,
    before: ContentTable | None = None,
) -> None:
    """Put a new index and its table into the cache. Written in part, the table is of no index.

    Where the one that is there is the new one too, only that is noted.

    Args:
        before: the table of the index that unchanged entries were copied from.
    """
    if writer.is_base and writer.base is not None:
        with cache.replace(IDENTITY_NAME) as out:
            out.write(encode_kept_identity(writer.base.token, identity))
        return
    index_file.seek(0)
    with cache.replace(INDEX_NAME) as out:
        while chunk := index_file.read(1 << 20):
            out.write(chunk)
    with cache.replace(CONTENTS_NAME) as out:
        contents.save(writer.token, out, before=before)


def read_kept_identity(cache: Cache) -> bytes:
    """What stands beside the cached index to say which one it is by now; empty where nothing does."""
    kept = cache.open(IDENTITY_NAME)
    if kept is None:
        return b""
    with kept:
        return kept.read(_MAX_IDENTITY_LEN)


def _open_cached(cache: Cache, file: BinaryIO, expected: IndexIdentity) -> CachedLines | None:
    return open_cached_index(file, expected, kept_identity=read_kept_identity(cache))
