"""Walking a live tree in sort order, by directory descriptors.

Every directory is opened relative to its parent's descriptor without following links, so nobody can lead
the walk out of the tree by swapping a directory for a symlink, and no path is ever longer than one name.
However deep the tree is, only the innermost directories stay open: one further up is opened again when the
walk comes back to it, by ``..``, and must be the same one.

A directory that cannot be listed is yielded with ``listed=False``: what lies below it is unknown, which is
not the same as gone.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final, Protocol

import msgspec

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.entry import ROOT, printable
from incremental_backups_tools.tree.exclusion import DirScope, ExclusionRules, root_scope
from incremental_backups_tools.tree.listing import Listing, Reader, Reading, ReadLimits, list_directory

MAX_SMALL_FILE_LEN: Final = 1 << 20  # a .gitignore or .exclude longer than this is not one
_OPEN_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO that took a file's place must not wait for a writer.
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

# Descriptors that one walk holds, besides the root's. Few processes may have less than 256.
MAX_OPEN_DIRS: Final = 32
# What opening a directory says when there is none by that name any more.
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

ProblemHandler = Callable[[bytes, str], None]


class RemoteFile(Protocol):
    """A regular file of another machine, which has no descriptor here."""

    @property
    def change_key(self) -> str | None:
        """As the listing had it: of one place, size and key are equal only where the content is; None: unknown."""

    def look(self) -> tuple[os.stat_result, str | None]:
        """Its stat and its change key now. Raises SourceError."""

    def iter_content(self, size: int) -> Iterator[bytes]:
        """The first *size* bytes in pieces, fewer where it ends before. Raises SourceError."""


class Found(msgspec.Struct):
    """One name that the walk came by.

    Attributes:
        rel_path: its path below the root.
        name: its last component; ``.`` for the root.
        dir_fd: descriptor of the directory that holds it, open until the walk moves on, or longer where
            :meth:`Walk.keep_open` says so. For the root, of the
            root itself.
        stat: as ``lstat`` saw it.
        seen_ns: a time before it did.
        listed: False for a directory whose names could not be read.
        fd: of a directory that is entered its own descriptor, open as long.
        listing: of such a directory what it holds.
        remote: how a file of another machine is read. Of what is there *dir_fd* is -1.
        is_remote: whether it lies on another machine.
    """

    rel_path: bytes
    name: bytes
    dir_fd: int
    stat: os.stat_result
    listed: bool = True
    fd: int | None = None
    listing: Listing | None = None
    remote: RemoteFile | None = None
    is_remote: bool = False
    seen_ns: int = 0


class Passed(msgspec.Struct, frozen=True):
    """Names of one directory that the walk passed over.

    Attributes:
        count: how many.
        end: where the cached line after theirs begins.
        files: regular files among them.
        total_bytes: the sizes of these.
    """

    count: int
    end: int
    files: int
    total_bytes: int
    _listing: Listing
    _first: int
    _prefix: bytes

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Path and bytes of content of each."""
        for number in range(self._first, self._first + self.count):
            info = self._listing.stat(number)
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            yield self._prefix + self._listing.name(number), size


class Run(msgspec.Struct, frozen=True):
    """Names of one directory that the walk left to somebody who reads them together.

    Attributes:
        reading: reads the plain small files among them.
        prefix: the directory's path with a slash; empty for the root.
        first, end: the number of the first name, and the one after the last.
        begin_ns: a time before they were read.
    """

    reading: Reading
    prefix: bytes
    first: int
    end: int
    begin_ns: int
    _listing: Listing
    _dir_fd: int

    @property
    def count(self) -> int:
        """How many names."""
        return self.end - self.first

    def found(self, number: int) -> Found:
        """A name, to be looked at more closely; as long as the descriptors of a name last."""
        name = self._listing.name(number)
        info = self._listing.stat(number)
        return Found(self.prefix + name, name, self._dir_fd, info, seen_ns=self.begin_ns)


class LastName(msgspec.Struct, frozen=True):
    """A name that the walk came by, to be read as long as its descriptors last."""

    _listing: Listing
    _number: int
    _dir_fd: int

    def read(self, max_len: int, reader: Reader) -> Reading | None:
        """Begin to read it, if it is a plain file of at most *max_len* bytes.

        Returns:
            What has at its first position that file, or else another or none; None for want of a descriptor.
        """
        try:
            return self._listing.read_ahead(self._number, self._dir_fd, 1, max_len, 1, reader)
        except OSError:
            return None


