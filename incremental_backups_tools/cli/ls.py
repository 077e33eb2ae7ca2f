"""``ibt ls``: what a backup holds."""

from __future__ import annotations

import click

from incremental_backups_tools.chain.look import iter_entries
from incremental_backups_tools.cli.completing import complete_point
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import DocumentList, print_line
from incremental_backups_tools.cli.points import find_point
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import entry_record, long_line
from incremental_backups_tools.tree.selection import Selection


@click.command("ls", cls=IbtCommand)
@click.argument("point", metavar="[KEY[@WHEN]]", required=False, shell_complete=complete_point)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@reading_options
@common_options
@click.pass_obj
def ls(settings: Settings, point: str | None, paths: tuple[str, ...]) -> ExitStatus:
    """List what a backup holds, as 'ls -l': all of it, or each PATH with everything below.

    The backup is KEY@WHEN, KEY for its newest, or @WHEN or 'latest' where the repository has one key. A PATH is
    relative to the backup's root and may be a pattern: * and ? within one name, ** across directories.
    """
    repository = open_chosen(settings)
    found = find_point(repository, point)
    selection = Selection(paths)
    entries = (
        resolved.entry
        for resolved in iter_entries(found.header.key, at=found.header.id, repository=repository)
        if selection.matches(resolved.path)
    )
    if not settings.json:
        for entry in entries:
            print_line(long_line(entry))
        selection.check_all_matched()
        return ExitStatus.DONE
    with DocumentList("entries") as document:
        for entry in entries:
            document.add(entry_record(entry))
        selection.check_all_matched()
        document.print({"key": found.header.key, "id": found.header.id})
    return ExitStatus.DONE


commands = [ls]
