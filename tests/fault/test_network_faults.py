"""A real S3 server behind a network that cuts, delays, corrupts and loses."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.proxy import Action, Fault, FaultProxy, proxy_before
from support.servers import BUCKET, Server, s3_client

from incremental_backups_tools.exceptions import ObjectExistsError, RepositoryError, RepositoryNotFoundError
from incremental_backups_tools.repository.address import StoreAddress
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.remote_base import RemoteOptions
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.retrying import RetryPolicy
from incremental_backups_tools.repository.store import Store

SMALL = secrets.token_bytes(50_000)
LARGE = secrets.token_bytes(1 << 20) * 20 + b"the end"
IMPATIENT = RetryPolicy(base_seconds=0.01, attempts=4)


@pytest.fixture
def proxy(seaweedfs: Server) -> Iterator[FaultProxy]:
    with proxy_before(seaweedfs.port) as proxy:
        yield proxy


@pytest.fixture
def place(seaweedfs: Server, proxy: FaultProxy, tmp_path: Path) -> StoreAddress:
    options = {**seaweedfs.storage_options, "endpoint_url": f"http://127.0.0.1:{proxy.port}"}
    return StoreAddress(
        seaweedfs.new_url(), options, RemoteOptions(spool_directory=str(tmp_path), retry=IMPATIENT)
    )


@pytest.fixture
def store(place: StoreAddress) -> Store:
    store = open_store(place)
    store.create("k/first", b"the server answers, and its conditions are known")
    return store


def unfinished_uploads(server: Server, url: str) -> list[str]:
    """The names of the uploads below a place that were begun and neither completed nor aborted."""
    prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
    found: dict[str, Any] = s3_client(server.storage_options).call_s3("list_multipart_uploads", Bucket=BUCKET)
    return [entry["Key"] for entry in found.get("Uploads", ()) if entry["Key"].startswith(prefix)]


@pytest.mark.parametrize(
    "action",
    [Action.CUT, Action.CUT_MIDDLE, Action.LOSE_REPLY, Action.SLOW_DOWN, Action.CORRUPT, Action.DELAY],
)
def test_a_small_object_arrives_once_and_whole(store: Store, proxy: FaultProxy, action: Action) -> None:
    fault = Fault(b"PUT /", action, times=2)
    proxy.faults.append(fault)
    store.create("k/a", SMALL)
    assert fault.hits == (1 if action is Action.DELAY else 2)
    proxy.faults.clear()
    assert store.read("k/a") == SMALL
    with pytest.raises(ObjectExistsError):
        store.create("k/a", SMALL[::-1])


@pytest.mark.parametrize(
    "request_of", [b"?uploads", b"partNumber=2", b"?uploadId="], ids=["begin", "part", "complete"]
)
@pytest.mark.parametrize("action", [Action.CUT, Action.LOSE_REPLY, Action.SLOW_DOWN, Action.CUT_MIDDLE])
def test_a_large_object_arrives_once_and_whole(
    store: Store, proxy: FaultProxy, request_of: bytes, action: Action
) -> None:
    fault = Fault(request_of, action)
    proxy.faults.append(fault)
    with store.spool("k/large") as spool:
        spool.file.write(LARGE)
        spool.publish()
    assert fault.hits == 1
    assert store.read("k/large") == LARGE


def test_a_corrupted_part_is_refused_by_the_server_and_sent_again(store: Store, proxy: FaultProxy) -> None:
    fault = Fault(b"partNumber=1", Action.CORRUPT)
    proxy.faults.append(fault)
    with store.spool("k/large") as spool:
        spool.file.write(LARGE)
        spool.publish()
    assert fault.hits == 1
    assert store.read("k/large") == LARGE


def test_an_upload_that_fails_for_good_is_aborted(
    store: Store, place: StoreAddress, proxy: FaultProxy, seaweedfs: Server
) -> None:
    proxy.faults.append(Fault(b"partNumber=2", Action.CUT, times=100))
    with pytest.raises(RepositoryError, match="cannot create k/large"), store.spool("k/large") as spool:
        spool.file.write(LARGE)
        spool.publish()
    proxy.faults.clear()
    assert not store.exists("k/large")
    assert unfinished_uploads(seaweedfs, place.url) == []


def test_what_a_killed_upload_left_is_aborted_by_the_next_run(
    store: Store, place: StoreAddress, seaweedfs: Server
) -> None:
    key = f"{place.url.removeprefix(f's3://{BUCKET}/')}/k/large"
    s3_client(seaweedfs.storage_options).call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    assert unfinished_uploads(seaweedfs, place.url) == [key]
    assert store.clean_temporaries("k", min_age_seconds=3600) == []
    assert store.clean_temporaries("other") == []
    assert store.clean_temporaries("k") == ["k/large (an unfinished upload)"]
    assert unfinished_uploads(seaweedfs, place.url) == []


@pytest.mark.parametrize("action", [Action.CUT, Action.LOSE_REPLY, Action.SLOW_DOWN])
def test_reading_and_listing_go_on_after_a_fault(store: Store, proxy: FaultProxy, action: Action) -> None:
    store.create("k/a", SMALL)
    fault = Fault(b"GET /", action, times=2)
    proxy.faults.append(fault)
    assert store.read("k/a") == SMALL
    fault.times = 2
    assert [info.name for info in store.list_objects("k/")] == ["k/a", "k/first"]
    assert fault.hits == 4


def test_a_listing_that_fails_for_good_is_no_empty_repository(store: Store, proxy: FaultProxy) -> None:
    proxy.faults.append(Fault(b"GET /", Action.SLOW_DOWN, times=10_000))
    for list_it in (
        lambda: store.list_objects("k/"),
        store.list_directories,
        lambda: Repository.open(store, create=True),
    ):
        with pytest.raises(RepositoryError, match=r"SlowDown|request rate") as caught:
            list_it()
        assert not isinstance(caught.value, RepositoryNotFoundError)


def test_a_deletion_whose_reply_is_lost_is_done(store: Store, proxy: FaultProxy) -> None:
    store.create("k/a", SMALL)
    proxy.faults.append(Fault(b"DELETE /", Action.LOSE_REPLY))
    store.delete("k/a")
    assert not store.exists("k/a")


def test_what_the_server_refuses_is_told_at_once(seaweedfs: Server, tmp_path: Path) -> None:
    """One request, and no waiting: a policy that waited would take hours."""
    policy = RetryPolicy(base_seconds=3600, cap_seconds=3600)
    options = RemoteOptions(spool_directory=str(tmp_path), retry=policy)
    wrong = {**seaweedfs.storage_options, "secret": "wrong"}
    for use in (lambda store: store.list_directories(), lambda store: store.create("k/a", b"x")):
        with pytest.raises(RepositoryError, match="access is denied"):
            use(open_store(StoreAddress(seaweedfs.new_url(), wrong, options)))
    readers = {**seaweedfs.storage_options, "key": "reader-key", "secret": "reader-secret"}
    with pytest.raises(RepositoryError, match=r"cannot create k/a .*access is denied"):
        open_store(StoreAddress(seaweedfs.new_url(), readers, options)).create("k/a", b"x")
