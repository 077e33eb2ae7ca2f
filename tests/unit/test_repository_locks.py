"""One writer per key."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from incremental_backups_tools.exceptions import RepositoryError, RepositoryLockedError
from incremental_backups_tools.repository.layout import encode_backup_id
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.locks import KeyLock, LockRecord, read_locks
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.store import ObjectInfo, Store

PACKAGE_PARENT = str(Path(__file__).parents[2])
MINUTE_NS = 60 * 10**9

HOLD_A_LOCK = """
import sys
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.open import open_store
with KeyLock.acquire(open_store(sys.argv[1]), "k", operation="backup"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "repository") if request.param == "directory" else f"memory://{uuid.uuid4()}"
    return Repository.open(url, create=True).store


def plant_lock(store: Store, *, age_ns: int, key: str = "k", token: str = "a" * 32, **fields: object) -> str:
    """Write a lock as another machine's process would."""
    record = LockRecord(**{"host": "elsewhere", "machine": "other", "pid": 7, **fields})  # type: ignore[arg-type]
    name = f"locks/{key}.{encode_backup_id(time.time_ns() - age_ns)}.{token}.json"
    store.create(name, msgspec.json.encode(record))
    return name


def lock_names(store: Store) -> list[str]:
    return [info.name for info in store.list_objects("locks/")]


def test_a_lock_is_there_while_it_is_held_and_gone_afterwards(store: Store) -> None:
    with KeyLock.acquire(store, "k", operation="backup") as lock:
        assert len(lock_names(store)) == 1
        lock.confirm()
    assert lock_names(store) == []
    lock.release()


def test_a_held_key_is_refused_and_its_holder_named(store: Store) -> None:
    with (
        KeyLock.acquire(store, "k", operation="backup"),
        pytest.raises(
            RepositoryLockedError, match=rf"k in .* is locked by process {os.getpid()} on .*backup"
        ),
    ):
        KeyLock.acquire(store, "k")
    with KeyLock.acquire(store, "k"):
        pass
    assert lock_names(store) == []


def test_keys_are_locked_one_by_one(store: Store) -> None:
    keys = ["k", "k.k", "k.", "kk", "k.20261120T072531.123456Z." + "a" * 32]
    locks = [KeyLock.acquire(store, key) for key in keys]
    for key in keys:
        with pytest.raises(RepositoryLockedError):
            KeyLock.acquire(store, key)
    for lock in locks:
        lock.confirm()
        lock.release()
    assert lock_names(store) == []


def test_a_body_that_raises_gives_the_lock_back(store: Store) -> None:
    with pytest.raises(RuntimeError, match="stop"), KeyLock.acquire(store, "k"):
        raise RuntimeError("stop")
    assert lock_names(store) == []


def test_who_waits_gets_the_lock_when_it_is_free(store: Store) -> None:
    first = KeyLock.acquire(store, "k")
    waiting = threading.Event()

    def release_later() -> None:
        waiting.wait()
        first.release()

    thread = threading.Thread(target=release_later)
    thread.start()
    waiting.set()
    with KeyLock.acquire(store, "k", wait_seconds=60):
        assert len(lock_names(store)) == 1
    thread.join()


def test_of_many_who_come_at_once_never_two_hold_it(store: Store) -> None:
    holders = 0
    most = 0
    entered = 0
    barrier = threading.Barrier(4)
    mutex = threading.Lock()

    def work(number: int) -> None:
        nonlocal holders, most, entered
        barrier.wait()
        with KeyLock.acquire(store, "k", wait_seconds=60) as lock:
            with mutex:
                holders += 1
                entered += 1
                most = max(most, holders)
            lock.confirm()
            with mutex:
                holders -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert (most, entered) == (1, 4)
    assert lock_names(store) == []


def test_processes_exclude_each_other_and_a_killed_one_is_taken_over(tmp_path: Path) -> None:
    store = Repository.open(tmp_path / "repository", create=True).store
    command = [sys.executable, "-c", HOLD_A_LOCK, store.url]
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RepositoryLockedError, match=f"process {process.pid} .*backup"):
            KeyLock.acquire(store, "k")
        process.kill()
        process.wait()
    assert len(lock_names(store)) == 1
    notices: list[str] = []
    with KeyLock.acquire(store, "k", on_notice=notices.append):
        assert len(lock_names(store)) == 1
    assert len(notices) == 1
    assert f"taken over: its owner is gone, process {process.pid}" in notices[0]
    assert lock_names(store) == []


