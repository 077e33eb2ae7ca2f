"""A disk as it lies on this machine: its identity file, where it is mounted, what room it has.

ibt-disk.json         which disk this is, of which catalogue; written once
objects/ab/….zst      contents, by BLAKE3
catalogue.sqlite      a copy of the catalogue, as it was after the last backup to this disk
locks/                who is working
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import (
    RepositoryError,
    RepositoryNotFoundError,
    StateFormatError,
    UnsupportedVersionError,
)
from incremental_backups_tools.heap.disk.catalogue import FILE_NAME
from incremental_backups_tools.heap.objects import ObjectHeap
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.tree.entry import printable

IDENTITY_NAME: Final = "ibt-disk.json"
IDENTITY_FORMAT: Final = "ibt-disk"
IDENTITY_VERSION: Final = 1
_MAX_IDENTITY_LEN: Final = 1 << 16
_MAX_RESERVE: Final = 10 << 30
_MOUNTS: Final = "/proc/self/mountinfo"
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_BLOCK_LEN: Final = 4096

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Identity(msgspec.Struct, frozen=True):
    """What a disk says about itself.

    Attributes:
        id: of the disk, for good.
        catalogue: of the catalogue that it belongs to.
        name: what it was called when it was added.
    """

    format: str
    version: int
    id: str
    catalogue: str
    name: str


@dataclass(frozen=True, slots=True)
class Space:
    """What a file system has: bytes in all, and bytes that we may still write."""

    capacity: int
    free: int


class Medium:
    """A disk that is there.

    Attributes:
        place: the directory on it.
        identity: what its identity file says.
        store: its files.
        heap: its objects.
    """

    def __init__(self, place: bytes, identity: Identity) -> None:
        """Use :func:`open_medium` or :func:`make_medium` instead."""
        self.place = place
        self.identity = identity
        self.store = LocalStore(os.fsdecode(place))
        self.heap = ObjectHeap(self.store)

    @property
    def catalogue_path(self) -> str:
        """Where its copy of the catalogue is, or will be."""
        return os.path.join(os.fsdecode(self.place), FILE_NAME)

    def space(self) -> Space:
        """What its file system has now."""
        return space_of(self.place)

    def drop_from_memory(self, digest: bytes) -> None:
        """Let the system forget what it holds of an object, so that the next reading is of the disk itself."""
        fd = os.open(
            os.path.join(self.place, os.fsencode(self.heap.name_of(digest))), os.O_RDONLY | os.O_CLOEXEC
        )
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def space_of(place: bytes) -> Space:
    """What the file system at *place* has.

    Raises:
        RepositoryError: it cannot be asked.
    """
    try:
        info = os.statvfs(place)
    except OSError as error:
        raise RepositoryError(f"{printable(place)}: {error.strerror}") from error
    return Space(info.f_blocks * info.f_frsize, info.f_bavail * info.f_frsize)


def default_reserve(capacity: int) -> int:
    """Bytes that are left free on a disk of *capacity* bytes unless somebody says otherwise."""
    return min(capacity // 100, _MAX_RESERVE)


def bytes_on_disk(stored_size: int) -> int:
    """What a file of *stored_size* bytes takes, with its share of directories."""
    return (stored_size // _BLOCK_LEN + 1) * _BLOCK_LEN


def most_stored_bytes(size: int) -> int:
    """What an object of a content of *size* bytes takes at most, where it does not compress."""
    return bytes_on_disk(size + (size >> 12) + 64)


def read_identity(place: bytes) -> Identity | None:
    """What the identity file in a directory says; None where there is none.

    Raises:
        StateFormatError, UnsupportedVersionError: it says nothing that can be understood.
        RepositoryError: it cannot be read.
    """
    fs_path = os.path.join(place, IDENTITY_NAME.encode())
    try:
        with open(fs_path, "rb") as file:
            raw = file.read(_MAX_IDENTITY_LEN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RepositoryError(f"{printable(fs_path)}: {error.strerror}") from error
    try:
        identity = msgspec.json.decode(raw, type=Identity)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateFormatError(f"{printable(fs_path)}: not the identity of a disk: {error}") from None
    if identity.format != IDENTITY_FORMAT:
        raise StateFormatError(f"{printable(fs_path)}: not the identity of a disk but {identity.format!r}")
    if identity.version > IDENTITY_VERSION:
        raise UnsupportedVersionError(
            f"{printable(fs_path)}: disk format {identity.version}; this program reads up to {IDENTITY_VERSION}"
        )
    return identity


def open_medium(place: str | bytes | os.PathLike[str]) -> Medium:
    """The disk in the directory *place*.

    Raises:
        RepositoryNotFoundError: no disk there.
    """
    path = os.path.abspath(os.fsencode(place))
    identity = read_identity(path)
    if identity is None:
        raise RepositoryNotFoundError(
            f"{printable(path)}: no {IDENTITY_NAME} there, so this is no disk of ours"
        )
    return Medium(path, identity)


def make_medium(place: str | bytes | os.PathLike[str], identity: Identity) -> Medium:
    """Make the existing directory *place* a disk.

    Raises:
        RepositoryError: it is one already, or cannot be written to.
    """
    path = os.path.abspath(os.fsencode(place))
    try:
        with atomic_write(os.path.join(path, IDENTITY_NAME.encode()), exclusive=True) as file:
            file.write(msgspec.json.encode(identity) + b"\n")
    except FileExistsError:
        raise RepositoryError(f"{printable(path)}: is a disk already") from None
    except OSError as error:
        raise RepositoryError(f"{printable(path)}: cannot make it a disk: {error.strerror}") from error
    return Medium(path, identity)


def find_medium(disk_uuid: str, last_place: bytes) -> Medium | None:
    """Look for a disk: where it was last, then at its own path below each mounted file system.

    A place that cannot be read, or holds something else, is not where it is.
    """
    for place in _candidates(last_place):
        try:
            identity = read_identity(place)
        except (RepositoryError, StateFormatError, UnsupportedVersionError):
            continue
        if identity is not None and identity.id == disk_uuid:
            return Medium(place, identity)
    return None


def _candidates(last_place: bytes) -> Iterator[bytes]:
    yield last_place
    mounts = _mount_points()
    seen = {last_place}
    parts = last_place.strip(b"/").split(b"/")
    # The path on the disk is some end of the path where it was: which one, a disk that is away does not tell.
    tails = [b"/".join(parts[start:]) for start in range(len(parts), 0, -1)]
    for mount in mounts:
        for tail in tails:
            place = os.path.join(mount, tail).rstrip(b"/")
            if place not in seen:
                seen.add(place)
                yield place


def _mount_points() -> list[bytes]:
    try:
        with open(_MOUNTS, "rb") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    fields = (line.split(b" ") for line in lines)
    return [
        _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field[4]) for field in fields if len(field) > 4
    ]
