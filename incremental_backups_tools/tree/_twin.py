"""Making many new files, in plain Python: what the C extension does, to be read and to be compared with.

Each content is compared with its digest. Each file is made under its temporary name, written, given its metadata, and
renamed. For each the answer is 0, an errno, or one of the codes below; unless it is 0, nothing is left of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from blake3 import blake3

if TYPE_CHECKING:
    from incremental_backups_tools.tree.creation import NewFile

__all__ = ["create_files"]

HAS_ATTRIBUTES: Final = -1
"""It was given attributes that grant something, by its directory's default ACL for one."""

CANCELLED: Final = -2
"""Not begun: the whole disk failed at one before it."""

OTHER_CONTENT: Final = -3
"""The content has another digest: nothing was made."""

MAX_CONTENT_LEN: Final = 1 << 20
"""A longer content has no digest here."""

_FATAL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOSYS})
_RIGHTS: Final = frozenset({"system.posix_acl_access", "system.posix_acl_default", "security.capability"})


def create_files(files: Sequence[NewFile], /) -> list[int]:
    """Make *files*, and say for each what came of it.

    Raises:
        ValueError: a name that is not one component; then no file is made.
    """
    for file in files:
        for name in (file.temporary, file.final):
            if name is not None and (b"/" in name or b"\0" in name):
                raise ValueError("a name must be one component without NUL")
    codes: list[int] = []
    for file in files:
        content = memoryview(file.content)
        if len(content) > MAX_CONTENT_LEN or blake3(content).digest() != file.digest:
            codes.append(OTHER_CONTENT)
        else:
            codes.append(CANCELLED if _FATAL.intersection(codes) else _create(file))
    return codes


def _create(file: NewFile) -> int:
    try:
        fd = os.open(file.temporary, _OPEN_NEW, file.first_mode, dir_fd=file.dir_fd)
    except OSError as error:
        return error.errno or errno.EIO
    code = 0
    try:
        try:
            code = _fill(fd, file)
        finally:
            os.close(fd)
        if not code and file.final is not None:
            os.rename(file.temporary, file.final, src_dir_fd=file.dir_fd, dst_dir_fd=file.dir_fd)
    except OSError as error:
        code = error.errno or errno.EIO
    if code:
        with suppress(OSError):
            os.unlink(file.temporary, dir_fd=file.dir_fd)
    return code


def _fill(fd: int, file: NewFile) -> int:
    view = memoryview(file.content)
    while view:
        view = view[os.write(fd, view) :]
    if file.check_attributes and _has_attributes(fd):
        return HAS_ATTRIBUTES
    # Owner before mode, since a change of owner clears bits of it; the time last, since all else changes it.
    info = os.fstat(fd)
    other_owner = file.uid not in (-1, info.st_uid) or file.gid not in (-1, info.st_gid)
    if other_owner:
        os.fchown(fd, file.uid, file.gid)
    if other_owner or stat.S_IMODE(info.st_mode) != file.mode:
        os.fchmod(fd, file.mode)
    os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
    return 0


def _has_attributes(fd: int) -> bool:
    try:
        names = os.listxattr(fd)
    except OSError as error:
        return error.errno not in _NO_XATTRS
    return any(name in _RIGHTS or name.startswith(("user.", "trusted.")) for name in names)
