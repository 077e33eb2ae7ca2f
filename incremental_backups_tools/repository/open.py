"""From what a user writes, a directory or a URL, to a store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import fsspec.core

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.remote import FsspecStore
from incremental_backups_tools.repository.store import Store

# A protocol, or a chain of them that ends in one: 'memory://', 'simplecache::s3://bucket'.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::.*://)", re.DOTALL)
_LOCAL_URL = re.compile(r"(?:file|local)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(//[^/@:]*):[^/@]*@")


def open_store(
    url_or_path: str | os.PathLike[str],
    storage_options: Mapping[str, object] | None = None,
    *,
    spool_directory: str | None = None,
) -> Store:
    """Make the store for a directory or an fsspec URL. Nothing is looked at or connected to more than needed.

    Args:
        storage_options: what the filesystem's class takes: keys, endpoints, ports.
        spool_directory: where objects wait for their upload; None is the system's temporary directory.

    Raises:
        RepositoryError: an unknown protocol, a library that is not installed, or options it does not take.
        ValueError: options for a directory, which takes none.
    """
    url = os.fspath(url_or_path)
    options = dict(storage_options or {})
    if not url:
        raise RepositoryError("the repository's name is empty")
    if match := _LOCAL_URL.match(url):
        fs_path = url[match.end() :]
        if not fs_path.startswith("/"):
            raise RepositoryError(f"{url}: a file URL names an absolute path, such as file:///srv/backups")
        url = fs_path
    if not _URL.match(url):
        if options:
            raise ValueError(f"a directory takes no storage options: {', '.join(sorted(options))}")
        return LocalStore(url)
    shown = _PASSWORD.sub(r"\1:***@", url)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:
        # Whatever a protocol's library raises while it connects: missing module, wrong option, no network.
        raise RepositoryError(_PASSWORD.sub(r"\1:***@", f"cannot open {url}: {error}")) from error
    return FsspecStore(filesystem, root, url=shown, spool_directory=spool_directory)
