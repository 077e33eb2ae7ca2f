"""``ibt diff``: what differs between two backups, or between a backup and a directory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import click

from incremental_backups_tools.chain.history import open_repository
from incremental_backups_tools.chain.look import Difference, compare, iter_directory, iter_entries
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import DocumentList, print_line, say
from incremental_backups_tools.cli.points import Point, find_point
from incremental_backups_tools.cli.rendering import count_text, entry_record, time_text
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, UPDATED
from incremental_backups_tools.tree.entry import DIRECTORY, Entry, printable
from incremental_backups_tools.tree.index import Problem


@click.command("diff", cls=IbtCommand)
@click.argument("old", metavar="KEY@A")
@click.argument("new", metavar="KEY@B|DIR")
@common_options
@click.pass_obj
def diff(settings: Settings, old: str, new: str) -> ExitStatus:
    """Show what leads from the backup KEY@A to the backup KEY@B, or to the directory DIR as it is now.

    \b
      +  new, or of another type than before
      ~  other content
      m  same content, other metadata
      -  gone

    with the size in bytes. The second argument is a directory if it has a slash in it, or has no @ and is the
    name of a directory that is there: write ./DIR or KEY@latest to be sure. Every file of DIR is read.
    """
    repository = open_repository(settings.repository_place)
    before = find_point(repository, old)
    problems: list[Problem] = []
    if _names_directory(new):
        after = None
        entries = iter_directory(
            new, on_problem=lambda path, message: problems.append(Problem(path, message))
        )
    else:
        after = find_point(repository, new)
        entries = _entries(after, repository)
    differences = compare(entries, _entries(before, repository))
    if settings.json:
        _print_json(differences, before, after, new, problems)
    else:
        _print_lines(differences, settings)
    for problem in problems:
        say("problem", str(problem))
    return ExitStatus.INCOMPLETE if problems else ExitStatus.DONE


commands = [diff]


def _names_directory(text: str) -> bool:
    if os.sep in text or text in (os.curdir, os.pardir):
        return True
    return "@" not in text and os.path.isdir(text)


def _entries(point: Point, repository: Repository) -> Iterator[Entry]:
    for resolved in iter_entries(point.header.key, at=point.header.id, repository=repository):
        yield resolved.entry


def _print_lines(differences: Iterable[Difference], settings: Settings) -> None:
    counts: Counter[str] = Counter()
    for difference in differences:
        counts[difference.op] += 1
        print_line(_line(difference))
    if settings.verbosity:
        words = ((CREATED, "new"), (UPDATED, "changed"), (METADATA, "with other metadata"), (DELETED, "gone"))
        say("notice", ", ".join(f"{counts[op]:,} {word}" for op, word in words))


def _line(difference: Difference) -> str:
    entry, old = difference.entry, difference.old
    path = printable(entry.path) + ("/" if entry.type == DIRECTORY else "")
    line = f"{difference.op} {entry.size:>12} {path}"
    if entry.target is not None:
        line += f" -> {printable(entry.target)}"
    notes = _notes(difference.op, entry, old) if old is not None else []
    return f"{line}  ({', '.join(notes)})" if notes else line


def _notes(op: str, entry: Entry, old: Entry) -> list[str]:
    """What it was before."""
    if op == CREATED:
        return [f"was a {old.type}"]
    if op == UPDATED:
        return [f"was {count_text(old.size, 'byte')}"] if old.size != entry.size else []
    if op == DELETED:
        return []
    notes = []
    if entry.mode != old.mode:
        notes.append(f"mode {old.mode:04o} -> {entry.mode:04o}")
    if (entry.uid, entry.gid, entry.user, entry.group) != (old.uid, old.gid, old.user, old.group):
        notes.append(f"owner {_owner(old)} -> {_owner(entry)}")
    if entry.mtime_ns != old.mtime_ns:
        notes.append(f"time {time_text(old.mtime_ns)} -> {time_text(entry.mtime_ns)}")
    if entry.xattrs != old.xattrs or entry.acl != old.acl or entry.flags != old.flags:
        notes.append("attributes")
    return notes


def _owner(entry: Entry) -> str:
    user = printable(entry.user) if entry.user else str(entry.uid)
    group = printable(entry.group) if entry.group else str(entry.gid)
    return f"{user}:{group}"


def _print_json(
    differences: Iterable[Difference], before: Point, after: Point | None, new: str, problems: list[Problem]
) -> None:
    with DocumentList("changes") as document:
        for difference in differences:
            record: dict[str, Any] = {"op": difference.op, **entry_record(difference.entry)}
            if difference.old is not None and difference.op != DELETED:
                record["old"] = entry_record(difference.old)
            document.add(record)
        target = {"directory": printable(os.fsencode(os.path.abspath(new)))}
        document.print(
            {
                "old": {"key": before.header.key, "id": before.header.id},
                "new": target if after is None else {"key": after.header.key, "id": after.header.id},
                "problems": [{"path": printable(item.path), "message": item.message} for item in problems],
            }
        )
