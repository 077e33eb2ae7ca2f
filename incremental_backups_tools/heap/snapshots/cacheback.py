"""Taking over snapshots that cacheback 0.0.2 made.

    DEST/<snapshot name>/<absolute path>…          trees of hard links
    DEST/.cacheback.d/blob/abc/def/<rest>          contents by their hash, BLAKE2b unless told otherwise
    DEST/.cacheback.d/hash_tree_cache.json         {"dir": {"file": [mtime in seconds, hash]}} of the last run

A blob may be cut short by a full disk, a snapshot by a kill, and both look whole. So every blob is read and compared
with its name before anything is taken over, a file without a good blob is refused, and the last snapshot is held
against the cache, which cacheback writes when it is done. What cacheback never kept (each file's own metadata,
hard links, holes) cannot be brought back.

Source: cacheback-snapshot 0.0.2, ``file_system_snapshot.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from incremental_backups_tools.exceptions import (
    FormatError,
    RepositoryError,
    RepositoryNotFoundError,
    SourceError,
)
from incremental_backups_tools.heap.snapshots.create import Imported, create_snapshot
from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.report import SnapshotReport
from incremental_backups_tools.tree.entry import SYMLINK, Entry, printable
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.index import Problem

_CACHE_DIRECTORY: Final = ".cacheback.d"
_BLOBS: Final = "blob"
_HASH_TREE: Final = "hash_tree_cache.json"
_BLOB: Final = re.compile(r"([0-9a-f]{3})/([0-9a-f]{3})/([0-9a-f]+)")
_MAX_CACHE_LEN: Final = 1 << 30
# A snapshot's name is its time unless another was given.
_TIME_FORMAT: Final = "%Y-%m-%d %H:%M"
# By the length of a digest in hexadecimal digits. cacheback names no algorithm, and takes any of hashlib's.
_ALGORITHMS: Final = {
    128: ("blake2b", "sha512", "sha3_512"),
    96: ("sha384", "sha3_384"),
    64: ("sha256", "blake2s", "sha3_256"),
    56: ("sha224", "sha3_224"),
    40: ("sha1",),
    32: ("md5",),
}
_CHUNK_LEN: Final = 1 << 20

_Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The blobs that are what their names say, and what is wrong with the others, by inode."""

    good: frozenset[_Inode]
    faults: dict[_Inode, str]

    def refuse(self, info: os.stat_result) -> str | None:
        """Why a file of a snapshot is not to be trusted."""
        inode = info.st_dev, info.st_ino
        if inode in self.good or info.st_size == 0:
            return self.faults.get(inode)
        return self.faults.get(inode, "is no link to a blob: nothing says that it is what was stored")


def import_cacheback(
    place: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    name: str,
    target: str | None = None,
    **options: Any,
) -> list[SnapshotReport]:
    """Take over the snapshots in a directory of cacheback's, oldest first; those taken over before are passed over.

    Args:
        place: cacheback's destination; nothing in it is changed.
        name: the root that they become snapshots of.
        target: the one directory that is wanted, by its absolute path in the source; None is all there is.
        options: as for :func:`create_snapshot`.

    Returns:
        A report for each snapshot that was taken over.

    Raises:
        RepositoryError: *place* has no snapshots of cacheback's, or they cannot be listed.
        SourceError: no snapshot has *target*.
        and what :func:`create_snapshot` raises.
    """
    top = os.path.abspath(place)
    if not os.path.isdir(os.path.join(top, _CACHE_DIRECTORY, _BLOBS)):
        raise RepositoryError(f"{top}: no snapshots by cacheback: {_CACHE_DIRECTORY}/{_BLOBS} is missing")
    titles = _titles(top)
    known = _imported_titles(dest, name)
    blobs = _check_blobs(os.path.join(top, _CACHE_DIRECTORY, _BLOBS))
    reports = []
    has_target = False
    for position, title in enumerate(titles):
        tree = os.path.join(top, title, *([target.lstrip("/")] if target is not None else []))
        if not os.path.isdir(tree):
            continue
        has_target = True
        if title in known:
            continue
        imported = Imported(
            title=title,
            time_ns=_time_of(top, title),
            amend=_amender(os.fsencode(os.path.join(top, title)), os.fsencode(title)),
            refuse=blobs.refuse,
        )
        rules = ExclusionRules(exclude_file=None)
        report = create_snapshot(tree, dest, name=name, imported=imported, rules=rules, **options)
        if position == len(titles) - 1:
            report.problems += _find_missing(top, title, target or "/")
        reports.append(report)
    if not has_target:
        raise SourceError(f"{top}: no snapshot has {target if target is not None else 'anything'}")
    return reports


def _titles(top: str) -> list[str]:
    """The names of the snapshots, oldest first."""
    try:
        with os.scandir(top) as entries:
            found = [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
            ]
    except OSError as error:
        raise RepositoryError(f"{top}: {error.strerror}") from error
    return sorted(found, key=lambda title: (_time_of(top, title), title))


