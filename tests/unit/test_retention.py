"""Which backups stay by restic's rules: its own published cases, and the corners of the calendar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from incremental_backups_tools.points.retention import (
    UNLIMITED,
    Age,
    KeepPolicy,
    Point,
    parse_age,
    parse_count,
    plan_retention,
)
from incremental_backups_tools.repository.layout import encode_backup_id

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOW = "2026-11-20 08:00:00"

# The days in restic's own tests of its policies: the 20 of the autumn 2014, those of 2015, and January 2016.
DAYS = "08-08 08-10 08-12 08-13 08-15 08-18 08-20 08-21 08-22 09-01 09-02 09-05 09-06 09-08 09-09 09-10 09-11 09-20"
DAYS += (
    " 09-22 10-01 10-02 10-05 10-06 10-08 10-09 10-10 10-11 10-20 10-22 11-08 11-10 11-12 11-13 11-15 11-18"
)
DAYS += " 11-20 11-21 11-22"
JANUARY = [
    "01 01:02:03",
    "01 01:03:03",
    "01 07:08:03",
    "03 07:02:03",
    "04 10:23:03",
    "04 11:23:03",
    "04 12:23:03",
    "04 12:24:03",
    "04 12:28:03",
    "04 12:30:03",
    "04 16:23:03",
    "05 09:02:03",
    "06 08:02:03",
    "07 10:02:03",
    "08 20:02:03",
    "09 21:02:03",
    "12 21:02:03",
    "12 21:08:03",
    "18 12:02:03",
]
RESTICS = [f"{year}-{day} 10:20:30" for year in (2014, 2015) for day in DAYS.split()]
RESTICS += [f"{year}-{day} 10:20:30.1" for year in (2014, 2015) for day in ("08-13", "11-13")]
RESTICS += [f"2016-01-{moment}" for moment in JANUARY]


def time_ns(text: str) -> int:
    return (datetime.fromisoformat(text + "+00:00") - EPOCH) // timedelta(microseconds=1) * 1000


def point(text: str, *tags: str) -> Point:
    return Point(backup_id=encode_backup_id(time_ns(text)), tags=tags)


def kept(
    points: list[Point], policy: KeepPolicy, *, now: str = NOW, zone: str = "UTC"
) -> dict[str, list[str]]:
    """The times that stay and why, newest first."""
    decisions = plan_retention(points, policy, now_ns=time_ns(now), timezone=ZoneInfo(zone))
    assert [decision.backup_id for decision in decisions] == sorted(point.backup_id for point in points)
    assert all(decision.keep == bool(decision.reasons) for decision in decisions)
    times = {
        point.backup_id: str(EPOCH + timedelta(microseconds=point.time_ns // 1000))[:-6] for point in points
    }
    return {times[found.backup_id]: list(found.reasons) for found in reversed(decisions) if found.keep}


def restics(policy: KeepPolicy) -> dict[str, list[str]]:
    return kept([point(text) for text in RESTICS], policy)


def days(texts: list[str]) -> list[Point]:
    return [point(f"{text} 12:00:00") for text in texts]


def kept_days(texts: list[str], policy: KeepPolicy) -> list[str]:
    return [text[:10] for text in kept(days(texts), policy)]


def test_yearly_as_restic_has_it() -> None:
    assert restics(KeepPolicy(keep_yearly=10)) == {
        "2016-01-18 12:02:03": ["yearly backup"],
        "2015-11-22 10:20:30": ["yearly backup"],
        "2014-11-22 10:20:30": ["yearly backup"],
        "2014-08-08 10:20:30": ["oldest yearly backup"],
    }


def test_several_rules_as_restic_has_them() -> None:
    policy = KeepPolicy(keep_daily=3, keep_weekly=2, keep_monthly=UNLIMITED, keep_yearly=UNLIMITED)
    assert restics(policy) == {
        "2016-01-18 12:02:03": ["daily backup", "weekly backup", "monthly backup", "yearly backup"],
        "2016-01-12 21:08:03": ["daily backup", "weekly backup"],
        "2016-01-09 21:02:03": ["daily backup"],
        "2015-11-22 10:20:30": ["monthly backup", "yearly backup"],
        "2015-10-22 10:20:30": ["monthly backup"],
        "2015-09-22 10:20:30": ["monthly backup"],
        "2015-08-22 10:20:30": ["monthly backup"],
        "2014-11-22 10:20:30": ["monthly backup", "yearly backup"],
        "2014-10-22 10:20:30": ["monthly backup"],
        "2014-09-22 10:20:30": ["monthly backup"],
        "2014-08-22 10:20:30": ["monthly backup"],
        "2014-08-08 10:20:30": ["oldest monthly backup", "oldest yearly backup"],
    }


def test_weekly_within_an_age_as_restic_has_it() -> None:
    found = restics(KeepPolicy(keep_within_weekly=parse_age("1y2m3d3h")))
    assert {reason for reasons in found.values() for reason in reasons} == {"weekly within 1y2m3d3h"}
    weeks = (
        "2016-01-18 2016-01-12 2016-01-09 2016-01-03 2015-11-22 2015-11-15 2015-11-08 2015-10-22 2015-10-11 "
    )
    weeks += (
        "2015-10-02 2015-09-22 2015-09-20 2015-09-11 2015-09-06 2015-08-22 2015-08-15 2015-08-08 2014-11-22 "
    )
    weeks += "2014-11-15"
    assert " ".join(moment[:10] for moment in found) == weeks


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (KeepPolicy(keep_last=10), 10),
        (KeepPolicy(keep_last=200), len(RESTICS)),
        (KeepPolicy(keep_last=UNLIMITED), len(RESTICS)),
        (KeepPolicy(keep_last=UNLIMITED, keep_hourly=1), len(RESTICS)),
        (KeepPolicy(keep_hourly=20), 20),
        (KeepPolicy(keep_daily=30), 30),
        (KeepPolicy(keep_last=5, keep_daily=5), 6),  # four days hold the newest five, and one more day
        (KeepPolicy(keep_within=parse_age("9999y")), len(RESTICS)),
    ],
)
def test_how_many_stay(policy: KeepPolicy, count: int) -> None:
    assert len(restics(policy)) == count


def test_without_a_rule_everything_stays() -> None:
    for policy in (KeepPolicy(), KeepPolicy(keep_within=Age(), keep_within_daily=Age())):
        assert policy.is_empty
        found = restics(policy)
        assert len(found) == len(RESTICS)
        assert set(map(tuple, found.values())) == {("policy is empty",)}


@pytest.mark.parametrize(
    "policy",
    [
        KeepPolicy(keep_last=1),
        KeepPolicy(keep_yearly=UNLIMITED),
        KeepPolicy(keep_within=Age(hours=1)),
        KeepPolicy(keep_within_weekly=Age(days=1)),
        KeepPolicy(keep_tags=(("a",),)),
    ],
)
def test_with_any_rule_a_policy_is_not_empty(policy: KeepPolicy) -> None:
    assert not policy.is_empty
    assert plan_retention([], policy, now_ns=0) == []


def test_the_oldest_stays_only_while_a_rule_has_some_left() -> None:
    points = ["2026-01-01 10:00:00", "2026-01-01 11:00:00", "2026-01-02 10:00:00", "2026-01-02 11:00:00"]
    two = kept([point(text) for text in points], KeepPolicy(keep_daily=2))
    assert list(two) == ["2026-01-02 11:00:00", "2026-01-01 11:00:00"]
    three = kept([point(text) for text in points], KeepPolicy(keep_daily=3))
    assert three["2026-01-01 10:00:00"] == ["oldest daily backup"]


def test_within_an_age_the_oldest_stays_only_if_it_is_that_young() -> None:
    points = [point("2026-01-01 10:00:00"), point("2026-01-01 11:00:00")]
    assert kept(points, KeepPolicy(keep_within_daily=Age(days=1)))["2026-01-01 10:00:00"] == [
        "oldest daily within 1d"
    ]
    assert list(kept(points, KeepPolicy(keep_within_daily=Age(hours=1)))) == ["2026-01-01 11:00:00"]


def test_days_without_a_backup_do_not_count() -> None:
    texts = ["2020-01-01", "2022-06-01", "2023-06-01", "2026-01-01"]
    assert kept_days(texts, KeepPolicy(keep_daily=3)) == ["2026-01-01", "2023-06-01", "2022-06-01"]


def test_weeks_begin_on_monday_and_run_over_the_year() -> None:
    # 2020-12-28 was a Monday; that week, 53, ends on 2021-01-03.
    texts = ["2020-12-20", "2020-12-27", "2020-12-28", "2021-01-03", "2021-01-04"]
    expected = ["2021-01-04", "2021-01-03", "2020-12-27"]
    assert kept_days(texts, KeepPolicy(keep_weekly=3)) == expected


def test_an_age_counts_from_the_newest_not_from_now() -> None:
    texts = ["2020-01-01", "2020-01-09", "2020-01-10"]
    assert kept_days(texts, KeepPolicy(keep_within=Age(days=2))) == ["2020-01-10", "2020-01-09"]


def test_what_is_exactly_as_old_goes() -> None:
    texts = ["2020-01-08", "2020-01-10"]
    assert kept_days(texts, KeepPolicy(keep_within=Age(days=2))) == ["2020-01-10"]
    assert kept_days(texts, KeepPolicy(keep_within=Age(days=2, hours=1))) == ["2020-01-10", "2020-01-08"]


def test_ages_count_fractions_of_a_second() -> None:
    points = [point(f"2026-01-0{moment}") for moment in ("1 12:00:00.4", "1 12:00:00.6", "2 12:00:00.5")]
    found = kept(points, KeepPolicy(keep_within=Age(days=1)))
    assert list(found) == ["2026-01-02 12:00:00.500000", "2026-01-01 12:00:00.600000"]


def test_a_backup_from_the_future_makes_no_other_old() -> None:
    texts = ["2026-11-01", "2026-11-18", "2026-11-19", "2038-01-01"]
    assert kept_days(texts, KeepPolicy(keep_within=Age(days=3))) == ["2038-01-01", "2026-11-19", "2026-11-18"]


def test_where_all_are_in_the_future_none_is_old() -> None:
    texts = ["2030-01-01", "2038-01-01"]
    assert kept_days(texts, KeepPolicy(keep_within=Age(hours=1))) == ["2038-01-01", "2030-01-01"]


@pytest.mark.parametrize(
    ("newest", "age", "too_old", "young"),
    [
        ("2026-03-31", "1m", "2026-03-03", "2026-03-04"),  # 31 February is 3 March
        ("2024-03-31", "1m", "2024-03-02", "2024-03-03"),
        ("2024-02-29", "1y", "2023-03-01", "2023-03-02"),
        ("2026-01-15", "1m", "2025-12-15", "2025-12-16"),
        ("2025-12-15", "1y12m", "2023-12-15", "2023-12-16"),
        ("2026-03-01", "1m1d", "2026-01-31", "2026-02-01"),
        ("2026-03-01", "1w", "2026-02-22", "2026-02-23"),
    ],
)
def test_months_and_years_are_the_calendars(newest: str, age: str, too_old: str, young: str) -> None:
    found = kept_days([too_old, young, newest], KeepPolicy(keep_within=parse_age(age)))
    assert found == [newest, young]


def test_a_day_is_a_clocks_day_also_where_the_clock_changes() -> None:
    # In Berlin 2026-03-29 has 23 hours: a day before noon is 23 hours ago, 24 hours are more.
    points = [point("2026-03-28 10:30:00"), point("2026-03-28 11:30:00"), point("2026-03-29 10:00:00")]
    policy = KeepPolicy(keep_within=Age(days=1))
    assert list(kept(points, policy, zone="Europe/Berlin")) == ["2026-03-29 10:00:00", "2026-03-28 11:30:00"]
    assert len(kept(points, KeepPolicy(keep_within=Age(hours=24)), zone="Europe/Berlin")) == 3


@pytest.mark.parametrize(
    ("newest", "cutoff"),
    [
        ("2026-03-30 00:30:00", "2026-03-29 01:30:00"),  # 02:30 in Berlin, which the day before left out
        ("2026-10-26 01:30:00", "2026-10-25 01:30:00"),  # 02:30 in Berlin, which the day before had twice
    ],
)
def test_times_that_a_clock_change_leaves_out_or_repeats(newest: str, cutoff: str) -> None:
    just_young = cutoff[:-2] + "01"
    points = [point(cutoff), point(just_young), point(newest)]
    found = kept(points, KeepPolicy(keep_within=Age(days=1)), zone="Europe/Berlin")
    assert list(found) == [newest, just_young]


def test_periods_begin_by_the_clock_of_the_zone() -> None:
    points = [point("2026-07-01 21:30:00"), point("2026-07-01 22:30:00"), point("2026-07-01 23:30:00")]
    assert len(kept(points, KeepPolicy(keep_daily=2), zone="Europe/Berlin")) == 2
    assert list(kept(points, KeepPolicy(keep_daily=1, keep_monthly=1), zone="UTC")) == ["2026-07-01 23:30:00"]
    assert kept(points[:2], KeepPolicy(keep_daily=9), zone="UTC")["2026-07-01 21:30:00"] == [
        "oldest daily backup"
    ]
    assert kept(points[:2], KeepPolicy(keep_daily=9), zone="Europe/Berlin")["2026-07-01 21:30:00"] == [
        "daily backup"
    ]


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_without_a_zone_it_is_this_machines(berlin: None) -> None:
    points = [point("2026-07-01 21:30:00"), point("2026-07-01 22:30:00")]
    decisions = plan_retention(points, KeepPolicy(keep_daily=9), now_ns=time_ns(NOW))
    assert decisions[0].reasons == ("daily backup",)


def test_tags() -> None:
    tagged = [
        point("2026-01-01 12:00:00", "a", "b"),
        point("2026-01-02 12:00:00", "a"),
        point("2026-01-03 12:00:00", "c"),
        point("2026-01-04 12:00:00"),
    ]

    def days_with(*lists: tuple[str, ...]) -> list[str]:
        return [text[8:10] for text in kept(tagged, KeepPolicy(keep_tags=lists))]

    assert days_with(("a",)) == ["02", "01"]
    assert days_with(("a", "b")) == ["01"]
    assert days_with(("a", "b"), ("c",)) == ["03", "01"]
    assert days_with(("d",)) == []
    assert days_with(("",)) == ["04"]
    reasons = kept(tagged, KeepPolicy(keep_tags=(("a", "b"), ("a",)), keep_within=Age(years=1), keep_last=4))
    assert reasons["2026-01-01 12:00:00"] == ["has tags [a, b]", "has tags [a]", "within 1y", "last backup"]


@pytest.mark.parametrize("age", [Age(years=10**9), Age(months=10**9), Age(days=10**12), Age(hours=10**12)])
def test_ages_beyond_the_calendar_keep_everything(age: Age) -> None:
    texts = ["0001-01-01", "2026-01-01"]
    assert kept_days(texts, KeepPolicy(keep_within=age)) == texts[::-1]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_the_calendars_ends(zone: str) -> None:
    points = [point("0001-01-01 00:00:00"), point("9999-12-31 23:59:59")]
    policy = KeepPolicy(keep_hourly=2, keep_weekly=2, keep_within=Age(days=1))
    assert len(kept(points, policy, zone=zone)) == 2


def test_an_age_that_ends_where_the_calendar_begins() -> None:
    points = [point("0001-01-01 00:00:00"), point("0001-01-31 15:00:00")]
    assert len(kept(points, KeepPolicy(keep_within=Age(months=1)), zone="Asia/Tokyo")) == 2


def test_one_id_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        plan_retention([point(NOW), point(NOW)], KeepPolicy(keep_last=1), now_ns=0)
    with pytest.raises(ValueError, match="not a backup id"):
        Point(backup_id="latest")


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("9h", Age(hours=9), "9h"),
        ("4h3d9m", Age(months=9, days=3, hours=4), "9m3d4h"),
        ("2y5m7d3h", Age(years=2, months=5, days=7, hours=3), "2y5m7d3h"),
        (" 2w1d ", Age(days=15), "15d"),
        ("0d", Age(), "0h"),
        ("9999y", Age(years=9999), "9999y"),
    ],
)
def test_ages(text: str, expected: Age, shown: str) -> None:
    assert parse_age(text) == expected
    assert str(expected) == shown
    assert parse_age(shown) == expected


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-7d", "1d-2h", "1x", "1y4m3s", "1d 2h", "1d2d", "1M", "1.5d", "٣d"]
)
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(ValueError):
        parse_age(text)


def test_counts() -> None:
    assert [parse_count(text) for text in ("0", " 7 ", "unlimited", "-1")] == [0, 7, UNLIMITED, UNLIMITED]
    for text in ("", "-2", "all", "1.5", "1_0", "٣", "9" * 30):
        with pytest.raises(ValueError, match="number of backups"):
            parse_count(text)


def test_policies_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="keep_daily is -2"):
        KeepPolicy(keep_daily=-2)
    with pytest.raises(ValueError, match="-1 days"):
        Age(days=-1)
    with pytest.raises(ValueError, match="at least one tag"):
        KeepPolicy(keep_tags=((),))
    with pytest.raises(ValueError, match="at least one tag"):
        KeepPolicy(keep_tags=("prod",))  # type: ignore[arg-type]
