"""How the content of files differs between two points, or between a point and a directory.

A text is held in memory, one path at a time, up to :data:`MAX_TEXT_LEN` bytes of either side; what is larger is
named and not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from blake3 import blake3

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.look import Difference, LiveEntry, difference_of
from incremental_backups_tools.chain.rebuild import iter_content
from incremental_backups_tools.chain.resolve import ResolvedEntry, resolve
from incremental_backups_tools.chain.text_diff import is_binary, iter_hunks
from incremental_backups_tools.exceptions import BackupError, IntegrityError
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.diff import METADATA, merge_join
from incremental_backups_tools.tree.entry import FILE, SYMLINK, Entry, printable

# A text of this size in lines of a few bytes takes some hundred MB in Python.
MAX_TEXT_LEN: Final = 8 << 20

TEXT: Final = "text"
BINARY: Final = "binary"
TOO_LARGE: Final = "too-large"
LINK: Final = "link"
UNREADABLE: Final = "unreadable"


class Version(Protocol):
    """An entry on one side of a comparison, and a way to what is in it."""

    @property
    def entry(self) -> Entry:
        """The entry."""

    def read(self) -> bytes:
        """The content of a regular file of at most :data:`MAX_TEXT_LEN` bytes that is no hard link.

        Raises:
            BackupError: it cannot be had.
        """


@dataclass(frozen=True, slots=True)
class PointVersion:
    """An entry of a point in time."""

    resolved: ResolvedEntry
    archives: Archives

    @property
    def entry(self) -> Entry:
        """The entry."""
        return self.resolved.entry

    def read(self) -> bytes:
        """As :meth:`Version.read`."""
        content = b"".join(iter_content(self.resolved, self.archives))
        actual = blake3(content).digest()
        if actual != self.resolved.content_digest:
            path = printable(self.resolved.path)
            expected = self.resolved.content_digest.hex() if self.resolved.content_digest is not None else ""
            raise IntegrityError(
                f"{path}: its content is not the one that its digest promises",
                path=path,
                expected=expected,
                actual=actual.hex(),
            )
        return content


@dataclass(frozen=True, slots=True)
class LiveVersion:
    """An entry of a live directory."""

    live: LiveEntry

    @property
    def entry(self) -> Entry:
        """The entry."""
        return self.live.entry

    def read(self) -> bytes:
        """As :meth:`Version.read`."""
        if self.live.content is None:
            raise IntegrityError(
                f"{printable(self.entry.path)}: its content was not kept",
                path=printable(self.entry.path),
                expected=self.entry.size,
                actual=None,
            )
        return self.live.content


@dataclass(frozen=True, slots=True)
class ContentChange:
    """How the content of one path differs.

    Attributes:
        old, new: the entries, None where there is none: the path is new, or gone. Each is a regular file or a
            symlink, and both are of one type.
        kind: ``text``, and otherwise why there is no diff: ``binary``, ``too-large`` (more than
            :data:`MAX_TEXT_LEN` bytes), ``link`` (a name of a file that has another, which shows its content)
            or ``unreadable``.
        old_text, new_text: what to compare, where it is text; of a symlink its target.
        message: what made it unreadable.
    """

    old: Entry | None
    new: Entry | None
    kind: str
    old_text: bytes = b""
    new_text: bytes = b""
    message: str | None = None

    def iter_hunks(self) -> Iterator[bytes]:
        """The lines of a unified diff, without its head."""
        return iter_hunks(self.old_text, self.new_text)


def iter_point(repository: Repository, history: History, backup_id: str) -> Iterator[PointVersion]:
    """What a point holds, in sort order.

    Raises:
        ChainError, FormatError, IntegrityError, RepositoryError: as resolving.
    """
    archives = Archives(repository.store, history.key, history.chain_to(backup_id))
    for resolved in resolve(history.states(backup_id)):
        yield PointVersion(resolved, archives)


def compare_contents(
    new: Iterable[Version], old: Iterable[Version]
) -> Iterator[tuple[Difference, list[ContentChange]]]:
    """What leads from *old* to *new*, both in sort order, each with what changed in content.

    A path that changed its type is one file gone and another one new. What is neither a file nor a symlink has no
    content; a change of metadata alone changes none.
    """
    pairs = merge_join(new, old, new_path=_path_of, old_path=_path_of)
    for after, before in pairs:
        difference = difference_of(
            after.entry if after is not None else None, before.entry if before is not None else None
        )
        if difference is not None:
            is_content = difference.op != METADATA
            yield difference, list(_changes(after, before)) if is_content else []


def _path_of(version: Version) -> bytes:
    return version.entry.path


def _changes(new: Version | None, old: Version | None) -> Iterator[ContentChange]:
    if new is not None and old is not None and new.entry.type != old.entry.type:
        yield from _changes(None, old)
        yield from _changes(new, None)
        return
    either = new if new is not None else old
    if either is not None and either.entry.type in (FILE, SYMLINK):
        yield _change(new, old)


def _change(new: Version | None, old: Version | None) -> ContentChange:
    old_entry = old.entry if old is not None else None
    new_entry = new.entry if new is not None else None
    entries = [entry for entry in (old_entry, new_entry) if entry is not None]
    if any(entry.link_of is not None for entry in entries):
        return ContentChange(old_entry, new_entry, LINK)
    if any(entry.type == FILE and entry.size > MAX_TEXT_LEN for entry in entries):
        return ContentChange(old_entry, new_entry, TOO_LARGE)
    try:
        old_text, new_text = _text_of(old), _text_of(new)
    except BackupError as error:
        return ContentChange(old_entry, new_entry, UNREADABLE, message=str(error))
    if entries[0].type == FILE and (is_binary(old_text) or is_binary(new_text)):
        return ContentChange(old_entry, new_entry, BINARY)
    return ContentChange(old_entry, new_entry, TEXT, old_text, new_text)


def _text_of(version: Version | None) -> bytes:
    if version is None:
        return b""
    if version.entry.type == SYMLINK:
        return version.entry.target or b""
    return version.read()
