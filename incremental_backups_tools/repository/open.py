"""From what a user writes, a directory or a URL, to a store."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import fsspec.core
from fsspec import AbstractFileSystem

from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.repository.address import LOCAL_URL, StoreAddress, is_url
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.remote import FsspecStore, WebdavStore
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.retrying import is_transient
from incremental_backups_tools.repository.s3 import S3Store
from incremental_backups_tools.repository.store import Store

DISTRIBUTION = "incremental-backups-tools"

_PROTOCOL = re.compile(r"(?:^|::)([A-Za-z][A-Za-z0-9+.-]*)(?=://|::|$)")
_PASSWORD = re.compile(r"(//[^/@:]*):[^/]*@")

_TIMEOUT_SECONDS = 60


class _Library(NamedTuple):
    """What a protocol stands on: a module, and the extra of this package that installs it."""

    module: str
    extra: str


_S3 = _Library("s3fs", "s3")
_AZURE = _Library("adlfs", "azure")
_GCS = _Library("gcsfs", "gcs")
_SFTP = _Library("sshfs", "sftp")
_WEBDAV = _Library("webdav4", "webdav")
_LIBRARY_OF: Mapping[str, _Library] = {
    "s3": _S3,
    "s3a": _S3,
    "az": _AZURE,
    "abfs": _AZURE,
    "abfss": _AZURE,
    "gs": _GCS,
    "gcs": _GCS,
    "sftp": _SFTP,
    "ssh": _SFTP,
    "webdav": _WEBDAV,
    "dav": _WEBDAV,
}


def open_store(place: str | os.PathLike[str], storage_options: Mapping[str, object] | None = None) -> Store:
    """Make the store for a directory or an fsspec URL. Nothing is looked at or connected to more than needed.

    Args:
        place: a directory, a URL, or a :class:`StoreAddress`.
        storage_options: what the filesystem's class takes; these win over the address's own.

    Raises:
        RepositoryError: an unknown protocol, a library that is not installed, or options it does not take.
        ValueError: options for a directory, which takes none.
    """
    address = place if isinstance(place, StoreAddress) else StoreAddress(os.fspath(place))
    url = address.url
    options = {**address.storage_options, **(storage_options or {})}
    if not url:
        raise RepositoryError("the repository's name is empty")
    if not is_url(url):
        if options:
            raise ValueError(f"a directory takes no storage options: {', '.join(sorted(options))}")
        return LocalStore(_local_path(url))
    _require_libraries(url)
    shown = _without_password(url)
    protocol = url.partition("://")[0].lower()
    library = _LIBRARY_OF.get(protocol)
    options = _with_defaults(library, options)
    remote = address.remote_options
    if library is _SFTP:
        return _open_sftp(url, options, remote)
    filesystem, root = _make_filesystem(url, options)
    if library is _S3:
        return S3Store(filesystem, root, url=shown, options=remote)
    if library is _AZURE:
        from incremental_backups_tools.repository.azure import AzureStore  # stands on an extra's library

        return AzureStore(filesystem, root, url=shown, options=remote)
    kind = WebdavStore if library is _WEBDAV else FsspecStore
    return kind(filesystem, root, url=shown, options=remote)


def open_filesystem(url: str, storage_options: Mapping[str, object]) -> tuple[AbstractFileSystem, str, str]:
    """Connect to the filesystem of a URL, to read from it.

    Returns:
        The filesystem, the path on it, and the URL as it may be shown, without passwords.

    Raises:
        RepositoryError: an unknown protocol, a library that is not installed, or options it does not take.
        Exception: of the library, where the network failed in a way that may pass.
    """
    _require_libraries(url)
    library = _LIBRARY_OF.get(url.partition("://")[0].lower())
    filesystem, root = _make_filesystem(url, _with_defaults(library, dict(storage_options)))
    return filesystem, root, _without_password(url)


def _local_path(url: str) -> str:
    match = LOCAL_URL.match(url)
    if match is None:
        return url
    fs_path = url[match.end() :]
    if not fs_path.startswith("/"):
        raise RepositoryError(f"{url}: a file URL names an absolute path, such as file:///srv/backups")
    return fs_path


def _open_sftp(url: str, options: dict[str, Any], remote: RemoteOptions) -> Store:
    from incremental_backups_tools.repository.sftp import SftpStore  # stands on an extra's library

    protocol, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if not host:
        raise RepositoryError(f"{_without_password(url)}: no host, as in {protocol}://user@host/directory")

    def connect() -> AbstractFileSystem:
        return _make_filesystem(url, options)[0]

    return SftpStore(connect, slash + path, url=_without_password(url), options=remote)


def _make_filesystem(url: str, options: dict[str, Any]) -> tuple[AbstractFileSystem, str]:
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **options)
    except Exception as error:
        # Whatever a protocol's library raises while it connects: wrong option, wrong key, no network.
        if is_transient(error):
            raise  # for the store, which tries again
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RepositoryError(_without_password(f"cannot open {url}: {reason}")) from error
    return filesystem, root


def _require_libraries(url: str) -> None:
    for protocol in _PROTOCOL.findall(url.partition("://")[0]):
        library = _LIBRARY_OF.get(protocol.lower())
        if library is not None and importlib.util.find_spec(library.module) is None:
            raise RepositoryError(
                f"{protocol}:// needs {library.module}, which is not installed: "
                f"pip install '{DISTRIBUTION}[{library.extra}]'"
            )


def _with_defaults(library: _Library | None, options: dict[str, Any]) -> dict[str, Any]:
    """Add to the user's options what a backup needs; what the user says wins."""
    if library is _S3:
        config = {
            # One layer tries again, not three.
            "retries": {"total_max_attempts": 1},
            "connect_timeout": _TIMEOUT_SECONDS / 4,
            "read_timeout": _TIMEOUT_SECONDS,
            # Each request has the MD5 of its body. The newer checksums many servers do not know.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            **options.get("config_kwargs", {}),
        }
        return {"use_listings_cache": False, "skip_instance_cache": True, **options, "config_kwargs": config}
    if library is _AZURE:
        return {"skip_instance_cache": True, **options}
    if library is _GCS:
        return {"consistency": "md5", **options}
    if library is _SFTP:
        # sshfs itself checks no host's key unless it is told to; () is ssh's own file of known hosts.
        patience = {"connect_timeout": _TIMEOUT_SECONDS / 4, "login_timeout": _TIMEOUT_SECONDS}
        alive = {"keepalive_interval": _TIMEOUT_SECONDS / 4}
        return {"known_hosts": (), "skip_instance_cache": True, **patience, **alive, **options}
    if library is _WEBDAV:
        auth = options.get("auth")
        if isinstance(auth, list):
            options["auth"] = tuple(auth)  # a user and a password, as JSON has them
        return {"retry": False, "timeout": _TIMEOUT_SECONDS, "skip_instance_cache": True, **options}
    return options


def _without_password(text: str) -> str:
    return _PASSWORD.sub(r"\1:***@", text)
