"""Comparing two trees, and turning one into another by touching only what differs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.measure import SAME

_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
CONTENT, METADATA = "content", "metadata"


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that is not the same in both trees; *what* is :data:`CONTENT` (or its absence) or :data:`METADATA`."""

    rel_path: str
    what: str


def differences(old: Path, new: Path, *, times: bool, rel_path: str = "") -> Iterator[Difference]:
    """What differs between two directories, in order; one that only one side has counts as a single path.

    Args:
        times: whether other modification times, in whole seconds, are a difference in metadata.
    """
    names = {name for side in (old, new) for name in os.listdir(side)}
    for name in sorted(names):
        path = os.path.join(rel_path, name)
        ours, theirs = old / name, new / name
        what = _difference(ours, theirs, times=times)
        if what is not None:
            yield Difference(path, what)
        if what != CONTENT and stat.S_ISDIR(os.lstat(ours).st_mode):
            yield from differences(ours, theirs, times=times, rel_path=path)


def _difference(old: Path, new: Path, *, times: bool) -> str | None:
    if not os.path.lexists(old) or not os.path.lexists(new):
        return CONTENT
    first, second = os.lstat(old), os.lstat(new)
    kind = stat.S_IFMT(first.st_mode)
    if kind != stat.S_IFMT(second.st_mode):
        return CONTENT
    if kind == stat.S_IFLNK:
        return CONTENT if os.readlink(old) != os.readlink(new) else None
    if kind == stat.S_IFREG and (first.st_size != second.st_size or not _same_bytes(old, new)):
        return CONTENT
    if (first.st_mode, first.st_uid, first.st_gid) != (second.st_mode, second.st_uid, second.st_gid):
        return METADATA
    if times and int(first.st_mtime) != int(second.st_mtime):
        return METADATA
    return None


def _same_bytes(old: Path, new: Path) -> bool:
    with old.open("rb", buffering=0) as first, new.open("rb", buffering=0) as second:
        while True:
            chunk = first.read(_CHUNK)
            if chunk != second.read(_CHUNK):
                return False
            if not chunk:
                return True


def verdict(source: Path, restored: Path) -> str:
    """In words, how a restored tree compares with its source: content, types, modes, owners, times in seconds."""
    if not restored.is_dir():
        return "WRONG: nothing was restored"
    content, metadata, first = 0, 0, ""
    for difference in differences(source, restored, times=True):
        first = first or difference.rel_path
        content += difference.what == CONTENT
        metadata += difference.what == METADATA
    if content:
        return f"WRONG: {content} differ, {first!r} first"
    return f"{metadata} with other metadata" if metadata else SAME


def apply_differences(paths: Sequence[Difference], new: Path, dest: Path, *, in_place: bool) -> None:
    """Give *dest* what *new* has at *paths*, and touch nothing else.

    Args:
        in_place: rewrite the differing pages of a file, as a database does; otherwise a file is replaced by
            another one, as editors and unpackers do.
    """
    for difference in paths:
        ours, theirs = dest / difference.rel_path, new / difference.rel_path
        if difference.what == METADATA and os.path.lexists(ours) and os.path.lexists(theirs):
            shutil.copymode(theirs, ours)
        elif in_place and _is_file(ours) and _is_file(theirs):
            _rewrite_pages(theirs, ours)
        else:
            _replace(theirs, ours)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _replace(new: Path, path: Path) -> None:
    temporary = path.with_name(".being-replaced")
    if new.is_dir() and not new.is_symlink():
        shutil.copytree(new, temporary, symlinks=True, copy_function=shutil.copy)
    elif os.path.lexists(new):
        shutil.copy(new, temporary, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if os.path.lexists(temporary):
        temporary.rename(path)


def _rewrite_pages(new: Path, path: Path) -> None:
    with new.open("rb", buffering=0) as source, path.open("r+b", buffering=0) as target:
        offset = 0
        while chunk := source.read(_CHUNK):
            target.seek(offset)
            old = target.read(len(chunk))
            for start in range(0, len(chunk) if chunk != old else 0, _PAGE):
                page = chunk[start : start + _PAGE]
                if page != old[start : start + _PAGE]:
                    target.seek(offset + start)
                    target.write(page)
            offset += len(chunk)
        target.truncate(offset)
