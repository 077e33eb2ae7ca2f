"""What a file system knows about a file besides its content: captured into an entry, applied from one."""

from __future__ import annotations

import errno
import fcntl
import functools
import grp
import os
import pwd
import stat
import struct
from collections.abc import Callable
from typing import Final

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.acl import ACL_ACCESS, ACL_DEFAULT, acl_to_text, text_to_acl
from incremental_backups_tools.tree.entry import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    SYMLINK,
    Acl,
    Entry,
    printable,
)
from incremental_backups_tools.tree.read_ahead import ReadFile
from incremental_backups_tools.tree.reading import MAX_ATTEMPTS, same_file_state
from incremental_backups_tools.tree.walk import Found

_TYPE_OF_MODE: Final = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFCHR: CHAR_DEVICE,
    stat.S_IFBLK: BLOCK_DEVICE,
}
_ACLS: Final = frozenset({ACL_ACCESS, ACL_DEFAULT})
# Attributes that grant something, and those that programs set: a restored file has its own and no others. A
# security label is the system's to give.
_RIGHTS: Final = _ACLS | {b"security.capability"}
_OWN_NAMESPACES: Final = (b"user.", b"trusted.")
_FS_IOC_GETFLAGS: Final = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
_LONG: Final = struct.Struct("l")
_INT: Final = struct.Struct("i")
_FLAG_NAMES: Final = ((0x20, "append"), (0x10, "immutable"), (0x40, "nodump"))  # FS_*_FL, sorted by name
# What a file system without inode flags says.
_NO_FLAGS: Final = frozenset(
    {errno.ENOTTY, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES}
)
# A file system that has no extended attributes, or no such one, says one of these.
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOSYS})


def type_of(mode: int) -> str | None:
    """The entry type of ``st_mode``; None for a socket, which cannot be backed up."""
    return _TYPE_OF_MODE.get(stat.S_IFMT(mode))


