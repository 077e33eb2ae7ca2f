"""``ibt snapshot list``, ``ls``, ``diff`` and ``verify``: what there is, and whether it is right.

With ``--json``: ``{"snapshots": [{"name", "id", "time", "path", "source", "host", "entries", "files", "bytes",
"added_objects", "added_bytes", "problem_count", "imported"}, …]}``, oldest first, for ``list``; ``{"name", "id",
"entries": […]}`` for ``ls``; ``{"old", "new", "problems", "changes": [{"op", …, "old"}, …]}`` for ``diff``;
``{"snapshots", "objects", "bytes_read", "faults": [{"what", "message"}, …]}`` for ``verify``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

from incremental_backups_tools.chain.look import compare, iter_directory
from incremental_backups_tools.cli.diff import difference_line
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import DocumentList, one_line, print_document, print_line, say
from incremental_backups_tools.cli.progress import show_progress
from incremental_backups_tools.cli.rendering import (
    count_text,
    entry_record,
    long_line,
    size_text,
    time_text,
    utc_text,
)
from incremental_backups_tools.cli.snapshot.points import (
    complete_name,
    complete_snapshot,
    complete_snapshot_or_directory,
    dest_option,
    find_snapshot,
    split_name,
)
from incremental_backups_tools.cli.writing import wait_option
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.index import SnapshotHeader
from incremental_backups_tools.heap.snapshots.verify import VerifyReport, verify_snapshots
from incremental_backups_tools.repository.layout import parse_backup_id
from incremental_backups_tools.tree.diff import DELETED
from incremental_backups_tools.tree.entry import ROOT, Entry, printable
from incremental_backups_tools.tree.index import Problem
from incremental_backups_tools.tree.selection import Selection


@click.command("list", cls=IbtCommand)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@dest_option
@common_options
@click.pass_obj
def list_command(settings: Settings, name: str | None, dest: str) -> ExitStatus:
    """List the snapshots in DEST, or those of NAME, oldest first: local time, files, bytes, bytes added.

    A snapshot whose index cannot be read is named, and the exit status is 1.
    """
    depot = Depot.open(dest)
    headers: list[SnapshotHeader] = []
    faults: list[dict[str, str]] = []
    for root in depot.names() if name is None else [name]:
        for snapshot_id in depot.snapshot_ids(root):
            try:
                headers.append(depot.header(root, snapshot_id))
            except BackupError as error:
                faults.append({"what": f"{root}@{snapshot_id}", "message": one_line(str(error))})
    headers.sort(key=lambda header: (header.id, header.name))
    for fault in faults:
        say("fault", f"{fault['what']}: {fault['message']}")
    if settings.json:
        document: dict[str, Any] = {"snapshots": [_record(depot, header) for header in headers]}
        if faults:
            document["faults"] = faults
        print_document(document)
    else:
        for header in headers:
            print_line(_line(header))
    return ExitStatus.FAILED if faults else ExitStatus.DONE


@click.command("ls", cls=IbtCommand)
@click.argument("point", metavar="[NAME[@WHEN]]", required=False, shell_complete=complete_snapshot)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@dest_option
@common_options
@click.pass_obj
def ls(settings: Settings, point: str | None, paths: tuple[str, ...], dest: str) -> ExitStatus:
    """List what a snapshot holds, as 'ls -l': all of it, or each PATH with everything below."""
    depot = Depot.open(dest)
    name, snapshot_id = find_snapshot(depot, point)
    selection = Selection(paths)
    entries = (entry for entry in depot.entries(name, snapshot_id) if selection.matches(entry.path))
    if not settings.json:
        for entry in entries:
            print_line(long_line(entry))
        selection.check_all_matched()
        return ExitStatus.DONE
    with DocumentList("entries") as document:
        for entry in entries:
            document.add(entry_record(entry))
        selection.check_all_matched()
        document.print({"name": name, "id": snapshot_id})
    return ExitStatus.DONE


@click.command("diff", cls=IbtCommand)
@click.argument("old", metavar="NAME@A", shell_complete=complete_snapshot)
@click.argument("new", metavar="NAME@B|DIR", shell_complete=complete_snapshot_or_directory)
@dest_option
@common_options
@click.pass_obj
def diff(settings: Settings, old: str, new: str, dest: str) -> ExitStatus:
    """Show what leads from the snapshot NAME@A to the snapshot NAME@B, or to the directory DIR as it is now.

    The lines are those of 'ibt diff'. The second argument is a directory if it has a slash in it. What cannot be read
    is named and not compared; the exit status is 3 then.
    """
    depot = Depot.open(dest)
    before = find_snapshot(depot, old)
    problems: list[Problem] = []
    after: Iterator[Entry]
    if os.sep in new or new in (os.curdir, os.pardir):
        shown: dict[str, str] = {"directory": printable(os.fsencode(os.path.abspath(new)))}
        live = iter_directory(new, on_problem=lambda path, message: problems.append(Problem(path, message)))
        after = (item.entry for item in live)
    else:
        name, snapshot_id = find_snapshot(depot, new)
        shown = {"name": name, "id": snapshot_id}
        after = depot.entries(name, snapshot_id)
    with DocumentList("changes") as document:
        for difference in compare(after, depot.entries(*before)):
            if difference.op == DELETED and _is_hidden(difference.entry.path, problems):
                continue
            if not settings.json:
                print_line(difference_line(difference))
                continue
            record: dict[str, Any] = {"op": difference.op, **entry_record(difference.entry)}
            if difference.old is not None and difference.op != DELETED:
                record["old"] = entry_record(difference.old)
            document.add(record)
        if settings.json:
            found = [{"path": printable(item.path), "message": item.message} for item in problems]
            old_record = {"name": before[0], "id": before[1]}
            document.print({"old": old_record, "new": shown, "problems": found})
    for problem in problems:
        say("problem", str(problem))
    return ExitStatus.INCOMPLETE if problems else ExitStatus.DONE


@click.command("verify", cls=IbtCommand)
@click.argument("point", metavar="[NAME[@WHEN]]", required=False, shell_complete=complete_snapshot)
@dest_option
@wait_option
@common_options
@click.pass_obj
def verify(settings: Settings, point: str | None, dest: str, wait_seconds: float) -> ExitStatus:
    """Check snapshots: all of them, those of NAME, or NAME@WHEN.

    Every index is read to its end and compared with its tree, and every object is read and compared with its digest
    and its metadata. Each fault is named, and the exit status is 1 if there is any. An object with other bytes than it
    should have is set aside: the next snapshot whose source still has the file stores it anew, for all snapshots.
    """
    depot = Depot.open(dest)
    name, when = split_name(depot, point)
    snapshot_id = None
    if when is not None:
        name, snapshot_id = find_snapshot(depot, point)
    elif name is not None:
        depot.select(name, None)  # whether there is such a root

    def iter_sizes() -> Iterator[int]:
        for root in depot.names() if name is None else [name]:
            for known in depot.snapshot_ids(root) if snapshot_id is None else [snapshot_id]:
                yield from (entry.size for entry in depot.entries(root, known) if entry.is_content_holder)

    with show_progress(settings, "Verifying", iter_sizes) as on_progress:
        report = verify_snapshots(
            depot,
            name,
            snapshot_id,
            threads=settings.threads,
            wait_seconds=wait_seconds,
            on_progress=on_progress,
        )
    _show(report, settings)
    return ExitStatus.FAILED if report.faults else ExitStatus.DONE


commands = [list_command, ls, diff, verify]


def _is_hidden(path: bytes, problems: list[Problem]) -> bool:
    """Whether *path* only seems to be gone: it, or a directory on the way to it, could not be read."""
    return any(problem.path in (path, ROOT) or path.startswith(problem.path + b"/") for problem in problems)


def _record(depot: Depot, header: SnapshotHeader) -> dict[str, Any]:
    return {
        "name": header.name,
        "id": header.id,
        "time": utc_text(parse_backup_id(header.id)),
        "path": depot.tree_path(header.name, header.id),
        "source": header.source,
        "host": header.host,
        "entries": header.entries,
        "files": header.files,
        "bytes": header.bytes,
        "added_objects": header.added_objects,
        "added_bytes": header.added_bytes,
        "problem_count": header.problems,
        "imported": header.imported,
    }


def _line(header: SnapshotHeader) -> str:
    time = time_text(parse_backup_id(header.id))
    notes = f"  {count_text(header.problems, 'problem')}" if header.problems else ""
    if header.imported is not None:
        notes += f"  from {one_line(header.imported)}"
    return (
        f"{header.name}@{header.id}  {time}  {count_text(header.files, 'file'):>14}"
        f"  {size_text(header.bytes):>10}  {size_text(header.added_bytes):>10} added{notes}"
    )


def _show(report: VerifyReport, settings: Settings) -> None:
    for fault in report.faults:
        say("fault", f"{fault.what}: {fault.message}")
    if settings.json:
        print_document(report.to_dict())
    elif not settings.quiet:
        found = count_text(len(report.faults), "fault") if report.faults else "no fault found"
        print_line(
            f"{count_text(report.snapshots, 'snapshot')}, {count_text(report.objects, 'object')} "
            f"({size_text(report.bytes_read)}): {found}"
        )
