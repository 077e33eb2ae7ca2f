"""The replay list: what tar cannot carry, for a restore with standard tools alone.

``RESTORE.sh`` extracts a backup's archives over the restored parent; this list tells it everything else. One
record a line, fields separated by tabs; every byte of a path outside ``[A-Za-z0-9._/-]`` is written ``\\0ooo``,
for ``printf '%b.'``. Records are grouped into phases, in this order:

    keep    FROM               set aside a file of the parent that a patch, a rename or a copy needs
    patch   PATH FROM          rdiff patch: the kept FROM and the delta PATH of the updated archive
    delete  PATH               a name of the parent that is gone or gives way; children before parents
                               (here the archives with whole files are extracted)
    place   PATH FROM          the kept FROM under its new name
    dup     PATH FROM          a copy of FROM of the new tree
    link    PATH TARGET        a hard link to TARGET of the new tree, in place of what is there
    meta    PATH MODE UID GID MTIME    octal mode, numbers, ISO 8601 time; directories last, children first

A symlink's mode is ``-``: it has none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Final, cast

import msgspec
import zstandard

from incremental_backups_tools.tree.entry import DIRECTORY, ROOT, SYMLINK, Entry

KEEP: Final = b"keep"
PATCH: Final = b"patch"
DELETE: Final = b"delete"
PLACE: Final = b"place"
DUP: Final = b"dup"
LINK: Final = b"link"
META: Final = b"meta"
_META_DIRECTORY: Final = b"meta-directory"  # a phase of its own while collecting; written as meta
PHASES: Final = (KEEP, PATCH, DELETE, PLACE, DUP, LINK, META, _META_DIRECTORY)

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-")
_ESCAPED: Final = [bytes([byte]) if byte in _PLAIN else b"\\0%03o" % byte for byte in range(256)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SPOOL_LEN: Final = 1 << 20


def escape_path(path: bytes) -> bytes:
    """*path* as a field of a record."""
    return b"".join([_ESCAPED[byte] for byte in path])


def encode_record(phase: bytes, *fields: bytes) -> bytes:
    """One line of the list."""
    return b"\t".join((phase, *fields)) + b"\n"


def encode_meta(entry: Entry) -> bytes:
    """The record that gives *entry* its metadata."""
    mode = b"-" if entry.type == SYMLINK else b"%04o" % entry.mode
    owner = (b"%d" % entry.uid, b"%d" % entry.gid)
    return encode_record(META, escape_path(entry.path), mode, *owner, _iso_time(entry.mtime_ns))


def _iso_time(time_ns: int) -> bytes:
    """POSIX touch's ``-d`` form, to the nanosecond; times that no calendar has become its nearest end."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        moment = _EPOCH if seconds < 0 else datetime(9999, 12, 31, tzinfo=UTC)
    date = moment.year, moment.month, moment.day
    return b"%04d-%02d-%02dT%02d:%02d:%02d.%09dZ" % (
        *date,
        moment.hour,
        moment.minute,
        moment.second,
        nanoseconds,
    )


class _Entered(msgspec.Struct):
    """A directory that the names given lie in."""

    path: bytes
    entry: Callable[[], Entry]
    is_touched: bool


