"""Objects of the local kind: whole files, one inode for each content and metadata, to be linked into trees.

An object is written elsewhere on its file system, synchronised, and linked to its name, which is never taken from
another one. One that is not what its name says, because a disk failed or somebody wrote to it through a snapshot,
is set aside under a name of its own: then its name is free for what is right.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from blake3 import blake3

from incremental_backups_tools.durable import fsync_directory
from incremental_backups_tools.heap.snapshots.layout import (
    DAMAGED,
    ObjectName,
    parse_object_path,
)
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.reading import CHUNK_LEN
from incremental_backups_tools.tree.sparse import SparseWriter

_FICLONE: Final = 0x40049409
# What FICLONE says where the file system cannot, or not between these two files.
_NO_CLONE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}
)
_BLOCK_LEN: Final = 4096
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# File systems keep times to the nanosecond, or to 100 of them; whoever writes to a file moves its time by more.
_TIME_TOLERANCE_NS: Final = 1000


class Instances:
    """The objects of one depot.

    Args:
        objects: the directory that they are in; beside it is the one for those that are damaged.
        staging: a directory of the same file system for files that are not objects yet; None to read only.
        applier: gives new objects their metadata.
        max_links: the most names that an inode may have, besides what the file system says; None is no limit.

    Attributes:
        healed: instances that were found damaged or missing.
    """

    def __init__(
        self,
        objects: str,
        staging: str | None,
        applier: MetadataApplier,
        *,
        max_links: int | None = None,
    ) -> None:
        self._objects = objects
        self._damaged = os.path.join(os.path.dirname(objects), DAMAGED)
        self._staging = staging
        self._applier = applier
        self._max_links = max_links
        self._can_clone: bool | None = None  # not tried yet
        self.healed: set[ObjectName] = set()

    # --- reading ---------------------------------------------------------------------------------------------

    def path(self, name: ObjectName) -> str:
        """Where an object is."""
        return os.path.join(self._objects, name.path)

    def damaged_path(self, name: ObjectName) -> str:
        """Where an object is that was set aside."""
        return os.path.join(self._damaged, name.damaged_path)

    def open(self, name: ObjectName) -> int:
        """A descriptor, the caller's to close, for reading an object.

        Raises:
            OSError: it is not there, or is no regular file.
        """
        fd = os.open(self.path(name), _READ)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "is no regular file", self.path(name))
        return fd

    def find_fault(self, name: ObjectName, entry: Entry) -> str | None:
        """What ``lstat`` shows to be wrong with an object whose file is *entry*, as a phrase; None for nothing.

        Of a file that somebody wrote to through a snapshot at least the time is wrong.
        """
        try:
            info = os.lstat(self.path(name))
        except OSError as error:
            return error.strerror or str(error)
        if not stat.S_ISREG(info.st_mode):
            return "is no regular file"
        if info.st_size != entry.size:
            return f"has {info.st_size} bytes, expected {entry.size}"
        return self.find_metadata_fault(info, entry)

    def find_metadata_fault(self, info: os.stat_result, entry: Entry) -> str | None:
        """What is wrong with the metadata of an object, as a phrase; None for nothing."""
        owner = (info.st_uid, info.st_gid)
        if self._applier.as_root and owner != (entry.uid, entry.gid):
            return f"has the owner {info.st_uid}:{info.st_gid}, expected {entry.uid}:{entry.gid}"
        mode = entry.mode
        if owner != (entry.uid, entry.gid):
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
        if stat.S_IMODE(info.st_mode) != mode:
            return f"has the mode {stat.S_IMODE(info.st_mode):o}, expected {mode:o}"
        if abs(info.st_mtime_ns - entry.mtime_ns) > _TIME_TOLERANCE_NS:
            return f"has the time {info.st_mtime_ns}, expected {entry.mtime_ns}"
        return None

    def has_content(self, name: ObjectName, size: int) -> bool:
        """Whether an object is there, and every byte of it is right.

        Raises:
            OSError: it cannot be read.
        """
        try:
            fd = self.open(name)
        except FileNotFoundError:
            return False
        try:
            if os.fstat(fd).st_size != size:
                return False
            return hash_file(fd) == name.digest
        finally:
            os.close(fd)

    def iter_same_content(self, digest: str) -> Iterator[ObjectName]:
        """The objects that have a content, whatever their metadata."""
        directory = os.path.join(self._objects, digest[:2])
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for file_name in sorted(names):
            if file_name.startswith(digest[2:]):
                name = parse_object_path(f"{digest[:2]}/{file_name}")
                if name is not None:
                    yield name

    # --- making ----------------------------------------------------------------------------------------------

    def new_file(self) -> tuple[str, int]:
        """An empty file for what may become an object: its path, and a descriptor, the caller's to close.

        Raises:
            OSError: it cannot be made.
        """
        assert self._staging is not None  # whoever only reads makes nothing
        path = os.path.join(self._staging, secrets.token_hex(16))
        return path, os.open(path, _NEW, 0o600)

    def finish_file(self, path: str, fd: int, entry: Entry, hint: ObjectName | None) -> None:
        """Give a file that has its content the metadata of *entry*; share its bytes where that can be.

        Args:
            hint: an object that may have the content too.

        Raises:
            OSError: its metadata cannot be set at all.
        """
        if entry.size and entry.digest is not None and self._clones():
            self._share_bytes(fd, entry.digest.hex(), entry.size, hint)
        self._applier.apply_to_fd(fd, entry)

    def _share_bytes(self, fd: int, digest: str, size: int, hint: ObjectName | None) -> None:
        """Replace the bytes of a file by those of an object with the same content, which then are there once."""
        candidates = [hint] if hint is not None and hint.digest == digest else []
        for name in (*candidates, *self.iter_same_content(digest)):
            # What is taken over must be right: a copy of a damaged object would be damaged too.
            try:
                if self.has_content(name, size) and self._clone(name, fd):
                    return
            except OSError:
                continue  # one that cannot be read is nothing to share

    def _clone(self, name: ObjectName, fd: int) -> bool:
        source = self.open(name)
        try:
            return _clone_bytes(source, fd)
        finally:
            os.close(source)

    def _clones(self) -> bool:
        """Whether the file system can share bytes between files; found out with a file of a block."""
        if self._can_clone is None:
            (one, source), (other, fd) = self.new_file(), self.new_file()
            try:
                os.write(source, bytes(_BLOCK_LEN))
                self._can_clone = _clone_bytes(source, fd)
            finally:
                for path, descriptor in ((one, source), (other, fd)):
                    os.close(descriptor)
                    os.unlink(path)
        return self._can_clone

    def publish(self, path: str, entry: Entry, name: ObjectName) -> bool:
        """Make a finished file the object *name*, unless there is one that is as good; the file is gone then.

        Its bytes must be on the disk.

        Returns:
            Whether it was made.

        Raises:
            OSError: it cannot be given its name.
        """
        if os.path.lexists(self.damaged_path(name)):
            self.healed.add(name)
        is_new = self._link_into_objects(path, name)
        if not is_new and not self.is_usable(name, entry):
            is_new = self._link_into_objects(path, name)
        os.unlink(path)
        return is_new

    def make_again(self, name: ObjectName, entry: Entry) -> bool:
        """Make an instance that is missing out of another one with the same content; False where there is none.

        Raises:
            OSError: it cannot be made.
        """
        if os.path.lexists(self.path(name)):
            return True
        for other in self.iter_same_content(name.digest):
            if self.has_content(other, entry.size):
                self._copy(other, name, entry)
                return True
        return False

    def _link_into_objects(self, path: str, name: ObjectName) -> bool:
        """Give a file the name of an object; False where there is one."""
        target = self.path(name)
        try:
            try:
                os.link(path, target, follow_symlinks=False)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(os.path.dirname(target), 0o700)
                os.link(path, target, follow_symlinks=False)
        except FileExistsError:
            return False
        return True

    def _is_usable(self, name: ObjectName, entry: Entry) -> bool:
        """Whether an object may be linked into a tree as *entry*; metadata that somebody changed is put right."""
        if self.find_fault(name, entry) is None:
            return True
        try:
            if not self.has_content(name, entry.size):
                return False
            fd = self.open(name)
        except OSError:
            return False
        try:
            self._applier.apply_to_fd(fd, entry)
        finally:
            os.close(fd)
        return True

    def is_usable(self, name: ObjectName, entry: Entry) -> bool:
        """Whether an object may be linked into a tree as *entry*; one that may not is set aside.

        Metadata that somebody changed through a snapshot is put right.

        Raises:
            OSError: it can neither be used nor set aside.
        """
        if self._is_usable(name, entry):
            return True
        with suppress(FileNotFoundError):
            self.set_aside(name)
        self.healed.add(name)
        return False

    def set_aside(self, name: ObjectName) -> None:
        """Take its name from an object that is not what it says.

        Raises:
            OSError: that cannot be.
        """
        with suppress(FileExistsError):
            os.mkdir(self._damaged, 0o700)
        os.rename(self.path(name), self.damaged_path(name))
        fsync_directory(self._damaged)
        fsync_directory(os.path.dirname(self.path(name)))

    # --- linking ---------------------------------------------------------------------------------------------

    def link(self, name: ObjectName, entry: Entry, dir_fd: int, file_name: bytes) -> ObjectName:
        """Link an object into a tree as *file_name* of the directory *dir_fd*.

        Where its inode has as many names as it can have, another instance is used, or made.

        Returns:
            The instance that was linked.

        Raises:
            OSError: it cannot be linked.
        """
        source = name
        while True:
            try:
                self._link(name, dir_fd, file_name)
                return name
            except OSError as error:
                if error.errno == errno.EMLINK:
                    source, name = name, name.next
                    if os.path.lexists(self.path(name)):
                        self.is_usable(name, entry)
                    continue
                if error.errno != errno.ENOENT or name is source:
                    raise
            self._copy(source, name, entry)

    def _link(self, name: ObjectName, dir_fd: int, file_name: bytes) -> None:
        path = self.path(name)
        if self._max_links is not None and os.lstat(path).st_nlink >= self._max_links:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), path)
        os.link(path, file_name, dst_dir_fd=dir_fd, follow_symlinks=False)

    def _copy(self, source: ObjectName, name: ObjectName, entry: Entry) -> None:
        """Make the instance *name* out of another one."""
        path, fd = self.new_file()
        try:
            if not (self._clones() and self._clone(source, fd)):
                copy_content(self.open(source), fd, source)
            self._applier.apply_to_fd(fd, entry)
            os.fsync(fd)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        self.publish(path, entry, name)


def _clone_bytes(source: int, fd: int) -> bool:
    """Let the file *fd* share all bytes of *source*; False where the file system cannot."""
    try:
        fcntl.ioctl(fd, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


def copy_content(source_fd: int, fd: int, name: ObjectName) -> None:
    """Copy an object, with holes where there are zeros, and close *source_fd*.

    Raises:
        OSError: it cannot be read or written, or is not what its name says.
    """
    hasher = blake3()
    writer = SparseWriter(fd)
    try:
        for chunk in iter_chunks(source_fd):
            hasher.update(chunk)
            writer.write(chunk)
        writer.finish()
    finally:
        os.close(source_fd)
    if hasher.hexdigest() != name.digest:
        raise OSError(errno.EIO, f"expected BLAKE3 {name.digest}, got {hasher.hexdigest()}", name.path)


def hash_file(fd: int) -> str:
    """The BLAKE3, in hexadecimal digits, of an open file from where it stands."""
    hasher = blake3()
    for chunk in iter_chunks(fd):
        hasher.update(chunk)
    return hasher.hexdigest()


def iter_chunks(fd: int) -> Iterator[bytes]:
    """The bytes of an open file from where it stands."""
    while chunk := os.read(fd, CHUNK_LEN):
        yield chunk
