"""A file in parts, several at once, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.limits import Limits

TagT = TypeVar("TagT")

MEBIBYTE = 1 << 20
PART_LEN = 8 * MEBIBYTE
# S3 takes 10,000 parts, Azure 50,000 blocks.
_PARTS_MAX = 9_000
# At most so many parts are in memory: 32 MiB of a file below 70 GiB.
_PARTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class PartPlan:
    """How a file is cut.

    Attributes:
        size: of the file, in bytes.
        part_len: of each part but the last, in bytes.
    """

    size: int
    part_len: int

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-self.size // self.part_len)

    def length_of(self, number: int) -> int:
        """The bytes of a part; the first is number 0."""
        return min(self.part_len, self.size - number * self.part_len)


def plan_parts(size: int) -> PartPlan:
    """Cut a file of so many bytes into parts that any store takes."""
    least = -(-size // _PARTS_MAX)
    return PartPlan(size, max(PART_LEN, -(-least // MEBIBYTE) * MEBIBYTE))


def upload_parts(
    descriptor: int, plan: PartPlan, upload: Callable[[int, bytes], TagT], *, limits: Limits
) -> list[TagT]:
    """Send all parts of a local file.

    Args:
        descriptor: of the file; its position is left alone.
        upload: called in several threads with a part's number, from 0, and its bytes.

    Returns:
        What *upload* returned, in the order of the parts.

    Raises:
        Exception: the first error of *upload*; nothing is sent any more when it comes out.
        RepositoryError: the file is shorter than planned.
    """
    stop = threading.Event()

    def send(number: int) -> TagT | None:
        try:
            length = plan.length_of(number)
            if not stop.is_set():
                limits.before_upload(length, stop=stop)
            if stop.is_set():
                return None
            return upload(number, _read_part(descriptor, number * plan.part_len, length))
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="upload") as pool:
        futures = [pool.submit(send, number) for number in range(plan.count)]
        try:
            return [tag for future in futures if (tag := future.result()) is not None]
        except BaseException:
            stop.set()
            raise


def _read_part(descriptor: int, offset: int, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = os.pread(descriptor, length - len(data), offset + len(data))
        if not piece:
            raise RepositoryError(f"the temporary file of an upload was cut at {offset + len(data)} bytes")
        data += piece
    return bytes(data)
