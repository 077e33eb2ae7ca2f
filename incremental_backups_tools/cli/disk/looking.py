"""``ibt disk plan simulate-drop``: what would be."""

from __future__ import annotations

from typing import Any

import click

from incremental_backups_tools.cli.disk.options import catalogue_option, complete_disk
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.copies import Redundancy, plan_for_disk, read_objects, redundancy_of
from incremental_backups_tools.heap.disk.disks import disk_named, find_present, iter_disks
from incremental_backups_tools.heap.disk.simulate import simulate_drop
from incremental_backups_tools.tree.entry import printable


@click.command("plan", cls=IbtCommand)
@click.argument("names", metavar="[DISK]...", nargs=-1, shell_complete=complete_disk)
@catalogue_option
@common_options
@click.pass_obj
def plan(settings: Settings, /, names: tuple[str, ...], directory: str) -> ExitStatus:
    """Show what a backup to each DISK, or to any, would do if it were the next one."""
    rows: list[dict[str, Any]] = []
    with Catalogue.open(directory, writing=False) as catalogue:
        disks = [disk_named(catalogue, name) for name in names] or iter_disks(catalogue)
        present = find_present(catalogue)
        objects = read_objects(catalogue)
        for disk in disks:
            made = plan_for_disk(catalogue, disk, present.get(disk.id), objects)
            writes = sum(step.action == "write" for step in made.steps)
            rows.append(
                {
                    "disk": disk.name,
                    "present": disk.id in present,
                    "write": writes,
                    "write_bytes": made.write_bytes,
                    "evict": len(made.steps) - writes,
                    "evict_bytes": made.evict_bytes,
                    "no_room": len(made.no_room),
                }
            )
        redundancy = redundancy_of(objects)
    if settings.json:
        print_document({"plans": rows, **_redundancy_record(redundancy)})
        return ExitStatus.DONE
    for row in rows:
        print_line(
            f"{row['disk']:<20} would get {count_text(row['write'], 'object')}, {size_text(row['write_bytes'])}; give "
            f"up {row['evict']:,}, {size_text(row['evict_bytes'])}; have no room for {row['no_room']:,}"
        )
    _print_redundancy(redundancy)
    return ExitStatus.DONE


@click.command("simulate-drop", cls=IbtCommand)
@click.argument("names", metavar="DISK...", nargs=-1, required=True, shell_complete=complete_disk)
@catalogue_option
@common_options
@click.pass_obj
def drop_simulation(settings: Settings, /, names: tuple[str, ...], directory: str) -> ExitStatus:
    """Show what would be lost if all these disks were, and how many copies would be left. Nothing is changed."""
    with Catalogue.open(directory, writing=False) as catalogue:
        loss = simulate_drop(catalogue, [disk_named(catalogue, name) for name in names])
    if settings.json:
        print_document(
            {
                "lost": loss.lost,
                "lost_bytes": loss.lost_bytes,
                "paths": [printable(path) for path in loss.paths],
                "before": _redundancy_record(loss.before),
                "after": _redundancy_record(loss.after),
                "free_bytes": loss.free_bytes,
            }
        )
        return ExitStatus.DONE
    print_line(f"{count_text(loss.lost, 'object')} would be lost, {size_text(loss.lost_bytes)}")
    for path in loss.paths:
        print_line(f"  {printable(path)}")
    _print_redundancy(loss.after)
    print_line(
        f"{size_text(loss.after.short_bytes)} to be copied again for one copy more of each that has too few; "
        f"{size_text(loss.free_bytes)} free on the other disks"
    )
    return ExitStatus.DONE


def _redundancy_record(redundancy: Redundancy) -> dict[str, Any]:
    return {
        "objects_by_copies": {str(count): number for count, number in redundancy.by_count.items()},
        "short": redundancy.short,
        "short_bytes": redundancy.short_bytes,
    }


def _print_redundancy(redundancy: Redundancy) -> None:
    for count, number in redundancy.by_count.items():
        print_line(f"{count_text(number, 'object')} with {count_text(count, 'copy', 'copies')}")


commands = [plan, drop_simulation]
