"""POSIX tar (ustar with pax extended headers): one member's header to bytes and back. No IO.

The format is IEEE Std 1003.1-2017, utility ``pax``, "ustar Interchange Format" and "pax Extended Header";
base-256 numbers and the long-name headers ``L`` and ``K`` are GNU tar's (its manual, "Basic Tar Format").

What is written, so that GNU tar and bsdtar read it in silence under any locale:

- everything that fits stands in the one ustar block, names as the raw bytes they are;
- what does not fit goes to a pax header ``x``: path, linkpath, uname, gname, uid, gid, size, mtime. Nothing
  else does, apart from the records that the caller gives;
- a path or link target that does not fit *and* is not ASCII goes to GNU's ``L`` or ``K`` header. pax demands
  UTF-8: bsdtar 3.6 exits with 1 where it cannot convert a pax path to the locale (with ``LC_ALL=C``, any path
  that is not ASCII), and then makes an empty file of a symlink. Its remedy ``hdrcharset=BINARY`` makes GNU
  tar warn.
- a user or group name that does not fit and is not ASCII has no such way out: the number alone stands for it.
"""

from __future__ import annotations

import functools
import re
import struct
from zlib import adler32

import msgspec

from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError

BLOCK_LEN = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_LEN)

# Most bytes of extended headers (pax, GNU long names) that one member may have. Linux allows 64 KiB a name
# list and a value of extended attributes, so that real files stay far below.
MAX_EXTENDED_LEN = 1 << 20

REGULAR = b"0"
LINK = b"1"
SYMLINK = b"2"
CHAR = b"3"
BLOCK = b"4"
DIR = b"5"
FIFO = b"6"
MEMBER_TYPES = frozenset((REGULAR, LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO))

PAX = b"x"
PAX_GLOBAL = b"g"
GNU_LONG_NAME = b"L"
GNU_LONG_LINK = b"K"
EXTENSION_TYPES = frozenset((PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK))

# Keys whose values are fields of a TarMember; a caller's own pax records have other keys.
FIELD_KEYS = frozenset((b"path", b"linkpath", b"uname", b"gname", b"uid", b"gid", b"size", b"mtime"))

MAX_NUMBER = (1 << 63) - 1
NAME_LEN = 100
_SLASH = ord("/")
_PREFIX_LEN = 155
_MAX_USER_LEN = 31  # the field has 32 bytes, the last one a NUL
_MAX_OCTAL_7 = 0o7777777
MAX_OCTAL_11 = 0o77777777777

# name; mode, uid, gid, size, mtime; checksum; type; link target; magic and version; user; group; device;
# prefix
_LAYOUT = struct.Struct("100s48s8s1s100s8s32s32s16s155s12x")
_CHECKSUM = slice(148, 156)
_NO_DEVICE = b"0000000\x000000000\0"
_POSIX_MAGIC = b"ustar\x0000"
_GNU_MAGIC = b"ustar  \0"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_RECORD_LEN = re.compile(rb"([1-9][0-9]{0,6}) ")


# Of a regular file's block what is before its size and behind its checksum, and the sum of all but name, size and
# mtime.
OrdinaryOwner = tuple[bytes, bytes, int]


class TarMember(msgspec.Struct, frozen=True, gc=False):
    """What a tar says of one file.

    Attributes:
        name: its path, without the slash that a directory's carries in the archive.
        type: REGULAR, LINK, SYMLINK, CHAR, BLOCK, DIR or FIFO.
        size: bytes of data; 0 for all types but REGULAR.
        mode: the twelve permission bits.
        user: name of the owner, empty where unknown.
        mtime: whole seconds since 1970, may be negative.
        link_target: of a SYMLINK its text, of a LINK the name of an earlier member.
        device: major and minor number of a CHAR or BLOCK.
        pax: further pax records. Those that make a file sparse are not applied: see ``archive/sparse_map.py``.
    """

    name: bytes
    type: bytes = REGULAR
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    user: bytes = b""
    group: bytes = b""
    mtime: int = 0
    link_target: bytes = b""
    device: tuple[int, int] = (0, 0)
    pax: tuple[tuple[bytes, bytes], ...] = ()


# What a member with one block of header takes besides its data, at most.
PLAIN_OVERHEAD = 2 * BLOCK_LEN


def padding_len(size: int) -> int:
    """The number of zero bytes that follow *size* bytes of data up to the next block."""
    return -size % BLOCK_LEN


