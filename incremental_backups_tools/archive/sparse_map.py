"""The map of a sparse file as tar carries it: GNU tar's sparse format 1.0 in a pax archive. No IO.

GNU tar's manual, "Storing Sparse Files": the member's pax header has ``GNU.sparse.major``,
``GNU.sparse.minor`` and ``GNU.sparse.realsize``. Its data begins with the map, decimal numbers each ended by a
newline: how many extents, then offset and length of each. Zeros fill the map up to a block of 512 bytes; then
follow the extents' bytes, one after the other, each filled up to a block. All extents written here but the
last are whole blocks, so that nothing stands between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from incremental_backups_tools.archive.tar import BLOCK_LEN, TarMember, padding_len
from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError
from incremental_backups_tools.tree.sparse import Extents, find_map_fault

MAJOR_KEY: Final = b"GNU.sparse.major"
MINOR_KEY: Final = b"GNU.sparse.minor"
REAL_SIZE_KEY: Final = b"GNU.sparse.realsize"
# More than any file written here has, see MAX_EXTENTS; a map read from elsewhere may be longer.
MAX_MAP_LEN: Final = 1 << 24
_NUMBER: Final = re.compile(rb"([0-9]{1,19})\n")


def sparse_records(size: int) -> tuple[tuple[bytes, bytes], ...]:
    """The pax records of a sparse member whose file has *size* bytes."""
    return ((MAJOR_KEY, b"1"), (MINOR_KEY, b"0"), (REAL_SIZE_KEY, b"%d" % size))


def is_sparse(member: TarMember) -> bool:
    """Whether the member's data begins with a map."""
    records = dict(member.pax)
    return records.get(MAJOR_KEY) == b"1" and records.get(MINOR_KEY) == b"0"


def encode_sparse_map(extents: Extents) -> bytes:
    """The map as it stands before the data: whole blocks."""
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(padding_len(len(text)))


def read_sparse_map(read: Callable[[int], bytes]) -> tuple[Extents, int]:
    """The map at the beginning of a sparse member's data, and how many bytes it takes there.

    Args:
        read: gives that many further bytes of the data, fewer only at their end.

    Raises:
        ArchiveFormatError: no map, or an impossible one.
        LimitExceededError: it is longer than MAX_MAP_LEN.
    """
    text = bytearray()
    numbers: list[int] = []
    parsed = 0
    wanted = 1
    while len(numbers) < wanted:
        found = _NUMBER.match(text, parsed)
        if found is None:
            block = read(BLOCK_LEN)
            if len(block) < BLOCK_LEN or len(text) - parsed >= BLOCK_LEN:
                raise ArchiveFormatError("a sparse member's data does not begin with a map")
            text += block
            if len(text) > MAX_MAP_LEN:
                raise LimitExceededError(f"a sparse map of more than {MAX_MAP_LEN} bytes")
            continue
        parsed = found.end()
        numbers.append(int(found[1]))
        wanted = 1 + 2 * numbers[0]
    extents = tuple(zip(numbers[1::2], numbers[2::2], strict=True))
    if fault := find_map_fault(extents):
        raise ArchiveFormatError(fault)
    return extents, len(text)
