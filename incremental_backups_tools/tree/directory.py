"""A directory with exclusion: dirtools' ``Dir``, ``File`` and ``filehash`` for Python 3.

The interface is that of dirtools 0.2.0. Names go in and come out as ``str`` the way ``os.fsdecode`` makes
them, so a name that is not UTF-8 survives. Differences from dirtools, all on purpose: nothing that fails is
passed over in silence; a ``.exclude`` file cannot leak into other instances; what lies in an excluded
directory is excluded; a FIFO or a device is no file; names come sorted by their bytes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, NoReturn, TypeVar

from incremental_backups_tools.durable import atomic_write
from incremental_backups_tools.exceptions import BackupError, SourceError
from incremental_backups_tools.tree.entry import printable
from incremental_backups_tools.tree.exclusion import (
    DirScope,
    ExclusionRules,
    PatternList,
    compile_patterns,
    root_scope,
    split_pattern_lines,
)
from incremental_backups_tools.tree.walk import MAX_SMALL_FILE_LEN, OPEN_FILE

FsPath = str | bytes | os.PathLike[str]
T = TypeVar("T")
WalkStep = tuple[str, list[str], list[str]]

DEFAULT_EXCLUDES = (".git/", ".hg/", ".svn/")


def filehash(filepath: FsPath, blocksize: int = 1 << 18) -> str:
    """The SHA-256 of a file's content, in hex, read in pieces of *blocksize* bytes.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(filepath, "rb", buffering=0) as file:
        while block := file.read(blocksize):
            digest.update(block)
    return digest.hexdigest()


class File:
    """One file.

    Attributes:
        file: its name.
        path: its absolute path.
    """

    def __init__(self, path: FsPath) -> None:
        self.path = os.path.abspath(os.fsdecode(path))
        self.file = os.path.basename(self.path)

    def hash(self) -> str:
        """The SHA-256 of the content, in hex. Raises ``OSError`` as :func:`filehash` does."""
        return filehash(self.path)

    def compress_to(self, archive_path: FsPath | None = None) -> str:
        """Write a gzip-compressed tar archive that holds this file; see :meth:`Dir.compress_to`."""
        with _tar_gz(archive_path) as archive:
            archive.add(self.path, self.file)
        return archive.path


class _Listed(NamedTuple):
    """What one directory holds and is not excluded, in the order of the names' bytes."""

    path: str
    dirs: list[str]
    files: list[str]  # regular ones
    others: list[str]  # symlinks, FIFOs, devices, sockets


