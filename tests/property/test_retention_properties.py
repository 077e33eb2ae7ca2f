"""What holds for every policy and every history: the newest stays, more never keeps less, twice is once."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from zoneinfo import ZoneInfo

from hypothesis import assume, given
from hypothesis import strategies as st

from incremental_backups_tools.points.retention import (
    UNLIMITED,
    Age,
    KeepPolicy,
    Point,
    parse_age,
    plan_retention,
)
from incremental_backups_tools.points.rotation import RotationPolicy
from incremental_backups_tools.repository.layout import encode_backup_id

HOUR_NS = 3600 * 10**9
NOW_NS = 1_800_000_000 * 10**9
COUNTED = ["last", "hourly", "daily", "weekly", "monthly", "yearly"]
AGED = ["", "_hourly", "_daily", "_weekly", "_monthly", "_yearly"]

# Hours apart, days apart and years apart, some of them in the future.
TIMES = st.one_of(st.integers(-50, 50), st.integers(-3000, 10), st.integers(-80_000, 1000)).map(
    lambda hours: NOW_NS + hours * HOUR_NS
)
TAGS = st.sampled_from([(), ("",), ("a",), ("b",), ("a", "b"), ("b", "")])
POINTS = st.dictionaries(TIMES, TAGS, max_size=25).map(
    lambda found: [Point(backup_id=encode_backup_id(moment), tags=tags) for moment, tags in found.items()]
)
COUNTS = st.sampled_from([0, 0, 1, 2, 3, 7, 30, UNLIMITED])
AGES = st.none() | st.builds(
    Age, years=st.integers(0, 3), months=st.integers(0, 15), days=st.integers(0, 40), hours=st.integers(0, 50)
)
POLICIES = st.builds(
    KeepPolicy,
    keep_tags=st.sampled_from([(), (), (("a",),), (("a", "b"), ("",))]),
    **{f"keep_{name}": COUNTS for name in COUNTED},
    **{f"keep_within{name}": AGES for name in AGED},
)
ROTATIONS = st.builds(
    RotationPolicy,
    first_week_day=st.integers(0, 6),
    **{name: st.integers(0, 14) for name in ("years", "months", "weeks", "days", "hours")},
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns"]).map(ZoneInfo)


def kept(points: list[Point], policy: KeepPolicy | RotationPolicy, zone: ZoneInfo) -> set[str]:
    decisions = plan_retention(points, policy, now_ns=NOW_NS, timezone=zone)
    assert [found.backup_id for found in decisions] == sorted(point.backup_id for point in points)
    return {found.backup_id for found in decisions if found.keep}


@given(points=POINTS.filter(bool), policy=POLICIES, zone=ZONES)
def test_the_newest_stays_where_any_rule_counts(
    points: list[Point], policy: KeepPolicy, zone: ZoneInfo
) -> None:
    assume(any(policy.count_of(name) for name in COUNTED))
    assert max(point.backup_id for point in points) in kept(points, policy, zone)


@given(points=POINTS.filter(bool), policy=POLICIES, zone=ZONES)
def test_something_stays_where_any_rule_is_not_of_tags(
    points: list[Point], policy: KeepPolicy, zone: ZoneInfo
) -> None:
    assume(not replace(policy, keep_tags=()).is_empty)
    assert kept(points, policy, zone)


@given(points=POINTS, policy=POLICIES, zone=ZONES, name=st.sampled_from(COUNTED), count=COUNTS)
def test_a_higher_count_keeps_no_less(
    points: list[Point], policy: KeepPolicy, zone: ZoneInfo, name: str, count: int
) -> None:
    before = policy.count_of(name)
    assume(before != UNLIMITED and (count == UNLIMITED or count >= before) and not policy.is_empty)
    more = replace(policy, **{f"keep_{name}": count})  # type: ignore[arg-type]
    assert kept(points, policy, zone) <= kept(points, more, zone)


@given(points=POINTS, policy=POLICIES | ROTATIONS, zone=ZONES)
def test_what_was_kept_is_kept_again(
    points: list[Point], policy: KeepPolicy | RotationPolicy, zone: ZoneInfo
) -> None:
    once = kept(points, policy, zone)
    assert kept([point for point in points if point.backup_id in once], policy, zone) == once


@given(points=POINTS, policy=POLICIES, zone=ZONES, shuffled=st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(
    points: list[Point], policy: KeepPolicy, zone: ZoneInfo, shuffled: Random
) -> None:
    again = list(points)
    shuffled.shuffle(again)
    assert kept(again, policy, zone) == kept(points, policy, zone)


@given(points=POINTS, policy=ROTATIONS, zone=ZONES)
def test_a_rotation_keeps_the_future(points: list[Point], policy: RotationPolicy, zone: ZoneInfo) -> None:
    future = {point.backup_id for point in points if point.time_ns > NOW_NS}
    assert future <= kept(points, policy, zone)


@given(age=AGES.filter(bool))
def test_ages_are_read_as_they_are_written(age: Age) -> None:
    assert parse_age(str(age)) == age
