"""A repository: a store, what identifies it, and the backups that it holds.

``ibt.json`` is written once, when the repository is made::

    {"format": "ibt-repository", "version": 1, "id": "<128 random bits, hexadecimal>", "encryption": "none"}
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import msgspec

from incremental_backups_tools.exceptions import (
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
    UnsupportedVersionError,
)
from incremental_backups_tools.repository.layout import (
    CONFIG_NAME,
    LOCKS_DIRECTORY,
    ObjectName,
    Role,
    is_key,
    parse_object_name,
    validate_key,
)
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.store import Store

FORMAT = "ibt-repository"
VERSION = 1
ENCRYPTION_NONE = "none"

_CONFIG_SIZE_MAX = 64 * 1024
_ID = re.compile(r"[0-9a-f]{32}")

# What lies at the top and among the locks is small and written in moments, by processes of every key.
_SHARED_TEMPORARY_AGE_SECONDS = 3600.0

# What an empty directory may hold all the same: a freshly made file system's own.
_HARMLESS_DIRECTORIES = frozenset({"lost+found"})


class RepositoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What ``ibt.json`` says; fields it does not know are left alone."""

    format: str
    version: int
    id: str
    encryption: str = ENCRYPTION_NONE


class _ConfigVersion(msgspec.Struct, frozen=True):
    """The part that every version has."""

    format: str
    version: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file of a backup, and its size in bytes."""

    name: ObjectName
    size: int


class Repository:
    """Backups in a store.

    Attributes:
        store: where the objects lie.
        repository_id: 32 hexadecimal digits; tells this repository from every other.
        encryption: ``none``.
    """

    def __init__(self, store: Store, config: RepositoryConfig) -> None:
        """Take a store whose ``ibt.json`` was read; callers want :meth:`open`."""
        self.store = store
        self.repository_id = config.id
        self.encryption = config.encryption

    @classmethod
    def open(
        cls,
        url_or_store: str | os.PathLike[str] | Store,
        *,
        create: bool = False,
        storage_options: Mapping[str, object] | None = None,
    ) -> Self:
        """Open a repository.

        Args:
            url_or_store: a directory, an fsspec URL, or a store.
            create: make one where there is nothing yet.
            storage_options: for the filesystem of a URL.

        Raises:
            RepositoryNotFoundError: there is none, and *create* is false.
            RepositoryError: something else lies there, or the store failed.
            FormatError: ``ibt.json`` is damaged.
            UnsupportedVersionError: it was made by a newer major version, or is encrypted.
        """
        store = url_or_store
        if not isinstance(store, Store):
            store = _open_store(store, storage_options)
        config = read_config(store)
        if config is None and create:
            config = _create_config(store)
        if config is None:
            raise RepositoryNotFoundError(f"there is no repository at {store.url} (no {CONFIG_NAME})")
        return cls(store, config)

    def keys(self) -> list[str]:
        """List the keys, sorted; one whose first backup was never finished is among them."""
        return [name for name in self.store.list_directories() if is_key(name)]

    def objects(self, key: str) -> list[StoredObject]:
        """List the files of all backups of a key, sorted by name. Other files are left out."""
        validate_key(key)
        objects = []
        for info in self.store.list_objects(f"{key}/"):
            name = parse_object_name(key, info.name.removeprefix(f"{key}/"))
            if name is not None:
                objects.append(StoredObject(name, info.size))
        return objects

    def backups(self, key: str) -> list[StoredObject]:
        """List the backups of a key: the state of each one's highest generation, sorted by id.

        A backup exists if and only if its state does.
        """
        return select_backups(self.objects(key))

    def clean_temporaries(self, key: str) -> list[str]:
        """Remove what killed processes left unfinished, and return the names; for who holds the key's lock.

        Of the key everything, since nobody else can be writing there; of what all keys share only what is
        older than an hour.
        """
        removed = self.store.clean_temporaries(key)
        for directory in ("", LOCKS_DIRECTORY):
            removed += self.store.clean_temporaries(directory, min_age_seconds=_SHARED_TEMPORARY_AGE_SECONDS)
        return removed

    def put_once(self, name: str, data: bytes) -> bool:
        """Store a small object unless its name is taken; return whether it was stored."""
        try:
            if self.store.exists(name):
                return False
            self.store.create(name, data)
        except ObjectExistsError:
            return False
        return True


def select_backups(objects: list[StoredObject]) -> list[StoredObject]:
    """Pick the state of each backup's highest generation out of a key's objects; sorted by id."""
    newest: dict[str, StoredObject] = {}
    for stored in objects:
        if stored.name.role is not Role.STATE:
            continue
        known = newest.get(stored.name.backup_id)
        if known is None or known.name.generation < stored.name.generation:
            newest[stored.name.backup_id] = stored
    return [newest[backup_id] for backup_id in sorted(newest)]


def parse_config(data: bytes, *, where: str) -> RepositoryConfig:
    """Read the bytes of an ``ibt.json``.

    Args:
        where: the store, for messages.

    Raises:
        FormatError: damaged, or not one of this package.
        UnsupportedVersionError: of a newer major version, or of a kind that this one cannot read.
    """
    what = f"{CONFIG_NAME} in {where}"
    try:
        version = msgspec.json.decode(data, type=_ConfigVersion)
        if version.format != FORMAT:
            raise FormatError(f"{what} has the format {version.format!r}, expected {FORMAT!r}")
        # Before the rest is looked at: a newer version may have changed everything else.
        if version.version > VERSION:
            raise UnsupportedVersionError(
                f"{what} has version {version.version}, this program reads up to {VERSION}: it is too old"
            )
        config = msgspec.json.decode(data, type=RepositoryConfig)
    except msgspec.DecodeError as error:
        raise FormatError(f"{what} is damaged or not of this program: {error}") from error
    if config.version < 1 or not _ID.fullmatch(config.id):
        raise FormatError(f"{what} is damaged: version {config.version}, id {config.id!r}")
    if config.encryption != ENCRYPTION_NONE:
        raise UnsupportedVersionError(
            f"{what} says encryption {config.encryption!r}, this program reads {ENCRYPTION_NONE!r} only"
        )
    return config


def _open_store(place: str | os.PathLike[str], storage_options: Mapping[str, object] | None) -> Store:
    fs_path = os.fspath(place)
    if fs_path and "://" not in fs_path and not storage_options:
        return LocalStore(fs_path)
    # fsspec and what it brings take a tenth of a second to import, which a directory need not wait for.
    from incremental_backups_tools.repository.open import open_store

    return open_store(place, storage_options)


def read_config(store: Store) -> RepositoryConfig | None:
    """Read a store's ``ibt.json``; None where there is none.

    Raises:
        FormatError, UnsupportedVersionError: as :func:`parse_config`.
        LimitExceededError: it is far too large to be one.
        RepositoryError: the store failed.
    """
    with suppress(ObjectNotFoundError, RepositoryNotFoundError):
        return parse_config(store.read(CONFIG_NAME, max_size=_CONFIG_SIZE_MAX), where=store.url)
    return None


def _create_config(store: Store) -> RepositoryConfig:
    _require_empty(store)
    store.make_root()
    config = RepositoryConfig(format=FORMAT, version=VERSION, id=secrets.token_hex(16))
    # Where another process was faster, its repository is this one. Read back in any case: of two who wrote at
    # once, both go on with the one that stayed.
    with suppress(ObjectExistsError):
        store.create(CONFIG_NAME, msgspec.json.encode(config))
    stored = read_config(store)
    if stored is None:
        raise RepositoryError(f"{CONFIG_NAME} was written to {store.url} and is not there")
    return stored


def _require_empty(store: Store) -> None:
    try:
        names = [info.name for info in store.list_objects()]
        names += [name for name in store.list_directories() if name not in _HARMLESS_DIRECTORIES]
    except RepositoryNotFoundError:
        return
    # A repository that another process made since the first look is no stranger: it is read next.
    if names and CONFIG_NAME not in names:
        raise RepositoryError(
            f"{store.url} is not a repository and not empty (it holds {names[0]!r}): none is made there"
        )
