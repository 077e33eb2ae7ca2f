"""``ibt salvage``: restore all that can be had of a damaged repository."""

from __future__ import annotations

import json
import os

import click

from incremental_backups_tools.chain.salvage import SalvageReport, salvage
from incremental_backups_tools.cli.completing import complete_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import count_text
from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.tree.entry import printable

REPORT_NAME = "salvage-report"


@click.command("salvage", cls=IbtCommand)
@click.argument("dest", metavar="DEST")
@click.argument("keys", metavar="[KEY]...", nargs=-1, shell_complete=complete_key)
@reading_options
@common_options
@click.pass_obj
def salvage_command(settings: Settings, dest: str, keys: tuple[str, ...]) -> ExitStatus:
    """Restore all that can be had of a repository that lost states or volumes, each key into DEST/KEY.

    DEST must not exist, or be empty. The newest point that is whole is restored; what its volumes have lost is
    taken from older versions, and whatever newer or unnamed volumes still hold is added. What is not simply
    restored is listed in DEST/salvage-report.txt and .json, and the exit status is 3.
    """
    if not dest:
        raise click.UsageError("DEST is empty", click.get_current_context())
    repository = open_chosen(settings)
    warn_of_slow_kernel()
    report = salvage(dest, repository=repository, keys=list(keys) or None)
    _write_report(report, dest)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        for line in _lines(report):
            print_line(line)
    if report.notes:
        say(
            "notice",
            f"what is not simply restored is listed in {printable(os.fsencode(dest))}/{REPORT_NAME}.txt",
        )
    return ExitStatus.INCOMPLETE if report.notes else ExitStatus.DONE


commands = [salvage_command]


def _write_report(report: SalvageReport, dest: str) -> None:
    text = "\n".join(_lines(report)) + "\n"
    document = json.dumps(report.to_dict(), indent=1) + "\n"
    for suffix, content in (("txt", text), ("json", document)):
        with atomic_write(os.path.join(dest, f"{REPORT_NAME}.{suffix}")) as file:
            file.write(content.encode())


def _lines(report: SalvageReport) -> list[str]:
    lines = [
        f"{key}: {f'as of {point}' if point else 'no point is whole'}" for key, point in report.points.items()
    ]
    for note in report.notes:
        what = f"{note.key}/{printable(note.path)}" if note.path else f"{note.key}@{note.backup_id}"
        version = f" ({note.backup_id})" if note.path and note.backup_id else ""
        lines.append(f"{note.status:8} {what}{version}: {note.message}")
    lines.append(f"{count_text(report.restored, 'name')} restored")
    return lines
