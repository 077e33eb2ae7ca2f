"""The names in a repository: what each file is, read from its name alone. No IO.

    <key>/<id>[.g<generation>].<role>[.<volume>]<suffix>[.age]

A backup's id is its UTC time to the microsecond, ``20261120T072531.123456Z``, so that names sort by time. No
name is ever overwritten: what replaces a backup's files carries the next generation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

CONFIG_NAME = "ibt.json"
KEY_NAME = "ibt.key.age"
RESTORE_SCRIPT_NAME = "RESTORE.sh"
LOCKS_DIRECTORY = "locks"

# Leaves room in a 255-byte name for what a lock or a temporary file adds to the key.
KEY_LENGTH_MAX = 128

_KEY = re.compile(r"[A-Za-z0-9._-]+")
_RESERVED_KEYS = frozenset(
    {".", "..", LOCKS_DIRECTORY, CONFIG_NAME.lower(), KEY_NAME.lower(), RESTORE_SCRIPT_NAME.lower()}
)

# What a file is called while it is written: listings leave such names out.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")

_BACKUP_ID = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z")
_BACKUP_ID_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_BACKUP_ID_LEN = len("20261120T072531.123456Z")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_OBJECT_NAME = re.compile(
    r"(?P<id>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)"
    r"(?:\.g(?P<generation>[1-9][0-9]{0,8}))?"
    r"\.(?:"
    r"(?P<volume_role>full|created|updated|sigvault)\.(?P<volume>[0-9]{4}|[1-9][0-9]{4,8})\.tar\.zst(?P<age1>\.age)?"
    r"|(?P<replay>replay)\.zst(?P<age2>\.age)?"
    r"|(?P<signature>state\.jsonl\.zst\.sig)"
    r"|(?P<state>state)\.jsonl\.zst(?P<age3>\.age)?"
    r"|(?P<forgotten>forgotten)"
    r")"
)


class Role(StrEnum):
    """What a file of a backup holds; the value is the word in its name."""

    FULL = "full"
    CREATED = "created"
    UPDATED = "updated"
    SIGVAULT = "sigvault"
    REPLAY = "replay"
    STATE = "state"
    STATE_SIGNATURE = "state-signature"
    FORGOTTEN = "forgotten"

    @property
    def has_volumes(self) -> bool:
        """Whether files of this role are numbered."""
        return self in _VOLUME_ROLES

    @property
    def is_ever_encrypted(self) -> bool:
        """Whether files of this role are encrypted where the repository is."""
        return self not in _NEVER_ENCRYPTED


_VOLUME_ROLES = frozenset({Role.FULL, Role.CREATED, Role.UPDATED, Role.SIGVAULT})
_NEVER_ENCRYPTED = frozenset({Role.STATE_SIGNATURE, Role.FORGOTTEN})
_SUFFIXES = {
    Role.REPLAY: "replay.zst",
    Role.STATE: "state.jsonl.zst",
    Role.STATE_SIGNATURE: "state.jsonl.zst.sig",
    Role.FORGOTTEN: "forgotten",
}


@dataclass(frozen=True, slots=True)
class ObjectName:
    """One file of a backup.

    Attributes:
        generation: 0 as first written; merging, rebasing and rewrapping count up.
        volume: the volume's number, None for roles without volumes.
        encrypted: whether the name ends in ``.age``.

    Raises:
        ValueError: a part that no name can have.
    """

    key: str
    backup_id: str
    role: Role
    generation: int = 0
    volume: int | None = None
    encrypted: bool = False

    def __post_init__(self) -> None:
        validate_key(self.key)
        validate_backup_id(self.backup_id)
        if not 0 <= self.generation < 10**9:
            raise ValueError(f"generation {self.generation} is out of range")
        if self.role.has_volumes != (self.volume is not None):
            raise ValueError(f"{self.role} with volume {self.volume}")
        if self.volume is not None and not 0 <= self.volume < 10**9:
            raise ValueError(f"volume {self.volume} is out of range")
        if self.encrypted and self.role in _NEVER_ENCRYPTED:
            raise ValueError(f"{self.role} is never encrypted")

    @property
    def file_name(self) -> str:
        """The name below the key's directory."""
        generation = f".g{self.generation}" if self.generation else ""
        if self.volume is None:
            rest = _SUFFIXES[self.role]
        else:
            rest = f"{self.role}.{self.volume:04d}.tar.zst"
        return f"{self.backup_id}{generation}.{rest}{'.age' if self.encrypted else ''}"

    @property
    def path(self) -> str:
        """The name in the repository: ``<key>/<file name>``."""
        return f"{self.key}/{self.file_name}"


