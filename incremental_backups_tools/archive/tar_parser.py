"""Reading a tar from front to back, trusting none of it.

Used for standalone archives and for salvage; a restore finds its data by the locations in a state instead.
Names come out as they stand in the archive: where they may lead is for whoever creates files to judge.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from incremental_backups_tools.archive.tar import (
    BLOCK_LEN,
    DIR,
    EXTENSION_TYPES,
    FIELD_KEYS,
    GNU_LONG_LINK,
    GNU_LONG_NAME,
    MAX_EXTENDED_LEN,
    MAX_NUMBER,
    PAX_GLOBAL,
    TarMember,
    find_member_fault,
    padding_len,
    parse_header_block,
    parse_pax_records,
)
from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError

_SKIP_LEN = 1 << 18
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_TIME = re.compile(rb"(-?)([0-9]{1,19})(?:\.([0-9]*))?")


class TarParser:
    """Iterates over the members of a tar; between two steps :meth:`read` gives the current member's data.

    Memory is bounded: by MAX_EXTENDED_LEN for headers, by what the caller asks for with data.

    Args:
        file: where the tar begins at the current position.
        name: what to call it in errors.
        tar_len: bytes from there to the end, where that is known and *file* can seek: unread data is then
            skipped by seeking, and a member that is longer than the rest is refused at its header.

    Iterating raises:
        ArchiveFormatError: a broken header, an unknown type, a tar that ends early or without its two blocks
            of zeros (one that was cut between members would otherwise look whole).
        LimitExceededError: more than MAX_EXTENDED_LEN bytes of extended headers.
    """

    def __init__(self, file: BinaryIO, *, name: str = "tar", tar_len: int | None = None) -> None:
        self._file = file
        self._name = name
        self._tar_len = tar_len
        self._offset = 0
        self._unread = 0
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[tuple[TarMember, int]]:
        """Yield each member and the offset of its data, from the beginning of the tar."""
        while True:
            header_offset = self._offset + self._unread + self._padding
            try:
                self._skip(self._unread + self._padding)
                self._unread = self._padding = 0
                member = self._read_member()
            except (ArchiveFormatError, LimitExceededError) as error:
                raise type(error)(f"{self._name}: member at byte {header_offset}: {error}") from error
            if member is None:
                return
            self._unread, self._padding = member.size, padding_len(member.size)
            yield member, self._offset

    def read(self, length: int) -> bytes:
        """Up to *length* further bytes of the current member's data; empty at its end.

        Raises:
            ArchiveFormatError: the tar ends before.
        """
        data = self._file.read(min(length, self._unread))
        if not data and length > 0 and self._unread:
            raise ArchiveFormatError(f"{self._name}: {self._truncated(self._unread)}")
        self._offset += len(data)
        self._unread -= len(data)
        return data

    def _read_member(self) -> TarMember | None:
        records: dict[bytes, bytes] = {}
        extended_len = 0
        while True:
            member = parse_header_block(self._read_exactly(BLOCK_LEN))
            if member is None:
                if records or any(self._read_exactly(BLOCK_LEN)):
                    raise ArchiveFormatError("a single block of zeros, or one after an extended header")
                return None
            if member.type not in EXTENSION_TYPES:
                return self._complete(member, {**self._globals, **records})
            extended_len += BLOCK_LEN + member.size
            if not 0 <= extended_len <= MAX_EXTENDED_LEN or member.size < 0:
                raise LimitExceededError(f"extended headers of {extended_len} bytes, over {MAX_EXTENDED_LEN}")
            payload = self._read_exactly(member.size)
            self._skip(padding_len(member.size))
            self._take_extension(member.type, payload, records)

    def _take_extension(self, kind: bytes, payload: bytes, records: dict[bytes, bytes]) -> None:
        if kind == GNU_LONG_NAME:
            records[b"path"] = payload.rstrip(b"\0")
        elif kind == GNU_LONG_LINK:
            records[b"linkpath"] = payload.rstrip(b"\0")
        elif kind == PAX_GLOBAL:
            self._globals.update(parse_pax_records(payload))
            kept_len = sum(len(key) + len(value) for key, value in self._globals.items())
            if kept_len > MAX_EXTENDED_LEN:
                raise LimitExceededError(f"global pax records of {kept_len} bytes, over {MAX_EXTENDED_LEN}")
        else:
            records.update(parse_pax_records(payload))

    def _complete(self, member: TarMember, records: dict[bytes, bytes]) -> TarMember:
        if records:
            member = _apply_records(member, records)
        if member.type == DIR:
            member = msgspec.structs.replace(member, name=member.name.rstrip(b"/"))
        if fault := find_member_fault(member):
            raise ArchiveFormatError(fault)
        if self._tar_len is not None and member.size > self._tar_len - self._offset:
            raise ArchiveFormatError(f"size {member.size}, only {self._tar_len - self._offset} bytes follow")
        return member

    def _read_exactly(self, length: int) -> bytes:
        parts = []
        missing = length
        while missing:
            part = self._file.read(missing)
            if not part:
                raise self._truncated(missing)
            parts.append(part)
            missing -= len(part)
            self._offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _skip(self, length: int) -> None:
        if self._tar_len is None:
            while length:
                length -= len(self._read_exactly(min(length, _SKIP_LEN)))
        elif length:
            self._file.seek(length, os.SEEK_CUR)
            self._offset += length

    def _truncated(self, missing: int) -> ArchiveFormatError:
        return ArchiveFormatError(f"ends at byte {self._offset}, where {missing} more are due")


def _apply_records(member: TarMember, records: dict[bytes, bytes]) -> TarMember:
    """The member with what pax records say in place of its own fields; an empty value says nothing."""

    def text(key: bytes, otherwise: bytes) -> bytes:
        return records.get(key) or otherwise

    def number(key: bytes, otherwise: int) -> int:
        value = records.get(key)
        return _parse_decimal(key, value) if value else otherwise

    mtime = records.get(b"mtime")
    return msgspec.structs.replace(
        member,
        name=text(b"path", member.name),
        link_target=text(b"linkpath", member.link_target),
        user=text(b"uname", member.user),
        group=text(b"gname", member.group),
        uid=number(b"uid", member.uid),
        gid=number(b"gid", member.gid),
        size=number(b"size", member.size),
        mtime=_parse_time(mtime) if mtime else member.mtime,
        pax=tuple((key, value) for key, value in records.items() if key not in FIELD_KEYS),
    )


def _parse_decimal(key: bytes, value: bytes) -> int:
    if not _DECIMAL.fullmatch(value) or int(value) > MAX_NUMBER:
        raise ArchiveFormatError(f"pax record {key!r} has value {value[:32]!r}, expected a number")
    return int(value)


def _parse_time(value: bytes) -> int:
    """Whole seconds, rounded down: -0.5 is -1."""
    found = _TIME.fullmatch(value)
    if not found:
        raise ArchiveFormatError(f"pax record 'mtime' has value {value[:32]!r}, expected a number")
    sign, whole, fraction = found.groups()
    if not sign:
        return int(whole)
    return -int(whole) - (1 if fraction and fraction.strip(b"0") else 0)
