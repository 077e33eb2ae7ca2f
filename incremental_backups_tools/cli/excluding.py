"""The options that say what of a source is left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TypeVar

import click

from incremental_backups_tools.tree.exclusion import ExclusionRules, split_pattern_lines

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_EXCLUDE_FILE: Final = ".exclude"
_OPTIONS: Final = (
    click.option(
        "--exclude",
        "patterns",
        metavar="PATTERN",
        multiple=True,
        help="Leave out what this gitignore pattern matches.",
    ),
    click.option(
        "--exclude-from",
        "pattern_files",
        metavar="FILE",
        type=click.File("rb"),
        multiple=True,
        help="Leave out what the patterns in FILE match; - is the standard input.",
    ),
    click.option(
        "--exclude-if-present",
        "tag_files",
        metavar="NAME",
        multiple=True,
        help="Leave out the content of directories that hold a file NAME.",
    ),
    click.option(
        "--exclude-caches",
        is_flag=True,
        help="Leave out the content of directories that hold a CACHEDIR.TAG.",
    ),
    click.option("--gitignore", is_flag=True, help="Leave out what .gitignore files leave out."),
)


def exclusion_options(function: FunctionT) -> FunctionT:
    """Add the options; :func:`exclusion_rules` makes of their values what they say."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def exclusion_rules(
    patterns: tuple[str, ...],
    pattern_files: tuple[BinaryIO, ...],
    tag_files: tuple[str, ...],
    exclude_caches: bool,
    gitignore: bool,
) -> ExclusionRules | None:
    """What is left out; None is the library's default.

    Raises:
        click.UsageError: a pattern that is none.
    """
    lines = list(patterns)
    for file in pattern_files:
        lines += split_pattern_lines(file.read())
    if not (lines or tag_files or exclude_caches or gitignore):
        return None
    try:
        return ExclusionRules(
            patterns=tuple(lines),
            exclude_file=_EXCLUDE_FILE,
            exclude_if_present=tuple(os.fsencode(name) for name in tag_files),
            exclude_caches=exclude_caches,
            gitignore=gitignore,
        )
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None
