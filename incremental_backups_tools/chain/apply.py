"""apply_diff: turning a copy of the old tree into the new one, by a diff and its archive.

The archive is read once, front to back, in the order of the diff. Every file is rebuilt beside the old one,
checked against its digest, and renamed: a copy that is not the old tree loses nothing, its files are refused.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, Final, cast

from incremental_backups_tools.archive.diffdata import CREATED_PREFIX, UPDATED_PREFIX
from incremental_backups_tools.archive.tar import TarMember
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.archive.volume_reader import open_volume
from incremental_backups_tools.delta import patch
from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, Change, Diff
from incremental_backups_tools.tree.entry import DIRECTORY, FILE, ROOT, Entry, printable
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.reading import CHUNK_LEN
from incremental_backups_tools.tree.writer import TreeWriter

_SPOOL_LEN: Final = 8 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_MAX_DELTA_OVERHEAD: Final = 1 << 20


def apply_diff(
    dest: str | os.PathLike[str],
    diff: Diff,
    archive: str | os.PathLike[str],
    *,
    numeric_owner: bool = False,
    durable: bool = True,
) -> None:
    """Apply *diff* to *dest*, a copy of the old tree.

    Args:
        dest: an existing directory.
        diff: what ``DiffIndex(new, old).compute()`` gave.
        archive: what ``DiffData(diff).create_archive(path)`` wrote.
        numeric_owner: take owners by number, not by name.
        durable: flush everything to the disk before returning.

    Raises:
        OSError: *dest* or *archive* cannot be opened or written to.
        ArchiveFormatError: the archive is damaged or of another diff.
        IntegrityError: a file of *dest* is not the old one. What came before it in sort order may be new by
            then; every single file is the old or the new one.
        UnsafePathError: a link stands in the way.
    """
    with ExitStack() as stack:
        destination = stack.enter_context(Destination(dest, create=False))
        members = _Members(stack.enter_context(_open_archive(os.fspath(archive), stack)), os.fspath(archive))
        failures: list[tuple[Entry, Exception]] = []
        writer = TreeWriter(
            destination,
            MetadataApplier(numeric_owner=numeric_owner, on_problem=lambda kind, path, message: None),
            durable=durable,
            replace_directories=True,
            on_failed=lambda entry, error: failures.append((entry, error)),
        )
        stack.callback(writer.abort)
        _apply(diff, destination, members, writer)
        members.check_end()
        if failures:
            raise failures[0][1]


def _apply(diff: Diff, destination: Destination, members: _Members, writer: TreeWriter) -> None:
    """Apply all changes. What goes is removed last: until then a renamed file's old name may be needed."""
    gone: list[bytes] = []
    times = _DirectoryTimes(destination, diff)
    for change in diff:
        entry = change.entry
        times.note_parent(entry.path)
        if change.op == DELETED:
            gone.append(entry.path)
        elif entry.link_of is not None:
            writer.link(entry, entry.link_of)
        elif change.op == METADATA:
            writer.metadata(entry)
        elif entry.type == DIRECTORY:
            members.take(change)
            writer.directory(entry)
        elif entry.type == FILE:
            writer.file(entry, _content(change, members.take(change), destination, members))
        else:
            members.take(change)
            writer.special(entry)
    _remove(gone, diff, destination, writer)
    writer.finish()
    times.put_back()


def _remove(gone: list[bytes], diff: Diff, destination: Destination, writer: TreeWriter) -> None:
    """Remove names, children first, and set the times of the directories that they went from again."""
    writer.flush()
    replaced = {change.path for change in diff if change.op == CREATED and change.old is not None}
    for path in reversed(gone):
        # Below a directory that is something else now, nothing is left.
        if not any(ancestor in replaced for ancestor in _ancestors(path)):
            destination.remove(path)
    for change in diff:
        if change.entry.type == DIRECTORY and change.op != DELETED:
            writer.metadata(change.entry)


def _ancestors(path: bytes) -> Iterator[bytes]:
    while path := path.rpartition(b"/")[0]:
        yield path


class _DirectoryTimes:
    """Modification times of directories that are written to and that the diff does not know.

    A file that was edited in place leaves its directory as it was; renaming one into place does not.
    """

    def __init__(self, destination: Destination, diff: Diff) -> None:
        self._destination = destination
        self._known = {change.path for change in diff}
        self._times: dict[bytes, tuple[int, int]] = {}

    def note_parent(self, path: bytes) -> None:
        """*path* is about to be written."""
        parent = path.rpartition(b"/")[0] or ROOT
        if parent in self._known or parent in self._times:
            return
        info = self._destination.lstat(parent)
        if info is not None:
            self._times[parent] = (info.st_atime_ns, info.st_mtime_ns)

    def put_back(self) -> None:
        """Set the times again."""
        for path, times in self._times.items():
            os.utime(self._destination.directory(path), ns=times)


def _content(
    change: Change, member: TarMember, destination: Destination, members: _Members
) -> Iterator[bytes]:
    if member.name.startswith(CREATED_PREFIX):
        if member.size != change.entry.size:
            raise members.error(
                f"{printable(member.name)}: {member.size} bytes, expected {change.entry.size}"
            )
        yield from members.chunks()
        return
    if member.size > change.entry.size + _MAX_DELTA_OVERHEAD:
        raise LimitExceededError(f"{printable(member.name)}: a delta larger than its file")
    with ExitStack() as stack:
        delta = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_LEN)))
        for chunk in members.chunks():
            delta.write(chunk)
        delta.seek(0)
        out = cast(BinaryIO, stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_LEN)))
        basis = stack.enter_context(open(destination.open_regular(change.path), "rb"))
        patch(basis, delta, out, max_output=change.entry.size)
        out.seek(0)
        while chunk := out.read(CHUNK_LEN):
            yield chunk


class _Members:
    """The archive's members in the order of the diff."""

    def __init__(self, tar: BinaryIO, name: str) -> None:
        self._parser = TarParser(tar, name=name)
        self._members = iter(self._parser)
        self._name = name
        self._size = 0

    def take(self, change: Change) -> TarMember:
        """The member of *change*, which must be the next one."""
        found = next(self._members, None)
        if found is None:
            raise self.error(f"ends before {printable(change.path)}")
        member = found[0]
        if member.name not in (CREATED_PREFIX + change.path, UPDATED_PREFIX + change.path):
            raise self.error(f"has {printable(member.name)} where {printable(change.path)} is due")
        self._size = member.size
        return member

    def chunks(self) -> Iterator[bytes]:
        """The data of the member taken last."""
        while self._size > 0:
            chunk = self._parser.read(min(CHUNK_LEN, self._size))
            self._size -= len(chunk)
            yield chunk

    def check_end(self) -> None:
        """Make sure that nothing is left over."""
        found = next(self._members, None)
        if found is not None:
            raise self.error(f"has {printable(found[0].name)}, which the diff does not know")

    def error(self, message: str) -> ArchiveFormatError:
        """An error that names the archive."""
        return ArchiveFormatError(f"{self._name}: {message}; is it the archive of another diff?")


class _GzipTar(gzip.GzipFile):
    """A gzip stream whose damage is an ArchiveFormatError."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveFormatError(f"damaged gzip stream: {error}") from error


def _open_archive(path: str, stack: ExitStack) -> BinaryIO:
    file = stack.enter_context(open(path, "rb"))
    magic = file.read(2)
    file.seek(0)
    if magic == _GZIP_MAGIC:
        return cast(BinaryIO, _GzipTar(fileobj=file, mode="rb"))
    return stack.enter_context(open_volume(path)).open_tar()
