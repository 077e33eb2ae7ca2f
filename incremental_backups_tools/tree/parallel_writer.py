"""Writing a tree with several files in the making at a time.

The caller's thread goes through the tree in sort order: it makes directories, hands files to workers, and gives
each name what must be done in order (directories their metadata once all in them is there, hard links their
target). A worker gets the content of its files, compares it with their digests, and writes them: small ones
many at a time, since a tree of small files is little more than system calls.

Everything is bounded: so many batches of so many bytes in flight, so many directories open for them, and so
many names that are done but wait for one before them.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from blake3 import blake3

from incremental_backups_tools.exceptions import BackupError, IntegrityError, UnsafePathError
from incremental_backups_tools.idle import IdleWorkers
from incremental_backups_tools.tree.creation import MAX_CONTENT_LEN, OTHER_CONTENT, NewFile, choose_creator
from incremental_backups_tools.tree.destination import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    Destination,
    create_at,
    temporary_name,
)
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.sync_ahead import SyncAhead
from incremental_backups_tools.tree.writer import FATAL_ERRORS, Step, TreeWriter, beside, check_content

SourceT = TypeVar("SourceT")
SourceT_contra = TypeVar("SourceT_contra", contravariant=True)

# A larger file has a worker to itself and goes through it piece by piece.
MAX_SMALL_LEN: Final = MAX_CONTENT_LEN
# A batch is closed at the next place where its content ends a piece of an archive that is read as one, and
# where that does not come, at four times as much. Chosen so that a batch is a few frames; not tuned by measuring.
BATCH_LEN: Final = 2 << 20
BATCH_FILES: Final = 192
_STRETCH: Final = 4
# Directories open for all batches together; a process may have 256 descriptors on some systems.
_MAX_DIRS: Final = 128
# Names that are done and wait in order behind a file that is not.
_MAX_WAITING: Final = 16384
_SETUID_SETGID: Final = 0o6000


class Contents(Protocol[SourceT_contra]):
    """Where a writer gets content from. Called by several threads at once."""

    def place_of(self, source: SourceT_contra, /) -> object:
        """What is equal for sources that are cheapest to read together; None where there is nothing to say.

        This alone is called by the caller's thread only.
        """

    def read_small(self, sources: Sequence[SourceT_contra], /) -> Sequence[bytes | memoryview | BackupError]:
        """The whole content of each, or why there is none."""

    def iter_chunks(
        self, source: SourceT_contra, /, idle: IdleWorkers | None = None
    ) -> Generator[bytes | memoryview, None, None]:
        """The content of one, piece by piece; the pieces never change.

        Args:
            idle: may make some of it ahead.

        Raises:
            BackupError: it cannot be had.
        """


@dataclass(slots=True, eq=False)
class _SmallFile(Generic[SourceT]):
    """A file of a batch.

    Attributes:
        temporary: the name under which it is made.
        at_once: whether who makes it also gives it its name, since nothing is there.
        is_ours: nobody else can enter its directory, and the file gets nothing from that by being made.
    """

    entry: Entry
    source: SourceT
    dir_fd: int
    temporary: bytes
    at_once: bool
    is_ours: bool


@dataclass(slots=True, eq=False)
class _Batch(Generic[SourceT]):
    """Small files that a worker makes in one go."""

    files: list[_SmallFile[SourceT]] = field(default_factory=list)
    size: int = 0
    place: object = None
    parent: bytes | None = None
    dir_fds: list[int] = field(default_factory=list)
    future: Future[list[Exception | int]] | None = None

    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    def close(self) -> None:
        while self.dir_fds:
            os.close(self.dir_fds.pop())


@dataclass(slots=True, eq=False)
class _Large(Generic[SourceT]):
    """A file that a worker goes through piece by piece."""

    entry: Entry
    source: SourceT
    temporary: bytes
    dir_fds: list[int]
    future: Future[None] | None = None

    def is_done(self) -> bool:
        return self.future is not None and self.future.done()

    def close(self) -> None:
        while self.dir_fds:
            os.close(self.dir_fds.pop())


class ParallelWriter(TreeWriter, Generic[SourceT]):
    """A :class:`TreeWriter` that makes files in threads of its own. :meth:`abort` ends them; call it in any case.

    Args:
        contents: gets what the files hold.
        threads: how many workers; with 1, all is done in the caller's thread.

    The other arguments are TreeWriter's; *applier* must take problems from any thread, *on_written* and
    *on_failed* are called in the caller's.
    """

    def __init__(
        self,
        destination: Destination,
        applier: MetadataApplier,
        contents: Contents[SourceT],
        *,
        threads: int,
        durable: bool = True,
        replace_directories: bool = False,
        on_written: Callable[[Entry], None] | None = None,
        on_failed: Callable[[Entry, Exception], None],
    ) -> None:
        super().__init__(
            destination,
            applier,
            durable=durable,
            replace_directories=replace_directories,
            on_written=on_written,
            on_failed=on_failed,
        )
        self._contents = contents
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ibt-write") if threads > 1 else None
        max_in_flight = 2 * threads if threads > 1 else 1
        self._slots = threading.Semaphore(max_in_flight)
        self._max_batch_dirs = max(2, _MAX_DIRS // (max_in_flight + 1))
        self._stop = threading.Event()
        self._idle = IdleWorkers(self._pool, threads - 1, self._stop) if self._pool is not None else None
        self._sync_ahead = SyncAhead(destination.fd) if self._pool is not None and durable else None
        self._batch: _Batch[SourceT] | None = None
        self._jobs: set[_Batch[SourceT] | _Large[SourceT]] = set()
        self._waiting = 0
        self._stand_ins: dict[bytes, bytes] = {}
        # Names for temporaries, drawn once for all: one that is taken after all is found to be.
        first = secrets.randbits(64)
        self._names = (
            b"%s%016x%s" % (TEMPORARY_PREFIX, (first + number) % (1 << 64), TEMPORARY_SUFFIX)
            for number in itertools.count()
        )

    def submit(self, entry: Entry, source: SourceT, *, replaces: bool) -> None:
        """Let a regular file be written.

        Args:
            replaces: something is there that must not go before the new file is on the disk.

        Raises:
            OSError, UnsafePathError: its directory cannot be opened.
        """
        self.leave_until(entry.path)
        if _is_small(entry):
            self._add_small(entry, source, replaces)
        else:
            self._submit_large(entry, source, replaces)
        self._waiting += 1
        if self._waiting > _MAX_WAITING:
            self.flush()

    def link_or_make(self, entry: Entry, target: bytes, whole: Entry, source: SourceT) -> None:
        """Make *entry* a hard link to *target*, or the file *whole* where the target turns out not to be restored.

        Later links to the same target are then links to this one.
        """
        self.leave_until(entry.path)
        action = partial(self._link_or_make, entry, target, whole, source)
        self._enqueue(Step(entry, action, replaces=self.lstat(entry.path) is not None))

    def _link_or_make(self, entry: Entry, target: bytes, whole: Entry, source: SourceT) -> None:
        stand_in = self._stand_ins.get(target, target)
        if stand_in in self._lost:
            self._stand_ins[target] = entry.path
            self._make_carefully(whole, source, replaces=self._done.lstat(whole.path) is not None)
        else:
            self._link(entry, stand_in)

    def flush(self) -> None:
        self._submit_batch()
        super().flush()

    def abort(self) -> None:
        """End the workers and remove the temporary files that have not reached their place."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._sync_ahead is not None:
            self._sync_ahead.abort()
        while self._jobs:
            self._jobs.pop().close()
        super().abort()

    def _sync(self) -> None:
        if self._sync_ahead is not None:
            self._sync_ahead.finish()
        super()._sync()

    def _wait_for_data(self) -> None:
        futures: list[Future[Any]] = [job.future for job in self._jobs if job.future is not None]
        wait(futures)

    def _start(self, function: Callable[[Any], Any], job: Any) -> None:
        """Let a worker do *function* of *job*, once one of the slots is free."""
        if self._pool is None:
            job.future = _done_here(function, job)
            return
        self._slots.acquire()
        job.future = self._pool.submit(function, job)
        job.future.add_done_callback(lambda _: self._slots.release())

    # --- small files -----------------------------------------------------------------------------------

    def _add_small(self, entry: Entry, source: SourceT, replaces: bool) -> None:
        place = self._contents.place_of(source)
        if self._batch is not None and self._is_full(self._batch, place):
            self._submit_batch()
        dir_fd, _ = self._destination.parent(entry.path)
        batch = self._batch if self._batch is not None else self._begin_batch(entry)
        parent = entry.path.rpartition(b"/")[0]
        if parent != batch.parent:
            batch.dir_fds.append(os.dup(dir_fd))
            batch.parent = parent
        temporary = next(self._names)
        batch.files.append(
            _SmallFile(entry, source, batch.dir_fds[-1], temporary, not replaces, self._is_ours(entry.path))
        )
        batch.size += entry.size
        batch.place = place
        if replaces:
            self._temporaries[beside(entry.path, temporary)] = entry.path
            put_in_place = partial(self._put_in_place_if_made, entry, temporary)
            self._enqueue(Step(entry, put_in_place, entry.size, replaces=True))

    def _is_full(self, batch: _Batch[SourceT], place: object) -> bool:
        share = max(
            batch.size / BATCH_LEN,
            len(batch.files) / BATCH_FILES,
            2 * len(batch.dir_fds) / self._max_batch_dirs,
        )
        if share < 1:
            return False
        return (
            place is None
            or place != batch.place
            or share >= _STRETCH
            or len(batch.dir_fds) >= self._max_batch_dirs
        )

    def _begin_batch(self, entry: Entry) -> _Batch[SourceT]:
        batch = self._batch = _Batch[SourceT]()
        self._jobs.add(batch)
        self._enqueue(Step(entry, partial(self._finish_batch, batch), is_ready=batch.is_done))
        return batch

    def _submit_batch(self) -> None:
        if self._batch is not None:
            batch, self._batch = self._batch, None
            self._start(self._make_batch, batch)
            self._go_on()

    def _make_batch(self, batch: _Batch[SourceT]) -> list[Exception | int]:
        """In a worker: make the files of *batch*. For each 0, what is wrong with its content, or an errno or a code."""
        outcomes: list[Exception | int] = [0] * len(batch.files)
        made: list[int] = []
        new: list[NewFile] = []
        contents = self._contents.read_small([file.source for file in batch.files])
        for position, (file, content) in enumerate(zip(batch.files, contents, strict=True)):
            if isinstance(content, BackupError):
                outcomes[position] = content
            else:
                made.append(position)
                new.append(self._new_file(file, content))
        if not self._stop.is_set():
            for position, code in zip(made, choose_creator()(new), strict=True):
                outcomes[position] = code
                if code == OTHER_CONTENT:
                    outcomes[position] = _wrong_content(batch.files[position].entry, contents[position])
        return outcomes

    def _new_file(self, file: _SmallFile[SourceT], content: bytes | memoryview) -> NewFile:
        entry = file.entry
        uid, gid = self._applier.owner_of(entry) if self._applier.as_root else (-1, -1)
        return NewFile(
            file.dir_fd,
            file.temporary,
            entry.path.rpartition(b"/")[2] if file.at_once else None,
            content,
            entry.digest,
            entry.mode & 0o777 if file.is_ours else 0o600,
            entry.mode,
            uid,
            gid,
            entry.mtime_ns,
            not file.is_ours,
        )

    def _finish_batch(self, batch: _Batch[SourceT]) -> None:
        if batch is self._batch:
            self._submit_batch()
        assert batch.future is not None  # it is submitted
        outcomes = batch.future.result()
        self._close(batch, len(batch.files))
        if self._sync_ahead is not None:
            self._sync_ahead.wrote(batch.size)
        for file, outcome in zip(batch.files, outcomes, strict=True):
            entry = file.entry
            if outcome == 0:
                if file.at_once:
                    self._report(entry)
                continue
            self._temporaries.pop(beside(entry.path, file.temporary), None)
            if isinstance(outcome, Exception):
                self._fail(entry, outcome)
            elif outcome in FATAL_ERRORS:
                raise OSError(outcome, os.strerror(outcome), os.fsdecode(entry.path))
            else:
                carefully = partial(self._make_carefully, entry, file.source, replaces=not file.at_once)
                self._attempt(entry, carefully)

    def _make_carefully(self, entry: Entry, source: SourceT, *, replaces: bool) -> None:
        """Make a file here and now, its metadata step by step and with a word for what fails."""
        temporary = temporary_name()
        temporary_path = beside(entry.path, temporary)
        self._temporaries[temporary_path] = entry.path
        try:
            fd = self._done.create(temporary_path)
            chunks = self._contents.iter_chunks(source)
            self._write_temporary(fd, entry, chunks, sync=self._durable and replaces)
            self._put_in_place(entry, temporary)
        except BaseException as error:
            with suppress(OSError, UnsafePathError):  # what failed is on its way up
                self._discard(temporary_path)
            if not isinstance(error, BackupError):
                raise
            self._fail(entry, error)

    def _put_in_place_if_made(self, entry: Entry, temporary: bytes) -> None:
        if beside(entry.path, temporary) in self._temporaries:
            self._put_in_place(entry, temporary)

    # --- large files -----------------------------------------------------------------------------------

    def _submit_large(self, entry: Entry, source: SourceT, replaces: bool) -> None:
        dir_fd, _ = self._destination.parent(entry.path)
        large = _Large(entry, source, next(self._names), [])
        self._jobs.add(large)
        large.dir_fds.append(os.dup(dir_fd))
        # Noted before it is there: an interrupt may come between any two steps.
        self._temporaries[beside(entry.path, large.temporary)] = entry.path
        self._start(self._make_large, large)
        finish = partial(self._finish_large, large)
        self._enqueue(Step(entry, finish, entry.size, replaces=replaces, is_ready=large.is_done))

    def _make_large(self, large: _Large[SourceT]) -> None:
        """In a worker: make a file under its temporary name."""
        [dir_fd] = large.dir_fds
        fd = create_at(dir_fd, large.temporary)
        try:
            with closing(self._until_stopped(large.source)) as chunks:
                self._write_temporary(fd, large.entry, chunks, idle=self._idle)
        except BaseException:
            with suppress(OSError):  # what failed is on its way up
                os.unlink(large.temporary, dir_fd=dir_fd)
            raise

    def _until_stopped(self, source: SourceT) -> Generator[bytes | memoryview, None, None]:
        with closing(self._contents.iter_chunks(source, self._idle)) as chunks:
            for chunk in chunks:
                if self._stop.is_set():
                    raise InterruptedError
                yield chunk

    def _finish_large(self, large: _Large[SourceT]) -> None:
        assert large.future is not None  # it was submitted when it was enqueued
        try:
            large.future.result()
        except (
            Exception
        ) as error:  # the worker's; of an interrupt while it goes on, the temporary must be known
            self._temporaries.pop(beside(large.entry.path, large.temporary), None)
            if not isinstance(error, BackupError):
                raise
            self._fail(large.entry, error)
        else:
            self._put_in_place(large.entry, large.temporary)
        finally:
            self._close(large, 1)

    def _close(self, job: _Batch[SourceT] | _Large[SourceT], names: int) -> None:
        job.close()
        self._jobs.discard(job)
        self._waiting -= names


def _wrong_content(entry: Entry, content: bytes | memoryview | BackupError) -> IntegrityError:
    """What is wrong with a content whose digest is not the one that *entry* promises."""
    try:
        assert not isinstance(content, BackupError)  # it had a digest
        check_content(entry, len(content), blake3(content))
    except IntegrityError as error:
        return error
    raise AssertionError("a content has two digests")


def _is_small(entry: Entry) -> bool:
    """Whether a file is written in one go, and has nothing but what :class:`NewFile` says of it."""
    return (
        entry.size <= MAX_SMALL_LEN
        and entry.sparse is None
        and not entry.xattrs
        and entry.acl is None
        and not entry.mode & _SETUID_SETGID
    )


def _done_here(function: Callable[[Any], Any], job: Any) -> Future[Any]:
    """The future of what is done before anybody can wait for it."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(job))
    except (BackupError, OSError) as error:  # as in a pool: it is raised where the result is asked for
        future.set_exception(error)
    return future
