"""The recipients that this client encrypts a repository's files to, where no option names any.

A file for each repository in the user's configuration directory, in the format that ``age -R`` takes. It is never
taken from the repository: whoever owns the store could add himself. Its first line says where the repository
was: should another one lie there some day, or none, or a plain one, what is written is still for these recipients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from incremental_backups_tools import durable
from incremental_backups_tools.exceptions import BackupError, LimitExceededError
from incremental_backups_tools.repository.identities import KEY_FILE_LEN_MAX, parse_recipients
from incremental_backups_tools.repository.locations import default_config_root

_REPOSITORY_ID = re.compile(r"[0-9a-f]{32}")


def recipients_path(repository_id: str) -> str:
    """Where they are kept.

    Raises:
        ValueError: not a repository's id.
    """
    if not _REPOSITORY_ID.fullmatch(repository_id):
        raise ValueError(f"{repository_id!r} is not a repository's id")
    return os.path.join(default_config_root(), "recipients", f"{repository_id}.txt")


def read_recipients(repository_id: str) -> tuple[str, ...]:
    """The recipients of a repository; none where nothing is kept.

    Raises:
        BackupError: the file cannot be read.
        FormatError: something else stands in it.
    """
    path = recipients_path(repository_id)
    return parse_recipients(_read(path), what=path)


def find_recipients(repository_id: str | None, url: str) -> tuple[str, ...]:
    """The recipients of a repository, or else of the one that was at *url* before; none where nothing is kept.

    Args:
        repository_id: None where there is no repository yet.

    Raises:
        BackupError, FormatError: as :func:`read_recipients`.
    """
    found = read_recipients(repository_id) if repository_id is not None else ()
    if found:
        return found
    directory = os.path.join(default_config_root(), "recipients")
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BackupError(f"cannot read {directory}: {error.strerror}") from error
    for name in names:
        path = os.path.join(directory, name)
        if _REPOSITORY_ID.fullmatch(name.removesuffix(".txt")):
            data = _read(path)
            if data.startswith(_place_line(url)):
                return parse_recipients(data, what=path)
    return ()


def _place_line(url: str) -> bytes:
    return f"# repository: {url}\n".encode(errors="surrogateescape")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(KEY_FILE_LEN_MAX + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BackupError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > KEY_FILE_LEN_MAX:
        raise LimitExceededError(f"{path}: more than {KEY_FILE_LEN_MAX} bytes")
    return data


def write_recipients(repository_id: str, url: str, recipients: Sequence[str]) -> None:
    """Keep *recipients* for what will be written to a repository, which is at *url* now.

    Raises:
        BackupError: the file cannot be written.
    """
    path = recipients_path(repository_id)
    try:
        durable.make_directories(os.path.dirname(path), mode=0o700)
        with durable.atomic_write(path, mode=0o600) as file:
            file.write(_place_line(url))
            file.write("".join(f"{recipient}\n" for recipient in recipients).encode("ascii"))
    except OSError as error:
        raise BackupError(f"cannot write {path}: {error.strerror}") from error
