"""One name of a tree at one moment, its line of JSON, and the digest of a whole tree.

An :class:`Entry` holds names as ``bytes``, since that is what a file system holds. On disk an entry is one
line of JSON with a fixed order of fields and no spaces; a name that is not UTF-8 stands base64 in a twin
field with ``_b64`` appended. The format is described in ``docs/format.rst``.

Format code only: nothing here touches a file.
"""

from __future__ import annotations

import base64
import functools
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
from blake3 import blake3

from incremental_backups_tools.exceptions import StateFormatError, UnsafePathError
from incremental_backups_tools.tree.sparse import data_len, find_map_fault

ROOT: Final = b"."

FILE: Final = "file"
DIRECTORY: Final = "dir"
SYMLINK: Final = "symlink"
FIFO: Final = "fifo"
CHAR_DEVICE: Final = "char"
BLOCK_DEVICE: Final = "block"
TYPES: Final = frozenset({FILE, DIRECTORY, SYMLINK, FIFO, CHAR_DEVICE, BLOCK_DEVICE})

DIGEST_MODULUS: Final = 1 << 256
_ABSENT: Final = b"\xff\xff\xff\xff"
_MAX_INT: Final = (1 << 63) - 1
_UNSAFE_COMPONENTS: Final = frozenset((b"", b".", b".."))


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where bytes lie: a volume's file name and a range of that volume's uncompressed tar, in bytes.

    Attributes:
        sparse: of a whole copy that was stored without its holes: the file's extents of data, whose bytes
            alone lie there, one after the other. The last one ends where the file does, an empty one if
            need be. The map belongs to the copy: an entry's own one may be of a later version.
    """

    file: str
    offset: int
    length: int
    sparse: tuple[tuple[int, int], ...] | None = None


class SignatureRef(msgspec.Struct, frozen=True):
    """Where a signature lies, and the BLAKE3 (hex) of the whole signature once it is resolved."""

    file: str
    offset: int
    length: int
    digest: str

    @property
    def location(self) -> Location:
        """The place alone."""
        return Location(self.file, self.offset, self.length)


class Acl(msgspec.Struct, frozen=True, omit_defaults=True):
    """POSIX ACLs in the text form of acl(5) with numeric ids, entries joined by commas."""

    access: str | None = None
    default: str | None = None


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One name of a tree.

    Attributes:
        path: relative path, components joined by ``/``; the root is ``.``.
        type: one of ``file dir symlink fifo char block``.
        mode: permission bits with setuid, setgid and sticky (07777), without the type.
        size: bytes of content, of regular files alone.
        mtime_ns: modification time, nanoseconds since 1970 UTC.
        target: what a symlink points to.
        link_of: the path whose hard link this is: the inode's first path in sort order. Such an entry
            has no content of its own.
        device: major and minor number of a device node.
        flags: names of inode flags (``append``, ``immutable``, ``nodump``), sorted.
        xattrs: names and values, sorted by name, without those that ``acl`` holds.
        sparse: data extents as (offset, length), where a file has holes.
        digest: BLAKE3 (32 bytes) of the whole content of a regular file.
        data: where a whole copy or a delta of the content lies.
        source: the path in the parent's index whose content this one has or is a delta of (``from`` in JSON).
        sig: where the signature lies.
        unstable: the file changed while it was read.
        change_key: what a remote file system offers to see a change by.
        ctime_ns, inode, dev: serve change detection on the machine that wrote them.
    """

    path: bytes
    type: str
    mode: int
    uid: int = 0
    gid: int = 0
    user: bytes | None = None
    group: bytes | None = None
    size: int = 0
    mtime_ns: int = 0
    target: bytes | None = None
    link_of: bytes | None = None
    device: tuple[int, int] | None = None
    flags: tuple[str, ...] = ()
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    acl: Acl | None = None
    sparse: tuple[tuple[int, int], ...] | None = None
    digest: bytes | None = None
    data: Location | None = None
    source: bytes | None = None
    sig: SignatureRef | None = None
    unstable: bool = False
    change_key: str | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    dev: int | None = None

    @property
    def is_content_holder(self) -> bool:
        """A regular file that is not a hard link to an earlier one."""
        return self.type == FILE and self.link_of is None


