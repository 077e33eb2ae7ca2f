"""What a backup is made of: a directory of this machine, or one at a URL."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from incremental_backups_tools.chain.backup_options import BackupOptions
from incremental_backups_tools.chain.moved_files import MovedFiles
from incremental_backups_tools.chain.parent_index import ParentIndex
from incremental_backups_tools.chain.state import StateHeader
from incremental_backups_tools.exceptions import SourceError, StateFormatError
from incremental_backups_tools.repository.address import StoreAddress, address_of
from incremental_backups_tools.repository.layout import is_key
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.store import Store
from incremental_backups_tools.repository.tiered import TieredStore
from incremental_backups_tools.tree.entry import bytes_of, printable
from incremental_backups_tools.tree.exclusion import ExclusionRules
from incremental_backups_tools.tree.source import Source, fs_path_of, walk_source
from incremental_backups_tools.tree.walk import AnyWalk, ProblemHandler

PathHandler = Callable[[bytes], None]


class BackupSource(ABC):
    """A tree to be backed up.

    Attributes:
        place: its path or URL, by which a key's next backup is known to be of the same tree.
        can_resume: whether what a killed run stored can be compared with it.
    """

    place: str
    can_resume: bool

    @property
    def shown(self) -> str:
        """``place`` for people."""
        return printable(os.fsencode(self.place))

    @abstractmethod
    def walk(
        self,
        *,
        options: BackupOptions,
        repository: Repository,
        cache_path: str,
        on_problem: ProblemHandler,
        on_unlisted: PathHandler,
        on_left_out: PathHandler,
    ) -> AnyWalk:
        """The walk over it, without the repository and its cache.

        Raises:
            SourceError: the repository is the source; or both are at URLs, and one lies in the other.
        """

    @abstractmethod
    def moved_files(self, parent: ParentIndex) -> MovedFiles | None:
        """Finds what new files may have been; None where nothing tells."""

    def check_identity(self, latest: StateHeader) -> None:
        """Two trees with one base name must not become one chain.

        Raises:
            SourceError: *latest* is a backup of another tree.
        """
        source, host = _source_of(latest), latest.host
        if source == os.fsencode(self.place) and self._is_on(host):
            return
        raise SourceError(
            f"key {latest.key}: its newest backup {latest.id} is of {printable(source)} on {printable(host.encode())}, "
            f"not of {self.shown} on {socket.gethostname()}; "
            "give key (--key) to say which tree it stands for"
        )

    def _is_on(self, host: str) -> bool:
        return host == socket.gethostname()


def open_source(source: Source, options: BackupOptions) -> BackupSource:
    """Make sure of a source; a URL is connected to.

    Raises:
        SourceError: there is no such directory, or no way to it.
        ValueError: options for a directory of this machine, which takes none.
    """
    address = address_of(source)
    if address is not None:
        return UrlSource(_with_options(address, options), options)
    if options.source_options:
        raise ValueError(f"a directory takes no source options: {', '.join(sorted(options.source_options))}")
    return DirectorySource(source)


def _with_options(address: StoreAddress, options: BackupOptions) -> StoreAddress:
    return replace(address, storage_options={**address.storage_options, **options.source_options})


def key_of(source: Source) -> str:
    """The key that *source* has unless another is given: its base name.

    Raises:
        ValueError: that is not a possible key.
    """
    address = address_of(source)
    place = fs_path_of(source) if address is None else address.url.rstrip("/")
    name = place.rpartition("/")[2]
    if not is_key(name):
        raise ValueError(f"{printable(os.fsencode(name))!r} cannot be a key: name one with key (--key)")
    return name


class DirectorySource(BackupSource):
    """A directory of this machine."""

    can_resume = True

    def __init__(self, source: Source) -> None:
        """Raises SourceError: there is no such directory."""
        self._source = source
        self.place = fs_path_of(source)
        _check_directory(self.place)

    def walk(
        self,
        *,
        options: BackupOptions,
        repository: Repository,
        cache_path: str,
        on_problem: ProblemHandler,
        on_unlisted: PathHandler,
        on_left_out: PathHandler,
    ) -> AnyWalk:
        stores = _stores_of(repository)
        own = _identities([cache_path, *(store.url for store in stores if isinstance(store, LocalStore))])
        if not own.isdisjoint(_identities([self.place])):
            raise SourceError(f"{self.shown}: is the repository that it is to be kept in")
        return walk_source(
            self._source,
            rules=options.rules,
            one_file_system=options.one_file_system,
            on_problem=on_problem,
            on_unlisted=on_unlisted,
            leave_out=own,
            on_left_out=on_left_out,
        )

    def moved_files(self, parent: ParentIndex) -> MovedFiles | None:
        return MovedFiles(parent.file, self.place)


class UrlSource(BackupSource):
    """What lies at a URL of any fsspec filesystem."""

    can_resume = False

    def __init__(self, address: StoreAddress, options: BackupOptions) -> None:
        """Raises SourceError: there is no way to it."""
        # fsspec takes a while to import, which a backup of a directory need not wait for.
        from incremental_backups_tools.repository.source_files import SourceFiles

        self._files = SourceFiles(address, change_keys=options.change_keys)
        self.place = self._files.url

    def walk(
        self,
        *,
        options: BackupOptions,
        repository: Repository,
        cache_path: str,
        on_problem: ProblemHandler,
        on_unlisted: PathHandler,
        on_left_out: PathHandler,
    ) -> AnyWalk:
        from incremental_backups_tools.tree.remote_walk import RemoteWalk

        ours = f"{self.place}/"
        for store in _stores_of(repository):
            theirs = store.url.rstrip("/") + "/"
            if ours.startswith(theirs) or theirs.startswith(ours):
                raise SourceError(
                    f"{self.shown}: the repository {store.url} and the source lie one in the other; keep it elsewhere"
                )
        rules = ExclusionRules(exclude_file=".exclude") if options.rules is None else options.rules
        return RemoteWalk(self._files, rules=rules, on_problem=on_problem)

    def moved_files(self, parent: ParentIndex) -> MovedFiles | None:
        return None  # there are no inodes, and each guess would be a download

    def _is_on(self, host: str) -> bool:
        return True  # a URL means the same from every machine


def _check_directory(fs_path: str) -> None:
    shown = printable(os.fsencode(fs_path))
    try:
        descriptor = os.open(fs_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SourceError(f"{shown}: there is no such directory") from None
    except NotADirectoryError:
        raise SourceError(f"{shown}: is not a directory") from None
    except OSError as error:
        raise SourceError(f"{shown}: {error.strerror}") from error
    os.close(descriptor)


def _stores_of(repository: Repository) -> tuple[Store, ...]:
    """The places that a repository's objects lie at."""
    base = repository.base
    return (base.hot, base.cold) if isinstance(base, TieredStore) else (base,)


def _identities(fs_paths: Iterable[str]) -> set[tuple[int, int]]:
    """Device and inode of each directory that is there."""
    found = set()
    for fs_path in fs_paths:
        with suppress(OSError):  # not there, so not in the source
            info = os.stat(fs_path)
            found.add((info.st_dev, info.st_ino))
    return found


def _source_of(header: StateHeader) -> bytes:
    try:
        return bytes_of(header.source, header.source_b64) or b""
    except ValueError as error:
        raise StateFormatError(f"{header.key}@{header.id}: its source cannot be read: {error}") from None
