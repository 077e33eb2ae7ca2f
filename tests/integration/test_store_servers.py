"""What only one kind of server shows: conditions that are ignored or refused, lost connections, foreign writers."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from support.proxy import FaultProxy, proxy_before
from support.servers import BUCKET, Server, s3_client

from incremental_backups_tools.exceptions import ObjectExistsError, RepositoryError
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.azure import AzureStore
from incremental_backups_tools.repository.limits import Limits, TokenBucket
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.remote_base import RemoteOptions, Upload
from incremental_backups_tools.repository.retrying import RetryPolicy
from incremental_backups_tools.repository.s3 import S3Store
from incremental_backups_tools.repository.sftp import SftpStore

IMPATIENT = RetryPolicy(base_seconds=0.05)
LARGE = secrets.token_bytes(1 << 20) * 18


def address(server: Server, tmp_path: Path, **options: Any) -> StoreAddress:
    remote = RemoteOptions(spool_directory=str(tmp_path), retry=IMPATIENT)
    return StoreAddress(server.new_url(), server.storage_options, replace(remote, **options))


# --- S3 ------------------------------------------------------------------------------------------------------


class OvertakenStore(S3Store):
    """Another writer comes between the look at a name and its taking, or right behind."""

    def __init__(self, *arguments: Any, before: bool, other: bytes, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._before = before
        self._other = other

    def _write_other(self, upload: Upload) -> None:
        self._fs.call_s3("put_object", Bucket=BUCKET, Key=self._key(upload.name), Body=self._other)

    def _take_name(self, method: str, upload: Upload, etag: str, **arguments: Any) -> None:
        if self._before:
            self._write_other(upload)
        super()._take_name(method, upload, etag, **arguments)
        if not self._before:
            self._write_other(upload)


def overtaken(server: Server, *, before: bool, other: bytes) -> OvertakenStore:
    url = server.new_url()
    fs = s3_client(server.storage_options)
    return OvertakenStore(fs, url.removeprefix("s3://"), url=url, before=before, other=other)


@pytest.mark.parametrize("mine", [b"mine!", LARGE], ids=["small", "large"])
def test_where_conditions_hold_who_comes_second_is_refused(seaweedfs: Server, mine: bytes) -> None:
    store = overtaken(seaweedfs, before=True, other=b"other")
    with pytest.raises(ObjectExistsError):
        store.create("k/a", mine)
    assert store.read("k/a") == b"other"


@pytest.mark.parametrize("other", [b"other", b"longer than mine"])
@pytest.mark.parametrize("mine", [b"mine!", LARGE], ids=["small", "large"])
def test_where_conditions_are_ignored_another_writers_bytes_are_not_taken_for_ones_own(
    rclone_s3: Server, mine: bytes, other: bytes
) -> None:
    store = overtaken(rclone_s3, before=False, other=other)
    with pytest.raises(RepositoryError, match="after its upload"):
        store.create("k/a", mine)
    assert store.read("k/a") == other


class Recorder(S3Store):
    """Notes what is asked of the server, and refuses what some servers do not know."""

    def __init__(self, *arguments: Any, refuses_conditions: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[str] = []
        self.refuses_conditions = refuses_conditions

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self.calls.append(method)
        if self.refuses_conditions and "IfNoneMatch" in arguments:
            error = OSError("a header implies functionality that is not implemented")
            error.__cause__ = NotImplementedByServer()
            raise error
        return super()._call(method, **arguments)


class NotImplementedByServer(Exception):
    """As botocore tells of 501."""

    def __init__(self) -> None:
        super().__init__()
        self.response = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}


@pytest.mark.parametrize("data", [b"small", LARGE], ids=["small", "large"])
def test_a_server_that_refuses_conditions_is_written_to_without(seaweedfs: Server, data: bytes) -> None:
    url = seaweedfs.new_url()
    fs = s3_client(seaweedfs.storage_options)
    store = Recorder(fs, url.removeprefix("s3://"), url=url, refuses_conditions=True)
    store.create("k/a", data)
    assert store.read("k/a") == data
    assert not store.features.exclusive_create
    with pytest.raises(ObjectExistsError):
        store.create("k/a", b"other")


def test_a_servers_conditions_are_looked_into_once_and_leave_nothing(seaweedfs: Server) -> None:
    url = seaweedfs.new_url()
    store = Recorder(s3_client(seaweedfs.storage_options), url.removeprefix("s3://"), url=url)
    store.create("k/a", b"first")
    assert store.calls.count("put_object") == 2
    store.create("k/b", b"second")
    assert store.calls.count("put_object") == 3
    assert store.features.exclusive_create
    assert [info.name for info in store.list_objects("k/")] == ["k/a", "k/b"]
    assert store.read("k/a") == b"first"


def test_a_prefix_that_begins_like_another_ones_is_not_that(seaweedfs: Server, tmp_path: Path) -> None:
    place = address(seaweedfs, tmp_path)
    store, other = open_store(place), open_store(replace(place, url=f"{place.url}-2"))
    store.create("k/a", b"x")
    other.create("k2/b", b"x")
    assert store.list_directories() == ["k"]
    assert store.list_objects("k") == []
    assert store.clean_temporaries("k") == []


def test_listings_of_several_pages_are_complete(seaweedfs: Server) -> None:
    class Paging(S3Store):
        def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
            most = {"MaxKeys": 3} if method == "list_objects_v2" else {}
            return super()._call(method, **arguments, **most)

    url = seaweedfs.new_url()
    store = Paging(s3_client(seaweedfs.storage_options), url.removeprefix("s3://"), url=url)
    names = [f"k/{number}" for number in range(8)]
    for name in [*names, "l/x", "m/x", "n/x", "o/x"]:
        store.create(name, b"x")
    assert [info.name for info in store.list_objects("k/")] == names
    assert store.list_directories() == ["k", "l", "m", "n", "o"]


# --- Azure ---------------------------------------------------------------------------------------------------


class BlindAzureStore(AzureStore):
    """Sees no object, as a writer in the same instant would not."""

    def exists(self, name: str) -> bool:
        return False


@pytest.mark.parametrize("data", [b"mine", LARGE], ids=["small", "large"])
def test_azure_refuses_a_taken_name_by_itself(azurite: Server, data: bytes) -> None:
    url = azurite.new_url()
    fs = fsspec.filesystem("az", skip_instance_cache=True, **azurite.storage_options)
    store = BlindAzureStore(fs, url.removeprefix("az://"), url=url)
    store.create("k/a", b"first")
    with pytest.raises(ObjectExistsError):
        store.create("k/a", data)
    assert store.read("k/a") == b"first"


# --- limits --------------------------------------------------------------------------------------------------


class Meter(TokenBucket):
    """Counts, and never makes anybody wait."""

    def __init__(self) -> None:
        super().__init__(1)
        self.total = 0

    def reserve(self, count: int) -> float:
        self.total += count
        return 0.0


@pytest.mark.parametrize("name", ["seaweedfs", "azurite", "sshd", "webdav"])
def test_every_byte_goes_past_the_limits(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: Server = request.getfixturevalue(name)
    up, down = Meter(), Meter()
    store = open_store(address(server, tmp_path, limits=Limits(upload=up, download=down)))
    store.make_root()
    store.create("k/a", LARGE)
    assert up.total == len(LARGE)
    store.create("k/b", b"small")
    assert up.total == len(LARGE) + 5
    read_back = down.total
    assert store.read("k/a") == LARGE
    with store.open("k/a") as file:
        assert file.read(1000) == LARGE[:1000]
    assert len(LARGE) <= down.total - read_back - len(LARGE[:1000]) <= len(LARGE) + (1 << 20)


# --- SSH -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh_proxy(sshd: Server) -> Iterator[FaultProxy]:
    with proxy_before(sshd.port) as proxy:
        yield proxy


def test_a_lost_connection_is_made_anew(sshd: Server, ssh_proxy: FaultProxy, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(
        Path(sshd.storage_options["known_hosts"]).read_text().replace(f":{sshd.port} ", f":{ssh_proxy.port} ")
    )
    url = sshd.new_url().replace(f":{sshd.port}/", f":{ssh_proxy.port}/")
    options = RemoteOptions(spool_directory=str(tmp_path), retry=IMPATIENT)
    store = open_store(StoreAddress(url, {**sshd.storage_options, "known_hosts": str(known)}, options))
    store.make_root()
    store.create("k/a", b"before")
    ssh_proxy.cut_all()
    assert store.read("k/a") == b"before"
    ssh_proxy.cut_all()
    store.create("k/b", LARGE)
    ssh_proxy.cut_all()
    assert [info.size for info in store.list_objects("k/")] == [6, len(LARGE)]


def test_only_the_owner_can_read_what_is_stored_over_ssh(sshd: Server, tmp_path: Path) -> None:
    place = address(sshd, tmp_path)
    store = open_store(place)
    store.make_root()
    store.create("k/a", b"x")
    assert sshd.directory is not None
    directory = sshd.directory / place.url.rpartition("/")[2] / "k"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "a").stat().st_mode) == 0o600
    assert os.listdir(directory) == ["a"]


def test_links_and_fifos_are_no_objects_over_ssh(sshd: Server, tmp_path: Path) -> None:
    place = address(sshd, tmp_path)
    store = open_store(place)
    store.make_root()
    store.create("k/a", b"x")
    assert sshd.directory is not None
    directory = sshd.directory / place.url.rpartition("/")[2] / "k"
    (directory / "link").symlink_to("/etc/passwd")
    os.mkfifo(directory / "fifo")
    assert [info.name for info in store.list_objects("k/")] == ["k/a"]
    for name in ("k/link", "k/fifo"):
        with pytest.raises(RepositoryError, match="not a regular file"):
            store.size(name)
        with pytest.raises(RepositoryError):
            store.create(name, b"x")


def test_a_taken_name_is_refused_by_the_server_itself(
    sshd: Server, plain_sshd: Server, tmp_path: Path
) -> None:
    class Blind(SftpStore):
        """Sees no object, as a writer in the same instant would not."""

        def exists(self, name: str) -> bool:
            self.looks += 1
            return self.looks > self.blind and super().exists(name)

        looks = 0
        blind = 0

    # Before a plain rename it looks once more.
    for server, looks in ((sshd, 1), (plain_sshd, 2)):
        first = open_store(address(server, tmp_path))
        assert isinstance(first, SftpStore)
        first.make_root()
        first.create("k/a", b"first")
        blind = Blind(first._connect, first._root, url=first.url)
        blind.blind = looks
        with pytest.raises(ObjectExistsError):
            blind.create("k/a", b"second")
        assert first.read("k/a") == b"first"
