"""``ibt sync``: make one tree equal to another, wherever they are."""

from __future__ import annotations

import os

import click

from incremental_backups_tools.cli.completion_items import complete_directory
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options, share_option
from incremental_backups_tools.cli.place import find_addresses
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.trees import (
    action_printer,
    show_applied,
    storage_option,
    threads_of,
    unknown_sizes,
)
from incremental_backups_tools.cli.writing import cache_option
from incremental_backups_tools.heap.sync.places import check_apart, open_tree_at
from incremental_backups_tools.heap.sync.syncing import sync_trees


@click.command("sync", cls=IbtCommand)
@click.argument("source", metavar="SRC_URL", shell_complete=complete_directory)
@click.argument("target", metavar="DST_URL", shell_complete=complete_directory)
@click.option("--delete", is_flag=True, help="Remove from DST_URL what SRC_URL does not have.")
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and change nothing.")
@click.option(
    "--checksum",
    is_flag=True,
    help="Compare the contents of all files, also where nothing speaks for a change.",
)
@click.option(
    "--max-deleted",
    metavar="SHARE",
    default="50%",
    show_default=True,
    callback=share_option,
    help="With --delete, stop where DST_URL would shrink by more than this share of its names.",
)
@storage_option("source")
@storage_option("target")
@cache_option
@common_options
@click.pass_obj
def sync(
    settings: Settings,
    source: str,
    target: str,
    delete: bool,
    dry_run: bool,
    checksum: bool,
    max_deleted: float,
    source_options: dict[str, object],
    target_options: dict[str, object],
    cache_root: str | None,
) -> ExitStatus:
    """Make the tree at DST_URL hold what the tree at SRC_URL holds; each is a directory or an fsspec URL.

    A file is replaced at once and never in part. What DST_URL has besides stays, unless --delete is given. A
    file that cannot be read is named, the rest goes on, and the exit status is 3.
    """
    threads = threads_of(settings)
    places = [("source", source, source_options), ("target", target, target_options)]
    trees = [open_tree_at(address, threads=threads) for address in find_addresses(settings, places)]
    try:
        check_apart(trees[0].url, trees[1].url)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    with show_progress(settings, "Copying", unknown_sizes) as on_progress:
        report = sync_trees(
            trees[0],
            trees[1],
            delete=delete,
            dry_run=dry_run,
            checksum=checksum,
            max_deleted=max_deleted,
            threads=threads,
            record_directory=os.path.join(cache_root, "sync") if cache_root else None,
            on_action=action_printer(settings, dry_run=dry_run),
            on_progress=on_progress,
        )
    return show_applied(report, trees[1].url, settings)


commands = [sync]
