"""The names in a directory of snapshots. No IO.

    DEST/<name>/<id>/                                   a snapshot: a plain tree
    DEST/<name>/.<id>.making, .<id>.removing            one that is being made or removed: no snapshot
    DEST/.ibt-snapshots/ibt.json                        says what this is
    DEST/.ibt-snapshots/objects/ab/cd…<64 digits in all>.<metadata>.<number>
    DEST/.ibt-snapshots/damaged/<64 digits>.<metadata>.<number>
    DEST/.ibt-snapshots/index/<name>/<id>.jsonl.zst     what the snapshot holds, and which objects
    DEST/.ibt-snapshots/staging/<name>/                 files that are not finished
    DEST/.ibt-snapshots/locks/                          files that are locked, and hold nothing

An object is one **instance** of a content: a file's metadata belongs to the inode, so files share one only where
content and metadata agree. Its name says both, and a number, since a file system limits how many links an inode
may have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from incremental_backups_tools.repository.layout import is_backup_id, validate_key
from incremental_backups_tools.tree.entry import FILE, ROOT, Entry, canonical_encoding

CONTROL: Final = ".ibt-snapshots"
CONFIG: Final = "ibt.json"
OBJECTS: Final = "objects"
INDEX: Final = "index"
STAGING: Final = "staging"
LOCKS: Final = "locks"
DAMAGED: Final = "damaged"

MAKING: Final = "making"
REMOVING: Final = "removing"
_INDEX_SUFFIX: Final = ".jsonl.zst"
_METADATA_KEY_LEN: Final = 16

_OBJECT: Final = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})\.([0-9a-f]{32})\.(0|[1-9][0-9]{0,8})")
_UNFINISHED: Final = re.compile(rf"\.([0-9TZ.]+)\.(?:{MAKING}|{REMOVING})")


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One instance of a content.

    Attributes:
        digest: BLAKE3 of the content, 64 hexadecimal digits.
        metadata: what the metadata comes to, 32 hexadecimal digits.
        number: counts the instances with the same content and metadata, from 0.
    """

    digest: str
    metadata: str
    number: int = 0

    @classmethod
    def of(cls, entry: Entry) -> ObjectName:
        """The first instance that has the content and metadata of *entry*, a regular file with its digest.

        Raises:
            ValueError: *entry* has no digest.
        """
        if entry.digest is None:
            raise ValueError("an object is named by its digest")
        return cls(entry.digest.hex(), metadata_key(entry))

    @property
    def path(self) -> str:
        """The name below the directory of objects."""
        return f"{self.digest[:2]}/{self.digest[2:]}.{self.metadata}.{self.number}"

    @property
    def damaged_path(self) -> str:
        """The name that it has, in another directory, once it is set aside as damaged."""
        return f"{self.digest}.{self.metadata}.{self.number}"

    @property
    def next(self) -> ObjectName:
        """The instance after this one."""
        return ObjectName(self.digest, self.metadata, self.number + 1)


def metadata_key(entry: Entry) -> str:
    """What files must have in common, besides their content, to be one inode, as 32 hexadecimal digits."""
    bare = Entry(
        path=ROOT,
        type=FILE,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        xattrs=entry.xattrs,
        acl=entry.acl,
    )
    return blake3(canonical_encoding(bare)).hexdigest(_METADATA_KEY_LEN)


def parse_object_path(path: str) -> ObjectName | None:
    """The instance that a name below the directory of objects stands for; None for any other file."""
    match = _OBJECT.fullmatch(path)
    if match is None:
        return None
    return ObjectName(match[1] + match[2], match[3], int(match[4]))


def parse_damaged_path(name: str) -> ObjectName | None:
    """The instance that :attr:`ObjectName.damaged_path` is of; None for any other name."""
    return parse_object_path(f"{name[:2]}/{name[2:]}")


def validate_name(name: str) -> str:
    """Return the name of a root as it is.

    Raises:
        ValueError: it cannot be one: other characters than ``[A-Za-z0-9._-]``, a dot in front, or too long.
    """
    if name.startswith("."):
        raise ValueError(f"{name!r} cannot be the name of snapshots: it begins with a dot")
    try:
        return validate_key(name)
    except ValueError as error:
        raise ValueError(str(error).replace("cannot be a key", "cannot be the name of snapshots")) from None


def index_file(snapshot_id: str) -> str:
    """The name of a snapshot's index in its root's directory."""
    return snapshot_id + _INDEX_SUFFIX


def parse_index_file(file_name: str) -> str | None:
    """The snapshot that an index belongs to; None for any other file."""
    snapshot_id = file_name.removesuffix(_INDEX_SUFFIX)
    return snapshot_id if snapshot_id != file_name and is_backup_id(snapshot_id) else None


def unfinished_name(snapshot_id: str, what: str) -> str:
    """The name of a tree that is being made (:data:`MAKING`) or removed (:data:`REMOVING`)."""
    return f".{snapshot_id}.{what}"


def is_unfinished_name(name: str) -> bool:
    """Whether :func:`unfinished_name` makes this name."""
    match = _UNFINISHED.fullmatch(name)
    return match is not None and is_backup_id(match[1])
