"""Where the snapshots are, and ``NAME@WHEN`` as people write it."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

from incremental_backups_tools.cli.completion_items import complete_directory, points_beginning
from incremental_backups_tools.exceptions import BackupError, RepositoryNotFoundError
from incremental_backups_tools.heap.snapshots.depot import Depot

dest_option: Final = click.option(
    "-d",
    "--dest",
    metavar="DEST",
    required=True,
    shell_complete=complete_directory,
    help="The directory that the snapshots are in.",
)
_LATEST: Final = "latest"


def complete_name(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names in DEST that begin so. Where DEST is not said before, or cannot be read, there are none."""
    try:
        names = _depot(context).names()
    except (BackupError, OSError):
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_snapshot(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As :func:`complete_name`; behind a name's ``@`` its snapshots, newest first, without those that were given."""
    try:
        depot = _depot(context)
        items = points_beginning(incomplete, depot.names(), depot.snapshot_ids)
    except (BackupError, OSError):
        return []
    given = context.params.get(parameter.name or "") or ()
    return [item for item in items if item.value not in given]


def complete_snapshot_or_directory(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """As :func:`complete_snapshot`, and directories: what has a slash in it is one."""
    return [
        *complete_snapshot(context, parameter, incomplete),
        *complete_directory(context, parameter, incomplete),
    ]


def _depot(context: click.Context) -> Depot:
    dest = context.params.get("dest")
    if not dest:
        raise RepositoryNotFoundError("DEST is not said yet")
    return Depot.open(dest)


def split_name(depot: Depot, text: str | None) -> tuple[str | None, str | None]:
    """Name and WHEN of *text*, each None where it is left out. ``latest`` alone is no name unless there is one."""
    name, separator, when = (text or "").rpartition("@")
    if not separator:
        name, when = text or "", ""
    if not when and name == _LATEST and name not in depot.names():
        return None, _LATEST
    return name or None, when or None


def find_snapshot(depot: Depot, text: str | None) -> tuple[str, str]:
    """The root and the id that *text* names: ``NAME@WHEN``, ``NAME``, ``@WHEN`` or ``latest``; None is the newest.

    Raises:
        ChainError: there is no such root or snapshot, or NAME is left out and there are several.
        click.UsageError: WHEN is nothing that could be a time.
    """
    name, when = split_name(depot, text)
    root = name if name is not None else depot.only_name()
    try:
        return root, depot.select(root, when)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None
