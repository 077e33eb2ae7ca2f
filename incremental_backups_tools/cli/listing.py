"""``ibt list``: the backups of a repository.

With ``--json``::

    {"backups": [{"id", "key", "kind", "generation", "parent", "time", "start_ns", "end_ns", "source", "host", "tags",
                  "counts": {…}, "bytes": {"total", "read", "added"}, "problem_count",
                  "files": [{"name", "role", "size", "digest"}, …]}, …]}

oldest first. With ``--unique`` there is ``unique`` in ``bytes``, null where it cannot be known. Where a state cannot be
read there is ``"faults": [{"what", "message", "key", "id"}, …]``, and where a key has files but no state
``"stateless": {key: number of files}``.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from itertools import compress
from typing import Any, Final

import click
import msgspec

from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.look import DamagedBackup, Listing, list_backups
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.chain.unique import unique_sizes
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import is_terminal, one_line, print_document, print_line, say
from incremental_backups_tools.cli.protection import open_chosen, reading_options, tell_of_rollback
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text, utc_text
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.layout import parse_backup_id
from incremental_backups_tools.tree.entry import printable

_HEADINGS: Final = ("BACKUP", "KIND", "TIME", "FILES", "SIZE", "ADDED", "UNIQUE", "NOTES")
_NUMERIC: Final = frozenset({"FILES", "SIZE", "ADDED", "UNIQUE"})
_NOTHING: Final = "-"

_Unique = dict[tuple[str, str], int]


@click.command("list", cls=IbtCommand)
@click.argument("key", metavar="[KEY]", required=False, shell_complete=complete_key)
@click.option("--unique", is_flag=True, help="Also the bytes that would be freed if this backup alone went.")
@reading_options
@common_options
@click.pass_obj
def list_command(settings: Settings, key: str | None, unique: bool) -> ExitStatus:
    """List the backups of the repository, or of KEY, oldest first: kind, local time, files, bytes added.

    ADDED is what a backup brought into the repository. UNIQUE is what it alone needs: of a full that others stand
    on that may be little, and a change that the next backup reverts is all its own. It takes reading every state;
    and since files are compressed together, it is an estimate where a backup shares a volume.

    A backup whose state cannot be read is listed as damaged, and the exit status is 1.
    """
    repository = open_chosen(settings)
    listing = list_backups(repository, key)
    stateless = [History(repository, known) for known in listing.stateless]
    for history in (*listing.histories.values(), *stateless):
        tell_of_rollback(repository, history)
    faults = [
        _fault(f"{damaged.key}@{damaged.id}", damaged.message, key=damaged.key, id=damaged.id)
        for damaged in listing.damaged
    ]
    sizes = _read_unique(listing, faults) if unique else None
    for fault in faults:
        say("fault", f"{fault['what']}: {fault['message']}")
    if settings.json:
        _print_json(listing, sizes, faults)
    else:
        _print_text(listing, sizes, settings)
    return ExitStatus.FAILED if faults else ExitStatus.DONE


commands = [list_command]


def _fault(what: str, message: str, **more: str) -> dict[str, str]:
    return {"what": what, "message": one_line(message), **more}


def _read_unique(listing: Listing, faults: list[dict[str, str]]) -> _Unique:
    """The bytes unique to each backup of the keys of which every state can be read; of others a fault."""
    damaged_keys = {damaged.key for damaged in listing.damaged}
    sizes: _Unique = {}
    for key, history in listing.histories.items():
        if key in damaged_keys:
            continue  # what a damaged backup uses is unknown, and that it is damaged is said
        try:
            found = unique_sizes(history)
        except BackupError as error:
            faults.append(_fault(key, str(error), key=key))
            continue
        sizes.update(((key, backup_id), size) for backup_id, size in found.items())
    return sizes


def _print_json(listing: Listing, sizes: _Unique | None, faults: list[dict[str, str]]) -> None:
    document: dict[str, Any] = {"backups": [_record(header, sizes) for header in listing.headers]}
    if faults:
        document["faults"] = faults
    if listing.stateless:
        document["stateless"] = listing.stateless
    print_document(document)


def _print_text(listing: Listing, sizes: _Unique | None, settings: Settings) -> None:
    is_for_people = is_terminal(sys.stdout)
    exact = not is_for_people
    rows = {(header.id, header.key): _row(header, sizes, settings, exact=exact) for header in listing.headers}
    rows.update(((damaged.id, damaged.key), _damaged_row(damaged)) for damaged in listing.damaged)
    shown = [heading != "UNIQUE" or sizes is not None for heading in _HEADINGS]
    table = [list(compress(row, shown)) for row in (_HEADINGS, *(rows[place] for place in sorted(rows)))]
    if is_for_people:
        _print_table(table)
    else:
        _print_columns(table)
    for key, count in listing.stateless.items():
        files = f"only {count_text(count, 'file')} without a state" if count else "nothing yet"
        say("notice", f"{key}: no backup that is whole, {files}" + ("; see ibt salvage" if count else ""))
    if not rows and not listing.stateless:
        say("notice", "the repository has no backup yet")


def _source_text(header: StateHeader) -> str:
    if header.source is not None:
        return one_line(header.source)
    return printable(base64.b64decode(header.source_b64 or ""))


def _row(header: StateHeader, sizes: _Unique | None, settings: Settings, *, exact: bool) -> tuple[str, ...]:
    """One backup's columns. *exact* gives plain numbers, for programs."""
    notes = [f"#{one_line(tag)}" for tag in header.tags]
    if header.problem_count:
        notes.append(count_text(header.problem_count, "problem"))
    if settings.verbosity:
        notes.append(f"{one_line(header.host)}:{_source_text(header)}")
    unique = (sizes or {}).get((header.key, header.id))
    return (
        f"{header.key}@{header.id}",
        header.kind,
        time_text(parse_backup_id(header.id)),
        str(header.counts.files) if exact else f"{header.counts.files:,}",
        _size(header.bytes.total, exact=exact),
        _size(header.bytes.added, exact=exact),
        _size(unique, exact=exact),
        " ".join(notes),
    )


def _damaged_row(damaged: DamagedBackup) -> tuple[str, ...]:
    name = f"{damaged.key}@{damaged.id}"
    return (name, "damaged", time_text(parse_backup_id(damaged.id)), *[_NOTHING] * 4, "")


def _size(size: int | None, *, exact: bool) -> str:
    if size is None:
        return _NOTHING
    return str(size) if exact else size_text(size)


def _print_columns(table: Sequence[Sequence[str]]) -> None:
    headings = table[0]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    for row in table:
        cells = [
            cell.rjust(width) if heading in _NUMERIC else cell.ljust(width)
            for heading, cell, width in zip(headings, row, widths, strict=True)
        ]
        print_line("  ".join(cells).rstrip())


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    # Only people wait for it: its import takes longer than the listing.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in rows[0]:
        table.add_column(
            heading.capitalize(),
            justify="right" if heading in _NUMERIC else "left",
            no_wrap=heading != "NOTES",
            overflow="fold",
        )
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def _record(header: StateHeader, sizes: _Unique | None) -> dict[str, Any]:
    """One backup for JSON. ``bytes.unique`` is there where it was asked for; null where it cannot be known."""
    added = {name: getattr(header.bytes, name) for name in header.bytes.__struct_fields__}
    unique = {} if sizes is None else {"unique": sizes.get((header.key, header.id))}
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
        "bytes": {**added, **unique},
        "problem_count": header.problem_count,
        "files": msgspec.to_builtins(header.files),
    }
