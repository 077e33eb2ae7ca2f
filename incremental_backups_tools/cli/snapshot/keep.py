"""``ibt snapshot delete``, ``prune`` and ``gc``: thin snapshots out."""

from __future__ import annotations

import time
from typing import Any

import click

from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.keeping import keep_by_time_options, policy_of
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text
from incremental_backups_tools.cli.snapshot.points import (
    complete_name,
    complete_snapshot,
    dest_option,
    find_snapshot,
)
from incremental_backups_tools.cli.writing import wait_option
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.keeping import (
    GcReport,
    collect_garbage,
    delete_snapshots,
    prune_snapshots,
)
from incremental_backups_tools.repository.layout import parse_backup_id


@click.command("delete", cls=IbtCommand)
@click.argument("points", metavar="NAME@WHEN...", nargs=-1, required=True, shell_complete=complete_snapshot)
@dest_option
@wait_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@common_options
@click.pass_obj
def delete(
    settings: Settings, points: tuple[str, ...], dest: str, wait_seconds: float, dry_run: bool
) -> ExitStatus:
    """Delete snapshots. What they alone have is freed by 'ibt snapshot gc'."""
    depot = Depot.open(dest)
    for point in points:
        if not point.rpartition("@")[1]:
            raise click.UsageError(f"{point!r} says no point in time: NAME@WHEN", click.get_current_context())
    chosen = sorted({find_snapshot(depot, point) for point in points})
    if not dry_run:
        for name in sorted({name for name, _ in chosen}):
            ids = [snapshot_id for known, snapshot_id in chosen if known == name]
            delete_snapshots(depot, name, ids, wait_seconds=wait_seconds)
    if settings.json:
        deleted = [{"name": name, "id": snapshot_id} for name, snapshot_id in chosen]
        print_document({"deleted": deleted, "dry_run": dry_run})
    elif not settings.quiet:
        for name, snapshot_id in chosen:
            print_line(f"{'would delete' if dry_run else 'deleted'} {name}@{snapshot_id}")
    return ExitStatus.DONE


@click.command("prune", cls=IbtCommand)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@dest_option
@keep_by_time_options
@wait_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@common_options
@click.pass_obj
def prune(
    settings: Settings,
    /,
    name: str | None,
    dest: str,
    wait_seconds: float,
    dry_run: bool,
    **keep: Any,
) -> ExitStatus:
    """Delete the snapshots of NAME, or of each name, that no rule keeps, and free what they alone have.

    The rules are those of 'ibt prune'. Without one all snapshots stay.
    """
    policy = policy_of(keep)
    report = prune_snapshots(
        Depot.open(dest),
        name,
        policy,
        now_ns=time.time_ns(),
        dry_run=dry_run,
        wait_seconds=wait_seconds,
    )
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        for root, decisions in report.decisions.items():
            if dry_run or settings.verbosity:
                for decision in decisions:
                    verb = "keep  " if decision.keep else "delete"
                    when = time_text(parse_backup_id(decision.backup_id))
                    reasons = ", ".join(decision.reasons)
                    print_line(f"{verb} {root}@{decision.backup_id}  {when}  {reasons}".rstrip())
            kept = sum(decision.keep for decision in decisions)
            begin = "dry run, would keep" if dry_run else "kept"
            print_line(f"{root}: {begin} {kept} of {count_text(len(decisions), 'snapshot')}")
        _show(report.gc)
    return ExitStatus.DONE


@click.command("gc", cls=IbtCommand)
@dest_option
@wait_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@common_options
@click.pass_obj
def gc(settings: Settings, dest: str, wait_seconds: float, dry_run: bool) -> ExitStatus:
    """Free what no snapshot has, and remove what killed runs left.

    What a snapshot has stands in its index. A snapshot whose directory was removed by hand is no snapshot any more.
    While snapshots are made, removed or restored the exit status is 11, and nothing is done.
    """
    report = collect_garbage(Depot.open(dest), dry_run=dry_run, wait_seconds=wait_seconds)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        _show(report)
    return ExitStatus.DONE


commands = [delete, prune, gc]


def _show(report: GcReport) -> None:
    begin = "dry run, would delete" if report.dry_run else "deleted"
    print_line(
        f"{begin} {count_text(report.deleted, 'object')} of {size_text(report.bytes_freed)}, "
        f"{count_text(report.kept, 'object')} left"
    )
