"""The command ``ibt``: one module a command, imported when that command is called.

This floor alone prints, reads the environment and exits. ``main`` is the way in; what each exit status means
stands in ``cli/errors.py``.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import click

from incremental_backups_tools._version import __version__
from incremental_backups_tools.cli.errors import ExitStatus, report_error
from incremental_backups_tools.cli.group import LazyCommand, LazyGroup
from incremental_backups_tools.cli.options import Settings, common_options
from incremental_backups_tools.cli.output import (
    flush_output,
    is_json_asked_for,
    prepare_streams,
    show_library_warnings,
)
from incremental_backups_tools.cli.signals import signals_as_interrupts

__all__ = ["main"]

_PROGRAM = "ibt"
_COMPLETION_VARIABLE = "_IBT_COMPLETE"
_CLI = "incremental_backups_tools.cli"
_BACKUPS = "Back up and restore"
_LOOKING = "Look at backups"
_KEEPING = "Thin them out, carry them elsewhere"
_KEYS = "Keys and cache"
_HEAP = "Whole files by content"
_DELTAS = "Single files, as rdiff"
_SHELL = "The shell"

_COMMANDS = (
    LazyCommand("backup", f"{_CLI}.backup", _BACKUPS, "Back up a directory: what has changed, or all of it."),
    LazyCommand("restore", f"{_CLI}.restore", _BACKUPS, "Restore a backup, or some paths of it."),
    LazyCommand("verify", f"{_CLI}.verify", _BACKUPS, "Check that backups are whole and restore."),
    LazyCommand("salvage", f"{_CLI}.salvage", _BACKUPS, "Restore what can be had of a damaged repository."),
    LazyCommand("list", f"{_CLI}.listing", _LOOKING, "List the backups."),
    LazyCommand("ls", f"{_CLI}.ls", _LOOKING, "List what a backup holds, as 'ls -l'."),
    LazyCommand("find", f"{_CLI}.find", _LOOKING, "Find which backups hold a name."),
    LazyCommand("diff", f"{_CLI}.diff", _LOOKING, "Compare two backups, or one with a directory."),
    LazyCommand("stats", f"{_CLI}.stats", _LOOKING, "Show what backups cost, and what changes most."),
    LazyCommand("prune", f"{_CLI}.prune", _KEEPING, "Forget points in time, and free what they alone need."),
    LazyCommand("merge", f"{_CLI}.merge", _KEEPING, "Replace a run of increments by one."),
    LazyCommand("rebase", f"{_CLI}.merge", _KEEPING, "Turn a point in time into a full backup."),
    LazyCommand("copy", f"{_CLI}.copy", _KEEPING, "Carry backups to another repository."),
    LazyCommand("key", f"{_CLI}.key", _KEYS, "Say whom files are encrypted to."),
    LazyCommand("cache", f"{_CLI}.cache", _KEYS, "Look at the local cache, or remove parts of it."),
    LazyCommand(
        "snapshot", f"{_CLI}.snapshot", _HEAP, "Snapshots as plain trees that share files by hard links."
    ),
    LazyCommand("sync", f"{_CLI}.sync", _HEAP, "Make one tree equal to another, wherever the two are."),
    LazyCommand("heap", f"{_CLI}.heap", _HEAP, "Snapshots of a tree anywhere, in a heap anywhere."),
    LazyCommand("disk", f"{_CLI}.disk.group", _HEAP, "Copies spread over offline disks."),
    LazyCommand("signature", f"{_CLI}.rdiff", _DELTAS, "Make a file's signature."),
    LazyCommand("delta", f"{_CLI}.rdiff", _DELTAS, "Make a delta from a signature and a new file."),
    LazyCommand("patch", f"{_CLI}.rdiff", _DELTAS, "Apply a delta to a file."),
    LazyCommand("compose", f"{_CLI}.rdiff", _DELTAS, "Make one delta of two that follow each other."),
    LazyCommand(
        "completion", f"{_CLI}.completion", _SHELL, "Print what makes a shell complete ibt's arguments."
    ),
)

_EPILOG = """\b
WHEN is one of
  latest                  the newest backup
  20261120T0725           the start of a backup's id
  2026-11-20[T07:25]      local time; the last backup at or before it
  3d, 12h, 2w, 6m, 1y     that long ago; the last backup at or before it

KEY@WHEN names a backup. KEY may be left out where the repository has one key, @WHEN for the newest backup.

\b
Environment:
  IBT_REPOSITORY          the repository, where -r is not given
  IBT_CONFIG              the configuration file, in place of the user's
  IBT_CACHE_DIR           the directory of the local cache
  IBT_IDENTITY, IBT_PASSPHRASE_FILE, IBT_RECIPIENTS_FILE, IBT_SIGN_KEY, IBT_VERIFY_KEY
                          as the options of those names
  IBT_HEAP, IBT_SNAPSHOTS where 'ibt heap' keeps contents and snapshots
  IBT_DISK_CATALOGUE      the directory of the catalogue of disks
  IBT_DEBUG               show where an error came from

\b
Exit status:
  0  done
  1  failed, or a fault was found
  2  wrong usage
  3  done, but some source files were not read or some files not restored
  10 no repository there   11 locked   12 wrong identity   130 interrupted
"""


@click.group(
    cls=LazyGroup,
    commands_table=_COMMANDS,
    epilog=_EPILOG,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name=_PROGRAM, message="%(prog)s %(version)s")
@common_options
def _ibt() -> None:
    """Incremental backups of directories with rsync deltas.

    \b
      ibt backup ~/documents
      ibt list
      ibt restore documents@3d /tmp/restored
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        arguments: without the program's name; None is the process's own.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    prepare_streams()
    show_library_warnings()
    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # only a shell asks for it

        return shell_complete(_ibt, {}, _PROGRAM, _COMPLETION_VARIABLE, instruction)
    settings = Settings()
    try:
        with signals_as_interrupts():
            status = _run(given, settings)
            flush_output()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        # The outermost place: whatever it is, it becomes one line and an exit status. Of wrong usage the
        # options may not have been parsed.
        settings.json |= isinstance(error, click.UsageError) and is_json_asked_for(given)
        return report_error(error, settings)
    return status


def run() -> int:
    """The command as a process of its own, which ends after it.

    What has been made is left to the system: the collector need not look at all of it for what could be freed.
    """
    status = main()
    gc.freeze()
    return status


def _run(arguments: list[str], settings: Settings) -> int:
    try:
        # Not click's main(): that one takes any EPIPE for a closed standard output, and Ctrl-C for a failure.
        with _ibt.make_context(_PROGRAM, list(arguments) or ["--help"], obj=settings) as context:
            result = _ibt.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, ExitStatus) else ExitStatus.DONE
