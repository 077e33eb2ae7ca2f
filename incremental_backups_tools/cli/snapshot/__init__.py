"""``ibt snapshot``: a group of commands, each imported when it is called."""

from __future__ import annotations

import click

from incremental_backups_tools.cli.group import LazyCommand, LazyGroup
from incremental_backups_tools.cli.options import common_options

_MODULES = "incremental_backups_tools.cli.snapshot"
_MAKING = "Make and restore"
_LOOKING = "Look at snapshots"
_KEEPING = "Thin them out"

_COMMANDS = (
    LazyCommand("create", f"{_MODULES}.create", _MAKING, "Make a snapshot of each directory."),
    LazyCommand("restore", f"{_MODULES}.restore", _MAKING, "Restore a snapshot, or some paths of it."),
    LazyCommand("import", f"{_MODULES}.create", _MAKING, "Take over snapshots that cacheback made."),
    LazyCommand("list", f"{_MODULES}.look", _LOOKING, "List the snapshots."),
    LazyCommand("ls", f"{_MODULES}.look", _LOOKING, "List what a snapshot holds, as 'ls -l'."),
    LazyCommand("diff", f"{_MODULES}.look", _LOOKING, "Compare two snapshots, or one with a directory."),
    LazyCommand("verify", f"{_MODULES}.look", _LOOKING, "Read everything and find what was altered."),
    LazyCommand("delete", f"{_MODULES}.keep", _KEEPING, "Delete snapshots."),
    LazyCommand(
        "prune", f"{_MODULES}.keep", _KEEPING, "Delete snapshots by rules, and free what they alone had."
    ),
    LazyCommand("gc", f"{_MODULES}.keep", _KEEPING, "Free what no snapshot has."),
)


@click.group("snapshot", cls=LazyGroup, commands_table=_COMMANDS, subcommand_metavar="COMMAND [ARGS]...")
@common_options
def snapshot() -> None:
    """Snapshots of directories as plain trees: browse them, copy from them. Files that did not change are hard
    links to one and the same.

    \b
      ibt snapshot create ~/documents -d /mnt/disk
      ibt snapshot list -d /mnt/disk
      cp /mnt/disk/documents/20261120T072531.123456Z/letter.txt .

    DEST must be a file system with hard links. NAME@WHEN names a snapshot, WHEN as for backups; NAME may be left out
    where DEST has snapshots of one directory, @WHEN for the newest.
    """


commands = [snapshot]
