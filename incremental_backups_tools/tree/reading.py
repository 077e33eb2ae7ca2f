"""Reading regular files of a live tree, each of which may change while it is read.

Files are read, never mapped: one that shrinks under a map kills the process. Holes are not even read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

import msgspec

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.sparse import Extents, find_extents
from incremental_backups_tools.tree.walk import OPEN_FILE, Found, RemoteFile

CHUNK_LEN: Final = 1 << 18
# A file that somebody writes to all the time must not stop a backup: three reads tell a short burst of
# writes from a steady one, and cost at most three times the file.
MAX_ATTEMPTS: Final = 3


class OpenedFile(msgspec.Struct, frozen=True):
    """A regular file that is about to be read.

    Attributes:
        fd: its descriptor, open for as long as the file is read; None of a file of another machine.
        stat: as it was when it was opened.
        extents: where it has data; None where it has no holes.
        change_key: of a file of another machine, as it was then.
    """

    fd: int | None
    stat: os.stat_result
    extents: Extents | None
    change_key: str | None = None


class Consumer(Protocol):
    """Takes the content of a file, piece by piece, and can forget what it took."""

    def update(self, chunk: bytes, /) -> None:
        """Take the next piece."""

    def hole(self, length: int, /) -> None:
        """Take *length* bytes of zeros: a hole, of which nothing was read."""

    def abandon(self) -> None:
        """Forget everything: the file changed, and is read again or given up."""


ConsumerT = TypeVar("ConsumerT", bound=Consumer)


def same_file_state(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether two stats of a file show no sign of a change between them."""
    return (
        before.st_ino == after.st_ino
        and before.st_dev == after.st_dev
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
    )


def open_regular(found: Found) -> tuple[int, os.stat_result]:
    """Open *found* without following links and without waiting for anybody; return descriptor and stat.

    Raises:
        SourceError: it is gone, cannot be opened, or is no regular file any more.
    """
    shown = printable(found.rel_path)
    try:
        fd = os.open(found.name, OPEN_FILE, dir_fd=found.dir_fd)
    except FileNotFoundError:
        raise SourceError(f"{shown}: vanished before it was read") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symlink; a socket, or a device without a driver
            raise SourceError(f"{shown}: is no regular file any more") from None
        raise SourceError(f"{shown}: cannot open: {error.strerror}") from error
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise SourceError(f"{shown}: is no regular file any more")
    except BaseException:
        os.close(fd)
        raise
    return fd, info


def read_stable(
    found: Found, make_consumer: Callable[[OpenedFile], ConsumerT]
) -> tuple[ConsumerT, os.stat_result, bool]:
    """Read a file into a consumer so that what it took is one state of the file.

    A file that changes during the read is read again, at most ``MAX_ATTEMPTS`` times in all; the last read
    stands, provided that it yielded as many bytes as the file had when it was opened.

    Args:
        make_consumer: called with the opened file before each attempt.

    Returns:
        The consumer, the stat of the opened file, and whether the read was undisturbed.

    Raises:
        SourceError: gone, unreadable, or shrinking at every attempt. The consumer has been abandoned.
    """
    if found.remote is not None:
        return _read_remote(found, found.remote, make_consumer)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        fd, info = open_regular(found)
        try:
            opened = OpenedFile(fd, info, _extents_of(found, fd, info))
            consumer = make_consumer(opened)
            whole, stable = _feed(found, fd, opened, consumer)
        finally:
            os.close(fd)
        if stable or (whole and attempt == MAX_ATTEMPTS):
            return consumer, info, stable
        consumer.abandon()
    raise SourceError(f"{printable(found.rel_path)}: shrank while it was read, {MAX_ATTEMPTS} times")


def _read_remote(
    found: Found, remote: RemoteFile, make_consumer: Callable[[OpenedFile], ConsumerT]
) -> tuple[ConsumerT, os.stat_result, bool]:
    """As :func:`read_stable`; whether a file changed is told by what its machine says of it before and after."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        info, change_key = remote.look()
        consumer = make_consumer(OpenedFile(None, info, None, change_key))
        try:
            taken = 0
            for chunk in remote.iter_content(info.st_size):
                consumer.update(chunk)
                taken += len(chunk)
            after, key_after = remote.look()
        except BaseException:
            consumer.abandon()
            raise
        whole = taken == info.st_size
        stable = whole and key_after == change_key and same_file_state(info, after)
        if stable or (whole and attempt == MAX_ATTEMPTS):
            return consumer, info, stable
        consumer.abandon()
    raise SourceError(f"{printable(found.rel_path)}: shrank while it was read, {MAX_ATTEMPTS} times")


def _extents_of(found: Found, fd: int, info: os.stat_result) -> Extents | None:
    try:
        return find_extents(fd, info)
    except OSError as error:
        raise _unreadable(found, error) from error


def _feed(found: Found, fd: int, opened: OpenedFile, consumer: Consumer) -> tuple[bool, bool]:
    """Read a file into *consumer*; return whether it had its full length, and whether it stayed the same."""
    try:
        taken = 0
        # Without a map it is data from beginning to end.
        for offset, length in opened.extents or ((0, opened.stat.st_size),):
            if offset > taken:
                consumer.hole(offset - taken)
            taken = offset
            for chunk in _iter_range(found, fd, offset, length):
                consumer.update(chunk)
                taken += len(chunk)
            if taken < offset + length:
                break
        after = os.fstat(fd)
    except BaseException:
        consumer.abandon()
        raise
    whole = taken == opened.stat.st_size
    return whole, whole and same_file_state(opened.stat, after)


def _iter_range(found: Found, fd: int, offset: int, length: int) -> Iterator[bytes]:
    """The *length* bytes of *fd* at *offset*, fewer where the file ends before."""
    left = length
    try:
        if offset:
            os.lseek(fd, offset, os.SEEK_SET)
        while left > 0 and (chunk := os.read(fd, min(CHUNK_LEN, left))):
            left -= len(chunk)
            yield chunk
    except OSError as error:
        raise _unreadable(found, error) from error


def _unreadable(found: Found, error: OSError) -> SourceError:
    return SourceError(f"{printable(found.rel_path)}: cannot read: {error.strerror}")
