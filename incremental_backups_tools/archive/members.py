"""Entries as tar members."""

from __future__ import annotations

from typing import Final

from incremental_backups_tools.archive.sparse_map import sparse_records
from incremental_backups_tools.archive.tar import (
    BLOCK,
    CHAR,
    DIR,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    TarMember,
    ordinary_owner,
    xattr_key,
)
from incremental_backups_tools.tree import entry as entries
from incremental_backups_tools.tree.entry import Entry, Location, check_rel_path

_TAR_TYPE: Final = {
    entries.FILE: REGULAR,
    entries.DIRECTORY: DIR,
    entries.SYMLINK: SYMLINK,
    entries.FIFO: FIFO,
    entries.CHAR_DEVICE: CHAR,
    entries.BLOCK_DEVICE: BLOCK,
}
_NANOSECONDS: Final = 10**9
_TAR_BLOCK_LEN: Final = 512


_SIGNATURE_MODE: Final = 0o600
_signature_owner = ordinary_owner(_SIGNATURE_MODE, 0, 0, b"", b"")
assert _signature_owner is not None  # it fits
# What the headers of all :func:`plain_member` share.
SIGNATURE_OWNER: Final = _signature_owner


def file_member(entry: Entry, *, size: int | None = None, name: bytes | None = None) -> TarMember:
    """The member for a regular file, or for the delta of one, of *size* bytes."""
    return _member(entry, REGULAR, name, size=entry.size if size is None else size)


def sparse_member(entry: Entry, size: int) -> TarMember:
    """The member for a regular file with holes, of which *size* bytes are stored, the map among them.

    It bears the file's own name. GNU tar would write another one there, and the own one into a record, for
    programs that do not know sparse members; but then no name that is not ASCII could be written.
    """
    return _member(entry, REGULAR, None, size=size, records=sparse_records(entry.size))


def special_member(entry: Entry, *, name: bytes | None = None) -> TarMember:
    """The member for a directory, symlink, FIFO, device node or hard link."""
    if entry.link_of is not None:
        return _member(entry, LINK, name, link_target=entry.link_of)
    return _member(entry, _TAR_TYPE[entry.type], name, link_target=entry.target or b"")


def plain_member(path: bytes, size: int, *, mtime_ns: int = 0) -> TarMember:
    """A member of our own making, readable to its owner alone: a signature tells about a file's content."""
    return TarMember(name=path, size=size, mode=_SIGNATURE_MODE, mtime=mtime_ns // _NANOSECONDS)


def _member(
    entry: Entry,
    kind: bytes,
    name: bytes | None,
    *,
    size: int = 0,
    link_target: bytes = b"",
    records: tuple[tuple[bytes, bytes], ...] = (),
) -> TarMember:
    return TarMember(
        name=entry.path if name is None else name,
        type=kind,
        size=size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        user=entry.user or b"",
        group=entry.group or b"",
        mtime=entry.mtime_ns // _NANOSECONDS,
        link_target=link_target,
        device=entry.device or (0, 0),
        pax=records + _pax_records(entry) if entry.xattrs or entry.acl is not None else records,
    )


def _pax_records(entry: Entry) -> tuple[tuple[bytes, bytes], ...]:
    records = [(xattr_key(name), value) for name, value in entry.xattrs]
    if entry.acl is not None and entry.acl.access is not None:
        records.append((b"SCHILY.acl.access", entry.acl.access.encode()))
    if entry.acl is not None and entry.acl.default is not None:
        records.append((b"SCHILY.acl.default", entry.acl.default.encode()))
    return tuple(records)


def entry_of_member(member: TarMember) -> Entry | None:
    """The entry that *member* alone tells of, without digest; None for a hard link, which tells of no file.

    Raises:
        UnsafePathError: a name that leads out of the tree.
    """
    if member.type == LINK:
        return None
    kind = next(kind for kind, tar_type in _TAR_TYPE.items() if tar_type == member.type)
    return Entry(
        path=check_rel_path(member.name.removeprefix(b"./") or entries.ROOT),
        type=kind,
        mode=member.mode,
        uid=member.uid,
        gid=member.gid,
        user=member.user or None,
        group=member.group or None,
        size=member.size,
        mtime_ns=member.mtime * _NANOSECONDS,
        target=member.link_target or None,
        device=member.device if kind in (entries.CHAR_DEVICE, entries.BLOCK_DEVICE) else None,
    )


def padded_len(location: Location) -> int:
    """Bytes that the data at *location* takes in its volume's tar: whole blocks."""
    return -(-location.length // _TAR_BLOCK_LEN) * _TAR_BLOCK_LEN


def member_len(location: Location) -> int:
    """As :func:`padded_len`, with the member's header."""
    return _TAR_BLOCK_LEN + padded_len(location)
