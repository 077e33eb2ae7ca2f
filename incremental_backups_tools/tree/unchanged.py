"""Which names of a live tree need no second look, and when what was seen cannot vouch for that."""

from __future__ import annotations

import os
import stat
from typing import Final

import msgspec

from incremental_backups_tools.tree.entry import FILE, Entry
from incremental_backups_tools.tree.metadata import type_of

# A write within one tick of the clock that stamps files may leave size, mtime and ctime as they are. Kernels
# tick every 1 to 10 ms, but the clock may be a file server's; some file systems know seconds alone.
CLOCK_GRANULARITY_NS: Final = 1 * 10**9
COARSE_GRANULARITY_NS: Final = 2 * 10**9


def is_unchanged(info: os.stat_result, old: Entry, link_of: bytes | None) -> bool:
    """Whether a name needs no second look: nothing that a change would leave a mark on differs.

    An entry without ``ctime_ns`` is always looked at: it was racy, unstable, or came from a state.
    """
    return (
        old.ctime_ns == info.st_ctime_ns
        and old.mtime_ns == info.st_mtime_ns
        and old.inode == info.st_ino
        and type_of(info.st_mode) == old.type
        and (old.type != FILE or old.size == info.st_size)
        and old.mode == stat.S_IMODE(info.st_mode)
        and old.uid == info.st_uid
        and old.gid == info.st_gid
        and old.link_of == link_of
    )


def for_next_time(entry: Entry, now_ns: int) -> Entry:
    """*entry* without its ``ctime_ns`` if that cannot vouch for it the next time.

    Args:
        now_ns: the clock before the file was looked at.
    """
    newest = max(entry.mtime_ns, entry.ctime_ns or 0)
    is_coarse = entry.mtime_ns % 10**9 == 0 and (entry.ctime_ns or 0) % 10**9 == 0
    granularity = COARSE_GRANULARITY_NS if is_coarse else CLOCK_GRANULARITY_NS
    if entry.unstable or newest > now_ns - granularity:
        return msgspec.structs.replace(entry, ctime_ns=None)
    return entry