class EntryLine(msgspec.Struct, omit_defaults=True):
    """The JSON form of an entry, field for field. ``op`` is absent in a full's state."""

    op: str | None = None
    path: str | None = None
    path_b64: str | None = None
    type: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    user: str | None = None
    user_b64: str | None = None
    group: str | None = None
    group_b64: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    target: str | None = None
    target_b64: str | None = None
    link_of: str | None = None
    link_of_b64: str | None = None
    device: tuple[int, int] | None = None
    flags: list[str] = []
    xattrs: list[tuple[str, str]] = []
    acl: Acl | None = None
    sparse: list[tuple[int, int]] | None = None
    digest: str | None = None
    data: Location | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    from_b64: str | None = None
    sig: SignatureRef | None = None
    unstable: bool = False
    change_key: str | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    dev: int | None = None
    # Of the cached index alone: every location that rebuilds the content and the signature, base first.
    locations: list[Location] | None = None
    sig_locations: list[Location] | None = None
    sig_digest: str | None = None
    content_digest: str | None = None
    # Of an index file alone: the signature itself.
    signature: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(EntryLine)


def sort_key(rel_path: bytes) -> bytes:
    """Key under which paths compare component by component, as bytes, the root first.

    ``/`` becomes NUL, which no name contains and below which no byte sorts; so ``a``, ``a/b``, ``a.b``
    come in this order: a directory before its children, its children together.
    """
    return b"" if rel_path == ROOT else rel_path.replace(b"/", b"\0")


def check_rel_path(rel_path: bytes) -> bytes:
    """Return *rel_path* if it is a plain path below the root.

    Raises:
        UnsafePathError: empty, absolute, with a NUL, or with an empty, ``.`` or ``..`` component.
    """
    if b"\0" in rel_path or not _UNSAFE_COMPONENTS.isdisjoint(rel_path.split(b"/")):
        if rel_path == ROOT:
            return rel_path
        raise UnsafePathError(f"path {printable(rel_path)} is not a plain path below the backup's root")
    return rel_path


def printable(name: bytes) -> str:
    """*name* for people: valid UTF-8 as it is, other bytes and control characters escaped as ``\\x1b``."""
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def text_or_b64(name: bytes | None) -> tuple[str | None, str | None]:
    """*name* for a field and its twin: as text where it is UTF-8, else base64 in the twin."""
    if name is None:
        return None, None
    try:
        return name.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(name).decode()


def bytes_of(text: str | None, b64: str | None) -> bytes | None:
    """The name in one of two twin fields; each name has one form only.

    Raises:
        ValueError: in both, broken base64, or base64 of what is UTF-8.
    """
    if b64 is None:
        return None if text is None else text.encode()
    if text is not None:
        raise ValueError("a name stands in both of its fields")
    name = base64.b64decode(b64, validate=True)
    if _is_utf8(name):
        raise ValueError("a name stands base64 and is UTF-8")
    return name


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def line_of_entry(entry: Entry, op: str | None = None) -> EntryLine:
    """The JSON form of *entry* as a record."""
    path, path_b64 = text_or_b64(entry.path)
    user, user_b64 = text_or_b64(entry.user)
    group, group_b64 = text_or_b64(entry.group)
    line = EntryLine(
        op,
        path,
        path_b64,
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        user,
        user_b64,
        group,
        group_b64,
        entry.size if entry.type == FILE else None,
        entry.mtime_ns,
    )
    if entry.target is not None:
        line.target, line.target_b64 = text_or_b64(entry.target)
    if entry.link_of is not None:
        line.link_of, line.link_of_b64 = text_or_b64(entry.link_of)
    if entry.source is not None:
        line.from_, line.from_b64 = text_or_b64(entry.source)
    if entry.xattrs:
        line.xattrs = [(_b64(name), _b64(value)) for name, value in entry.xattrs]
    if entry.flags:
        line.flags = list(entry.flags)
    if entry.sparse is not None:
        line.sparse = list(entry.sparse)
    if entry.digest is not None:
        line.digest = entry.digest.hex()
    line.device = entry.device
    line.acl = entry.acl
    line.data = entry.data
    line.sig = entry.sig
    line.unstable = entry.unstable
    line.change_key = entry.change_key
    line.ctime_ns = entry.ctime_ns
    line.inode = entry.inode
    line.dev = entry.dev
    return line


