"""A repository: a store, what identifies it, and the backups that it holds.

``ibt.json`` is written once, when the repository is made::

    {"format": "ibt-repository", "version": 1, "id": "<128 random bits, hexadecimal>", "encryption": "none"}

Whether it is encrypted is said there for good: no run writes files of the other kind beside those that are there.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Self

import msgspec

from incremental_backups_tools.exceptions import (
    DecryptionError,
    FormatError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
    UnsupportedVersionError,
)
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.copies import LocalCopies
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.identities import load_recipient
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
from incremental_backups_tools.repository.locations import default_cache_root
from incremental_backups_tools.repository.own_key import with_own_key
from incremental_backups_tools.repository.protection import NO_PROTECTION, Protection
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.repository.tiered import TieredAddress, TieredStore

FORMAT = "ibt-repository"
VERSION = 1
ENCRYPTION_NONE = "none"
ENCRYPTION_AGE = "age"

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
    tiered: bool | msgspec.UnsetType = msgspec.UNSET  # its archives lie in another place


class _ConfigVersion(msgspec.Struct, frozen=True):
    """The part that every version has."""

    format: str
    version: int


class StoredObject(msgspec.Struct, frozen=True):
    """A file of a backup, and its size in bytes."""

    name: ObjectName
    size: int


class Repository:
    """Backups in a store.

    Attributes:
        store: reads and writes the objects, decrypted and encrypted where the repository is.
        base: the objects as they lie; *store* itself where nothing is encrypted.
        repository_id: 32 hexadecimal digits; tells this repository from every other.
        encryption: ``none`` or ``age``.
        protection: the keys of this run.
        cache_root: the directory of the local cache.
    """

    def __init__(
        self,
        store: Store,
        config: RepositoryConfig,
        *,
        protection: Protection = NO_PROTECTION,
        cache_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Take a store whose ``ibt.json`` was read; callers want :meth:`open`."""
        self.store = self.base = store
        self.repository_id = config.id
        self.encryption = config.encryption
        self.protection = protection
        self.cache_root = cache_root if cache_root is not None else default_cache_root()
        if self.is_encrypted:
            self.store = AgeStore(
                store,
                recipients=protection.recipients,
                identities=protection.identities,
                copies=LocalCopies(config.id, self.cache),
            )

    @property
    def is_encrypted(self) -> bool:
        """Whether the backups' files are encrypted."""
        return self.encryption == ENCRYPTION_AGE

    @classmethod
    def open(
        cls,
        url_or_store: str | os.PathLike[str] | Store,
        *,
        create: bool = False,
        encryption: str | None = None,
        storage_options: Mapping[str, object] | None = None,
        protection: Protection = NO_PROTECTION,
        cache_root: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open a repository.

        Args:
            url_or_store: a directory, an fsspec URL, or a store.
            create: make one where there is nothing yet, encrypted if *protection* has recipients or a passphrase.
            encryption: ``none`` or ``age``: what one that is made is to be, whatever *protection* has.
            storage_options: for the filesystem of a URL.
            protection: the keys of this run.
            cache_root: the directory of the local cache; None is the user's.

        Raises:
            RepositoryNotFoundError: there is none, and *create* is false.
            RepositoryError: something else lies there, or the store failed.
            FormatError: ``ibt.json`` is damaged.
            UnsupportedVersionError: it was made by a newer major version, or is encrypted in an unknown way.
            DecryptionError: the passphrase is wrong.
        """
        store = url_or_store
        if not isinstance(store, Store):
            store = _open_store(store, storage_options)
        config = read_config(store)
        if not protection.wants_encryption and protection.recipients_of is not None:
            # Of a plain repository as well: one that was encrypted once must not be taken for one.
            kept = protection.recipients_of(config.id if config is not None else None, store.url)
            protection = replace(protection, recipients=kept)
        if config is None and create:
            if encryption == ENCRYPTION_NONE and protection.wants_encryption:
                raise RepositoryError(
                    f"{store.url}: none in plain is made where recipients are named or kept"
                )
            wanted = ENCRYPTION_AGE if protection.wants_encryption else ENCRYPTION_NONE
            config = _create_config(store, encryption or wanted)
        if config is None:
            raise RepositoryNotFoundError(f"there is no repository at {store.url} (no {CONFIG_NAME})")
        _check_places(store, config, create=create)
        if config.encryption == ENCRYPTION_AGE:
            protection = with_own_key(store, protection, create=create)
        return cls(store, config, protection=protection, cache_root=cache_root)

    def cache(self, key: str, *, on_problem: Callable[[str], None] | None = None) -> Cache:
        """The local cache of a key; see :class:`Cache`."""
        return Cache(self.cache_root, self.repository_id, key, on_problem=on_problem)

    def without_identities(self) -> Repository:
        """The same as a machine sees it that only backs up."""
        config = RepositoryConfig(
            format=FORMAT, version=VERSION, id=self.repository_id, encryption=self.encryption
        )
        protection = replace(self.protection, identities=(), passphrase=None)
        return Repository(self.base, config, protection=protection, cache_root=self.cache_root)

    def require_writable(self) -> None:
        """Make sure that what this run would write is of the repository's kind: encrypted or not, for good.

        Raises:
            RepositoryError: it is not.
            FormatError: a recipient is none.
        """
        if self.is_encrypted and not self.protection.recipients:
            raise RepositoryError(
                f"{self.base.url} is encrypted, and nothing says to whom: name recipients (--recipient); nothing "
                "was written"
            )
        if not self.is_encrypted and self.protection.wants_encryption:
            raise RepositoryError(
                f"{self.base.url} is not encrypted and never will be: begin another repository with these "
                "recipients; nothing was written"
            )
        for recipient in self.protection.recipients:
            load_recipient(recipient)

    def require_identity(self, operation: str) -> None:
        """Make sure that what is stored can be read, for an *operation* that must.

        Raises:
            DecryptionError: there is no identity.
        """
        if self.is_encrypted and not self.protection.identities:
            raise DecryptionError(f"{self.base.url} is encrypted: {operation} needs an identity (--identity)")

    def check_identities(self) -> None:
        """Make sure that the identities open the newest or the oldest backup of some key, if there is any.

        Raises:
            DecryptionError: they open none of them.
        """
        if not isinstance(self.store, AgeStore) or not self.protection.identities:
            return
        refusal: DecryptionError | None = None
        for key in self.keys():
            states = self.backups(key)
            for stored in states[-1:] + states[:1]:
                try:
                    self.store.check_identities(stored.name.path)
                except DecryptionError as error:
                    refusal = error
                except (FormatError, IntegrityError, ObjectNotFoundError):
                    continue  # damaged or gone: whoever reads it tells of it
                else:
                    return
        if refusal is not None:
            raise refusal

    def keys(self) -> list[str]:
        """List the keys, sorted; one whose first backup was never finished is among them."""
        return [name for name in self.store.list_directories() if is_key(name)]

    def objects(self, key: str) -> list[StoredObject]:
        """List the files of all backups of a key, sorted by name. Other files are left out.

        So are plain ones in an encrypted repository: whoever can write to the store could have put them there.
        """
        validate_key(key)
        objects = []
        for info in self.store.list_objects(f"{key}/"):
            name = parse_object_name(key, info.name.removeprefix(f"{key}/"))
            if name is not None and name.encrypted == (self.is_encrypted and name.role.is_ever_encrypted):
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
    if config.encryption not in (ENCRYPTION_NONE, ENCRYPTION_AGE):
        raise UnsupportedVersionError(
            f"{what} says encryption {config.encryption!r}, this program knows {ENCRYPTION_NONE!r} and "
            f"{ENCRYPTION_AGE!r}"
        )
    return config


def _open_store(place: str | os.PathLike[str], storage_options: Mapping[str, object] | None) -> Store:
    if isinstance(place, TieredAddress):
        hot, cold = (_open_store(part, storage_options) for part in (place.hot, place.cold))
        return TieredStore(hot, cold)
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


def _create_config(store: Store, encryption: str) -> RepositoryConfig:
    for place in (store.hot, store.cold) if isinstance(store, TieredStore) else (store,):
        _require_empty(place)
    if isinstance(store, TieredStore) and read_config(store.cold) is not None:
        raise RepositoryError(
            f"{store.cold.url} is a repository or holds the archives of one, and {store.hot.url} does not belong to "
            f"it: it has no {CONFIG_NAME}"
        )
    store.make_root()
    config = RepositoryConfig(
        format=FORMAT,
        version=VERSION,
        id=secrets.token_hex(16),
        encryption=encryption,
        tiered=True if isinstance(store, TieredStore) else msgspec.UNSET,
    )
    # Where another process was faster, its repository is this one. Read back in any case: of two who wrote at
    # once, both go on with the one that stayed.
    with suppress(ObjectExistsError):
        store.create(CONFIG_NAME, msgspec.json.encode(config))
    stored = read_config(store)
    if stored is None:
        raise RepositoryError(f"{CONFIG_NAME} was written to {store.url} and is not there")
    return stored


def _check_places(store: Store, config: RepositoryConfig, *, create: bool) -> None:
    """Make sure that a repository in two places is opened as one, with both, and no other is.

    Raises:
        RepositoryError: it is not.
    """
    if not isinstance(store, TieredStore):
        if config.tiered is True:
            raise RepositoryError(
                f"{store.url} is one of two places that a repository lies in: name both (--repository for its "
                "archives, --hot-prefix for all else)"
            )
        return
    if config.tiered is not True:
        raise RepositoryError(
            f"{store.hot.url} is a repository by itself, and no --hot-prefix of another place"
        )
    found = read_config(store.cold)
    if found is None and create and not any(is_key(name) for name in store.hot.list_directories()):
        # Its first run, or one that was killed in between.
        _require_empty(store.cold)
        store.cold.make_root()
        with suppress(ObjectExistsError):
            store.cold.create(CONFIG_NAME, msgspec.json.encode(config))
        found = read_config(store.cold)
    if found is None or found.id != config.id:
        raise RepositoryError(
            f"{store.cold.url} does not hold the archives of the repository at {store.hot.url}: "
            + ("it has no ibt.json" if found is None else "they are two repositories")
        )


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
