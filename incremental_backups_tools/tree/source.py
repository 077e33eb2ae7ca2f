"""What may stand for a directory: a path, a :class:`Dir`, or any object with dirtools' interface."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection
from typing import Any, Protocol, runtime_checkable

from incremental_backups_tools.tree.directory import Dir
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.walk import ProblemHandler, Walk

FsPath = str | bytes | os.PathLike[str]


@runtime_checkable
class DirLike(Protocol):
    """The part of dirtools' interface that walking needs."""

    path: Any

    def walk(self) -> Any:
        """Yield (directory, names of subdirectories, names of files) as ``os.walk`` does, top down."""


Source = FsPath | DirLike


def fs_path_of(source: Source) -> str:
    """The absolute path of *source* on this machine."""
    path = source if isinstance(source, (str, bytes, os.PathLike)) else source.path
    return os.path.abspath(os.fsdecode(path))


def walk_source(
    source: Source,
    *,
    rules: ExclusionRules | None = None,
    one_file_system: bool = False,
    on_problem: ProblemHandler,
    on_unlisted: Callable[[bytes], None] | None = None,
    leave_out: Collection[tuple[int, int]] = (),
    on_left_out: Callable[[bytes], None] | None = None,
) -> Walk:
    """The walk over *source*.

    A plain path excludes what *rules* name, and without *rules* what a ``.exclude`` file in it names. A
    :class:`Dir` brings its own rules. Any other object is asked by ``is_excluded``, or else by ``walk``.

    Raises:
        TypeError: neither a path nor an object with ``path`` and ``walk``.
        ValueError: *rules* for an object that brings its own.
    """
    walk = functools.partial(
        Walk,
        one_file_system=one_file_system,
        on_problem=on_problem,
        on_unlisted=on_unlisted,
        leave_out=leave_out,
        on_left_out=on_left_out,
    )
    if isinstance(source, (str, bytes, os.PathLike)):
        return walk(source, rules=ExclusionRules(exclude_file=".exclude") if rules is None else rules)
    if not isinstance(source, DirLike):
        raise TypeError(f"expected a path or a directory object with 'path' and 'walk', got {source!r}")
    if rules is not None:
        raise ValueError("rules are given for a plain path only: a directory object brings its own")
    path = fs_path_of(source)
    if isinstance(source, Dir) and not _has_own_walk(source):
        return walk(path, rules=source.rules)
    return walk(path, keep=_keeper(source))


def _has_own_walk(source: Dir) -> bool:
    """Whether a subclass has its own idea of what there is: then its rules do not say all."""
    kind = type(source)
    return kind.walk is not Dir.walk or kind.is_excluded is not Dir.is_excluded


def _keeper(source: DirLike) -> Callable[[bytes], bool]:
    """Which paths of a foreign object's tree stay.

    By ``is_excluded`` where it has that: dirtools' own ``walk`` knows neither symlinks nor FIFOs, and
    would drop them without a word. Otherwise what ``walk`` lists is what there is.
    """
    is_excluded = getattr(source, "is_excluded", None)
    if is_excluded is None or (isinstance(source, Dir) and type(source).walk is not Dir.walk):
        return _listed_paths(source).__contains__
    root = os.fsencode(fs_path_of(source))
    return lambda rel_path: not is_excluded(os.fsdecode(os.path.join(root, rel_path)))


def _listed_paths(source: DirLike) -> set[bytes]:
    root = os.fsencode(fs_path_of(source))
    listed: set[bytes] = set()
    for directory, subdirs, files in source.walk():
        absolute = os.path.abspath(os.fsencode(directory))
        prefix = b"" if absolute == root else os.path.relpath(absolute, root) + b"/"
        for name in (*subdirs, *files):
            listed.add(prefix + os.fsencode(name))
    return listed
