"""The state: what one backup is, written last. A backup exists if and only if its state does.

A state is a stream of records (``tree/records.py``): the header below, one entry a line in sort order, and a
trailer. A full's state holds every entry; an incremental's only changes, each with its operation.

Format code; the two functions that read take a file or a store's range reader, nothing else is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

import msgspec

from incremental_backups_tools.exceptions import (
    LimitExceededError,
    StateFormatError,
    UnsupportedVersionError,
)
from incremental_backups_tools.repository.layout import is_backup_id, is_key, parse_object_name
from incremental_backups_tools.tree.diff import CREATED, DELETED, METADATA, UPDATED
from incremental_backups_tools.tree.entry import (
    FILE,
    Entry,
    EntryLine,
    encode_line,
    entry_of_line,
    line_of_deletion,
    line_of_entry,
    parse_line,
    path_of_line,
    printable,
    sort_key,
)
from incremental_backups_tools.tree.records import RecordReader, RecordWriter, read_header

STATE_FORMAT: Final = "ibt-state"
STATE_VERSION: Final = 1
# A line is mostly digests: at any higher level it is compressed no better, and takes longer.
STATE_LEVEL: Final = 1
FULL: Final = "full"
INCREMENTAL: Final = "incremental"
# Read at once to find the header; it is grown until the header's frame is whole.
HEADER_READ_LEN: Final = 16 << 10
MAX_LISTED_PROBLEMS: Final = 1000
_OPS: Final = frozenset({CREATED, UPDATED, METADATA, DELETED})


class ArchiveFile(msgspec.Struct, frozen=True):
    """A file of a backup: its name below the key, size in bytes, BLAKE3 (hex) as it lies."""

    name: str
    role: str
    size: int
    digest: str


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many entries a backup has and how many changed."""

    entries: int = 0
    files: int = 0
    dirs: int = 0
    created: int = 0
    updated: int = 0
    metadata: int = 0
    deleted: int = 0


class Sizes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Bytes: of all files in the tree, read from the source, and added to the repository by archives."""

    total: int = 0
    read: int = 0
    added: int = 0


class SourceProblem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A path that could not be read, base64 in the twin field where it is not UTF-8, and why."""

    path: str | None = None
    path_b64: str | None = None
    message: str


class StateHeader(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The first line of a state. The order of the fields is part of the format: ``RESTORE.sh`` reads it."""

    format: str
    version: int
    kind: str
    key: str
    id: str
    generation: int = 0
    parent: str | None = None
    parent_index_digest: str | None = None
    index_digest: str
    lines: int
    references: int = 0  # lines that name another path: hard links, renames, copies
    files: list[ArchiveFile] = []
    source: str | None = None
    source_b64: str | None = None
    host: str = ""
    start_ns: int = 0
    end_ns: int = 0
    tags: list[str] = []
    counts: Counts = Counts()
    bytes: Sizes = Sizes()
    problem_count: int = 0
    problems: list[SourceProblem] = []
    tool: str = ""
    repository: str = ""  # the repository's id, where the state is signed: for that one alone


class StateLine(msgspec.Struct, frozen=True):
    """One entry of a state with its operation; a full's lines are all created."""

    op: str
    entry: Entry

    @property
    def path(self) -> bytes:
        """The entry's path."""
        return self.entry.path


_header_decoder = msgspec.json.Decoder(StateHeader)


class _FormatOnly(msgspec.Struct):
    format: str = ""
    version: int = 0


def encode_header(header: StateHeader) -> bytes:
    """The header as a line of JSON."""
    return msgspec.json.encode(header)


def parse_header(raw: bytes, *, what: str) -> StateHeader:
    """Parse and check a header.

    Raises:
        StateFormatError: no header of a state, or one that contradicts itself.
        UnsupportedVersionError: of a newer major version.
    """
    try:
        known = msgspec.json.decode(raw, type=_FormatOnly)
        if known.format != STATE_FORMAT:
            raise StateFormatError(f"{what}: not a state")
        if known.version > STATE_VERSION:
            raise UnsupportedVersionError(
                f"{what}: state format {known.version}; this program reads up to {STATE_VERSION}"
            )
        header = _header_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFormatError(f"{what}: not a state: {error}") from None
    problem = _impossible(header)
    if problem:
        raise StateFormatError(f"{what}: {problem}")
    return header


def _impossible(header: StateHeader) -> str | None:
    if header.kind not in (FULL, INCREMENTAL):
        return f"unknown kind {header.kind!r}"
    if not is_key(header.key) or not is_backup_id(header.id):
        return f"impossible key {header.key!r} or id {header.id!r}"
    if (header.parent is None) != (header.kind == FULL):
        return "a full with a parent, or an incremental without one"
    if header.parent is not None and not (is_backup_id(header.parent) and header.parent < header.id):
        return f"its parent {header.parent!r} is not an earlier backup"
    if not _is_digest(header.index_digest):
        return "no index digest"
    if header.parent is not None and not _is_digest(header.parent_index_digest or ""):
        return "no index digest of its parent"
    if header.lines < 0 or header.generation < 0:
        return "negative numbers"
    if len({file.name for file in header.files}) != len(header.files):
        return "a file that is named twice"
    for file in header.files:
        name = parse_object_name(header.key, file.name)
        if (
            name is None
            or (name.backup_id, name.generation, str(name.role)) != (header.id, header.generation, file.role)
            or file.size < 0
            or not _is_digest(file.digest)
        ):
            return f"impossible file {file.name!r}"
    return None


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text)


