"""``ibt disk update backup verify refresh``: the source, and one disk at a time."""

from __future__ import annotations

from collections.abc import Iterable

import click

from incremental_backups_tools.cli.disk.options import (
    catalogue_option,
    complete_disk,
    dry_run_option,
    place_option,
    status_of,
)
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options, share_option
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.heap.disk.backup import DiskBackupOptions, back_up_to_disk
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.check import refresh_disk, verify_disk
from incremental_backups_tools.heap.disk.disks import disk_named, find_disk
from incremental_backups_tools.heap.disk.report import CheckReport, DiskReport, UpdateReport
from incremental_backups_tools.heap.disk.update import UpdateOptions, update_catalogue


def _unknown_sizes() -> Iterable[int]:
    return ()


@click.command("update", cls=IbtCommand)
@click.option(
    "--max-deleted",
    metavar="SHARE",
    default="50%",
    show_default=True,
    callback=share_option,
    help="Stop where a mapped directory has lost more than this share of its names: it may not be mounted.",
)
@dry_run_option
@catalogue_option
@common_options
@click.pass_obj
def update(settings: Settings, /, max_deleted: float, dry_run: bool, directory: str) -> ExitStatus:
    """Find out what has changed in the mapped directories, and record it in the catalogue.

    A run that was interrupted goes on where it was: what has been read is not read again.
    """
    with Catalogue.open(directory, writing=not dry_run) as catalogue:
        with show_progress(settings, "Reading", _unknown_sizes) as on_progress:
            report = update_catalogue(
                catalogue,
                UpdateOptions(max_deleted=max_deleted, dry_run=dry_run, on_progress=on_progress),
            )
    status = status_of(report.problems, settings)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_update_text(report))
    return status


def _update_text(report: UpdateReport) -> str:
    begin = "dry run, would be: " if report.dry_run else ""
    counts = (
        f"{report.created:,} new, {report.updated:,} changed, {report.metadata:,} with new metadata, "
        f"{report.deleted:,} deleted"
    )
    return f"{begin}{count_text(report.found, 'name')}: {counts}; {size_text(report.bytes_read)} read"


@click.command("backup", cls=IbtCommand)
@click.argument("name", metavar="DISK", shell_complete=complete_disk)
@place_option
@dry_run_option
@catalogue_option
@common_options
@click.pass_obj
def backup(settings: Settings, /, name: str, place: str | None, dry_run: bool, directory: str) -> ExitStatus:
    """Bring to DISK what it is to hold: first what has no copy anywhere, then what has too few.

    A copy counts when it was written, synchronised and read back. Copies of which there are more elsewhere may
    give way. The catalogue is copied to the disk at the end.
    """
    with Catalogue.open(directory, writing=not dry_run) as catalogue:
        disk = disk_named(catalogue, name)
        medium = find_disk(disk, place)
        with show_progress(settings, "Storing", _unknown_sizes) as on_progress:
            options = DiskBackupOptions(
                dry_run=dry_run, on_progress=on_progress, on_notice=lambda text: say("notice", text)
            )
            report = back_up_to_disk(catalogue, disk, medium, options)
    status = status_of(report.problems, settings)
    if report.lost:
        say(
            "warning",
            f"{count_text(report.lost, 'copy', 'copies')} that the disk was to have: not there, or damaged",
        )
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_backup_text(report))
    return status


def _backup_text(report: DiskReport) -> str:
    begin = "dry run, would be: " if report.dry_run else ""
    parts = [f"{begin}{count_text(report.written, 'object')} stored, {size_text(report.bytes_written)}"]
    if report.evicted:
        parts.append(f"{report.evicted:,} gave way, {size_text(report.bytes_evicted)}")
    if report.found:
        parts.append(f"{report.found:,} found there")
    if report.no_room:
        parts.append(f"no room for {report.no_room:,}")
    parts.append(f"{count_text(report.without_copy, 'object')} without any copy")
    return f"{report.disk}: {'; '.join(parts)}"


@click.command("verify", cls=IbtCommand)
@click.argument("name", metavar="DISK", shell_complete=complete_disk)
@place_option
@catalogue_option
@common_options
@click.pass_obj
def verify(settings: Settings, /, name: str, place: str | None, directory: str) -> ExitStatus:
    """Read every object that DISK is to hold. What is missing or damaged is named and counts no more: the next
    backups make new copies of it. Nothing on the disk is changed.
    """
    return _check(settings, name, place, directory, is_reading=True)


@click.command("refresh", cls=IbtCommand)
@click.argument("name", metavar="DISK", shell_complete=complete_disk)
@place_option
@catalogue_option
@common_options
@click.pass_obj
def refresh(settings: Settings, /, name: str, place: str | None, directory: str) -> ExitStatus:
    """Compare what lies on DISK with the catalogue, by name and size, and correct the catalogue."""
    return _check(settings, name, place, directory, is_reading=False)


def _check(
    settings: Settings, name: str, place: str | None, directory: str, *, is_reading: bool
) -> ExitStatus:
    with Catalogue.open(directory) as catalogue:
        disk = disk_named(catalogue, name)
        medium = find_disk(disk, place)
        with show_progress(settings, "Checking", _unknown_sizes) as on_progress:
            check = verify_disk if is_reading else refresh_disk
            report = check(catalogue, disk, medium, on_progress=on_progress)
    for kind, digests in (("missing", report.missing), ("damaged", report.damaged)):
        for digest in digests:
            say("fault", f"object {digest} on {name}: {kind}")
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_check_text(report))
    return ExitStatus.FAILED if report.missing or report.damaged else ExitStatus.DONE


def _check_text(report: CheckReport) -> str:
    parts = [f"{count_text(report.checked, 'object')} checked, {size_text(report.bytes_checked)}"]
    parts.append(f"{len(report.missing):,} missing, {len(report.damaged):,} damaged")
    if report.found:
        parts.append(f"{report.found:,} more found")
    if report.unknown:
        parts.append(f"{report.unknown:,} that nothing needs")
    return f"{report.disk}: {'; '.join(parts)}"


commands = [update, backup, verify, refresh]
