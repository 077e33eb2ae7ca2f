"""Options that all commands share, and the types of option values."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeVar

import click

from incremental_backups_tools.cli.output import show_library_debugging

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B|)", re.IGNORECASE)
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
REPOSITORY_VARIABLE: Final = "IBT_REPOSITORY"


@dataclass(slots=True)
class Settings:
    """What the options that all commands share say. They may stand before a command's name and behind it."""

    repository: str | None = None
    hot_prefix: str | None = None
    json: bool = False
    quiet: bool = False
    verbosity: int = 0
    threads: int | None = None
    storage_options: dict[str, object] = field(default_factory=dict)
    limit_upload: int | None = None
    limit_download: int | None = None

    @property
    def repository_place(self) -> str | os.PathLike[str] | None:
        """Where the repository is, and what is needed to open it; None is the user's data directory.

        Raises:
            click.UsageError: the configuration file is wrong, or a directory was given a URL's options.
            OSError: the configuration file cannot be read.
        """
        # Help and completion must not import a library.
        from incremental_backups_tools.cli.place import find_place

        return find_place(self, os.environ.get(REPOSITORY_VARIABLE))


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value not in (None, False):
        setattr(context.ensure_object(Settings), str(parameter.name), value)


def _add_verbosity(context: click.Context, parameter: click.Parameter, value: int) -> None:
    settings = context.ensure_object(Settings)
    settings.verbosity += value
    if settings.verbosity >= 2:
        show_library_debugging()


def _set_rate(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        setattr(context.ensure_object(Settings), str(parameter.name), size_of(value, minimum=1))


def _add_storage_options(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
    context.ensure_object(Settings).storage_options.update(storage_options_of(values))


def storage_options_of(values: Iterable[str]) -> dict[str, object]:
    """Storage options out of texts ``NAME=VALUE``.

    Raises:
        click.BadParameter: one of them is not of that form.
    """
    options: dict[str, object] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        options[name] = value_of(text)
    return options


def named_values(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, object]:
    """Callback of options of the form NAME=VALUE."""
    return storage_options_of(values)


def value_of(text: str) -> object:
    """The value of a storage option: what JSON makes of it, and where it is no JSON the text itself.

    ``8080`` is a number, ``true`` and ``null`` are what they say, ``"8080"`` is a text again. A number that JSON
    would change (``1e5``, ``-0``, too long a one) stays a text: keys and passwords may look so.
    """
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, (int, float)) and json.dumps(value) != text:
        return text
    return value


_COMMON: Final = (
    click.option(
        "-r",
        "--repository",
        metavar="URL",
        expose_value=False,
        callback=_set,
        help="Where the backups are: a directory or an fsspec URL.  [default: IBT_REPOSITORY, else a "
        "directory among the user's data]",
    ),
    click.option(
        "--hot-prefix",
        metavar="URL",
        expose_value=False,
        callback=_set,
        help="Where all but the archives of files is, if that is another place: states, signatures, locks.",
    ),
    click.option(
        "--storage-option",
        "storage_options",
        metavar="NAME=VALUE",
        multiple=True,
        expose_value=False,
        callback=_add_storage_options,
        help="What the library behind a URL is told: keys, an endpoint. A value may be JSON. Several times.",
    ),
    click.option(
        "--limit-upload",
        metavar="RATE",
        expose_value=False,
        callback=_set_rate,
        help="Send at most so many bytes a second to a URL, such as 500K or 2M.",
    ),
    click.option(
        "--limit-download",
        metavar="RATE",
        expose_value=False,
        callback=_set_rate,
        help="Fetch at most so many bytes a second from a URL.",
    ),
    click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_set,
        help="Print one JSON document; an error too.",
    ),
    click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_set,
        help="Say nothing but problems and errors.",
    ),
    click.option(
        "-v",
        "--verbose",
        "verbosity",
        count=True,
        expose_value=False,
        callback=_add_verbosity,
        help="Say more; -vv also shows where errors come from.",
    ),
    click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(min=1),
        expose_value=False,
        callback=_set,
        help="Work in at most N threads.  [default: one a processor]",
    ),
)
_COMMON_NAMES: Final = frozenset(
    {
        *("repository", "hot_prefix", "storage_options", "limit_upload", "limit_download"),
        *("json", "quiet", "verbosity", "threads", "help"),
    }
)


def common_options(function: FunctionT) -> FunctionT:
    """Add the options that all commands share; their values are in the context's :class:`Settings`."""
    for option in reversed(_COMMON):
        function = option(function)
    return function


class IbtCommand(click.Command):
    """A command whose help shows its own options first, and then those that all commands share."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                (common if parameter.name in _COMMON_NAMES else own).append(record)
        for heading, records in (("Options", own), ("Common options", common)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def size_of(text: str, *, minimum: int) -> int:
    """A number of bytes: ``256M`` and ``1GiB`` count by 1024, ``256MB`` by 1000, as dd(1) does.

    Raises:
        click.BadParameter: no size, or one below *minimum*.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 256M, 1GiB or 500MB")
    number, prefix, unit = match.groups()
    base = 1000 if unit.upper() == "B" else 1024
    size = int(Decimal(number) * base ** _POWERS[prefix.upper()])
    if size < minimum:
        raise click.BadParameter(f"{text!r} is below the least size, {minimum} bytes")
    return size


def share_of(text: str) -> float:
    """A share from 0 to 1, written as ``50%`` or ``50``.

    Raises:
        click.BadParameter: no such number.
    """
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{text!r} is not a share such as 50%, from 0% to 100%")
    return share


def share_option(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of options that take a share; None where none is given."""
    return None if value is None else share_of(value)
