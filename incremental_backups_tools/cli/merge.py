"""``ibt merge`` and ``ibt rebase``: write backups again, without the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from incremental_backups_tools.chain.look import only_key
from incremental_backups_tools.chain.merge import RewriteReport, merge_backups, rebase_backup
from incremental_backups_tools.cli.completing import complete_point
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.points import split_key
from incremental_backups_tools.cli.protection import open_chosen, writing_options
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.cli.writing import cache_option, wait_option


@click.command("merge", cls=IbtCommand)
@click.argument("first", metavar="KEY@FIRST", shell_complete=complete_point)
@click.argument("last", metavar="KEY@LAST", shell_complete=complete_point)
@wait_option
@cache_option
@writing_options
@common_options
@click.pass_obj
def merge(
    settings: Settings, first: str, last: str, wait_seconds: float, cache_root: str | None
) -> ExitStatus:
    """Replace the increments from FIRST to LAST by one with the same result as LAST.

    The points in time before LAST are forgotten; LAST keeps its name, and later backups stand on it as before.
    'ibt prune' deletes what is replaced.
    """
    repository = open_chosen(settings, cache_root)
    first_key, first_when = split_key(repository, first)
    last_key, last_when = split_key(repository, last)
    key = first_key or last_key or only_key(repository)
    if last_key not in (None, key):
        raise click.UsageError(f"{first_key} and {last_key} are two keys", click.get_current_context())
    if first_when is None:
        raise click.UsageError(f"{first!r} says no point in time: KEY@WHEN", click.get_current_context())
    warn_of_slow_kernel()
    with _when_as_usage():
        report = merge_backups(
            key,
            first_when,
            last_when,
            repository=repository,
            cache_root=cache_root or None,
            wait_seconds=wait_seconds,
            threads=settings.threads,
            on_notice=None if settings.quiet else lambda notice: say("notice", notice),
        )
    _show(report, settings)
    return ExitStatus.DONE


@click.command("rebase", cls=IbtCommand)
@click.argument("point", metavar="[KEY[@WHEN]]", required=False, shell_complete=complete_point)
@wait_option
@cache_option
@writing_options
@common_options
@click.pass_obj
def rebase(settings: Settings, point: str | None, wait_seconds: float, cache_root: str | None) -> ExitStatus:
    """Turn a point in time into a full backup, out of the chain it stands on.

    The source is not needed. Later increments stand on the new full; 'ibt prune' deletes what nothing needs any
    more.
    """
    repository = open_chosen(settings, cache_root)
    key, when = split_key(repository, point or "")
    warn_of_slow_kernel()
    with _when_as_usage():
        report = rebase_backup(
            key or only_key(repository),
            when,
            repository=repository,
            cache_root=cache_root or None,
            wait_seconds=wait_seconds,
            threads=settings.threads,
            on_notice=None if settings.quiet else lambda notice: say("notice", notice),
        )
    _show(report, settings)
    return ExitStatus.DONE


commands = [merge, rebase]


@contextmanager
def _when_as_usage() -> Iterator[None]:
    """What could not be a time is wrong usage."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None


def _show(report: RewriteReport, settings: Settings) -> None:
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        stands = f"on {report.parent}" if report.parent is not None else "on nothing"
        parts = [f"{report.kind} backup that stands {stands}", f"{size_text(report.bytes_written)} written"]
        if report.replaced:
            parts.insert(0, f"in place of {count_text(len(report.replaced) + 1, 'increment')}")
        print_line(f"{report.backup_key}@{report.backup_date}: {', '.join(parts)}")
