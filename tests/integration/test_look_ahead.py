"""Changed files are prepared by other threads while the pass is at what comes before: nobody can tell afterwards."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.stories import Story
from support.trees import assert_same_tree

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.archive.frame_reader import RawFrame
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.index_cache import parse_resolved
from incremental_backups_tools.chain.line_search import iter_record_frames, read_frame_table
from incremental_backups_tools.chain.look import iter_entries
from incremental_backups_tools.chain.look_ahead import MAX_STEPS
from incremental_backups_tools.chain.state import encode_state_line
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN

rng = random.Random(11)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def content(size: int) -> bytes:
    return rng.randbytes(size)


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2] = b"edited"
    path.write_bytes(data)


def make_tree(source: Path) -> None:
    """Directories with files of all sizes, more of them than wait at a time."""
    for number in range(3 * MAX_STEPS):
        directory = source / f"d{number % 7}" / f"e{number % 11}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:03}").write_bytes(content(1000 + 97 * number))
    (source / "large").write_bytes(content(AHEAD_FILE_LEN + 1))
    (source / "linked").write_bytes(content(5000))
    os.link(source / "linked", source / "linked too")
    with (source / "sparse").open("wb") as file:
        file.write(content(8192))
        file.truncate(200_000)


def change_tree(source: Path) -> None:
    files = sorted(path for path in source.glob("d*/e*/*") if path.is_file())
    for number, path in enumerate(files):
        match number % 8:
            case 0 | 1 | 2 | 3:
                edit(path)
            case 4:
                path.write_bytes(content(3000))
            case 5:
                path.unlink()
            case 6:
                os.utime(path, ns=(number, number))
    (source / "d3" / "new").write_bytes(content(2500))
    (source / "d1" / "copy").write_bytes(files[7].read_bytes())
    for name in ("large", "linked", "sparse"):
        edit(source / name)


def back_up_with(top: Path, source: Path, threads: int) -> list[bytes]:
    """The lines of an increment's state that a number of threads made, without the backup's own id."""
    shutil.copytree(source.parent / "repository", top / "repository")
    shutil.copytree(source.parent / "cache", top / "cache")
    report = incremental_backup(source, top / "repository", cache_root=top / "cache", threads=threads)
    assert not report.problems
    restore_backup("source", top / "out", repository=top / "repository")
    assert_same_tree(source, top / "out")
    assert not verify(top / "repository", read_data=True).faults
    state = History(Repository.open(top / "repository"), "source").states(report.backup_date)[-1]
    backup_id = report.backup_date.encode()
    return [encode_state_line(line, kind="incremental").replace(backup_id, b"ID") for line in state.lines()]


def test_the_increment_is_the_same_whatever_number_of_threads_made_it(tmp_path: Path, story: Story) -> None:
    make_tree(story.source)
    story.back_up(full=True)
    change_tree(story.source)
    results = []
    for threads in (1, 2, 5):
        (tmp_path / str(threads)).mkdir()
        results.append(back_up_with(tmp_path / str(threads), story.source, threads))
    assert results[0] == results[1] == results[2]
    assert sum(b'"op":"~"' in line for line in results[0]) > MAX_STEPS


def when_frames_are_decompressed(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do *action* before a worker decompresses a frame with old versions, so that the pass is far ahead of that."""
    real = RawFrame.keep

    def hooked(self: RawFrame) -> None:
        action()
        real(self)

    monkeypatch.setattr(RawFrame, "keep", hooked)


