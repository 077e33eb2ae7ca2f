"""From an exception to one clear line and an exit status."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from enum import IntEnum

import click

from incremental_backups_tools.cli.options import Settings
from incremental_backups_tools.cli.output import (
    abandon_output,
    flush_output,
    one_line,
    print_document,
    say,
    say_raw,
)
from incremental_backups_tools.exceptions import (
    BackupError,
    DecryptionError,
    RepositoryLockedError,
    RepositoryNotFoundError,
)


class ExitStatus(IntEnum):
    """What the command tells its caller; the numbers are restic's.

    Attributes:
        INCOMPLETE: done, but some source files could not be read or some files were not restored.
        CLOSED_PIPE: whoever read the output went away: 128 and the number of SIGPIPE, as a shell shows it.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    NO_REPOSITORY = 10
    LOCKED = 11
    WRONG_IDENTITY = 12
    INTERRUPTED = 130
    CLOSED_PIPE = 141


_STATUS_OF: tuple[tuple[type[BackupError], ExitStatus], ...] = (
    (RepositoryNotFoundError, ExitStatus.NO_REPOSITORY),
    (RepositoryLockedError, ExitStatus.LOCKED),
    (DecryptionError, ExitStatus.WRONG_IDENTITY),
    (BackupError, ExitStatus.FAILED),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is shown: exit status, the error's kind, and a message of one line."""

    status: ExitStatus
    kind: str
    message: str


def describe_error(error: BaseException) -> Failure:
    """What *error* means to the caller of the command."""
    kind = type(error).__name__
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Failure(ExitStatus.INTERRUPTED, "Interrupted", "interrupted")
    if isinstance(error, click.ClickException):
        return Failure(ExitStatus.USAGE, kind, one_line(_usage_message(error)))
    if isinstance(error, BackupError):
        status = next(status for known, status in _STATUS_OF if isinstance(error, known))
        return Failure(status, kind, one_line(str(error)))
    if isinstance(error, OSError):
        return Failure(ExitStatus.FAILED, kind, one_line(_system_message(error)))
    return Failure(
        ExitStatus.FAILED,
        kind,
        one_line(f"unexpected {kind}: {error} (IBT_DEBUG=1 shows where it came from)"),
    )


def report_error(error: BaseException, settings: Settings) -> ExitStatus:
    """Tell about *error* in one line on the standard error, and with ``--json`` on the standard output too.

    Returns:
        The exit status.
    """
    if isinstance(error, BrokenPipeError):
        abandon_output()
        return ExitStatus.CLOSED_PIPE
    failure = describe_error(error)
    if settings.verbosity >= 2 or os.environ.get("IBT_DEBUG"):
        say_raw("".join(traceback.format_exception(error)))
    say("error", failure.message)
    if settings.json:
        try:
            print_document(
                {
                    "error": {
                        "type": failure.kind,
                        "message": failure.message,
                        "exit_status": int(failure.status),
                    }
                }
            )
            flush_output()
        except OSError:
            abandon_output()  # nobody reads it, and the first error is the one that counts
    else:
        abandon_output()
    return failure.status


def _usage_message(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message} (see '{context.command_path} --help')"


def _system_message(error: OSError) -> str:
    what = error.strerror or str(error)
    if isinstance(error.filename, (str, bytes)):
        return f"{os.fsdecode(error.filename)}: {what}"
    return what
