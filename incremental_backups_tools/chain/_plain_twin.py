"""``chain/_kernel/plain.c`` in Python: see ``plain_files.py`` for what it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from incremental_backups_tools.archive.tar import (
    BLOCK_LEN,
    MAX_OCTAL_11,
    NAME_LEN,
    OrdinaryOwner,
    encode_plain_header,
    padding_len,
)
from incremental_backups_tools.chain.seen_filter import add_to_filter, digest_prefix, is_in_filter
from incremental_backups_tools.tree.entry import DIGEST_MODULUS, plain_encoding

if TYPE_CHECKING:
    from incremental_backups_tools.chain.plain_files import OwnerFinder, PlainOwner, Volume
    from incremental_backups_tools.tree.read_ahead import ReadFile

_NANOSECONDS: Final = 10**9
# Printable ASCII without what JSON escapes, and as long as it fits in a tar header.
_PLAIN_PATH: Final = re.compile(rb"[ !#-\[\]-~]{1,%d}" % NAME_LEN)


def encode_plain(
    files: Sequence[ReadFile],
    prefix: bytes,
    whole: Volume,
    sigvault: Volume,
    sig_owner: OrdinaryOwner,
    owner_of: OwnerFinder,
    clock: tuple[int, int, int],
    noted_len: int,
    seen: bytearray,
) -> tuple[int, int, list[int], list[int], bytes, bytes, bytes, list[tuple[int, int, bytes]]]:
    contents, signatures = _Members(whole), _Members(sigvault)
    states: list[bytes] = []
    indexes: list[bytes] = []
    rows: list[tuple[int, int, bytes]] = []
    total = digest_sum = 0
    for file in files:
        path = prefix + file.name
        seconds = file.mtime_ns // _NANOSECONDS
        owner = owner_of(file.mode, file.uid, file.gid) if _PLAIN_PATH.fullmatch(path) else None
        if owner is None or not 0 <= seconds <= MAX_OCTAL_11:
            break
        size = len(file.content)
        sig_len = len(file.signature) if file.signature is not None else None
        if not (contents.has_room(size) and (sig_len is None or signatures.has_room(sig_len))):
            break
        place = contents.add(encode_plain_header(path, size, seconds, owner[:3]), file.content)
        sig = None
        if file.signature is not None and file.sig_digest is not None:
            header = encode_plain_header(path, len(file.signature), seconds, sig_owner)
            sig = signatures.add(header, file.signature), file.sig_digest.hex().encode()
        state, index = _lines(path, file, owner, place, sig, clock)
        states.append(state)
        indexes.append(index)
        encoding = plain_encoding(path, owner.encoding, size, file.mtime_ns, file.digest)
        digest_sum += int.from_bytes(blake3(encoding).digest(), "big")
        total += size
        if size >= noted_len:
            row = (size, digest_prefix(file.digest), path.replace(b"/", b"\0"))
            add_to_filter(seen, row[1])
            rows.append(row)
    digest = (digest_sum % DIGEST_MODULUS).to_bytes(32, "big")
    lines = b"".join(states), b"".join(indexes)
    return len(states), total, contents.lens, signatures.lens, *lines, digest, rows


def find_seen(files: Sequence[ReadFile], begin: int, noted_len: int, seen: bytearray) -> list[int]:
    positions: list[int] = []
    before: set[int] = set()
    for position, file in enumerate(files, begin):
        prefix = digest_prefix(file.digest)
        if len(file.content) >= noted_len and (prefix in before or is_in_filter(seen, prefix)):
            positions.append(position)
        before.add(prefix)
    return positions


class _Members:
    """The members for one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._added = 0
        self.lens: list[int] = []

    def has_room(self, size: int) -> bool:
        return self._added + _member_len(size) <= self._volume.room

    def add(self, header: bytes, data: bytes | memoryview) -> bytes:
        """Append a member; returns its location in JSON."""
        size = len(data)
        offset = self._volume.tar_len + self._added + len(header)
        self._volume.out.extend(header)
        self._volume.out.extend(data)
        self._volume.out.extend(bytes(padding_len(size)))
        self._added += _member_len(size)
        self.lens.append(_member_len(size))
        return b'{"file":"%b","offset":%d,"length":%d}' % (self._volume.file, offset, size)


def _member_len(size: int) -> int:
    return BLOCK_LEN + size + padding_len(size)


def _lines(
    path: bytes,
    file: ReadFile,
    owner: PlainOwner,
    place: bytes,
    sig: tuple[bytes, bytes] | None,
    clock: tuple[int, int, int],
) -> tuple[bytes, bytes]:
    """The line of the state, and that of the index; *sig* is its signature's place and digest."""
    hex_digest = file.digest.hex().encode()
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


def _can_vouch(file: ReadFile, clock: tuple[int, int, int]) -> bool:
    begin_ns, fine_ns, coarse_ns = clock
    is_coarse = file.mtime_ns % _NANOSECONDS == 0 and file.ctime_ns % _NANOSECONDS == 0
    return max(file.mtime_ns, file.ctime_ns) <= begin_ns - (coarse_ns if is_coarse else fine_ns)
