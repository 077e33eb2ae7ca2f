"""How entries, sizes, times and spans look, to people and in JSON. Nothing here prints."""

from __future__ import annotations

import stat
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from incremental_backups_tools.tree.entry import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    Entry,
    line_of_entry,
    printable,
)

_TYPE_BITS: Final = {
    FILE: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    SYMLINK: stat.S_IFLNK,
    FIFO: stat.S_IFIFO,
    CHAR_DEVICE: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK,
}
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NS: Final = 10**9
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def size_text(size: int) -> str:
    """Bytes for people: ``512 B``, ``1.5 MiB``."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in _UNITS[1:]:
        value /= 1024
        if value < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A span for people: ``0.4 s``, ``2 min 5 s``, ``3 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def count_text(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 file``, ``1,234 files``."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def time_text(time_ns: int) -> str:
    """Local time to the second; a time outside the calendar as seconds since 1970."""
    try:
        local = time.localtime(time_ns // _NS)
    except (OverflowError, OSError, ValueError):
        return f"@{time_ns // _NS}"
    return f"{local.tm_year:04d}-{local.tm_mon:02d}-{local.tm_mday:02d} {time.strftime('%H:%M:%S', local)}"


def utc_text(time_ns: int) -> str:
    """UTC in ISO 8601 to the microsecond, for JSON. Backup times are always within the calendar."""
    return (_EPOCH + timedelta(microseconds=time_ns // 1000)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def long_line(entry: Entry) -> str:
    """An entry as ``ls -l`` shows it, without the count of links."""
    mode = stat.filemode(_TYPE_BITS[entry.type] | entry.mode)
    owner = printable(entry.user) if entry.user else str(entry.uid)
    group = printable(entry.group) if entry.group else str(entry.gid)
    size = f"{entry.device[0]}, {entry.device[1]}" if entry.device is not None else str(entry.size)
    line = f"{mode} {owner:<8} {group:<8} {size:>12} {time_text(entry.mtime_ns)} {printable(entry.path)}"
    if entry.target is not None:
        return f"{line} -> {printable(entry.target)}"
    return f"{line} link to {printable(entry.link_of)}" if entry.link_of is not None else line


def entry_record(entry: Entry) -> dict[str, Any]:
    """An entry for JSON: the fields of a state's line, without where its bytes lie.

    A name that is not UTF-8 stands base64 in a field with ``_b64`` appended, as in a state.
    """
    plain = msgspec.structs.replace(
        entry, data=None, source=None, sig=None, ctime_ns=None, inode=None, dev=None, change_key=None
    )
    fields = msgspec.to_builtins(line_of_entry(plain))
    always = {
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }
    return {**fields, **always}