class AnyWalk(Protocol):
    """A walk over a tree, here or elsewhere; see :class:`Walk`."""

    def __iter__(self) -> Iterator[Found]:
        """The names, in sort order."""

    def pass_over(self, lines: bytes, offset: int) -> Passed | None:
        """As :meth:`Walk.pass_over`."""

    def keep_open(self, names: int) -> AbstractContextManager[None]:
        """As :meth:`Walk.keep_open`."""

    def read_run(self, limits: ReadLimits, reader: Reader) -> Run | None:
        """As :meth:`Walk.read_run`."""

    def last_name(self) -> LastName | None:
        """As :meth:`Walk.last_name`; None where it cannot be read so."""


class _Level(msgspec.Struct):
    """A directory that the walk is in. ``fd`` is -1 while it is closed, or where it cannot be had again."""

    prefix: bytes  # the path with a slash; empty for the root
    fd: int
    identity: tuple[int, int]
    listing: Listing
    scope: DirScope | None
    seen_ns: int  # a time before it was listed
    next: int = 0  # number of the name that the walk comes to next
    used: int = 0  # how many names had been shown when one needed the descriptor last


class Walk:
    """One walk over the tree below *root*.

    Args:
        root: an existing directory; a symlink to one is followed, as the caller named it.
        rules: what is excluded; None is nothing.
        one_file_system: do not enter directories on other devices; they are yielded, empty.
        on_problem: called with a path and a message for what cannot be read or is skipped.
        on_unlisted: called with a directory of which the rest, or all with itself, stays unknown: it is not
            where it was any more. *on_problem* is called too.
        keep: decides by path alone which names stay, besides *rules*; None keeps all.
        leave_out: identities (device and inode) of directories that are passed over, wherever they lie.
        on_left_out: called with the path of each of these.

    Raises:
        SourceError: from :meth:`__iter__`: the root is missing, unreadable or not a directory.
    """

    def __init__(
        self,
        root: str | bytes | os.PathLike[str],
        *,
        rules: ExclusionRules | None = None,
        one_file_system: bool = False,
        on_problem: ProblemHandler,
        on_unlisted: Callable[[bytes], None] | None = None,
        keep: Callable[[bytes], bool] | None = None,
        leave_out: Collection[tuple[int, int]] = (),
        on_left_out: Callable[[bytes], None] | None = None,
    ) -> None:
        self._leave_out = leave_out
        self._on_left_out = on_left_out
        self._root = os.fsencode(root)
        self._rules = rules
        self._one_file_system = one_file_system
        self._on_problem = on_problem
        self._on_unlisted = on_unlisted
        self._keep = keep
        self._device = -1
        self._levels: list[_Level] = []
        self._shown = 0
        self._outlive = 0
        self._left: deque[tuple[int, int]] = (
            deque()
        )  # descriptors that are still to be closed, and since which name

    def __iter__(self) -> Iterator[Found]:
        root_fd = self._open_root()
        seen_ns = time.time_ns()
        try:
            listing = self._list(root_fd, ROOT)
            if listing is None:
                raise SourceError(f"{printable(self._root)}: the directory cannot be listed")
            root_stat = listing.own_stat()
            self._device = root_stat.st_dev
            scope = None
            if self._rules is not None:
                scope = root_scope(self._rules, listing.names(), self._small_file_reader(root_fd, b""))
            self._select(listing, scope, b"")
        except BaseException:
            os.close(root_fd)
            raise
        self._levels.append(_Level(b"", root_fd, _identity(root_stat), listing, scope, seen_ns))
        names = self._descend()
        try:
            yield Found(ROOT, ROOT, root_fd, root_stat, fd=root_fd, listing=listing, seen_ns=seen_ns)
            for found in names:
                self._shown += 1
                for level in self._levels[-2:]:  # the directory that it lies in, and itself if it was entered
                    level.used = self._shown
                while self._left and self._left[0][0] < self._shown - self._outlive:
                    os.close(self._left.popleft()[1])
                yield found
        finally:
            names.close()
            for level in self._levels:
                self._close(level)
            self._levels.clear()

    @contextmanager
    def keep_open(self, names: int) -> Iterator[None]:
        """Leave the descriptors of a name open until *names* more have come, or to the end of the block."""
        self._outlive = names
        try:
            yield
        finally:
            self._outlive = 0
            while self._left:
                os.close(self._left.popleft()[1])

    def pass_over(self, lines: bytes, offset: int) -> Passed | None:
        """Pass over the names that come next as far as cached lines say the same of them; None where none does.

        To be called while the walk waits for its iterator to be asked for more. What agrees, and what ends a
        run, says :meth:`Listing.compare`.

        Args:
            lines: of a cached index, each with its newline.
            offset: where the next one begins.
        """
        if not self._levels:
            return None
        level = self._levels[-1]
        found = level.listing.compare(level.next, level.prefix, lines, offset)
        if not found[0]:
            return None
        first, level.next = level.next, level.next + found[0]
        return Passed(*found, level.listing, first, level.prefix)

    def read_run(self, limits: ReadLimits, reader: Reader) -> Run | None:
        """Begin to read the names that come next, and go on behind them; None where the next one is a directory.

        To be called while the walk waits for its iterator to be asked for more. Also None where nothing can be
        read for want of a descriptor: whoever looks closely will say so.
        """
        while len(self._levels) > 1 and self._levels[-1].next >= len(self._levels[-1].listing):
            self._leave()
        level = self._levels[-1] if self._levels else None
        if level is None or level.next >= len(level.listing) or level.listing.is_dir(level.next):
            return None
        first = level.next
        begin_ns = time.time_ns()
        try:
            reading = level.listing.read_ahead(first, level.fd, *limits, reader)
        except OSError:
            return None
        level.next = reading.end
        self._shown += reading.end - first
        level.used = self._shown
        return Run(reading, level.prefix, first, reading.end, begin_ns, level.listing, level.fd)

    def last_name(self) -> LastName | None:
        """The name that came last, to be read later. To be called as :meth:`read_run`."""
        level = self._levels[-1]
        return LastName(level.listing, level.next - 1, level.fd)

    def _open_root(self) -> int:
        try:
            return os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{printable(self._root)}: {error.strerror}") from error

    def _descend(self) -> Generator[Found, None, None]:
        levels = self._levels
        while levels:
            level = levels[-1]
            number = level.next
            if number >= len(level.listing):
                self._leave()
                continue
            level.next += 1
            name, info = level.listing.name(number), level.listing.stat(number)
            rel_path = level.prefix + name
            found = Found(rel_path, name, level.fd, info, seen_ns=level.seen_ns)
            if stat.S_ISDIR(info.st_mode):
                yield from self._enter(level, found)
            else:
                yield found

    def _enter(self, level: _Level, found: Found) -> Iterator[Found]:
        """Yield a directory; the walk goes on inside it where that can be."""
        if _identity(found.stat) in self._leave_out:
            if self._on_left_out is not None:
                self._on_left_out(found.rel_path)
            return
        if self._one_file_system and found.stat.st_dev != self._device:
            yield found
            return
        seen_ns = time.time_ns()
        try:
            fd = os.open(found.name, _OPEN_DIR, dir_fd=level.fd)
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                message = "vanished, or is no directory any more, before it was read"
                self._report_lost(found.rel_path, message)
            else:
                self._on_problem(found.rel_path, f"cannot open the directory: {error.strerror}")
                found.listed = False
                yield found
            return
        entered = None
        try:
            entered = self._enter_open(level, found, fd, seen_ns)
            if entered is None:
                found.listed, found.fd = False, fd
                yield found
        finally:
            if entered is None:
                self._close_fd(fd, self._shown + 1)
        if entered is None:
            return
        self._levels.append(entered)
        found.stat, found.seen_ns = entered.listing.own_stat(), seen_ns
        found.fd, found.listing = fd, entered.listing
        yield found
        if len(self._levels) > MAX_OPEN_DIRS + 1:  # the root's stays open
            self._close(self._levels[-1 - MAX_OPEN_DIRS])

    def _enter_open(self, level: _Level, found: Found, fd: int, seen_ns: int) -> _Level | None:
        """What the walk is in once it is in the open directory *fd*; None where that cannot be listed."""
        listing = self._list(fd, found.rel_path)
        if listing is None:
            return None
        prefix, scope = found.rel_path + b"/", level.scope
        if scope is not None and scope.depends_on_names:
            scope = scope.child(found.name, listing.names(), self._small_file_reader(fd, prefix))
        self._select(listing, scope, prefix)
        return _Level(prefix, fd, _identity(listing.own_stat()), listing, scope, seen_ns)

    def _leave(self) -> None:
        """Go back from a directory that is done to the one that it lies in, and open that again if need be."""
        level = self._levels.pop()
        try:
            if self._levels and self._levels[-1].fd < 0:
                self._reopen(self._levels[-1], level.fd)
        finally:
            self._close(level)

    def _close(self, level: _Level) -> None:
        if level.fd >= 0:
            self._close_fd(level.fd, level.used)
            level.fd = -1

    def _close_fd(self, fd: int, used: int) -> None:
        """Close it now, or once nobody looks any more at the name number *used*, which needed it last."""
        if self._outlive and used >= self._shown - self._outlive:
            self._left.append((used, fd))
        else:
            os.close(fd)

    def _reopen(self, level: _Level, child_fd: int) -> None:
        """Open *level* again, from the directory in it or from the root; or give up the rest of its names."""
        reason = "another directory has its place"
        for way in (self._open_above, self._open_from_root):
            try:
                fd = way(level, child_fd)
            except OSError as error:
                reason = error.strerror or str(error)
                continue
            if _identity(os.fstat(fd)) == level.identity:
                level.fd = fd
                return
            os.close(fd)
        if level.next < len(level.listing):
            self._report_lost(level.prefix[:-1], f"was moved away while it was read: {reason}")
        level.next = len(level.listing)

    def _open_above(self, level: _Level, child_fd: int) -> int:
        return os.open(b"..", _OPEN_DIR, dir_fd=child_fd)

    def _open_from_root(self, level: _Level, child_fd: int) -> int:
        root_fd = fd = self._levels[0].fd
        for name in level.prefix[:-1].split(b"/"):
            try:
                child = os.open(name, _OPEN_DIR, dir_fd=fd)
            finally:
                if fd != root_fd:
                    os.close(fd)
            fd = child
        return fd

    def _report_lost(self, rel_path: bytes, message: str) -> None:
        self._on_problem(rel_path, message)
        if self._on_unlisted is not None:
            self._on_unlisted(rel_path)

    def _list(self, fd: int, rel_path: bytes) -> Listing | None:
        """Names and stats of one directory; None when it cannot be read."""
        try:
            return list_directory(fd)
        except OSError as error:
            self._on_problem(rel_path, f"cannot list the directory: {error.strerror}")
            return None

    def _select(self, listing: Listing, scope: DirScope | None, prefix: bytes) -> None:
        """Drop from *listing* what is excluded."""
        if scope is not None and scope.is_idle:
            scope = None
        if scope is None and self._keep is None:
            return
        wanted = bytearray(len(listing))
        for number, name in enumerate(listing.names()):
            is_excluded = scope is not None and scope.excludes(name, listing.is_dir(number))
            wanted[number] = not is_excluded and (self._keep is None or self._keep(prefix + name))
        listing.keep(wanted)

    def _small_file_reader(self, dir_fd: int, prefix: bytes) -> Callable[[bytes], bytes | None]:
        """A reader of small files in one directory, for exclusion rules that live in the tree.

        A rule that cannot be read is a problem, not a rule that says nothing: more is backed up than was meant.
        """

        def read(name: bytes) -> bytes | None:
            try:
                return _read_small_file(dir_fd, name)
            except FileNotFoundError:
                return None
            except OSError as error:
                self._on_problem(prefix + name, f"cannot read exclusion rules: {error.strerror}")
                return None

        return read


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _read_small_file(dir_fd: int, name: bytes) -> bytes | None:
    """The content of a regular file; None for anything else.

    Raises:
        OSError: it cannot be read, or is too long to be what is looked for.
    """
    info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode):
        return None
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = b""
        while chunk := os.read(fd, MAX_SMALL_FILE_LEN + 1 - len(data)):
            data += chunk
            if len(data) > MAX_SMALL_FILE_LEN:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return data
    finally:
        os.close(fd)