@functools.lru_cache(maxsize=4096)
def user_name(uid: int) -> bytes | None:
    """The name of user *uid* on this machine, None where it has none."""
    try:
        return os.fsencode(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return None


@functools.lru_cache(maxsize=4096)
def group_name(gid: int) -> bytes | None:
    """The name of group *gid* on this machine, None where it has none."""
    try:
        return os.fsencode(grp.getgrgid(gid).gr_name)
    except KeyError:
        return None


def capture(
    found: Found, info: os.stat_result, *, link_of: bytes | None = None, fd: int | None = None
) -> Entry:
    """The entry of *found* with the metadata of *info*, without content.

    Args:
        info: *found*'s own stat or a fresher one of the opened file.
        fd: *found* itself, opened, so that what is captured is of the file that is read. Inode flags are
            captured of what is open alone; a directory that the walk has entered is.

    Raises:
        OSError: a symlink that cannot be read, or attributes that cannot be.
        ValueError: a type that cannot be backed up.
    """
    kind = type_of(info.st_mode)
    if kind is None:
        raise ValueError("not a type of file that can be backed up")
    if found.is_remote:
        return _remote_entry(found, info, kind)
    fd = found.fd if fd is None else fd
    xattrs, acl = capture_xattrs(found, fd=fd)
    return Entry(
        path=found.rel_path,
        type=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        user=user_name(info.st_uid),
        group=group_name(info.st_gid),
        size=info.st_size if kind == FILE else 0,
        mtime_ns=info.st_mtime_ns,
        target=os.readlink(found.name, dir_fd=found.dir_fd) if kind == SYMLINK else None,
        link_of=link_of,
        device=_device_numbers(info) if kind in (CHAR_DEVICE, BLOCK_DEVICE) else None,
        flags=inode_flags(fd) if fd is not None else (),
        xattrs=xattrs,
        acl=acl,
        ctime_ns=info.st_ctime_ns,
        inode=info.st_ino,
        dev=info.st_dev,
    )


def capture_unread(found: Found, *, link_of: bytes | None = None) -> Entry:
    """The entry of what has no content to be read: anything but a regular file, or a further name of one.

    What is captured by name is looked at once more, so that an entry is never made of two files that had the name one
    after the other.

    Args:
        link_of: the name whose hard link it is. Of what is no regular file it is dropped where that turns out not to
            be so any more.

    Raises:
        SourceError: it is gone, cannot be read or backed up, or is another one each time; of a further name of a
            regular file: it is not the file any more that the walk came by.
    """
    shown = printable(found.rel_path)
    info = found.stat
    for _ in range(MAX_ATTEMPTS):
        try:
            entry = capture(found, info, link_of=link_of)
            if entry.type == DIRECTORY or found.is_remote:
                return entry
            after = os.lstat(found.name, dir_fd=found.dir_fd)
        except (OSError, ValueError) as error:
            raise SourceError(f"{shown}: cannot read its metadata: {error}") from error
        if same_file_state(info, after):
            return entry
        if FILE in (entry.type, type_of(after.st_mode)):
            break
        info, link_of = after, None
    raise SourceError(f"{shown}: changed while it was looked at")


def _remote_entry(found: Found, info: os.stat_result, kind: str) -> Entry:
    """What other machines tell: the names of their users mean nothing here."""
    return Entry(
        path=found.rel_path,
        type=kind,
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size=info.st_size if kind == FILE else 0,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
        inode=info.st_ino,
        dev=info.st_dev,
    )


def plain_entry(rel_path: bytes, read: ReadFile, digest: bytes) -> Entry:
    """The entry of a file that was read ahead, with its content's *digest*."""
    return Entry(
        path=rel_path,
        type=FILE,
        mode=read.mode,
        uid=read.uid,
        gid=read.gid,
        user=user_name(read.uid),
        group=group_name(read.gid),
        size=len(read.content),
        mtime_ns=read.mtime_ns,
        digest=digest,
        ctime_ns=read.ctime_ns,
        inode=read.inode,
        dev=read.dev,
    )


def _device_numbers(info: os.stat_result) -> tuple[int, int]:
    return os.major(info.st_rdev), os.minor(info.st_rdev)


def path_by_descriptor(dir_fd: int, name: bytes) -> bytes:
    """A path to *name* in the open directory *dir_fd*, for calls that take no descriptor."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def inode_flags(fd: int) -> tuple[str, ...]:
    """Those inode flags of an open file or directory that are kept, sorted; none where there are no such.

    Raises:
        OSError: the file system has flags and cannot tell them.
    """
    try:
        raw = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_LONG.size))
    except OSError as error:
        if error.errno in _NO_FLAGS:
            return ()
        raise
    # Declared with a long, the call gives an int (linux/fs.h); on big-endian machines that makes a difference.
    (flags,) = _INT.unpack_from(raw)
    return tuple(name for bit, name in _FLAG_NAMES if flags & bit)


def capture_xattrs(
    found: Found, *, fd: int | None = None
) -> tuple[tuple[tuple[bytes, bytes], ...], Acl | None]:
    """Extended attributes of every namespace that one may read, sorted by name, and the POSIX ACLs among them.

    Args:
        fd: *found* itself, opened; None looks it up by name, without following it.

    Raises:
        OSError: there are attributes, and they cannot be read.
    """
    if fd is not None:
        names, get = _list_xattrs(fd), functools.partial(os.getxattr, fd)
    else:
        path = path_by_descriptor(found.dir_fd, found.name)
        names = _list_xattrs(path, follow_symlinks=False)
        get = functools.partial(os.getxattr, path, follow_symlinks=False)
    if not names:
        return (), None
    values: dict[bytes, bytes] = {}
    for name in names:
        try:
            values[os.fsencode(name)] = get(name)
        except OSError as error:
            if error.errno not in _NO_XATTRS:
                raise
    access, default = _take_acl(values, ACL_ACCESS), _take_acl(values, ACL_DEFAULT)
    acl = Acl(access, default) if access is not None or default is not None else None
    return tuple(sorted(values.items())), acl


def _list_xattrs(file: int | bytes, *, follow_symlinks: bool = True) -> list[str]:
    try:
        return os.listxattr(file, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno in _NO_XATTRS or error.errno == errno.ENOENT:
            return []
        raise


def _take_acl(values: dict[bytes, bytes], name: bytes) -> str | None:
    """Take an ACL out of *values*, as text; one that is no POSIX ACL stays there, as it is."""
    if name not in values:
        return None
    try:
        text = acl_to_text(values[name])
    except ValueError:
        return None
    del values[name]
    return text


@functools.lru_cache(maxsize=4096)
def _uid_of(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(os.fsdecode(name)).pw_uid
    except KeyError:
        return None


@functools.lru_cache(maxsize=4096)
def _gid_of(name: bytes) -> int | None:
    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid
    except KeyError:
        return None


class MetadataApplier:
    """Gives restored files the metadata of their entries, and counts what could not be given.

    Args:
        numeric_owner: take uid and gid as they are, not by name.
        as_root: whether owners, device nodes and setuid bits are restored at all.
        on_problem: called with a kind (``owner``, ``xattr``, ``acl``, ``mode``, ``time``), a path and a message.
    """

    def __init__(
        self,
        *,
        numeric_owner: bool = False,
        as_root: bool | None = None,
        on_problem: Callable[[str, bytes, str], None],
    ) -> None:
        self._numeric_owner = numeric_owner
        self.as_root = os.geteuid() == 0 if as_root is None else as_root
        self._on_problem = on_problem

    def owner_of(self, entry: Entry) -> tuple[int, int]:
        """The uid and gid that *entry* gets on this machine: by name where the name is known here."""
        uid, gid = entry.uid, entry.gid
        if not self._numeric_owner:
            if entry.user is not None and (known := _uid_of(entry.user)) is not None:
                uid = known
            if entry.group is not None and (known := _gid_of(entry.group)) is not None:
                gid = known
        return uid, gid

    def apply_to_fd(self, fd: int, entry: Entry) -> None:
        """Apply to an open regular file or directory.

        The order matters: a change of owner clears setuid and capabilities, writing attributes changes times,
        and a mode set after an ACL leaves it as it was captured.
        """
        if self.as_root:
            self._try("owner", entry, lambda: os.fchown(fd, *self.owner_of(entry)))
        self._apply_xattrs(entry, fd)
        self._try("mode", entry, lambda: os.fchmod(fd, self._mode_of(entry, os.fstat(fd))))
        self._try("time", entry, lambda: os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns)))

    def apply_to_name(self, dir_fd: int, name: bytes, entry: Entry) -> None:
        """Apply to a symlink, FIFO or device node *name*, without following it."""
        if self.as_root:
            self._try(
                "owner",
                entry,
                lambda: os.chown(name, *self.owner_of(entry), dir_fd=dir_fd, follow_symlinks=False),
            )
        self._apply_xattrs(entry, path_by_descriptor(dir_fd, name), follow_symlinks=False)
        if entry.type != SYMLINK:  # Linux has no mode of a symlink's own
            # Whoever swaps the name for a symlink between creating it and here must not get another file's
            # mode changed: open the node itself, without following, and change it through the descriptor.
            self._try("mode", entry, lambda: _chmod_node(dir_fd, name, entry.mode))
        self._try(
            "time",
            entry,
            lambda: os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False),
        )

    def _mode_of(self, entry: Entry, info: os.stat_result) -> int:
        """The mode to give: setuid and setgid only where the owner is the one they were granted for."""
        if (info.st_uid, info.st_gid) == self.owner_of(entry):
            return entry.mode
        return entry.mode & ~(stat.S_ISUID | stat.S_ISGID)

    def _apply_xattrs(self, entry: Entry, file: int | bytes, *, follow_symlinks: bool = True) -> None:
        """Give *file* the attributes and ACLs of *entry*, and take away others that would give away rights.

        A directory's default ACL is passed on to what is made in it, and a file that was there before may have
        anything.
        """
        wanted: list[tuple[str, bytes, bytes]] = [("xattr", name, value) for name, value in entry.xattrs]
        if entry.acl is not None:
            for name, text in ((ACL_ACCESS, entry.acl.access), (ACL_DEFAULT, entry.acl.default)):
                if text is not None:
                    self._try("acl", entry, functools.partial(_collect_acl, wanted, name, text))
        names = {name for _, name, _ in wanted}
        for present in _list_xattrs(file, follow_symlinks=follow_symlinks):
            name = os.fsencode(present)
            if name not in names and (name in _RIGHTS or name.startswith(_OWN_NAMESPACES)):
                remove = functools.partial(os.removexattr, file, name, follow_symlinks=follow_symlinks)
                self._try("acl" if name in _ACLS else "xattr", entry, remove)
        if wanted and isinstance(file, int):
            self._try("mode", entry, functools.partial(_make_writable, file))
        for kind, name, value in wanted:
            setter = functools.partial(os.setxattr, file, name, value, follow_symlinks=follow_symlinks)
            self._try(kind, entry, setter)

    def _try(self, kind: str, entry: Entry, action: Callable[[], None]) -> None:
        try:
            action()
        except (OSError, ValueError, OverflowError) as error:
            self._on_problem(kind, entry.path, str(error))


def _collect_acl(wanted: list[tuple[str, bytes, bytes]], name: bytes, text: str) -> None:
    wanted.append(("acl", name, text_to_acl(text)))


def _make_writable(fd: int) -> None:
    """Let the owner write: without that no attribute of the user's can be set. The mode is set later."""
    mode = os.fstat(fd).st_mode
    if not mode & stat.S_IWUSR:
        os.fchmod(fd, stat.S_IMODE(mode) | stat.S_IWUSR)


def _chmod_node(dir_fd: int, name: bytes, mode: int) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, "was replaced by a symlink")
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)
