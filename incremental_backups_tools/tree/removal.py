"""Removing whole trees, however deep, without ever leaving them."""

from __future__ import annotations

import errno
import functools
import os
import stat
from contextlib import suppress
from typing import Final

import msgspec

from incremental_backups_tools.exceptions import UnsafePathError
from incremental_backups_tools.tree.entry import printable

_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_NODE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Level(msgspec.Struct):
    """A directory that is being emptied: its name, which one it is, and the directories left in it."""

    name: bytes
    identity: tuple[int, int]
    subdirs: list[bytes]


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Remove the directory *name* of the open directory *dir_fd*, with everything in it.

    Two descriptors at most are open, and nothing is called recursively. Links are removed, never followed. A
    directory that its owner may not write to is made writable first. On an error what is left stays.

    Raises:
        OSError: something cannot be removed.
        UnsafePathError: a directory was moved away in the meantime.
    """
    levels: list[_Level] = []
    fd = dir_fd
    try:
        fd = _enter(dir_fd, name, levels)
        while levels:
            level = levels[-1]
            if level.subdirs:
                child = _enter(fd, level.subdirs.pop(), levels)
                fd = _replace(fd, child)
                continue
            if len(levels) > 1:
                fd = _replace(fd, _leave(fd, levels[-2]))
                os.rmdir(level.name, dir_fd=fd)
            levels.pop()
    finally:
        if fd != dir_fd:
            os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def make_accessible(dir_fd: int, name: bytes) -> None:
    """Let the owner of the directory *name* list it, enter it and write to it; links are not followed.

    Raises:
        OSError: it is not there, is no directory, or belongs to somebody else.
    """
    try:
        fd = os.open(name, _OPEN_DIR, dir_fd=dir_fd)
    except PermissionError:
        # It cannot be opened for reading. Find out what it is, and change that by the only name that is safe.
        fd = os.open(name, _OPEN_NODE, dir_fd=dir_fd)
        change_mode = functools.partial(os.chmod, b"/proc/self/fd/%d" % fd)
    else:
        change_mode = functools.partial(os.fchmod, fd)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            change_mode(stat.S_IMODE(mode) | stat.S_IRWXU)
    finally:
        os.close(fd)


def _enter(dir_fd: int, name: bytes, levels: list[_Level]) -> int:
    """Open a directory and remove all in it that is no directory."""
    with suppress(PermissionError):  # somebody else's: then it is tried as it is
        make_accessible(dir_fd, name)
    fd = os.open(name, _OPEN_DIR, dir_fd=dir_fd)
    try:
        info = os.fstat(fd)
        levels.append(_Level(name, (info.st_dev, info.st_ino), _remove_files(fd)))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove_files(fd: int) -> list[bytes]:
    with os.scandir(fd) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in found:
        if not is_dir:
            os.unlink(name, dir_fd=fd)
    return [name for name, is_dir in found if is_dir]


def _leave(fd: int, parent: _Level) -> int:
    """Open the directory above, which must be the one that was left."""
    above = os.open(b"..", _OPEN_DIR, dir_fd=fd)
    info = os.fstat(above)
    if (info.st_dev, info.st_ino) != parent.identity:
        os.close(above)
        raise UnsafePathError(f"{printable(parent.name)}: was moved away while it was removed")
    return above


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
