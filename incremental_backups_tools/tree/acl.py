"""POSIX ACLs between the kernel's binary form and the text form of acl(5).

The binary form is that of the ``system.posix_acl_access`` and ``system.posix_acl_default`` attributes
(linux/posix_acl_xattr.h): a version, then 8 bytes an entry. The text form is ``getfacl``'s short one with
numeric ids, ``user::rw-,user:1000:r--,group::r--,mask::r--,other::---``, as tar's SCHILY.acl records use.
"""

from __future__ import annotations

import struct
from typing import Final

ACL_ACCESS: Final = b"system.posix_acl_access"
ACL_DEFAULT: Final = b"system.posix_acl_default"

_VERSION: Final = 2
_UNDEFINED_ID: Final = 0xFFFFFFFF
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NAME_OF_TAG: Final = {
    _USER_OBJ: "user",
    _USER: "user",
    _GROUP_OBJ: "group",
    _GROUP: "group",
    _MASK: "mask",
    _OTHER: "other",
}
_TAG_OF_NAME: Final = {
    ("user", False): _USER_OBJ,
    ("user", True): _USER,
    ("group", False): _GROUP_OBJ,
    ("group", True): _GROUP,
    ("mask", False): _MASK,
    ("other", False): _OTHER,
}


def acl_to_text(raw: bytes) -> str:
    """The text form of the binary ACL *raw*.

    Raises:
        ValueError: not a binary ACL of version 2.
    """
    if len(raw) < 4 or (len(raw) - 4) % _ENTRY.size or int.from_bytes(raw[:4], "little") != _VERSION:
        raise ValueError("not a POSIX ACL of version 2")
    parts = []
    for tag, permissions, number in _ENTRY.iter_unpack(raw[4:]):
        if tag not in _NAME_OF_TAG or permissions > 7:
            raise ValueError(f"an ACL entry with tag {tag:#x} and permissions {permissions:#o}")
        qualifier = str(number) if tag in (_USER, _GROUP) else ""
        bits = "".join(char if permissions & bit else "-" for char, bit in (("r", 4), ("w", 2), ("x", 1)))
        parts.append(f"{_NAME_OF_TAG[tag]}:{qualifier}:{bits}")
    return ",".join(parts)


def text_to_acl(text: str) -> bytes:
    """The binary form of the ACL *text*.

    Raises:
        ValueError: not in the text form that :func:`acl_to_text` writes.
    """
    raw = [_VERSION.to_bytes(4, "little")]
    for part in text.split(","):
        name, qualifier, bits = part.split(":")
        tag = _TAG_OF_NAME.get((name, bool(qualifier)))
        if tag is None or len(bits) != 3:
            raise ValueError(f"not an ACL entry: {part!r}")
        permissions = 0
        for char, expected, bit in zip(bits, "rwx", (4, 2, 1), strict=True):
            if char not in (expected, "-"):
                raise ValueError(f"not an ACL entry: {part!r}")
            permissions |= bit if char == expected else 0
        number = int(qualifier) if qualifier else _UNDEFINED_ID
        if not 0 <= number <= _UNDEFINED_ID:
            raise ValueError(f"not an ACL entry: {part!r}")
        raw.append(_ENTRY.pack(tag, permissions, number))
    return b"".join(raw)