def test_a_zombie_and_a_reused_process_number_are_dead(store: Store) -> None:
    with KeyLock.acquire(store, "k"):
        own = read_locks(store, "k")[0].record
    assert own is not None
    assert own.started is not None
    here = {"host": own.host, "machine": own.machine}
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        plant_lock(store, age_ns=0, token="b" * 32, pid=zombie.pid, **here)
        plant_lock(store, age_ns=0, token="c" * 32, pid=os.getpid(), started=own.started + 1, **here)
        notices: list[str] = []
        with KeyLock.acquire(store, "k", on_notice=notices.append):
            assert len(notices) == 2


def test_the_same_process_number_in_another_boot_or_container_is_another_process(store: Store) -> None:
    with KeyLock.acquire(store, "k"):
        own = read_locks(store, "k")[0].record
    assert own is not None
    plant_lock(store, age_ns=MINUTE_NS, host=own.host, machine="another boot", pid=2**22 + 1)
    with pytest.raises(RepositoryLockedError):
        KeyLock.acquire(store, "k")


def test_another_machines_lock_counts_for_five_minutes(store: Store) -> None:
    plant_lock(store, age_ns=4 * MINUTE_NS)
    with pytest.raises(RepositoryLockedError, match="process 7 on elsewhere"):
        KeyLock.acquire(store, "k")
    plant_lock(store, age_ns=0, key="other")
    assert len(lock_names(store)) == 2


def test_another_machines_lock_that_nobody_renewed_is_taken_over(store: Store) -> None:
    plant_lock(store, age_ns=6 * MINUTE_NS)
    notices: list[str] = []
    with KeyLock.acquire(store, "k", on_notice=notices.append):
        assert len(lock_names(store)) == 1
    assert "its owner is gone, process 7 on elsewhere" in notices[0]


def test_the_newest_renewal_counts(store: Store) -> None:
    plant_lock(store, age_ns=60 * MINUTE_NS)
    plant_lock(store, age_ns=MINUTE_NS)
    with pytest.raises(RepositoryLockedError):
        KeyLock.acquire(store, "k")


def test_a_released_lock_that_could_not_be_deleted_does_not_count(store: Store) -> None:
    plant_lock(store, age_ns=MINUTE_NS)
    plant_lock(store, age_ns=0, released=True)
    notices: list[str] = []
    with KeyLock.acquire(store, "k", on_notice=notices.append):
        assert len(lock_names(store)) == 1
    assert notices == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff" * 100, b'{"host": 1}', b"x" * 100_000, b'{"host":"h","machine":"m","pid":0}'],
)
def test_a_lock_that_cannot_be_read_counts_by_the_time_in_its_name(store: Store, content: bytes) -> None:
    young = f"locks/k.{encode_backup_id(time.time_ns())}.{'d' * 32}.json"
    store.create(young, content)
    with pytest.raises(RepositoryLockedError, match="unknown process"):
        KeyLock.acquire(store, "k")
    store.delete(young)
    store.create(f"locks/k.{encode_backup_id(time.time_ns() - 6 * MINUTE_NS)}.{'d' * 32}.json", content)
    with KeyLock.acquire(store, "k"):
        assert len(lock_names(store)) == 1


def test_other_files_among_the_locks_are_left_alone(store: Store) -> None:
    for name in ("locks/k.json", "locks/k.readme", f"locks/k.20269920T072531.123456Z.{'a' * 32}.json"):
        store.create(name, b"")
    with KeyLock.acquire(store, "k"):
        assert len(lock_names(store)) == 4
    assert len(lock_names(store)) == 3


def test_renewing_keeps_the_last_two_objects(store: Store) -> None:
    with KeyLock.acquire(store, "k") as lock:
        first = lock_names(store)
        for _ in range(5):
            lock.renew()
            lock.confirm()
            assert len(lock_names(store)) == 2
        assert not set(first) & set(lock_names(store))
        with pytest.raises(RepositoryLockedError):
            KeyLock.acquire(store, "k")
    assert lock_names(store) == []


def test_a_lock_that_was_taken_over_is_lost_for_good(store: Store) -> None:
    lock = KeyLock.acquire(store, "k")
    for name in lock_names(store):
        store.delete(name)
    with pytest.raises(RepositoryLockedError, match="lost"):
        lock.confirm()
    with pytest.raises(RepositoryLockedError, match="lost"):
        lock.renew()
    with pytest.raises(RepositoryLockedError, match="lost"):
        lock.confirm()
    lock.release()
    assert lock_names(store) == []


