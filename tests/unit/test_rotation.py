"""Which backups stay by bakthat's settings: what GrandFatherSon 1.3 answered for the same times, written down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from incremental_backups_tools.points.retention import Point, plan_retention
from incremental_backups_tools.points.rotation import RotationPolicy
from incremental_backups_tools.repository.layout import encode_backup_id

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BAKTHATS: dict[str, object] = {"days": 7, "weeks": 4, "months": 6, "first_week_day": 5}


def time_ns(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def kept(
    moments: list[datetime], settings: dict[str, object], *, now: str, zone: str | None = None
) -> dict[str, list[str]]:
    """The times that stay and why, oldest first."""
    named = {encode_backup_id(time_ns(moment)): f"{moment:%Y-%m-%d %H:%M:%S}" for moment in moments}
    decisions = plan_retention(
        [Point(backup_id=backup_id) for backup_id in named],
        RotationPolicy.from_settings(settings),
        now_ns=time_ns(datetime.fromisoformat(now + "+00:00")),
        timezone=ZoneInfo(zone) if zone else None,
    )
    return {named[found.backup_id]: list(found.reasons) for found in decisions if found.keep}


def every_day(first: str, last: str, hour: int = 12) -> list[datetime]:
    start, end = times(f"{first} {hour:02d}:00", f"{last} {hour:02d}:00")
    return [start + timedelta(days=number) for number in range((end - start).days + 1)]


def times(*texts: str) -> list[datetime]:
    return [datetime.fromisoformat(text + "+00:00") for text in texts]


def test_daily_backups_of_most_of_a_year() -> None:
    found = kept(every_day("2026-01-01", "2026-11-20"), BAKTHATS, now="2026-11-20 13:00:00")
    months = [f"2026-{month:02d}-01 12:00:00" for month in (6, 7, 8, 9, 10)]
    november = ["11-01", "11-07", "11-14", "11-15", "11-16", "11-17", "11-18", "11-19", "11-20"]
    expected = [
        *months,
        "2026-10-24 12:00:00",
        "2026-10-31 12:00:00",
        *(f"2026-{day} 12:00:00" for day in november),
    ]
    assert list(found) == expected
    assert found["2026-11-14 12:00:00"] == ["first of its week", "first of its day"]
    assert found["2026-11-01 12:00:00"] == ["first of its month"]


def test_the_example_of_the_librarys_own_page() -> None:
    settings: dict[str, object] = {"days": "7", "weeks": "4", "months": " 3 ", "first_week_day": "5"}
    found = kept(every_day("1999-01-01", "1999-12-31", hour=0), settings, now="1999-12-31 23:59:59")
    days = ["10-01", "11-01", "12-01", "12-04", "12-11", "12-18", *(f"12-{day}" for day in range(25, 32))]
    assert list(found) == [f"1999-{day} 00:00:00" for day in days]


def test_the_oldest_of_each_day_stays() -> None:
    moments = times(
        "2026-11-18 23:59:59", "2026-11-19 00:00:00", "2026-11-19 18:00:00", "2026-11-20 00:00:00"
    )
    found = kept(
        moments, {"days": 2, "weeks": 0, "months": 0, "first_week_day": 5}, now="2026-11-20 13:00:00"
    )
    assert list(found) == ["2026-11-19 00:00:00", "2026-11-20 00:00:00"]


def test_nothing_stays_where_all_is_too_old() -> None:
    assert kept(every_day("2025-01-01", "2025-03-01"), BAKTHATS, now="2026-11-20 13:00:00") == {}


@pytest.mark.parametrize(("first_week_day", "days"), [(0, [2, 9, 16]), (6, [1, 8, 15]), (7, [2, 9, 16])])
def test_weeks_begin_where_they_are_said_to(first_week_day: int, days: list[int]) -> None:
    settings: dict[str, object] = {"weeks": 3, "first_week_day": first_week_day}
    found = kept(every_day("2026-11-01", "2026-11-20"), settings, now="2026-11-20 13:00:00")
    assert list(found) == [f"2026-11-{day:02d} 12:00:00" for day in days]


def test_months_run_over_the_years() -> None:
    found = kept(every_day("2024-11-25", "2026-02-10"), {"months": 15}, now="2026-02-10 13:00:00")
    months = [*((2024, 12),), *((2025, month) for month in range(1, 13)), (2026, 1), (2026, 2)]
    assert list(found) == [f"{year}-{month:02d}-01 12:00:00" for year, month in months]


def test_what_is_in_the_future_stays() -> None:
    moments = times(
        "2026-11-20 12:00:00", "2026-11-20 13:00:00", "2026-11-20 13:00:01", "2027-01-01 00:00:00"
    )
    assert kept(moments, {"months": 1}, now="2026-11-20 13:00:00") == {
        "2026-11-20 12:00:00": ["first of its month"],
        "2026-11-20 13:00:01": ["in the future"],
        "2027-01-01 00:00:00": ["in the future"],
    }


def test_the_finer_periods() -> None:
    moments = [
        datetime(2026, 11, 20, 12, 59, 58, tzinfo=UTC) + timedelta(milliseconds=400 * n) for n in range(6)
    ]
    settings: dict[str, object] = {"seconds": 2, "hours": 1}
    assert kept(moments, settings, now="2026-11-20 13:00:00") == {
        "2026-11-20 12:59:59": ["first of its second"],
        "2026-11-20 13:00:00": ["first of its hour", "first of its second"],
    }
    minutes: dict[str, object] = {"minutes": 2, "years": 1}
    assert list(kept(moments, minutes, now="2026-11-20 13:00:00")) == [
        "2026-11-20 12:59:58",
        "2026-11-20 13:00:00",
    ]


def test_the_finer_periods_of_different_days_differ() -> None:
    moments = times("2026-11-19 12:30:00", "2026-11-20 12:30:00", "2026-11-20 12:30:30")
    for settings in ({"minutes": 3000}, {"hours": 50}):
        found = kept(moments, dict(settings), now="2026-11-20 13:00:00")
        assert list(found) == ["2026-11-19 12:30:00", "2026-11-20 12:30:00"]
    assert len(kept(moments, {"seconds": 200_000}, now="2026-11-20 13:00:00")) == 3


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_an_hour_that_clocks_show_twice_adds_no_rule() -> None:
    # In Berlin the second is of 02:50 by summer's clock, while it is 02:10 by winter's.
    moments = times("2026-10-01 12:00:00", "2026-10-25 00:50:00")
    found = kept(moments, {"months": 1}, now="2026-10-25 01:10:00", zone="Europe/Berlin")
    assert list(found) == ["2026-10-01 12:00:00"]


def test_days_are_utc_unless_a_zone_is_given(berlin: None) -> None:
    moments = times("2026-07-01 21:30:00", "2026-07-01 22:30:00")
    assert list(kept(moments, {"days": 3}, now="2026-07-02 12:00:00")) == ["2026-07-01 21:30:00"]
    assert len(kept(moments, {"days": 3}, now="2026-07-02 12:00:00", zone="Europe/Berlin")) == 2


@pytest.mark.parametrize("settings", [{}, {"days": 0, "weeks": "0", "months": 0, "first_week_day": 5}])
def test_without_a_number_everything_stays(settings: dict[str, object]) -> None:
    assert RotationPolicy.from_settings(settings).is_empty
    found = kept(every_day("2020-01-01", "2020-01-03"), settings, now="2026-11-20 13:00:00")
    assert list(found.values()) == [["policy is empty"]] * 3


def test_weeks_begin_on_saturday_unless_said() -> None:
    assert RotationPolicy.from_settings({"weeks": 4}) == RotationPolicy(weeks=4, first_week_day=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"days": -1}, "-1 days"),
        ({"days": "-1"}, "-1 days"),
        ({"days": "seven"}, "'seven', not a whole number"),
        ({"days": ""}, "not a whole number"),
        ({"days": "1_0"}, "not a whole number"),
        ({"days": "٣"}, "not a whole number"),
        ({"days": 1.5}, "not a whole number"),
        ({"days": True}, "not a whole number"),
        ({"days": None}, "not a whole number"),
        ({"fortnights": 1, "eons": 2}, "no setting 'eons', 'fortnights'"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RotationPolicy.from_settings(settings)
