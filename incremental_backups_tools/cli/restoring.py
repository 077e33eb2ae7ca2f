"""What the commands that restore a tree share: options, the look at the destination, and what is said in the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import Settings
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.rendering import count_text, duration_text, size_text
from incremental_backups_tools.tree.restoring import TreeRestoreReport

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def replacing_options(dest: str, what: str) -> Callable[[FunctionT], FunctionT]:
    """``--overwrite``, ``--delete`` and ``--numeric-owner``.

    Args:
        dest: what the command calls the destination.
        what: what is restored.
    """

    def decorate(function: FunctionT) -> FunctionT:
        options = (
            click.option(
                "--overwrite",
                type=click.Choice(("never", "changed", "always")),
                default="changed",
                show_default=True,
                help="Files that are there: leave them, replace those with other content, or replace all.",
            ),
            click.option(
                "--delete",
                is_flag=True,
                help=f"Remove from {dest}, below each PATH, what the {what} does not have.",
            ),
            click.option("--numeric-owner", is_flag=True, help="Take owners by number, not by name."),
        )
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def check_destination(fs_path: str, name: str) -> None:
    """Make sure that a directory is there, or can be made, before anything is fetched.

    Raises:
        click.UsageError: it is empty; *name* is what the command calls it.
        NotADirectoryError: something else stands in its way.
    """
    if not fs_path:
        raise click.UsageError(f"{name} is empty", click.get_current_context())
    existing = os.path.abspath(fs_path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), existing)


def show_restored(
    report: TreeRestoreReport, document: dict[str, Any], what: str, settings: Settings
) -> ExitStatus:
    """Print what a restore came to, and say how it ended."""
    for problem in report.problems:
        say("problem", str(problem))
    for warning in report.warnings:
        say("warning", warning)
    if settings.json:
        print_document(document)
    elif not settings.quiet:
        print_line(f"{what}: {_summary(report)}")
    return ExitStatus.INCOMPLETE if report.problems else ExitStatus.DONE


def _summary(report: TreeRestoreReport) -> str:
    parts = [f"{count_text(report.written, 'name')} restored, {size_text(report.bytes_written)}"]
    for number, words in (
        (report.unchanged, "right already"),
        (report.kept, "left as they were"),
        (report.removed, "removed"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    if report.problems:
        parts.append(f"{len(report.problems):,} not restored")
    begin = "dry run, would be " if report.dry_run else ""
    return f"{begin}{'; '.join(parts)}, in {duration_text(report.duration)}"
