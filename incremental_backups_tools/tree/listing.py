"""The seam between the Python of this package and the C that lists directories.

``Listing`` of ``_native`` is the C extension's, that of ``_listing_twin`` the same in Python; the same tests run
both. A walk over a tree in which nothing changed is one ``lstat`` for each name, and Python takes several times
as long to look at what it gave as the kernel takes to give it.
"""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from incremental_backups_tools.tree import _listing_twin

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from incremental_backups_tools.delta.small_files import SmallFileSigning


# Of a file that was read: number in the listing, name, permission bits, uid, gid, mtime_ns, ctime_ns, inode, device,
# content, signature (None where it gets none), and the BLAKE3 of both. The content is the caller's as long as any of it
# is held.
FileFields = tuple[
    int, bytes, int, int, int, int, int, int, int, memoryview, bytes | None, bytes, bytes | None
]


class ReadLimits(NamedTuple):
    """What one reading ends at.

    Attributes:
        max_files: most files.
        max_len: most bytes of one, up to 1 MiB.
        max_total: no other is begun once there are so many bytes.
    """

    max_files: int
    max_len: int
    max_total: int


class Reader(Protocol):
    """Reads, hashes and signs files, one reading after the other, in a thread of its own where there is C."""

    def close(self) -> None:
        """End the thread, once it has read what it was given. What is begun afterwards is read at once."""


class Reading(Protocol):
    """Files of a directory that are read, hashed and signed, by a thread that needs no interpreter where there is C.

    Whatever is no plain small file at rest is left out, for somebody who looks at it closely: it is gone, no
    regular file, long, linked, sparse, has another length than it was listed with, has extended attributes or
    flags that are kept, cannot be read, or changed between the look before and the one after reading.
    """

    @property
    def end(self) -> int:
        """The number after the last name that it looks at."""

    def __len__(self) -> int:
        """How many were read, once all are. This and what follows is for one thread."""

    @property
    def most_bytes(self) -> int:
        """What contents and signatures have together at most."""

    def number(self, position: int, /) -> int:
        """The number in the listing of the file at a position among those that were read."""

    def file(self, position: int, /) -> FileFields:
        """That file, as it was when it was opened."""


class Listing(Protocol):
    """The names in a directory, sorted as bytes, each with what ``lstat`` said of it.

    Made from an open directory; raises ``OSError`` where that cannot be read. A name that goes between reading
    it and ``lstat`` is left out.
    """

    def __len__(self) -> int: ...

    def name(self, number: int, /) -> bytes:
        """A name by its number."""

    def stat(self, number: int, /) -> os.stat_result:
        """What ``lstat`` said of it."""

    def is_dir(self, number: int, /) -> bool:
        """Whether it is a directory."""

    def names(self) -> list[bytes]:
        """All names."""

    def own_stat(self) -> os.stat_result:
        """Of the directory itself, after its names were read."""

    def keep(self, wanted: Buffer, /) -> None:
        """Drop the names for which *wanted*, a byte for each, has a zero."""

    def compare(self, first: int, prefix: Buffer, lines: Buffer, offset: int, /) -> tuple[int, int, int, int]:
        """Pass over the names from number *first* on that lines of a cached index say the same of.

        They agree as long as each line from *offset* on, to its newline, is the entry of the next name, and
        type, mode, owner, size, mtime, ctime and inode number are the same. A directory, a socket, a name with
        several links and one that JSON writes with escapes end the run: they need a second look.

        Args:
            prefix: the directory's path with a slash; empty for the root.

        Returns:
            How many names agree, where the line after theirs begins, how many of them are regular files, and
            the bytes of these.
        """

    def read_ahead(
        self,
        first: int,
        dir_fd: int,
        max_files: int,
        max_len: int,
        max_total: int,
        reader: Reader,
        /,
    ) -> Reading:
        """Begin to read, hash and sign plain small files from number *first* on, up to the next directory.

        Args:
            dir_fd: the directory, open as long as this call takes.
            max_files, max_len, max_total: as :class:`ReadLimits`.
            reader: who does it, of :func:`make_reader`.

        Raises:
            OSError: there is no descriptor for it.
        """

    def agrees(self, path: Buffer, line: Buffer, /) -> bool:
        """Whether *line*, without its newline, says so of the directory itself, whose path is *path*."""


@cache
def _find_native() -> ModuleType | None:
    try:
        return importlib.import_module("incremental_backups_tools.tree._native")
    except ModuleNotFoundError:
        return None


def list_directory(fd: int) -> Listing:
    """The names in the open directory *fd*.

    Raises:
        OSError: they cannot be read.
    """
    make = cast("type[_listing_twin.Listing]", (_find_native() or _listing_twin).Listing)
    return make(fd)


def make_reader(signing: SmallFileSigning) -> Reader:
    """Reads for what :func:`list_directory` gave, and signs so. To be closed."""
    make = cast("type[_listing_twin.Reader]", (_find_native() or _listing_twin).Reader)
    return make(signing)
