"""A backup to an fsspec filesystem whose Nth operation fails, or is the last one, for every N.

After each, the repository holds what it held or the new backup whole, and the next run goes on.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.faults import VOLUME_SIZE, Fingerprint, edit_small_tree, random_bytes
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import incremental_backup, restore_backup, verify
from incremental_backups_tools.exceptions import BackupError, RepositoryNotFoundError
from incremental_backups_tools.repository.remote import FsspecStore
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.repository import Repository

KEY = "source"
ROOT = "bucket/repository"
# What a store asks of its filesystem.
LOOKS = frozenset({"ls", "info", "cat_file", "modified"})
CHANGES = frozenset({"put_file", "pipe_file", "mv", "rm_file", "makedirs"})
# The operations are dealt out to so many tests, which run side by side.
SHARES = range(2)


class CutOffError(BaseException):
    """The process ends here: nothing that it does from now on reaches the storage."""


@dataclass
class Fault:
    """Which operation fails, and how.

    Attributes:
        number: of the operation, from 1; 0 is none.
        is_done: it is done all the same, and only its answer is lost.
        is_last: so are all operations after it.
        only_changes: operations that only look are not counted: to lose their answer, or to end before or
            after them, is what another fault does already.
        count: how many operations there were.
    """

    number: int = 0
    is_done: bool = False
    is_last: bool = False
    only_changes: bool = False
    count: int = 0

    @contextmanager
    def strike(self, operation: str) -> Iterator[bool]:
        """Around an operation; yields whether to do it."""
        if self.is_last and 0 < self.number <= self.count:
            raise CutOffError
        if self.only_changes and operation not in CHANGES:
            yield True
            return
        self.count += 1
        is_hit = self.count == self.number
        yield not is_hit or self.is_done
        if is_hit:
            raise CutOffError if self.is_last else OSError(errno.EIO, "Input/output error")


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Keeps its files for itself; every operation that a store asks for goes through a :class:`Fault`."""

    cachable = False

    def __init__(self, fault: Fault) -> None:
        super().__init__(global_store=False)
        self.fault = fault
        for name in LOOKS | CHANGES:
            setattr(self, name, self._through_fault(name, getattr(self, name)))
        self._is_inside = False

    def _through_fault(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            if self._is_inside:  # one operation of fsspec's is made of others
                return operation(*arguments, **options)
            with self.fault.strike(name) as is_done:
                if not is_done:
                    return None
                self._is_inside = True
                try:
                    return operation(*arguments, **options)
                finally:
                    self._is_inside = False

        return run

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path)  # type: ignore[no-any-return]

    def fill(self, content: dict[str, bytes]) -> None:
        for path, data in content.items():
            MemoryFileSystem.pipe_file(self, path, data)

    def content(self) -> dict[str, bytes]:
        return {path: file.getvalue() for path, file in self.store.items()}


class FaultyObjectStore(FaultyFileSystem):
    """Shows an object when its upload is complete, and refuses taken names."""

    protocol = "gs"

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **options: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes(), mode=mode)


