"""Deltas: what to copy from an old file, known by its signature alone, and what to add, to make a new one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO, overload

import msgspec

from incremental_backups_tools.delta.block_length import choose_block_len
from incremental_backups_tools.delta.kernels import Kernel, choose_kernel
from incremental_backups_tools.delta.segments import search_in_segments
from incremental_backups_tools.delta.signature import (
    DEFAULT_STRONG_LEN,
    UNKNOWN_SIZE_BLOCK_LEN,
    Signature,
    file_size,
)
from incremental_backups_tools.delta.streams import FileOrBuffer, open_stream, read_into
from incremental_backups_tools.delta.window import DeltaStats, Hasher, NewSignature, WindowSearch

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DeltaAndSignature", "DeltaAndSignatureBuilder", "DeltaBuilder", "delta", "delta_and_signature"]


class DeltaAndSignature(msgspec.Struct, frozen=True):
    """What one pass over a changed file gave: the delta was written, this is the rest.

    Attributes:
        stats: of the delta.
        signature: the new file's signature.
        size: the new file's bytes.
    """

    stats: DeltaStats
    signature: bytes
    size: int


class DeltaBuilder:
    """Makes a delta of data that comes in pieces, and writes it as it goes; memory does not grow with the
    file.

    Args:
        signature: of the old file.
        out: where the delta goes.
    """

    def __init__(self, signature: Signature, *, out: BinaryIO, kernel: Kernel | None = None) -> None:
        self._search = WindowSearch(signature, out=out, kernel=choose_kernel(kernel))

    def update(self, chunk: Buffer) -> None:
        """Take in the next bytes of the new file."""
        self._search.update(chunk)

    def finish(self) -> DeltaStats:
        """Write the rest of the delta.  The builder is used up."""
        return self._search.finish()


class DeltaAndSignatureBuilder:
    """Makes a delta and the new file's signature in one pass, and feeds a hasher with the same bytes.

    Where *block_len* and *strong_len* are the old signature's, a block of the new file is hashed once for
    both.

    Args:
        old_signature: of the old file.
        out: where the delta goes.
        block_len: of the new signature.
        strong_len: of the new signature.
        hasher: gets every byte of the new file, in order.

    Raises:
        ValueError: *block_len* or *strong_len* is out of range.
    """

    def __init__(
        self,
        old_signature: Signature,
        *,
        out: BinaryIO,
        block_len: int,
        strong_len: int = DEFAULT_STRONG_LEN,
        hasher: Hasher | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        kernel = choose_kernel(kernel)
        self._new = NewSignature(old_signature, block_len=block_len, strong_len=strong_len, kernel=kernel)
        self._search = WindowSearch(old_signature, out=out, kernel=kernel, new=self._new, hasher=hasher)

    def update(self, chunk: Buffer) -> None:
        """Take in the next bytes of the new file."""
        self._search.update(chunk)

    def finish(self) -> DeltaAndSignature:
        """Write the rest of the delta.  The builder is used up."""
        stats = self._search.finish()
        return DeltaAndSignature(stats=stats, signature=self._new.to_bytes(), size=self._search.size)


def _search_file(
    file: BinaryIO,
    old: Signature,
    *,
    out: BinaryIO,
    threads: int,
    kernel: Kernel,
    new: NewSignature | None = None,
    hasher: Hasher | None = None,
) -> tuple[DeltaStats, int]:
    """Read *file* to its end; returns what was written to *out*, and the bytes of the file."""
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads > 1:
        return search_in_segments(file, old, out=out, threads=threads, kernel=kernel, new=new, hasher=hasher)
    search = WindowSearch(old, out=out, kernel=kernel, new=new, hasher=hasher)
    while count := read_into(file, search.free_space()):
        search.filled(count)
    return search.finish(), search.size


@overload
def delta(
    source: FileOrBuffer,
    signature: Signature,
    out: None = None,
    *,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> bytes: ...


@overload
def delta(
    source: FileOrBuffer,
    signature: Signature,
    out: BinaryIO,
    *,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> DeltaStats: ...


def delta(
    source: FileOrBuffer,
    signature: Signature,
    out: BinaryIO | None = None,
    *,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> bytes | DeltaStats:
    """Make the delta that turns the file of *signature* into *source*; ``rdiff patch`` applies it.

    Reads *source* to its end, in pieces: memory does not grow with the file, unless the delta is returned.

    Args:
        source: the new file: path, binary file object or buffer.
        signature: of the old file.
        out: where to write the delta.
        threads: how many search at once.
        kernel: the kernel module to compute with.

    Returns:
        The delta, or what was written to *out*.

    Raises:
        ValueError: *threads* is less than 1.
        OSError: reading or writing failed.
    """
    sink = io.BytesIO() if out is None else out
    with open_stream(source) as file:
        stats, _ = _search_file(file, signature, out=sink, threads=threads, kernel=choose_kernel(kernel))
    return sink.getvalue() if out is None and isinstance(sink, io.BytesIO) else stats


def delta_and_signature(
    source: FileOrBuffer,
    signature: Signature,
    out: BinaryIO,
    *,
    block_len: int | None = None,
    strong_len: int = DEFAULT_STRONG_LEN,
    hasher: Hasher | None = None,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> DeltaAndSignature:
    """Make a delta and the new file's signature in one pass; see :class:`DeltaAndSignatureBuilder`.

    Args:
        block_len: of the new signature; None lets :func:`choose_block_len` choose by the new file's size.

    Raises:
        ValueError: an option is out of range.
        OSError: reading or writing failed.
    """
    kernel = choose_kernel(kernel)
    with open_stream(source) as file:
        if block_len is None:
            size = file_size(file)
            block_len = UNKNOWN_SIZE_BLOCK_LEN if size is None else choose_block_len(size)
        new = NewSignature(signature, block_len=block_len, strong_len=strong_len, kernel=kernel)
        stats, size = _search_file(
            file, signature, out=out, threads=threads, kernel=kernel, new=new, hasher=hasher
        )
        return DeltaAndSignature(stats=stats, signature=new.to_bytes(), size=size)
