"""``ibt stats``: what backups cost, and which paths change most.

With ``--json``::

    {"keys": [{"key", "points", "backups", "fulls", "oldest", "newest", "tree": {"files", "bytes"}, "point_bytes",
               "stored": {"whole", "deltas", "signatures", "replay", "states", "other", "total"}, "ratio"}],
     "faults": [{"what", "message"}],
     "cost": {"key", "total": COST, "children": [COST, …], "changing": [COST, …]} or null}

where a COST is ``{"path" or "path_b64", "names", "versions", "changes", "whole", "deltas", "signatures", "total"}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import click

from incremental_backups_tools.chain.cost import (
    DELTAS,
    OTHER,
    REPLAY,
    SIGNATURES,
    STATES,
    WHOLE,
    CostReport,
    KeyTotals,
    PathCost,
    key_totals,
    path_cost,
)
from incremental_backups_tools.chain.history import History, open_history
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import one_line, print_document, print_line, say
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.layout import parse_backup_id
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import ROOT, printable, text_or_b64

_WORDS: Final = (
    (WHOLE, "whole copies"),
    (DELTAS, "deltas"),
    (SIGNATURES, "signatures"),
    (REPLAY, "replay lists"),
    (STATES, "states"),
    (OTHER, "that no point needs"),
)
_HEADINGS: Final = ("STORED", "WHOLE", "DELTAS", "SIGNATURES", "VERSIONS", "CHANGES", "PATH")


@click.command("stats", cls=IbtCommand)
@click.argument("key", metavar="[KEY]", required=False, shell_complete=complete_key)
@click.argument("path", metavar="[PATH]", required=False)
@click.option(
    "--top",
    metavar="N",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Show so many of the costliest paths and of those that change most.",
)
@reading_options
@common_options
@click.pass_obj
def stats(settings: Settings, key: str | None, path: str | None, top: int) -> ExitStatus:
    """Show what the backups of each key take in the repository; of KEY also where it goes.

    Of KEY (which may be left out where there is one), or of the file or directory PATH in it, over all its backups: the
    bytes that it costs as whole copies, deltas and signatures, how many versions are kept, and how many
    incremental backups found it new, changed or gone; then the same of what lies directly in it, the costliest
    first, and of the files that change most. What a path costs is an estimate: files are compressed together. A
    content that several paths share is counted for the first.

    Where a state cannot be read the other keys are shown, and the exit status is 1.
    """
    repository = open_chosen(settings)
    histories = _histories(repository, key)
    totals: list[KeyTotals] = []
    faults: list[dict[str, str]] = []
    for history in histories:
        try:
            totals.append(key_totals(repository, history))
        except BackupError as error:
            if key is not None:
                raise
            faults.append({"what": history.key, "message": one_line(str(error))})
    cost = None
    if len(histories) == 1 and not faults:
        cost = path_cost(histories[0], path if path is not None else ROOT, top=top)
    for fault in faults:
        say("fault", f"{fault['what']}: {fault['message']}")
    if settings.json:
        _print_json(totals, faults, cost)
    else:
        _print_text(totals, cost, histories)
    return ExitStatus.FAILED if faults else ExitStatus.DONE


commands = [stats]


def _histories(repository: Repository, key: str | None) -> list[History]:
    if key is not None:
        return [open_history(repository, key)]
    found = [History(repository, known) for known in repository.keys()]
    return [history for history in found if history.backup_ids]


def _print_text(totals: Sequence[KeyTotals], cost: CostReport | None, histories: Sequence[History]) -> None:
    for item in totals:
        _print_totals(item)
    if not histories:
        say("notice", "the repository has no backup yet")
    if cost is None:
        return
    print_line("")
    _print_table([cost.total, *cost.children])
    if cost.changing:
        print_line("")
        print_line("what changes most:")
        _print_table(cost.changing)


def _print_totals(totals: KeyTotals) -> None:
    chains = count_text(totals.fulls, "full")
    hidden = totals.backups - totals.points
    standing = f", {count_text(hidden, 'more')} that they stand on" if hidden else ""
    first, last = (time_text(parse_backup_id(backup_id)) for backup_id in (totals.oldest, totals.newest))
    print_line(f"{totals.key}: {count_text(totals.points, 'point')} ({chains}){standing}, {first} to {last}")
    print_line(f"  the newest tree: {count_text(totals.tree_files, 'file')}, {size_text(totals.tree_bytes)}")
    print_line(f"  all trees: {size_text(totals.point_bytes)}")
    ratio = _ratio(totals)
    times = f", {ratio:.1f} times smaller than all trees" if ratio is not None else ""
    print_line(f"  stored: {size_text(totals.stored_bytes)}{times}")
    for kind, words in _WORDS:
        if totals.stored[kind]:
            print_line(f"    {size_text(totals.stored[kind]):>10}  {words}")


def _print_table(costs: Sequence[PathCost]) -> None:
    rows = [_HEADINGS, *(_row(cost) for cost in costs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS) - 1)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        print_line("  ".join([*cells, row[-1]]))


def _row(cost: PathCost) -> tuple[str, ...]:
    sizes = (cost.total, cost.whole, cost.deltas, cost.signatures)
    return (*map(size_text, sizes), f"{cost.versions:,}", f"{cost.changes:,}", printable(cost.path))


def _ratio(totals: KeyTotals) -> float | None:
    return totals.point_bytes / totals.stored_bytes if totals.stored_bytes else None


def _print_json(totals: Sequence[KeyTotals], faults: list[dict[str, str]], cost: CostReport | None) -> None:
    document: dict[str, Any] = {
        "keys": [_totals_record(item) for item in totals],
        "faults": faults,
        "cost": None,
    }
    if cost is not None:
        document["cost"] = {
            "key": totals[0].key,
            "total": _cost_record(cost.total),
            "children": [_cost_record(item) for item in cost.children],
            "changing": [_cost_record(item) for item in cost.changing],
        }
    print_document(document)


def _totals_record(totals: KeyTotals) -> dict[str, Any]:
    ratio = _ratio(totals)
    return {
        "key": totals.key,
        "points": totals.points,
        "backups": totals.backups,
        "fulls": totals.fulls,
        "oldest": totals.oldest,
        "newest": totals.newest,
        "tree": {"files": totals.tree_files, "bytes": totals.tree_bytes},
        "point_bytes": totals.point_bytes,
        "stored": {**totals.stored, "total": totals.stored_bytes},
        "ratio": round(ratio, 3) if ratio is not None else None,
    }


def _cost_record(cost: PathCost) -> dict[str, Any]:
    record = asdict(cost)
    text, encoded = text_or_b64(record.pop("path"))
    name = {"path": text} if encoded is None else {"path_b64": encoded}
    return {**name, **record, "total": cost.total}
