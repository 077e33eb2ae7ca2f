"""One writer per key: locks that live in the repository.

A lock is a small object ``locks/<key>.<time>.<token>.json``. Who wants a key looks for other live locks,
writes one of its own under a name that nobody else can have, and looks again: of two who come at once, the
one who writes last sees the other. This needs no conditional write, only listings that show what was written
before them. Of two who see each other, the one whose name sorts first stays until the other is gone; nobody
takes the key while another live lock is there.

The holder writes a new lock object each minute and removes its last but one. A lock is dead when its process
is known to be gone (on the same machine), or when nobody has renewed it for five minutes. The clocks of
machines that share a repository must agree to within some minutes.

Where nothing can be deleted, a lock that is given back is followed by an object that says so.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from incremental_backups_tools.exceptions import (
    BackupError,
    LimitExceededError,
    ObjectNotFoundError,
    RepositoryError,
    RepositoryLockedError,
)
from incremental_backups_tools.repository.layout import (
    LOCKS_DIRECTORY,
    encode_backup_id,
    is_backup_id,
    parse_backup_id,
    validate_key,
)
from incremental_backups_tools.repository.processes import (
    PID_MAX,
    is_running,
    machine_identity,
    process_start,
)
from incremental_backups_tools.repository.store import Store

RENEWAL_SECONDS = 60.0
EXPIRY_SECONDS = 300.0

_POLL_SECONDS = 1.0
# How long one who sorts first waits for another newcomer to give way before it takes it for the holder.
_SETTLE_SECONDS = 2.0
_SETTLE_POLL_SECONDS = 0.1
# How long a holder lets another live lock stand before it believes that it was taken over. A newcomer's stands
# for a moment before it is withdrawn, for longer where the store is slow.
CONFIRM_SECONDS = 20.0
# How long giving back waits for a renewal that hangs in the network. The object it may still write is dead
# as soon as this process is.
_JOIN_SECONDS = 5.0

_RECORD_SIZE_MAX = 4096
_NAME = re.compile(r"(?P<key>.+)\.(?P<time>[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)\.(?P<token>[0-9a-f]{32})\.json")


class LockRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a lock object says.

    Attributes:
        host: the machine's name, for people.
        machine: what tells this boot of the machine, and its space of process numbers, from all others.
        pid: the process.
        started: when the process started, in ticks since boot; None where that is not known.
        operation: what it does, for people.
        released: the owner is done, and could not delete its lock.
    """

    host: str
    machine: str
    pid: int
    started: int | None = None
    operation: str = ""
    released: bool = False


class LockInfo(msgspec.Struct, frozen=True):
    """A lock as found in the repository: all objects of one owner.

    Attributes:
        names: oldest first.
        renewed_ns: the time of the newest, by its owner's clock.
        record: what the newest says; None where it cannot be read.
    """

    token: str
    names: tuple[str, ...]
    renewed_ns: int
    record: LockRecord | None

    def describe(self) -> str:
        """Say for people who holds it."""
        renewed = f"renewed {encode_backup_id(self.renewed_ns)}"
        if self.record is None:
            return f"an unknown process ({renewed}, {self.names[-1]})"
        operation = f"{self.record.operation}, " if self.record.operation else ""
        return f"process {self.record.pid} on {self.record.host} ({operation}{renewed})"


