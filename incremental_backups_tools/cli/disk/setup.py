"""``ibt disk init add adopt list rename set drop``: the catalogue and its disks."""

from __future__ import annotations

from typing import Any

import click

from incremental_backups_tools.cli.disk.options import (
    catalogue_option,
    complete_disk,
    dry_run_option,
    optional_age,
    optional_size,
    usage_error,
)
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.rendering import count_text, size_text, time_text
from incremental_backups_tools.heap.disk.adopt import adopt_disk
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.check import refresh_disk
from incremental_backups_tools.heap.disk.copies import read_objects, redundancy_of
from incremental_backups_tools.heap.disk.disks import (
    Disk,
    add_disk,
    disk_named,
    drop_disk,
    find_disk,
    find_present,
    iter_disks,
    rename_disk,
    set_disk,
)
from incremental_backups_tools.heap.disk.simulate import simulate_drop
from incremental_backups_tools.tree.entry import printable

_SIZE = click.option(
    "--size",
    "size_limit",
    metavar="SIZE",
    callback=optional_size,
    help="Fill it with no more than this: 7.4T.",
)
_RESERVE = click.option(
    "--reserve",
    metavar="SIZE",
    callback=optional_size,
    help="Leave so much free.  [default: a hundredth of the disk, at most 10 GiB]",
)
_COPIES = click.option(
    "--copies", metavar="N", type=click.IntRange(min=1), help="How many copies a file gets.  [default: 2]"
)
_KEEP = click.option(
    "--keep-deleted",
    "keep_deleted_ns",
    metavar="AGE",
    callback=optional_age,
    help="How long what the source deleted or replaced stays.  [default: 90d]",
)
_GITIGNORE = click.option(
    "--gitignore/--no-gitignore", default=None, help="Leave out what .gitignore files do."
)
_CACHES = click.option(
    "--exclude-caches/--no-exclude-caches",
    default=None,
    help="Leave out the content of directories that hold a CACHEDIR.TAG.",
)


@click.command("init", cls=IbtCommand)
@catalogue_option
@_COPIES
@_KEEP
@_GITIGNORE
@_CACHES
@common_options
@click.pass_obj
def init(settings: Settings, /, directory: str, **values: Any) -> ExitStatus:
    """Make an empty catalogue.

    Where it was lost, get it back from a disk instead: 'ibt disk adopt DIR'.
    """
    with Catalogue.create(directory) as catalogue:
        _set_values(catalogue, values)
        if settings.json:
            print_document({"catalogue": directory, "id": catalogue.catalogue_id})
        elif not settings.quiet:
            print_line(f"{directory}: catalogue {catalogue.catalogue_id} made")
    return ExitStatus.DONE


def _set_values(catalogue: Catalogue, values: dict[str, Any]) -> None:
    given = {name: value for name, value in values.items() if value is not None}
    if given:
        with catalogue.transaction():
            for name, value in given.items():
                catalogue.set(name, str(int(value)))


@click.command("add", cls=IbtCommand)
@click.argument("name", metavar="NAME")
@click.argument("place", metavar="DIR", type=click.Path(file_okay=False))
@_SIZE
@_RESERVE
@catalogue_option
@common_options
@click.pass_obj
def add(
    settings: Settings, /, name: str, place: str, size_limit: int | None, reserve: int | None, directory: str
) -> ExitStatus:
    """Make the directory DIR, on a disk that is mounted, the disk NAME.

    A directory that is a disk of this catalogue already is taken as it is, with all that it holds.
    """
    with Catalogue.open(directory) as catalogue:
        try:
            disk, is_new = add_disk(catalogue, name, place, size_limit=size_limit, reserve=reserve)
        except ValueError as error:
            raise usage_error(str(error)) from None
        found = 0
        if not is_new:
            found = refresh_disk(catalogue, disk, find_disk(disk, place)).found
    if settings.json:
        print_document({**_record(disk, None), "is_new": is_new, "found": found})
    elif not settings.quiet:
        what = "added" if is_new else f"known already, {count_text(found, 'object')} found on it"
        print_line(f"{disk.name}: {what}; id {disk.uuid}, room for {size_text(disk.room)}")
    return ExitStatus.DONE


