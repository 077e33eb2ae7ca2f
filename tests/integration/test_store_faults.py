"""Stores on systems and filesystems that fail: kills, full disks, failing calls, cut uploads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from incremental_backups_tools.exceptions import (
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryNotFoundError,
)
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.remote import FsspecStore
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.retrying import RetryPolicy

PACKAGE_PARENT = str(Path(__file__).parents[2])
CONTENT = b"0123456789" * 20_000
IMPATIENT = RetryPolicy(base_seconds=0.001)

WRITE_ONE_OBJECT = """
import sys
from incremental_backups_tools.exceptions import RepositoryError
from incremental_backups_tools.exceptions import ObjectExistsError
from incremental_backups_tools.repository.open import open_store
store = open_store(sys.argv[1])
try:
    with store.spool("k/a") as spool:
        spool.file.write(b"0123456789" * 20_000)
        spool.publish()
except RepositoryError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(3)
print("done", store.features.exclusive_create)
"""


DELETE_ONE_OBJECT = """
import sys
from incremental_backups_tools.repository.open import open_store
open_store(sys.argv[1]).delete("k/a")
"""

MAKE_THE_ROOT = """
import sys
from incremental_backups_tools.repository.open import open_store
open_store(sys.argv[1]).make_root()
"""

RACE_FOR_ONE_NAME = """
import sys, threading
from incremental_backups_tools.exceptions import ObjectExistsError
from incremental_backups_tools.repository.open import open_store
store = open_store(sys.argv[1])
barrier = threading.Barrier(4)
winners = []
def write(number):
    barrier.wait()
    try:
        store.create("k/a", b"%d" % number)
        winners.append(number)
    except ObjectExistsError:
        pass
threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(winners), store.read("k/a") == b"%d" % winners[0])
"""


def run_with_injection(
    repository: Path, *injections: str, script: str = WRITE_ONE_OBJECT
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own while strace lets system calls fail."""
    calls = ",".join(injection.partition(":")[0] for injection in injections)
    return subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}"),
            *(f"--inject={injection}" for injection in injections),
            *(sys.executable, "-c", script, str(repository)),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT, "PYTHONDONTWRITEBYTECODE": "1"},
    )


