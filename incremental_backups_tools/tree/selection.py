"""Which paths of a backup a person asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Final, Protocol, TypeVar

from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.tree.entry import DIRECTORY, ROOT, Entry, check_rel_path, printable

_MAGIC: Final = re.compile(rb"[*?\[]")


class HasEntry(Protocol):
    """Anything that is about one entry."""

    @property
    def entry(self) -> Entry:
        """The entry."""


ItemT = TypeVar("ItemT", bound=HasEntry)


class Selection:
    """Paths and glob patterns; each selects what it names and everything below.

    A pattern's ``*`` and ``?`` match within one component, ``**`` any number of components. A pattern is tried
    as it stands first: a file may be named ``a[1]``.

    Args:
        paths: relative to the backup's root, with or without ``./`` in front; None or nothing selects all.

    Raises:
        UnsafePathError: a path that leads out of the backup.
    """

    def __init__(self, paths: Iterable[str | bytes | os.PathLike[str]] | None) -> None:
        self._names = [normalised_path(path) for path in paths or ()]
        self._matched = [False] * len(self._names)
        self._patterns = [
            re.compile(_translate(name), re.DOTALL) if _MAGIC.search(name) else None for name in self._names
        ]
        self.selects_all = not self._names or ROOT in self._names

    @property
    def plain_paths(self) -> list[bytes] | None:
        """The paths, where there are no patterns, and where it is not all; None otherwise."""
        return None if self.selects_all or any(self._patterns) else self._names

    def matches(self, path: bytes) -> bool:
        """Whether *path* is selected."""
        if self.selects_all:
            return True
        selected = False
        for position, name in enumerate(self._names):
            pattern = self._patterns[position]
            if path == name or path.startswith(name + b"/") or (pattern is not None and pattern.match(path)):
                self._matched[position] = selected = True
        return selected

    def filter(self, items: Iterable[ItemT]) -> Iterator[ItemT]:
        """The selected items, and before the first one in it each directory that leads there."""
        if self.selects_all:
            yield from items
            return
        ancestors: list[ItemT] = []
        for item in items:
            while ancestors and not _leads_to(ancestors[-1].entry.path, item.entry.path):
                ancestors.pop()
            if self.matches(item.entry.path):
                yield from ancestors
                ancestors.clear()
                yield item
            elif item.entry.type == DIRECTORY:
                ancestors.append(item)

    def check_all_matched(self) -> None:
        """Make sure that each path selected something.

        Raises:
            ChainError: one did not.
        """
        missing = [
            printable(name) for name, matched in zip(self._names, self._matched, strict=True) if not matched
        ]
        if missing and not self.selects_all:
            raise ChainError(f"the backup has nothing named {', '.join(missing)}")


def normalised_path(path: str | bytes | os.PathLike[str]) -> bytes:
    """What a person wrote for a path of a backup, without ``./`` in front and slashes behind.

    Raises:
        UnsafePathError: a path that leads out of the backup.
    """
    raw = os.fsencode(path).rstrip(b"/")
    while raw.startswith(b"./"):
        raw = raw[2:].lstrip(b"/")
    return check_rel_path(raw or ROOT)


def _leads_to(directory: bytes, path: bytes) -> bool:
    return directory == ROOT or path.startswith(directory + b"/")


_TOKEN: Final = re.compile(rb"\*\*/|\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def _translate(pattern: bytes) -> bytes:
    """A regular expression for *pattern* and everything below what it matches."""
    parts = []
    for token in _TOKEN.findall(pattern):
        if token == b"**/":
            parts.append(rb"(?:[^/]+/)*")
        elif token.startswith(b"*"):
            parts.append(rb"[^/]*")
        elif token == b"?":
            parts.append(rb"[^/]")
        elif len(token) > 2 and token.startswith(b"["):
            negated = token.startswith(b"[!")
            members = token[2 if negated else 1 : -1].replace(b"\\", rb"\\").replace(b"[", rb"\[")
            parts.append(
                b"["
                + (b"^/" if negated else b"")
                + members.replace(b"^", rb"\^").replace(b"]", rb"\]")
                + b"]"
            )
        else:
            parts.append(re.escape(token))
    return b"".join(parts) + rb"(?:/|\Z)"
