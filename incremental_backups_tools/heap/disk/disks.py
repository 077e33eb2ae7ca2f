"""The disks that a catalogue knows: add, adopt, find, rename, resize, drop."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass

from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.heap.disk.catalogue import Catalogue
from incremental_backups_tools.heap.disk.media import (
    IDENTITY_FORMAT,
    IDENTITY_VERSION,
    NAME,
    Identity,
    Medium,
    default_reserve,
    find_medium,
    make_medium,
    open_medium,
    read_identity,
)
from incremental_backups_tools.tree.entry import printable

_COLUMNS = "id, uuid, name, size_limit, reserve, capacity, free, place, seen_ns, backup_ns"


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as the catalogue knows it; sizes in bytes, as they were when it was last there.

    Attributes:
        size_limit: the most that it may be filled with; None is all of it.
        reserve_set: what is to be left free; None is the default.
        capacity, free: of its file system.
        place: the directory where it was.
        backup_ns: when it was last backed up to.
    """

    id: int
    uuid: str
    name: str
    size_limit: int | None
    reserve_set: int | None
    capacity: int
    free: int
    place: bytes
    seen_ns: int
    backup_ns: int | None

    @property
    def reserve(self) -> int:
        """Bytes to be left free."""
        return default_reserve(self.capacity) if self.reserve_set is None else self.reserve_set

    @property
    def room(self) -> int:
        """Bytes that it may hold."""
        most = max(self.capacity - self.reserve, 0)
        return most if self.size_limit is None else min(self.size_limit, most)


def iter_disks(catalogue: Catalogue) -> list[Disk]:
    """All disks, by name."""
    return [Disk(*row) for row in catalogue.rows(f"SELECT {_COLUMNS} FROM disks ORDER BY name")]


def disk_named(catalogue: Catalogue, name: str) -> Disk:
    """The disk of that name.

    Raises:
        RepositoryError: there is none.
    """
    row = catalogue.row(f"SELECT {_COLUMNS} FROM disks WHERE name = ?", (name,))
    if row is None:
        names = ", ".join(disk.name for disk in iter_disks(catalogue)) or "none yet"
        raise RepositoryError(f"no disk is called {name!r}; there are: {names}")
    return Disk(*row)


def disk_with_id(catalogue: Catalogue, disk_uuid: str) -> Disk | None:
    """The disk with that identity, None where the catalogue does not know it."""
    row = catalogue.row(f"SELECT {_COLUMNS} FROM disks WHERE uuid = ?", (disk_uuid,))
    return None if row is None else Disk(*row)


def find_disk(disk: Disk, place: str | os.PathLike[str] | None = None) -> Medium:
    """Where a disk is now.

    Args:
        place: where to look; None is where it was and all mounted file systems.

    Raises:
        RepositoryNotFoundError: it is not there.
        RepositoryError: another disk is at *place*.
    """
    if place is None:
        found = find_medium(disk.uuid, disk.place)
        if found is None:
            raise RepositoryNotFoundError(
                f"the disk {disk.name} is not there: it was at {printable(disk.place)}, and no mounted file "
                "system has its identity file"
            )
        return found
    medium = open_medium(place)
    if medium.identity.id != disk.uuid:
        raise RepositoryError(f"{medium.store.url} is not the disk {disk.name} but {medium.identity.name}")
    return medium


def find_present(catalogue: Catalogue) -> dict[int, Medium]:
    """The disks that are there now, by their number in the catalogue."""
    found = {disk.id: find_medium(disk.uuid, disk.place) for disk in iter_disks(catalogue)}
    return {number: medium for number, medium in found.items() if medium is not None}


