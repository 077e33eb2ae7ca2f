"""Which point in time a person means.

latest                      the newest backup
20261120T0725               the start of an id: exactly one backup must begin so
2026-11-20                  local time; the last backup at or before the end of that day
2026-11-20T07:25[:31]       local time, or with an offset or Z; the last backup at or before it
3d, 12h, 2w, 6m, 1y         that long ago; the last backup at or before it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.repository.layout import encode_backup_id, parse_backup_id

LATEST: Final = "latest"
_ID_START: Final = re.compile(r"\d{8}T[\d.]*Z?")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_AGE: Final = re.compile(r"(\d+(?:[smhdwy]|mo|min))+", re.IGNORECASE)
_AGE_PART: Final = re.compile(r"(\d+)(min|mo|[smhdwy])", re.IGNORECASE)
_DAYS_OF_UNIT: Final = {"d": 1.0, "w": 7.0, "m": 30.0, "mo": 30.0, "y": 365.0, "h": 1 / 24, "min": 1 / 1440}
_SECONDS_PER_DAY: Final = 86400
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_age(text: str) -> timedelta:
    """A span such as ``3d`` or ``1y6m``: s, min, h, d, w, m (30 days), y (365 days).

    Raises:
        ValueError: not such a span.
    """
    if not _AGE.fullmatch(text):
        raise ValueError(f"{text!r} is not an age such as 3d, 12h or 1y6m")
    days = 0.0
    for number, unit in _AGE_PART.findall(text):
        unit = unit.lower()
        days += int(number) * (1 / _SECONDS_PER_DAY if unit == "s" else _DAYS_OF_UNIT[unit])
    try:
        return timedelta(days=days)
    except OverflowError:
        raise ValueError(f"{text!r} is longer than any calendar") from None


def select_backup(backup_ids: Sequence[str], when: str | datetime | None, *, now: datetime, what: str) -> str:
    """The id among *backup_ids* (sorted) that *when* means.

    Args:
        when: None is the latest.
        now: the present, with a time zone; ages count from it.
        what: whose backups these are, for errors.

    Raises:
        ChainError: no backup, none so old, or several whose ids begin so.
        ValueError: *when* is no such text.
    """
    if not backup_ids:
        raise ChainError(f"{what}: there is no backup")
    if when is None or when == LATEST:
        return backup_ids[-1]
    if isinstance(when, str) and _ID_START.fullmatch(when):
        return _by_start(backup_ids, when, what)
    limit = _limit_of(when, now)
    chosen = [backup_id for backup_id in backup_ids if backup_id <= limit]
    if not chosen:
        raise ChainError(f"{what}: no backup at or before {when}; the oldest is {backup_ids[0]}")
    return chosen[-1]


def parse_moment(text: str, *, now: datetime) -> int:
    """The last moment that a date, a time or an age means, in nanoseconds since 1970.

    Raises:
        ValueError: it is none of them.
    """
    return parse_backup_id(_limit_of(text, now))


def _by_start(backup_ids: Sequence[str], start: str, what: str) -> str:
    matches = [backup_id for backup_id in backup_ids if backup_id.startswith(start)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ChainError(f"{what}: {len(matches)} backups begin with {start}: {', '.join(matches[:5])}")
    raise ChainError(f"{what}: no backup begins with {start}")


def _limit_of(when: str | datetime, now: datetime) -> str:
    """The id that a backup at the last moment meant by *when* would have."""
    moment = when if isinstance(when, datetime) else _moment_of(when, now)
    if moment.tzinfo is None:
        # The system's rules, not today's offset: the moment may lie on the other side of a clock change.
        try:
            moment = moment.astimezone()
        except (OverflowError, ValueError):
            moment = moment.replace(tzinfo=UTC)  # in the calendar's first or last hours, where no backup is
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return encode_backup_id(microseconds * 1000)


def _moment_of(text: str, now: datetime) -> datetime:
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text + "T23:59:59.999999")
    if _AGE.fullmatch(text):
        try:
            return now - parse_age(text)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)  # before the calendar began: older than any backup
    if "-" in text:
        return datetime.fromisoformat(text)
    raise ValueError(f"{text!r} is not 'latest', the start of an id, a date, a time or an age such as 3d")