def line_of_deletion(path: bytes, kind: str, op: str) -> EntryLine:
    """The JSON form of a path that is gone: its path and type alone."""
    text, text_b64 = text_or_b64(path)
    return EntryLine(op, text, text_b64, kind)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encode_line(line: EntryLine) -> bytes:
    """JSON of *line* without the newline."""
    return _encoder.encode(line)


def parse_line(raw: bytes) -> EntryLine:
    """Parse one line.

    Raises:
        StateFormatError: not the JSON of an entry.
    """
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFormatError(f"a line is not an entry: {error}") from None


def path_of_line(line: EntryLine) -> bytes:
    """The checked path of *line*.

    Raises:
        StateFormatError: no path, or broken base64.
        UnsafePathError: a path that leads out of the tree.
    """
    try:
        path = bytes_of(line.path, line.path_b64)
    except ValueError as error:  # binascii.Error and UnicodeEncodeError are such
        raise StateFormatError(f"a line's path cannot be read: {error}") from None
    if path is None:
        raise StateFormatError("a line has no path")
    return check_rel_path(path)


def entry_of_line(line: EntryLine) -> Entry:
    """Build and check the entry that *line* describes.

    Raises:
        StateFormatError: a missing or impossible field.
        UnsafePathError: a path, ``link_of`` or ``from`` that leads out of the tree.
    """
    path = path_of_line(line)
    if line.mode is None or line.uid is None or line.gid is None or line.mtime_ns is None:
        raise StateFormatError(f"entry {printable(path)}: mode, uid, gid or mtime_ns is missing")
    is_plain = _is_plain(line)
    try:
        entry = Entry(
            path=path,
            type=line.type or "",
            mode=line.mode,
            uid=line.uid,
            gid=line.gid,
            user=bytes_of(line.user, line.user_b64),
            group=bytes_of(line.group, line.group_b64),
            size=line.size or 0,
            mtime_ns=line.mtime_ns,
            digest=None if line.digest is None else bytes.fromhex(line.digest),
            data=line.data,
            sig=line.sig,
            unstable=line.unstable,
            change_key=line.change_key,
            ctime_ns=line.ctime_ns,
            inode=line.inode,
            dev=line.dev,
        )
        if not is_plain:
            entry = msgspec.structs.replace(entry, **_odd_fields_of(line))
    except ValueError as error:
        raise StateFormatError(f"entry {printable(path)}: {error}") from None
    problem = _impossible(entry)
    if problem is None and not is_plain:
        problem = _impossible_odd_field(entry)
    if problem is None and (line.size is None) == (entry.type == FILE):
        problem = "a size is what regular files have, and nothing else"
    if problem:
        raise StateFormatError(f"entry {printable(path)}: {problem}")
    return entry


def _is_plain(line: EntryLine) -> bool:
    """Whether *line* has none of the fields that few entries have."""
    return (
        line.target is None
        and line.target_b64 is None
        and line.link_of is None
        and line.link_of_b64 is None
        and line.device is None
        and not line.flags
        and not line.xattrs
        and line.acl is None
        and line.sparse is None
        and line.from_ is None
        and line.from_b64 is None
    )


