"""The seam between the Python of this package and the C that makes files: many of them in one call.

``_native`` is the C extension, ``_twin`` the same in Python; the same tests run both. A restore of small files
is little more than system calls, and each that Python makes gives up its lock and has to wait for it again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from incremental_backups_tools.tree import _twin

if TYPE_CHECKING:
    from typing_extensions import Buffer

CANCELLED: Final = _twin.CANCELLED
OTHER_CONTENT: Final = _twin.OTHER_CONTENT
MAX_CONTENT_LEN: Final = _twin.MAX_CONTENT_LEN


class NewFile(NamedTuple):
    """A small file to be made.

    Attributes:
        dir_fd: the directory that it comes to lie in.
        temporary: a name in there that is not taken.
        final: the name it is renamed to once it is whole; None leaves it under the temporary one.
        content: one of more than MAX_CONTENT_LEN bytes counts as another than was promised.
        digest: BLAKE3 that the content must have, or nothing is made; None is one that none has.
        first_mode: permissions while it is being written, before the umask.
        mode: permissions that it ends with, without setuid and setgid.
        uid, gid: owner that it ends with, -1 to leave it.
        check_attributes: refuse it where it gets extended attributes or an ACL by being made.
    """

    dir_fd: int
    temporary: bytes
    final: bytes | None
    content: Buffer
    digest: bytes | None
    first_mode: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    check_attributes: bool


@cache
def choose_creator() -> Callable[[Sequence[NewFile]], list[int]]:
    """``create_files`` of the C extension, or of its twin where that is not there."""
    try:
        module = importlib.import_module("incremental_backups_tools.tree._native")
    except ModuleNotFoundError:
        return _twin.create_files
    return cast("Callable[[Sequence[NewFile]], list[int]]", module.create_files)