class KeyLock:
    """The right to change what a key holds, for as long as the context lasts.

    Made by :meth:`acquire`. A thread of its own renews it; :meth:`confirm` says whether it still holds.
    """

    def __init__(self, store: Store, key: str, *, operation: str, on_notice: Callable[[str], None]) -> None:
        """Prepare a lock that is not taken yet; callers want :meth:`acquire`."""
        self._store = store
        self._key = key
        self._what = f"the lock of {key} in {store.url}"
        self._on_notice = on_notice
        self._record = LockRecord(
            host=socket.gethostname(),
            machine=machine_identity(),
            pid=os.getpid(),
            started=process_start(os.getpid()),
            operation=operation,
        )
        self._token = secrets.token_hex(16)
        self._names: list[str] = []
        self._renewed_at = 0.0
        self._lost = False
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def acquire(
        cls,
        store: Store,
        key: str,
        *,
        operation: str = "",
        wait_seconds: float = 0,
        on_notice: Callable[[str], None] | None = None,
    ) -> Self:
        """Take the lock of a key.

        Args:
            operation: what for, so that who is refused can be told.
            wait_seconds: how long to wait for another holder before giving up.
            on_notice: told in a sentence what is worth a word, such as a dead owner's lock that was taken
                over. Also called from the thread that renews.

        Raises:
            RepositoryLockedError: another process holds it.
            RepositoryError: the store failed.
        """
        validate_key(key)
        lock = cls(store, key, operation=operation, on_notice=on_notice or (lambda notice: None))
        deadline = time.monotonic() + wait_seconds
        while (holder := lock._try_acquire()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RepositoryLockedError(f"{key} in {store.url} is locked by {holder.describe()}")
            # Spread, so that those who wait together do not try together.
            time.sleep(min(left, _POLL_SECONDS * (0.5 + secrets.randbelow(1000) / 1000)))
        lock._start_renewing()
        return lock

    def confirm(self, *, settle_seconds: float = CONFIRM_SECONDS) -> None:
        """Make sure that the lock still holds; to be called before what must not happen twice.

        A process that was stopped or cut off for minutes may have been taken for dead.

        Args:
            settle_seconds: how long to wait for another live lock to go: a newcomer writes one before it sees
                that the key is taken.

        Raises:
            RepositoryLockedError: it was lost.
            RepositoryError: the store cannot tell.
        """
        first_seen: dict[str, float] = {}
        while True:
            with self._mutex:
                other = self._look_for_rival()
            if other is None:
                return
            now = time.monotonic()
            if now - first_seen.setdefault(other.token, now) >= settle_seconds:
                raise RepositoryLockedError(f"{self._what} was lost to {other.describe()}")
            time.sleep(_SETTLE_POLL_SECONDS)

    def _look_for_rival(self) -> LockInfo | None:
        """Return another live lock, if there is one; raise where this one is certainly lost."""
        locks = read_locks(self._store, self._key)
        others = [lock for lock in locks if lock.token != self._token]
        own = [name for lock in locks if lock.token == self._token for name in lock.names]
        if self._lost or self._names[-1] not in own:
            raise RepositoryLockedError(f"{self._what} was lost: another process took it over")
        # Whoever takes over deletes the dead lock; where nothing can be deleted, only its own one shows.
        if others and _boot_clock() - self._renewed_at > EXPIRY_SECONDS:
            raise RepositoryLockedError(f"{self._what} was not renewed in time and may have been lost")
        return self.find_live(others)

    def renew(self) -> None:
        """Show that the owner lives. A thread does it each minute.

        Raises:
            RepositoryLockedError: the lock was lost.
            RepositoryError: the store failed.
        """
        with self._mutex:
            # One that was taken over must not be written anew: that would hide the loss.
            if self._lost or not self._store.exists(self._names[-1]):
                self._lost = True
                raise RepositoryLockedError(f"{self._what} was lost: another process took it over")
            self._write(self._record)
            # The last but one is kept: a listing that runs just now may miss the newest, but never both.
            outdated = self._names[:-2]
            self._delete(outdated)
            del self._names[: len(outdated)]

    def release(self) -> None:
        """Give the lock back. May be called again.

        Raises:
            RepositoryError: the store would neither delete it nor take a word that it is released.
        """
        self._done.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
            self._thread = None
        self._withdraw()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try_acquire(self) -> LockInfo | None:
        """Take the lock and return None, or return who holds it."""
        holder = self.find_live(read_locks(self._store, self._key))
        if holder is not None:
            return holder
        try:
            self._write(self._record)
            holder = self._wait_for_newcomers()
            if holder is None:
                self._remove_dead()
        except BaseException:
            self._withdraw()
            raise
        if holder is not None:
            self._withdraw()
        return holder

    def _wait_for_newcomers(self) -> LockInfo | None:
        settled = time.monotonic() + _SETTLE_SECONDS
        while True:
            locks = read_locks(self._store, self._key)
            other = self.find_live(lock for lock in locks if lock.token != self._token)
            if other is None:
                return None
            if other.names[0] < self._names[0] or time.monotonic() > settled:
                return other
            time.sleep(_SETTLE_POLL_SECONDS)

    def find_live(self, locks: Iterable[LockInfo]) -> LockInfo | None:
        """The first of *locks* whose owner lives, as far as can be told from here."""
        return next((lock for lock in locks if not self._is_dead(lock)), None)

    def _is_dead(self, lock: LockInfo) -> bool:
        record = lock.record
        if record is not None and record.released:
            return True
        if record is not None and (record.host, record.machine) == (self._record.host, self._record.machine):
            return not is_running(record.pid, record.started)
        return time.time_ns() - lock.renewed_ns > EXPIRY_SECONDS * 1e9

    def _remove_dead(self) -> None:
        for lock in read_locks(self._store, self._key):
            if lock.token == self._token or not self._is_dead(lock):
                continue
            if lock.record is None or not lock.record.released:
                self._on_notice(f"{self._what} was taken over: its owner is gone, {lock.describe()}")
            try:
                self._delete(lock.names)
            except RepositoryError as error:
                self._on_notice(f"a dead lock stays where it is: {error}")

    def _start_renewing(self) -> None:
        self._thread = threading.Thread(target=self._renew_until_done, name=f"lock {self._key}", daemon=True)
        self._thread.start()

    def _renew_until_done(self) -> None:
        while not self._done.wait(RENEWAL_SECONDS):
            try:
                self.renew()
            except BackupError as error:
                # Not the end: there are minutes left to succeed, and confirm() tells when it was lost.
                self._on_notice(f"{self._what} could not be renewed: {error}")

    def _write(self, record: LockRecord) -> None:
        name = f"{LOCKS_DIRECTORY}/{self._key}.{encode_backup_id(time.time_ns())}.{self._token}.json"
        # Noted first: a put that failed may have left the object all the same.
        self._names.append(name)
        self._store.create(name, msgspec.json.encode(record))
        self._renewed_at = _boot_clock()

    def _withdraw(self) -> None:
        if not self._names:
            return
        try:
            self._delete(self._names)
        except RepositoryError:
            self._write(msgspec.structs.replace(self._record, released=True))
        self._names.clear()
        self._token = secrets.token_hex(16)

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(ObjectNotFoundError):
                self._store.delete(name)


def read_locks(store: Store, key: str) -> list[LockInfo]:
    """Read all locks of a key, dead ones too, in the order of their oldest names.

    Raises:
        RepositoryError: the store failed.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for info in store.list_objects(f"{LOCKS_DIRECTORY}/{key}."):
        match = _NAME.fullmatch(info.name.removeprefix(f"{LOCKS_DIRECTORY}/"))
        if match and match["key"] == key and is_backup_id(match["time"]):
            found.setdefault(match["token"], []).append((info.name, parse_backup_id(match["time"])))
    locks = []
    for token, objects in found.items():
        newest_name, renewed_ns = objects[-1]
        try:
            record = _read_record(store, newest_name)
        except ObjectNotFoundError:
            continue  # given back since the listing
        locks.append(LockInfo(token, tuple(name for name, _ in objects), renewed_ns, record))
    return locks


def find_live_lock(store: Store, key: str) -> LockInfo | None:
    """Return a lock of *key* that somebody holds or is about to take; None where there is none.

    Raises:
        RepositoryError: the store failed.
    """
    observer = KeyLock(store, key, operation="", on_notice=lambda notice: None)
    return observer.find_live(read_locks(store, key))


def _read_record(store: Store, name: str) -> LockRecord | None:
    try:
        record = msgspec.json.decode(store.read(name, max_size=_RECORD_SIZE_MAX), type=LockRecord)
    except (LimitExceededError, msgspec.DecodeError):
        return None  # whoever wrote it: it counts by the time in its name
    return record if 0 < record.pid <= PID_MAX else None


def _boot_clock() -> float:
    # Counts while the machine sleeps, which time.monotonic() does not do everywhere.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
