"""Reading one file of a live tree: one state of it, holes not at all, and never for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from incremental_backups_tools.exceptions import SourceError
from incremental_backups_tools.tree.reading import CHUNK_LEN, MAX_ATTEMPTS, OpenedFile, read_stable
from incremental_backups_tools.tree.sparse import GRAIN
from incremental_backups_tools.tree.walk import Found


class Taken:
    """Takes everything, and remembers what came as what."""

    def __init__(self, opened: OpenedFile) -> None:
        self.opened = opened
        self.content = b""
        self.holes = 0
        self.is_abandoned = False

    def update(self, chunk: bytes) -> None:
        assert chunk
        self.content += chunk

    def hole(self, length: int) -> None:
        assert length > 0
        self.content += bytes(length)
        self.holes += length

    def abandon(self) -> None:
        self.is_abandoned = True


@pytest.fixture
def directory(tmp_path: Path, no_open_descriptors: None):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def found(directory: int, name: str = "f") -> Found:
    raw = os.fsencode(name)
    return Found(raw, raw, directory, os.stat(raw, dir_fd=directory, follow_symlinks=False))


@pytest.mark.parametrize("size", [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN])
def test_a_file_is_read_whole(tmp_path: Path, directory: int, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    taken, info, stable = read_stable(found(directory), Taken)
    assert (taken.content, taken.holes, stable) == (content, 0, True)
    assert info.st_size == size


def test_holes_are_handed_over_unread(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 24
    with (tmp_path / "f").open("wb") as file:
        file.truncate(size)
        for offset in (5 * GRAIN, 1 << 23):
            file.seek(offset)
            file.write(b"data" * 1024)
    read = 0
    real = os.read

    def counted(fd: int, length: int) -> bytes:
        nonlocal read
        data = real(fd, length)
        read += len(data)
        return data

    monkeypatch.setattr(os, "read", counted)
    taken, _, stable = read_stable(found(directory), Taken)
    monkeypatch.undo()
    assert stable
    assert taken.content == (tmp_path / "f").read_bytes()
    assert taken.opened.extents == ((5 * GRAIN, GRAIN), (1 << 23, GRAIN), (size, 0))
    assert taken.holes == size - 2 * GRAIN
    assert read == 2 * GRAIN


def test_a_sparse_file_that_is_cut_while_it_is_read_is_read_again(tmp_path: Path, directory: int) -> None:
    path = tmp_path / "f"
    size = 1 << 20
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"data")
    attempts = []

    class Cutting(Taken):
        def hole(self, length: int) -> None:
            super().hole(length)
            if len(attempts) == 1:
                os.truncate(path, size // 4)

    def begin(opened: OpenedFile) -> Cutting:
        attempts.append(Cutting(opened))
        return attempts[-1]

    taken, info, stable = read_stable(found(directory), begin)
    assert [attempt.is_abandoned for attempt in attempts] == [True, False]
    assert stable
    assert info.st_size == len(taken.content) == size // 4


def test_an_error_of_the_consumer_is_not_the_sources(tmp_path: Path, directory: int) -> None:
    (tmp_path / "f").write_bytes(b"data")

    class Full(Taken):
        def update(self, chunk: bytes) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        read_stable(found(directory), Full)


def test_a_file_that_changes_at_every_attempt_is_taken_as_the_last_one_found_it(
    tmp_path: Path, directory: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0" * 100)
    attempts = []

    class Changing(Taken):
        def update(self, chunk: bytes) -> None:
            super().update(chunk)
            path.write_bytes(b"%d" % len(attempts) * 100)
            os.utime(path, ns=(0, len(attempts)))

    def begin(opened: OpenedFile) -> Changing:
        attempts.append(Changing(opened))
        return attempts[-1]

    taken, _, stable = read_stable(found(directory), begin)
    assert not stable
    assert len(attempts) == MAX_ATTEMPTS
    assert taken is attempts[-1]
    assert taken.content == b"2" * 100
    assert [attempt.is_abandoned for attempt in attempts] == [True, True, False]


def test_what_is_no_file_is_not_read(tmp_path: Path, directory: int) -> None:
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("d")
    for name in ("d", "fifo", "link"):
        with pytest.raises(SourceError, match="no regular file any more"):
            read_stable(found(directory, name), Taken)
    (tmp_path / "gone").touch()
    gone = found(directory, "gone")
    (tmp_path / "gone").unlink()
    with pytest.raises(SourceError, match="vanished"):
        read_stable(gone, Taken)
