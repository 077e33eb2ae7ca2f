"""``ibt disk restore minset``: getting files back, and which disks that takes."""

from __future__ import annotations

import click

from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.disk.options import (
    catalogue_option,
    dry_run_option,
    optional_moment,
    status_of,
)
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.disks import disk_with_id, find_present, iter_disks
from incremental_backups_tools.heap.disk.media import Medium, open_medium
from incremental_backups_tools.heap.disk.report import RestoreReport
from incremental_backups_tools.heap.disk.restore import (
    DiskRestoreOptions,
    find_needed_disks,
    restore_from_disks,
)

_AT = click.option(
    "--at",
    "at_ns",
    metavar="WHEN",
    callback=optional_moment,
    help="What was there at that time: a date, a time, or an age such as 3d.  [default: now]",
)


@click.command("restore", cls=IbtCommand)
@click.argument("dest", metavar="DEST", shell_complete=complete_directory)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--from",
    "places",
    metavar="DIR",
    multiple=True,
    help="A disk that is there, wherever; with the catalogue on it where there is no other.  [default: all]",
)
@click.option("--own-catalogue", is_flag=True, help="Use the catalogue on the first disk of --from.")
@_AT
@click.option("--numeric-owner", is_flag=True, help="Take owners by number, not by name.")
@dry_run_option
@catalogue_option
@common_options
@click.pass_obj
def restore(
    settings: Settings,
    /,
    dest: str,
    paths: tuple[str, ...],
    places: tuple[str, ...],
    own_catalogue: bool,
    at_ns: int | None,
    numeric_owner: bool,
    dry_run: bool,
    directory: str,
) -> ExitStatus:
    """Restore into DEST what the disks that are there hold, all of it or each PATH with everything below.

    Where other disks are needed for the rest, they are named and the exit status is 3: plug one in and run the same
    command again. Files that are right already are left alone. A disk is only read, so it may be mounted read-only,
    and alone it is enough: 'ibt disk restore --from /media/disk-1 DEST'.
    """
    if own_catalogue and not places:
        raise click.UsageError("--own-catalogue needs --from", click.get_current_context())
    media = [open_medium(place) for place in places]
    with _open(directory, media, own_catalogue) as catalogue:
        there = _numbered(catalogue, media) if media else find_present(catalogue)
        with show_progress(settings, "Restoring", lambda: ()) as on_progress:
            report = restore_from_disks(
                catalogue,
                there,
                dest,
                DiskRestoreOptions(
                    paths=paths,
                    at_ns=at_ns,
                    numeric_owner=numeric_owner,
                    dry_run=dry_run,
                    on_progress=on_progress,
                ),
            )
    status = status_of(report.problems, settings)
    for warning in report.warnings:
        say("warning", warning)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_restore_text(report))
    if report.missing:
        say("problem", _missing_text(report))
        return ExitStatus.INCOMPLETE
    return status


def _open(directory: str, media: list[Medium], own_catalogue: bool) -> Catalogue:
    if own_catalogue:
        return Catalogue.open_copy(media[0].catalogue_path)
    try:
        return Catalogue.open(directory, writing=False)
    except RepositoryNotFoundError:
        if not media:
            raise
        return Catalogue.open_copy(media[0].catalogue_path)


def _numbered(catalogue: Catalogue, media: list[Medium]) -> dict[int, Medium]:
    found = {}
    for medium in media:
        disk = disk_with_id(catalogue, medium.identity.id)
        if disk is None:
            raise RepositoryError(
                f"{medium.store.url}: the catalogue does not know this disk; use its own, --own-catalogue"
            )
        found[disk.id] = medium
    return found


def _restore_text(report: RestoreReport) -> str:
    begin = "dry run, would be: " if report.dry_run else ""
    parts = [f"{begin}{count_text(report.written, 'name')} restored, {size_text(report.bytes_written)}"]
    if report.unchanged:
        parts.append(f"{report.unchanged:,} right already")
    return "; ".join(parts)


def _missing_text(report: RestoreReport) -> str:
    text = f"{count_text(report.missing, 'file')} not restored"
    if report.needed_disks:
        how = "no fewer will do" if report.is_smallest else "perhaps fewer would do"
        text += f": the rest is on {', '.join(report.needed_disks)} ({how})"
    if report.unreachable:
        text += f"; {count_text(report.unreachable, 'file')} on no other disk"
    return text


@click.command("minset", cls=IbtCommand)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@_AT
@catalogue_option
@common_options
@click.pass_obj
def minset(settings: Settings, /, paths: tuple[str, ...], at_ns: int | None, directory: str) -> ExitStatus:
    """Name the disks that restoring everything, or each PATH, takes: as few as can be.

    With many disks the answer may be larger than the smallest there is, and says so.
    """
    with Catalogue.open(directory, writing=False) as catalogue:
        found, files = find_needed_disks(catalogue, paths, at_ns=at_ns)
        names = {disk.id: disk.name for disk in iter_disks(catalogue)}
    disks = [names[number] for number in found.disks]
    if settings.json:
        print_document(
            {
                "disks": disks,
                "is_smallest": found.is_smallest,
                "files": files,
                "unreachable": found.unreachable,
            }
        )
    else:
        for name in disks:
            print_line(name)
        if not found.is_smallest and not settings.quiet:
            say("notice", "with so many disks this set may not be the smallest")
    if found.unreachable:
        say("problem", f"{found.unreachable:,} of {count_text(files, 'file')} on no disk")
        return ExitStatus.INCOMPLETE
    return ExitStatus.DONE


commands = [restore, minset]
