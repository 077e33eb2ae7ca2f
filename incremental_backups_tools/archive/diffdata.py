"""DiffData: one standalone archive with everything that a diff needs besides itself.

The archive is a plain tar: ``created/`` holds new files whole, ``updated/`` holds librsync deltas that
``rdiff patch`` reads, in the order of the diff. A name that ends in ``.tgz`` or ``.gz`` gives gzip, any other
the seekable zstd volume.
"""

from __future__ import annotations

import gzip
import os
import stat
import tempfile
from contextlib import ExitStack
from typing import BinaryIO, Final, Protocol, cast

from blake3 import blake3

from incremental_backups_tools.archive.members import file_member, special_member
from incremental_backups_tools.archive.tar import (
    END_OF_ARCHIVE,
    TarMember,
    encode_member_header,
    padding_len,
)
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.delta import DeltaBuilder, Signature
from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.diff import CREATED, UPDATED, Change, Diff
from incremental_backups_tools.tree.entry import FILE, printable
from incremental_backups_tools.tree.reading import CHUNK_LEN

CREATED_PREFIX: Final = b"created/"
UPDATED_PREFIX: Final = b"updated/"
_SPOOL_LEN: Final = 8 << 20
_GZIP_LEVEL: Final = 6


class _Archive(Protocol):
    """What both kinds of archive can do."""

    def begin(self, member: TarMember, /) -> object:
        """Begin a member."""

    def write(self, chunk: bytes, /) -> object:
        """Data of the member."""

    def end(self) -> None:
        """The member is complete."""

    def finish(self) -> object:
        """The archive is complete."""


class _GzipTar:
    """A tar in one gzip stream, without a time or a name, so that the same diff gives the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._gzip = gzip.GzipFile(filename="", mode="wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0)
        self._size = 0

    def begin(self, member: TarMember) -> None:
        self._size = member.size
        self._gzip.write(encode_member_header(member))

    def write(self, chunk: bytes) -> None:
        self._gzip.write(chunk)

    def end(self) -> None:
        self._gzip.write(bytes(padding_len(self._size)))

    def finish(self) -> None:
        self._gzip.write(END_OF_ARCHIVE)
        self._gzip.close()


class DiffData:
    """Packs the data of a diff.

    Args:
        diff: what ``DiffIndex(new, old).compute()`` gave; its tree must still be as it was then.
    """

    def __init__(self, diff: Diff) -> None:
        self._diff = diff

    def create_archive(self, fs_path: str | os.PathLike[str]) -> str:
        """Write the archive, whole or not at all; return its path.

        Raises:
            SourceError: a file is gone, cannot be read, or is not the one that the index saw.
            OSError: the archive cannot be written.
        """
        path = os.fspath(fs_path)
        with ExitStack() as stack:
            out = stack.enter_context(atomic_write(path))
            try:
                source = stack.enter_context(Destination(self._diff.root, create=False))
            except OSError as error:
                raise SourceError(f"{printable(os.fsencode(self._diff.root))}: {error.strerror}") from error
            archive: _Archive = _GzipTar(out) if path.endswith((".tgz", ".gz")) else VolumeWriter(out)
            for change in self._diff:
                if change.op in (CREATED, UPDATED) and change.entry.link_of is None:
                    _add(archive, change, source)
            archive.finish()
        return path


def _add(archive: _Archive, change: Change, source: Destination) -> None:
    if change.entry.type != FILE:
        archive.begin(special_member(change.entry, name=CREATED_PREFIX + change.path))
        archive.end()
        return
    with _spool() as out:
        prefix = _pack(change, source, out)
        archive.begin(file_member(change.entry, size=out.tell(), name=prefix + change.path))
        out.seek(0)
        while chunk := out.read(CHUNK_LEN):
            archive.write(chunk)
        archive.end()


def _pack(change: Change, source: Destination, out: BinaryIO) -> bytes:
    """Read a file once into a delta, and again whole where that is no larger; return where it belongs."""
    if change.op == UPDATED and change.old_signature is not None:
        builder = DeltaBuilder(Signature.from_bytes(change.old_signature), out=out)
        _read(change, source, builder.update)
        if builder.finish().delta_len < change.entry.size:
            return UPDATED_PREFIX
        out.seek(0)
        out.truncate()
    _read(change, source, out.write)
    return CREATED_PREFIX


class _Sink(Protocol):
    def __call__(self, chunk: bytes, /) -> object:
        """Take a piece."""


def _read(change: Change, source: Destination, sink: _Sink) -> None:
    """Feed the file to *sink* and make sure that it is the one that the index saw."""
    shown = printable(change.path)
    hasher = blake3()
    try:
        with open(source.open_regular(change.path), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SourceError(f"{shown}: is no regular file any more")
            left = change.entry.size + 1  # one more, to see that it ends where it should
            while left > 0 and (chunk := file.read(min(CHUNK_LEN, left))):
                hasher.update(chunk)
                sink(chunk)
                left -= len(chunk)
    except OSError as error:
        raise SourceError(f"{shown}: {error.strerror}") from error
    if hasher.digest() != change.entry.digest:
        raise SourceError(f"{shown}: changed since its index was made")


def _spool() -> BinaryIO:
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(_SPOOL_LEN, prefix="ibt-diff-"))