def test_a_lock_beside_another_live_one_is_lost(store: Store) -> None:
    with KeyLock.acquire(store, "k") as lock:
        plant_lock(store, age_ns=0)
        with pytest.raises(RepositoryLockedError, match="lost to process 7 on elsewhere"):
            lock.confirm(settle_seconds=0.3)


class HookedStore(LocalStore):
    """Lets something happen at a listing or after a lock was written, as another process would do it."""

    def __init__(self, fs_path: Path) -> None:
        super().__init__(fs_path)
        self.listings = 0
        self.at_listing: Callable[[int], None] = lambda number: None
        self.after_create: Callable[[], None] = lambda: None

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        self.listings += 1
        self.at_listing(self.listings)
        return super().list_objects(prefix)

    def create(self, name: str, data: bytes) -> None:
        super().create(name, data)
        hook, self.after_create = self.after_create, lambda: None
        hook()


def test_a_newcomer_that_gives_way_does_not_cost_the_holder_its_lock(tmp_path: Path) -> None:
    store = HookedStore(tmp_path)
    with KeyLock.acquire(store, "k") as lock:
        newcomer = plant_lock(store, age_ns=0)
        store.listings = 0
        store.at_listing = lambda number: store.delete(newcomer) if number == 3 else None
        lock.confirm()
        assert store.listings == 3


def test_of_two_newcomers_the_first_by_name_stays_until_the_other_is_gone(tmp_path: Path) -> None:
    store = HookedStore(tmp_path)

    def meet_another() -> None:
        other = plant_lock(store, age_ns=-MINUTE_NS)
        seen = store.listings
        store.at_listing = lambda number: store.delete(other) if number == seen + 3 else None

    store.after_create = meet_another
    with KeyLock.acquire(store, "k"):
        assert len(lock_names(store)) == 1


@pytest.mark.parametrize("age_ns", [MINUTE_NS, -MINUTE_NS])
def test_a_holder_that_was_seen_too_late_keeps_its_lock_whatever_its_clock(
    tmp_path: Path, age_ns: int
) -> None:
    store = HookedStore(tmp_path)

    def show_another() -> None:
        plant_lock(store, age_ns=age_ns)

    store.after_create = show_another
    with pytest.raises(RepositoryLockedError, match="process 7 on elsewhere"):
        KeyLock.acquire(store, "k")
    assert len(lock_names(store)) == 1


class AppendOnlyStore(LocalStore):
    """Takes everything and gives nothing up."""

    def delete(self, name: str) -> None:
        raise RepositoryError(f"cannot delete {name}: access denied")


def test_append_only_storage_can_be_locked_and_unlocked(tmp_path: Path) -> None:
    store = AppendOnlyStore(tmp_path)
    notices: list[str] = []
    for _ in range(3):
        with KeyLock.acquire(store, "k", on_notice=notices.append) as lock:
            lock.confirm()
            with pytest.raises(RepositoryLockedError):
                KeyLock.acquire(store, "k")
        assert all(info.record is not None and info.record.released for info in read_locks(store, "k"))
    assert all("stays where it is" in notice for notice in notices)


class FailingStore(LocalStore):
    """Fails where it is told to."""

    failing = ""

    def create(self, name: str, data: bytes) -> None:
        super().create(name, data)
        if self.failing == "create":
            self.failing = ""
            raise RepositoryError("the reply was lost")

    def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
        if self.failing == "list":
            raise RepositoryError("no listing")
        return super().list_objects(prefix)


def test_a_store_that_fails_while_locking_leaves_no_lock(tmp_path: Path) -> None:
    store = FailingStore(tmp_path)
    store.failing = "create"
    with pytest.raises(RepositoryError, match="reply was lost"):
        KeyLock.acquire(store, "k")
    assert lock_names(store) == []


def test_a_listing_that_fails_never_means_that_the_key_is_free(tmp_path: Path) -> None:
    store = FailingStore(tmp_path)
    store.failing = "list"
    with pytest.raises(RepositoryError, match="no listing"):
        KeyLock.acquire(store, "k")
    store.failing = ""
    assert open_store(tmp_path).list_objects("locks/") == []


def test_only_keys_can_be_locked(store: Store) -> None:
    with pytest.raises(ValueError, match="key"):
        KeyLock.acquire(store, "../x")
