"""Plain files, a directory's at a time: tar members, lines, and canonical encodings out of templates.

A plain file is a regular one under its only name, without holes, attributes and flags, of which path, time and owner
need no escape and no extended header anywhere. Most names of most trees are such, and to build an entry of each, to
turn that into a record, and the record into JSON, takes several times as long as all else that is done about the
file. What comes of it is byte for byte what ``line_of_entry``, ``encode_member_header`` and ``canonical_encoding``
make of an entry; tests compare them.

``encode_plain`` of ``_native`` is C, that of ``_plain_twin`` the same in Python.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, cast

import msgspec
from blake3 import blake3

from incremental_backups_tools.archive.members import SIGNATURE_OWNER
from incremental_backups_tools.archive.tar import OrdinaryOwner, ordinary_owner
from incremental_backups_tools.chain import _plain_twin
from incremental_backups_tools.tree.entry import FILE, EntryLine, encode_line, owner_encoding, text_or_b64
from incremental_backups_tools.tree.metadata import group_name, user_name
from incremental_backups_tools.tree.read_ahead import ReadFile
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
        count: how many there are: fewer than were given where the next one is not plain.
        members: their contents as tar members, one after the other.
        signatures: the members with the signatures of those that have one.
        state, index: their lines in a full's state, and in a cached index, each with its newline.
        index_lens: the length of each line of the index.
        encodings: their canonical encodings.
    """

    count: int
    members: bytes
    signatures: bytes
    state: bytes
    index: bytes
    index_lens: list[int]
    encodings: list[bytes]


class Volume(NamedTuple):
    """Where members are to lie: the volume's name, and how long its tar is before."""

    file: bytes
    tar_len: int


OwnerFinder = Callable[[int, int, int], PlainOwner | None]
_Encode = Callable[
    [
        Sequence[ReadFile],
        Sequence[bytes],
        Sequence[bytes | None],
        bytes,
        Volume,
        Volume,
        OrdinaryOwner,
        OwnerFinder,
        tuple[int, int, int],
    ],
    tuple[int, bytes, bytes, bytes, bytes, list[int], list[bytes]],
]


def encode_plain(
    files: Sequence[ReadFile],
    digests: Sequence[bytes],
    *,
    prefix: bytes,
    begin_ns: int,
    whole: Volume,
    sigvault: Volume,
    encode: _Encode | None = None,
) -> PlainFiles:
    """What files of one directory are, up to the first that is not plain.

    Args:
        digests: BLAKE3 of the content of each.
        prefix: the directory's path with a slash; empty for the root.
        begin_ns: a time before they were read, by which their ctime can vouch for them or not.
        whole, sigvault: where the members with contents and signatures will lie.
        encode: C or its twin; None is C where it is there.
    """
    sig_digests = [blake3(file.signature).digest() if file.signature is not None else None for file in files]
    clock = begin_ns, *_GRANULARITIES
    made = (encode or _find_encode())(
        files, digests, sig_digests, prefix, whole, sigvault, SIGNATURE_OWNER, plain_owner, clock
    )
    return PlainFiles(*made)


@functools.cache
def _find_encode() -> _Encode:
    try:
        module = importlib.import_module("incremental_backups_tools.chain._native")
    except ModuleNotFoundError:
        return _plain_twin.encode_plain
    return cast(_Encode, module.encode_plain)


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
