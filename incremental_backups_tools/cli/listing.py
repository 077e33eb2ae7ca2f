"""``ibt list``: the backups of a repository."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
import msgspec

from incremental_backups_tools.chain.history import History, open_history, open_repository
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import is_terminal, one_line, print_document, print_line, say
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text, utc_text
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.layout import parse_backup_id
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import printable

_HEADINGS: Final = ("BACKUP", "KIND", "TIME", "FILES", "SIZE", "ADDED", "NOTES")
_NUMERIC: Final = frozenset({"FILES", "SIZE", "ADDED"})


@dataclass(frozen=True, slots=True)
class _Fault:
    """A backup whose state cannot be read."""

    what: str
    message: str


@click.command("list", cls=IbtCommand)
@click.argument("key", metavar="[KEY]", required=False)
@common_options
@click.pass_obj
def list_command(settings: Settings, key: str | None) -> ExitStatus:
    """List the backups of the repository, or of KEY, oldest first: kind, local time, files, bytes added.

    Where a backup's state cannot be read the others are listed, and the exit status is 1.
    """
    headers, faults = _read_headers(open_repository(settings.repository_place), key)
    for fault in faults:
        say("fault", f"{fault.what}: {fault.message}")
    if settings.json:
        document: dict[str, Any] = {"backups": [_record(header) for header in headers]}
        if faults:
            document["faults"] = [{"what": fault.what, "message": fault.message} for fault in faults]
        print_document(document)
    elif is_terminal(sys.stdout):
        _print_table([_row(header, settings, exact=False) for header in headers])
    else:
        _print_columns([_row(header, settings, exact=True) for header in headers])
    return ExitStatus.FAILED if faults else ExitStatus.DONE


commands = [list_command]


def _read_headers(repository: Repository, key: str | None) -> tuple[list[StateHeader], list[_Fault]]:
    if key is None:
        histories = [History(repository, known) for known in repository.keys()]
    else:
        histories = [open_history(repository, key)]
    headers: list[StateHeader] = []
    faults: list[_Fault] = []
    for history in histories:
        for backup_id in history.backup_ids:
            try:
                headers.append(history.header(backup_id))
            except BackupError as error:
                faults.append(_Fault(f"{history.key}@{backup_id}", one_line(str(error))))
    headers.sort(key=lambda header: (header.id, header.key))
    return headers, faults


def _source_text(header: StateHeader) -> str:
    if header.source is not None:
        return one_line(header.source)
    return printable(base64.b64decode(header.source_b64 or ""))


def _row(header: StateHeader, settings: Settings, *, exact: bool) -> tuple[str, ...]:
    """One backup's columns. *exact* gives plain numbers, for programs."""
    notes = [f"#{one_line(tag)}" for tag in header.tags]
    if header.problem_count:
        notes.append(count_text(header.problem_count, "problem"))
    if settings.verbosity:
        notes.append(f"{one_line(header.host)}:{_source_text(header)}")
    return (
        f"{header.key}@{header.id}",
        header.kind,
        time_text(parse_backup_id(header.id)),
        str(header.counts.files) if exact else f"{header.counts.files:,}",
        str(header.bytes.total) if exact else size_text(header.bytes.total),
        str(header.bytes.added) if exact else size_text(header.bytes.added),
        " ".join(notes),
    )


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    table = [_HEADINGS, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADINGS))]
    for row in table:
        cells = [
            cell.rjust(width) if heading in _NUMERIC else cell.ljust(width)
            for heading, cell, width in zip(_HEADINGS, row, widths, strict=True)
        ]
        print_line("  ".join(cells).rstrip())


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    # Only people wait for it: its import takes longer than the listing.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(
            heading.capitalize(),
            justify="right" if heading in _NUMERIC else "left",
            no_wrap=heading != "NOTES",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _record(header: StateHeader) -> dict[str, Any]:
    """One backup for JSON."""
    return {
        "id": header.id,
        "key": header.key,
        "kind": header.kind,
        "generation": header.generation,
        "parent": header.parent,
        "time": utc_text(parse_backup_id(header.id)),
        "start_ns": header.start_ns,
        "end_ns": header.end_ns,
        "source": _source_text(header),
        "host": header.host,
        "tags": header.tags,
        "counts": {name: getattr(header.counts, name) for name in header.counts.__struct_fields__},
        "bytes": {name: getattr(header.bytes, name) for name in header.bytes.__struct_fields__},
        "problem_count": header.problem_count,
        "files": msgspec.to_builtins(header.files),
    }
