"""Source maps and path rules: where the files are, which are left out, how many copies they get."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.tree.entry import ROOT, check_rel_path, printable, sort_key
from incremental_backups_tools.tree.exclusion import ExclusionRules, PatternList

EXCLUDE_FILE = ".exclude"


@dataclass(frozen=True, slots=True)
class SourceMap:
    """A directory of this machine, and the path under which it is kept: ``.`` is the root of all."""

    virtual: bytes
    real: bytes

    def path_of(self, rel_path: bytes) -> bytes:
        """The virtual path of a path below the real directory."""
        if rel_path == ROOT:
            return self.virtual
        return rel_path if self.virtual == ROOT else self.virtual + b"/" + rel_path

    def rel_path_of(self, path: bytes) -> bytes:
        """The other way round."""
        if path == self.virtual:
            return ROOT
        return path if self.virtual == ROOT else path[len(self.virtual) + 1 :]

    def holds(self, path: bytes) -> bool:
        """Whether a virtual path lies in it; a map nested in it may hold it nevertheless."""
        return self.virtual == ROOT or path == self.virtual or path.startswith(self.virtual + b"/")


class SourceMaps:
    """All maps; of nested ones the innermost holds a path."""

    def __init__(self, maps: Iterable[SourceMap]) -> None:
        self._maps = sorted(maps, key=lambda item: sort_key(item.virtual))

    def __iter__(self) -> Iterator[SourceMap]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def map_of(self, path: bytes) -> SourceMap | None:
        """The map that holds *path*, None where none does."""
        return next((item for item in reversed(self._maps) if item.holds(path)), None)

    def nested_points(self, outer: SourceMap) -> frozenset[bytes]:
        """The virtual paths of the maps that lie in *outer*."""
        return frozenset(item.virtual for item in self._maps if item != outer and outer.holds(item.virtual))

    def leading_paths(self) -> set[bytes]:
        """The maps' own paths and every directory that leads to them, the root among them."""
        found = {ROOT}
        for item in self._maps:
            head = item.virtual
            while head:
                found.add(head)
                head = head.rpartition(b"/")[0]
        return found


def virtual_path(text: str | bytes | os.PathLike[str]) -> bytes:
    """What a person wrote for a path of the backup, with or without slashes around it.

    Raises:
        UnsafePathError: not a plain path.
    """
    return check_rel_path(os.fsencode(text).strip(b"/") or ROOT)


def read_maps(catalogue: Catalogue) -> SourceMaps:
    """The maps of a catalogue."""
    return SourceMaps(SourceMap(*row) for row in catalogue.rows("SELECT virtual, real FROM maps"))


def map_source(catalogue: Catalogue, virtual: str | bytes, real: str | os.PathLike[str]) -> SourceMap:
    """Keep the directory *real* under the path *virtual*, in place of what was kept there.

    Raises:
        RepositoryError: *real* is no directory.
    """
    item = SourceMap(virtual_path(virtual), os.path.abspath(os.fsencode(real)))
    if not os.path.isdir(item.real):
        raise RepositoryError(f"{printable(item.real)}: not a directory")
    with catalogue.transaction():
        catalogue.execute("INSERT OR REPLACE INTO maps VALUES (?, ?)", (item.virtual, item.real))
    return item


def unmap_source(catalogue: Catalogue, virtual: str | bytes) -> None:
    """Keep nothing more under *virtual*: at the next update what was there counts as deleted.

    Raises:
        RepositoryError: nothing is mapped there.
    """
    path = virtual_path(virtual)
    if catalogue.row("SELECT 1 FROM maps WHERE virtual = ?", (path,)) is None:
        raise RepositoryError(f"nothing is mapped at {printable(path)}")
    with catalogue.transaction():
        catalogue.execute("DELETE FROM maps WHERE virtual = ?", (path,))


@dataclass(frozen=True, slots=True)
class PathRule:
    """What holds for paths that a gitignore pattern matches, and all below them. The last rule that matches decides.

    Attributes:
        copies: how many copies; 0 leaves them out of the backup, None is the default.
        priority: of two objects with as many copies, the higher one comes first; None is 0.
    """

    pattern: str
    copies: int | None
    priority: int | None


def read_rules(catalogue: Catalogue) -> list[PathRule]:
    """The rules in their order."""
    rows = catalogue.rows("SELECT pattern, copies, priority FROM rules ORDER BY position")
    return [PathRule(*row) for row in rows]


def set_rule(catalogue: Catalogue, rule: PathRule) -> None:
    """Add a rule behind the others; one with the same pattern goes."""
    with catalogue.transaction():
        catalogue.execute("DELETE FROM rules WHERE pattern = ?", (rule.pattern,))
        catalogue.execute(
            "INSERT INTO rules(position, pattern, copies, priority)"
            " SELECT coalesce(max(position), 0) + 1, ?, ?, ? FROM rules",
            (rule.pattern, rule.copies, rule.priority),
        )


def remove_rule(catalogue: Catalogue, pattern: str) -> None:
    """Remove the rule with that pattern.

    Raises:
        RepositoryError: there is none.
    """
    if catalogue.row("SELECT 1 FROM rules WHERE pattern = ?", (pattern,)) is None:
        raise RepositoryError(f"there is no rule for {pattern!r}")
    with catalogue.transaction():
        catalogue.execute("DELETE FROM rules WHERE pattern = ?", (pattern,))


class Wishes:
    """How many copies, and with what priority, each path gets."""

    def __init__(self, rules: Iterable[PathRule], *, copies: int) -> None:
        self._rules = [(PatternList([rule.pattern]), rule) for rule in rules]
        self._default = (copies, 0)
        self._directories: dict[bytes, tuple[int, tuple[int, int]]] = {}

    def of(self, path: bytes, *, is_dir: bool = False) -> tuple[int, int]:
        """Copies and priority of a path."""
        return self._verdict(path, is_dir)[1]

    def excludes(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether a path is left out of the backup."""
        return self.of(path, is_dir=is_dir)[0] == 0

    def _verdict(self, path: bytes, is_dir: bool) -> tuple[int, tuple[int, int]]:
        """The number of the deciding rule, and what it says; a rule for a directory holds for what is in it."""
        if not self._rules or path == ROOT:
            return -1, self._default
        if is_dir and path in self._directories:
            return self._directories[path]
        head, _, name = path.rpartition(b"/")
        best = self._verdict(head, True) if head else (-1, self._default)
        text, last = os.fsdecode(path), os.fsdecode(name)
        for number, (patterns, rule) in enumerate(self._rules):
            if number > best[0] and patterns.verdict(last, text, is_dir):
                copies = self._default[0] if rule.copies is None else rule.copies
                best = (number, (copies, rule.priority or 0))
        if is_dir:
            self._directories[path] = best
        return best


def exclusion_of(catalogue: Catalogue) -> ExclusionRules:
    """The ignore files that every mapped directory is walked with."""
    return ExclusionRules(
        exclude_file=EXCLUDE_FILE,
        gitignore=catalogue.get("gitignore") == "1",
        exclude_caches=catalogue.get("exclude_caches") == "1",
    )
