"""Plain files, a directory's at a time: tar members, lines, and canonical encodings out of templates.

A plain file is a regular one under its only name, without holes, attributes and flags, of which path, time and owner
need no escape and no extended header anywhere. Most names of most trees are such, and to build an entry of each, to
turn that into a record, and the record into JSON, takes several times as long as all else that is done about the
file. What comes of it is byte for byte what ``line_of_entry``, ``encode_member_header`` and ``canonical_encoding``
make of an entry; tests compare them.

What ``_native`` does is C, ``_plain_twin`` does the same in Python.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Final, NamedTuple, cast

import msgspec

from incremental_backups_tools.archive.members import SIGNATURE_OWNER
from incremental_backups_tools.archive.tar import ordinary_owner
from incremental_backups_tools.chain import _plain_twin
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.tree.entry import FILE, EntryLine, encode_line, owner_encoding, text_or_b64
from incremental_backups_tools.tree.metadata import group_name, user_name
from incremental_backups_tools.tree.read_ahead import ReadFile, ReadFiles
from incremental_backups_tools.tree.unchanged import CLOCK_GRANULARITY_NS, COARSE_GRANULARITY_NS

_GRANULARITIES: Final = CLOCK_GRANULARITY_NS, COARSE_GRANULARITY_NS


class PlainOwner(NamedTuple):
    """What plain files of one mode and owner share.

    Attributes:
        permissions, rest, checksum: of their tar headers, as OrdinaryOwner.
        line: the fields of a line from mode to group.
        encoding: these fields and the type in the canonical encoding.
    """

    permissions: bytes
    rest: bytes
    checksum: int
    line: bytes
    encoding: bytes


class PlainFiles(msgspec.Struct, frozen=True):
    """What plain files are in archives and lists.

    Attributes:
        count: how many there are: fewer than were given where the next one is not plain or has no room.
        total_bytes: of their contents.
        whole_lens, sigvault_lens: bytes of tar of each member with a content, and with a signature.
        state, index: their lines in a full's state, and in a cached index, each with its newline.
        digest: what they add to an index digest, big-endian.
        rows: of those that a table of contents has: size, beginning of the digest, sort key.
    """

    count: int
    total_bytes: int
    whole_lens: list[int]
    sigvault_lens: list[int]
    state: bytes
    index: bytes
    digest: bytes
    rows: list[tuple[int, int, bytes]]


class Volume(NamedTuple):
    """Where members are to lie.

    Attributes:
        file: the volume's name.
        tar_len: how long its tar is before.
        room: how many bytes of tar it still takes.
        out: where they are appended.
    """

    file: bytes
    tar_len: int
    room: int
    out: bytearray


OwnerFinder = Callable[[int, int, int], PlainOwner | None]


def encode_plain(
    read: ReadFiles, *, whole: Volume, sigvault: Volume, seen: bytearray, twin: bool = False
) -> PlainFiles:
    """What files are, up to the first that is not plain or has no room. Their members are appended to the volumes.

    Args:
        seen: the filter of the table that the rows are for; it gets them.
        twin: take Python's, also where there is C.
    """
    rest = (
        read.prefix,
        whole,
        sigvault,
        SIGNATURE_OWNER,
        plain_owner,
        (read.begin_ns, *_GRANULARITIES),
        MIN_SHARED_LEN,
        seen,
    )
    native, table = (None, None) if twin else _native_for(read)
    if native is None:
        return PlainFiles(*_plain_twin.encode_plain(_files_of(read), *rest))
    return PlainFiles(*native.encode_plain(table, read.begin, read.end, *rest))


def find_seen(read: ReadFiles, seen: bytearray, *, twin: bool = False) -> list[int]:
    """The positions of files whose content may be held already: most of the others' is for certain not.

    It may be if the filter *seen* has it, or one of the files before has one that begins so.
    """
    native, table = (None, None) if twin else _native_for(read)
    if native is None:
        return _plain_twin.find_seen(_files_of(read), read.begin, MIN_SHARED_LEN, seen)
    return cast(list[int], native.find_seen(table, read.begin, read.end, MIN_SHARED_LEN, seen))


def _files_of(read: ReadFiles) -> list[ReadFile]:
    return [read.file(position) for position in range(read.begin, read.end)]


def _native_for(read: ReadFiles) -> tuple[ModuleType | None, object]:
    """The C extension, and what it takes for the reading; None where either is Python's."""
    table = getattr(read.run.reading, "table", None)
    return (_find_native(), table) if table is not None else (None, None)


@functools.cache
def _find_native() -> ModuleType | None:
    try:
        return importlib.import_module("incremental_backups_tools.chain._native")
    except ModuleNotFoundError:
        return None


@functools.lru_cache(maxsize=1024)
def plain_owner(mode: int, uid: int, gid: int) -> PlainOwner | None:
    """What files with these permission bits and this owner share; None where a tar header has no room for it."""
    user, group = user_name(uid), group_name(gid)
    header = ordinary_owner(mode, uid, gid, user or b"", group or b"")
    if header is None:
        return None
    line = EntryLine(mode=mode, uid=uid, gid=gid)
    line.user, line.user_b64 = text_or_b64(user)
    line.group, line.group_b64 = text_or_b64(group)
    return PlainOwner(*header, encode_line(line)[1:-1], owner_encoding(FILE, mode, uid, gid, user, group))
