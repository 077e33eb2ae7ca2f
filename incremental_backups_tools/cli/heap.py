"""``ibt heap``: snapshots of a tree anywhere, with the contents in a heap anywhere."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from click.shell_completion import CompletionItem

from incremental_backups_tools.cli.completion_items import complete_directory, whens_beginning
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options, share_option
from incremental_backups_tools.cli.output import DocumentList, print_document, print_line, say
from incremental_backups_tools.cli.place import find_addresses
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import count_text, duration_text, size_text, time_text, utc_text
from incremental_backups_tools.cli.trees import (
    action_printer,
    heap_option,
    place_options,
    places_of,
    show_applied,
    snapshots_option,
    storage_option,
    threads_of,
    unknown_sizes,
)
from incremental_backups_tools.exceptions import BackupError, ChainError
from incremental_backups_tools.heap.sync.collect import CollectReport, collect_garbage, verify_heap
from incremental_backups_tools.heap.sync.compare import (
    DIFFERENT,
    EQUAL,
    ONLY_LEFT,
    ONLY_RIGHT,
    compare_snapshots,
)
from incremental_backups_tools.heap.sync.snapshooter import Snapshooter
from incremental_backups_tools.heap.sync.snapshot import SNAPSHOTS, UNDO, Snapshot, SnapshotStore
from incremental_backups_tools.points.when import parse_age, select_backup
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.filesystems import store_at
from incremental_backups_tools.repository.layout import parse_backup_id
from incremental_backups_tools.tree.entry import printable

_MARKS = {ONLY_LEFT: "<", ONLY_RIGHT: ">", DIFFERENT: "~", EQUAL: "="}
_UNDO_NAME = re.compile(r"undo/([0-9T.]+Z)(?:\.jsonl\.zst)?")


def _complete_when(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The snapshots that begin so, newest first, those for undoing once ``undo/`` is begun; nothing without a heap."""
    where = {name: context.params.get(name) for name in ("heap_url", "snapshots_url")}
    options = {name: context.params.get(name) or {} for name in ("heap_options", "snapshots_options")}
    if not where["heap_url"]:
        return []
    try:
        place = _snapshots(context.find_object(Settings) or Settings(), **where, **options)
        found = whens_beginning(incomplete, [saved.id for saved in place.list()])
        if incomplete and f"{UNDO}/".startswith(incomplete[: len(UNDO) + 1]):
            found += [f"{UNDO}/{saved.id}" for saved in reversed(place.list(UNDO))]
    except (BackupError, OSError, click.UsageError):
        return []
    return [CompletionItem(when) for when in found if when.startswith(incomplete)]


@click.group("heap", short_help="Snapshots of a tree anywhere, in a heap anywhere.")
def heap() -> None:
    """Snapshots of a tree at any directory or fsspec URL, each content stored once in a heap at another.

    WHEN is as for the other commands: latest, the start of an id, a date, a time or an age.
    """


@heap.command("snapshot", cls=IbtCommand)
@click.argument("source", metavar="SRC_URL", shell_complete=complete_directory)
@place_options
@storage_option("source")
@click.option("--checksum", is_flag=True, help="Read all files, also where nothing speaks for a change.")
@click.option(
    "--max-deleted",
    metavar="SHARE",
    default="50%",
    show_default=True,
    callback=share_option,
    help="Stop where SRC_URL has shrunk by more than this share of its names: it may not be mounted.",
)
@common_options
@click.pass_obj
def snapshot(
    settings: Settings,
    /,
    source: str,
    source_options: dict[str, object],
    checksum: bool,
    max_deleted: float,
    **where: Any,
) -> ExitStatus:
    """Take a snapshot of the tree at SRC_URL.

    A file that cannot be read is named, the rest goes on, and the exit status is 3.
    """
    begin = time.monotonic()
    tree, snapshots, heap_address = places_of(settings, ("source", source, source_options), **where)
    with show_progress(settings, "Storing", unknown_sizes) as on_progress:
        snapshooter = _snapshooter(
            settings,
            tree,
            snapshots,
            heap_address,
            on_problem=lambda path, message: say("problem", f"{printable(path)}: {message}"),
            on_progress=on_progress,
        )
        made, _ = snapshooter.make_snapshot(checksum=checksum, max_deleted=max_deleted)
        name = snapshooter.save_snapshot(made)
    stats = snapshooter.stats
    if settings.json:
        print_document(
            {
                "snapshot": name,
                "id": made.id,
                "files": stats.files,
                "read": stats.read,
                "bytes_read": stats.bytes_read,
                "bytes_stored": stats.bytes_stored,
                "problems": [f"{printable(path)}: {message}" for path, message in made.problems],
            }
        )
    elif not settings.quiet:
        print_line(
            f"{name}: {count_text(stats.files, 'file')}, {stats.read:,} read, {size_text(stats.bytes_stored)} "
            f"stored, in {duration_text(time.monotonic() - begin)}"
        )
    return ExitStatus.INCOMPLETE if made.problems else ExitStatus.DONE


