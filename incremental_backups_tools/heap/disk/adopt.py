"""Taking in a disk with what it holds, and getting the catalogue back from it. Nothing on it is overwritten."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from incremental_backups_tools.durable import fsync_directory
from incremental_backups_tools.exceptions import RepositoryError, RepositoryNotFoundError, StateFormatError
from incremental_backups_tools.heap.disk.catalogue import Catalogue, replace_catalogue
from incremental_backups_tools.heap.disk.check import refresh_disk
from incremental_backups_tools.heap.disk.disks import Disk, add_disk, disk_with_id, iter_disks, note_presence
from incremental_backups_tools.heap.disk.media import Medium, open_medium
from incremental_backups_tools.heap.disk.report import CheckReport


@dataclass(frozen=True, slots=True)
class Adoption:
    """What came of adopting a disk.

    Attributes:
        rebuilt: the catalogue was had again from the disk.
        set_aside: where the catalogue, or the disk's copy, that had to give way lies now.
        checked: what the disk holds.
    """

    disk: str
    rebuilt: bool
    set_aside: str | None
    checked: CheckReport


def adopt_disk(
    directory: str | os.PathLike[str], place: str | os.PathLike[str], *, name: str | None = None
) -> Adoption:
    """Take the disk at *place* into the catalogue in *directory*.

    Where that is missing or empty, or the disk's copy of it is newer, the copy takes its place. Where both have
    changes that the other one does not know, this one stays and the disk's copy is set aside on the disk.

    Args:
        name: what an unknown disk is to be called; None is the name that it was given when it was added.

    Raises:
        RepositoryNotFoundError: no disk at *place*.
        RepositoryError: the disk belongs to another catalogue, and this one is not empty.
        StateFormatError: the copy is needed and damaged.
    """
    medium = open_medium(place)
    rebuilt, aside = _take_over(directory, medium)
    with Catalogue.open(directory) as catalogue:
        if rebuilt:
            catalogue.begin_branch()
        disk = _register(catalogue, medium, name)
        if not rebuilt:
            aside = _set_aside(catalogue, medium)
        checked = refresh_disk(catalogue, disk, medium)
    return Adoption(disk.name, rebuilt, aside, checked)


def _take_over(directory: str | os.PathLike[str], medium: Medium) -> tuple[bool, str | None]:
    """Put the disk's copy in the catalogue's place where that is right."""
    try:
        with Catalogue.open(directory) as catalogue:
            if catalogue.number("SELECT count(*) FROM entries") == 0 and not iter_disks(catalogue):
                is_wanted = os.path.exists(medium.catalogue_path)
            else:
                is_wanted = _is_newer(catalogue, medium)
    except RepositoryNotFoundError:
        if not os.path.exists(medium.catalogue_path):
            raise RepositoryError(
                f"{medium.store.url}: the disk {medium.identity.name} has no copy of the catalogue yet"
            ) from None
        is_wanted = True
    return is_wanted, replace_catalogue(directory, medium.catalogue_path) if is_wanted else None


def _is_newer(catalogue: Catalogue, medium: Medium) -> bool:
    if medium.identity.catalogue != catalogue.catalogue_id:
        return False
    try:
        with Catalogue.open_copy(medium.catalogue_path) as copy:
            return copy.contains(catalogue) and not catalogue.contains(copy)
    except (RepositoryNotFoundError, StateFormatError):
        return False


def _register(catalogue: Catalogue, medium: Medium, name: str | None) -> Disk:
    known = disk_with_id(catalogue, medium.identity.id)
    if known is not None:
        return note_presence(catalogue, known, medium)
    return add_disk(catalogue, name or medium.identity.name, medium.store.url)[0]


def _set_aside(catalogue: Catalogue, medium: Medium) -> str | None:
    """Rename a copy on the disk that has changes which the catalogue does not know; the next backup writes its own."""
    try:
        with Catalogue.open_copy(medium.catalogue_path) as copy:
            if catalogue.contains(copy):
                return None
    except RepositoryNotFoundError:
        return None
    except StateFormatError:
        pass  # damaged: somebody may yet want to look at it
    aside = f"{medium.catalogue_path}.before-{time.time_ns()}"
    try:
        os.rename(medium.catalogue_path, aside)
        fsync_directory(os.path.dirname(aside))
    except OSError as error:
        raise RepositoryError(f"{medium.catalogue_path}: {error.strerror}") from error
    return aside
