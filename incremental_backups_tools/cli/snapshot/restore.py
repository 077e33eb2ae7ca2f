"""``ibt snapshot restore``: restore a snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import click

from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.restoring import check_destination, replacing_options, show_restored
from incremental_backups_tools.cli.snapshot.points import complete_snapshot, dest_option, find_snapshot
from incremental_backups_tools.cli.writing import wait_option
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.restore import restore_snapshot
from incremental_backups_tools.tree.restoring import Overwrite
from incremental_backups_tools.tree.selection import Selection


@click.command("restore", cls=IbtCommand)
@click.argument("point", metavar="NAME[@WHEN]", shell_complete=complete_snapshot)
@click.argument("target", metavar="TARGET", shell_complete=complete_directory)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@dest_option
@replacing_options("TARGET", "snapshot")
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
    check_destination(target, "TARGET")
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
            threads=settings.threads,
            wait_seconds=wait_seconds,
            on_progress=on_progress,
        )
    return show_restored(report, report.to_dict(), f"{name}@{snapshot_id}", settings)


commands = [restore]