def _time_of(top: str, title: str) -> int:
    """When a snapshot was made, in nanoseconds: by its name, or by its directory."""
    try:
        moment = datetime.strptime(title, _TIME_FORMAT).astimezone(UTC)
    except (ValueError, OverflowError):
        return os.lstat(os.path.join(top, title)).st_mtime_ns
    return int(moment.timestamp()) * 10**9


def _imported_titles(dest: str | os.PathLike[str], name: str) -> set[str]:
    try:
        depot = Depot.open(dest)
    except RepositoryNotFoundError:
        return set()
    headers = (depot.header(name, snapshot_id) for snapshot_id in depot.snapshot_ids(name))
    return {header.imported for header in headers if header.imported is not None}


# --- blobs ---------------------------------------------------------------------------------------------------


def _check_blobs(top: str) -> _Blobs:
    """Read every blob and compare it with its name."""
    good: set[_Inode] = set()
    faults: dict[_Inode, str] = {}
    for path, digest in _iter_blobs(top):
        info = os.lstat(path)
        inode = info.st_dev, info.st_ino
        try:
            is_right = _has_digest(path, digest)
        except OSError as error:
            faults[inode] = f"its blob cannot be read: {error.strerror}"
            continue
        if is_right:
            good.add(inode)
        else:
            faults[inode] = "its blob is not what its name says: cut short, or changed through a snapshot"
    return _Blobs(frozenset(good), faults)


def _iter_blobs(top: str) -> Iterator[tuple[str, str]]:
    """Path and digest of every blob."""
    for directory, subdirs, files in os.walk(top, onerror=_raise):
        subdirs.sort()
        for file_name in sorted(files):
            path = os.path.join(directory, file_name)
            match = _BLOB.fullmatch(os.path.relpath(path, top))
            if match is not None and stat.S_ISREG(os.lstat(path).st_mode):
                yield path, "".join(match.groups())


def _raise(error: OSError) -> None:
    raise RepositoryError(f"{error.filename}: {error.strerror}") from error


def _has_digest(path: str, digest: str) -> bool:
    hashers = [hashlib.new(algorithm) for algorithm in _ALGORITHMS.get(len(digest), ())]
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_LEN):
            for hasher in hashers:
                hasher.update(chunk)
    return any(hasher.hexdigest() == digest for hasher in hashers)


# --- trees ---------------------------------------------------------------------------------------------------


def _amender(tree: bytes, title: bytes) -> Callable[[Entry], Entry]:
    """What turns an entry of cacheback's tree into what it was in the source.

    cacheback put the snapshot's path before the target of each absolute symlink; that path may have been another then.
    """

    def amend(entry: Entry) -> Entry:
        entry = msgspec.structs.replace(entry, ctime_ns=None)
        if entry.type != SYMLINK or entry.target is None or not entry.target.startswith(b"/"):
            return entry
        if entry.target.startswith(tree + b"/"):
            return msgspec.structs.replace(entry, target=entry.target[len(tree) :])
        _, inside, rest = entry.target.partition(b"/" + title + b"/")
        return msgspec.structs.replace(entry, target=b"/" + rest) if inside else entry

    return amend


# --- the cache -----------------------------------------------------------------------------------------------


def _find_missing(top: str, title: str, target: str) -> list[Problem]:
    """What the last run's cache has and the last snapshot has not."""
    path = os.path.join(top, _CACHE_DIRECTORY, _HASH_TREE)
    tree = os.path.join(top, title)
    try:
        info = os.stat(path)
        if info.st_mtime_ns < os.stat(tree).st_mtime_ns:
            return [Problem(b".", f"cacheback was stopped while it made {title!r}: files may be missing")]
        files = list(_iter_cached(_read_cache(path), ""))
    except FileNotFoundError:
        return [Problem(b".", f"cacheback was stopped while it made {title!r}: it left no {_HASH_TREE}")]
    except FormatError as error:
        return [
            Problem(b".", f"{_HASH_TREE} cannot be read, so nothing says whether {title!r} is whole: {error}")
        ]
    prefix = os.path.join(target, "")
    return [
        Problem(os.fsencode(file[len(prefix) :]), f"cacheback lost it: it is not in {title!r}")
        for file in files
        if file.startswith(prefix) and not os.path.lexists(tree + file)
    ]


def _read_cache(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        raw = file.read(_MAX_CACHE_LEN)
    try:
        cache = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{printable(os.fsencode(path))}: {error}") from None
    if not isinstance(cache, dict):
        raise FormatError(f"{printable(os.fsencode(path))}: is no tree of files")
    return cache


def _iter_cached(node: dict[str, Any], parent: str) -> Iterator[str]:
    """The absolute paths of the files in a cache."""
    pending = [(parent, node)]
    while pending:
        directory, children = pending.pop()
        for child, value in children.items():
            path = f"{directory}/{child}"
            if isinstance(value, dict):
                pending.append((path, value))
            else:
                yield path