def test_directories_that_are_lost_meanwhile_lose_nothing(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the walk says of them comes while a file before them is not done yet, and later ones come first."""
    for name in ("b lost", "c", "d lost", "e"):
        (story.source / name).mkdir()
        for number in range(3):
            (story.source / name / f"{number}").write_bytes(content(2000))
    (story.source / "a").write_bytes(content(100_000))
    story.back_up(full=True)
    before = {item.path for item in iter_entries("source", repository=story.repository)}
    for path in (story.source / "a", story.source / "c" / "1", story.source / "e" / "2"):
        edit(path)
    slowed: list[float] = []

    def slow_down() -> None:
        slowed.append(0.3)
        time.sleep(slowed[-1])

    when_frames_are_decompressed(monkeypatch, slow_down)
    real = os.open

    def hooked(path, flags, mode=0o777, *, dir_fd=None):  # type: ignore[no-untyped-def]
        if dir_fd is not None and path in (b"b lost", b"d lost"):
            # The first cannot be opened, the other is no directory any more when it is.
            raise (
                PermissionError(13, "Permission denied") if path == b"b lost" else NotADirectoryError(20, "")
            )
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", hooked)
    report = incremental_backup(story.source, story.repository, cache_root=story.top / "cache")
    monkeypatch.undo()

    assert slowed
    assert sorted(problem.path for problem in report.problems) == [b"b lost", b"d lost"]
    assert {item.path for item in iter_entries("source", repository=story.repository)} == before
    assert report.counts.updated == 3
    restore_backup("source", story.top / "out", repository=story.repository)
    assert_same_tree(story.source, story.top / "out")


def test_what_changes_after_it_was_read_ahead_is_seen_the_next_time(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = story.source / "a", story.source / "b"
    for path in (first, second):
        path.write_bytes(content(50_000))
    story.back_up(full=True)
    for path in (first, second):
        edit(path)
    pending = [second]

    def change() -> None:
        """While the old version of the first is decompressed, when the second has been read for sure."""
        if pending:
            path = pending.pop()
            time.sleep(0.3)
            info = path.stat()
            with path.open("r+b") as file:
                file.write(b"other bytes")
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))

    when_frames_are_decompressed(monkeypatch, change)
    report = incremental_backup(story.source, story.repository, cache_root=story.top / "cache")
    monkeypatch.undo()
    assert not pending
    assert report.counts.updated == 2
    assert not incremental_backup(story.source, story.repository, cache_root=story.top / "cache").problems
    restore_backup("source", story.top / "out", repository=story.repository)
    assert_same_tree(story.source, story.top / "out")


def test_damaged_old_bytes_are_said_in_the_order_of_names_and_the_files_stored_whole(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        (story.source / name).write_bytes(content(1 << 18))
    story.back_up(full=True)
    (volume,) = story.repository.glob("source/*.full.0000.tar.zst")
    data = bytearray(volume.read_bytes())
    for offset in range(1 << 19, len(data) - (1 << 16), 1 << 20):
        data[offset] ^= 1
    volume.write_bytes(data)
    for name in names:
        edit(story.source / name)
    report = incremental_backup(story.source, story.repository, cache_root=story.top / "cache")
    said = [record.message for record in caplog.records if "is stored whole" in record.message]
    assert said
    assert [message.split("; ")[1] for message in said] == sorted(message.split("; ")[1] for message in said)
    assert report.counts.updated == 20
    restore_backup("source", story.top / "out", repository=story.repository)
    assert_same_tree(story.source, story.top / "out")


def test_one_thread_prepares_nothing(story: Story) -> None:
    (story.source / "a").write_bytes(content(5000))
    full_backup(story.source, story.repository, cache_root=story.top / "cache", threads=1)
    edit(story.source / "a")
    before = set(threading.enumerate())
    seen: set[threading.Thread] = set()
    incremental_backup(
        story.source,
        story.repository,
        cache_root=story.top / "cache",
        threads=1,
        on_progress=lambda *_: seen.update(threading.enumerate()),
    )
    assert not any(thread.name.startswith("ibt-compress") for thread in seen - before)


def test_a_link_that_was_seen_soon_after_it_was_made_is_looked_at_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times vouch for it by when it was seen, not by when its turn came, long after."""
    (story.source / "a").write_bytes(content(50_000))
    (story.source / "b").symlink_to("before")
    os.utime(story.source / "b", ns=(1, 1), follow_symlinks=False)
    story.back_up(full=True)
    edit(story.source / "a")
    (story.source / "b").unlink()
    (story.source / "b").symlink_to("after")
    when_frames_are_decompressed(monkeypatch, lambda: time.sleep(1.5))
    incremental_backup(story.source, story.repository, cache_root=story.top / "cache")
    (index,) = (story.top / "cache").glob("*/source/index")
    with index.open("rb") as file:
        lines = b"".join(iter_record_frames(file, read_frame_table(file))).splitlines()
    (line,) = (line for line in lines if line.startswith(b'{"path":"b"'))
    assert parse_resolved(line).entry.ctime_ns is None
