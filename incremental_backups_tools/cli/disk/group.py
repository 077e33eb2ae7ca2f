"""The group ``ibt disk``: its commands by a table, each imported when it is called."""

from __future__ import annotations

from typing import Final

import click

from incremental_backups_tools.cli.group import LazyCommand, LazyGroup

_DISK: Final = "incremental_backups_tools.cli.disk"
_SETUP: Final = "Set up"
_RUN: Final = "Back up and restore"
_LOOK: Final = "Look ahead"

_COMMANDS: Final = (
    LazyCommand("init", f"{_DISK}.setup", _SETUP, "Make a catalogue of disks."),
    LazyCommand("map", f"{_DISK}.sources", _SETUP, "Keep a directory under a path; alone, list them."),
    LazyCommand("unmap", f"{_DISK}.sources", _SETUP, "Keep nothing more under a path."),
    LazyCommand("rule", f"{_DISK}.sources", _SETUP, "Say how many copies paths get, and which come first."),
    LazyCommand("add", f"{_DISK}.setup", _SETUP, "Make a directory on a disk part of it."),
    LazyCommand("adopt", f"{_DISK}.setup", _SETUP, "Take in a disk with what it holds, the catalogue too."),
    LazyCommand("list", f"{_DISK}.setup", _SETUP, "List the disks."),
    LazyCommand("rename", f"{_DISK}.setup", _SETUP, "Call a disk something else."),
    LazyCommand("set", f"{_DISK}.setup", _SETUP, "Change how far a disk is filled, or what holds for all."),
    LazyCommand("drop", f"{_DISK}.setup", _SETUP, "Forget a disk."),
    LazyCommand("update", f"{_DISK}.run", _RUN, "Find out what has changed in the source."),
    LazyCommand("backup", f"{_DISK}.run", _RUN, "Bring to a disk what it is to hold."),
    LazyCommand("restore", f"{_DISK}.restoring", _RUN, "Restore what the disks that are there hold."),
    LazyCommand("verify", f"{_DISK}.run", _RUN, "Read all that a disk is to hold, and check it."),
    LazyCommand("refresh", f"{_DISK}.run", _RUN, "See what is on a disk, and correct the catalogue."),
    LazyCommand("plan", f"{_DISK}.looking", _LOOK, "Show what a backup to each disk would do."),
    LazyCommand("minset", f"{_DISK}.restoring", _LOOK, "Name the disks that a restore needs."),
    LazyCommand("simulate-drop", f"{_DISK}.looking", _LOOK, "Show what the loss of disks would take."),
)


@click.group("disk", cls=LazyGroup, commands_table=_COMMANDS, subcommand_metavar="COMMAND [ARGS]...")
def disk() -> None:
    """Keep copies of files on any number of offline disks, of which one at a time is there.

    \b
      ibt disk init
      ibt disk map /photos /media/photos/DCIM
      ibt disk add disk-1 /media/disk-1
      ibt disk update
      ibt disk backup disk-1
      ibt disk restore /tmp/restored
    """


commands = [disk]
