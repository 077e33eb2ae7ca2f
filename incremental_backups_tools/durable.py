"""Files that are either not there or whole, also after a kill or a power cut.

A file is written under a temporary name in its own directory, synchronised, given its name, and then the
directory is synchronised: only after that may anybody be told that it is there. A failed fsync is final:
the kernel may have dropped the dirty pages and report success the next time, so none is ever tried twice.

The functions of this module raise ``OSError`` as the system gave it; each room translates it at its own door.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import BinaryIO, Self, cast

FsPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TEMPORARY_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# A temporary name adds 22 bytes; the final name's part is cut so that the sum stays below 255 bytes.
_TEMPORARY_STEM_MAX = 200
_TEMPORARY_NAME = re.compile(rb"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)

# What link(2) answers where the file system (FAT, many FUSE ones) or a policy (some containers and phones)
# knows no hard links. EACCES is among them: the temporary file could be made in the same directory.
_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
)

# SYNC_FILE_RANGE_WAIT_BEFORE and so on, of linux/fs.h.
_SYNC_WAIT_BEFORE, _SYNC_WRITE, _SYNC_WAIT_AFTER = 1, 2, 4
_NO_SYNC_FILE_RANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP})

# What fsync(2) of a directory answers where the file system has nothing to synchronise there.
_NO_DIRECTORY_FSYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def open_directory(fs_path: FsPath) -> int:
    """Open a directory and return its descriptor, which the caller closes."""
    return os.open(fs_path, _DIRECTORY_FLAGS)


def fsync_directory(directory: FsPath | int) -> None:
    """Make the names in a directory durable. Takes a path or an open descriptor.

    A file system that offers no fsync for directories is taken as it is; every other failure is raised.
    """
    if not isinstance(directory, int):
        descriptor = open_directory(directory)
        try:
            fsync_directory(descriptor)
        finally:
            os.close(descriptor)
        return
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_FSYNC:
            raise


def make_directories(fs_path: FsPath, *, mode: int = 0o777) -> None:
    """Make a directory and its missing parents, each durable in its own parent.

    Args:
        mode: permissions of each directory that is made, before the umask.
    """
    path = os.path.abspath(os.fsencode(fs_path))
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with suppress(
            FileExistsError
        ):  # another process made it meanwhile; a file there fails on the next line
            os.mkdir(directory, mode)
        os.close(open_directory(directory))
        fsync_directory(os.path.dirname(directory))


class PendingFile:
    """A file in the making: under a temporary name beside its place until it is published.

    Leaving the context without :meth:`publish` removes it. Everything goes through one descriptor of the
    directory, so a directory that is renamed or replaced meanwhile changes nothing.

    Attributes:
        file: the open file, readable, writable, seekable.
    """

    def __init__(
        self,
        directory: int,
        name: str | bytes,
        *,
        mode: int = 0o666,
        open_raw: Callable[[int], io.RawIOBase] | None = None,
    ) -> None:
        """Make the temporary file.

        Args:
            directory: descriptor of the directory; duplicated, so the caller keeps and closes its own.
            name: the final name, one component.
            mode: permissions before the umask.
            open_raw: makes the unbuffered file from a descriptor, which it then owns.
        """
        self._name = _check_name(name)
        self._temporary = make_temporary_name(self._name)
        self._directory = os.dup(directory)
        self._exists = False
        try:
            descriptor = os.open(self._temporary, _TEMPORARY_FLAGS, mode, dir_fd=self._directory)
            self._exists = True
            self._raw = open_raw(descriptor) if open_raw else io.FileIO(descriptor, "r+b")
            self.file = cast(BinaryIO, io.BufferedRandom(self._raw))
        except BaseException:
            self._remove_temporary()
            os.close(self._directory)
            raise
        self._open = True

    def move(self, directory: int, name: str | bytes) -> None:
        """Choose another place and name on the same file system before :meth:`publish`.

        Args:
            directory: descriptor of the directory; duplicated.
            name: the final name, one component.

        Raises:
            OSError: it cannot be moved there; nothing has changed.
        """
        final = _check_name(name)
        temporary = make_temporary_name(final)
        there = os.dup(directory)
        try:
            os.rename(self._temporary, temporary, src_dir_fd=self._directory, dst_dir_fd=there)
        except BaseException:
            os.close(there)
            raise
        os.close(self._directory)
        self._directory, self._name, self._temporary = there, final, temporary

    def publish(self, *, exclusive: bool, durable: bool = True) -> bool:
        """Give the file its name; when this returns, it is durable.

        Args:
            exclusive: refuse where the name is taken; otherwise what has the name is replaced.
            durable: synchronise file and directory.

        Returns:
            Whether exclusion holds against every process. False where the file system has no hard links and
            only writers that use this function, on this host, exclude each other.

        Raises:
            FileExistsError: exclusive, and the name is taken.
            OSError: anything else; the name is as it was, unless only the last fsync failed.
        """
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())
        certain = True
        if exclusive:
            certain = self._take_free_name()
        else:
            os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._exists = False
        if durable:
            fsync_directory(self._directory)
        return certain

    def _take_free_name(self) -> bool:
        try:
            os.link(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            if not self._has_final_name():
                raise
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            self._rename_under_lock()
            return False
        os.unlink(self._temporary, dir_fd=self._directory)
        return True

    def _has_final_name(self) -> bool:
        # NFS repeats a request whose reply was lost, and then finds the link that it made itself.
        mine = os.stat(self._temporary, dir_fd=self._directory, follow_symlinks=False)
        there = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        return os.path.samestat(mine, there)

    def _rename_under_lock(self) -> None:
        # The lock belongs to the open file description: a new one, so that threads exclude each other too.
        lock = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._directory)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            else:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(self._name))
        finally:
            os.close(lock)

    def _remove_temporary(self) -> None:
        if self._exists:
            self._exists = False
            os.unlink(self._temporary, dir_fd=self._directory)

    def close(self) -> None:
        """Close the file, and remove it unless it was published. May be called again."""
        if not self._open:
            return
        self._open = False
        try:
            # Not self.file: it would flush, and what is buffered belongs to a file that is wanted no more.
            self._raw.close()
            self._remove_temporary()
        finally:
            os.close(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def atomic_write(
    fs_path: FsPath, *, mode: int = 0o644, exclusive: bool = False, durable: bool = True
) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is whole and, unless told otherwise, durable.

    Yields a binary file, readable and seekable too. It gets its name when the block ends; where the block
    raises, nothing is left.

    Args:
        mode: permissions before the umask.
        exclusive: never replace: ``FileExistsError`` at the end of the block where the name is taken.
        durable: synchronise file and directory. Without it a power cut may take the file, or its content.
    """
    directory_path, name = os.path.split(os.fsencode(fs_path))
    directory = open_directory(directory_path or b".")
    try:
        pending = PendingFile(directory, name, mode=mode)
    finally:
        os.close(directory)
    with pending:
        yield pending.file
        pending.publish(exclusive=exclusive, durable=durable)