@click.command("adopt", cls=IbtCommand)
@click.argument("place", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--name", metavar="NAME", help="What to call it.  [default: as it was called]")
@catalogue_option
@common_options
@click.pass_obj
def adopt(settings: Settings, /, place: str, name: str | None, directory: str) -> ExitStatus:
    """Take in the disk at DIR with what it holds. Nothing on it is overwritten.

    Where the catalogue is missing or empty, or older than the copy on the disk, the copy takes its place.
    """
    try:
        adoption = adopt_disk(directory, place, name=name)
    except ValueError as error:
        raise usage_error(str(error)) from None
    checked = adoption.checked
    if adoption.set_aside:
        say("notice", f"what gave way is kept as {adoption.set_aside}")
    if settings.json:
        print_document({"rebuilt": adoption.rebuilt, "set_aside": adoption.set_aside, **checked.to_dict()})
    elif not settings.quiet:
        begin = "the catalogue is had again from it; " if adoption.rebuilt else ""
        lost = len(checked.missing) + len(checked.damaged)
        print_line(
            f"{adoption.disk}: {begin}{count_text(checked.checked - lost, 'copy', 'copies')} as expected, "
            f"{checked.found} more, {lost} not there or not whole, {checked.unknown} that nothing needs"
        )
    return ExitStatus.DONE


@click.command("list", cls=IbtCommand)
@catalogue_option
@common_options
@click.pass_obj
def list_disks(settings: Settings, /, directory: str) -> ExitStatus:
    """List the disks, and how many copies there are of what is needed."""
    with Catalogue.open(directory, writing=False) as catalogue:
        objects = read_objects(catalogue)
        redundancy = redundancy_of(objects)
        present = find_present(catalogue)
        rows = []
        for disk in iter_disks(catalogue):
            held = [item for item in objects if disk.id in item.holders]
            medium = present.get(disk.id)
            rows.append(
                {
                    **_record(disk, None if medium is None else medium.place),
                    "objects": len(held),
                    "used": sum(item.size for item in held),
                }
            )
    if settings.json:
        by_count = {str(count): number for count, number in redundancy.by_count.items()}
        print_document({"disks": rows, "objects_by_copies": by_count, "short": redundancy.short})
        return ExitStatus.DONE
    for row in rows:
        where = row["place"] if row["present"] else "not there"
        last = "never" if row["backup_ns"] is None else time_text(row["backup_ns"])
        print_line(
            f"{row['name']:<20} {size_text(row['used']):>10} of {size_text(row['room']):>10}  "
            f"{row['objects']:>9,} objects  last backup {last}  {where}"
        )
    for count, number in redundancy.by_count.items():
        print_line(f"{count_text(number, 'object')} with {count_text(count, 'copy', 'copies')}")
    return ExitStatus.DONE


def _record(disk: Disk, place: bytes | None) -> dict[str, Any]:
    return {
        "name": disk.name,
        "id": disk.uuid,
        "capacity": disk.capacity,
        "room": disk.room,
        "reserve": disk.reserve,
        "size_limit": disk.size_limit,
        "present": place is not None,
        "place": printable(disk.place if place is None else place),
        "backup_ns": disk.backup_ns,
    }


@click.command("rename", cls=IbtCommand)
@click.argument("name", metavar="NAME", shell_complete=complete_disk)
@click.argument("new_name", metavar="NEW_NAME")
@catalogue_option
@common_options
@click.pass_obj
def rename(settings: Settings, /, name: str, new_name: str, directory: str) -> ExitStatus:
    """Call the disk NAME something else. It need not be there."""
    with Catalogue.open(directory) as catalogue:
        try:
            rename_disk(catalogue, name, new_name)
        except ValueError as error:
            raise usage_error(str(error)) from None
    _say_done({"name": new_name, "old_name": name}, f"{name} is called {new_name} now", settings)
    return ExitStatus.DONE


@click.command("set", cls=IbtCommand)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_disk)
@_SIZE
@_RESERVE
@_COPIES
@_KEEP
@_GITIGNORE
@_CACHES
@catalogue_option
@common_options
@click.pass_obj
def set_values(
    settings: Settings,
    /,
    name: str | None,
    size_limit: int | None,
    reserve: int | None,
    directory: str,
    **values: Any,
) -> ExitStatus:
    """Change how far the disk NAME is filled, or, without NAME, what holds for the whole catalogue."""
    of_disk = size_limit is not None or reserve is not None
    of_all = any(value is not None for value in values.values())
    if of_disk == of_all or of_disk != (name is not None):
        raise usage_error("--size and --reserve are set with a NAME, all else without one")
    with Catalogue.open(directory) as catalogue:
        if name is not None:
            disk = set_disk(catalogue, name, size_limit=size_limit, reserve=reserve)
            _say_done(_record(disk, None), f"{name}: room for {size_text(disk.room)}", settings)
        else:
            _set_values(catalogue, values)
            _say_done({"catalogue": directory}, f"{directory}: set", settings)
    return ExitStatus.DONE


@click.command("drop", cls=IbtCommand)
@click.argument("name", metavar="NAME", shell_complete=complete_disk)
@click.option("--force", is_flag=True, help="Also where it has the only copy of something.")
@dry_run_option
@catalogue_option
@common_options
@click.pass_obj
def drop(settings: Settings, /, name: str, force: bool, dry_run: bool, directory: str) -> ExitStatus:
    """Forget the disk NAME: its copies count no more. Nothing on it is touched."""
    if dry_run:
        with Catalogue.open(directory, writing=False) as catalogue:
            lost = simulate_drop(catalogue, [disk_named(catalogue, name)]).lost
    else:
        with Catalogue.open(directory) as catalogue:
            lost = drop_disk(catalogue, name, even_last_copies=force)
    begin = f"dry run, {name} would be forgotten" if dry_run else f"{name} is forgotten"
    text = f"{begin}; {count_text(lost, 'object')} without a copy" if lost else begin
    _say_done({"name": name, "without_copy": lost, "dry_run": dry_run}, text, settings)
    return ExitStatus.DONE


def _say_done(document: dict[str, Any], text: str, settings: Settings) -> None:
    if settings.json:
        print_document(document)
    elif not settings.quiet:
        print_line(text)


commands = [init, add, adopt, list_disks, rename, set_values, drop]
