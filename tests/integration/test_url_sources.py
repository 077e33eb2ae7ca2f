"""Sources at URLs: what changed is seen by keys, what cannot be read is told, nothing is taken for gone."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from support.command import run_ibt
from support.servers import BUCKET, Server, s3_client

from incremental_backups_tools import full_backup, incremental_backup, restore_backup
from incremental_backups_tools.chain.look import iter_entries
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.change_keys import CHANGE_KEYS, modification_time_ns
from incremental_backups_tools.repository.open import open_filesystem
from incremental_backups_tools.tree.exclusion import ExclusionRules


def key_by_creation(info: Mapping[str, Any]) -> str:
    return f"created:{modification_time_ns(info)}"


# memory:// tells when a file was made, and of itself that is no key.
KEYS = {**CHANGE_KEYS, "memory": key_by_creation}
LARGE = random.Random(1).randbytes(3 << 20)


class FaultyFileSystem(MemoryFileSystem):
    """memory:// of which chosen paths fail, or change while they are read."""

    protocol = "faulty"
    store: dict[str, MemoryFile] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    denied: set[str] = set()  # noqa: RUF012
    rewritten: dict[str, list[bytes]] = {}  # noqa: RUF012
    twins: list[dict[str, Any]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        if path in self.denied:
            raise PermissionError(path)
        found = super().ls(path, detail=detail, **kwargs)
        return found + [twin for twin in self.twins if twin["name"].rpartition("/")[0] == path]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        if path in self.denied:
            raise PermissionError(path)
        data = super().cat_file(path, start=start, end=end, **kwargs)
        if self.rewritten.get(path):
            put(self, path, self.rewritten[path].pop(0))
        return data


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def put(fs: Any, path: str, data: bytes, *, age_seconds: float = 3600) -> None:
    fs.pipe_file(path, data)
    if isinstance(fs, MemoryFileSystem):
        made = datetime.now(tz=UTC) - timedelta(seconds=age_seconds)
        fs.store[fs._strip_protocol(path)].created = made


@pytest.fixture
def top() -> Iterator[str]:
    """A path of its own."""
    path = f"/{uuid.uuid4().hex}"
    yield path
    for protocol in ("memory", "faulty"):
        fs = fsspec.filesystem(protocol)
        if fs.exists(path):
            fs.rm(path, recursive=True)
    FaultyFileSystem.denied.clear()
    FaultyFileSystem.rewritten.clear()
    FaultyFileSystem.twins.clear()


@pytest.fixture
def memory() -> Any:
    return fsspec.filesystem("memory")


@pytest.fixture
def faulty() -> Any:
    return fsspec.filesystem("faulty")


def back_up(top: str, repository: Path, *, protocol: str = "memory", **options: Any) -> BackupReport:
    options = {"key": "k", "change_keys": {**KEYS, "faulty": key_by_creation}, **options}
    return incremental_backup(f"{protocol}:/{top}", repository, **options)


def content(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def restored(repository: Path, tmp_path: Path) -> dict[str, bytes]:
    where = tmp_path / uuid.uuid4().hex
    restore_backup("k", where, repository=repository)
    return content(where)


def shown(report: BackupReport) -> list[str]:
    return [str(problem) for problem in report.problems]


# --- what changed ------------------------------------------------------------------------------------------


def test_changes_are_stored_and_come_back(top: str, memory: Any, repository: Path, tmp_path: Path) -> None:
    files = {"a": b"one", "a.b": b"two", "a-c/x": b"", "dir/large": LARGE, "dir/é/日本 %41*?[x]": b"three"}
    for name, data in files.items():
        put(memory, f"{top}/{name}", data)
    first = back_up(top, repository)
    assert (first.kind, first.problems) == ("full", ())
    assert first.bytes.read == sum(map(len, files.values()))
    assert restored(repository, tmp_path) == files

    again = back_up(top, repository)
    assert (again.kind, again.bytes.read, again.counts.updated) == ("incremental", 0, 0)

    files["dir/large"] = LARGE[: 1 << 20] + b"changed" + LARGE[1 << 20 :]
    put(memory, f"{top}/dir/large", files["dir/large"])
    del files["a"]
    memory.rm_file(f"{top}/a")
    files["new"] = b"new"
    put(memory, f"{top}/new", b"new")
    third = back_up(top, repository)
    counts = third.counts
    assert (counts.created, counts.updated, counts.deleted, third.problems) == (1, 1, 1, ())
    assert third.bytes.added < len(LARGE) / 10
    assert third.bytes.read == len(files["dir/large"]) + len(b"new")
    assert restored(repository, tmp_path) == files


def test_what_listings_do_not_tell_is_constant(top: str, memory: Any, repository: Path) -> None:
    put(memory, f"{top}/dir/file", b"x")
    back_up(top, repository)
    entries = {e.entry.path: e.entry for e in iter_entries("k", repository=repository)}
    assert [(e.mode, e.uid, e.gid, e.user) for e in entries.values()] == [
        (0o755, 0, 0, None),
        (0o755, 0, 0, None),
        (0o644, 0, 0, None),
    ]
    made = memory.info(f"{top}/dir/file")["created"]
    assert entries[b"dir/file"].mtime_ns == int(made.timestamp() * 10**6) * 1000


def test_a_lost_cache_makes_nothing_be_read_again(
    top: str, memory: Any, repository: Path, tmp_path: Path
) -> None:
    put(memory, f"{top}/file", b"x" * 100)
    back_up(top, repository, cache_root=tmp_path / "one")
    assert back_up(top, repository, cache_root=tmp_path / "other").bytes.read == 0


def test_without_a_key_every_file_is_read(top: str, memory: Any, repository: Path, tmp_path: Path) -> None:
    put(memory, f"{top}/file", b"x" * 100)
    back_up(top, repository, change_keys=CHANGE_KEYS)
    assert back_up(top, repository, change_keys=CHANGE_KEYS).bytes.read == 100
    # Made once, written into later: size and time of creation are as they were.
    memory.store[f"{top}/file"].getbuffer()[:1] = b"y"
    assert back_up(top, repository, change_keys=CHANGE_KEYS).counts.updated == 1
    assert restored(repository, tmp_path) == {"file": b"y" + b"x" * 99}


def test_a_file_that_is_younger_than_clocks_are_sure_is_read_again(
    top: str, memory: Any, repository: Path
) -> None:
    put(memory, f"{top}/file", b"x" * 100, age_seconds=1)
    back_up(top, repository)
    assert back_up(top, repository).bytes.read == 100


def test_keys_of_another_place_count_for_nothing(
    top: str, memory: Any, repository: Path, tmp_path: Path
) -> None:
    for directory, data in (("one", b"x" * 100), ("other", b"y" * 100)):
        put(memory, f"{top}/{directory}/file", data)
        memory.store[f"{top}/{directory}/file"].created = datetime(2020, 1, 1, tzinfo=UTC)
    back_up(f"{top}/one", repository)
    assert back_up(f"{top}/other", repository).counts.updated == 1
    assert restored(repository, tmp_path) == {"file": b"y" * 100}


def test_a_directory_and_a_url_are_not_one_tree(
    top: str, memory: Any, repository: Path, tmp_path: Path
) -> None:
    put(memory, f"{top}/file", b"x")
    key = top[1:]
    (tmp_path / key).mkdir()
    full_backup(tmp_path / key, repository)
    with pytest.raises(SourceError, match="to say which tree"):
        back_up(top, repository, key=None)


# --- what is left out --------------------------------------------------------------------------------------


def test_rules_apply(top: str, memory: Any, repository: Path, tmp_path: Path) -> None:
    names = ["keep", "drop.tmp", "dir/drop.tmp", "tagged/NOBACKUP", "tagged/x", "own/ignored", "own/kept"]
    for name in names:
        put(memory, f"{top}/{name}", b"x")
    put(memory, f"{top}/.exclude", b"*.tmp\n")
    put(memory, f"{top}/own/.gitignore", b"ignored\n")
    rules = ExclusionRules(exclude_file=".exclude", exclude_if_present=(b"NOBACKUP",), gitignore=True)
    assert back_up(top, repository, rules=rules).problems == ()
    expected = {".exclude", "keep", "tagged/NOBACKUP", "own/.gitignore", "own/kept"}
    assert set(restored(repository, tmp_path)) == expected


def test_the_exclude_file_applies_by_itself(top: str, memory: Any, repository: Path, tmp_path: Path) -> None:
    put(memory, f"{top}/.exclude", b"/drop/\n")
    put(memory, f"{top}/drop/x", b"x")
    back_up(top, repository)
    assert set(restored(repository, tmp_path)) == {".exclude"}


@pytest.mark.parametrize(("source_below", "repository_below"), [("", "/inside"), ("/same", "/same")])
def test_a_repository_in_its_own_source_is_refused(
    top: str, memory: Any, source_below: str, repository_below: str
) -> None:
    memory.makedirs(f"{top}/same")
    with pytest.raises(SourceError, match="one in the other"):
        full_backup(f"memory:/{top}{source_below}", f"memory:/{top}{repository_below}", key="k")


# --- what fails --------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_stays_as_it_was(
    top: str, faulty: Any, repository: Path, tmp_path: Path
) -> None:
    put(faulty, f"{top}/bad", b"good")
    put(faulty, f"{top}/other", b"one")
    back_up(top, repository, protocol="faulty")
    put(faulty, f"{top}/bad", b"never read")
    put(faulty, f"{top}/other", b"two")
    FaultyFileSystem.denied.add(f"{top}/bad")
    report = back_up(top, repository, protocol="faulty")
    assert len(report.problems) == 1
    assert shown(report)[0].startswith("bad: cannot read")
    assert restored(repository, tmp_path) == {"bad": b"good", "other": b"two"}
    FaultyFileSystem.denied.clear()
    back_up(top, repository, protocol="faulty")
    assert restored(repository, tmp_path) == {"bad": b"never read", "other": b"two"}


def test_a_directory_that_cannot_be_listed_is_not_empty(
    top: str, faulty: Any, repository: Path, tmp_path: Path
) -> None:
    put(faulty, f"{top}/dir/sub/file", b"x")
    put(faulty, f"{top}/dir.file", b"y")
    back_up(top, repository, protocol="faulty")
    FaultyFileSystem.denied.add(f"{top}/dir")
    report = back_up(top, repository, protocol="faulty")
    assert shown(report)[0].startswith("dir: cannot list")
    assert report.counts.deleted == 0
    assert restored(repository, tmp_path) == {"dir/sub/file": b"x", "dir.file": b"y"}


def test_a_top_that_cannot_be_listed_or_is_not_there_makes_no_backup(
    top: str, faulty: Any, repository: Path
) -> None:
    put(faulty, f"{top}/file", b"x")
    back_up(top, repository, protocol="faulty")
    FaultyFileSystem.denied.add(top)
    with pytest.raises(SourceError, match="cannot list"):
        back_up(top, repository, protocol="faulty", max_deleted=1)
    FaultyFileSystem.denied.clear()
    faulty.rm(top, recursive=True)
    with pytest.raises(SourceError, match="not there"):
        back_up(top, repository, protocol="faulty", max_deleted=1)
    faulty.makedirs(top)
    with pytest.raises(SourceError, match="max-deleted"):
        back_up(top, repository, protocol="faulty", max_deleted=0.4)


def test_a_file_is_no_source(top: str, memory: Any, repository: Path) -> None:
    put(memory, f"{top}/file", b"x")
    with pytest.raises(SourceError, match="is not a directory"):
        back_up(f"{top}/file", repository)


def test_a_file_replaced_while_it_is_read_is_read_again(
    top: str, faulty: Any, repository: Path, tmp_path: Path
) -> None:
    put(faulty, f"{top}/file", LARGE * 2)
    FaultyFileSystem.rewritten[f"{top}/file"] = [LARGE[::-1] * 2]
    assert back_up(top, repository, protocol="faulty").problems == ()
    assert restored(repository, tmp_path) == {"file": LARGE[::-1] * 2}


def test_a_file_replaced_at_every_read_is_reported_and_read_the_next_time(
    top: str, faulty: Any, repository: Path, tmp_path: Path
) -> None:
    put(faulty, f"{top}/file", b"0" * 100)
    FaultyFileSystem.rewritten[f"{top}/file"] = [b"1" * 100, b"2" * 100, b"3" * 100]
    assert shown(back_up(top, repository, protocol="faulty"))[0].startswith("file: changed while it was read")
    kept = {e.entry.path: e.entry for e in iter_entries("k", repository=repository)}[b"file"]
    assert (kept.unstable, kept.change_key) == (True, None)
    assert back_up(top, repository, protocol="faulty").problems == ()
    assert restored(repository, tmp_path) == {"file": b"3" * 100}


def test_names_that_no_tree_holds_are_reported(
    top: str, faulty: Any, repository: Path, tmp_path: Path
) -> None:
    put(faulty, f"{top}/both/below", b"x")
    put(faulty, f"{top}/file", b"y")
    FaultyFileSystem.twins += [
        {"name": f"{top}/both", "type": "file", "size": 3},
        {"name": f"{top}/..", "type": "directory", "size": 0},
        {"name": f"{top}/link", "type": "link", "size": 3},
    ]
    report = back_up(top, repository, protocol="faulty")
    assert len(report.problems) == 3
    assert "both: a file and a directory at once" in "\n".join(shown(report))
    assert restored(repository, tmp_path) == {"both/below": b"x", "file": b"y"}


def test_an_unknown_protocol_and_options_for_a_directory_are_refused(source: Path, repository: Path) -> None:
    with pytest.raises(SourceError, match="cannot open"):
        full_backup("nosuch://x/y", repository, key="k")
    with pytest.raises(ValueError, match="takes no source options"):
        full_backup(source, repository, source_options={"x": 1})


# --- real servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "large_len"),
    [("seaweedfs", 9 << 20), ("azurite", 900_000), ("sshd", 9 << 20), ("webdav", 900_000)],
)
def test_servers(
    name: str, large_len: int, request: pytest.FixtureRequest, repository: Path, tmp_path: Path
) -> None:
    server: Server = request.getfixturevalue(name)
    url = server.new_url()
    address = StoreAddress(url, server.storage_options)
    large = random.Random(2).randbytes(large_len)
    files = {"a": b"one", "a.b": b"", "dir/sub/large": large, "dir/é/日本": b"three"}
    fs, root, _ = open_filesystem(url, server.storage_options)

    def write(path: str, data: bytes) -> None:
        full = f"{root}/{path}"
        fs.makedirs(full.rpartition("/")[0], exist_ok=True)
        (tmp_path / "upload").write_bytes(data)
        fs.put_file(str(tmp_path / "upload"), full)
        if name == "sshd":
            # What is a moment old has no key where that is a time: clocks are not that sure.
            assert server.directory is not None
            old = time.time() - 3600
            os.utime(server.directory / url.rpartition("/")[2] / path, (old, old))

    try:
        for path, data in files.items():
            write(path, data)
        first = incremental_backup(address, repository, key="k")
        assert (first.problems, first.counts.files) == ((), len(files))
        assert restored(repository, tmp_path) == files
        again = incremental_backup(address, repository, key="k")
        assert (again.problems, again.counts.updated, again.counts.metadata) == ((), 0, 0)
        assert name == "webdav" or again.bytes.read == 0
        files["dir/sub/large"] = large[:1000] + b"changed" + large[1000:]
        write("dir/sub/large", files["dir/sub/large"])
        third = incremental_backup(address, repository, key="k")
        assert (third.problems, third.counts.updated) == ((), 1)
        assert third.bytes.added < large_len / 10
        assert restored(repository, tmp_path) == files
    finally:
        if name == "webdav":
            fs.client.http.close()


