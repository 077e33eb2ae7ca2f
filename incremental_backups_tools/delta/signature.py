"""Signatures: of each block of a file a rolling sum and a hash.

A signature is all that a delta needs of the old file. :func:`signature` and :class:`SignatureBuilder` make
one, :class:`Signature` reads one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, cast, overload

from incremental_backups_tools.delta.block_length import choose_block_len
from incremental_backups_tools.delta.formats import (
    MAX_BLOCK_LEN,
    SIGNATURE_HEADER,
    WEAK_LEN,
    SignatureMagic,
)
from incremental_backups_tools.delta.kernels import Kernel, choose_kernel
from incremental_backups_tools.delta.parallel import map_in_order
from incremental_backups_tools.delta.streams import FileOrBuffer, open_stream, read_into, write_all
from incremental_backups_tools.exceptions import SignatureFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

__all__ = ["DEFAULT_STRONG_LEN", "Signature", "SignatureBuilder", "encode_header", "file_size", "signature"]

DEFAULT_STRONG_LEN = 16
"""Bytes kept of each hash.  8, librsync's old default, were CVE-2014-8242."""

UNKNOWN_SIZE_BLOCK_LEN = 2048
"""Where the size of the file is not known beforehand; librsync's default too."""

_LANES = 8
_CHUNK_LEN = 512 * 1024
_CHUNKS_PER_THREAD = 8
"""Threads meet at the interpreter's lock after every read: with single chunks two were no faster than one."""


def encode_header(*, block_len: int, strong_len: int, magic: SignatureMagic) -> bytes:
    """The first 12 bytes of a signature.

    Raises:
        ValueError: *block_len* or *strong_len* is out of range.
    """
    magic = SignatureMagic(magic)
    if not 1 <= block_len <= MAX_BLOCK_LEN:
        raise ValueError(f"block_len must be from 1 to {MAX_BLOCK_LEN}, got {block_len}")
    if not 1 <= strong_len <= magic.strong.max_len:
        raise ValueError(
            f"strong_len must be from 1 to {magic.strong.max_len} for {magic.name}, got {strong_len}"
        )
    return SIGNATURE_HEADER.pack(magic, block_len, strong_len)


def block_len_of(signature: bytes) -> int:
    """The block length in the header of a signature that we made."""
    return cast(int, SIGNATURE_HEADER.unpack_from(signature)[1])


