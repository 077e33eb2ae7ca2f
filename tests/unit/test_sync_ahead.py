"""Flushing while files are still being written: what fails then is not forgotten."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from support.trees import assert_same_tree

from incremental_backups_tools import full_backup, restore_backup
from incremental_backups_tools.tree import sync_ahead
from incremental_backups_tools.tree.sync_ahead import STEP_LEN, SyncAhead


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Flushes:
    """Stands before the real flush and counts it; one of them fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: int | None = None) -> None:
        self.threads: list[str] = []
        self.failing = failing
        self.real = sync_ahead.sync_filesystem
        monkeypatch.setattr(sync_ahead, "sync_filesystem", self)

    def __call__(self, descriptor: int) -> None:
        self.threads.append(threading.current_thread().name)
        self.real(descriptor)
        if len(self.threads) - 1 == self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_flush_begins_when_enough_was_written(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = Flushes(monkeypatch)
    ahead = SyncAhead(descriptor)
    ahead.wrote(STEP_LEN - 1)
    assert flushes.threads == []
    for count in (1, 2, 3):
        ahead.wrote(STEP_LEN)
        ahead.finish()
        assert len(flushes.threads) == count
    assert threading.current_thread().name not in flushes.threads
    ahead.abort()


def test_what_a_flush_was_told_is_told_to_everybody_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = Flushes(monkeypatch)
    ahead = SyncAhead(-1)
    ahead.wrote(STEP_LEN)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor"):
            ahead.finish()
        ahead.wrote(STEP_LEN)
    assert len(flushes.threads) == 1
    ahead.abort()


def make_source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(600):
        (source / f"{number:03}").write_bytes(blake3(b"%d" % number).digest(length=5000))
    return source


def test_a_restore_flushes_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path)
    full_backup(source, tmp_path / "repository", key="k")
    flushes = Flushes(monkeypatch)
    monkeypatch.setattr(sync_ahead, "STEP_LEN", 1 << 20)
    report = restore_backup("k", tmp_path / "restored", repository=tmp_path / "repository", threads=2)
    assert report.problems == []
    assert flushes.threads
    assert_same_tree(source, tmp_path / "restored")


def test_an_error_of_an_early_flush_is_the_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_backup(make_source(tmp_path), tmp_path / "repository", key="k")
    flushes = Flushes(monkeypatch, failing=0)
    monkeypatch.setattr(sync_ahead, "STEP_LEN", 1 << 20)
    with pytest.raises(OSError, match="Input/output error"):
        restore_backup("k", tmp_path / "restored", repository=tmp_path / "repository", threads=2)
    assert len(flushes.threads) == 1
