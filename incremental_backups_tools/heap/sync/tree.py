"""A tree of files somewhere: what it holds, in sort order, reading it and changing it.

Two kinds: a directory of this machine, whose metadata, links and empty directories count, and anything that
fsspec reaches, where files and their content are all there is.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar

import msgspec

from incremental_backups_tools.exceptions import (
    BackupError,
    RepositoryNotFoundError,
    SourceError,
    UnsafePathError,
)
from incremental_backups_tools.repository.change_keys import ChangeKeyGetter
from incremental_backups_tools.repository.filesystems import RemoteFiles, RemoteName
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, check_rel_path, printable

ResultT = TypeVar("ResultT")
Problems = Callable[[bytes, str], None]
# Told of a file that has its name, and its change key from now on.
Written = Callable[[Entry, str | None], None]

# A file that is written to all the time must not hold up the rest.
MAX_ATTEMPTS: Final = 3
# Listings that are asked for before they are needed.
_LISTINGS_AHEAD: Final = 16


@dataclass(slots=True)
class Listing:
    """What a pass over a tree could not see.

    Attributes:
        unlisted: directories of which nothing, or not all, is known.
        blocked: names that are no files, directories or symlinks, or that no tree can hold.
    """

    unlisted: list[bytes]
    blocked: list[bytes]

    @classmethod
    def empty(cls) -> Self:
        """Nothing yet."""
        return cls([], [])

    def hides(self, path: bytes) -> bool:
        """Whether nothing is known of *path*."""
        return any(
            path == above or path.startswith(above + b"/") for above in (*self.unlisted, *self.blocked)
        )


class TreeWriterAt(ABC):
    """Changes one tree. A context; leaving it with an error discards what is not in its place.

    Attributes:
        is_concurrent: files may be written from several threads at once.
    """

    is_concurrent: bool

    @abstractmethod
    def directory(self, entry: Entry) -> None:
        """Make a directory, where there are such things."""

    @abstractmethod
    def file(self, entry: Entry, content: BinaryIO) -> None:
        """Give a path the content of a local file at position 0, whose size and digest are the entry's."""

    @abstractmethod
    def special(self, entry: Entry) -> None:
        """Make a symlink or another name without content.

        Raises:
            UnsafePathError: there are no such things in this tree.
        """

    @abstractmethod
    def metadata(self, entry: Entry) -> None:
        """Give what is there the metadata of its entry."""

    @abstractmethod
    def remove(self, path: bytes, kind: str) -> None:
        """Remove a file, or a directory that is empty."""

    @abstractmethod
    def finish(self) -> None:
        """Bring everything to its place and onto the disk."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything. Without :meth:`finish` what is unfinished is discarded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FileTree(ABC):
    """A tree of files at one place.

    Attributes:
        url: for people.
        has_metadata: modes, owners, links and directories are known and can be set.
        is_hierarchical: nothing can lie below a file.
    """

    url: str
    has_metadata: bool
    is_hierarchical: bool

    @abstractmethod
    def iter_entries(self, listing: Listing, on_problem: Problems) -> Iterator[Entry]:
        """Everything below the root in sort order, files without their digest.

        Args:
            listing: told what could not be seen.

        Raises:
            SourceError: the root is missing or unreadable.
        """

    @abstractmethod
    def read(self, entry: Entry, consume: Callable[[Iterator[bytes]], ResultT]) -> tuple[ResultT, Entry]:
        """Have a file's content consumed so that it is one state of the file; again where it changed meanwhile.

        Returns:
            What *consume* returned, and the entry as it is now.

        Raises:
            SourceError: it cannot be read, or changes all the time.
        """

    @abstractmethod
    def writer(
        self,
        on_problem: Problems,
        *,
        replace_directories: bool,
        use_metadata: bool,
        on_written: Written | None = None,
    ) -> TreeWriterAt:
        """Begin to change the tree; its root is made where it is missing.

        Args:
            on_problem: also told of what fails after a call has returned.
            replace_directories: a directory that is not empty may give way to a file.
            use_metadata: the entries' modes and owners count; otherwise a file that is replaced keeps its own.
            on_written: told of each file that has its name.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Whether the root is there."""


class RemoteTree(FileTree):
    """The files below a path on an fsspec filesystem."""

    has_metadata = False

    def __init__(
        self,
        filesystem: Any,
        root: str,
        *,
        url: str | None = None,
        change_keys: Mapping[str, ChangeKeyGetter],
        threads: int,
        options: RemoteOptions | None = None,
    ) -> None:
        """Nothing is looked at before it is used."""
        self._files = RemoteFiles(filesystem, root, url=url, change_keys=change_keys, options=options)
        self._threads = threads
        self._mode = _default_mode()
        self.url = self._files.url
        self.is_hierarchical = self._files.has_directories

    def exists(self) -> bool:
        try:
            return bool(self._files.list_directory("")) or self._files.has_directories
        except RepositoryNotFoundError:
            return False

    def iter_entries(self, listing: Listing, on_problem: Problems) -> Iterator[Entry]:
        with ThreadPoolExecutor(min(self._threads, _LISTINGS_AHEAD)) as pool:
            try:
                top = self._files.list_directory("")
            except BackupError as error:
                raise SourceError(str(error)) from error
            yield from self._iter_below("", top, pool, listing, on_problem)

    def _iter_below(
        self,
        directory: str,
        names: list[RemoteName],
        pool: ThreadPoolExecutor,
        listing: Listing,
        on_problem: Problems,
    ) -> Iterator[Entry]:
        """Depth first; within a directory by name, a file before the directory of the same name."""
        ahead: deque[Future[list[RemoteName]]] = deque()
        rest = iter([name for name in names if name.kind == "directory" and _is_name(name.base)])
        for name in sorted(names, key=lambda name: (os.fsencode(name.base), name.kind == "directory")):
            path = f"{directory}/{name.base}" if directory else name.base
            raw = os.fsencode(path)
            if name.kind == "other" or not _is_name(name.base):
                listing.blocked.append(raw)
                on_problem(raw, "is neither a file nor a directory, or has a name that no tree can hold")
            elif name.kind == "file":
                yield self._entry_of(raw, name)
            else:
                while len(ahead) < _LISTINGS_AHEAD and (following := next(rest, None)) is not None:
                    below = f"{directory}/{following.base}" if directory else following.base
                    ahead.append(pool.submit(self._files.list_directory, below))
                try:
                    listed = ahead.popleft().result()
                except BackupError as error:
                    listing.unlisted.append(raw)
                    on_problem(raw, str(error))
                    continue
                yield from self._iter_below(path, listed, pool, listing, on_problem)

    def read(self, entry: Entry, consume: Callable[[Iterator[bytes]], ResultT]) -> tuple[ResultT, Entry]:
        path = os.fsdecode(entry.path)
        failure = "changed while it was read"
        for _ in range(MAX_ATTEMPTS):
            try:
                before = self._files.look(path)
                if before is None or before.kind != "file":
                    raise SourceError(f"{printable(entry.path)}: vanished before it was read")
                result = consume(self._files.iter_content(path, before.size))
                if self._files.look(path) == before:
                    return result, self._entry_of(entry.path, before)
            except SourceError:
                raise
            except BackupError as error:
                failure = str(error)
        raise SourceError(f"{printable(entry.path)}: {failure}, {MAX_ATTEMPTS} times")

    def _entry_of(self, path: bytes, name: RemoteName) -> Entry:
        return Entry(
            path=path,
            type=FILE,
            mode=self._mode,
            size=name.size or 0,
            mtime_ns=name.mtime_ns,
            change_key=name.change_key,
        )

    def writer(
        self,
        on_problem: Problems,
        *,
        replace_directories: bool,
        use_metadata: bool,
        on_written: Written | None = None,
    ) -> TreeWriterAt:
        self._files.make_root()
        return _RemoteWriter(self._files, replace_directories, on_written)


class _RemoteWriter(TreeWriterAt):
    is_concurrent = True

    def __init__(self, files: RemoteFiles, replace_directories: bool, on_written: Written | None) -> None:
        self._files = files
        self._replace_directories = replace_directories
        self._on_written = on_written
        self._emptied: set[str] = set()

    def directory(self, entry: Entry) -> None:
        """Directories come and go with their files."""

    def file(self, entry: Entry, content: BinaryIO) -> None:
        path = os.fsdecode(check_rel_path(entry.path))
        self._files.make_way(path, replace_directories=self._replace_directories)
        written = self._files.replace(path, content, entry.size)
        if self._on_written is not None:
            self._on_written(entry, written.change_key)

    def special(self, entry: Entry) -> None:
        raise UnsafePathError(f"{printable(entry.path)}: a {entry.type} cannot be kept in {self._files.url}")

    def metadata(self, entry: Entry) -> None:
        """There is none."""

    def remove(self, path: bytes, kind: str) -> None:
        if kind != DIRECTORY:
            self._files.delete(os.fsdecode(check_rel_path(path)))
            self._emptied.add(os.fsdecode(path).rpartition("/")[0])

    def finish(self) -> None:
        """Remove directories that lost their last file; each file was in its place when its call returned."""
        if not self._files.has_directories:
            return
        for directory in sorted(self._emptied, key=len, reverse=True):
            while directory and not self._files.list_directory(directory):
                self._files.delete_directory(directory)
                directory = directory.rpartition("/")[0]
        self._emptied.clear()

    def close(self) -> None:
        """Nothing is held."""


def _is_name(base: str) -> bool:
    return base not in ("", ".", "..") and "\0" not in base and "/" not in base


def _default_mode() -> int:
    """The mode of a new file, by this process's umask; the owner's alone where that is not to be had."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            line = next(line for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):
        return 0o600
    return 0o666 & ~int(line.split()[1], 8)


def with_digest(entry: Entry, digest: bytes, size: int) -> Entry:
    """*entry* with what its content turned out to be."""
    return msgspec.structs.replace(entry, digest=digest, size=size)
