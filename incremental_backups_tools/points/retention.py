"""Which backups of a key stay, by restic's rules. No IO.

A **keep policy** has restic's rules under restic's names. A backup that any rule keeps stays.

keep_last                   the newest n backups
keep_hourly … keep_yearly   the newest backup of each of the last n hours, days, weeks, months or years that
                            have one; hours and days without a backup do not count. While such a rule has some
                            of its n left, it keeps the oldest backup too. -1 ("unlimited") sets no limit
keep_within                 every backup younger than an age such as ``1y5m7d2h``
keep_within_hourly …        the newest backup of each hour (day, …) among those younger than an age, and the
                            oldest backup if it is that young
keep_tags                   every backup that has all the tags of one of the lists; the empty tag stands for a
                            backup without tags

Ages count back from the newest backup that is not in the future, not from now: a machine that was off for a
year loses nothing when it wakes up, and a backup made while the clock was wrong does not make all others old.
Months and years are the calendar's; a day that a month does not have runs on into the next month, so that a
month before 31 March is 3 March. Weeks begin on Monday. Hours, days and longer begin by this machine's clock,
wherever a backup was made. A policy without any rule keeps everything. A policy of tags alone may keep nothing.
Applying a policy to what it kept keeps all of that.

Unlike restic's: its days begin by the clock of the machine that made the backup; an age here may have weeks
(``2w`` is ``14d``), and one that gives a unit twice is refused, where restic takes the last.

A policy of the other kind, bakthat's, is in ``rotation.py``.

Source: restic 0.18, ``snapshot_policy.go`` and ``duration.go``. Before 0.16 it had no rule for the oldest backup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Final

from incremental_backups_tools.points.periods import Unit, civil_time, period_number, seconds_at
from incremental_backups_tools.points.rotation import RotationPolicy, rotation_reasons
from incremental_backups_tools.repository.layout import parse_backup_id, validate_backup_id

UNLIMITED: Final = -1

_COUNT: Final = re.compile(r"[0-9]{1,9}")
_AGE: Final = re.compile(r"(?:[0-9]{1,9}[ymwdh])+")
_AGE_PART: Final = re.compile(r"([0-9]+)([ymwdh])")

_NS_PER_SECOND: Final = 10**9
# Lies before the year 1, where the first backup's id can be.
_BEFORE_ALL_NS: Final = -(10**20)

_COUNTED_UNITS: Final[Mapping[str, Unit]] = {
    "hourly": "hour",
    "daily": "day",
    "weekly": "week",
    "monthly": "month",
    "yearly": "year",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """A span of the calendar; ``str`` gives it as `parse_age` reads it.

    Raises:
        ValueError: a part is negative.
    """

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 0:
                raise ValueError(f"an age cannot have {value} {field.name}")

    def __str__(self) -> str:
        parts = ((self.years, "y"), (self.months, "m"), (self.days, "d"), (self.hours, "h"))
        return "".join(f"{number}{unit}" for number, unit in parts if number) or "0h"

    @property
    def is_zero(self) -> bool:
        """Whether it is no span at all."""
        return not (self.years or self.months or self.days or self.hours)


def parse_age(text: str) -> Age:
    """Read an age such as ``2y5m7d3h``: years, months, days and hours in any order, and weeks (7 days).

    Raises:
        ValueError: not such an age, or a unit stands twice.
    """
    text = text.strip()
    if not _AGE.fullmatch(text):
        raise ValueError(f"{text!r} is not an age such as 7d or 2y5m7d3h (y, m for months, w, d, h)")
    numbers: dict[str, int] = {}
    for number, unit in _AGE_PART.findall(text):
        if unit in numbers:
            raise ValueError(f"{text!r} gives {unit!r} twice")
        numbers[unit] = int(number)
    return Age(
        years=numbers.get("y", 0),
        months=numbers.get("m", 0),
        days=numbers.get("d", 0) + 7 * numbers.get("w", 0),
        hours=numbers.get("h", 0),
    )


def parse_count(text: str) -> int:
    """Read how many backups to keep: a number, or ``unlimited`` (also ``-1``), which is `UNLIMITED`.

    Raises:
        ValueError: neither.
    """
    text = text.strip()
    if text in ("unlimited", "-1"):
        return UNLIMITED
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of backups to keep, nor 'unlimited'")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPolicy:
    """Restic's rules for keeping, as described in this module.

    Attributes:
        keep_last: and the five after it: how many; 0 is no such rule, `UNLIMITED` is all.
        keep_within: and the five after it: how young; None and an age of zero are no such rule.
        keep_tags: lists of tags; a backup with all the tags of any one list stays.

    Raises:
        ValueError: a count below -1, or a list of tags that is empty or no list.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: Age | None = None
    keep_within_hourly: Age | None = None
    keep_within_daily: Age | None = None
    keep_within_weekly: Age | None = None
    keep_within_monthly: Age | None = None
    keep_within_yearly: Age | None = None
    keep_tags: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("last", *_COUNTED_UNITS):
            if self.count_of(name) < UNLIMITED:
                raise ValueError(f"keep_{name} is {self.count_of(name)}; -1 means all, 0 none")
        for tags in self.keep_tags:
            # A text is a sequence of letters too: as a list of tags it would keep nothing.
            if isinstance(tags, str) or not tags:
                raise ValueError(f"keep_tags holds {tags!r}, which is not a list of at least one tag")

    def count_of(self, name: str) -> int:
        """The number behind ``keep_<name>``."""
        count: int = getattr(self, f"keep_{name}")
        return count

    def age_of(self, name: str) -> Age | None:
        """The age behind ``keep_within_<name>``, or `keep_within` for no name; None where there is no such rule."""
        age: Age | None = getattr(self, f"keep_within_{name}" if name else "keep_within")
        return None if age is None or age.is_zero else age

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule at all: such a policy keeps everything."""
        return not (
            self.keep_tags
            or any(self.count_of(name) for name in ("last", *_COUNTED_UNITS))
            or any(self.age_of(name) for name in ("", *_COUNTED_UNITS))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A backup as the rules see it; its time is its id's.

    Raises:
        ValueError: *backup_id* is not an id.
    """

    backup_id: str
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate_backup_id(self.backup_id)

    @property
    def time_ns(self) -> int:
        """When it was made, in nanoseconds since the epoch."""
        return parse_backup_id(self.backup_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a backup; *reasons* has one text for each rule that keeps it, and none where it goes."""

    backup_id: str
    keep: bool
    reasons: tuple[str, ...]


def plan_retention(
    points: Sequence[Point],
    policy: KeepPolicy | RotationPolicy,
    *,
    now_ns: int,
    timezone: tzinfo | None = None,
) -> list[Decision]:
    """Decide which of a key's backups stay.

    Args:
        points: all backups of one key, in any order.
        now_ns: the clock, in nanoseconds since the epoch; what is later is in the future.
        timezone: where hours, days and longer begin; None is this machine's for a `KeepPolicy` and UTC for a
            `RotationPolicy`, as restic and bakthat do.

    Returns:
        One decision a backup, oldest first.

    Raises:
        ValueError: two points have one id.
    """
    ordered = sorted(points, key=lambda point: point.backup_id)
    for older, newer in pairwise(ordered):
        if older.backup_id == newer.backup_id:
            raise ValueError(f"backup {newer.backup_id} is there twice")
    reasons: list[tuple[str, ...]]
    if policy.is_empty:
        reasons = [("policy is empty",)] * len(ordered)
    elif isinstance(policy, KeepPolicy):
        reasons = _reasons_to_keep(ordered, policy, now_ns, timezone)
    else:
        reasons = rotation_reasons(
            [point.time_ns for point in ordered], policy, now_ns=now_ns, timezone=timezone or UTC
        )
    return [
        Decision(backup_id=point.backup_id, keep=bool(why), reasons=why)
        for point, why in zip(ordered, reasons, strict=True)
    ]


@dataclass(slots=True)
class _Rule:
    """A rule that keeps the newest of each period, and how far it has come from the newest to the oldest."""

    unit: Unit | None  # None: every backup is a period of its own
    reason: str
    left: int
    cutoff_ns: int = _BEFORE_ALL_NS
    last_period: int | None = None

    def reason_to_keep(self, time_ns: int, civil: datetime, *, is_oldest: bool) -> str | None:
        """Take the next older backup."""
        if self.left == 0 or time_ns <= self.cutoff_ns:
            return None
        period = time_ns if self.unit is None else period_number(civil, self.unit)
        is_same = period == self.last_period
        if is_same and not is_oldest:
            return None
        self.last_period = period
        if self.left > 0:
            self.left -= 1
        return f"oldest {self.reason}" if is_same else self.reason


def _reasons_to_keep(
    points: Sequence[Point], policy: KeepPolicy, now_ns: int, zone: tzinfo | None
) -> list[tuple[str, ...]]:
    """Why each of *points* (oldest first) stays."""
    past = [point.time_ns for point in points if point.time_ns < now_ns]
    latest_ns = past[-1] if past else None
    rules = _rules_of(policy, latest_ns, zone)
    reasons = []
    for number, point in reversed(list(enumerate(points))):
        time_ns = point.time_ns
        civil = civil_time(time_ns // _NS_PER_SECOND, zone)
        why = [f"has tags [{', '.join(tags)}]" for tags in policy.keep_tags if _has_tags(point, tags)]
        for rule in rules:
            if reason := rule.reason_to_keep(time_ns, civil, is_oldest=number == 0):
                why.append(reason)
        reasons.append(tuple(why))
    return reasons[::-1]


def _rules_of(policy: KeepPolicy, latest_ns: int | None, zone: tzinfo | None) -> list[_Rule]:
    """The rules of a policy in restic's order, but those for tags."""
    rules = []
    if age := policy.age_of(""):
        rules.append(_Rule(None, f"within {age}", UNLIMITED, _cutoff_of(latest_ns, age, zone)))
    rules.append(_Rule(None, "last backup", policy.keep_last))
    for name, unit in _COUNTED_UNITS.items():
        rules.append(_Rule(unit, f"{name} backup", policy.count_of(name)))
    for name, unit in _COUNTED_UNITS.items():
        if age := policy.age_of(name):
            rules.append(_Rule(unit, f"{name} within {age}", UNLIMITED, _cutoff_of(latest_ns, age, zone)))
    return rules


def _has_tags(point: Point, tags: Sequence[str]) -> bool:
    # Restic reads the list in order: where there are no tags, an empty one at its start settles it.
    if not point.tags:
        return tags[0] == ""
    return all(tag in point.tags for tag in tags)


def _cutoff_of(latest_ns: int | None, age: Age, zone: tzinfo | None) -> int:
    """The last moment that is too old for *age*; before all backups where nothing is too old."""
    if latest_ns is None:
        return _BEFORE_ALL_NS
    seconds, rest_ns = divmod(latest_ns, _NS_PER_SECOND)
    civil = civil_time(seconds, zone)
    year, month = divmod(civil.year * 12 + civil.month - 1 - age.years * 12 - age.months, 12)
    if year < 1:
        return _BEFORE_ALL_NS
    try:
        moved = civil.replace(year=year, month=month + 1, day=1) + timedelta(days=civil.day - 1 - age.days)
        moved_seconds = seconds_at(moved, zone)
    except OverflowError:
        return _BEFORE_ALL_NS
    return (moved_seconds - age.hours * 3600) * _NS_PER_SECOND + rest_ns
