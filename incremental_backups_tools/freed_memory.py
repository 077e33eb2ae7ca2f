"""Memory that was freed, kept for what is made next.

Blocks of a MiB go from thread to thread where archives are written and read. glibc gives the free top of a thread's
memory back as soon as it has twice the length of the largest block that was ever freed (mallopt(3), M_MMAP_THRESHOLD),
and each page of that is a fault the next time: up to a fifth of the processor time of restoring a large file.
"""

from __future__ import annotations

from typing import Final

_FREED_LEN: Final = 8 << 20


def keep_freed_memory() -> None:
    """Have some 16 MiB of what is freed stay here. Another allocator than glibc's does as it does."""
    bytes(_FREED_LEN)  # takes no memory before it is written to, and is freed at once
