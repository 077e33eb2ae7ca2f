"""Change keys: what a filesystem offers to see a file's change by without reading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

ChangeKeyGetter = Callable[[Mapping[str, Any]], str | None]

DEFAULT_PROTOCOL: Final = "*"
# When a file was made says nothing of what was written into it later.
CREATION_FIELD: Final = "created"
# What a key begins with that is a time: one as young as the clock is coarse says nothing.
BY_TIME: Final = "modified:"
_TIME_FIELDS: Final = ("mtime", "LastModified", "last_modified", "modified", "updated", "timeModified")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _first_of(*names: str) -> ChangeKeyGetter:
    """The first field of these that a listing has, with its name."""

    def get(info: Mapping[str, Any]) -> str | None:
        for name in names:
            value = info.get(name)
            if value not in (None, ""):
                # Listings have ETags without the quotes that replies' headers have them in.
                return f"{name}:{value}".replace('"', "")
        return None

    return get


def _key_of_local_file(info: Mapping[str, Any]) -> str | None:
    fields = ("mtime_ns", "ctime_ns", "ino", "dev")
    if any(info.get(name) is None for name in fields):
        return None
    return ":".join(str(info[name]) for name in fields)


def _key_by_checksum_or_time(info: Mapping[str, Any]) -> str | None:
    key = _first_of("ETag", "etag", "e_tag", "checksum", "md5", "md5Hash", "crc32c")(info)
    if key is not None:
        return key
    modified_ns = modification_time_ns({**info, CREATION_FIELD: None})
    return None if modified_ns is None else f"{BY_TIME}{modified_ns}"


# By protocol, from what a listing says of a file to what tells its versions apart. A file without a key is read each
# time. Give a mapping with more in it wherever ``change_keys`` is taken.
CHANGE_KEYS: Mapping[str, ChangeKeyGetter] = MappingProxyType(
    {
        "file": _key_of_local_file,
        "az": _first_of("etag"),
        "abfs": _first_of("etag"),
        "s3": _first_of("ETag"),
        "gcs": _first_of("generation", "etag", "md5Hash"),
        DEFAULT_PROTOCOL: _key_by_checksum_or_time,
    }
)


def change_key_getter(
    protocols: frozenset[str], change_keys: Mapping[str, ChangeKeyGetter]
) -> ChangeKeyGetter:
    """The getter for a filesystem that goes by these names, else the default."""
    for protocol in sorted(protocols):
        if protocol in change_keys:
            return change_keys[protocol]
    return change_keys.get(DEFAULT_PROTOCOL, _key_by_checksum_or_time)


def modification_time_ns(info: Mapping[str, Any]) -> int | None:
    """When a file was modified, in nanoseconds since 1970, by what a listing says of it.

    Where that is nothing, when it was created.
    """
    for name in (*_TIME_FIELDS, CREATION_FIELD):
        value = info.get(name)
        if isinstance(value, str):
            with suppress(ValueError):
                value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value * 1_000_000) * 1000
    return None