class Dir:
    """A directory tree without what is excluded from it.

    What the rules find in the tree (*exclude_file*, tag files, ``.gitignore``) is read anew by every walk.

    Attributes:
        path: the absolute path.
        directory: its last component.
        parent: the path of the directory that holds it.
        exclude_file: the absolute path of the exclusion file, which need not exist; None for none.
        rules: what is excluded, for those who walk the tree themselves.
    """

    def __init__(
        self,
        directory: FsPath = ".",
        exclude_file: str | None = ".exclude",
        excludes: Iterable[str] = DEFAULT_EXCLUDES,
        *,
        exclude_if_present: Iterable[FsPath] = (),
        exclude_caches: bool = False,
        gitignore: bool = False,
    ) -> None:
        """Args as in :class:`ExclusionRules`, and besides:

        Args:
            directory: an existing directory; a symlink to one is followed.
            exclude_file: a name in *directory*; or a path, absolute or from *directory*, read here and now.
            excludes: gitignore patterns; the lines of *exclude_file* follow them.

        Raises:
            SourceError: *directory* is not a directory, or *exclude_file* cannot be read.
            TypeError: *excludes* is one string.
        """
        if isinstance(excludes, (str, bytes)):
            raise TypeError(f"excludes must be a sequence of patterns, got {excludes!r}")
        self.path = os.path.abspath(os.fsdecode(directory))
        if not os.path.isdir(self.path):
            raise SourceError(f"{_shown(self.path)}: not a directory, or not there")
        self.directory = os.path.basename(self.path)
        self.parent = os.path.dirname(self.path)
        self.exclude_file = None if exclude_file is None else os.path.join(self.path, exclude_file)
        patterns = tuple(excludes)
        if exclude_file is not None and "/" in exclude_file:
            patterns += _read_pattern_file(os.path.join(self.path, exclude_file))
            exclude_file = None
        self.rules = ExclusionRules(
            patterns=patterns,
            exclude_file=exclude_file,
            exclude_if_present=tuple(os.fsencode(name) for name in exclude_if_present),
            exclude_caches=exclude_caches,
            gitignore=gitignore,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def walk(self, *, on_error: Callable[[OSError], object] | None = None) -> Iterator[WalkStep]:
        """Yield (absolute path, names of subdirectories, names of files) for each directory, top down.

        As ``os.walk``: names that the caller takes out of the list of subdirectories are not entered. Files
        are regular files; symlinks, FIFOs, devices and sockets are in neither list.

        Args:
            on_error: called for a directory that cannot be listed, which is then left out.

        Raises:
            SourceError: a directory cannot be listed, and there is no *on_error*.
        """
        for listed in self._scan(on_error or _raise_source_error):
            yield listed.path, listed.dirs, listed.files

    def iterfiles(self, pattern: str | None = None, abspath: bool = False) -> Iterator[str]:
        """The files that are not excluded, as paths relative to this directory.

        Args:
            pattern: a gitignore pattern: only what it matches. One without a ``/`` is held against names.
            abspath: absolute paths instead.
        """
        wanted = _selection(pattern)
        for root, _dirs, files in self.walk():
            yield from self._selected(root, files, wanted, is_dir=False, abspath=abspath)

    def itersubdirs(self, pattern: str | None = None, abspath: bool = False) -> Iterator[str]:
        """The subdirectories, at any depth, that are not excluded; arguments as for :meth:`iterfiles`."""
        wanted = _selection(pattern)
        for root, dirs, _files in self.walk():
            yield from self._selected(root, dirs, wanted, is_dir=True, abspath=abspath)

    def files(
        self,
        pattern: str | None = None,
        sort_key: Callable[[str], Any] = os.fsencode,
        sort_reverse: bool = False,
        abspath: bool = False,
    ) -> list[str]:
        """:meth:`iterfiles` as a sorted list, by default in the order of the paths' bytes."""
        return sorted(self.iterfiles(pattern, abspath=abspath), key=sort_key, reverse=sort_reverse)

    def subdirs(
        self,
        pattern: str | None = None,
        sort_key: Callable[[str], Any] = os.fsencode,
        sort_reverse: bool = False,
        abspath: bool = False,
    ) -> list[str]:
        """:meth:`itersubdirs` as a sorted list, by default in the order of the paths' bytes."""
        return sorted(self.itersubdirs(pattern, abspath=abspath), key=sort_key, reverse=sort_reverse)

    def get(
        self,
        pattern: str,
        sort_key: Callable[[str], Any] = os.fsencode,
        sort_reverse: bool = False,
        abspath: bool = False,
    ) -> str | None:
        """The first of :meth:`files`, or None where there is none."""
        found = self.files(pattern, sort_key=sort_key, sort_reverse=sort_reverse, abspath=abspath)
        return found[0] if found else None

    def hash(self, index_func: Callable[[str], object] = os.path.getmtime) -> str:
        """A SHA-256, in hex, that changes when a file comes, goes or has another value of *index_func*.

        Args:
            index_func: takes a file's absolute path; :func:`filehash` hashes contents instead of mtimes.

        Raises:
            SourceError: a directory or a file cannot be read.
        """
        digest = hashlib.sha256()
        for rel_path in self.files():
            value = str(index_value(index_func, os.path.join(self.path, rel_path)))
            digest.update(os.fsencode(rel_path) + b"\0" + os.fsencode(value) + b"\0")
        return digest.hexdigest()

    def size(self) -> int:
        """The sum of the files' sizes, in bytes. Raises ``SourceError`` where one cannot be read."""
        return sum(index_value(os.path.getsize, path) for path in self.iterfiles(abspath=True))

    def is_excluded(self, path: FsPath) -> bool:
        """Whether a path in this directory, or one of the directories that lead to it, is excluded.

        Args:
            path: absolute, or relative to this directory. It need not exist: a ``/`` at its end tells that it
                means a directory.

        Raises:
            ValueError: *path* lies outside.
            SourceError: what the rules need cannot be read.
        """
        given = os.fsdecode(path)
        rel_path = os.path.relpath(os.path.join(self.path, given), self.path)
        if rel_path == os.curdir:
            return False
        parts = rel_path.split("/")
        if parts[0] == os.pardir:
            raise ValueError(f"{_shown(given)} lies outside of {_shown(self.path)}")
        fs_path = self.path
        try:
            scope = self._scope(fs_path, None, self._markers_in(fs_path))
            for part in parts[:-1]:
                if scope.excludes(os.fsencode(part), True):
                    return True
                fs_path = os.path.join(fs_path, part)
                scope = self._scope(fs_path, scope, self._markers_in(fs_path))
        except OSError as error:
            _raise_source_error(error)
        fs_path = os.path.join(fs_path, parts[-1])
        is_dir = given.endswith("/") or (os.path.isdir(fs_path) and not os.path.islink(fs_path))
        return scope.excludes(os.fsencode(parts[-1]), is_dir)

    def find_projects(self, file_identifier: str = ".project") -> list[str]:
        """The subdirectories, as relative paths, that hold a file named *file_identifier*."""
        return [
            rel_path
            for rel_path in self.subdirs()
            if os.path.isfile(os.path.join(self.path, rel_path, file_identifier))
        ]

    def relpath(self, path: FsPath) -> str:
        """*path*, absolute or relative to the working directory, as a path relative to this directory."""
        return os.path.relpath(os.fsdecode(path), start=self.path)

    def compress_to(self, archive_path: FsPath | None = None) -> str:
        """Write all that is not excluded to a gzip-compressed tar archive.

        Directories (empty ones too), symlinks, hard links, FIFOs and devices are archived as such; sockets
        are left out, as a tar archive cannot hold them. The archive appears under its name when it is whole,
        and is never a member of itself.

        Args:
            archive_path: replaced if it exists; None makes a temporary file, which the caller removes.

        Returns:
            The archive's path.

        Raises:
            SourceError: a directory cannot be listed.
            BackupError: a file cannot be read, or the archive cannot be written.
        """
        with _tar_gz(archive_path) as archive:
            for path, dirs, files, others in self._scan(_raise_source_error):
                prefix = self._prefix(path)
                for name in (*dirs, *files, *others):
                    archive.add(os.path.join(path, name), prefix + name)
        return archive.path

    def _scan(self, on_error: Callable[[OSError], object]) -> Iterator[_Listed]:
        """Every directory, top down; the caller may take names out of ``dirs``."""
        # As with dirtools, a subclass with its own idea of what is excluded overrides that one method.
        overridden = type(self).is_excluded is not Dir.is_excluded
        pending: list[tuple[str, DirScope | None]] = [(self.path, None)]
        while pending:
            path, parent = pending.pop()
            try:
                entries = _list_directory(path)
                scope = self._scope(path, parent, [name for name, _ in entries])
            except OSError as error:
                on_error(error)
                continue
            listed = _Listed(path, [], [], [])
            by_kind = {stat.S_IFDIR: listed.dirs, stat.S_IFREG: listed.files}
            for raw, kind in entries:
                name = os.fsdecode(raw)
                if overridden:
                    excluded = self.is_excluded(os.path.join(path, name))
                else:
                    excluded = scope.excludes(raw, kind == stat.S_IFDIR)
                if not excluded:
                    by_kind.get(kind, listed.others).append(name)
            yield listed
            pending.extend((os.path.join(path, name), scope) for name in reversed(listed.dirs))

    def _scope(self, path: str, parent: DirScope | None, names: Collection[bytes]) -> DirScope:
        read_file = partial(_read_small_file, os.fsencode(path))
        if parent is None:
            return root_scope(self.rules, names, read_file)
        return parent.child(os.fsencode(os.path.basename(path)), names, read_file)

    def _markers_in(self, path: str) -> list[bytes]:
        """Those names in a directory that decide about others."""
        markers = set(self.rules.marker_names)
        if self.rules.exclude_file is not None:
            markers.add(os.fsencode(self.rules.exclude_file))
        directory = os.fsencode(path)
        return [name for name in markers if _exists(os.path.join(directory, name))]

    def _prefix(self, path: str) -> str:
        return "" if path == self.path else self.relpath(path) + "/"

    def _selected(
        self, root: str, names: list[str], wanted: PatternList | None, *, is_dir: bool, abspath: bool
    ) -> Iterator[str]:
        prefix = self._prefix(root)
        for name in names:
            rel_path = prefix + name
            if wanted is None or wanted.verdict(name, rel_path, is_dir):
                yield os.path.join(root, name) if abspath else rel_path


def index_value(index_func: Callable[[str], T], path: str) -> T:
    """The value of *index_func* for a file. Raises ``SourceError`` where the file cannot be read."""
    try:
        return index_func(path)
    except OSError as error:
        raise SourceError(f"{_shown(path)}: {error.strerror or error}") from error


def _raise_source_error(error: OSError) -> NoReturn:
    raise SourceError(_described(error)) from error


def _described(error: OSError) -> str:
    """What went wrong and, where the error knows a path, with what."""
    reason = error.strerror or str(error)
    return f"{_shown(error.filename)}: {reason}" if isinstance(error.filename, (str, bytes)) else reason


def _shown(path: str | bytes) -> str:
    return printable(os.fsencode(path))


def _exists(path: bytes) -> bool:
    """Whether a name is there. Unlike ``os.path.lexists``, an ``OSError`` where that cannot be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _selection(pattern: str | None) -> PatternList | None:
    return None if pattern is None else compile_patterns((pattern,))


def _list_directory(path: str) -> list[tuple[bytes, int]]:
    """Names sorted as bytes, each with ``S_IFDIR``, ``S_IFREG`` or, for all else, 0."""
    found = []
    with os.scandir(os.fsencode(path)) as entries:
        for entry in entries:
            kind = 0
            if entry.is_dir(follow_symlinks=False):
                kind = stat.S_IFDIR
            elif entry.is_file(follow_symlinks=False):
                kind = stat.S_IFREG
            found.append((entry.name, kind))
    return sorted(found)


def _read_small_file(directory: bytes, name: bytes) -> bytes | None:
    """The reader for :func:`root_scope`; a file that is there but may not be read is an ``OSError``."""
    try:
        descriptor = os.open(os.path.join(directory, name), OPEN_FILE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, a symlink, a socket
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # asked here: open() refuses a directory's descriptor
        os.close(descriptor)
        return None
    with open(descriptor, "rb") as file:
        data = file.read(MAX_SMALL_FILE_LEN + 1)
    return data if len(data) <= MAX_SMALL_FILE_LEN else None


def _read_pattern_file(path: str) -> tuple[str, ...]:
    if not os.path.isfile(path):
        return ()
    try:
        with open(path, "rb") as file:
            return split_pattern_lines(file.read())
    except OSError as error:
        _raise_source_error(error)


class _TarGz:
    """A tar archive that is being written, at *path* once it is whole."""

    def __init__(self, tar: tarfile.TarFile, path: str, pending: os.stat_result) -> None:
        self.path = path
        self._tar = tar
        self._pending = pending
        self._directory = os.path.realpath(os.path.dirname(path))
        self._name = os.path.basename(path)

    def add(self, fs_path: str, member_name: str) -> None:
        """Add what is at *fs_path*, not what lies below it. Sockets and the archive itself are left out."""
        info = os.lstat(fs_path)
        if os.path.samestat(info, self._pending) or self._is_final_place(fs_path):
            return
        if not stat.S_ISREG(info.st_mode):
            member = self._tar.gettarinfo(fs_path, member_name)
            # gettarinfo answers None for a socket, which its annotation does not say.
            if member is not None:
                self._tar.addfile(member)
            return
        with open(os.open(fs_path, OPEN_FILE), "rb") as file:
            self._tar.addfile(self._tar.gettarinfo(arcname=member_name, fileobj=file), file)

    def _is_final_place(self, fs_path: str) -> bool:
        directory, name = os.path.split(fs_path)
        return name == self._name and os.path.realpath(directory) == self._directory


@contextmanager
def _tar_gz(archive_path: FsPath | None) -> Iterator[_TarGz]:
    """An archive to be written; None makes a temporary one, which only its owner may read.

    ``OSError``, also of the block, becomes a ``BackupError``.
    """
    if archive_path is None:
        with _temporary_archive() as path, _tar_gz_at(path, mode=0o600) as archive:
            yield archive
        return
    with _tar_gz_at(os.path.abspath(os.fsdecode(archive_path)), mode=0o666) as archive:
        yield archive


@contextmanager
def _temporary_archive() -> Iterator[str]:
    """The path of a new temporary file, which is removed only if the block fails."""
    try:
        descriptor, path = tempfile.mkstemp(suffix=".tar.gz")
    except OSError as error:
        raise BackupError(f"cannot make a temporary archive: {_described(error)}") from error
    os.close(descriptor)
    with ExitStack() as undo:
        undo.callback(os.unlink, path)
        yield path
        undo.pop_all()


@contextmanager
def _tar_gz_at(path: str, *, mode: int) -> Iterator[_TarGz]:
    # GNU's format holds names as raw bytes, whatever they are.
    options: dict[str, Any] = {
        "format": tarfile.GNU_FORMAT,
        "encoding": "utf-8",
        "errors": "surrogateescape",
    }
    try:
        with (
            atomic_write(path, mode=mode) as out,
            tarfile.open(path, "w:gz", fileobj=out, **options) as tar,
        ):
            yield _TarGz(tar, path, os.fstat(out.fileno()))
    except OSError as error:
        raise BackupError(f"cannot write the archive {_shown(path)}: {_described(error)}") from error
