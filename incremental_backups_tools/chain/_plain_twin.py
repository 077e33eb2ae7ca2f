"""``chain/_kernel/plain.c`` in Python: see ``plain_files.py`` for what it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from incremental_backups_tools.archive.tar import (
    MAX_OCTAL_11,
    NAME_LEN,
    OrdinaryOwner,
    encode_plain_header,
    padding_len,
)
from incremental_backups_tools.tree.entry import plain_encoding

if TYPE_CHECKING:
    from incremental_backups_tools.chain.plain_files import OwnerFinder, PlainOwner, Volume
    from incremental_backups_tools.tree.read_ahead import ReadFile

_NANOSECONDS: Final = 10**9
# Printable ASCII without what JSON escapes, and as long as it fits in a tar header.
_PLAIN_PATH: Final = re.compile(rb"[ !#-\[\]-~]{1,%d}" % NAME_LEN)


def encode_plain(
    files: Sequence[ReadFile],
    digests: Sequence[bytes],
    sig_digests: Sequence[bytes | None],
    prefix: bytes,
    whole: Volume,
    sigvault: Volume,
    sig_owner: OrdinaryOwner,
    owner_of: OwnerFinder,
    clock: tuple[int, int, int],
) -> tuple[int, bytes, bytes, bytes, bytes, list[int], list[bytes]]:
    members, signatures = bytearray(), bytearray()
    states: list[bytes] = []
    indexes: list[bytes] = []
    encodings: list[bytes] = []
    for file, digest, sig_digest in zip(files, digests, sig_digests, strict=True):
        path = prefix + file.name
        seconds = file.mtime_ns // _NANOSECONDS
        owner = owner_of(file.mode, file.uid, file.gid) if _PLAIN_PATH.fullmatch(path) else None
        if owner is None or not 0 <= seconds <= MAX_OCTAL_11:
            break
        size = len(file.content)
        members += encode_plain_header(path, size, seconds, owner[:3])
        place = _place(whole, len(members), size)
        members += file.content
        members += bytes(padding_len(size))
        sig = None
        if file.signature is not None and sig_digest is not None:
            signatures += encode_plain_header(path, len(file.signature), seconds, sig_owner)
            sig = _place(sigvault, len(signatures), len(file.signature)), sig_digest.hex().encode()
            signatures += file.signature
            signatures += bytes(padding_len(len(file.signature)))
        state, index = _lines(path, file, owner, digest, place, sig, clock)
        states.append(state)
        indexes.append(index)
        encodings.append(plain_encoding(path, owner.encoding, size, file.mtime_ns, digest))
    lens = [len(line) for line in indexes]
    joined = b"".join(states), b"".join(indexes)
    return len(states), bytes(members), bytes(signatures), *joined, lens, encodings


def _lines(
    path: bytes,
    file: ReadFile,
    owner: PlainOwner,
    digest: bytes,
    place: bytes,
    sig: tuple[bytes, bytes] | None,
    clock: tuple[int, int, int],
) -> tuple[bytes, bytes]:
    """The line of the state, and that of the index; *sig* is its signature's place and digest."""
    hex_digest = digest.hex().encode()
    common = b'{"path":"%b","type":"file",%b,"size":%d,"mtime_ns":%d,"digest":"%b"' % (
        path,
        owner.line,
        len(file.content),
        file.mtime_ns,
        hex_digest,
    )
    ctime = b'"ctime_ns":%d,' % file.ctime_ns if _can_vouch(file, clock) else b""
    local = b'%b,%b"inode":%d,"dev":%d,"locations":[%b]' % (common, ctime, file.inode, file.dev, place)
    if sig is None:
        state = b'%b,"data":%b}\n' % (common, place)
        return state, b'%b,"sig_locations":[],"content_digest":"%b"}\n' % (local, hex_digest)
    sig_place, sig_digest = sig
    state = b'%b,"data":%b,"sig":%b,"digest":"%b"}}\n' % (common, place, sig_place[:-1], sig_digest)
    index = b'%b,"sig_locations":[%b],"sig_digest":"%b","content_digest":"%b"}\n' % (
        local,
        sig_place,
        sig_digest,
        hex_digest,
    )
    return state, index


def _place(volume: Volume, offset: int, length: int) -> bytes:
    """The location in JSON of what begins *offset* bytes behind the end of *volume*."""
    return b'{"file":"%b","offset":%d,"length":%d}' % (volume.file, volume.tar_len + offset, length)


def _can_vouch(file: ReadFile, clock: tuple[int, int, int]) -> bool:
    begin_ns, fine_ns, coarse_ns = clock
    is_coarse = file.mtime_ns % _NANOSECONDS == 0 and file.ctime_ns % _NANOSECONDS == 0
    return max(file.mtime_ns, file.ctime_ns) <= begin_ns - (coarse_ns if is_coarse else fine_ns)
