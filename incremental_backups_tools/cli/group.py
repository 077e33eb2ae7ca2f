"""A click group that knows its commands by a table and imports each one's module when it is called."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command that is not imported yet.

    Attributes:
        module: has the command in its list ``commands``.
        section: the heading under which the group's help shows it.
        summary: one line for that help.
    """

    name: str
    module: str
    section: str
    summary: str

    def load(self) -> click.Command:
        """Import the command."""
        commands: list[click.Command] = importlib.import_module(self.module).commands
        return next(command for command in commands if command.name == self.name)


class LazyGroup(click.Group):
    """The group over *commands_table*, in the table's order."""

    def __init__(self, *args: Any, commands_table: tuple[LazyCommand, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = {entry.name: entry for entry in commands_table}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._table.get(cmd_name)
        return entry.load() if entry is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, not from the commands: help must not import everything.
        sections: dict[str, list[tuple[str, str]]] = {}
        for entry in self._table.values():
            sections.setdefault(entry.section, []).append((entry.name, entry.summary))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
