"""Which backups of a key stay, by bakthat's rotation settings. No IO.

The settings (days, weeks, months, first_week_day) select what the library that bakthat used, GrandFatherSon,
selects: the *oldest* backup of each of the last n days, weeks and months, counted back from now whether they have
a backup or not, in UTC; and everything that is in the future. Years, hours, minutes and seconds are taken as well,
as bakthat passed them on.

**What is older than the longest of these periods goes, even if no backup is left then**: restic's rules
(``retention.py``) count only periods that have a backup. Where no number is set everything stays; bakthat deleted
everything.

Sources: bakthat 0.6, ``rotate_backups``; GrandFatherSon 1.3, ``filters.py``.
"""

from __future__ import annotations

import re
from calendar import SATURDAY
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import tzinfo
from typing import Final

from incremental_backups_tools.points.periods import Unit, civil_time, period_number

_NS_PER_SECOND: Final = 10**9
_SETTING: Final = re.compile(r"\s*[+-]?[0-9]{1,9}\s*", re.ASCII)
_ROTATED_UNITS: Final[Mapping[str, Unit]] = {
    "years": "year",
    "months": "month",
    "weeks": "week",
    "days": "day",
    "hours": "hour",
    "minutes": "minute",
    "seconds": "second",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPolicy:
    """Bakthat's rotation, as described in this module.

    Attributes:
        years: and the six after it: of how many such periods, the present one included, a backup stays.
        first_week_day: the day that weeks begin with: 0 is Monday, 5 Saturday.

    Raises:
        ValueError: a number below 0.
    """

    years: int = 0
    months: int = 0
    weeks: int = 0
    days: int = 0
    hours: int = 0
    minutes: int = 0
    seconds: int = 0
    first_week_day: int = SATURDAY

    def __post_init__(self) -> None:
        for name in _ROTATED_UNITS:
            if self.number_of(name) < 0:
                raise ValueError(f"rotation keeps {self.number_of(name)} {name}; it cannot be below 0")

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> RotationPolicy:
        """Read the ``rotation`` part of a bakthat configuration: numbers, or texts of numbers.

        Raises:
            ValueError: a name bakthat does not know, or a value that is no whole number, or is below 0.
        """
        unknown = settings.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"rotation has no setting {', '.join(sorted(map(repr, unknown)))}")
        return cls(**{name: _parse_setting(name, value) for name, value in settings.items()})

    def number_of(self, name: str) -> int:
        """How many of the periods called *name* (``days``) are kept."""
        number: int = getattr(self, name)
        return number

    @property
    def is_empty(self) -> bool:
        """Whether no number is set: such a policy keeps everything."""
        return not any(self.number_of(name) for name in _ROTATED_UNITS)


def _parse_setting(name: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _SETTING.fullmatch(value):
        return int(value)
    raise ValueError(f"rotation setting {name!r} is {value!r}, not a whole number")


def rotation_reasons(
    times_ns: Sequence[int], policy: RotationPolicy, *, now_ns: int, timezone: tzinfo
) -> list[tuple[str, ...]]:
    """Why each backup stays; without a reason it goes.

    Args:
        times_ns: when they were made, in nanoseconds since the epoch, oldest first.
        now_ns: the clock, likewise; what is later is in the future and stays.
        timezone: where days and longer begin.
    """
    # The week's first day counts modulo 7, as it does for GrandFatherSon.
    first_week_day = policy.first_week_day % 7
    now = civil_time(now_ns // _NS_PER_SECOND, timezone)
    starts = {
        unit: period_number(now, unit, first_week_day=first_week_day) - policy.number_of(name) + 1
        for name, unit in _ROTATED_UNITS.items()
        if policy.number_of(name)
    }
    seen: set[tuple[Unit, int]] = set()
    reasons: list[tuple[str, ...]] = []
    for time_ns in times_ns:
        if time_ns > now_ns:
            reasons.append(("in the future",))
            continue
        civil = civil_time(time_ns // _NS_PER_SECOND, timezone)
        why = []
        for unit, start in starts.items():
            period = period_number(civil, unit, first_week_day=first_week_day)
            if period >= start and (unit, period) not in seen:
                seen.add((unit, period))
                why.append(f"first of its {unit}")
        reasons.append(tuple(why))
    return reasons
