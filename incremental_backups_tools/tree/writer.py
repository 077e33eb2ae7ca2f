"""Writing a tree below a :class:`Destination`: whole files only, verified, then named, then durable.

Each file is written under a temporary name, checked against its digest, given its metadata, and renamed into
place. Data is flushed to the disk before any of these renames, a batch of files at a time: one flush of the
file system costs as much as a few single ``fsync`` calls, and a batch bounds what must be remembered.

Entries come in sort order. A directory gets its metadata when the writer has left it and everything in it
has its final name; so children are done before parents and read-only directories pose no problem.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from blake3 import blake3

from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import IntegrityError, UnsafePathError
from incremental_backups_tools.tree.destination import Destination, temporary_name
from incremental_backups_tools.tree.entry import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    ROOT,
    SYMLINK,
    Entry,
    check_rel_path,
    printable,
)
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.sparse import SparseWriter

# Errors of the whole file system: going on with the next file would only repeat them.
FATAL_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
BATCH_FILES: Final = 1024
BATCH_BYTES: Final = 256 << 20


class TreeWriter:
    """Creates, replaces and removes names below *destination*.

    Args:
        applier: gives restored names their metadata.
        durable: flush to the disk before renaming and at the end.
        replace_directories: a directory that is not empty may give way to something else.
        on_written: called with each entry once it has its final name.
        on_failed: called with an entry that could not be given its final name, and why. A full or failing
            disk is not a matter of one entry: that error is raised.
    """

    def __init__(
        self,
        destination: Destination,
        applier: MetadataApplier,
        *,
        durable: bool = True,
        replace_directories: bool = False,
        on_written: Callable[[Entry], None] | None = None,
        on_failed: Callable[[Entry, Exception], None],
    ) -> None:
        self._destination = destination
        self._applier = applier
        self._durable = durable
        self._replace_directories = replace_directories
        self._on_written = on_written
        self._on_failed = on_failed
        self._entered: list[Entry] = []
        self._queue: list[tuple[Entry, Callable[[], None]]] = []
        self._queued_bytes = 0
        self._temporaries: dict[bytes, bytes] = {}  # temporary path -> final path

    def directory(self, entry: Entry) -> None:
        """Make *entry* a directory now and give it its metadata once it is complete.

        Raises:
            OSError, UnsafePathError: it cannot be made.
        """
        self.leave_until(entry.path)
        path = entry.path
        existing = self._destination.lstat(path)
        if existing is not None and not stat.S_ISDIR(existing.st_mode):
            self._destination.remove(path)
            existing = None
        if existing is None:
            self._destination.make_directory(path)
        else:
            if existing.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                self._destination.make_accessible(path)
            self._destination.remove_dead_temporaries(path)
        self._entered.append(entry)

    def file(self, entry: Entry, chunks: Iterable[bytes]) -> None:
        """Write a regular file from *chunks*.

        Raises:
            IntegrityError: the content is not what *entry* promises. Nothing has changed at its path.
            OSError, UnsafePathError: it cannot be written.
        """
        self.leave_until(entry.path)
        temporary = temporary_name()
        temporary_path = _beside(check_rel_path(entry.path), temporary)
        # Noted before it is there: an interrupt may come between any two steps.
        self._temporaries[temporary_path] = entry.path
        try:
            fd = self._destination.create(temporary_path)
            try:
                self._fill(fd, entry, chunks)
                self._applier.apply_to_fd(fd, entry)
            finally:
                os.close(fd)
        except BaseException:
            # What failed is on its way up. Where somebody moves directories about, the file is not to be
            # found again; a second error would only hide the first.
            with suppress(OSError, UnsafePathError):
                self._discard(temporary_path)
            raise
        self._enqueue(entry, lambda: self._put_in_place(entry, temporary), entry.size)

    def _fill(self, fd: int, entry: Entry, chunks: Iterable[bytes]) -> None:
        hasher = blake3()
        size = 0
        sparse = SparseWriter(fd, entry.sparse) if entry.sparse is not None else None
        if sparse is not None:
            os.ftruncate(fd, entry.size)  # what the file system cannot hold, it says now
        for chunk in chunks:
            size += len(chunk)
            if size > entry.size:
                break
            hasher.update(chunk)
            if sparse is not None:
                sparse.write(chunk)
                continue
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
        if size != entry.size:
            found = "more" if size > entry.size else str(size)
            raise IntegrityError(
                f"{printable(entry.path)}: expected {entry.size} bytes, got {found}",
                path=printable(entry.path),
                expected=entry.size,
                actual=size,
            )
        if hasher.digest() != entry.digest:
            expected = "none" if entry.digest is None else entry.digest.hex()
            raise IntegrityError(
                f"{printable(entry.path)}: expected BLAKE3 {expected}, got {hasher.hexdigest()}",
                path=printable(entry.path),
                expected=expected,
                actual=hasher.hexdigest(),
            )

    def special(self, entry: Entry) -> None:
        """Make a symlink, FIFO or device node.

        Raises:
            OSError, UnsafePathError: it cannot be made; device nodes need root.
        """
        self.leave_until(entry.path)
        dir_fd, _ = self._destination.parent(entry.path)
        temporary = temporary_name()
        self._temporaries[_beside(entry.path, temporary)] = entry.path
        if entry.type == SYMLINK:
            os.symlink(entry.target or b"", temporary, dir_fd=dir_fd)
        elif entry.type == FIFO:
            os.mkfifo(temporary, 0o600, dir_fd=dir_fd)
        elif entry.type in (CHAR_DEVICE, BLOCK_DEVICE) and entry.device is not None:
            kind = stat.S_IFCHR if entry.type == CHAR_DEVICE else stat.S_IFBLK
            os.mknod(temporary, 0o600 | kind, os.makedev(*entry.device), dir_fd=dir_fd)
        else:
            raise ValueError(f"{printable(entry.path)}: not a special file but a {entry.type}")
        self._applier.apply_to_name(dir_fd, temporary, entry)
        self._enqueue(entry, lambda: self._put_in_place(entry, temporary), 0)

    def link(self, entry: Entry, target: bytes) -> None:
        """Make *entry* a hard link to *target*, a path that has been or is being written."""
        self.leave_until(entry.path)
        self._enqueue(entry, lambda: self._link(entry, target), 0)

    def metadata(self, entry: Entry) -> None:
        """Give a name that exists the metadata of *entry*."""
        if entry.type == DIRECTORY:
            self.directory(entry)
            return
        self.leave_until(entry.path)
        self._enqueue(entry, lambda: self._apply(entry), 0)

    def remove(self, rel_path: bytes) -> None:
        """Remove a name with everything below it, now."""
        self.leave_until(rel_path)
        self._destination.remove(rel_path)

    def finish(self) -> None:
        """Bring everything to its place and onto the disk."""
        while self._entered:
            self._leave()
        self.flush()
        if self._durable:
            sync_filesystem(self._destination.fd)

    def abort(self) -> None:
        """Remove the temporary files that have not reached their place."""
        self._queue.clear()
        for temporary_path in list(self._temporaries):
            with suppress(OSError, UnsafePathError):  # as above
                self._discard(temporary_path)

    def leave_until(self, rel_path: bytes) -> None:
        """Finish the directories that *rel_path* does not lie in."""
        while self._entered and not _is_below(rel_path, self._entered[-1].path):
            self._leave()

    def _leave(self) -> None:
        entry = self._entered.pop()
        self._enqueue(entry, lambda: self._apply(entry), 0)

    def _enqueue(self, entry: Entry, action: Callable[[], None], size: int) -> None:
        self._queue.append((entry, action))
        self._queued_bytes += size
        if len(self._queue) >= BATCH_FILES or self._queued_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Flush the data of the batch to the disk, then give every file in it its name."""
        if not self._queue:
            return
        if self._durable:
            sync_filesystem(self._destination.fd)
        queue, self._queue, self._queued_bytes = self._queue, [], 0
        for entry, action in queue:
            try:
                action()
            except (OSError, UnsafePathError) as error:
                if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                    raise
                self._on_failed(entry, error)

    def _apply(self, entry: Entry) -> None:
        if entry.type == DIRECTORY:
            self._applier.apply_to_fd(self._destination.directory(entry.path), entry)
        elif entry.type == SYMLINK or entry.type in (FIFO, CHAR_DEVICE, BLOCK_DEVICE):
            self._applier.apply_to_name(*self._destination.parent(entry.path), entry)
        else:
            fd = self._destination.open_regular(entry.path)
            try:
                self._applier.apply_to_fd(fd, entry)
            finally:
                os.close(fd)
        self._report(entry)

    def _put_in_place(self, entry: Entry, temporary: bytes) -> None:
        self._make_way(entry.path)
        dir_fd, name = self._destination.parent(entry.path)
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        self._temporaries.pop(_beside(entry.path, temporary), None)
        self._report(entry)

    def _make_way(self, rel_path: bytes) -> None:
        """Remove a directory that stands where something else is to be."""
        existing = self._destination.lstat(rel_path)
        if existing is None or not stat.S_ISDIR(existing.st_mode):
            return
        if self._replace_directories:
            self._destination.remove(rel_path)
            return
        dir_fd, name = self._destination.parent(rel_path)
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UnsafePathError(
                    f"{printable(rel_path)}: a directory that is not empty stands in its place"
                ) from None
            raise

    def _link(self, entry: Entry, target: bytes) -> None:
        self._make_way(entry.path)
        # Two directories at once: the second descriptor must not close the first.
        target_dir_fd = os.dup(self._destination.parent(target)[0])
        try:
            dir_fd, name = self._destination.parent(entry.path)
            temporary = temporary_name()
            try:
                os.link(
                    target.rpartition(b"/")[2],
                    temporary,
                    src_dir_fd=target_dir_fd,
                    dst_dir_fd=dir_fd,
                    follow_symlinks=False,
                )
                os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            finally:
                # It may have failed; and one link of an inode renamed onto another stays, by POSIX.
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=dir_fd)
        finally:
            os.close(target_dir_fd)
        self._report(entry)

    def _report(self, entry: Entry) -> None:
        if self._on_written is not None:
            self._on_written(entry)

    def _discard(self, temporary_path: bytes) -> None:
        self._destination.remove(temporary_path)
        self._temporaries.pop(temporary_path, None)


def _beside(rel_path: bytes, name: bytes) -> bytes:
    head, slash, _ = rel_path.rpartition(b"/")
    return head + slash + name


def _is_below(rel_path: bytes, directory: bytes) -> bool:
    return directory == ROOT or rel_path == directory or rel_path.startswith(directory + b"/")
