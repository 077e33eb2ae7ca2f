"""``ibt snapshot restore``: restore a snapshot."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import click

from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import count_text, duration_text, size_text
from incremental_backups_tools.cli.snapshot.points import dest_option, find_snapshot
from incremental_backups_tools.cli.writing import wait_option
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.restore import Overwrite, RestoreReport, restore_snapshot
from incremental_backups_tools.tree.selection import Selection


@click.command("restore", cls=IbtCommand)
@click.argument("point", metavar="NAME[@WHEN]")
@click.argument("target", metavar="TARGET")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@dest_option
@click.option(
    "--overwrite",
    type=click.Choice(("never", "changed", "always")),
    default="changed",
    show_default=True,
    help="Files that are there: leave them, replace those with other content, or replace all.",
)
@click.option(
    "--delete", is_flag=True, help="Remove from TARGET, below each PATH, what the snapshot does not have."
)
@click.option("--numeric-owner", is_flag=True, help="Take owners by number, not by name.")
@wait_option
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and change nothing.")
@common_options
@click.pass_obj
def restore(
    settings: Settings,
    point: str,
    target: str,
    paths: tuple[str, ...],
    dest: str,
    overwrite: Overwrite,
    delete: bool,
    numeric_owner: bool,
    wait_seconds: float,
    dry_run: bool,
) -> ExitStatus:
    """Restore a snapshot into the directory TARGET, all of it or each PATH with everything below.

    Unlike a copy of the snapshot's tree, what is restored was compared with its digest, has the metadata that it had,
    and shares nothing with the snapshot. A PATH is relative to the snapshot's root and may be a pattern: * and ? within
    one name, ** across directories.

    Nothing outside TARGET is written. A file that is damaged is named, the others are restored, and the exit status
    is 3.
    """
    _check_target(target)
    depot = Depot.open(dest)
    name, snapshot_id = find_snapshot(depot, point)

    def iter_sizes() -> Iterator[int]:
        selection = Selection(paths)
        entries = depot.entries(name, snapshot_id)
        return (entry.size for entry in entries if selection.matches(entry.path))

    with show_progress(settings, "Restoring", iter_sizes) as on_progress:
        report = restore_snapshot(
            depot,
            name,
            snapshot_id,
            target,
            paths=paths or None,
            overwrite=overwrite,
            delete=delete,
            numeric_owner=numeric_owner,
            dry_run=dry_run,
            wait_seconds=wait_seconds,
            on_progress=on_progress,
        )
    _show(report, settings)
    return ExitStatus.INCOMPLETE if report.problems else ExitStatus.DONE


commands = [restore]


def _check_target(target: str) -> None:
    if not target:
        raise click.UsageError("TARGET is empty", click.get_current_context())
    existing = os.path.abspath(target)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), existing)


def _show(report: RestoreReport, settings: Settings) -> None:
    for problem in report.problems:
        say("problem", str(problem))
    for warning in report.warnings:
        say("warning", warning)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_summary(report))


def _summary(report: RestoreReport) -> str:
    parts = [f"{count_text(report.written, 'name')} restored, {size_text(report.bytes_written)}"]
    for number, words in (
        (report.unchanged, "right already"),
        (report.kept, "left as they were"),
        (report.removed, "removed"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    if report.problems:
        parts.append(f"{len(report.problems):,} not restored")
    begin = "dry run, would be " if report.dry_run else ""
    return f"{report.name}@{report.id}: {begin}{'; '.join(parts)}, in {duration_text(report.duration)}"
