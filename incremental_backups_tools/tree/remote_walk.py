"""Walking a tree that lies on another machine, in sort order, by its listings.

One directory is listed at a time and sorted by the bytes of its names, so that memory holds the listings from the
root down to where the walk is. What a listing does not tell is constant: files have the mode 0644, directories
0755, and both belong to user and group 0.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.repository.source_files import DIRECTORY, FILE, SourceFiles, SourceName
from incremental_backups_tools.tree.entry import ROOT
from incremental_backups_tools.tree.exclusion import DirScope, ExclusionRules, root_scope
from incremental_backups_tools.tree.listing import Reader, ReadLimits
from incremental_backups_tools.tree.walk import (
    MAX_SMALL_FILE_LEN,
    Found,
    LastName,
    Passed,
    ProblemHandler,
    Run,
)

_FILE_MODE: Final = stat.S_IFREG | 0o644
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
_NO_NAMES: Final = frozenset({b"", b".", b".."})


class _File:
    """A file to be read; see :class:`RemoteFile`."""

    def __init__(self, files: SourceFiles, rel_path: bytes, listed: SourceName) -> None:
        self._files = files
        self._path = _text(rel_path)
        self._listed = listed

    @property
    def change_key(self) -> str | None:
        return self._listed.change_key

    def look(self) -> tuple[os.stat_result, str | None]:
        listed, now = self._listed, self._files.look(self._path)
        if now.kind != FILE or now.size is None:
            raise SourceError("is no file with a size any more")
        if now.change_key is not None and (now.change_key, now.size) == (listed.change_key, listed.size):
            # Replies to a single look may have times in whole seconds where listings have more.
            now = listed
        return _stat_of(_FILE_MODE, now.size or 0, now.mtime_ns), now.change_key

    def iter_content(self, size: int) -> Iterator[bytes]:
        return self._files.iter_content(self._path, size)


@dataclass(slots=True)
class _Level:
    """A directory that the walk is in."""

    prefix: bytes
    names: Iterator[tuple[bytes, SourceName]]
    scope: DirScope | None


class RemoteWalk:
    """One walk over the tree of *files*; what is not said here is as in :class:`Walk`.

    A path that is a file and a directory at once, as object stores have them, is walked as the directory, and the
    file is reported.
    """

    def __init__(
        self, files: SourceFiles, *, rules: ExclusionRules | None, on_problem: ProblemHandler
    ) -> None:
        self._files = files
        self._rules = rules
        self._on_problem = on_problem

    def __iter__(self) -> Iterator[Found]:
        try:
            listed = self._list(b"")
        except SourceError as error:
            raise SourceError(f"{self._files.url}: {error}") from error
        scope = None
        if self._rules is not None:
            scope = root_scope(self._rules, listed.keys(), self._small_file_reader(b""))
        yield Found(ROOT, ROOT, -1, _stat_of(_DIRECTORY_MODE, 0, 0), is_remote=True)
        levels = [self._level(b"", listed, scope)]
        while levels:
            level = levels[-1]
            name, source_name = next(level.names, (b"", None))
            if source_name is None:
                levels.pop()
            elif source_name.kind == DIRECTORY:
                found, entered = self._enter(level, name, source_name)
                levels += [entered] if entered is not None else []
                yield found
            elif (file := self._file(level.prefix + name, name, source_name)) is not None:
                yield file

    def keep_open(self, names: int) -> AbstractContextManager[None]:
        """Nothing is open."""
        return nullcontext()

    def read_run(self, limits: ReadLimits, reader: Reader) -> Run | None:
        """None: each file is a download of its own."""
        return None

    def last_name(self) -> LastName | None:
        """None, as above."""
        return None

    def pass_over(self, lines: bytes, offset: int) -> Passed | None:
        """Nothing: change keys are compared name by name."""
        return None

    def _file(self, rel_path: bytes, name: bytes, listed: SourceName) -> Found | None:
        """A file; one that is neither read nor gone stays as it is in the parent."""
        if listed.kind != FILE:
            self._on_problem(rel_path, f"neither a file nor a directory ({listed.kind}), not backed up")
            return None
        remote = _File(self._files, rel_path, listed)
        # One of unknown size has to be looked at, and has no key that would spare its being read.
        info = _stat_of(_FILE_MODE, listed.size or 0, listed.mtime_ns)
        if listed.size is None:
            remote = _File(self._files, rel_path, listed._replace(change_key=None))
        return Found(rel_path, name, -1, info, remote=remote, is_remote=True)

    def _enter(self, level: _Level, name: bytes, listed: SourceName) -> tuple[Found, _Level | None]:
        rel_path = level.prefix + name
        prefix, scope = rel_path + b"/", level.scope
        found = Found(rel_path, name, -1, _stat_of(_DIRECTORY_MODE, 0, listed.mtime_ns), is_remote=True)
        try:
            names = self._list(prefix)
        except SourceError as error:
            self._on_problem(rel_path, str(error))
            found.listed = False
            return found, None
        if scope is not None and scope.depends_on_names:
            scope = scope.child(name, names.keys(), self._small_file_reader(prefix))
        return found, self._level(prefix, names, scope)

    def _level(self, prefix: bytes, names: dict[bytes, SourceName], scope: DirScope | None) -> _Level:
        kept = (
            (name, names[name])
            for name in sorted(names)
            if scope is None or not scope.excludes(name, names[name].kind == DIRECTORY)
        )
        return _Level(prefix, kept, scope)

    def _list(self, prefix: bytes) -> dict[bytes, SourceName]:
        """The names of a directory that a tree can hold; others are reported. Raises SourceError."""
        listing = self._files.list_directory(_text(prefix[:-1]))
        for message in listing.odd:
            self._on_problem(prefix[:-1] or ROOT, message)
        names: dict[bytes, SourceName] = {}
        for listed in listing.names:
            name = listed.base.encode("utf-8", "surrogateescape")
            if name in _NO_NAMES or b"\0" in name:
                self._on_problem(prefix + name, "a name that no directory can hold, not backed up")
            elif name not in names:
                names[name] = listed
            elif DIRECTORY in (listed.kind, names[name].kind):
                message = "a file and a directory at once: the file is not backed up, what is below it is"
                self._on_problem(prefix + name, message)
                names[name] = listed if listed.kind == DIRECTORY else names[name]
            else:
                raise SourceError(f"cannot list: it holds the name {listed.base!r} twice")
        return names

    def _small_file_reader(self, prefix: bytes) -> Callable[[bytes], bytes | None]:
        """As the local walk's: a rule that cannot be read is a problem."""

        def read(name: bytes) -> bytes | None:
            path = _text(prefix + name)
            try:
                size = self._files.look(path).size
                if size is None or size > MAX_SMALL_FILE_LEN:
                    raise SourceError("too long, or of unknown size")
                return b"".join(self._files.iter_content(path, size))
            except SourceError as error:
                self._on_problem(prefix + name, f"cannot read exclusion rules: {error}")
                return None

        return read


def _stat_of(mode: int, size: int, mtime_ns: int) -> os.stat_result:
    seconds = mtime_ns // 10**9
    return os.stat_result(
        (mode, 0, 0, 1, 0, 0, size, seconds, seconds, 0),
        {"st_atime_ns": mtime_ns, "st_mtime_ns": mtime_ns, "st_ctime_ns": 0},
    )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