class ReplayList:
    """Collects the records of one backup, in whatever order its changes come, phase by phase on disk.

    Call :meth:`entry` for every entry of the new tree and :meth:`delete` for every name that goes, together
    in sort order, and the others for what is to be done about them.
    """

    def __init__(self) -> None:
        self._phases = {
            phase: cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_LEN, prefix="ibt-replay-"))
            for phase in PHASES
        }
        self._kept: set[bytes] = set()
        self._directories: list[_Entered] = []
        self._going: list[bytes] = []  # directories to delete once their children are
        self._is_empty = True

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to replay besides the metadata of directories."""
        return self._is_empty

    @property
    def has_directories(self) -> bool:
        """Whether directories need their metadata, once every entry was given."""
        self._leave(None)
        return self._phases[_META_DIRECTORY].tell() > 0

    def entry(self, entry: Entry, *, changed: bool, metadata: bool) -> None:
        """A name of the new tree.

        Args:
            changed: it differs from the parent in any way, so that its directory will be written to.
            metadata: its metadata must be given by a record: no archive carries them.
        """
        self._leave(entry.path)
        if changed and self._directories:
            self._directories[-1].is_touched = True
        if entry.type == DIRECTORY:
            self._directories.append(_Entered(entry.path, lambda: entry, is_touched=changed))
        elif metadata and entry.link_of is not None:
            # The metadata is its target's, and that may be another inode by now: patched, or extracted anew.
            self.link(entry.path, entry.link_of)
        elif metadata:
            self._add(META, encode_meta(entry))

    def archived(self, path: bytes) -> None:
        """A name of the new tree that is none of a directory, and that an archive has: :meth:`entry` without one."""
        self._leave(path)
        if self._directories:
            self._directories[-1].is_touched = True

    def same_directory(self, path: bytes, entry: Callable[[], Entry]) -> None:
        """A directory of the new tree that is as it was; *entry* is called where its metadata must be given."""
        self._leave(path)
        self._directories.append(_Entered(path, entry, is_touched=False))

    def delete(self, path: bytes, *, is_directory: bool) -> None:
        """The parent's *path* is gone, or gives way to another type."""
        self._leave(path)
        if self._directories:
            self._directories[-1].is_touched = True
        if is_directory:
            self._going.append(path)
        else:
            self._add(DELETE, encode_record(DELETE, escape_path(path)))

    def patch(self, path: bytes, source: bytes) -> None:
        """*path* is the parent's *source* with a delta applied."""
        self._keep(source)
        self._add(PATCH, encode_record(PATCH, escape_path(path), escape_path(source)))

    def place(self, path: bytes, source: bytes) -> None:
        """*path* has the content of the parent's *source*."""
        self._keep(source)
        self._add(PLACE, encode_record(PLACE, escape_path(path), escape_path(source)))

    def duplicate(self, path: bytes, source: bytes) -> None:
        """*path* has the content of *source* in the new tree."""
        self._add(DUP, encode_record(DUP, escape_path(path), escape_path(source)))

    def link(self, path: bytes, target: bytes) -> None:
        """*path* is a hard link to *target* of the new tree."""
        self._add(LINK, encode_record(LINK, escape_path(path), escape_path(target)))

    def write(self, out: BinaryIO, *, level: int = 9) -> None:
        """Write the whole list, compressed."""
        self._leave(None)
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
        with compressor.stream_writer(out, closefd=False) as stream:
            for chunk in self._chunks():
                stream.write(chunk)

    def close(self) -> None:
        """Remove the temporary files."""
        for spool in self._phases.values():
            spool.close()

    def _chunks(self) -> Iterator[bytes]:
        for phase in PHASES:
            spool = self._phases[phase]
            spool.seek(0)
            while chunk := spool.read(1 << 18):
                yield chunk

    def _keep(self, source: bytes) -> None:
        if source not in self._kept:
            self._kept.add(source)
            self._add(KEEP, encode_record(KEEP, escape_path(source)))

    def _add(self, phase: bytes, record: bytes) -> None:
        self._is_empty = False
        self._phases[phase].write(record)

    def _leave(self, path: bytes | None) -> None:
        """Finish the directories that *path* does not lie in, innermost first; None finishes all."""
        # A directory that became something else is its own successor: what was below it still comes.
        while self._going and path != self._going[-1] and not _is_below(path, self._going[-1]):
            self._add(DELETE, encode_record(DELETE, escape_path(self._going.pop())))
        while self._directories and not _is_below(path, self._directories[-1].path):
            directory = self._directories.pop()
            if directory.is_touched:
                self._phases[_META_DIRECTORY].write(encode_meta(directory.entry()))


def _is_below(path: bytes | None, directory: bytes) -> bool:
    return path is not None and path != directory and (directory == ROOT or path.startswith(directory + b"/"))