def _odd_fields_of(line: EntryLine) -> dict[str, Any]:
    return {
        "target": bytes_of(line.target, line.target_b64),
        "link_of": _checked(bytes_of(line.link_of, line.link_of_b64)),
        "device": line.device,
        "flags": tuple(line.flags),
        "xattrs": tuple((_unb64(name), _unb64(value)) for name, value in line.xattrs),
        "acl": line.acl,
        "sparse": None if line.sparse is None else tuple(line.sparse),
        "source": _checked(bytes_of(line.from_, line.from_b64)),
    }


def _unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _checked(rel_path: bytes | None) -> bytes | None:
    return None if rel_path is None else check_rel_path(rel_path)


def _impossible(entry: Entry) -> str | None:
    """What is wrong with the fields that every entry may have, if anything."""
    if entry.type not in TYPES:
        return f"unknown type {entry.type!r}"
    if not 0 <= entry.mode <= 0o7777:
        return f"mode {entry.mode} is not within 0 and 4095"
    if not 0 <= entry.size <= _MAX_INT:
        return f"size {entry.size} is out of range"
    if not -_MAX_INT <= entry.mtime_ns <= _MAX_INT:
        return f"mtime_ns {entry.mtime_ns} is out of range"
    if not (0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32):
        return f"owner {entry.uid}:{entry.gid} is out of range"
    if entry.type == SYMLINK and entry.target is None and entry.link_of is None:
        return "a symlink without a target"
    if entry.path == ROOT and entry.type != DIRECTORY:
        return "the root is not a directory"
    if entry.device is None and entry.link_of is None and entry.type in (CHAR_DEVICE, BLOCK_DEVICE):
        return "a device node without its numbers"
    if entry.digest is not None and (len(entry.digest) != 32 or entry.type != FILE):
        return "a digest that is not 32 bytes, or not of a regular file"
    return _impossible_location(entry)


def _impossible_odd_field(entry: Entry) -> str | None:
    """What is wrong with the fields that few entries have, if anything."""
    if entry.target is not None and (not entry.target or b"\0" in entry.target):
        return "a symlink's target that no file system can hold"
    if entry.device is not None and not all(0 <= number < 1 << 32 for number in entry.device):
        return "device numbers out of range"
    if entry.link_of is not None and (entry.type == DIRECTORY or entry.link_of == entry.path):
        return "a hard link of a directory or of itself"
    if entry.acl is not None and entry.acl.access is None and entry.acl.default is None:
        return "an empty acl"
    if entry.flags and not _is_strictly_sorted(entry.flags):
        return "flags that are not sorted, or stand twice"
    if entry.xattrs and not _is_strictly_sorted([name for name, _ in entry.xattrs]):
        return "extended attributes that are not sorted, or stand twice"
    end = 0
    for offset, length in entry.sparse or ():
        if offset < end or length < 0 or offset + length > entry.size:
            return "a sparse map that is not sorted extents within the file"
        end = offset + length
    return None


def _is_strictly_sorted(items: Sequence[Any]) -> bool:
    return all(one < other for one, other in pairwise(items))


def _impossible_location(entry: Entry) -> str | None:
    for place in (entry.data, entry.sig):
        if place is not None and not (0 <= place.offset <= _MAX_INT and 0 <= place.length <= _MAX_INT):
            return "a location out of range"
        if place is not None and isinstance(place, Location) and place.sparse is not None:
            if fault := find_map_fault(place.sparse):
                return fault
            if data_len(place.sparse) != place.length:
                return f"a sparse copy of {place.length} bytes, its map has {data_len(place.sparse)}"
    return None


def canonical_encoding(entry: Entry) -> bytes:
    """The bytes of *entry* that enter the index digest of format 1.

    Sixteen fields in fixed order, each as its length (4 bytes, little-endian) and its bytes; an absent one
    as length 0xFFFFFFFF. Integers are 8 bytes, little-endian, two's complement; lists concatenate their
    items, each with its length before it.
    """
    is_plain = (entry.target, entry.link_of, entry.device, entry.acl) == _NONE_OF_THESE
    return b"".join(
        (
            _LENGTH.pack(len(entry.path)),
            entry.path,
            owner_encoding(entry.type, entry.mode, entry.uid, entry.gid, entry.user, entry.group),
            _TWO_INTS.pack(8, entry.size, 8, entry.mtime_ns),
            _PLAIN if is_plain and not entry.flags and not entry.xattrs else _odd_fields(entry),
            _field(entry.digest),
        )
    )