def test_an_object_whose_name_is_a_prefix_of_others_is_reported(
    seaweedfs: Server, repository: Path, tmp_path: Path
) -> None:
    url = seaweedfs.new_url()
    fs, root, _ = open_filesystem(url, seaweedfs.storage_options)
    for name in ("both", "both/below", "file", "marked/", "marked/below"):
        fs.pipe_file(f"{root}/{name}", b"" if name.endswith("/") else name.encode())
    report = incremental_backup(StoreAddress(url, seaweedfs.storage_options), repository, key="k")
    assert len(report.problems) == 1
    assert shown(report)[0].startswith("both: a file and a directory at once")
    expected = {name: name.encode() for name in ("both/below", "file", "marked/below")}
    assert restored(repository, tmp_path) == expected


def test_what_azure_does_not_list_is_reported(azurite: Server, repository: Path, tmp_path: Path) -> None:
    url = azurite.new_url()
    fs, root, _ = open_filesystem(url, azurite.storage_options)
    for name in ("both", "both/below", "double//slash", "file"):
        fs.pipe_file(f"{root}/{name}", name.encode())
    report = incremental_backup(StoreAddress(url, azurite.storage_options), repository, key="k")
    assert {str(problem.path) for problem in report.problems} == {"b'both'", "b'double'"}
    assert restored(repository, tmp_path) == {"file": b"file"}


