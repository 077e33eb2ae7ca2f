"""``ibt snapshot create`` and ``ibt snapshot import``: make snapshots, or take them over."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

import click

from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.excluding import exclusion_options, exclusion_rules
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options, share_option
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import count_text, duration_text, size_text
from incremental_backups_tools.cli.snapshot.points import complete_name, dest_option
from incremental_backups_tools.cli.writing import wait_option
from incremental_backups_tools.heap.snapshots.cacheback import import_cacheback
from incremental_backups_tools.heap.snapshots.create import create_snapshot, name_of
from incremental_backups_tools.heap.snapshots.layout import validate_name
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.source import walk_source


def _check_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return value if value is None else validate_name(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


@click.command("create", cls=IbtCommand)
@click.argument("targets", metavar="TARGET...", nargs=-1, required=True, shell_complete=complete_directory)
@dest_option
@click.option(
    "--name",
    metavar="NAME",
    callback=_check_name,
    shell_complete=complete_name,
    help="Name under which the snapshots of TARGET are kept.  [default: its own]",
)
@exclusion_options
@click.option("--one-file-system", is_flag=True, help="Do not enter other file systems.")
@click.option(
    "--max-deleted",
    metavar="SHARE",
    default="50%",
    show_default=True,
    callback=share_option,
    help="Stop where a TARGET has shrunk by more than this share of its entries: it may not be mounted.",
)
@wait_option
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and write nothing.")
@common_options
@click.pass_obj
def create(
    settings: Settings,
    /,
    targets: tuple[str, ...],
    dest: str,
    name: str | None,
    patterns: tuple[str, ...],
    pattern_files: tuple[BinaryIO, ...],
    tag_files: tuple[str, ...],
    exclude_caches: bool,
    gitignore: bool,
    one_file_system: bool,
    max_deleted: float,
    wait_seconds: float,
    dry_run: bool,
) -> ExitStatus:
    """Make a snapshot of each directory TARGET in DEST, as the plain tree DEST/NAME/ID.

    Only what no snapshot has is copied; a file with the same content and metadata as before is one more hard link to
    the same inode. Each TARGET has a history of its own, by its name.

    A file .exclude in TARGET names what is left out, in gitignore's language, whatever the options say. What cannot be
    read is named, the rest is in the snapshot, and the exit status is 3.
    """
    names = _names(targets, name)
    rules = exclusion_rules(patterns, pattern_files, tag_files, exclude_caches, gitignore)
    reports = []
    for target, root in zip(targets, names, strict=True):

        def iter_sizes(target: str = target) -> Iterator[int]:
            return _iter_sizes(target, rules, one_file_system)

        with show_progress(settings, f"Snapshot of {root}", iter_sizes) as on_progress:
            reports.append(
                create_snapshot(
                    target,
                    dest,
                    name=root,
                    rules=rules,
                    one_file_system=one_file_system,
                    threads=settings.threads,
                    max_deleted=max_deleted,
                    wait_seconds=wait_seconds,
                    dry_run=dry_run,
                    on_progress=on_progress,
                )
            )
        _show(reports[-1], settings)
    if settings.json:
        print_document({"snapshots": [report.to_dict() for report in reports]})
    return _status(reports)


@click.command("import", cls=IbtCommand)
@click.argument("place", metavar="DIR", shell_complete=complete_directory)
@dest_option
@click.option(
    "--name",
    metavar="NAME",
    callback=_check_name,
    shell_complete=complete_name,
    help="Name under which they are kept.",
)
@click.option(
    "--target",
    metavar="PATH",
    help="Only what they hold of this directory, by its absolute path in the source.  [default: all]",
)
@wait_option
@common_options
@click.pass_obj
def import_(
    settings: Settings, place: str, dest: str, name: str | None, target: str | None, wait_seconds: float
) -> ExitStatus:
    """Take over the snapshots that cacheback 0.0.2 made in the directory DIR, oldest first.

    With --target PATH they become earlier snapshots of that directory, and NAME is PATH's own name; without it they
    hold all that cacheback kept, and NAME is needed. Those that were taken over before are passed over. Nothing in DIR
    is changed.

    Every blob is compared with its hash. What is cut short, altered or lost is named, the rest is taken over, and the
    exit status is 3.
    """
    if target is not None and not os.path.isabs(target):
        raise click.UsageError(f"--target {target!r} is not an absolute path", click.get_current_context())
    if name is None and target is None:
        raise click.UsageError("--name or --target is needed", click.get_current_context())
    root = name if name is not None else _default_name(str(target))
    reports = import_cacheback(
        place,
        dest,
        name=root,
        target=os.path.normpath(target) if target is not None else None,
        threads=settings.threads,
        wait_seconds=wait_seconds,
    )
    for report in reports:
        _show(report, settings)
    if settings.json:
        print_document({"snapshots": [report.to_dict() for report in reports]})
    elif not (reports or settings.quiet):
        print_line("nothing to take over that was not there already")
    return _status(reports)


commands = [create, import_]


def _names(targets: tuple[str, ...], name: str | None) -> list[str]:
    if name is not None and len(targets) > 1:
        raise click.UsageError("--name is for one TARGET", click.get_current_context())
    names = [name if name is not None else _default_name(target) for target in targets]
    for one in names:
        if names.count(one) > 1:
            raise click.UsageError(
                f"two TARGETs are called {one}: make their snapshots one by one, with --name",
                click.get_current_context(),
            )
    return names


def _default_name(target: str) -> str:
    try:
        return name_of(target)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _iter_sizes(target: str, rules: ExclusionRules | None, one_file_system: bool) -> Iterator[int]:
    walk = walk_source(
        target, rules=rules, one_file_system=one_file_system, on_problem=lambda path, message: None
    )
    for found in walk:
        if not stat.S_ISDIR(found.stat.st_mode):
            yield found.stat.st_size if stat.S_ISREG(found.stat.st_mode) else 0


def _status(reports: list[SnapshotReport]) -> ExitStatus:
    return ExitStatus.INCOMPLETE if any(report.problems for report in reports) else ExitStatus.DONE


def _show(report: SnapshotReport, settings: Settings) -> None:
    for problem in report.problems:
        say("problem", f"{report.name}: {problem}")
    for warning in report.warnings:
        say("warning", f"{report.name}: {warning}")
    if settings.quiet:
        return
    for notice in report.notices:
        say("notice", f"{report.name}: {notice}")
    if not settings.json:
        print_line(_summary(report))


def _summary(report: SnapshotReport) -> str:
    what = f"{count_text(report.files, 'file')}, {size_text(report.bytes)}"
    added = f"{count_text(report.added_objects, 'new object')} of {size_text(report.added_bytes)}"
    parts = [what, f"{added} in {duration_text(report.duration)}"]
    if report.healed:
        parts.append(f"{count_text(report.healed, 'damaged object')} healed")
    if report.problems:
        parts.append(count_text(len(report.problems), "problem"))
    if report.dry_run:
        return f"{report.name}: dry run, would be {'; '.join(parts)}"
    return f"{report.name}@{report.id}: {'; '.join(parts)}"
