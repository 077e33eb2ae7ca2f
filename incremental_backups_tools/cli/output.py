"""What the command writes: results on the standard output, everything about them on the standard error.

With ``--json`` the standard output holds exactly one JSON document, written at the end: the result, or
``{"error": {"type", "message", "exit_status"}}``. The standard error is the same with it and without, bar the
progress.

Every line on the standard error begins ``ibt: <kind>:``, of the kinds ``error``, ``fault``, ``problem``,
``warning``, ``notice`` and ``debug``.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

_PROGRAM: Final = "ibt"
_PACKAGE: Final = "incremental_backups_tools"
_SPOOL_LEN: Final = 8 << 20


def prepare_streams() -> None:
    """Make the standard streams fit for any name in any locale, and take the places of those that are closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file that is opened takes this number, and what is printed ends up in it.
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_json_asked_for(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among *arguments*: a usage error comes up before they are parsed."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def is_terminal(stream: Any) -> bool:
    """Whether a person at a terminal that can move its cursor reads *stream*."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


# --- the standard output -------------------------------------------------------------------------------------


def write_output(text: str) -> None:
    """Write to the standard output.

    Raises:
        OSError: it cannot be written to; BrokenPipeError where its reader is gone.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def write_raw(data: bytes) -> None:
    """Write bytes to the standard output as they are. Raises as :func:`write_output`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def flush_output() -> None:
    """Bring what was written to its reader. Raises as :func:`write_output`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def abandon_output() -> None:
    """Write out what can be, and drop what cannot: nothing is left that the interpreter would stumble over."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        # The buffer still holds what was refused; this lets it go where it harms nobody.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.stdout.flush()


def print_line(text: str) -> None:
    """One line of a result."""
    write_output(text + "\n")


def print_document(document: Mapping[str, Any]) -> None:
    """The JSON document that is the result. It is ASCII, so that it survives every locale."""
    print_line(json.dumps(document))


class DocumentList:
    """A JSON document with a long list in it, kept out of memory until it is complete.

    Args:
        name: of the list in the document.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_LEN, "w+", encoding="ascii", prefix="ibt-output-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one element to the list."""
        self._spool.write((",\n" if self._count else "\n") + json.dumps(record))
        self._count += 1

    def print(self, rest: Mapping[str, Any]) -> None:
        """Print the document: the fields of *rest*, and the list at its end."""
        fields = "".join(f"{json.dumps(name)}: {json.dumps(value)}, " for name, value in rest.items())
        write_output("{" + fields + json.dumps(self._name) + ": [")
        self._spool.seek(0)
        while chunk := self._spool.read(1 << 20):
            write_output(chunk)
        print_line("]}")


# --- the standard error --------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """*text* with everything escaped that could move a cursor, end a line, or is no character at all."""
    return text if text.isprintable() else "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"  # a byte of a name that is not UTF-8
    return char.encode("unicode_escape").decode()


def say(kind: str, message: str) -> None:
    """One line on the standard error: ``ibt: <kind>: <message>``."""
    say_raw(f"{_PROGRAM}: {kind}: {one_line(message)}\n")


def say_raw(text: str) -> None:
    """Text on the standard error."""
    if sys.stderr is None:
        return
    # A backup does not fail because nobody reads what it says.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning" if record.levelno >= logging.WARNING else "debug"
        say(kind, record.getMessage())


def show_library_warnings() -> None:
    """Show what the library logs as warnings."""
    logger = logging.getLogger(_PACKAGE)
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def show_library_debugging() -> None:
    """Show everything that the library logs."""
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG)