class FaultyServer(FaultyFileSystem):
    """Shows a file from its first byte on, and renames."""

    protocol = "sftp"

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        data = Path(lpath).read_bytes()
        is_cut = self.fault.count == self.fault.number
        self.pipe_file(rpath, data[: len(data) // 2] if is_cut else data)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        self.store[self._strip_protocol(path2)] = self.store.pop(self._strip_protocol(path1))


@dataclass
class Bench:
    """A source, what a storage holds of it, and what each backup in there holds."""

    kind: type[FaultyFileSystem]
    source: Path
    cache: Path
    spool: Path
    content: dict[str, bytes]
    points: dict[str, Fingerprint]
    now: Fingerprint

    def back_up(self, filesystem: FaultyFileSystem, cache: Path) -> str:
        report = incremental_backup(
            self.source, self._open(filesystem, create=True), cache_root=cache, volume_size=VOLUME_SIZE
        )
        return report.backup_date

    def assert_sound(
        self, filesystem: FaultyFileSystem, scratch: Path, *, only: str | None = None
    ) -> list[str]:
        """What was there is there, and every backup restores; return the backups' ids.

        Args:
            only: restore this one alone.
        """
        content = filesystem.content()
        assert {path: content.get(path) for path in self.content} == self.content
        try:
            repository = self._open(filesystem)
        except RepositoryNotFoundError:
            assert not self.points
            return []
        ids = [stored.name.backup_id for stored in repository.backups(KEY)]
        assert set(self.points) <= set(ids)
        assert not verify(repository, read_data=only is None).faults
        for backup_id in ids if only is None else [only]:
            restore_backup(KEY, scratch, at=backup_id, repository=repository, durable=False)
            assert_same_tree(self.points.get(backup_id, self.now), scratch)
            shutil.rmtree(scratch)
        return ids

    def _open(self, filesystem: FaultyFileSystem, *, create: bool = False) -> Repository:
        options = RemoteOptions(spool_directory=str(self.spool))
        store = FsspecStore(filesystem, ROOT, url="faulty://repository", options=options)
        return Repository.open(store, create=create)


@pytest.fixture(scope="module", params=[0, 1], ids=["first", "incremental"])
def backups(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module", params=[FaultyObjectStore, FaultyServer])
def bench(request: pytest.FixtureRequest, backups: int, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    top = tmp_path_factory.mktemp("bench")
    source = top / KEY
    (source / "sub").mkdir(parents=True)
    for number in range(3):
        (source / f"large-{number}").write_bytes(random_bytes(number, 400_000))
        (source / "sub" / f"small-{number}").write_bytes(random_bytes(number, 1000))
    (top / "spool").mkdir()
    bench = Bench(request.param, source, top / "cache", top / "spool", {}, {}, fingerprint(source))
    if backups:
        filesystem = bench.kind(Fault())
        bench.points[bench.back_up(filesystem, bench.cache)] = bench.now
        bench.content = filesystem.content()
        edit_small_tree(source)
        bench.now = fingerprint(source)
    return bench


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "fault",
    [
        Fault(),
        Fault(is_done=True, only_changes=True),
        Fault(is_last=True, only_changes=True),
        Fault(is_last=True, is_done=True, only_changes=True),
    ],
    ids=["fails", "loses-its-answer", "cut-off-before", "cut-off-after"],
)
def test_a_fault_of_any_operation(tmp_path: Path, bench: Bench, fault: Fault, share: int) -> None:
    number = share + 1
    while True:
        chosen = replace(fault, number=number)
        try:
            was_hit = check(bench, chosen, tmp_path / str(number))
        except BaseException as error:
            error.add_note(f"operation {number}: {chosen}")
            raise
        if not was_hit:
            break
        number += len(SHARES)
    assert number > 8, "hardly anything was tried"


def check(bench: Bench, fault: Fault, top: Path) -> bool:
    """Run a backup with the fault, see that nothing is lost, and return whether there was such an operation."""
    if bench.cache.exists():
        shutil.copytree(bench.cache, top / "cache")
    filesystem = bench.kind(fault)
    filesystem.fill(bench.content)
    is_reported = False
    with suppress(BackupError, CutOffError):
        bench.back_up(filesystem, top / "cache")
        is_reported = True
    was_hit = fault.count >= fault.number
    fault.number = 0
    assert list(bench.spool.iterdir()) == []
    ids = bench.assert_sound(filesystem, top / "restored")
    assert len(ids) <= len(bench.points) + 1
    assert not is_reported or len(ids) == len(bench.points) + 1, "reported as done, and not there"
    if fault.is_last:
        # Their owner is this process, which did not end.
        for path in [path for path in filesystem.store if "/locks/" in path]:
            del filesystem.store[path]
    new = bench.back_up(filesystem, top / "cache")
    assert bench.assert_sound(filesystem, top / "restored", only=new) == [*ids, new]
    assert not [path for path in filesystem.store if path.endswith(".tmp") and f"/{KEY}/" in path]
    assert not [path for path in filesystem.store if "/locks/" in path and not path.endswith(".tmp")]
    return was_hit
