"""Where the snapshots are, and ``NAME@WHEN`` as people write it."""

from __future__ import annotations

from typing import Final

import click

from incremental_backups_tools.heap.snapshots.depot import Depot

dest_option: Final = click.option(
    "-d", "--dest", metavar="DEST", required=True, help="The directory that the snapshots are in."
)
_LATEST: Final = "latest"


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