def make_temporary_name(name: bytes) -> bytes:
    """Return a name that nothing else has, for a file that is to be called *name* when it is finished."""
    return b"." + name[:_TEMPORARY_STEM_MAX] + b"." + secrets.token_hex(8).encode() + b".tmp"


def _check_name(name: str | bytes) -> bytes:
    raw = os.fsencode(name)
    if not raw or b"/" in raw or raw in (b".", b".."):
        raise ValueError(f"not a file name: {name!r}")
    return raw


def is_temporary_name(name: str | bytes) -> bool:
    """Whether a name is one that :func:`make_temporary_name` makes."""
    return _TEMPORARY_NAME.fullmatch(os.fsencode(name)) is not None


def remove_temporaries(directory: int, *, min_age_seconds: float) -> list[str]:
    """Remove what killed processes left unfinished in a directory.

    Args:
        directory: an open descriptor of it.
        min_age_seconds: younger files may belong to a process that lives; 0 only where none can.

    Returns:
        The names that were removed.
    """
    newest_ns = time.time_ns() - int(min_age_seconds * 1e9)
    removed = []
    for name in os.listdir(directory):
        if not is_temporary_name(name):
            continue
        with suppress(FileNotFoundError):  # published or removed meanwhile
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and status.st_mtime_ns <= newest_ns:
                os.unlink(name, dir_fd=directory)
                removed.append(name)
    return sorted(removed)


def sync_filesystem(descriptor: int) -> None:
    """Write all data of the file system that *descriptor* lies on to its disk: syncfs(2).

    One call for a batch of files instead of an fsync for each. Since Linux 5.8 it reports failed writes.
    Where the C library lacks it, sync(2) serves, which reports nothing.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def begin_writeback(descriptor: int, offset: int, length: int) -> None:
    """Let a range of a file be written to its disk from now on: sync_file_range(2). Nothing is durable by that.

    A hint: where the system or the file system cannot do it, the flush that follows does everything.

    Raises:
        OSError: the disk does not take it; a file system may say so but once.
    """
    _sync_file_range(descriptor, offset, length, _SYNC_WRITE)


def finish_writeback(descriptor: int, offset: int, length: int) -> None:
    """Wait until a range of a file is written, and let the system's cache do without it. Nothing is durable by that.

    What cannot be done is left undone.

    Raises:
        OSError: the disk did not take it. Nobody else is told: neither who flushes the file by this descriptor.
    """
    if _sync_file_range(descriptor, offset, length, _SYNC_WAIT_BEFORE | _SYNC_WRITE | _SYNC_WAIT_AFTER):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)


def _sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> bool:
    """Whether it can be done here. Raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if call(descriptor, offset, length, flags) == 0:
        return True
    number = ctypes.get_errno()
    if number not in _NO_SYNC_FILE_RANGE:
        raise OSError(number, os.strerror(number))
    return False
