"""From a directory, a URL or an fsspec filesystem to a tree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from incremental_backups_tools.heap.sync.local import LocalTree
from incremental_backups_tools.heap.sync.tree import FileTree, RemoteTree
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS, ChangeKeyGetter
from incremental_backups_tools.repository.filesystems import local_path_of, open_filesystem
from incremental_backups_tools.repository.remote_base import RemoteOptions

DEFAULT_THREADS: Final = 8


def open_tree(
    filesystem: Any,
    root: str,
    *,
    url: str | None = None,
    change_keys: Mapping[str, ChangeKeyGetter] = CHANGE_KEYS,
    threads: int = DEFAULT_THREADS,
    options: RemoteOptions | None = None,
) -> FileTree:
    """The tree at a path on an fsspec filesystem; that of this machine is read as such."""
    fs_path = local_path_of(filesystem, root)
    if fs_path is not None:
        return LocalTree(fs_path, change_keys=change_keys)
    return RemoteTree(filesystem, root, url=url, change_keys=change_keys, threads=threads, options=options)


def open_tree_at(address: StoreAddress, *, threads: int = DEFAULT_THREADS) -> FileTree:
    """The tree at a directory or URL.

    Raises:
        RepositoryError: it cannot be opened.
    """
    filesystem, root, shown = open_filesystem(address)
    return open_tree(filesystem, root, url=shown, threads=threads, options=address.remote_options)


def check_apart(one: str, other: str) -> None:
    """Refuse two places of which one lies within the other: one would be filled with itself, or deleted.

    Raises:
        ValueError: so they are.
    """
    first, second = _normal(one), _normal(other)
    if f"{first}/".startswith(f"{second}/") or f"{second}/".startswith(f"{first}/"):
        raise ValueError(f"{one} and {other} lie within each other")


def _normal(url: str) -> str:
    if "://" in url:
        protocol, _, path = url.partition("://")
        return f"{protocol}://{path.strip('/')}"
    return os.path.realpath(url).rstrip("/")