def add_disk(
    catalogue: Catalogue,
    name: str,
    place: str | os.PathLike[str],
    *,
    size_limit: int | None = None,
    reserve: int | None = None,
) -> tuple[Disk, bool]:
    """Make a directory a disk, or take one that is a disk of this catalogue already as it is.

    Returns:
        The disk, and whether it is a new one. One that is not has copies that are still to be counted.

    Raises:
        RepositoryError: the name is taken, the disk is another catalogue's, or *place* is no directory.
        ValueError: an impossible name.
    """
    _check_name(name)
    path = os.path.abspath(os.fsencode(place))
    if not os.path.isdir(path):
        raise RepositoryError(f"{printable(path)}: not a directory")
    identity = read_identity(path)
    if identity is not None:
        check_owner(catalogue, identity, path)
        known = disk_with_id(catalogue, identity.id)
        if known is not None:
            return note_presence(catalogue, known, Medium(path, identity)), False
    _refuse_taken(catalogue, name)
    is_new = identity is None
    if identity is None:
        identity = Identity(
            IDENTITY_FORMAT, IDENTITY_VERSION, str(uuid.uuid4()), catalogue.catalogue_id, name
        )
        medium = make_medium(path, identity)
    else:
        medium = Medium(path, identity)
    space = medium.space()
    with catalogue.transaction():
        catalogue.execute(
            "INSERT INTO disks(uuid, name, size_limit, reserve, capacity, free, place, seen_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (identity.id, name, size_limit, reserve, space.capacity, space.free, path, time.time_ns()),
        )
    return disk_named(catalogue, name), is_new


def check_owner(catalogue: Catalogue, identity: Identity, place: bytes) -> None:
    """Refuse a disk that another catalogue's files depend on.

    Raises:
        RepositoryError: so it is.
    """
    if identity.catalogue != catalogue.catalogue_id:
        raise RepositoryError(
            f"{printable(place)}: the disk {identity.name} belongs to another catalogue, {identity.catalogue}; "
            "adopt it into an empty one (--catalogue DIR), or use another directory on it"
        )


def note_presence(catalogue: Catalogue, disk: Disk, medium: Medium) -> Disk:
    """Remember where a disk is and what room it has."""
    space = medium.space()
    with catalogue.transaction():
        catalogue.execute(
            "UPDATE disks SET place = ?, capacity = ?, free = ?, seen_ns = ? WHERE id = ?",
            (medium.place, space.capacity, space.free, time.time_ns(), disk.id),
        )
    return disk_named(catalogue, disk.name)


def rename_disk(catalogue: Catalogue, old: str, new: str) -> None:
    """Call a disk something else; what lies on it stays as it is.

    Raises:
        RepositoryError: there is no such disk, or the new name is taken.
        ValueError: an impossible name.
    """
    disk = disk_named(catalogue, old)
    _check_name(new)
    _refuse_taken(catalogue, new)
    with catalogue.transaction():
        catalogue.execute("UPDATE disks SET name = ? WHERE id = ?", (new, disk.id))


def set_disk(
    catalogue: Catalogue, name: str, *, size_limit: int | None = None, reserve: int | None = None
) -> Disk:
    """Change how far a disk may be filled and how much is left free; None leaves it as it is."""
    disk = disk_named(catalogue, name)
    with catalogue.transaction():
        catalogue.execute(
            "UPDATE disks SET size_limit = coalesce(?, size_limit), reserve = coalesce(?, reserve)"
            " WHERE id = ?",
            (size_limit, reserve, disk.id),
        )
    return disk_named(catalogue, name)


def drop_disk(catalogue: Catalogue, name: str, *, even_last_copies: bool = False) -> int:
    """Forget a disk and count on none of its copies any more. Nothing on it is touched.

    Returns:
        How many objects that are needed have no copy now.

    Raises:
        RepositoryError: some would have none, and *even_last_copies* is not set.
    """
    disk = disk_named(catalogue, name)
    alone = catalogue.number(
        "SELECT count(*) FROM copies AS mine WHERE disk = ?"
        " AND NOT EXISTS (SELECT 1 FROM copies WHERE object = mine.object AND disk <> mine.disk)"
        " AND EXISTS (SELECT 1 FROM entries WHERE entries.object = mine.object)",
        (disk.id,),
    )
    if alone and not even_last_copies:
        raise RepositoryError(
            f"the disk {name} has the only copy of {alone} objects; back them up to another disk first, or drop "
            "it with --force where it is lost"
        )
    with catalogue.transaction():
        catalogue.execute("DELETE FROM copies WHERE disk = ?", (disk.id,))
        catalogue.execute("DELETE FROM disks WHERE id = ?", (disk.id,))
    return alone


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a disk's name: letters, digits, '.', '_' and '-'")


def _refuse_taken(catalogue: Catalogue, name: str) -> None:
    if catalogue.row("SELECT 1 FROM disks WHERE name = ?", (name,)):
        raise RepositoryError(f"a disk is called {name} already")
