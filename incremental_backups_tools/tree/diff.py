"""What turns one index into the next.

Both indexes are sorted streams; comparing them is a merge join that holds one entry of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec

from incremental_backups_tools.tree.entry import DIRECTORY, FILE, Entry, sort_key
from incremental_backups_tools.tree.index import IndexData, IndexedEntry

CREATED: Final = "+"
UPDATED: Final = "~"
METADATA: Final = "m"
DELETED: Final = "-"

NewT = TypeVar("NewT")
OldT = TypeVar("OldT")


def merge_join(
    new: Iterable[NewT],
    old: Iterable[OldT],
    *,
    new_path: Callable[[NewT], bytes],
    old_path: Callable[[OldT], bytes],
) -> Iterator[tuple[NewT | None, OldT | None]]:
    """Pair two streams sorted by path; what only one of them has is paired with None."""
    new_iter, old_iter = iter(new), iter(old)
    left, right = next(new_iter, None), next(old_iter, None)
    left_key = sort_key(new_path(left)) if left is not None else b""
    right_key = sort_key(old_path(right)) if right is not None else b""
    while left is not None or right is not None:
        if right is None or (left is not None and left_key < right_key):
            yield left, None
            take_left, take_right = True, False
        elif left is None or right_key < left_key:
            yield None, right
            take_left, take_right = False, True
        else:
            yield left, right
            take_left = take_right = True
        if take_left:
            left = next(new_iter, None)
            left_key = sort_key(new_path(left)) if left is not None else b""
        if take_right:
            right = next(old_iter, None)
            right_key = sort_key(old_path(right)) if right is not None else b""


def classify(new: Entry | None, old: Entry | None) -> str | None:
    """The operation that leads from *old* to *new*: ``+ ~ m -``, or None where nothing changed.

    A path that changed its type is created anew. ``ctime_ns``, ``inode`` and ``dev`` alone are no change.
    """
    if old is None:
        return None if new is None else CREATED
    if new is None:
        return DELETED
    if new.type != old.type:
        return CREATED
    if content_identity(new) != content_identity(old):
        return UPDATED
    return METADATA if metadata_identity(new) != metadata_identity(old) else None


def content_identity(entry: Entry) -> tuple[object, ...]:
    """What two entries of one type must share to have the same content."""
    if entry.link_of is not None:
        return (entry.link_of,)
    return (None, entry.digest if entry.type == FILE else entry.target, entry.device)


def metadata_identity(entry: Entry) -> tuple[object, ...]:
    """What two entries with one content must share to be the same."""
    return (
        entry.mode,
        entry.uid,
        entry.gid,
        entry.user,
        entry.group,
        entry.size,
        entry.mtime_ns,
        entry.flags,
        entry.xattrs,
        entry.acl,
        entry.sparse is None,
    )


class Change(msgspec.Struct, frozen=True):
    """One step from an index to the next.

    Attributes:
        op: ``+`` created, ``~`` content changed, ``m`` metadata alone, ``-`` deleted.
        entry: the new entry; of a deleted path the old one.
        old: the old entry, where there was one.
        old_signature: the old content's signature, where it was known.
        new_signature: the new content's signature.
    """

    op: str
    entry: Entry
    old: Entry | None = None
    old_signature: bytes | None = None
    new_signature: bytes | None = None

    @property
    def path(self) -> bytes:
        """The path that changes."""
        return self.entry.path


class Diff(msgspec.Struct, frozen=True):
    """All changes between two indexes, in sort order.

    Attributes:
        root: where the new tree lies.
        changes: in sort order; one for each path.
    """

    root: str
    changes: tuple[Change, ...]

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    @property
    def created(self) -> list[bytes]:
        """Paths that are new or changed their type."""
        return self._paths(CREATED)

    @property
    def updated(self) -> list[bytes]:
        """Paths with other content."""
        return self._paths(UPDATED)

    @property
    def metadata_changed(self) -> list[bytes]:
        """Paths with the same content and other metadata."""
        return self._paths(METADATA)

    @property
    def deleted(self) -> list[bytes]:
        """Paths that are gone, directories left out."""
        return [change.path for change in self.changes if change.op == DELETED and not _is_dir(change)]

    @property
    def deleted_dirs(self) -> list[bytes]:
        """Directories that are gone."""
        return [change.path for change in self.changes if change.op == DELETED and _is_dir(change)]

    def _paths(self, op: str) -> list[bytes]:
        return [change.path for change in self.changes if change.op == op]


def _is_dir(change: Change) -> bool:
    return change.entry.type == DIRECTORY


class DiffIndex:
    """Compares two indexes.

    Args:
        new: the tree as it is: ``DirIndex(directory).data()``.
        old: the tree as it was: ``DirIndex.from_file(path)``.
    """

    def __init__(self, new: IndexData, old: IndexData) -> None:
        self._new = new
        self._old = old

    def compute(self) -> Diff:
        """The changes from the old index to the new one. Memory grows with the changes alone.

        Raises:
            StateFormatError, UnsafePathError: an index is damaged.
        """
        pairs = merge_join(
            self._new, self._old, new_path=lambda item: item.path, old_path=lambda item: item.path
        )
        changes: list[Change] = []
        rewritten: set[bytes] = set()
        for new, old in pairs:
            change = _change_of(new, old)
            if change is None and new is not None and new.entry.link_of in rewritten:
                # The file it is a link of is made anew: so is the link, although its entry is as it was.
                change = Change(METADATA, new.entry, old=old.entry if old is not None else None)
            if change is None:
                continue
            changes.append(change)
            if change.op in (CREATED, UPDATED):
                rewritten.add(change.path)
        return Diff(self._new.root, tuple(changes))


def _change_of(new: IndexedEntry | None, old: IndexedEntry | None) -> Change | None:
    op = classify(new.entry if new is not None else None, old.entry if old is not None else None)
    kept = new if new is not None else old
    if op is None or kept is None:
        return None
    return Change(
        op,
        kept.entry,
        old=old.entry if old is not None else None,
        old_signature=old.signature if old is not None else None,
        new_signature=new.signature if new is not None else None,
    )
