"""Options of the commands that work on trees and heaps anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import click

from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import Settings, named_values
from incremental_backups_tools.cli.output import print_document, print_line, say
from incremental_backups_tools.cli.place import NamedPlace, find_addresses
from incremental_backups_tools.cli.rendering import count_text, size_text
from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.heap.sync.apply import ApplyReport
from incremental_backups_tools.heap.sync.places import DEFAULT_THREADS
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.tree.entry import printable

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def storage_option(whose: str) -> Callable[[FunctionT], FunctionT]:
    """``--<whose>-option NAME=VALUE`` for the filesystem of one of a command's places."""
    return click.option(
        f"--{whose}-option",
        f"{whose}_options",
        metavar="NAME=VALUE",
        multiple=True,
        callback=named_values,
        help=f"As --storage-option, for the {whose} alone.",
    )


heap_option: Final = click.option(
    "--heap",
    "heap_url",
    metavar="URL",
    envvar="IBT_HEAP",
    required=True,
    shell_complete=complete_directory,
    help="Where the contents are kept: a directory or an fsspec URL.  [default: IBT_HEAP]",
)
snapshots_option: Final = click.option(
    "--snapshots",
    "snapshots_url",
    metavar="URL",
    envvar="IBT_SNAPSHOTS",
    shell_complete=complete_directory,
    help="Where the snapshots are kept.  [default: IBT_SNAPSHOTS, else beside the contents]",
)


def place_options(function: FunctionT) -> FunctionT:
    """The options that say where a heap and its snapshots are."""
    for option in (storage_option("snapshots"), storage_option("heap"), snapshots_option, heap_option):
        function = option(function)
    return function


def places_of(
    settings: Settings,
    *others: NamedPlace,
    heap_url: str,
    heap_options: dict[str, object],
    snapshots_url: str | None,
    snapshots_options: dict[str, object],
) -> list[StoreAddress]:
    """What is needed to open the *others*, then the place of the snapshots, then the heap.

    Raises:
        click.UsageError, OSError: as :func:`find_addresses`.
    """
    heap = ("heap", heap_url, heap_options)
    if snapshots_url:
        return find_addresses(settings, [*others, ("snapshots", snapshots_url, snapshots_options), heap])
    addresses = find_addresses(settings, [*others, heap])
    return [*addresses, addresses[-1]]


def threads_of(settings: Settings) -> int:
    """How many files to work on at a time: most of the time is spent waiting for a network."""
    return settings.threads or DEFAULT_THREADS


def unknown_sizes() -> Iterable[int]:
    """For a bar without an end: how much there is shows when it is done."""
    raise SourceError("not known")


def action_printer(settings: Settings, *, dry_run: bool) -> Callable[[str, bytes], None] | None:
    """Prints ``+ ~ m -`` and a path for each change that a dry run would make."""
    if settings.json or settings.quiet or not dry_run:
        return None
    return lambda op, path: print_line(f"{op} {printable(path)}")


def show_applied(report: ApplyReport, what: str, settings: Settings) -> ExitStatus:
    """Print what was done to a tree, and say how it ended."""
    for problem in report.problems:
        say("problem", str(problem))
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_summary(report, what))
    return ExitStatus.INCOMPLETE if report.problems else ExitStatus.DONE


def _summary(report: ApplyReport, what: str) -> str:
    parts = [f"{count_text(report.written, 'name')} written"]
    if not report.dry_run:
        parts[0] += f", {size_text(report.bytes_written)}"
    for number, words in (
        (report.unchanged, "right already"),
        (report.deleted, "deleted"),
        (report.kept, "there besides"),
    ):
        if number:
            parts.append(f"{number:,} {words}")
    if report.problems:
        parts.append(count_text(len(report.problems), "problem"))
    if report.undo:
        parts.append(f"to undo it, restore {report.undo}")
    begin = "dry run, would be " if report.dry_run else ""
    return f"{what}: {begin}{'; '.join(parts)}"