def test_s3_by_the_command(seaweedfs: Server, tmp_path: Path) -> None:
    url = seaweedfs.new_url()
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    fs = s3_client(seaweedfs.storage_options)
    for number in range(4):
        fs.pipe_file(f"{BUCKET}/{prefix}/dir/{number}", b"%d" % number * 100)
    options = [word.replace("--storage-option", "--source-option") for word in seaweedfs.command_options()]
    place = ["-r", tmp_path / "repository"]
    ran = run_ibt(*place, "backup", *options, url)
    assert "full backup of 4 files" in ran.stdout
    ran = run_ibt(*place, "backup", "--json", *options, url)
    assert (ran.document["bytes"]["read"], ran.document["counts"]["updated"]) == (0, 0)
    for number in range(4):
        fs.rm_file(f"{BUCKET}/{prefix}/dir/{number}")
    run_ibt(*place, "backup", *options, url, status=1)
    run_ibt(*place, "restore", prefix, tmp_path / "restored")
    assert content(tmp_path / "restored") == {f"dir/{n}": b"%d" % n * 100 for n in range(4)}
    run_ibt(*place, "backup", "--source-option", "a=b", tmp_path, status=2)
    missing = run_ibt(*place, "backup", *options, "s3://no-such-bucket/x", status=1)
    assert missing.stderr.count("\n") == 1
