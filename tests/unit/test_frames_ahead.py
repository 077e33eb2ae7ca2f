"""Frames that are decompressed before they are read: the same bytes, and errors told to whoever reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.stories import Story

from incremental_backups_tools.chain.archives import Archives
from incremental_backups_tools.chain.frames_ahead import FramesAhead
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.tree.entry import Location

COUNT, SIZE = 40, 200_000
CONTENTS = [random.Random(number).randbytes(SIZE) for number in range(COUNT)]


@dataclass
class Stored:
    """Files in the frames of one volume, several in each."""

    volume: Path
    archives: Archives
    locations: list[Location]


def archives_of(story: Story) -> Archives:
    repository = Repository.open(story.repository)
    chain = History(repository, "source").chain_to(story.points[0][0])
    return Archives(repository.store, "source", chain)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    story = Story(tmp_path)
    for number, content in enumerate(CONTENTS):
        (story.source / f"{number:02}").write_bytes(content)
    story.back_up(full=True)
    (volume,) = story.repository.glob("source/*.full.0000.tar.zst")
    archives = archives_of(story)
    lines = story.lines()
    locations = [lines[b"%02d" % number].entry.data for number in range(COUNT)]
    return Stored(volume, archives, [location for location in locations if location is not None])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_what_was_asked_for_is_there_and_is_read_no_more(stored: Stored, pool: ThreadPoolExecutor) -> None:
    ahead = FramesAhead(stored.archives, pool)
    for begin in range(0, COUNT, 10):
        part = stored.locations[begin : begin + 10]
        batches = [batch for location in part for batch in ahead.want([location])]
        assert batches
        while not ahead.are_there(batches):
            ahead.wait(batches)
        data = stored.volume.read_bytes()
        stored.volume.write_bytes(b"")
        assert [stored.archives.read(location) for location in part] == CONTENTS[begin : begin + 10]
        stored.volume.write_bytes(data)


def test_files_in_one_frame_ask_for_it_once(stored: Stored, pool: ThreadPoolExecutor) -> None:
    ahead = FramesAhead(stored.archives, pool)
    first = ahead.want([stored.locations[0]])
    assert ahead.want([stored.locations[1]]) == first
    assert ahead.want([stored.locations[0], stored.locations[1]]) == 2 * first


def test_frames_that_are_damaged_or_gone_are_told_to_whoever_reads_them(
    stored: Stored, pool: ThreadPoolExecutor
) -> None:
    data = bytearray(stored.volume.read_bytes())
    data[len(data) // 2] ^= 1
    stored.volume.write_bytes(data)
    ahead = FramesAhead(stored.archives, pool)
    for location in stored.locations:
        batches = ahead.want([location])
        ahead.wait(batches)
    damaged = 0
    for location, content in zip(stored.locations, CONTENTS, strict=True):
        try:
            assert stored.archives.read(location) == content
        except BackupError:
            damaged += 1
    assert 1 <= damaged <= 6  # one frame

    stored.volume.unlink()
    other = FramesAhead(stored.archives, pool)
    assert other.want([stored.locations[0]]) == []
    other.wait([])
    assert other.are_there([])
    with pytest.raises(BackupError):
        stored.archives.read(stored.locations[0])


def test_a_file_of_many_frames_is_not_read_ahead(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    story = Story(tmp_path)
    (story.source / "large").write_bytes(random.Random(1).randbytes(9 << 20))
    story.back_up(full=True)
    archives = archives_of(story)
    location = story.lines()[b"large"].entry.data
    assert location is not None
    assert FramesAhead(archives, pool).want([location]) == []