def find_member_fault(member: TarMember) -> str | None:
    """What makes *member* impossible in a tar, as a phrase; None where it is sound."""
    name = member.name
    if member.type not in MEMBER_TYPES:
        return f"type {member.type!r} is unknown"
    if not name or name[-1:] == b"/" or b"\0" in name:
        return f"name {name!r} is empty, ends with a slash or has a NUL"
    if not 0 <= member.size <= MAX_NUMBER or (member.size and member.type != REGULAR):
        return f"size {member.size} is impossible for type {member.type!r}"
    if (member.type in (LINK, SYMLINK)) != bool(member.link_target) or b"\0" in member.link_target:
        return f"link target {member.link_target!r} is impossible for type {member.type!r}"
    if b"\0" in member.user or b"\0" in member.group:
        return f"owner {member.user!r}:{member.group!r} has a NUL"
    if not (0 <= member.uid <= MAX_NUMBER and 0 <= member.gid <= MAX_NUMBER):
        return f"owner {member.uid}:{member.gid} is out of range"
    if not 0 <= member.mode <= 0o7777:
        return f"mode {member.mode:#o} has more than permission bits"
    if abs(member.mtime) > MAX_NUMBER:
        return f"mtime {member.mtime} is out of range"
    return None


def encode_member_header(member: TarMember) -> bytes:
    """All that stands before *member*'s data: extended headers where it needs them, and the ustar block.

    Raises:
        ValueError: *member* cannot stand in a tar: see :func:`find_member_fault`; or a pax key is empty, has
            a NUL or ``=``, or is one of a field.
        LimitExceededError: the extended headers would have more than MAX_EXTENDED_LEN bytes.
    """
    if (header := _encode_ordinary(member)) is not None:
        return header
    if fault := find_member_fault(member):
        raise ValueError(f"tar member: {fault}")
    records: list[tuple[bytes, bytes]] = []
    extensions = b""

    name = member.name + b"/" if member.type == DIR else member.name
    prefix = b""
    if len(name) > NAME_LEN:
        prefix, field = _split_name(name)
        if not field:
            extensions += _encode_long_text(records, b"path", GNU_LONG_NAME, name)
            field = name[:NAME_LEN].rstrip(b"/")
        name = field
    target = member.link_target
    if len(target) > NAME_LEN:
        extensions += _encode_long_text(records, b"linkpath", GNU_LONG_LINK, target)
        target = target[:NAME_LEN]

    user, group, uid, gid = member.user, member.group, member.uid, member.gid
    if len(user) > _MAX_USER_LEN or len(group) > _MAX_USER_LEN:
        user = _fit_owner_name(records, b"uname", user)
        group = _fit_owner_name(records, b"gname", group)
    if uid > _MAX_OCTAL_7 or gid > _MAX_OCTAL_7:
        uid = _fit_number(records, b"uid", uid, _MAX_OCTAL_7)
        gid = _fit_number(records, b"gid", gid, _MAX_OCTAL_7)
    size, mtime = member.size, member.mtime
    if size > MAX_OCTAL_11 or not 0 <= mtime <= MAX_OCTAL_11:
        size = _fit_number(records, b"size", size, MAX_OCTAL_11)
        mtime = _fit_number(records, b"mtime", mtime, MAX_OCTAL_11)
    if member.pax:
        _check_records(member.pax)
        records.extend(member.pax)
    if records:
        payload = b"".join(encode_pax_record(key, value) for key, value in records)
        extensions += _encode_extension(PAX, payload)
    if len(extensions) > MAX_EXTENDED_LEN:
        raise LimitExceededError(
            f"{member.name!r}: extended headers of {len(extensions)} bytes, over {MAX_EXTENDED_LEN}"
        )
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (member.mode, uid, gid, size, mtime)
    device = _NO_DEVICE
    if member.device != (0, 0):
        device = _encode_device(member.device[0]) + _encode_device(member.device[1])
    return extensions + _pack_block(name, numbers, member.type, target, user, group, device, prefix)


def _encode_ordinary(member: TarMember) -> bytes | None:
    """The block of a regular file of which all fits in it; None of any other. Most members are such."""
    name, size, mtime = member.name, member.size, member.mtime
    if (
        member.type != REGULAR
        or not 0 < len(name) <= NAME_LEN
        or name[-1] == _SLASH
        or b"\0" in name
        or not 0 <= size <= MAX_OCTAL_11
        or not 0 <= mtime <= MAX_OCTAL_11
        or member.link_target
        or member.pax
        or member.device != (0, 0)
    ):
        return None
    owner = ordinary_owner(member.mode, member.uid, member.gid, member.user, member.group)
    return encode_plain_header(name, size, mtime, owner) if owner is not None else None


