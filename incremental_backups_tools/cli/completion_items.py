"""What is offered to a shell that completes a name: out of names and ids, and of the directories of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem


def points_beginning(
    incomplete: str, names: Sequence[str], ids_of: Callable[[str], Sequence[str]]
) -> list[CompletionItem]:
    """The names that begin so; behind a name's ``@`` its ids, newest first. One name alone may be left out."""
    found = [name for name in names if name.startswith(incomplete)]
    name, at, start = incomplete.rpartition("@")
    if at and (name in names or (not name and len(names) == 1)):
        found += [f"{name}@{when}" for when in whens_beginning(start, ids_of(name or names[0]))]
    return [CompletionItem(text) for text in found]


def whens_beginning(start: str, ids: Sequence[str]) -> list[str]:
    """``latest`` and the ids, newest first, that begin so; *ids* are sorted."""
    return [when for when in ("latest", *reversed(ids)) if when.startswith(start)]


def complete_directory(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Directories of this machine, which the shell itself knows."""
    return [CompletionItem(incomplete, type="dir")]
