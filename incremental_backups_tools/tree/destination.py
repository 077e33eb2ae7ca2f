"""A directory that is being written to, and nothing outside it.

Every path is taken apart and opened component by component, each relative to the descriptor of the one
before and none through a link. So a symlink in the way, put there before or swapped in meanwhile, is an
error and never a way out. However deep a path is, only its innermost directories stay open.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from incremental_backups_tools.exceptions import UnsafePathError
from incremental_backups_tools.tree.entry import ROOT, check_rel_path, printable
from incremental_backups_tools.tree.removal import make_accessible, remove_tree

_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# A temporary name is one that no tree is likely to hold, and short, since names may have 255 bytes.
TEMPORARY_PREFIX: Final = b".ibt-"
TEMPORARY_SUFFIX: Final = b".tmp"
_TEMPORARY_NAME: Final = re.compile(r"\.ibt-[0-9a-f]{16}\.tmp")
# A restore that lives keeps a temporary name for as long as a batch of files takes.
_TEMPORARY_AGE_NS: Final = 24 * 3600 * 10**9
# Descriptors held besides the root's. Going back beyond them opens the path from the root again, which for
# a tree of depth d costs d * d / 64 opens in all: 140,000 for 3,000.
MAX_OPEN_DIRS: Final = 32


def temporary_name() -> bytes:
    """A fresh name for a file that is not finished."""
    return TEMPORARY_PREFIX + secrets.token_hex(8).encode() + TEMPORARY_SUFFIX


def create_at(dir_fd: int, name: bytes) -> int:
    """A descriptor, the caller's to close, for writing to the new file *name* in the open directory *dir_fd*.

    Raises:
        FileExistsError: something has that name.
    """
    return os.open(name, _OPEN_NEW, 0o600, dir_fd=dir_fd)


class Destination:
    """The tree below one directory descriptor.

    Args:
        root: the directory; a symlink to one is followed, as the caller named it.
        create: make it, and its parents, where it is missing.

    Raises:
        NotADirectoryError, FileNotFoundError, OSError: from the constructor.
    """

    def __init__(self, root: str | bytes | os.PathLike[str], *, create: bool = True) -> None:
        self.fs_path = os.fsencode(root)
        if create:
            os.makedirs(self.fs_path, exist_ok=True)
        self._begin(os.open(self.fs_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def _begin(self, fd: int) -> None:
        self.fd = fd
        self._second: Destination | None = None
        # The path of the directory used last, and the descriptors of its innermost ones: writing goes in sort
        # order, so that the next path mostly lies near by.
        self._path = b""
        self._parts: list[bytes] = []
        self._fds: deque[int] = deque()

    def second(self) -> Destination:
        """The same directory once more, for who goes through it at another pace. It is closed with this one."""
        if self._second is None:
            second = Destination.__new__(Destination)
            second.fs_path = self.fs_path
            second._begin(os.dup(self.fd))
            self._second = second
        return self._second

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self.forget()
        if self._second is not None:
            self._second.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def forget(self) -> None:
        """Close the directories kept open for speed."""
        self._path = b""
        self._parts = []
        while self._fds:
            os.close(self._fds.pop())

    def directory(self, rel_dir: bytes) -> int:
        """Descriptor of the directory *rel_dir*, valid until the next call.

        Raises:
            FileNotFoundError: it, or one above it, is not there.
            UnsafePathError: something on the way is a link or no directory.
        """
        if rel_dir in (ROOT, b""):
            return self.fd
        if rel_dir == self._path:
            return self._fds[-1]
        parts = check_rel_path(rel_dir).split(b"/")
        self._go_back(_common_length(self._parts, parts))
        for part in parts[len(self._parts) :]:
            self._fds.append(self._open_child(self._fds[-1] if self._fds else self.fd, part, rel_dir))
            self._parts.append(part)
            if len(self._fds) > MAX_OPEN_DIRS:
                os.close(self._fds.popleft())
        self._path = rel_dir
        return self._fds[-1]

    def _go_back(self, depth: int) -> None:
        """Leave directories until *depth* are left, or none where the one wanted is not open any more."""
        self._path = b""
        while len(self._parts) > depth and self._fds:
            os.close(self._fds.pop())
            self._parts.pop()
        if not self._fds:
            self._parts = []

    def _open_child(self, parent_fd: int, name: bytes, rel_dir: bytes) -> int:
        try:
            return os.open(name, _OPEN_DIR, dir_fd=parent_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnsafePathError(
                    f"{printable(rel_dir)}: {printable(name)} is a link or no directory; "
                    "nothing is written through it"
                ) from None
            raise

    def parent(self, rel_path: bytes) -> tuple[int, bytes]:
        """Descriptor of the directory that holds *rel_path*, and its last component.

        Raises:
            FileNotFoundError, UnsafePathError: as :meth:`directory`.
        """
        check_rel_path(rel_path)
        head, _, name = rel_path.rpartition(b"/")
        return self.directory(head), name

    def lstat(self, rel_path: bytes) -> os.stat_result | None:
        """Stat of *rel_path* without following it; None where it, or a directory above it, is not there."""
        if rel_path == ROOT:
            return os.fstat(self.fd)
        try:
            dir_fd, name = self.parent(rel_path)
            return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def make_directory(self, rel_path: bytes) -> bool:
        """Make *rel_path* a directory that we may write to; return whether it is new.

        Raises:
            FileExistsError: something else has that name.
        """
        if rel_path == ROOT:
            return False
        dir_fd, name = self.parent(rel_path)
        try:
            os.mkdir(name, 0o700, dir_fd=dir_fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                raise
            return False
        return True

    def remove(self, rel_path: bytes) -> bool:
        """Remove *rel_path*, with everything below it; return whether it was there."""
        try:
            dir_fd, name = self.parent(rel_path)
            info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(info.st_mode):
            remove_tree(dir_fd, name)
        else:
            os.unlink(name, dir_fd=dir_fd)
        return True

    def make_accessible(self, rel_path: bytes) -> None:
        """Let the owner of a directory list it, enter it and write to it.

        Raises:
            OSError: it is not there, is no directory, or belongs to somebody else.
        """
        make_accessible(*self.parent(rel_path))

    def create(self, rel_path: bytes) -> int:
        """A descriptor, the caller's to close, for writing to the new file *rel_path*.

        Raises:
            FileExistsError: something has that name.
            UnsafePathError: a link on the way.
        """
        return create_at(*self.parent(rel_path))

    def remove_dead_temporaries(self, rel_dir: bytes) -> None:
        """Remove what killed restores left unfinished in the directory *rel_dir* a day ago or earlier.

        Raises:
            OSError, UnsafePathError: it cannot be read.
        """
        newest_ns = time.time_ns() - _TEMPORARY_AGE_NS
        dir_fd = self.directory(rel_dir)
        with os.scandir(dir_fd) as found:
            names = [entry.name for entry in found if _TEMPORARY_NAME.fullmatch(entry.name)]
        for name in names:
            # By ctime: the mtime may be the restored file's. What stays is in nobody's way.
            with suppress(OSError):
                if os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ctime_ns <= newest_ns:
                    os.unlink(name, dir_fd=dir_fd)

    def open_regular(self, rel_path: bytes) -> int:
        """A descriptor for reading the regular file *rel_path*.

        Raises:
            FileNotFoundError: not there.
            UnsafePathError: not a regular file, or a link on the way.
        """
        dir_fd, name = self.parent(rel_path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise UnsafePathError(f"{printable(rel_path)}: not a regular file") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise UnsafePathError(f"{printable(rel_path)}: not a regular file")
        return fd


def _common_length(one: list[bytes], other: list[bytes]) -> int:
    """How many leading components two paths share."""
    if one == other[: len(one)]:  # nearly always: going down, or back up
        return len(one)
    for length, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return length
    return min(len(one), len(other))
