"""A directory of this machine as a tree of files.

Walked, read and written by descriptors, so that no link leads out of it; with everything that the file system
knows of its names.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final

import msgspec

from incremental_backups_tools.exceptions import SourceError, UnsafePathError
from incremental_backups_tools.heap.sync.tree import (
    MAX_ATTEMPTS,
    FileTree,
    Listing,
    Problems,
    ResultT,
    TreeWriterAt,
    Written,
)
from incremental_backups_tools.repository.change_keys import ChangeKeyGetter, change_key_getter
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.metadata import MetadataApplier, capture, type_of
from incremental_backups_tools.tree.reading import CHUNK_LEN, same_file_state
from incremental_backups_tools.tree.walk import Found, Walk
from incremental_backups_tools.tree.writer import TreeWriter

# A file that was written within a tick of the clock before the listing may be written once more and look the
# same. Two seconds: what FAT and some network file systems count in.
_RACY_NS: Final = 2 * 10**9


class LocalTree(FileTree):
    """The directory *fs_path*."""

    has_metadata = True
    is_hierarchical = True

    def __init__(self, fs_path: str, *, change_keys: Mapping[str, ChangeKeyGetter]) -> None:
        """Nothing is looked at before it is used."""
        self._fs_path = os.path.abspath(fs_path)
        self._change_key = change_key_getter(frozenset({"file"}), change_keys)
        self.url = self._fs_path

    def exists(self) -> bool:
        return os.path.isdir(self._fs_path)

    def iter_entries(self, listing: Listing, on_problem: Problems) -> Iterator[Entry]:
        def unlisted(path: bytes, message: str) -> None:
            listing.unlisted.append(path)
            on_problem(path, message)

        walk = Walk(self._fs_path, on_problem=unlisted)
        for found in walk:
            if type_of(found.stat.st_mode) is None:
                listing.blocked.append(found.rel_path)
                on_problem(found.rel_path, "a socket, skipped")
                continue
            if found.rel_path == ROOT:
                continue
            try:
                entry = capture(found, found.stat)
            except (OSError, ValueError) as error:
                listing.blocked.append(found.rel_path)
                on_problem(found.rel_path, str(error))
                continue
            yield self._with_key(entry, found.stat)

    def _with_key(self, entry: Entry, status: os.stat_result) -> Entry:
        if entry.type != FILE:
            return entry
        if max(status.st_mtime_ns, status.st_ctime_ns) > time.time_ns() - _RACY_NS:
            return entry
        return msgspec.structs.replace(entry, change_key=self._change_key(_info_of(entry.path, status)))

    def read(self, entry: Entry, consume: Callable[[Iterator[bytes]], ResultT]) -> tuple[ResultT, Entry]:
        shown = printable(entry.path)
        try:
            with Destination(self._fs_path, create=False) as place:
                for _ in range(MAX_ATTEMPTS):
                    descriptor = place.open_regular(entry.path)
                    try:
                        before = os.fstat(descriptor)
                        result = consume(_iter_file(descriptor, before.st_size))
                        if same_file_state(before, os.fstat(descriptor)):
                            name = entry.path.rpartition(b"/")[2]
                            found = Found(
                                entry.path, name, place.parent(entry.path)[0], before, fd=descriptor
                            )
                            return result, self._with_key(capture(found, before, fd=descriptor), before)
                    except _ShrankError:
                        continue
                    finally:
                        os.close(descriptor)
        except FileNotFoundError:
            raise SourceError(f"{shown}: vanished before it was read") from None
        except (OSError, UnsafePathError) as error:
            raise SourceError(f"{shown}: cannot read: {error}") from error
        raise SourceError(f"{shown}: changed while it was read, {MAX_ATTEMPTS} times")

    def writer(
        self,
        on_problem: Problems,
        *,
        replace_directories: bool,
        use_metadata: bool,
        on_written: Written | None = None,
    ) -> TreeWriterAt:
        return _LocalWriter(
            self._fs_path, on_problem, replace_directories, use_metadata, on_written, self._key_of_status
        )

    def _key_of_status(self, path: bytes, status: os.stat_result) -> str | None:
        """The change key of a file that was just given its modification time and its name.

        Whoever writes to it later sets another modification time, unless the one that it has is the present.
        """
        if status.st_mtime_ns > time.time_ns() - _RACY_NS:
            return None
        return self._change_key(_info_of(path, status))


class _LocalWriter(TreeWriterAt):
    is_concurrent = False

    def __init__(
        self,
        fs_path: str,
        on_problem: Problems,
        replace_directories: bool,
        use_metadata: bool,
        on_written: Written | None,
        key_of: Callable[[bytes, os.stat_result], str | None],
    ) -> None:
        self._use_metadata = use_metadata
        self._on_written = on_written
        self._key_of = key_of
        self._destination = Destination(fs_path)
        self._writer = TreeWriter(
            self._destination,
            MetadataApplier(on_problem=lambda kind, path, message: on_problem(path, f"{kind}: {message}")),
            replace_directories=replace_directories,
            on_written=self._report,
            on_failed=lambda entry, error: on_problem(entry.path, str(error)),
        )

    def directory(self, entry: Entry) -> None:
        self._writer.directory(entry)

    def file(self, entry: Entry, content: BinaryIO) -> None:
        self._make_parents(entry.path)
        if not self._use_metadata:
            entry = self._with_own_metadata(entry)
        self._writer.file(entry, iter(lambda: content.read(CHUNK_LEN), b""))

    def _with_own_metadata(self, entry: Entry) -> Entry:
        """A file that is there keeps its mode and owner where the source knows of none: a key stays private."""
        there = self._destination.lstat(entry.path)
        if there is None or type_of(there.st_mode) != FILE:
            return entry
        mode = stat.S_IMODE(there.st_mode)
        return msgspec.structs.replace(
            entry, mode=mode, uid=there.st_uid, gid=there.st_gid, user=None, group=None
        )

    def special(self, entry: Entry) -> None:
        self._make_parents(entry.path)
        self._writer.special(entry)

    def metadata(self, entry: Entry) -> None:
        self._writer.metadata(entry)

    def remove(self, path: bytes, kind: str) -> None:
        # Never what is below: what has taken the name meanwhile was just written there.
        try:
            parent, name = self._destination.parent(path)
            if kind == DIRECTORY:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)
        except (FileNotFoundError, IsADirectoryError, UnsafePathError):
            # It is gone: a directory that was wanted stands there, or a file where its directory was.
            return

    def finish(self) -> None:
        self._writer.finish()

    def close(self) -> None:
        self._writer.abort()
        self._destination.close()

    def _report(self, entry: Entry) -> None:
        if self._on_written is None or entry.type != FILE:
            return
        status = self._destination.lstat(entry.path)
        if status is not None:
            self._on_written(entry, self._key_of(entry.path, status))

    def _make_parents(self, path: bytes) -> None:
        """A source without directories names none; a file in the way is one that its tree does not have."""
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            above = b"/".join(parts[:depth])
            there = self._destination.lstat(above)
            if there is None:
                self._make_directory(above)
            elif type_of(there.st_mode) == FILE:
                self._destination.remove(above)
                self._make_directory(above)

    def _make_directory(self, path: bytes) -> None:
        parent, name = self._destination.parent(path)
        os.mkdir(name, 0o777, dir_fd=parent)


def _info_of(path: bytes, status: os.stat_result) -> dict[str, object]:
    """What fsspec says of a local file, and what it leaves out."""
    return {
        "name": os.fsdecode(path),
        "type": "file",
        "size": status.st_size,
        "mtime": status.st_mtime,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "ino": status.st_ino,
        "dev": status.st_dev,
    }


class _ShrankError(Exception):
    """A file has become shorter since it was opened."""


def _iter_file(descriptor: int, size: int) -> Iterator[bytes]:
    os.lseek(descriptor, 0, os.SEEK_SET)
    left = size
    while left:
        chunk = os.read(descriptor, min(CHUNK_LEN, left))
        if not chunk:
            raise _ShrankError
        left -= len(chunk)
        yield chunk
