"""``ibt diff``: what differs between two backups, or between a backup and a directory.

With ``--json``::

    {"old": {"key", "id"}, "new": {"key", "id"} or {"directory"}, "problems": [{"path", "message"}, …],
     "changes": [{"op", …the new entry, or the one that is gone, "old": {…}}, …]}

and with ``--content`` in each change ``"content": [{"kind", "patch" or "patch_b64", "message"}, …]``: none where no
content changed, two where a file became a symlink or the reverse. ``kind`` is ``text`` (it alone has a patch),
``binary``, ``too-large``, ``link`` or ``unreadable`` (it alone has a message).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from incremental_backups_tools.chain.content_diff import (
    MAX_TEXT_LEN,
    ContentChange,
    LiveVersion,
    Version,
    compare_contents,
    iter_point,
)
from incremental_backups_tools.chain.look import Difference, compare, iter_directory, iter_entries
from incremental_backups_tools.cli.completing import complete_point
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import DocumentList, print_line, say, write_output, write_raw
from incremental_backups_tools.cli.patch_text import content_record, iter_patch, shown_on_terminal
from incremental_backups_tools.cli.points import Point, find_point
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import count_text, entry_record, time_text
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, UPDATED
from incremental_backups_tools.tree.entry import DIRECTORY, ROOT, Entry, printable
from incremental_backups_tools.tree.index import Problem


@dataclass(frozen=True, slots=True)
class _Sides:
    """What is compared: a point, and another one or a directory."""

    repository: Repository
    before: Point
    after: Point | None
    directory: str

    @property
    def names(self) -> dict[str, Any]:
        """Both sides for JSON."""
        after = self.after
        directory = {"directory": printable(os.fsencode(os.path.abspath(self.directory)))}
        return {
            "old": _point_record(self.before),
            "new": directory if after is None else _point_record(after),
        }


@click.command("diff", cls=IbtCommand)
@click.argument("old", metavar="KEY@A", shell_complete=complete_point)
@click.argument("new", metavar="KEY@B|DIR", shell_complete=complete_point)
@click.option(
    "--content", is_flag=True, help="Show how texts differ: a patch for 'git apply' or 'patch -p1'."
)
@reading_options
@common_options
@click.pass_obj
def diff(settings: Settings, old: str, new: str, content: bool) -> ExitStatus:
    """Show what leads from the backup KEY@A to the backup KEY@B, or to the directory DIR as it is now.

    \b
      +  new, or of another type than before
      ~  other content
      m  same content, other metadata
      -  gone

    with the size in bytes. The second argument is a directory if it has a slash in it, or has no @ and is the
    name of a directory that is there: write ./DIR or KEY@latest to be sure. Every file of DIR is read.

    With --content the changed files are shown as unified diffs, and symlinks by their targets. Of binary files (a NUL
    among the first 8,000 bytes), of those larger than 8 MiB and of further names of a file it only says so; other
    metadata, directories and special files have no content. On a terminal control characters are shown escaped, to
    a pipe or a file bytes go as they are.

    What cannot be read is named and not compared; the exit status is 3 then.
    """
    repository = open_chosen(settings)
    before = find_point(repository, old)
    after = None if _names_directory(new) else find_point(repository, new)
    sides = _Sides(repository, before, after, new)
    problems = _Problems()
    changes = _iter_contents(sides, problems) if content else _iter_differences(sides, problems)
    if settings.json:
        _print_json(changes, sides, problems, content=content)
    elif content:
        _print_patches(changes)
    else:
        _print_lines(changes, settings)
    for problem in problems.found:
        say("problem", str(problem))
    return ExitStatus.INCOMPLETE if problems.found else ExitStatus.DONE


commands = [diff]


class _Problems:
    """What could not be read. Nothing is known of it, nor of what lies below it."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._paths: set[bytes] = set()

    def add(self, path: bytes, message: str) -> None:
        self.found.append(Problem(path, message))
        self._paths.add(path)

    def hide(self, path: bytes) -> bool:
        """Whether *path* only seems to be gone: it, or a directory on the way to it, could not be read."""
        if not self._paths:
            return False
        if path in self._paths or ROOT in self._paths:
            return True
        return any(path[:end] in self._paths for end in range(len(path)) if path[end : end + 1] == b"/")


def _names_directory(text: str) -> bool:
    if os.sep in text or text in (os.curdir, os.pardir):
        return True
    return "@" not in text and os.path.isdir(text)


_Change = tuple[Difference, list[ContentChange]]


def _iter_differences(sides: _Sides, problems: _Problems) -> Iterator[_Change]:
    if sides.after is not None:
        entries = _entries(sides.after, sides.repository)
    else:
        entries = (live.entry for live in iter_directory(sides.directory, on_problem=problems.add))
    for difference in compare(entries, _entries(sides.before, sides.repository)):
        if difference.op != DELETED or not problems.hide(difference.entry.path):
            yield difference, []


def _iter_contents(sides: _Sides, problems: _Problems) -> Iterator[_Change]:
    versions: Iterator[Version]
    if sides.after is not None:
        versions = iter_point(sides.repository, sides.after.history, sides.after.header.id)
    else:
        live = iter_directory(sides.directory, on_problem=problems.add, keep_len=MAX_TEXT_LEN)
        versions = (LiveVersion(item) for item in live)
    old = iter_point(sides.repository, sides.before.history, sides.before.header.id)
    for difference, contents in compare_contents(versions, old):
        if difference.op == DELETED and problems.hide(difference.entry.path):
            continue
        for content in contents:
            if content.message is not None:
                problems.add(difference.entry.path, content.message)
        yield difference, contents


def _entries(point: Point, repository: Repository) -> Iterator[Entry]:
    for resolved in iter_entries(point.header.key, at=point.header.id, repository=repository):
        yield resolved.entry


def _print_lines(changes: Iterable[_Change], settings: Settings) -> None:
    counts: Counter[str] = Counter()
    for difference, _ in changes:
        counts[difference.op] += 1
        print_line(difference_line(difference))
    if settings.verbosity:
        words = ((CREATED, "new"), (UPDATED, "changed"), (METADATA, "with other metadata"), (DELETED, "gone"))
        say("notice", ", ".join(f"{counts[op]:,} {word}" for op, word in words))


def _print_patches(changes: Iterable[_Change]) -> None:
    escape = sys.stdout is not None and sys.stdout.isatty()
    for _, contents in changes:
        for content in contents:
            if escape:
                for line in iter_patch(content):
                    write_output(shown_on_terminal(line))
            else:
                write_raw(b"".join(iter_patch(content)))


def difference_line(difference: Difference) -> str:
    """A difference as a person sees it."""
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


def _print_json(changes: Iterable[_Change], sides: _Sides, problems: _Problems, *, content: bool) -> None:
    with DocumentList("changes") as document:
        for difference, contents in changes:
            record: dict[str, Any] = {"op": difference.op, **entry_record(difference.entry)}
            if difference.old is not None and difference.op != DELETED:
                record["old"] = entry_record(difference.old)
            if content:
                record["content"] = [content_record(change) for change in contents]
            document.add(record)
        found = [{"path": printable(item.path), "message": item.message} for item in problems.found]
        document.print({**sides.names, "problems": found})


def _point_record(point: Point) -> dict[str, str]:
    return {"key": point.header.key, "id": point.header.id}