@heap.command("restore", cls=IbtCommand)
@click.argument("target", metavar="DST_URL", shell_complete=complete_directory)
@click.argument("when", metavar="[WHEN]", required=False, shell_complete=_complete_when)
@place_options
@storage_option("target")
@click.option("--delete", is_flag=True, help="Remove from DST_URL what the snapshot does not have.")
@click.option("--no-undo", is_flag=True, help="Do not keep what is replaced and removed.")
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be done, and change nothing.")
@common_options
@click.pass_obj
def restore(
    settings: Settings,
    /,
    target: str,
    when: str | None,
    target_options: dict[str, object],
    delete: bool,
    no_undo: bool,
    dry_run: bool,
    **where: Any,
) -> ExitStatus:
    """Make the tree at DST_URL what a snapshot says: the latest, that of WHEN, or undo/ID.

    What is there now is kept first, in a snapshot for undoing that is never the latest. A file is replaced when
    its new content was found right, at once. What cannot be restored is named, and the exit status is 3.
    """
    tree, snapshots, heap_address = places_of(settings, ("target", target, target_options), **where)
    with show_progress(settings, "Restoring", unknown_sizes) as on_progress:
        snapshooter = _snapshooter(settings, tree, snapshots, heap_address, on_progress=on_progress)
        report = snapshooter.restore_snapshot(
            _load(snapshooter.snapshots, when),
            delete=delete,
            undo=not no_undo,
            dry_run=dry_run,
            on_action=action_printer(settings, dry_run=dry_run),
        )
    return show_applied(report, snapshooter.tree.url, settings)


@heap.command("list", cls=IbtCommand)
@place_options
@click.option("--undo", is_flag=True, help="List what restoring has replaced instead.")
@common_options
@click.pass_obj
def list_command(settings: Settings, /, undo: bool, **where: Any) -> ExitStatus:
    """List the snapshots, oldest first."""
    place = _snapshots(settings, **where)
    rows = [(saved, place.header(saved)) for saved in place.list(UNDO if undo else SNAPSHOTS)]
    if settings.json:
        document = [
            {
                "snapshot": saved.name,
                "id": saved.id,
                "time": utc_text(parse_backup_id(saved.id)),
                "source": header.root,
            }
            for saved, header in rows
        ]
        print_document({"snapshots": document})
        return ExitStatus.DONE
    for saved, header in rows:
        shown = f"undo/{saved.id}" if undo else saved.id
        print_line(f"{shown}  {time_text(parse_backup_id(saved.id))}  {printable(header.root.encode())}")
    return ExitStatus.DONE


@heap.command("compare", cls=IbtCommand)
@click.argument("left", metavar="LEFT", shell_complete=_complete_when)
@click.argument("right", metavar="[RIGHT]", required=False, shell_complete=_complete_when)
@place_options
@click.option("--all", "show_equal", is_flag=True, help="Name the files that are equal, too.")
@common_options
@click.pass_obj
def compare(
    settings: Settings, /, left: str, right: str | None, show_equal: bool, **where: Any
) -> ExitStatus:
    """Compare two snapshots by content: that of LEFT with that of RIGHT, or with the latest.

    Prints '<' and what only LEFT has, '>' and what only RIGHT has, '~' and what differs.
    """
    place = _snapshots(settings, **where)
    counts = dict.fromkeys(_MARKS, 0)
    with DocumentList("names") as document:
        for name in compare_snapshots(_load(place, left), _load(place, right)):
            counts[name.status] += 1
            if name.status == EQUAL and not show_equal:
                continue
            if settings.json:
                document.add({"path": printable(name.path), "status": name.status})
            else:
                print_line(f"{_MARKS[name.status]} {printable(name.path)}")
        if settings.json:
            document.print(counts)
    return ExitStatus.DONE


