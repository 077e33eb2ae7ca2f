"""Hours, days, weeks, months and years as clocks and calendars show them. No IO but the system's time zone."""

from __future__ import annotations

import contextlib
from calendar import MONDAY
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Literal, assert_never

Unit = Literal["second", "minute", "hour", "day", "week", "month", "year"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_SECONDS_PER_DAY: Final = 86400


def civil_time(seconds: int, zone: tzinfo | None) -> datetime:
    """What clocks show *seconds* after the epoch, as a datetime without a zone.

    In the calendar's first and last hours, where no backup is, it may be UTC.

    Args:
        zone: None is this machine's.
    """
    moment = _EPOCH + timedelta(seconds=seconds)
    with contextlib.suppress(OverflowError, ValueError):
        moment = moment.astimezone(zone)
    return moment.replace(tzinfo=None)


def seconds_at(civil: datetime, zone: tzinfo | None) -> int:
    """When clocks show *civil*, in seconds since the epoch.

    A time that a clock change leaves out or gives twice is taken as Go's time.Date takes it: with the offset
    that holds at the moment which the offset at *civil*, read as UTC, leads to.
    """
    as_utc = (civil.replace(tzinfo=UTC) - _EPOCH) // _SECOND
    seconds = as_utc
    for _ in range(2):
        shown = (civil_time(seconds, zone).replace(tzinfo=UTC) - _EPOCH) // _SECOND
        seconds = as_utc - (shown - seconds)
    return seconds


def period_number(civil: datetime, unit: Unit, *, first_week_day: int = MONDAY) -> int:
    """The number of the hour, day, … that *civil* lies in; the next one has the next number."""
    day = civil.toordinal()
    match unit:
        case "second":
            return day * _SECONDS_PER_DAY + civil.hour * 3600 + civil.minute * 60 + civil.second
        case "minute":
            return (day * 24 + civil.hour) * 60 + civil.minute
        case "hour":
            return day * 24 + civil.hour
        case "day":
            return day
        case "week":
            return (day - 1 - first_week_day) // 7  # day 1 was a Monday
        case "month":
            return civil.year * 12 + civil.month
        case "year":
            return civil.year
        case _:
            assert_never(unit)
