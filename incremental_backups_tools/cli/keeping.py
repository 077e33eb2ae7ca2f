"""The options that say which points in time stay, as restic names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from incremental_backups_tools.chain.prune_plan import DEFAULT_MAX_UNUSED
from incremental_backups_tools.cli.options import share_option
from incremental_backups_tools.points.retention import Age, KeepPolicy, parse_age, parse_count
from incremental_backups_tools.points.rotation import RotationPolicy

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_UNITS: Final = ("hourly", "daily", "weekly", "monthly", "yearly")


def _count(context: click.Context, parameter: click.Parameter, value: str | None) -> int:
    try:
        return 0 if value is None else parse_count(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> Age | None:
    try:
        return None if value is None else parse_age(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _tag_lists(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(tag.strip() for tag in text.split(",")) for text in value)


def _rotation(context: click.Context, parameter: click.Parameter, value: str | None) -> RotationPolicy | None:
    if value is None:
        return None
    try:
        settings = dict(part.split("=", 1) for part in value.split(","))
        return RotationPolicy.from_settings({name.strip(): number for name, number in settings.items()})
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}", context, parameter) from None


_BY_TIME: Final = (
    click.option("--keep-last", metavar="N", callback=_count, help="Keep the newest N points in time."),
    *(
        click.option(
            f"--keep-{unit}",
            metavar="N",
            callback=_count,
            help=f"Keep the newest point of each of the last N {period} that have one.",
        )
        for unit, period in zip(_UNITS, ("hours", "days", "weeks", "months", "years"), strict=True)
    ),
    click.option(
        "--keep-within", metavar="AGE", callback=_age, help="Keep all that are younger than AGE: 2y5m7d3h."
    ),
    *(
        click.option(
            f"--keep-within-{unit}",
            metavar="AGE",
            callback=_age,
            help=f"As --keep-{unit}, of all that are younger than AGE.",
        )
        for unit in _UNITS
    ),
    click.option(
        "--rotation",
        metavar="SETTINGS",
        callback=_rotation,
        help="Keep by bakthat's settings instead: days=7,weeks=4,months=6,first_week_day=5.",
    ),
)


_OPTIONS: Final = (
    *_BY_TIME,
    click.option(
        "--keep-tag",
        "keep_tags",
        metavar="TAG[,TAG]...",
        multiple=True,
        callback=_tag_lists,
        help="Keep points that have all these tags.",
    ),
    click.option(
        "--max-unused",
        metavar="SHARE",
        default=f"{DEFAULT_MAX_UNUSED:.0%}",
        show_default=True,
        callback=share_option,
        help="Leave expired backups that others stand on as they are, as long as less than this is free by it.",
    ),
)


def keep_by_time_options(function: FunctionT) -> FunctionT:
    """As :func:`keep_options`, for points that have no tags and stand on no others."""
    for option in reversed(_BY_TIME):
        function = option(function)
    return function


def keep_options(function: FunctionT) -> FunctionT:
    """Add the options; their values are read by :func:`policy_of`, but for ``max_unused``."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def policy_of(values: dict[str, Any]) -> KeepPolicy | RotationPolicy:
    """The policy that the options make; it takes their values out of *values*.

    Raises:
        click.UsageError: rules of both kinds.
    """
    rotation: RotationPolicy | None = values.pop("rotation")
    names = [name for name in values if name.startswith("keep_")]
    policy = KeepPolicy(**{name: values.pop(name) for name in names})
    if rotation is None:
        return policy
    if not policy.is_empty:
        raise click.UsageError("--rotation cannot stand beside --keep-*", click.get_current_context())
    return rotation