def _check_age(context: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    try:
        return parse_age(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@heap.command("gc", cls=IbtCommand)
@heap_option
@storage_option("heap")
@click.option(
    "--snapshots",
    "snapshots_urls",
    metavar="URL",
    envvar="IBT_SNAPSHOTS",
    multiple=True,
    help="Where snapshots that need the heap are kept; give all such places.  [default: beside the contents]",
)
@storage_option("snapshots")
@click.option(
    "--drop-undo",
    metavar="AGE",
    callback=_check_age,
    help="Forget what restores of this age, such as 30d, have replaced.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Find out what would be deleted, and delete nothing.")
@common_options
@click.pass_obj
def gc(
    settings: Settings,
    heap_url: str,
    heap_options: dict[str, object],
    snapshots_urls: tuple[str, ...],
    snapshots_options: dict[str, object],
    drop_undo: timedelta | None,
    dry_run: bool,
) -> ExitStatus:
    """Delete the contents that no snapshot needs, and what killed runs left.

    Deletes nothing where a place that the heap knows is not named, a snapshot cannot be read, or a snapshot is
    being made.
    """
    places = [("snapshots", url, snapshots_options) for url in snapshots_urls]
    addresses = find_addresses(settings, [("heap", heap_url, heap_options), *places])
    heap_store, *stores = map(store_at, addresses)
    report = collect_garbage(
        heap_store,
        stores or [heap_store],
        drop_undo_older_than=drop_undo,
        dry_run=dry_run,
    )
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        print_line(_collected(report))
    return ExitStatus.DONE


def _collected(report: CollectReport) -> str:
    verb = "would delete" if report.dry_run else "deleted"
    text = (
        f"{count_text(report.snapshots, 'snapshot')} need {count_text(report.kept_objects, 'object')}; {verb} "
        f"{count_text(report.deleted_objects, 'object')}, {size_text(report.deleted_bytes)}"
    )
    if report.deleted_undo:
        text += f", {count_text(report.deleted_undo, 'snapshot')} for undoing"
    if report.temporaries:
        text += f", {count_text(report.temporaries, 'file')} of killed runs"
    return text


@heap.command("verify", cls=IbtCommand)
@heap_option
@storage_option("heap")
@snapshots_option
@storage_option("snapshots")
@click.option("--read-data", is_flag=True, help="Read all contents that snapshots need, and check them.")
@common_options
@click.pass_obj
def verify(settings: Settings, /, read_data: bool, **where: Any) -> ExitStatus:
    """Check that all contents that the snapshots need are there, each with its size.

    The exit status is 1 where a fault was found.
    """
    snapshots, heap_store = map(store_at, places_of(settings, **where))
    report = verify_heap(heap_store, [snapshots], read_data=read_data)
    for fault in report.faults:
        say("fault", fault)
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        how = f"{size_text(report.bytes_read)} read" if read_data else "present, not read"
        print_line(
            f"{count_text(report.snapshots, 'snapshot')}, {count_text(report.objects, 'object')} {how}; "
            f"{count_text(len(report.faults), 'fault')}"
        )
    return ExitStatus.FAILED if report.faults else ExitStatus.DONE


commands = [heap]


def _snapshots(settings: Settings, **where: Any) -> SnapshotStore:
    snapshots, _ = places_of(settings, **where)
    return SnapshotStore(store_at(snapshots))


def _snapshooter(
    settings: Settings,
    tree: StoreAddress,
    snapshots: StoreAddress,
    heap_address: StoreAddress,
    **callbacks: Any,
) -> Snapshooter:
    try:
        return Snapshooter.at(tree, snapshots, heap_address, threads=threads_of(settings), **callbacks)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def _load(place: SnapshotStore, when: str | None) -> Snapshot:
    """The snapshot that WHEN means, or one for undoing by its name."""
    match = _UNDO_NAME.fullmatch(when or "")
    saved = place.list(UNDO if match else SNAPSHOTS)
    if match:
        found = next((item for item in saved if item.id == match[1]), None)
        if found is None:
            raise ChainError(f"{place.store.url}: there is no {when}")
        return place.load(found.name)
    try:
        chosen = select_backup([item.id for item in saved], when, now=datetime.now(UTC), what=place.store.url)
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
    return place.load(chosen)