def encode_state_line(line: StateLine, *, kind: str) -> bytes:
    """One line of a state of *kind*, without the newline. A deleted entry keeps its path and type alone."""
    if line.op == DELETED:
        return encode_line(line_of_deletion(line.entry.path, line.entry.type, DELETED))
    return encode_state_record(line_of_entry(line.entry, None if kind == FULL else line.op))


def encode_state_record(record: EntryLine) -> bytes:
    """The line of an entry that is there, out of its JSON form, which then lacks what only one machine knows."""
    record.ctime_ns = record.inode = record.dev = None
    return encode_line(record)


def parse_state_line(raw: bytes, header: StateHeader, file_names: frozenset[str]) -> StateLine:
    """Parse one line of the state that *header* begins.

    Args:
        file_names: of the backup's own archives, the only ones that a line may name.

    Raises:
        StateFormatError: not a possible line of it.
        UnsafePathError: a path out of the tree.
    """
    record: EntryLine = parse_line(raw)
    op = record.op if record.op is not None else CREATED
    if (record.op is None) != (header.kind == FULL) or op not in _OPS:
        raise StateFormatError(f"operation {record.op!r} in a {header.kind}")
    if op == DELETED:
        return StateLine(op, Entry(path=path_of_line(record), type=record.type or FILE, mode=0))
    entry = entry_of_line(record)
    if header.kind == FULL and entry.source is not None:
        raise StateFormatError(f"{printable(entry.path)}: 'from' in a full")
    if (op == METADATA or not entry.is_content_holder) and (entry.data or entry.source or entry.sig):
        raise StateFormatError(f"{printable(entry.path)}: content where there can be none of its own")
    for place in (entry.data, entry.sig):
        if place is not None and place.file not in file_names:
            raise StateFormatError(f"{printable(entry.path)}: {place.file!r} is no file of this backup")
    return StateLine(op, entry)


class StateReader:
    """Reads a state from a binary file at its start. Iterating to the end proves it whole.

    Raises:
        StateFormatError, UnsupportedVersionError, UnsafePathError, LimitExceededError: here or while
            iterating.
    """

    def __init__(self, file: BinaryIO, *, what: str) -> None:
        self._what = what
        self._records = RecordReader(file, what=what)
        self.header = parse_header(self._records.header, what=what)

    def __iter__(self) -> Iterator[StateLine]:
        previous = b""
        file_names = frozenset(file.name for file in self.header.files)
        for position, raw in enumerate(self._records):
            if position >= self.header.lines:
                raise LimitExceededError(f"{self._what}: more than the promised {self.header.lines} entries")
            line = parse_state_line(raw, self.header, file_names)
            key = sort_key(line.path)
            if position and key <= previous:
                raise StateFormatError(f"{self._what}: {printable(line.path)} is not in sort order")
            previous = key
            yield line


def write_state(file: BinaryIO, header: StateHeader, lines: Iterable[bytes]) -> None:
    """Write a whole state: *lines* are encoded and sorted, ``header.lines`` of them."""
    writer = RecordWriter(file, encode_header(header), level=STATE_LEVEL)
    for line in lines:
        writer.write(line)
    _close_state(writer, header)


def write_state_frames(file: BinaryIO, header: StateHeader, frames: Iterable[tuple[bytes, bytes]]) -> None:
    """Write a whole state of lines that are compressed already.

    Args:
        frames: each as it lies, and what is in it: lines, encoded and sorted, each with its newline;
            ``header.lines`` in all.
    """
    writer = RecordWriter(file, encode_header(header), level=STATE_LEVEL)
    for frame, content in frames:
        writer.write_frame(frame, content)
    _close_state(writer, header)


def _close_state(writer: RecordWriter, header: StateHeader) -> None:
    writer.close()
    if writer.count != header.lines:
        raise ValueError(f"the header promises {header.lines} lines, {writer.count} were given")


def header_of_start(start: bytes, *, what: str) -> StateHeader:
    """The header out of the first bytes of a state.

    Raises:
        StateFormatError, UnsupportedVersionError: not a state, or *start* is too short.
    """
    return parse_header(read_header(start, what=what), what=what)
