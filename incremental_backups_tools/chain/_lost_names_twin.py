"""``chain/_kernel/lost_names.c`` in Python: see ``lost_names.py`` for what it is."""

from __future__ import annotations

import os
import re
import stat
from itertools import islice
from typing import Final

from incremental_backups_tools.tree.entry import ROOT

_PATH: Final = b'{"path":"'
_IS_DIRECTORY: Final = b'","type":"dir",'
# JSON has the name in another form, or none has written this.
_OTHER_FORM: Final = re.compile(rb"[\\\0]")

# Of a directory with more names all are taken for gone: they would not stay in memory.
_MAX_LISTED: Final = 10_000


class LostNames:
    """See ``lost_names.LostNames``."""

    def __init__(self, source: bytes, /) -> None:
        self._source = source
        # Of the directories above a line: what lines of names in them begin with, and the inodes of the regular files
        # that are there, by their names. None where the directory is as it was.
        self._above: list[tuple[bytes, dict[bytes, int] | None]] = []

    def of(self, block: bytes, /) -> list[bytes]:
        found = []
        for line in block.removesuffix(b"\n").split(b"\n") if block else ():
            while self._above and not line.startswith(self._above[-1][0]):
                self._above.pop()
            end = line.find(_IS_DIRECTORY)
            if end >= 0:
                self._above.append(self._directory(line, end))
            elif not self._is_there(line):
                found.append(line)
        return found

    def _is_there(self, line: bytes) -> bool:
        """Whether the file of a line is there with the inode that it had."""
        beginning, files = self._above[-1] if self._above else (b"", {})
        if files is None:
            return True
        name, quote, _ = line[len(beginning) :].partition(b'"')
        inode = files.get(name) if quote else None
        return inode is not None and _has_number(line, b',"inode":', inode)

    def _directory(self, line: bytes, end: int) -> tuple[bytes, dict[bytes, int] | None]:
        """A directory, by its line, in which its path ends at *end*."""
        if not line.startswith(_PATH) or _OTHER_FORM.search(line, 0, end):
            return line[:end], {}  # it is not asked what is there
        path = line[len(_PATH) : end]
        return line[:end] + b"/" if path != ROOT else _PATH, self._files_of(path, line[end:])

    def _files_of(self, path: bytes, fields: bytes) -> dict[bytes, int] | None:
        fs_path = self._source + b"/" + path
        try:
            info = os.lstat(fs_path)
            if _is_as_it_was(info, fields):
                return None
            if not stat.S_ISDIR(info.st_mode):
                return {}
            with os.scandir(fs_path) as names:
                first = list(islice(names, _MAX_LISTED + 1))
        except OSError:
            return {}
        if len(first) > _MAX_LISTED:
            return {}
        return {name.name: name.inode() for name in first if name.is_file(follow_symlinks=False)}


def _is_as_it_was(info: os.stat_result, fields: bytes) -> bool:
    return (
        _has_number(fields, b',"mtime_ns":', info.st_mtime_ns)
        and _has_number(fields, b',"ctime_ns":', info.st_ctime_ns)
        and _has_number(fields, b',"inode":', info.st_ino)
    )


def _has_number(line: bytes, field: bytes, number: int) -> bool:
    """Whether a line says this number of a field, which is given as ``,"name":``."""
    _, _, rest = line.partition(field)
    digits = b"%d" % number
    return rest.startswith(digits) and rest[len(digits) : len(digits) + 1] in (b",", b"}")
