"""``ibt find``: which backups hold a name."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import click

from incremental_backups_tools.chain.history import History, open_history
from incremental_backups_tools.chain.lineage import carrying_headers
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import DocumentList, print_line, say
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import entry_record, long_line
from incremental_backups_tools.tree.diff import DELETED
from incremental_backups_tools.tree.entry import Entry, sort_key

Matcher = Callable[[bytes], bool]


@click.command("find", cls=IbtCommand)
@click.argument("pattern", metavar="PATTERN")
@click.argument("key", metavar="[KEY]", required=False, shell_complete=complete_key)
@reading_options
@common_options
@click.pass_obj
def find(settings: Settings, pattern: str, key: str | None) -> ExitStatus:
    """Find which backups, of all keys or of KEY, hold a name that matches PATTERN; oldest first.

    PATTERN is a glob: 'report-*.odt' matches names wherever they lie; with a slash, 'docs/**/*.odt', it matches
    whole paths, and ** stands for any number of directories.
    """
    repository = open_chosen(settings)
    matches = compile_pattern(pattern)
    keys = repository.keys() if key is None else [open_history(repository, key).key]
    hits = (hit for known in keys for hit in _iter_hits(History(repository, known), matches))
    if settings.json:
        with DocumentList("matches") as document:
            for header, entry in hits:
                document.add(_record(header, entry))
            document.print({"pattern": pattern})
        return ExitStatus.DONE
    count = 0
    for header, entry in hits:
        print_line(f"{header.key}@{header.id} {long_line(entry)}")
        count += 1
    if not count and not settings.quiet:
        say("notice", f"no backup holds a name that matches {pattern}")
    return ExitStatus.DONE


commands = [find]


def compile_pattern(pattern: str) -> Matcher:
    """A function that says whether a path matches: by its last name, or with a slash in *pattern* as a whole."""
    parts = [part for part in pattern.split("/") if part]
    if not parts:
        raise click.UsageError(f"PATTERN {pattern!r} names nothing", click.get_current_context(silent=True))
    if "/" not in pattern:
        name = re.compile(fnmatch.translate(pattern))
        return lambda path: name.match(os.fsdecode(path.rpartition(b"/")[2])) is not None
    compiled = [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]
    return lambda path: _match_parts(compiled, os.fsdecode(path).split("/"))


def _match_parts(patterns: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Whether *names* match *patterns* one by one; None stands for any number of names."""
    reached = {0}  # how many patterns may be behind us
    for name in names:
        after: set[int] = set()
        for position in _skip_stars(patterns, reached):
            if position == len(patterns):
                continue
            part = patterns[position]
            if part is None:
                after.add(position)
            elif part.match(name):
                after.add(position + 1)
        reached = after
    return len(patterns) in _skip_stars(patterns, reached)


def _skip_stars(patterns: list[re.Pattern[str] | None], positions: set[int]) -> set[int]:
    """*positions*, and those beyond each None, which may also stand for no name at all."""
    skipped = set(positions)
    for position in positions:
        while position < len(patterns) and patterns[position] is None:
            position += 1
            skipped.add(position)
    return skipped


def _iter_hits(history: History, matches: Matcher) -> Iterator[tuple[StateHeader, Entry]]:
    """The matching entries of every backup that is listed, oldest backup first.

    Each state is read once and no index is resolved: what a backup holds is what its parent holds, changed
    by its own lines. Only the matches of backups that others still stand on are kept.
    """
    headers = carrying_headers(history)
    points = frozenset(history.backup_ids)
    children = Counter(header.parent for header in headers)
    held: dict[str, dict[bytes, Entry]] = {}
    for header in headers:
        current: dict[bytes, Entry] = {}
        if header.parent is not None:
            current = dict(held[header.parent])
            children[header.parent] -= 1
            if not children[header.parent]:
                del held[header.parent]
        for line in history.lines(header.id):
            if not matches(line.path):
                continue
            if line.op == DELETED:
                current.pop(line.path, None)
            else:
                current[line.path] = line.entry
        if children[header.id]:
            held[header.id] = current
        if header.id in points:
            for path in sorted(current, key=sort_key):
                yield header, current[path]


def _record(header: StateHeader, entry: Entry) -> dict[str, Any]:
    return {"key": header.key, "id": header.id, **entry_record(entry)}