def encode_plain_header(name: bytes, size: int, mtime: int, owner: OrdinaryOwner) -> bytes:
    """The block of a regular file of which all fits in it.

    Args:
        name: 1 to 100 bytes, without NUL, with no slash at its end.
        size, mtime: from 0 to what eleven octal digits hold.
    """
    permissions, rest, their_sum = owner
    numbers = b"%011o\0%011o\0" % (size, mtime)
    checksum = their_sum + _sum_of_few(name) + _sum_of_few(numbers)
    return b"%b%b%b%06o\0 %b" % (name.ljust(NAME_LEN, b"\0"), permissions, numbers, checksum, rest)


@functools.lru_cache(maxsize=256)
def ordinary_owner(mode: int, uid: int, gid: int, user: bytes, group: bytes) -> OrdinaryOwner | None:
    """What the blocks of a mode's and an owner's files share; None where that does not fit, or is wrong."""
    member = TarMember(b"name", mode=mode, uid=uid, gid=gid, user=user, group=group)
    is_long = len(user) > _MAX_USER_LEN or len(group) > _MAX_USER_LEN or max(uid, gid) > _MAX_OCTAL_7
    if is_long or find_member_fault(member) is not None:
        return None
    numbers = b"%07o\0%07o\0%07o\0" % (mode, uid, gid)
    block = _pack_block(b"", numbers, REGULAR, b"", user, group, _NO_DEVICE, b"")
    return numbers, block[_CHECKSUM.stop :], int(block[_CHECKSUM][:6], 8)


def encode_pax_record(key: bytes, value: bytes) -> bytes:
    """One record ``LENGTH KEY=VALUE\\n``, whose LENGTH counts its own digits."""
    rest_len = len(key) + len(value) + 3
    length = rest_len + len(str(rest_len))
    if rest_len + len(str(length)) != length:
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def xattr_key(name: bytes) -> bytes:
    """The pax key of the extended attribute *name*, with ``=`` and ``%`` escaped as GNU tar does it."""
    return b"SCHILY.xattr." + name.replace(b"%", b"%25").replace(b"=", b"%3D")


def parse_header_block(block: bytes) -> TarMember | None:
    """Turn one block into a member as far as the block alone says; None for a block of zeros.

    The type may also be one of EXTENSION_TYPES. The result is not checked by :func:`find_member_fault`, since
    an extended header may replace its fields.

    Raises:
        ArchiveFormatError: wrong checksum, neither POSIX nor GNU tar, or a number that is none.
    """
    if not any(block):
        return None
    name, numbers, checksum, kind, target, magic, user, group, device, prefix = _LAYOUT.unpack(block)
    found = _sum(block) - sum(checksum) + 8 * ord(" ")
    if _parse_number(checksum, "checksum") != found:
        raise ArchiveFormatError(f"tar header has checksum {checksum!r}, its bytes sum to {found:o} octal")
    if magic not in (_POSIX_MAGIC, _GNU_MAGIC):
        raise ArchiveFormatError(f"tar header has magic {magic!r}, expected {_POSIX_MAGIC!r}")
    name = _until_nul(name)
    # GNU tar keeps other things where POSIX has the prefix.
    if magic == _POSIX_MAGIC and prefix[0]:
        name = _until_nul(prefix) + b"/" + name
    if kind in (b"\0", b"7"):
        kind = REGULAR
    major = minor = 0
    if kind in (CHAR, BLOCK):
        major, minor = _parse_number(device[:8], "device"), _parse_number(device[8:], "device")
    return TarMember(
        name=name,
        type=kind,
        size=_parse_number(numbers[24:36], "size"),
        mode=_parse_number(numbers[0:8], "mode") & 0o7777,
        uid=_parse_number(numbers[8:16], "uid"),
        gid=_parse_number(numbers[16:24], "gid"),
        user=_until_nul(user),
        group=_until_nul(group),
        mtime=_parse_number(numbers[36:48], "mtime"),
        link_target=_until_nul(target),
        device=(major, minor),
    )


