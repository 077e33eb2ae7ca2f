"""The state of a directory at one moment, and what changed between two: dirtools' ``DirState``.

A state is a plain ``dict`` with dirtools' keys and is kept as JSON under dirtools' file name. It knows a file
by its path and one value (its mtime unless told otherwise). A backup's own index is ``DirIndex``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypedDict, TypeGuard

from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import SourceError, StateFormatError
from incremental_backups_tools.tree.directory import Dir, FsPath, index_value
from incremental_backups_tools.tree.entry import printable

IndexFunction = Callable[[str], Any]

DEFAULT_FILE_NAME = "{0}@{1}.json"


class TreeState(TypedDict):
    """What a :class:`DirState` holds. Paths are relative to ``directory``, itself an absolute path."""

    directory: str
    files: list[str]
    subdirs: list[str]
    index: dict[str, Any]


class TreeDiff(TypedDict):
    """What :func:`compute_diff` finds: relative paths, sorted by their bytes."""

    deleted: list[str]
    created: list[str]
    updated: list[str]
    deleted_dirs: list[str]


class DirState:
    """A directory's files, subdirectories and one value for each file.

    Attributes:
        state: all that as a ``dict`` that JSON can hold, if *index_cmp*'s values can.
        index_cmp: takes a file's absolute path and returns the value that tells whether it has changed.
    """

    def __init__(
        self,
        _dir: Dir | None = None,
        state: TreeState | None = None,
        index_cmp: IndexFunction = os.path.getmtime,
    ) -> None:
        """Take *state* as it is, or read that of *_dir* now.

        Args:
            _dir: a :class:`Dir`, or any object with its ``path``, ``files`` and ``subdirs``.

        Raises:
            TypeError: neither *_dir* nor *state* is given.
            SourceError: a directory or a file cannot be read.
        """
        self._dir = _dir
        self.index_cmp = index_cmp
        self.state: TreeState = self.compute_state() if state is None else state

    def compute_state(self) -> TreeState:
        """The directory's state now. Raises as the constructor does."""
        directory = self._directory()
        index = self.index()
        return {
            "directory": directory.path,
            "files": list(index),
            "subdirs": list(directory.subdirs()),
            "index": index,
        }

    def index(self) -> dict[str, Any]:
        """The value of each file now, by relative path. Raises as the constructor does."""
        directory = self._directory()
        return {
            rel_path: index_value(self.index_cmp, os.path.join(directory.path, rel_path))
            for rel_path in directory.files()
        }

    def _directory(self) -> Dir:
        if self._dir is None:
            raise TypeError("this DirState has no directory to read: it was made from a state")
        return self._dir

    def __sub__(self, other: DirState) -> TreeDiff:
        """What changed from *other* to this state: ``new_state - old_state``.

        Raises:
            ValueError: the two were made with different *index_cmp*.
        """
        if not isinstance(other, DirState):
            return NotImplemented
        if self.index_cmp != other.index_cmp:
            raise ValueError("both states must have the same index_cmp")
        return compute_diff(self.state, other.state)

    def to_json(self, base_path: FsPath = ".", dt: datetime | None = None, fmt: str | None = None) -> str:
        """Write the state to a file, which is replaced if it exists, and return its path.

        Args:
            base_path: the directory that holds the file.
            dt: the time in the file's name; None is now, in UTC.
            fmt: the file's name, with ``{0}`` for the directory's name and ``{1}`` for the time; None is
                ``{0}@{1}.json``.

        Raises:
            TypeError: a value of *index_cmp* is nothing that JSON can hold.
            OSError: the file cannot be written.
        """
        moment = datetime.now(UTC).replace(tzinfo=None) if dt is None else dt
        directory_name = os.path.basename(self.state["directory"].rstrip("/"))
        file_name = (DEFAULT_FILE_NAME if fmt is None else fmt).format(directory_name, moment.isoformat())
        path = os.path.join(os.fsdecode(base_path), file_name)
        # ASCII only: names that are not UTF-8 stand as escaped surrogates and come back as they were.
        data = json.dumps(self.state, ensure_ascii=True).encode("ascii")
        with atomic_write(path, mode=0o666) as file:
            file.write(data)
        return path

    @classmethod
    def from_json(cls, path: FsPath, *, index_cmp: IndexFunction = os.path.getmtime) -> DirState:
        """Read what :meth:`to_json` wrote.

        Args:
            index_cmp: what the state was made with.

        Raises:
            SourceError: the file cannot be read.
            StateFormatError: it holds no such state.
        """
        shown = printable(os.fsencode(path))
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise SourceError(f"{shown}: {error.strerror}") from error
        return cls(state=_parse_state(data, shown), index_cmp=index_cmp)


def compute_diff(dir_base: TreeState, dir_cmp: TreeState) -> TreeDiff:
    """What changed from *dir_cmp*, the older state, to *dir_base*, the newer one.

    A file whose value either state lacks counts as updated.
    """
    new_files, old_files = set(dir_base["files"]), set(dir_cmp["files"])
    new_index, old_index = dir_base["index"], dir_cmp["index"]
    updated = {
        path
        for path in new_files & old_files
        if path not in new_index or path not in old_index or new_index[path] != old_index[path]
    }
    return {
        "deleted": _sorted_paths(old_files - new_files),
        "created": _sorted_paths(new_files - old_files),
        "updated": _sorted_paths(updated),
        "deleted_dirs": _sorted_paths(set(dir_cmp["subdirs"]) - set(dir_base["subdirs"])),
    }


def _sorted_paths(paths: set[str]) -> list[str]:
    return sorted(paths, key=os.fsencode)


def _parse_state(data: bytes, shown: str) -> TreeState:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateFormatError(f"{shown}: not JSON: {error}") from error
    if not isinstance(state, dict):
        raise StateFormatError(f"{shown}: expected a JSON object, got {type(state).__name__}")
    directory, files, subdirs, index = (state.get(k) for k in ("directory", "files", "subdirs", "index"))
    if not isinstance(directory, str):
        raise StateFormatError(f"{shown}: 'directory' must be a string")
    if not _is_path_list(files) or not _is_path_list(subdirs):
        raise StateFormatError(f"{shown}: 'files' and 'subdirs' must be lists of strings")
    if not isinstance(index, dict):
        raise StateFormatError(f"{shown}: 'index' must be an object")
    return {"directory": directory, "files": files, "subdirs": subdirs, "index": index}


def _is_path_list(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