@pytest.mark.parametrize("call", ["mkdirat", "fsync", "linkat", "unlinkat"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_kill_at_any_call_leaves_no_object_or_a_whole_one(tmp_path: Path, call: str, number: int) -> None:
    (tmp_path / "repository").mkdir()
    outcome = run_with_injection(tmp_path / "repository", f"{call}:signal=SIGKILL:when={number}")
    store = open_store(tmp_path / "repository")
    if outcome.returncode == 0:
        assert number > 1, outcome.stderr  # every call of the list is made at least once
        assert store.read("k/a") == CONTENT
        return
    assert "done" not in outcome.stdout
    if store.exists("k/a"):
        assert store.read("k/a") == CONTENT
    assert {info.name for info in store.list_objects("k/")} <= {"k/a"}
    store.clean_temporaries("k")
    if not store.exists("k/a"):
        store.create("k/a", CONTENT)
    assert os.listdir(tmp_path / "repository" / "k") == ["a"]


def test_a_kill_while_writing_leaves_a_temporary_that_the_next_run_removes(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    outcome = run_with_injection(tmp_path / "repository", "linkat:signal=SIGKILL:when=1")
    assert outcome.returncode != 0
    store = open_store(tmp_path / "repository")
    assert store.list_objects("k/") == []
    assert len(store.clean_temporaries("k")) == 1
    assert os.listdir(tmp_path / "repository" / "k") == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_failed_fsync_before_publishing_is_an_error_and_leaves_no_object(
    tmp_path: Path, number: int
) -> None:
    (tmp_path / "repository").mkdir()
    outcome = run_with_injection(tmp_path / "repository", f"fsync:error=EIO:when={number}")
    assert outcome.returncode == 3, outcome.stderr
    assert re.search(r"RepositoryError: .*k/a.*Input/output error", outcome.stdout)
    store = open_store(tmp_path / "repository")
    assert not store.exists("k/a")
    assert store.clean_temporaries("k") == []


def test_a_failed_fsync_of_the_directory_is_not_reported_as_done(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    outcome = run_with_injection(tmp_path / "repository", "fsync:error=EIO:when=3")
    assert outcome.returncode == 3, outcome.stderr
    assert "Input/output error" in outcome.stdout


def test_without_hard_links_publishing_still_works_and_never_replaces(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    first = run_with_injection(tmp_path / "repository", "linkat:error=EPERM")
    assert first.stdout == "done False\n", first.stderr
    assert open_store(tmp_path / "repository").read("k/a") == CONTENT
    (tmp_path / "repository" / "k" / "a").write_bytes(b"older")
    second = run_with_injection(tmp_path / "repository", "linkat:error=EPERM")
    assert second.returncode == 3
    assert second.stdout.startswith("ObjectExistsError: cannot create k/a")
    assert (tmp_path / "repository" / "k" / "a").read_bytes() == b"older"
    assert os.listdir(tmp_path / "repository" / "k") == ["a"]


def test_without_hard_links_threads_still_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    late_rename = "renameat:delay_enter=50000"  # between the look at the name and its taking, in microseconds
    outcome = run_with_injection(
        tmp_path / "repository", "linkat:error=EPERM", late_rename, script=RACE_FOR_ONE_NAME
    )
    assert outcome.stdout == "1 True\n", outcome.stderr


def test_a_deletion_that_is_not_durable_is_an_error(tmp_path: Path) -> None:
    open_store(tmp_path).create("k/a", b"x")
    outcome = run_with_injection(tmp_path, "fsync:error=EIO", script=DELETE_ONE_OBJECT)
    assert outcome.returncode != 0
    assert "RepositoryError: cannot delete k/a" in outcome.stderr


def test_a_store_that_is_not_durably_made_is_an_error(tmp_path: Path) -> None:
    outcome = run_with_injection(tmp_path / "new" / "store", "fsync:error=EIO:when=2", script=MAKE_THE_ROOT)
    assert outcome.returncode != 0
    assert "RepositoryError: cannot make" in outcome.stderr


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = f"mount -t tmpfs -o size=100k tmpfs '{tmp_path}/disk' && \"$0\" -c \"$1\" '{tmp_path}/disk'; "
    script += f"echo \"status $?\"; find '{tmp_path}/disk' -type f"
    outcome = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            sys.executable,
            WRITE_ONE_OBJECT,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    )
    lines = outcome.stdout.splitlines()
    assert len(lines) == 2, outcome
    assert re.match(r"RepositoryError: cannot write k/a in .*: no space left there", lines[0])
    assert lines[1] == "status 3"


@pytest.mark.parametrize("length", [-1, 10])
def test_a_file_that_cannot_be_read_is_an_error_of_the_store(length: int) -> None:
    with (
        open_store("/proc/self").open("mem") as file,  # its first page is never mapped
        pytest.raises(RepositoryError, match="cannot read mem in /proc/self: Input/output error"),
    ):
        file.read(length)


class NastyFileSystem(LocalFileSystem):  # type: ignore[misc]
    """A directory behind a filesystem that fails as real ones do. Set the attributes to choose how."""

    protocol = "nasty"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.listing_error: Exception | None = None
        self.put_error: Exception | None = None
        self.cut_uploads_at: int | None = None
        self.flip_uploads = False
        self.lost_replies = 0
        self.move_error: Exception | None = None
        self.cut_reads_at: int | None = None
        self.sizes_are_unknown = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(path.removeprefix("nasty://"))  # type: ignore[no-any-return]

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        if self.listing_error is not None:
            raise self.listing_error
        entries = super().ls(path, detail=detail, **options)
        if self.sizes_are_unknown:
            entries = [{**entry, "size": None} for entry in entries]
        return entries

    def put_file(self, lpath: str, rpath: str, callback: Any = None, **options: Any) -> None:
        data = Path(lpath).read_bytes()
        if self.flip_uploads:
            data = data[:-1] + bytes([data[-1] ^ 1])
        Path(rpath).write_bytes(data[: self.cut_uploads_at])
        if self.put_error is not None:
            raise self.put_error

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        if self.move_error is not None:
            raise self.move_error
        super().mv(path1, path2, **options)
        self.lose_reply()

    def rm_file(self, path: str) -> None:
        super().rm_file(path)
        self.lose_reply()

    def lose_reply(self) -> None:
        if self.lost_replies:
            self.lost_replies -= 1
            raise ConnectionResetError(104, "reset")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data: bytes = super().cat_file(path, start=start, end=end, **options)
        return data[: self.cut_reads_at]


class LibraryError(Exception):
    """As botocore's or paramiko's: derived from nothing in common."""


@pytest.fixture
def nasty(tmp_path: Path) -> NastyFileSystem:
    (tmp_path / "repository").mkdir()
    (tmp_path / "spool").mkdir()
    return NastyFileSystem()


@pytest.fixture
def store(nasty: NastyFileSystem, tmp_path: Path) -> FsspecStore:
    options = RemoteOptions(spool_directory=f"{tmp_path}/spool", retry=IMPATIENT)
    return FsspecStore(nasty, f"{tmp_path}/repository", url="nasty://repository", options=options)


@pytest.mark.parametrize(
    "error",
    [LibraryError("slow down"), PermissionError("denied"), TimeoutError(), ConnectionResetError(104, "x")],
)
def test_a_failed_listing_is_an_error_and_never_empty(
    nasty: NastyFileSystem, store: FsspecStore, error: Exception
) -> None:
    store.create("k/a", b"x")
    nasty.listing_error = error
    for list_it in (
        lambda: store.list_objects("k/"),
        lambda: store.list_objects(),
        store.list_directories,
        lambda: store.clean_temporaries("k"),
        lambda: Repository.open(store, create=True),
    ):
        with pytest.raises(RepositoryError, match=r"cannot list .*nasty://repository") as caught:
            list_it()
        assert not isinstance(caught.value, ObjectNotFoundError | RepositoryNotFoundError)


def test_an_upload_that_was_cut_without_an_error_is_found_and_not_published(
    nasty: NastyFileSystem, store: FsspecStore, tmp_path: Path
) -> None:
    nasty.cut_uploads_at = 100
    with pytest.raises(RepositoryError, match="100 bytes after its upload, expected 200000"):
        store.create("k/a", CONTENT)
    assert os.listdir(tmp_path / "repository" / "k") == []
    assert os.listdir(tmp_path / "spool") == []


def test_an_upload_that_was_changed_on_its_way_is_found_and_not_published(
    nasty: NastyFileSystem, store: FsspecStore, tmp_path: Path
) -> None:
    nasty.flip_uploads = True
    with pytest.raises(RepositoryError, match="other bytes after its upload"):
        store.create("k/a", CONTENT)
    assert os.listdir(tmp_path / "repository" / "k") == []


def test_a_rename_whose_reply_is_lost_is_done(nasty: NastyFileSystem, store: FsspecStore) -> None:
    nasty.lost_replies = 1
    store.create("k/a", CONTENT)
    assert nasty.lost_replies == 0
    assert store.read("k/a") == CONTENT


def test_a_deletion_whose_reply_is_lost_is_done(nasty: NastyFileSystem, store: FsspecStore) -> None:
    store.create("k/a", CONTENT)
    nasty.lost_replies = 1
    store.delete("k/a")
    assert nasty.lost_replies == 0
    assert store.list_objects("k/") == []


@pytest.mark.parametrize("error", [LibraryError("reset"), OSError(28, "No space left on device")])
def test_an_upload_that_breaks_off_leaves_no_object(
    nasty: NastyFileSystem, store: FsspecStore, tmp_path: Path, error: Exception
) -> None:
    nasty.cut_uploads_at = 100
    nasty.put_error = error
    with pytest.raises(
        RepositoryError, match=r"cannot create k/a in nasty://repository: (LibraryError|no space)"
    ):
        store.create("k/a", CONTENT)
    assert not store.exists("k/a")
    assert os.listdir(tmp_path / "repository" / "k") == []


def test_a_rename_that_fails_leaves_no_object(
    nasty: NastyFileSystem, store: FsspecStore, tmp_path: Path
) -> None:
    nasty.move_error = LibraryError("failure")
    with pytest.raises(RepositoryError, match="failure"):
        store.create("k/a", CONTENT)
    assert os.listdir(tmp_path / "repository" / "k") == []


def test_a_read_that_was_cut_without_an_error_is_an_error(nasty: NastyFileSystem, store: FsspecStore) -> None:
    store.create("k/a", CONTENT)
    nasty.cut_reads_at = 50
    with pytest.raises(Exception, match="50 bytes from offset 0, expected 200000"):
        store.read("k/a")
    with store.open("k/a") as file, pytest.raises(Exception, match="50 bytes"):
        file.read()


def test_a_size_that_is_not_told_is_an_error(nasty: NastyFileSystem, store: FsspecStore) -> None:
    store.create("k/a", b"x")
    nasty.sizes_are_unknown = True
    with pytest.raises(RepositoryError, match="does not tell the size of k/a"):
        store.list_objects("k/")


def test_a_full_temporary_directory_is_told_as_such(nasty: NastyFileSystem) -> None:
    store = FsspecStore(nasty, "/", url="nasty://", options=RemoteOptions(spool_directory="/proc/self"))
    with pytest.raises(RepositoryError, match="temporary file for k/a"):
        store.spool("k/a")


def test_spool_files_of_killed_processes_are_removed_and_those_of_living_ones_are_kept(
    store: FsspecStore, tmp_path: Path
) -> None:
    store.create("k/a", b"x")
    script = (
        "import os, sys; from incremental_backups_tools.repository.spool_files import make_spool_file; "
        "print(make_spool_file(sys.argv[1])[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "spool")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    )
    with process:
        assert process.stdout is not None
        fs_path = process.stdout.readline().strip()
        os.utime(fs_path, (1, 1))
        assert store.clean_temporaries("k") == []
        process.kill()
        process.wait()
        assert store.clean_temporaries("k") == [fs_path]
    assert os.listdir(tmp_path / "spool") == []


class ObjectStoreThatLosesReplies(MemoryFileSystem):  # type: ignore[misc]
    """Stores an upload, loses the reply, and answers its repetition with "it exists"."""

    protocol = "s3"
    cachable = False

    def __init__(self, *, stored: bytes | None, **options: Any) -> None:
        super().__init__(global_store=False, **options)
        self.stored = stored

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path)  # type: ignore[no-any-return]

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **options: Any) -> None:
        assert mode == "create"
        self.pipe_file(rpath, Path(lpath).read_bytes() if self.stored is None else self.stored)
        raise FileExistsError(rpath)


def test_a_lost_reply_to_a_put_that_succeeded_is_success() -> None:
    store = FsspecStore(ObjectStoreThatLosesReplies(stored=None), "bucket", url="s3://bucket")
    store.create("k/a", CONTENT)
    assert store.read("k/a") == CONTENT


@pytest.mark.parametrize("other", [b"", CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_another_writers_object_is_not_taken_for_ones_own(other: bytes) -> None:
    store = FsspecStore(ObjectStoreThatLosesReplies(stored=other), "bucket", url="s3://bucket")
    with pytest.raises(ObjectExistsError):
        store.create("k/a", CONTENT)
    assert store.read("k/a") == other


class ObjectStoreThatCutsUploads(MemoryFileSystem):  # type: ignore[misc]
    """Reports success for half an upload."""

    protocol = "gs"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path)  # type: ignore[no-any-return]

    def put_file(self, lpath: str, rpath: str, mode: str = "overwrite", **options: Any) -> None:
        data = Path(lpath).read_bytes()
        self.pipe_file(rpath, data[: len(data) // 2], mode=mode)


def test_an_object_that_an_object_store_cut_is_not_reported_as_stored() -> None:
    filesystem = ObjectStoreThatCutsUploads(global_store=False)
    store = FsspecStore(filesystem, "bucket", url="gs://bucket")
    with pytest.raises(RepositoryError, match="100000 bytes after its upload, expected 200000"):
        store.create("k/a", CONTENT)


class MemoryThatIsSlowToAnswer(MemoryFileSystem):  # type: ignore[misc]
    """Leaves time between looking at a name and taking it."""

    cachable = False

    def exists(self, path: str, **options: Any) -> bool:
        there: bool = super().exists(path, **options)
        time.sleep(0.02)
        return there


def test_threads_that_share_a_memory_repository_exclude_each_other() -> None:
    filesystem = MemoryThatIsSlowToAnswer(global_store=False)
    stores = [FsspecStore(filesystem, "/r", url="memory://r") for _ in range(4)]

    def write(number: int) -> bool:
        try:
            stores[number].create("k/a", b"%d" % number)
        except ObjectExistsError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(write, range(4))) == 1


def test_an_s3_server_is_not_trusted_to_enforce_exclusive_creation() -> None:
    store = FsspecStore(ObjectStoreThatLosesReplies(stored=None), "bucket", url="s3://bucket")
    assert not store.features.exclusive_create