def parse_pax_records(payload: bytes) -> dict[bytes, bytes]:
    """The records of a pax header; of two with one key the later one counts.

    Raises:
        ArchiveFormatError: a record whose length, key or end is wrong.
    """
    records = {}
    start = 0
    while start < len(payload):
        found = _RECORD_LEN.match(payload, start)
        end = start + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(payload) or payload[end - 1 : end] != b"\n":
            raise ArchiveFormatError(f"pax record at byte {start} of {len(payload)} has a wrong length")
        key, separator, value = payload[found.end() : end - 1].partition(b"=")
        if not key or not separator:
            raise ArchiveFormatError(f"pax record at byte {start} of {len(payload)} has no key")
        records[key] = value
        start = end
    return records


def _split_name(name: bytes) -> tuple[bytes, bytes]:
    """Cut *name* at a slash into ustar's prefix and name; both empty where no slash fits."""
    # The last byte is left out: a directory's closing slash cannot be the cut.
    cut = name.find(b"/", max(1, len(name) - NAME_LEN - 1), len(name) - 1)
    if not 0 < cut <= _PREFIX_LEN:
        return b"", b""
    return name[:cut], name[cut + 1 :]


def _encode_long_text(records: list[tuple[bytes, bytes]], key: bytes, gnu_type: bytes, text: bytes) -> bytes:
    """Add *text* to *records*, or return it as a GNU header where pax cannot carry it: see the module."""
    if text.isascii():
        records.append((key, text))
        return b""
    return _encode_extension(gnu_type, text + b"\0")


def _fit_owner_name(records: list[tuple[bytes, bytes]], key: bytes, name: bytes) -> bytes:
    if len(name) <= _MAX_USER_LEN:
        return name
    if name.isascii():
        records.append((key, name))
    return b""


def _fit_number(records: list[tuple[bytes, bytes]], key: bytes, value: int, most: int) -> int:
    if 0 <= value <= most:
        return value
    records.append((key, b"%d" % value))
    return 0


def _check_records(records: tuple[tuple[bytes, bytes], ...]) -> None:
    for key, _ in records:
        if not key or b"=" in key or b"\0" in key or key in FIELD_KEYS:
            raise ValueError(f"pax key {key!r} is empty, has '=' or NUL, or belongs to a field of the member")


def _encode_device(number: int) -> bytes:
    if 0 <= number <= _MAX_OCTAL_7:
        return b"%07o\0" % number
    if not 0 <= number < 1 << 56:
        raise ValueError(f"device number {number} is out of range")
    return b"\x80" + number.to_bytes(7, "big")


def _encode_extension(kind: bytes, payload: bytes) -> bytes:
    name = b"PaxHeader" if kind == PAX else b"././@LongLink"
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (0o644, 0, 0, len(payload), 0)
    block = _pack_block(name, numbers, kind, b"", b"", b"", _NO_DEVICE, b"")
    return block + payload + bytes(padding_len(len(payload)))


def _pack_block(
    name: bytes,
    numbers: bytes,
    kind: bytes,
    target: bytes,
    user: bytes,
    group: bytes,
    device: bytes,
    prefix: bytes,
) -> bytes:
    # The checksum counts its own field as spaces.
    block = _LAYOUT.pack(name, numbers, b" " * 8, kind, target, _POSIX_MAGIC, user, group, device, prefix)
    return block[: _CHECKSUM.start] + b"%06o\0 " % _sum(block) + block[_CHECKSUM.stop :]


def _sum(block: bytes) -> int:
    """The sum of a block's bytes. Adler-32 has it in its lower half, of so few bytes without a remainder."""
    half = BLOCK_LEN // 2
    return (adler32(block[:half]) & 0xFFFF) + (adler32(block[half:]) & 0xFFFF) - 2


def _sum_of_few(data: bytes) -> int:
    """The sum of at most 256 bytes."""
    return (adler32(data) & 0xFFFF) - 1


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _parse_number(field: bytes, what: str) -> int:
    """An octal number, or one in GNU's base 256; a blank field is 0."""
    if field[0] in (0x80, 0xFF):
        number = int.from_bytes(field[1:], "big", signed=False)
        if field[0] == 0xFF:
            number -= 1 << 8 * (len(field) - 1)
    elif digits := _OCTAL.fullmatch(field):
        number = int(digits[1] or b"0", 8)
    else:
        raise ArchiveFormatError(f"tar header has {what} {field!r}, which is no number")
    if abs(number) > MAX_NUMBER:
        raise ArchiveFormatError(f"tar header has {what} {number}, which is out of range")
    return number
