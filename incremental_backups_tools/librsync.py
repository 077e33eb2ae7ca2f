"""python-librsync's three calls, for code that was written to it.

Files are binary file objects; an output that is not given is a temporary file, and every output that can
seek is rewound. The formats are librsync's, so either library reads what the other wrote. Unlike
python-librsync, strong sums have 16 bytes (its 8 were CVE-2014-8242) and the sums are librsync's present
ones, rabin-karp and BLAKE2b.

New code is better off with :mod:`incremental_backups_tools.delta`, which bounds what a hostile delta can do.
"""

from __future__ import annotations

import tempfile
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from incremental_backups_tools import delta as engine
from incremental_backups_tools.exceptions import BackupError, FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_SPOOL", "RS_DEFAULT_BLOCK_LEN", "LibrsyncError", "delta", "patch", "signature"]

MAX_SPOOL = 5 * 1024 * 1024
"""Bytes of a temporary output that are kept in memory; beyond it is a file."""

RS_DEFAULT_BLOCK_LEN = 2048


class LibrsyncError(BackupError):
    """A signature or delta that is damaged or does not fit."""


def signature(f: IO[bytes], s: IO[bytes] | None = None, block_size: int = RS_DEFAULT_BLOCK_LEN) -> IO[bytes]:
    """Write the signature of *f*, from where it stands, to *s*.

    Returns:
        *s*, or a temporary file.

    Raises:
        TypeError: *f* cannot seek.
        ValueError: *block_size* is out of range.
    """
    _check_seekable(f)
    return _write_to(s, lambda out: engine.signature(cast("BinaryIO", f), out, block_len=block_size))


def delta(f: IO[bytes], s: IO[bytes], d: IO[bytes] | None = None) -> IO[bytes]:
    """Write the delta that makes *f* out of the file whose signature is *s*.

    Returns:
        *d*, or a temporary file.

    Raises:
        LibrsyncError: *s* is no signature.
        TypeError: *f* cannot seek.
    """
    _check_seekable(f)
    try:
        old = engine.Signature.from_file(cast("BinaryIO", s))
    except FormatError as error:
        raise LibrsyncError(str(error)) from error
    return _write_to(d, lambda out: engine.delta(cast("BinaryIO", f), old, out))


def patch(f: IO[bytes], d: IO[bytes], o: IO[bytes] | None = None) -> IO[bytes]:
    """Write to *o* what the delta *d* makes out of *f*.

    Returns:
        *o*, or a temporary file.

    Raises:
        LibrsyncError: *d* is damaged or does not fit *f*; what was written is partial.
        TypeError: *f* cannot seek.
    """
    _check_seekable(f)
    try:
        return _write_to(o, lambda out: engine.patch(cast("BinaryIO", f), cast("BinaryIO", d), out))
    except FormatError as error:
        raise LibrsyncError(str(error)) from error


def _check_seekable(file: IO[bytes]) -> None:
    if not callable(getattr(file, "seek", None)):
        raise TypeError(f"expected a file object that can seek, got {type(file).__name__}")


def _write_to(out: IO[bytes] | None, write: Callable[[BinaryIO], object]) -> IO[bytes]:
    target = tempfile.SpooledTemporaryFile(max_size=MAX_SPOOL) if out is None else out
    try:
        write(cast("BinaryIO", target))
        if callable(getattr(target, "seek", None)):
            target.seek(0)
    except BaseException:
        if out is None:
            target.close()
        raise
    return target