def parse_object_name(key: str, file_name: str) -> ObjectName | None:
    """Read the name of a file in a key's directory; None for one that is not a backup's."""
    match = _OBJECT_NAME.fullmatch(file_name)
    if match is None or not is_backup_id(match["id"]):
        return None
    if match["volume_role"]:
        role = Role(match["volume_role"])
    elif match["signature"]:
        role = Role.STATE_SIGNATURE
    else:
        role = Role(match["replay"] or match["state"] or match["forgotten"])
    return ObjectName(
        key=key,
        backup_id=match["id"],
        role=role,
        generation=int(match["generation"] or 0),
        volume=int(match["volume"]) if match["volume"] else None,
        encrypted=bool(match["age1"] or match["age2"] or match["age3"]),
    )


def id_in_name(file_name: str) -> str:
    """The id of the backup that a file belongs to, whose name is known to be one of a backup's."""
    return file_name[:_BACKUP_ID_LEN]


def is_key(key: str) -> bool:
    """Whether a name may be a key."""
    # Case is ignored for the reserved names: not every file system tells 'Locks' from 'locks'.
    return (
        bool(_KEY.fullmatch(key))
        and len(key) <= KEY_LENGTH_MAX
        and key.lower() not in _RESERVED_KEYS
        and not _TEMPORARY.fullmatch(key)
    )


def validate_key(key: str) -> str:
    """Return a key as it is.

    Raises:
        ValueError: it is empty, too long, reserved, or has other characters than ``[A-Za-z0-9._-]``.
    """
    if is_key(key):
        return key
    if key.lower() in _RESERVED_KEYS or _TEMPORARY.fullmatch(key):
        reason = "the name is reserved"
    elif len(key) > KEY_LENGTH_MAX:
        reason = f"it has {len(key)} characters, at most {KEY_LENGTH_MAX} are allowed"
    else:
        reason = "allowed are letters, digits and . _ -"
    raise ValueError(f"{key!r} cannot be a key: {reason}")


def is_backup_id(text: str) -> bool:
    """Whether a text is a backup's id, with a date and time that exist."""
    if not _BACKUP_ID.fullmatch(text):
        return False
    try:
        datetime.strptime(text, _BACKUP_ID_FORMAT)
    except ValueError:
        return False
    return True


def validate_backup_id(text: str) -> str:
    """Return a backup's id as it is.

    Raises:
        ValueError: it is not one.
    """
    if not is_backup_id(text):
        raise ValueError(f"{text!r} is not a backup id such as 20261120T072531.123456Z")
    return text


def parse_backup_id(text: str) -> int:
    """Return the time that an id stands for, in nanoseconds since the epoch.

    Raises:
        ValueError: it is not an id.
    """
    validate_backup_id(text)
    moment = datetime.strptime(text, _BACKUP_ID_FORMAT).replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MICROSECOND * 1000


def encode_backup_id(time_ns: int) -> str:
    """Return the id of a time in nanoseconds since the epoch, cut to the microsecond.

    Raises:
        ValueError: the year is not one of 1 to 9999.
    """
    try:
        moment = _EPOCH + timedelta(microseconds=time_ns // 1000)
    except OverflowError as error:
        raise ValueError(f"{time_ns} ns is outside the calendar") from error
    # Not strftime: its %Y does not pad years below 1000.
    return f"{moment.year:04d}{moment:%m%dT%H%M%S}.{moment.microsecond:06d}Z"


def make_backup_id(time_ns: int, *, after: str | None = None) -> str:
    """Return an id for a backup that starts now.

    Args:
        time_ns: the clock, in nanoseconds since the epoch.
        after: an id that the result must sort behind, even when the clock was set back or stands still.

    Raises:
        ValueError: *after* is not an id, or the time is outside the calendar.
    """
    if after is not None:
        time_ns = max(time_ns, parse_backup_id(after) + 1000)
    return encode_backup_id(time_ns)
