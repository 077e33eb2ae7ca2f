"""``ibt restore``: restore a backup."""

from __future__ import annotations

from collections.abc import Iterator

import click

from incremental_backups_tools.chain.look import iter_entries
from incremental_backups_tools.chain.restore import restore_backup
from incremental_backups_tools.chain.restore_plan import RestorePlan, plan_restore
from incremental_backups_tools.cli.completing import complete_point
from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line
from incremental_backups_tools.cli.points import find_point
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.cli.restoring import check_destination, replacing_options, show_restored
from incremental_backups_tools.tree.restoring import Overwrite
from incremental_backups_tools.tree.selection import Selection


@click.command("restore", cls=IbtCommand)
@click.argument("point", metavar="KEY[@WHEN]", shell_complete=complete_point)
@click.argument("dest", metavar="DEST", shell_complete=complete_directory)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@replacing_options("DEST", "backup")
@click.option(
    "--verify-metadata",
    is_flag=True,
    help="When all is restored, compare every name's metadata with its entry.",
)
@click.option(
    "--fsync",
    type=click.Choice(("on", "off")),
    default="on",
    show_default=True,
    help="With off, what was restored may be lost in a power cut within the next half minute, and old files that it "
    "replaced with it.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and change nothing.")
@click.option(
    "--plan", is_flag=True, help="Say what would be read of the repository, were DEST empty; restore nothing."
)
@reading_options
@common_options
@click.pass_obj
def restore(
    settings: Settings,
    point: str,
    dest: str,
    paths: tuple[str, ...],
    overwrite: Overwrite,
    delete: bool,
    numeric_owner: bool,
    verify_metadata: bool,
    fsync: str,
    dry_run: bool,
    plan: bool,
) -> ExitStatus:
    """Restore a backup into the directory DEST, all of it or each PATH with everything below.

    The backup is KEY@WHEN, KEY for its newest, or @WHEN or 'latest' where the repository has one key. A PATH is
    relative to the backup's root and may be a pattern: * and ? within one name, ** across directories.

    Nothing outside DEST is written. Every file is checked before it gets its name; one that is damaged is named,
    the others are restored, and the exit status is 3.
    """
    if not plan:
        check_destination(dest, "DEST")
    repository = open_chosen(settings)
    found = find_point(repository, point)
    key, backup_id = found.header.key, found.header.id
    if plan:
        _show_plan(plan_restore(key, repository=repository, at=backup_id, paths=paths or None), settings)
        return ExitStatus.DONE
    warn_of_slow_kernel()

    def iter_sizes() -> Iterator[int]:
        selected = Selection(paths).filter(iter_entries(key, at=backup_id, repository=repository))
        return (resolved.entry.size for resolved in selected)

    with show_progress(settings, "Restoring", iter_sizes) as on_progress:
        report = restore_backup(
            key,
            dest,
            repository=repository,
            at=backup_id,
            paths=paths or None,
            overwrite=overwrite,
            delete=delete,
            numeric_owner=numeric_owner,
            verify_metadata=verify_metadata,
            durable=fsync == "on",
            dry_run=dry_run,
            threads=settings.threads,
            on_progress=on_progress,
        )
    return show_restored(report, report.to_dict(), f"{report.backup_key}@{report.backup_date}", settings)


commands = [restore]


def _show_plan(plan: RestorePlan, settings: Settings) -> None:
    if settings.json:
        print_document(plan.to_dict())
        return
    for planned in plan.objects:
        ranges = ", ".join(f"{offset}-{offset + length - 1}" for offset, length in planned.ranges)
        note = "" if planned.is_exact else "  (its seek table cannot be read now)"
        print_line(f"{planned.name}  {planned.bytes_read} of {planned.size} bytes: {ranges}{note}")
    if not settings.quiet:
        tiers = "; ".join(
            f"{tier.name}: {count_text(tier.objects, 'object')} of {size_text(tier.size)}, "
            f"{size_text(tier.bytes_read)} read in about {count_text(tier.requests, 'request')}"
            for tier in plan.tiers
        )
        files = f"{count_text(plan.files, 'file')} of {size_text(plan.bytes_restored)}"
        print_line(f"{plan.backup_key}@{plan.backup_date}: {files}. {tiers}")
