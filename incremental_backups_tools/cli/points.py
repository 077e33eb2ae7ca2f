"""``KEY@WHEN`` as people write it, and the backup that it names."""

from __future__ import annotations

from dataclasses import dataclass

import click

from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.look import only_key, point_header, split_point
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.cli.protection import tell_of_rollback
from incremental_backups_tools.points.when import LATEST
from incremental_backups_tools.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Point:
    """A backup that was found: its header, and the history of its key."""

    history: History
    header: StateHeader

    @property
    def name(self) -> str:
        """``KEY@ID``."""
        return f"{self.header.key}@{self.header.id}"


def find_point(repository: Repository, text: str | None) -> Point:
    """The backup that *text* names: ``KEY@WHEN``, ``KEY``, ``@WHEN`` or ``latest``; None is the newest of the only key.

    Raises:
        ChainError: there is no such key or backup, or KEY is left out and there are several.
        click.UsageError: WHEN is nothing that could be a time.
    """
    key, when = split_key(repository, text)
    try:
        history, header = point_header(repository, key if key is not None else only_key(repository), when)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None
    tell_of_rollback(repository, history)
    return Point(history, header)


def split_key(repository: Repository, text: str | None) -> tuple[str | None, str | None]:
    """Key and WHEN of *text*, each None where it is left out. ``latest`` alone is no key unless there is one."""
    key, when = split_point(text or "")
    if when is None and key == LATEST and key not in repository.keys():
        return None, LATEST
    return key, when
