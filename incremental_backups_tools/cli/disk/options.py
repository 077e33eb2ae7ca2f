"""Options and arguments that the commands on disks share."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final

import click
from click.shell_completion import CompletionItem

from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import Settings, size_of
from incremental_backups_tools.cli.output import say
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.disks import iter_disks
from incremental_backups_tools.points.when import parse_age, parse_moment
from incremental_backups_tools.repository.locations import default_disk_catalogue
from incremental_backups_tools.tree.index import Problem

_VARIABLE: Final = "IBT_DISK_CATALOGUE"

catalogue_option: Final = click.option(
    "--catalogue",
    "directory",
    metavar="DIR",
    envvar=_VARIABLE,
    callback=lambda context, parameter, value: value or default_disk_catalogue(),
    help=f"Where the catalogue is.  [default: {_VARIABLE}, else a directory among the user's data]",
)
dry_run_option: Final = click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be done, and write nothing."
)
place_option: Final = click.option(
    "--at-place", "place", metavar="DIR", help="Where the disk is.  [default: it is looked for]"
)


def complete_disk(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of disks that begin so. Where there is no catalogue that can be read there are none."""
    directory = context.params.get("directory") or os.environ.get(_VARIABLE) or default_disk_catalogue()
    try:
        with Catalogue.open(directory, writing=False) as catalogue:
            names = [disk.name for disk in iter_disks(catalogue)]
    except (BackupError, OSError):
        return []
    given = context.params.get(parameter.name or "") or ()
    return [CompletionItem(name) for name in names if name.startswith(incomplete) and name not in given]


def optional_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of options that take a size."""
    return None if value is None else size_of(value, minimum=0)


def optional_age(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of options that take an age; in nanoseconds."""
    try:
        return None if value is None else int(parse_age(value).total_seconds() * 10**9)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def optional_moment(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of options that take a moment; in nanoseconds since 1970."""
    try:
        return None if value is None else parse_moment(value, now=datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def status_of(problems: list[Problem], settings: Settings) -> ExitStatus:
    """Tell about problems, and what they make of the exit status."""
    for problem in problems:
        say("problem", str(problem))
    return ExitStatus.INCOMPLETE if problems else ExitStatus.DONE


def usage_error(message: str) -> click.UsageError:
    """A mistake in what was asked for."""
    return click.UsageError(message, click.get_current_context(silent=True))
