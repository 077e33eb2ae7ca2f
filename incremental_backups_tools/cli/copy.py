"""``ibt copy``: carry backups to another repository."""

from __future__ import annotations

import os
from collections.abc import Iterator

import click

from incremental_backups_tools.chain.copy import CopyReport, copy_backups
from incremental_backups_tools.chain.history import open_history
from incremental_backups_tools.chain.lineage import carrying_headers
from incremental_backups_tools.chain.look import only_key
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import (
    REPOSITORY_VARIABLE,
    IbtCommand,
    Settings,
    common_options,
    storage_options_of,
)
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.place import find_places
from incremental_backups_tools.cli.points import find_point, split_key
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.protection import open_place, writing_options
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.cli.writing import cache_option, wait_option


@click.command("copy", cls=IbtCommand)
@click.argument("point", metavar="[KEY[@WHEN]]", required=False)
@click.option(
    "--to", metavar="URL", required=True, help="The other repository; it is made where there is none."
)
@click.option(
    "--to-storage-option",
    "to_options",
    metavar="NAME=VALUE",
    multiple=True,
    help="As --storage-option, for the other repository.",
)
@wait_option
@cache_option
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be copied, and change nothing.")
@writing_options
@common_options
@click.pass_obj
def copy(
    settings: Settings,
    point: str | None,
    to: str,
    to_options: tuple[str, ...],
    wait_seconds: float,
    cache_root: str | None,
    dry_run: bool,
) -> ExitStatus:
    """Carry all backups of KEY, or with @WHEN that one and what it stands on, to another repository.

    Each file is compared with the digest in its backup's state on the way. What is there is not copied again, and
    never written over: a copy that was broken off goes on where it ended.

    Encrypted backups are copied as they lie, into encrypted repositories only: without an identity, where this
    machine made them. Signed ones are signed anew, with --sign-key, once --verify-key has checked what is there.
    """
    place, target = find_places(
        settings, os.environ.get(REPOSITORY_VARIABLE), to, storage_options_of(to_options)
    )
    repository = open_place(place, cache_root)
    key, when = split_key(repository, point)
    key = key if key is not None else only_key(repository)
    at = find_point(repository, f"{key}@{when}").header.id if when is not None else None

    def iter_sizes() -> Iterator[int]:
        history = open_history(repository, key)
        headers = carrying_headers(history) if at is None else history.chain_to(at)
        return (file.size for header in headers for file in header.files)

    with show_progress(settings, "Copying", iter_sizes) as on_progress:
        report = copy_backups(
            key,
            target,
            repository=repository,
            at=at,
            wait_seconds=wait_seconds,
            dry_run=dry_run,
            on_notice=None if settings.quiet else lambda notice: say("notice", notice),
            on_progress=on_progress,
        )
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_summary(report))
    return ExitStatus.DONE


commands = [copy]


def _summary(report: CopyReport) -> str:
    verb = "dry run, would copy" if report.dry_run else "copied"
    parts = [
        f"{verb} {count_text(len(report.copied), 'backup')}, {count_text(report.files, 'archive')} of "
        f"{size_text(report.bytes_copied)}"
    ]
    if report.present:
        parts.append(f"{count_text(len(report.present), 'backup')} there already")
    if report.files_present:
        parts.append(f"{count_text(report.files_present, 'archive')} there already")
    return f"{report.backup_key}: {', '.join(parts)}"
