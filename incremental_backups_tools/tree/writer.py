"""Writing a tree below a :class:`Destination`: whole files only, verified, then named, then durable.

Each file is written under a temporary name, checked against its digest, given its metadata, and renamed into
place. Where it takes the place of another, its data is flushed to the disk before that: a power cut must not
leave an empty file where there was one. That is done a batch of files at a time: one flush of the file system
costs as much as a few single ``fsync`` calls, and a batch bounds what must be remembered. A new name takes
nobody's place; it is durable once :meth:`TreeWriter.finish` has returned, as everything is.

Entries come in sort order. A directory gets its metadata when the writer has left it and everything in it
has its final name; so children are done before parents and read-only directories pose no problem.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.durable import sync_filesystem
from incremental_backups_tools.exceptions import IntegrityError, UnsafePathError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.acl import ACL_DEFAULT
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
from incremental_backups_tools.tree.write_behind import FileWriter, WriteBehind

# Errors of the whole file system: going on with the next file would only repeat them.
FATAL_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
BATCH_FILES: Final = 1024
BATCH_BYTES: Final = 256 << 20


class _Entered(msgspec.Struct, frozen=True):
    """A directory that is being written to.

    Attributes:
        is_ours: it was made by this writer and nobody else can get into it: it holds what was written to it.
    """

    entry: Entry
    is_ours: bool


class Step(msgspec.Struct):
    """Something to be done to a name when everything before it has been.

    Attributes:
        entry: whose name it is.
        action: does it.
        size: bytes that must be on the disk before that, where *replaces* is set.
        replaces: it may take the place of what was there.
        count: how many names it stands for.
        is_ready: whether *action* need not wait; None is always.
    """

    entry: Entry
    action: Callable[[], None]
    size: int = 0
    replaces: bool = False
    count: int = 1
    is_ready: Callable[[], bool] | None = None


class TreeWriter:
    """Creates, replaces and removes names below *destination*.

    Args:
        applier: gives restored names their metadata.
        durable: flush to the disk before replacing anything and at the end.
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
        self._entered: list[_Entered] = []
        # What is done in order of the queue lags behind what is written: each has its place in the tree.
        self._done = destination.second()
        self._queue: deque[Step] = deque()
        self._queued_names = self._queued_bytes = self._replacing = 0
        self._temporaries: dict[bytes, bytes] = {}  # temporary path -> final path
        self._lost: set[bytes] = set()  # what was to be written and could not be

    def directory(self, entry: Entry) -> None:
        """Make *entry* a directory now and give it its metadata once it is complete.

        Raises:
            OSError, UnsafePathError: it cannot be made.
        """
        self.leave_until(entry.path)
        path = entry.path
        existing = self.lstat(path)
        if existing is not None and not stat.S_ISDIR(existing.st_mode):
            self._destination.remove(path)
            existing = None
        is_ours = False
        if existing is None:
            is_ours = self._destination.make_directory(path) and self._passes_nothing_on(path)
        else:
            if existing.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                self._destination.make_accessible(path)
            self._destination.remove_dead_temporaries(path)
        self._entered.append(_Entered(entry, is_ours))

    def _passes_nothing_on(self, path: bytes) -> bool:
        """Whether what is made in a new directory gets no attributes from it: a default ACL is inherited."""
        try:
            return os.fsdecode(ACL_DEFAULT) not in os.listxattr(self._destination.directory(path))
        except OSError as error:
            return error.errno == errno.ENOTSUP

    def lstat(self, rel_path: bytes) -> os.stat_result | None:
        """What is at *rel_path*, not followed; None where nothing is. A new directory is not asked."""
        if self._is_ours(rel_path):
            return None
        return self._destination.lstat(rel_path)

    def _is_ours(self, rel_path: bytes) -> bool:
        """Whether *rel_path*, the next in sort order, comes to lie in a directory that nobody else can enter."""
        parent = rel_path.rpartition(b"/")[0]
        for entered in reversed(self._entered):  # nearly always the last one
            if entered.entry.path == parent:
                return entered.is_ours
        return False

    def file(self, entry: Entry, chunks: Iterable[bytes | memoryview]) -> None:
        """Write a regular file from *chunks*.

        Raises:
            IntegrityError: the content is not what *entry* promises. Nothing has changed at its path.
            OSError, UnsafePathError: it cannot be written.
        """
        self.leave_until(entry.path)
        temporary = temporary_name()
        temporary_path = beside(check_rel_path(entry.path), temporary)
        # Noted before it is there: an interrupt may come between any two steps.
        self._temporaries[temporary_path] = entry.path
        try:
            self._write_temporary(self._destination.create(temporary_path), entry, chunks)
        except BaseException:
            # What failed is on its way up. Where somebody moves directories about, the file is not to be
            # found again; a second error would only hide the first.
            with suppress(OSError, UnsafePathError):
                self._discard(temporary_path)
            raise
        self._enqueue(
            Step(
                entry,
                lambda: self._put_in_place(entry, temporary),
                entry.size,
                replaces=not self._is_ours(entry.path),
            )
        )

    def _write_temporary(
        self,
        fd: int,
        entry: Entry,
        chunks: Iterable[bytes | memoryview],
        *,
        sync: bool = False,
        idle: IdleWorkers | None = None,
    ) -> None:
        """Write and verify a new file, give it its metadata, flush it if it is to be, and close it."""
        try:
            self._fill(fd, entry, chunks, idle)
            self._applier.apply_to_fd(fd, entry)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _fill(
        self, fd: int, entry: Entry, chunks: Iterable[bytes | memoryview], idle: IdleWorkers | None
    ) -> None:
        hasher = blake3()
        size = 0
        writer = FileWriter(fd, entry.sparse, is_flushed=self._durable)
        if entry.sparse is not None:
            os.ftruncate(fd, entry.size)  # what the file system cannot hold, it says now
        with closing(WriteBehind(writer.write, idle)) as behind:
            for chunk in chunks:
                size += len(chunk)
                if size > entry.size:
                    break
                behind.write(chunk)
                hasher.update(chunk)
            behind.flush()
        check_content(entry, size, hasher)

    def special(self, entry: Entry) -> None:
        """Make a symlink, FIFO or device node.

        Raises:
            OSError, UnsafePathError: it cannot be made; device nodes need root.
        """
        self.leave_until(entry.path)
        replaces = self.lstat(entry.path) is not None
        dir_fd, _ = self._destination.parent(entry.path)
        temporary = temporary_name()
        self._temporaries[beside(entry.path, temporary)] = entry.path
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
        self._enqueue(Step(entry, lambda: self._put_in_place(entry, temporary), replaces=replaces))

    def link(self, entry: Entry, target: bytes) -> None:
        """Make *entry* a hard link to *target*, a path that has been or is being written."""
        self.leave_until(entry.path)
        self._enqueue(
            Step(entry, lambda: self._link(entry, target), replaces=self.lstat(entry.path) is not None)
        )

    def place(self, entry: Entry, make: Callable[[int, bytes], None], *, size: int | None) -> None:
        """Have *make* give *entry* its name when its turn comes.

        Args:
            make: called with the descriptor of a directory and the name in it, which is free.
            size: how many bytes that were written must be on the disk before that; None where nothing must.
        """
        self.leave_until(entry.path)
        step = Step(entry, lambda: self._place(entry, make), size or 0, replaces=size is not None)
        self._enqueue(step)

    def metadata(self, entry: Entry) -> None:
        """Give a name that exists the metadata of *entry*."""
        if entry.type == DIRECTORY:
            self.directory(entry)
            return
        self.leave_until(entry.path)
        self._enqueue(Step(entry, lambda: self._apply(entry)))

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
            self._sync()

    def abort(self) -> None:
        """Remove the temporary files that have not reached their place."""
        self._queue.clear()
        # An interrupt may have come between opening a directory and noting it.
        self._destination.forget()
        self._done.forget()
        for temporary_path in list(self._temporaries):
            with suppress(OSError, UnsafePathError):  # as above
                self._discard(temporary_path)

    def leave_until(self, rel_path: bytes) -> None:
        """Finish the directories that *rel_path* does not lie in."""
        while self._entered and not _is_below(rel_path, self._entered[-1].entry.path):
            self._leave()

    def _leave(self) -> None:
        entry = self._entered.pop().entry
        self._enqueue(Step(entry, lambda: self._apply(entry)))

    def _enqueue(self, step: Step) -> None:
        self._queue.append(step)
        self._count(step, 1)
        self._go_on()

    def _count(self, step: Step, sign: int) -> None:
        self._queued_names += sign * step.count
        if step.replaces:
            self._replacing += sign
            self._queued_bytes += sign * step.size

    def _go_on(self) -> None:
        """Do what can be done now, in order."""
        if self._replacing and (self._queued_names >= BATCH_FILES or self._queued_bytes >= BATCH_BYTES):
            self.flush()
        while self._queue:
            step = self._queue[0]
            if (step.replaces and self._durable) or not (step.is_ready is None or step.is_ready()):
                return
            self._carry_out()

    def flush(self) -> None:
        """Give every name in the queue what it waits for, with all data on the disk where that replaces any."""
        if self._durable and self._replacing:
            self._wait_for_data()
            self._sync()
        while self._queue:
            self._carry_out()

    def _sync(self) -> None:
        """Bring all that was written onto the disk.

        Raises:
            OSError: something could not be written.
        """
        sync_filesystem(self._destination.fd)

    def _wait_for_data(self) -> None:
        """Come back when the data of all that is in the queue has been written."""

    def _carry_out(self) -> None:
        """The first step in the queue."""
        step = self._queue.popleft()
        self._count(step, -1)
        self._attempt(step.entry, step.action)

    def _attempt(self, entry: Entry, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, UnsafePathError) as error:
            if isinstance(error, OSError) and error.errno in FATAL_ERRORS:
                raise
            self._fail(entry, error)

    def _fail(self, entry: Entry, error: Exception) -> None:
        self._lost.add(entry.path)
        self._on_failed(entry, error)

    def _apply(self, entry: Entry) -> None:
        if entry.type == DIRECTORY:
            self._applier.apply_to_fd(self._done.directory(entry.path), entry)
        elif entry.type == SYMLINK or entry.type in (FIFO, CHAR_DEVICE, BLOCK_DEVICE):
            self._applier.apply_to_name(*self._done.parent(entry.path), entry)
        else:
            fd = self._done.open_regular(entry.path)
            try:
                self._applier.apply_to_fd(fd, entry)
            finally:
                os.close(fd)
        self._report(entry)

    def _put_in_place(self, entry: Entry, temporary: bytes) -> None:
        temporary_path = beside(entry.path, temporary)
        try:
            self._rename(entry.path, temporary)
        except BaseException:
            with suppress(OSError, UnsafePathError):  # what failed is on its way up
                self._discard(temporary_path)
            raise
        self._temporaries.pop(temporary_path, None)
        self._report(entry)

    def _rename(self, rel_path: bytes, temporary: bytes) -> None:
        dir_fd, name = self._done.parent(rel_path)
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except IsADirectoryError:
            self._make_way(rel_path)
            dir_fd, name = self._done.parent(rel_path)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def _place(self, entry: Entry, make: Callable[[int, bytes], None]) -> None:
        make(*self._done.parent(entry.path))
        self._report(entry)

    def _make_way(self, rel_path: bytes) -> None:
        """Remove a directory that stands where something else is to be."""
        existing = self._done.lstat(rel_path)
        if existing is None or not stat.S_ISDIR(existing.st_mode):
            return
        if self._replace_directories:
            self._done.remove(rel_path)
            return
        dir_fd, name = self._done.parent(rel_path)
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UnsafePathError(
                    f"{printable(rel_path)}: a directory that is not empty stands in its place"
                ) from None
            raise

    def _link(self, entry: Entry, target: bytes) -> None:
        if target in self._lost:  # what may still have its name is not what it was to be
            raise FileNotFoundError(
                errno.ENOENT, f"{printable(target)}, which it is a link to, was not written"
            )
        self._make_way(entry.path)
        # Two directories at once: the second descriptor must not close the first.
        target_dir_fd = os.dup(self._done.parent(target)[0])
        try:
            dir_fd, name = self._done.parent(entry.path)
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


def check_content(entry: Entry, size: int, hasher: blake3) -> None:
    """Make sure that a file's content is the one that *entry* promises.

    Args:
        size: of the content in bytes, or of its beginning where that is too long already.

    Raises:
        IntegrityError: it is not.
    """
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


def beside(rel_path: bytes, name: bytes) -> bytes:
    """The path of *name* in the directory that *rel_path* lies in."""
    head, slash, _ = rel_path.rpartition(b"/")
    return head + slash + name


def _is_below(rel_path: bytes, directory: bytes) -> bool:
    return directory == ROOT or rel_path == directory or rel_path.startswith(directory + b"/")