def plain_encoding(path: bytes, owner: bytes, size: int, mtime_ns: int, digest: bytes) -> bytes:
    """The canonical encoding of a regular file without whatever most have none of; *owner* is owner_encoding()."""
    return b"".join(
        (
            _LENGTH.pack(len(path)),
            path,
            owner,
            _TWO_INTS.pack(8, size, 8, mtime_ns),
            _PLAIN_BEFORE_DIGEST,
            digest,
        )
    )


def _odd_fields(entry: Entry) -> bytes:
    """Of the canonical encoding what most entries have none of."""
    acl = entry.acl
    return b"".join(
        (
            _field(entry.target),
            _field(entry.link_of),
            _field(None if entry.device is None else _int(entry.device[0]) + _int(entry.device[1])),
            _field(_sequence([flag.encode() for flag in entry.flags]) if entry.flags else None),
            _field(_sequence([part for pair in entry.xattrs for part in pair]) if entry.xattrs else None),
            _field(None if acl is None else _sequence([_text(acl.access), _text(acl.default)])),
        )
    )


_LENGTH: Final = struct.Struct("<I")
_TWO_INTS: Final = struct.Struct("<IqIq")
_THREE_INTS: Final = struct.Struct("<IqIqIq")


# target, link_of, device and acl; and with them flags and xattrs.
_NONE_OF_THESE: Final = (None,) * 4
_PLAIN: Final = _ABSENT * 6
_PLAIN_BEFORE_DIGEST: Final = _PLAIN + _LENGTH.pack(32)


def _field(value: bytes | None) -> bytes:
    return _ABSENT if value is None else _LENGTH.pack(len(value)) + value


@functools.lru_cache(maxsize=1024)
def owner_encoding(
    kind: str, mode: int, uid: int, gid: int, user: bytes | None, group: bytes | None
) -> bytes:
    """Of the canonical encoding what many entries share."""
    numbers = _THREE_INTS.pack(8, mode, 8, uid, 8, gid)
    return b"".join((_field(kind.encode()), numbers, _field(user), _field(group)))


def _int(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def _text(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _sequence(items: Sequence[bytes | None]) -> bytes:
    return b"".join(map(_field, items))


def entry_digest(entry: Entry) -> int:
    """What *entry* adds to the index digest: the BLAKE3 of its canonical encoding as a big-endian number."""
    return int.from_bytes(blake3(canonical_encoding(entry)).digest(), "big")


class IndexDigest:
    """The digest of a tree: the sum of its entries' digests modulo 2^256.

    A sum, so that an incremental backup updates it from its changes alone, and so that the order in which
    entries come does not matter. It guards against mistakes, not against people: signatures do that.
    """

    __slots__ = ("_sum",)

    def __init__(self, hex_digest: str | None = None) -> None:
        self._sum = 0 if hex_digest is None else int(hex_digest, 16)

    def add(self, entry: Entry) -> None:
        """Count *entry* in."""
        self._sum = (self._sum + entry_digest(entry)) % DIGEST_MODULUS

    def add_sum(self, digest: bytes) -> None:
        """Count in entries whose digests add up to *digest*, big-endian."""
        self._sum = (self._sum + int.from_bytes(digest, "big")) % DIGEST_MODULUS

    def remove(self, entry: Entry) -> None:
        """Count *entry* out."""
        self._sum = (self._sum - entry_digest(entry)) % DIGEST_MODULUS

    def merge(self, change: IndexDigest) -> None:
        """Count in what *change* counted in, and out what it counted out."""
        self._sum = (self._sum + change._sum) % DIGEST_MODULUS

    def hexdigest(self) -> str:
        """64 hexadecimal digits, the most significant first."""
        return f"{self._sum:064x}"
