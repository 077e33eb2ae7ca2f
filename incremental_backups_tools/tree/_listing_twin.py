"""``tree/_kernel/listing.c`` and ``compare.c`` in Python: see ``listing.py`` for what they are."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from incremental_backups_tools.exceptions import StateFormatError
from incremental_backups_tools.tree.entry import EntryLine, parse_line
from incremental_backups_tools.tree.sparse import GRAIN

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from incremental_backups_tools.delta.small_files import SmallFileSigning
    from incremental_backups_tools.tree.listing import FileFields
    from incremental_backups_tools.tree.listing import Reader as ReaderProtocol

_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_STAT_BLOCK_LEN: Final = 512
_MAX_LEN: Final = 1 << 20
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FS_IOC_GETFLAGS: Final = 0x80086601 if struct.calcsize("l") == 8 else 0x80046601
_KEPT_FLAGS: Final = 0x20 | 0x10 | 0x40  # append, immutable, nodump
# What a file system says that has none of these.
_NO_XATTRS: Final = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOSYS})
_NO_FLAGS: Final = _NO_XATTRS - {errno.ENODATA} | {errno.ENOTTY, errno.EINVAL}


class Reader:
    """Reads files; the twin does so when it is asked."""

    def __init__(self, signing: SmallFileSigning, /) -> None:
        self.signing = signing

    def close(self) -> None:
        pass


class Reading:
    """What was read."""

    def __init__(self, first: int) -> None:
        self.end = first
        self._files: list[FileFields] = []

    def add(self, name: bytes, info: os.stat_result, content: bytes, signature: bytes | None) -> None:
        """The name at the end is a plain file."""
        owner = stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid
        times = info.st_mtime_ns, info.st_ctime_ns
        inode = info.st_ino, info.st_dev
        digests = blake3(content).digest(), blake3(signature).digest() if signature is not None else None
        data = memoryview(content), signature, *digests
        self._files.append((self.end, name, *owner, *times, *inode, *data))

    def __len__(self) -> int:
        return len(self._files)

    @property
    def most_bytes(self) -> int:
        return sum(len(file[9]) + len(file[10] or b"") for file in self._files)

    def number(self, position: int, /) -> int:
        return self._files[position][0]

    def file(self, position: int, /) -> FileFields:
        return self._files[position]


class Listing:
    """The names of an open directory."""

    def __init__(self, fd: int, /) -> None:
        self._names: list[tuple[bytes, os.stat_result]] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    self._names.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue  # went between listing and stat: as if it had gone before
        self._own = os.fstat(fd)
        self._names.sort(key=lambda pair: pair[0])

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int, /) -> bytes:
        return self._names[number][0]

    def stat(self, number: int, /) -> os.stat_result:
        return self._names[number][1]

    def is_dir(self, number: int, /) -> bool:
        return stat.S_ISDIR(self._names[number][1].st_mode)

    def names(self) -> list[bytes]:
        return [name for name, _ in self._names]

    def own_stat(self) -> os.stat_result:
        return self._own

    def keep(self, wanted: Buffer, /) -> None:
        flags = bytes(wanted)
        if len(flags) != len(self._names):
            raise ValueError("a byte is needed for each name")
        self._names = [pair for pair, is_wanted in zip(self._names, flags, strict=True) if is_wanted]

    def compare(self, first: int, prefix: Buffer, lines: Buffer, offset: int, /) -> tuple[int, int, int, int]:
        data, path = bytes(lines), bytes(prefix)
        if first < 0 or not 0 <= offset <= len(data):
            raise ValueError("a number or an offset is out of range")
        count = files = size = 0
        for name, info in self._names[first:]:
            end = data.find(b"\n", offset)
            if stat.S_ISDIR(info.st_mode) or info.st_nlink > 1 or end < 0:
                break
            if not _agrees(data[offset:end], path + name, info):
                break
            count, offset = count + 1, end + 1
            if stat.S_ISREG(info.st_mode):
                files, size = files + 1, size + info.st_size
        return count, offset, files, size

    def read_ahead(
        self,
        first: int,
        dir_fd: int,
        max_files: int,
        max_len: int,
        max_total: int,
        reader: ReaderProtocol,
        /,
    ) -> Reading:
        if not isinstance(reader, Reader):
            raise TypeError("files are read by a Reader")
        if first < 0 or max_files < 1 or not 0 <= max_len <= _MAX_LEN or max_total < 0:
            raise ValueError("a number is out of range")
        read = Reading(first)
        planned = total = 0
        for name, info in self._names[first:]:
            if stat.S_ISDIR(info.st_mode) or planned >= max_files or total >= max_total:
                break
            if _is_plain(info, max_len):
                planned += 1
                total += info.st_size
                if (file := _read_plain(dir_fd, name, info.st_size)) is not None:
                    read.add(name, *file, reader.signing.signature(file[1]))
            read.end += 1
        return read

    def agrees(self, path: Buffer, line: Buffer, /) -> bool:
        return _agrees(bytes(line), bytes(path), self._own)


def _agrees(raw: bytes, path: bytes, info: os.stat_result) -> bool:
    if not raw.startswith(b'{"path":"%b"' % path) or any(byte < 0x20 or byte in b'"\\' for byte in path):
        return False
    try:
        line = parse_line(raw)
    except StateFormatError:
        return False
    kind = _TYPES.get(stat.S_IFMT(info.st_mode))
    return not _needs_a_look(line) and (
        line.type == kind
        and kind is not None
        and line.mode == stat.S_IMODE(info.st_mode)
        and line.uid == info.st_uid
        and line.gid == info.st_gid
        and line.size == (info.st_size if kind == "file" else None)
        and line.mtime_ns == info.st_mtime_ns
        and line.ctime_ns == info.st_ctime_ns
        and line.inode == info.st_ino
    )


def _is_plain(info: os.stat_result, max_len: int) -> bool:
    return (
        stat.S_ISREG(info.st_mode)
        and info.st_nlink == 1
        and info.st_size <= max_len
        and (info.st_size <= GRAIN or info.st_blocks * _STAT_BLOCK_LEN >= info.st_size)
    )


def _read_plain(dir_fd: int, name: bytes, length: int) -> tuple[os.stat_result, bytes] | None:
    """Stat and content of a file of *length* bytes that is plain and at rest; None of any other."""
    try:
        fd = os.open(name, _OPEN_FILE, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        before = os.fstat(fd)
        if not _is_plain(before, length) or before.st_size != length or _has_attributes(fd) or _has_flags(fd):
            return None
        content = b""
        while chunk := os.read(fd, before.st_size - len(content)):
            content += chunk
        is_same = _state(os.fstat(fd)) == _state(before) and len(content) == before.st_size
        return (before, content) if is_same else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _has_attributes(fd: int) -> bool:
    try:
        return bool(os.listxattr(fd))
    except OSError as error:
        return error.errno not in _NO_XATTRS


def _has_flags(fd: int) -> bool:
    try:
        raw = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(struct.calcsize("l")))
    except OSError as error:
        return error.errno not in _NO_FLAGS
    return bool(struct.unpack_from("i", raw)[0] & _KEPT_FLAGS)


def _state(info: os.stat_result) -> tuple[int, ...]:
    return info.st_ino, info.st_dev, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _needs_a_look(line: EntryLine) -> bool:
    return line.op is not None or line.link_of is not None or line.link_of_b64 is not None or line.unstable
