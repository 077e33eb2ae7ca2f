"""``ibt verify``: check a repository."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import click

from incremental_backups_tools.chain.history import History, open_history
from incremental_backups_tools.chain.verify import VerifyReport, verify
from incremental_backups_tools.cli.completing import complete_point
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options, share_option
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.points import find_point, split_key
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.protection import open_chosen, reading_options
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.repository.repository import Repository


@click.command("verify", cls=IbtCommand)
@click.argument("point", metavar="[KEY[@WHEN]]", required=False, shell_complete=complete_point)
@click.option("--read-data", is_flag=True, help="Also rebuild every file and compare it with its digest.")
@click.option(
    "--read-data-subset",
    "share",
    metavar="SHARE",
    callback=share_option,
    help="As --read-data, of a share of the files chosen at random: 5%.",
)
@reading_options
@common_options
@click.pass_obj
def verify_command(settings: Settings, point: str | None, read_data: bool, share: float | None) -> ExitStatus:
    """Check that backups are whole: all of them, those of KEY, or KEY@WHEN with all that it stands on.

    Every state is read to its end, followed from backup to backup and compared with the digest it promises;
    every archive file is read and compared with its size and digest. Each fault is named, and the exit
    status is 1 if there is any.
    """
    repository = open_chosen(settings)
    key, backup_id = _chosen(repository, point)
    read_data |= share is not None
    if read_data:
        warn_of_slow_kernel()

    def iter_sizes() -> Iterator[int]:
        for history, ids in _histories(repository, key, backup_id):
            for known in ids:
                yield from (file.size for file in history.header(known).files)
                if read_data:
                    yield from _content_sizes(history, known)

    with show_progress(settings, "Verifying", iter_sizes) as on_progress:
        report = verify(
            repository,
            key,
            at=backup_id,
            read_data=read_data,
            read_data_share=1.0 if share is None else share,
            threads=settings.threads,
            on_progress=on_progress,
        )
    _show(report, settings)
    return ExitStatus.FAILED if report.faults else ExitStatus.DONE


commands = [verify_command]


def _chosen(repository: Repository, point: str | None) -> tuple[str | None, str | None]:
    """The key and the backup to check, None for all."""
    if point is None:
        return None, None
    key, when = split_key(repository, point)
    if when is None and key is not None:
        open_history(repository, key)  # whether there is such a key
        return key, None
    found = find_point(repository, point)
    return found.header.key, found.header.id


def _histories(
    repository: Repository, key: str | None, backup_id: str | None
) -> Iterator[tuple[History, Iterable[str]]]:
    for known in repository.keys() if key is None else [key]:
        history = History(repository, known)
        if backup_id is None:
            yield history, history.stored_ids
        else:
            yield history, [header.id for header in history.chain_to(backup_id)]


def _content_sizes(history: History, backup_id: str) -> Iterator[int]:
    """The sizes of the contents that one backup brought."""
    for line in history.lines(backup_id):
        entry = line.entry
        if entry.is_content_holder and (entry.data is not None or entry.source is not None):
            yield entry.size


def _show(report: VerifyReport, settings: Settings) -> None:
    for fault in report.faults:
        say("fault", f"{fault.what}: {fault.message.removeprefix(f'{fault.what}: ')}")
    if not settings.quiet:
        for notice in report.notices:
            say("notice", notice)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        contents = f", {count_text(report.files_read, 'content')} rebuilt" if report.files_read else ""
        found = count_text(len(report.faults), "fault") if report.faults else "no fault found"
        print_line(
            f"{count_text(report.backups, 'backup')}, {count_text(report.archives, 'archive file')} "
            f"({size_text(report.bytes_read)}), {count_text(report.entries, 'entry', 'entries')}{contents}: {found}"
        )
