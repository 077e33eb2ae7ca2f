"""``ibt signature``, ``delta``, ``patch`` and ``compose``: single files, with rdiff's arguments and rdiff's files.

Where nothing is said, block and sum lengths are rdiff's too, so that both write the same bytes.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import click

from incremental_backups_tools import delta as engine
from incremental_backups_tools.cli.errors import ExitStatus
from incremental_backups_tools.cli.kernel import warn_of_slow_kernel
from incremental_backups_tools.cli.options import IbtCommand, Settings, common_options
from incremental_backups_tools.cli.output import print_document, say
from incremental_backups_tools.delta.block_length import rdiff_block_len, rdiff_min_strong_len
from incremental_backups_tools.delta.formats import MAX_BLOCK_LEN, SignatureMagic
from incremental_backups_tools.delta.signature import DEFAULT_STRONG_LEN, file_size
from incremental_backups_tools.durable import atomic_write

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_STREAM = "-"
_MAGICS = {
    ("rabinkarp", "blake2"): SignatureMagic.RK_BLAKE2,
    ("rabinkarp", "md4"): SignatureMagic.RK_MD4,
    ("rollsum", "blake2"): SignatureMagic.BLAKE2,
    ("rollsum", "md4"): SignatureMagic.MD4,
}


_COMMON_TO_ALL = (
    click.option("-f", "--force", is_flag=True, help="Overwrite an existing file."),
    click.option("-s", "--statistics", "--stats", is_flag=True, help="Show what was done, and how much."),
)

# rdiff takes every option with every verb, and its callers' scripts pass the same ones to all.  Buffers have their
# size here, and the sums are in the signature.
_BUFFERS_OF_RDIFF = tuple(
    click.option(short, name, type=int, expose_value=False, hidden=True)
    for short, name in (("-I", "--input-size"), ("-O", "--output-size"))
)
_SUMS_OF_RDIFF = tuple(
    click.option(short, name, expose_value=False, hidden=True)
    for short, name in (("-b", "--block-size"), ("-S", "--sum-size"), ("-H", "--hash"), ("-R", "--rollsum"))
)


def _options(*options: Callable[[Any], Any]) -> Callable[[FunctionT], FunctionT]:
    def add(function: FunctionT) -> FunctionT:
        for option in reversed((*options, *_BUFFERS_OF_RDIFF)):
            function = option(function)
        return function

    return add


@click.command("signature", cls=IbtCommand)
@click.argument("basis", metavar="[BASIS", default=_STREAM)
@click.argument("output", metavar="[SIGNATURE]]", default=_STREAM)
@click.option(
    "-b",
    "--block-size",
    metavar="BYTES",
    type=click.IntRange(0, MAX_BLOCK_LEN),
    default=0,
    help="Length of a block; 0 is the square root of the file's size.  [default: 0]",
)
@click.option(
    "-S",
    "--sum-size",
    metavar="BYTES",
    type=click.IntRange(-1, 32),
    default=0,
    help="Bytes kept of each hash; 0 is all, -1 as few as rdiff holds safe against chance.  [default: 0]",
)
@click.option(
    "-H", "--hash", "strong", type=click.Choice(["blake2", "md4"]), default="blake2", help="Hash of a block."
)
@click.option(
    "-R",
    "--rollsum",
    "weak",
    type=click.Choice(["rabinkarp", "rollsum"]),
    default="rabinkarp",
    help="Rolling sum.",
)
@_options(*_COMMON_TO_ALL)
@common_options
@click.pass_obj
def signature(
    settings: Settings,
    basis: str,
    output: str,
    block_size: int,
    sum_size: int,
    strong: str,
    weak: str,
    force: bool,
    statistics: bool,
) -> ExitStatus:
    """Make the signature of BASIS, from which 'ibt delta' makes deltas without it.

    A missing name, or -, is the standard input or output.
    """
    warn_of_slow_kernel()
    magic = _MAGICS[weak, strong]
    with _open_input(basis) as source:
        size = _known_size(source)
        block_len = block_size or rdiff_block_len(size)
        strong_len = sum_size or magic.strong.max_len
        if strong_len < 0:
            strong_len = rdiff_min_strong_len(size, block_len)
        if strong_len > magic.strong.max_len:
            raise click.BadParameter(f"a hash by {strong} has {magic.strong.max_len} bytes", param_hint="-S")
        if strong_len < DEFAULT_STRONG_LEN:
            say("warning", f"hashes cut to {strong_len} bytes can be forged; {DEFAULT_STRONG_LEN} are safe")
        with _open_output(output, force=force) as out:
            written = engine.signature(
                source,
                out,
                block_len=block_len,
                strong_len=strong_len,
                magic=magic,
                threads=_threads(settings),
            )
    _report(
        settings,
        output,
        {
            "signature_bytes": written,
            "magic": magic.name.lower(),
            "block_len": block_len,
            "strong_len": strong_len,
        },
        is_asked_for=statistics,
    )
    return ExitStatus.DONE


@click.command("delta", cls=IbtCommand)
@click.argument("signature_name", metavar="SIGNATURE")
@click.argument("new", metavar="[NEWFILE", default=_STREAM)
@click.argument("output", metavar="[DELTA]]", default=_STREAM)
@_options(*_COMMON_TO_ALL, *_SUMS_OF_RDIFF)
@common_options
@click.pass_obj
def delta(
    settings: Settings, signature_name: str, new: str, output: str, force: bool, statistics: bool
) -> ExitStatus:
    """Make the delta that turns the file of SIGNATURE into NEWFILE.

    A missing name, or -, is the standard input or output.
    """
    warn_of_slow_kernel()
    _check_one_stream(signature_name, new)
    with _open_input(signature_name) as file:
        old = engine.Signature.from_file(file)
    with _open_input(new) as source, _open_output(output, force=force) as out:
        stats = engine.delta(source, old, out, threads=_threads(settings))
    _report(
        settings,
        output,
        {
            "delta_bytes": stats.delta_len,
            "literal_bytes": stats.literal_bytes,
            "copied_bytes": stats.copied_bytes,
            "commands": stats.commands,
            "false_alarms": stats.false_alarms,
        },
        is_asked_for=statistics,
    )
    return ExitStatus.DONE


@click.command("patch", cls=IbtCommand)
@click.argument("basis", metavar="BASIS")
@click.argument("delta_name", metavar="[DELTA", default=_STREAM)
@click.argument("output", metavar="[NEWFILE]]", default=_STREAM)
@click.option(
    "--max-output", metavar="BYTES", type=click.IntRange(min=0), help="Fail rather than write more than that."
)
@_options(*_COMMON_TO_ALL, *_SUMS_OF_RDIFF)
@common_options
@click.pass_obj
def patch(
    settings: Settings,
    basis: str,
    delta_name: str,
    output: str,
    max_output: int | None,
    force: bool,
    statistics: bool,
) -> ExitStatus:
    """Make NEWFILE out of BASIS and DELTA. BASIS must be a file that can seek.

    A missing name, or -, is the standard input or output.
    """
    _check_one_stream(basis, delta_name)
    with (
        _open_seekable(basis) as old,
        _open_input(delta_name) as change,
        _open_output(output, force=force) as out,
    ):
        written = engine.patch(old, change, out, max_output=max_output)
    _report(settings, output, {"output_bytes": written}, is_asked_for=statistics)
    return ExitStatus.DONE


@click.command("compose", cls=IbtCommand)
@click.argument("first", metavar="DELTA1")
@click.argument("second", metavar="DELTA2")
@click.argument("output", metavar="[DELTA]", default=_STREAM)
@_options(*_COMMON_TO_ALL, *_SUMS_OF_RDIFF)
@common_options
@click.pass_obj
def compose(
    settings: Settings, first: str, second: str, output: str, force: bool, statistics: bool
) -> ExitStatus:
    """Make one delta that does what DELTA1 and then DELTA2 do. DELTA1 must be a file that can seek.

    None of the files is needed. A missing name, or -, is the standard input or output.
    """
    _check_one_stream(first, second)
    with _open_seekable(first) as one, _open_input(second) as two, _open_output(output, force=force) as out:
        written = engine.compose(one, two, out)
    _report(settings, output, {"delta_bytes": written}, is_asked_for=statistics)
    return ExitStatus.DONE


commands = [signature, delta, patch, compose]


def _threads(settings: Settings) -> int:
    return settings.threads or os.cpu_count() or 1


def _check_one_stream(first: str, second: str) -> None:
    if first == second == _STREAM:
        raise click.UsageError("only one file can come from the standard input")


@contextmanager
def _open_input(name: str) -> Iterator[BinaryIO]:
    if name == _STREAM:
        yield sys.stdin.buffer
        return
    with open(name, "rb", buffering=0) as file:
        yield file


@contextmanager
def _open_seekable(name: str) -> Iterator[BinaryIO]:
    with _open_input(name) as file:
        if not file.seekable():
            raise click.UsageError(f"{'the standard input' if name == _STREAM else name} cannot seek")
        yield file


def _known_size(file: BinaryIO) -> int | None:
    """The size of a regular file; rdiff, too, takes that of anything else as not known."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return None
    return file_size(file)


@contextmanager
def _open_output(name: str, *, force: bool) -> Iterator[BinaryIO]:
    """Where the result goes.  A file appears under its name when it is whole, so one of the inputs may have it."""
    if name == _STREAM:
        yield sys.stdout.buffer
        return
    if os.path.lexists(name) and not force:
        raise FileExistsError(f'File exists "{name}", aborting! (-f overwrites it)')
    if os.path.exists(name) and not os.path.isfile(name):  # a device or a pipe keeps its place
        with open(name, "wb", buffering=0) as file:
            yield file
        return
    # As rdiff, and as cp: who needs it durable synchronises what it is part of.
    with atomic_write(os.path.realpath(name), mode=0o666, exclusive=not force, durable=False) as out:
        yield out


def _report(settings: Settings, output: str, facts: dict[str, int | str], *, is_asked_for: bool) -> None:
    """Say what was done: as JSON where that was asked for, unless the result itself went to the standard output."""
    if settings.json and output != _STREAM:
        print_document(facts)
    elif is_asked_for:
        say("notice", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