def file_size(source: FileOrBuffer) -> int | None:
    """Bytes from where *source* stands to its end; None where that cannot be known without reading."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return memoryview(source).nbytes
    if isinstance(source, (str, os.PathLike)):
        return os.stat(source).st_size
    if not source.seekable():
        return None
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return max(size - position, 0)


def _chunk_len(block_len: int) -> int:
    """Bytes hashed by one call of the kernel: whole groups of blocks, few enough for the cache."""
    group = _LANES * block_len
    return max(_CHUNK_LEN // group, 1) * group


class SignatureBuilder:
    """Makes a signature of data that comes in pieces; memory grows with the signature only.

    Args:
        block_len: bytes of a block, see :func:`choose_block_len`.
        strong_len: bytes kept of each hash.
        magic: which sums.

    Raises:
        ValueError: *block_len* or *strong_len* is out of range.
    """

    def __init__(
        self,
        *,
        block_len: int,
        strong_len: int = DEFAULT_STRONG_LEN,
        magic: SignatureMagic = SignatureMagic.RK_BLAKE2,
        kernel: Kernel | None = None,
    ) -> None:
        self._parts = [encode_header(block_len=block_len, strong_len=strong_len, magic=magic)]
        self._parameters = (block_len, strong_len, magic.weak, magic.strong)
        self._kernel = choose_kernel(kernel)
        self._group_len = _chunk_len(block_len)
        self._pending = bytearray()

    def update(self, chunk: Buffer) -> None:
        """Take in the next bytes of the file."""
        view = memoryview(chunk).cast("B")
        if self._pending:
            missing = self._group_len - len(self._pending)
            self._pending += view[:missing]
            view = view[missing:]
            if len(self._pending) < self._group_len:
                return
            self._hash(self._pending)
            self._pending.clear()
        whole = len(view) - len(view) % self._group_len
        if whole:
            self._hash(view[:whole])
        self._pending += view[whole:]

    def finish(self) -> bytes:
        """The whole signature file."""
        if self._pending:
            self._hash(self._pending)
            self._pending.clear()
        return b"".join(self._parts)

    def _hash(self, data: Buffer) -> None:
        self._parts.append(self._kernel.hash_blocks(data, *self._parameters))


@overload
def signature(
    source: FileOrBuffer,
    out: None = None,
    *,
    block_len: int | None = None,
    strong_len: int = DEFAULT_STRONG_LEN,
    magic: SignatureMagic = SignatureMagic.RK_BLAKE2,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> bytes: ...


@overload
def signature(
    source: FileOrBuffer,
    out: BinaryIO,
    *,
    block_len: int | None = None,
    strong_len: int = DEFAULT_STRONG_LEN,
    magic: SignatureMagic = SignatureMagic.RK_BLAKE2,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> int: ...


def signature(
    source: FileOrBuffer,
    out: BinaryIO | None = None,
    *,
    block_len: int | None = None,
    strong_len: int = DEFAULT_STRONG_LEN,
    magic: SignatureMagic = SignatureMagic.RK_BLAKE2,
    threads: int = 1,
    kernel: Kernel | None = None,
) -> bytes | int:
    """Make the signature of a file; the same one that ``rdiff signature`` makes.

    Reads *source* to its end, in pieces: memory does not grow with the file, unless the signature is
    returned.

    Args:
        source: path, binary file object or buffer.
        out: where to write the signature.
        block_len: bytes of a block; None lets :func:`choose_block_len` choose by the size, or 2,048 for a
        pipe. strong_len: bytes kept of each hash. magic: which sums. threads: how many hash at once. kernel:
        the kernel module to compute with.

    Returns:
        The signature, or the number of bytes written to *out*.

    Raises:
        ValueError: *block_len*, *strong_len* or *threads* is out of range.
        OSError: reading or writing failed.
    """
    with open_stream(source) as file:
        if block_len is None:
            size = file_size(file)
            block_len = UNKNOWN_SIZE_BLOCK_LEN if size is None else choose_block_len(size)
        header = encode_header(block_len=block_len, strong_len=strong_len, magic=magic)
        parameters = (block_len, strong_len, magic.weak, magic.strong)
        records = _hash_stream(file, parameters, threads=threads, kernel=choose_kernel(kernel))
        if out is None:
            return b"".join([header, *records])
        written = len(header)
        write_all(out, header)
        for part in records:
            write_all(out, part)
            written += len(part)
        return written


def _hash_stream(
    file: BinaryIO, parameters: tuple[int, int, int, int], *, threads: int, kernel: Kernel
) -> Iterator[bytes]:
    chunk_len = _chunk_len(parameters[0]) * (1 if threads == 1 else _CHUNKS_PER_THREAD)

    def read(buffer: memoryview) -> memoryview | None:
        length = read_into(file, buffer)
        return buffer[:length] if length else None

    def hash_chunk(chunk: memoryview) -> bytes:
        return kernel.hash_blocks(chunk, *parameters)

    return map_in_order(read, hash_chunk, buffer_len=chunk_len, threads=threads)


class Signature:
    """A signature that was read: what a delta is made against.

    Attributes:
        magic: which sums it holds.
        block_len: bytes of every block but the last.
        strong_len: bytes of each hash.
        block_count: number of blocks.
    """

    __slots__ = ("_records", "_tables", "block_count", "block_len", "magic", "strong_len")

    def __init__(self, *, magic: SignatureMagic, block_len: int, strong_len: int, records: bytes) -> None:
        self.magic = magic
        self.block_len = block_len
        self.strong_len = strong_len
        self._records = records
        self.block_count = len(records) // (WEAK_LEN + strong_len)
        self._tables: dict[int, object] = {}

    @classmethod
    def from_bytes(cls, buffer: Buffer) -> Signature:
        """Read a signature file from a buffer.

        Raises:
            SignatureFormatError: an unknown magic, impossible lengths, or an end within a record.
        """
        view = memoryview(buffer).cast("B")
        magic, block_len, strong_len = _parse_header(view)
        records = view[SIGNATURE_HEADER.size :]
        if len(records) % (WEAK_LEN + strong_len):
            raise SignatureFormatError(
                f"signature ends within a record: {len(records)} bytes of records, each {WEAK_LEN + strong_len}"
            )
        return cls(magic=magic, block_len=block_len, strong_len=strong_len, records=bytes(records))

    @classmethod
    def from_file(cls, file: BinaryIO) -> Signature:
        """Read a signature from where *file* stands to its end.

        Raises:
            SignatureFormatError: as :meth:`from_bytes`.
        """
        return cls.from_bytes(file.read())

    def to_bytes(self) -> bytes:
        """The signature file."""
        return SIGNATURE_HEADER.pack(self.magic, self.block_len, self.strong_len) + self._records

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Weak and strong sum of each block."""
        stride = WEAK_LEN + self.strong_len
        for start in range(0, len(self._records), stride):
            record = self._records[start : start + stride]
            yield int.from_bytes(record[:WEAK_LEN], "big"), record[WEAK_LEN:]

    def __len__(self) -> int:
        return self.block_count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.magic, self.block_len, self.strong_len, self._records))

    def __repr__(self) -> str:
        return (
            f"<Signature {self.magic.name} block_len={self.block_len} strong_len={self.strong_len}"
            f" block_count={self.block_count}>"
        )

    def table(self, kernel: Kernel) -> object:
        """The blocks by their sums, for *kernel*'s search; built once."""
        key = id(kernel)
        if key not in self._tables:
            self._tables[key] = kernel.build_table(
                self._records, self.block_len, self.strong_len, self.magic.weak, self.magic.strong
            )
        return self._tables[key]


def _parse_header(view: memoryview) -> tuple[SignatureMagic, int, int]:
    if len(view) < SIGNATURE_HEADER.size:
        raise SignatureFormatError(
            f"signature of {len(view)} bytes; its header alone has {SIGNATURE_HEADER.size}"
        )
    number, block_len, strong_len = SIGNATURE_HEADER.unpack_from(view)
    try:
        magic = SignatureMagic(number)
    except ValueError:
        raise SignatureFormatError(f"not a librsync signature: it begins with 0x{number:08x}") from None
    if not 1 <= block_len <= MAX_BLOCK_LEN:
        raise SignatureFormatError(f"signature with block length {block_len}, expected 1 to {MAX_BLOCK_LEN}")
    if not 1 <= strong_len <= magic.strong.max_len:
        raise SignatureFormatError(
            f"signature with strong sums of {strong_len} bytes, expected 1 to {magic.strong.max_len}"
        )
    return magic, block_len, strong_len
