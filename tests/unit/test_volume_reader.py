"""Reading volumes by range, and volumes that are damaged or want to do harm."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from incremental_backups_tools.archive import frame_reader
from incremental_backups_tools.archive.frame_cache import FrameCache
from incremental_backups_tools.archive.seek_table import encode_seek_table
from incremental_backups_tools.archive.tar import (
    DIR,
    END_OF_ARCHIVE,
    REGULAR,
    TarMember,
    encode_member_header,
)
from incremental_backups_tools.archive.volume_reader import VolumeReader, open_volume
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.exceptions import (
    ArchiveFormatError,
    BackupError,
    IntegrityError,
    RepositoryError,
)
from incremental_backups_tools.idle import IdleWorkers

FRAME_LEN = 4096


class Ranges:
    """The bytes of a file by range, with a list of what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0 and offset + length <= len(self.data)
        self.asked.append((offset, length))
        return self.data[offset : offset + length]


def open_bytes(data: bytes, ranges: Ranges | None = None) -> VolumeReader:
    return VolumeReader((ranges or Ranges(data)).read, len(data), name="test.tar.zst")


def example() -> tuple[bytes, bytes]:
    """A volume of small and large members, and its tar."""
    chance = random.Random(1)
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    writer.add(TarMember(b"d", DIR))
    for index, size in enumerate([0, 1, 512, 700, 3000, 30_000, 5, 4096, 100, 9000, 1]):
        writer.add(TarMember(b"d/%d" % index, REGULAR, size), chance.randbytes(size))
    writer.finish()
    return file.getvalue(), zstandard.ZstdDecompressor().stream_reader(
        file.getvalue(), read_across_frames=True
    ).read()


VOLUME, TAR = example()


def volume_of(*frames: bytes, tar_lens: list[int]) -> bytes:
    """A file of these compressed frames with a table that says what *tar_lens* says."""
    return b"".join(frames) + encode_seek_table([len(frame) for frame in frames], tar_lens)


def compress(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**{"write_checksum": True, **options}).compress(data)


def test_any_range_is_what_lies_in_the_tar() -> None:
    volume = open_bytes(VOLUME)
    chance = random.Random(2)
    assert volume.tar_len == len(TAR)
    assert volume.read(0, len(TAR)) == TAR
    for _ in range(300):
        start = chance.randrange(len(TAR) + 1)
        length = chance.choice([0, 1, 100, 5000, len(TAR)])
        length = min(length, len(TAR) - start)
        assert volume.read(start, length) == TAR[start : start + length]
        pieces = list(volume.iter_range(start, length))
        assert b"".join(pieces) == TAR[start : start + length]
        assert all(0 < len(piece) <= FRAME_LEN for piece in pieces)


def test_members_are_listed_without_reading_frames_of_mere_data() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file)
    writer.add(TarMember(b"a", REGULAR, 1), b"a")
    writer.add(TarMember(b"big", REGULAR, 12 << 20), os.urandom(12 << 20))
    writer.add(TarMember(b"z", REGULAR, 1), b"z")
    writer.finish()
    ranges = Ranges(file.getvalue())
    volume = open_bytes(file.getvalue(), ranges)
    found = {member.name: volume.read(offset, 1) for member, offset in volume.members()}
    assert list(found) == [b"a", b"big", b"z"]
    assert (found[b"a"], found[b"z"]) == (b"a", b"z")
    assert sum(length for _, length in ranges.asked) < 4 << 20


def test_the_frames_of_a_range_are_all_that_is_asked_for() -> None:
    ranges = Ranges(VOLUME)
    volume = open_bytes(VOLUME, ranges)
    for start, length in [(0, 1), (5000, 3000), (0, len(TAR)), (len(TAR) - 1, 1), (512, 0)]:
        offset, compressed_len = volume.frames_for(start, length)
        only_these = Ranges(VOLUME)
        fresh = open_bytes(VOLUME, only_these)
        del only_these.asked[:]
        assert fresh.read(start, length) == TAR[start : start + length]
        assert sum(length for _, length in only_these.asked) == compressed_len
        assert all(
            offset <= begin and begin + count <= offset + compressed_len for begin, count in only_these.asked
        )


def test_neighbouring_frames_are_fetched_together_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = Ranges(VOLUME)
    open_bytes(VOLUME, ranges).read(0, len(TAR))
    assert len(ranges.asked) == 2  # the table, and everything
    monkeypatch.setattr(frame_reader, "READ_LEN", 10_000)
    del ranges.asked[:]
    open_bytes(VOLUME, ranges).read(0, len(TAR))
    assert len(ranges.asked) > 4
    assert max(length for _, length in ranges.asked[1:]) <= 10_000


def test_small_members_of_one_frame_fetch_it_once() -> None:
    ranges = Ranges(VOLUME)
    volume = open_bytes(VOLUME, ranges)
    del ranges.asked[:]
    for offset in range(0, 2048, 100):
        volume.read(offset, 50)
    assert len(ranges.asked) == 1


def test_a_frame_in_the_cache_is_not_fetched_again_within_a_range() -> None:
    ranges = Ranges(VOLUME)
    volume = open_bytes(VOLUME, ranges)
    for start in (5000, 30_000, 100, 50_000):
        volume.read(start, 10)
    assert volume.read(0, len(TAR)) == TAR


def test_a_long_table_is_fetched_whole() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=1024)
    for index in range(6000):
        writer.add(TarMember(b"%d" % index))
    writer.finish()
    volume = open_bytes(file.getvalue())
    assert volume.tar_len == 6000 * 512 + 1024
    assert sum(1 for _ in volume.members()) == 6000


def test_several_threads_may_share_a_reader() -> None:
    volume = open_bytes(VOLUME)

    def read_some(seed: int) -> bool:
        chance = random.Random(seed)
        starts = [chance.randrange(len(TAR) - 200) for _ in range(200)]
        return all(volume.read(start, 200) == TAR[start : start + 200] for start in starts)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read_some, range(8)))


@pytest.fixture
def idle() -> Iterator[IdleWorkers]:
    with ThreadPoolExecutor(3) as pool:
        yield IdleWorkers(pool, 3)


def test_what_idle_workers_read_ahead_comes_in_order(
    monkeypatch: pytest.MonkeyPatch, idle: IdleWorkers
) -> None:
    for read_len, ahead_len in [(4 << 20, 8 << 20), (6000, 3 * FRAME_LEN), (1, 0)]:
        monkeypatch.setattr(frame_reader, "READ_LEN", read_len)
        monkeypatch.setattr(frame_reader, "_AHEAD_LEN", ahead_len)
        volume = open_bytes(VOLUME)
        for start in range(0, len(TAR), 9000):
            assert b"".join(volume.iter_range(start, len(TAR) - start, idle)) == TAR[start:]
        chance = random.Random(4)
        last = volume.frame_number(len(TAR) - 1)
        indexes = [chance.randrange(last + 1) for _ in range(300)]
        for loaded, index in zip(volume.iter_frames(indexes, idle), indexes, strict=True):
            start = loaded.frame.tar_offset
            assert (loaded.index, loaded.content) == (index, TAR[start : start + loaded.frame.tar_len])


def test_no_more_is_read_ahead_than_is_bounded(monkeypatch: pytest.MonkeyPatch, idle: IdleWorkers) -> None:
    monkeypatch.setattr(frame_reader, "READ_LEN", 1)
    monkeypatch.setattr(frame_reader, "_AHEAD_LEN", 3 * FRAME_LEN)
    ranges = Ranges(VOLUME)
    volume = open_bytes(VOLUME, ranges)
    del ranges.asked[:]
    tar_lens = {frame.offset: frame.tar_len for frame in map(volume.frame_at, range(len(TAR)))}
    pieces = volume.iter_range(0, len(TAR), idle)
    assert ranges.asked == []
    read_len = 0
    for piece in pieces:
        read_len += len(piece)
        assert sum(tar_lens[offset] for offset, _ in ranges.asked) <= read_len + (3 + 1) * FRAME_LEN


def test_a_reader_that_is_left_reads_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, asked = set[int](), 0

    def read_slowly(offset: int, length: int) -> bytes:
        nonlocal asked
        asked += 1
        reading.add(offset)
        time.sleep(0.01)
        reading.remove(offset)
        return VOLUME[offset : offset + length]

    monkeypatch.setattr(frame_reader, "READ_LEN", 1)
    volume = VolumeReader(read_slowly, len(VOLUME), name="slow")
    with ThreadPoolExecutor(1) as pool:
        with closing(volume.iter_frames(range(12), IdleWorkers(pool, 1))) as frames:
            next(frames)
        assert not reading
        before = asked
        time.sleep(0.05)
        assert asked == before


@pytest.mark.parametrize("is_parallel", [False, True])
def test_damage_shows_where_it_is_and_not_before(is_parallel: bool, idle: IdleWorkers) -> None:
    volume = open_bytes(VOLUME)
    frame = volume.frame_at(30_000)
    damaged = bytearray(VOLUME)
    damaged[frame.offset + frame.length - 2] ^= 1
    found = b""
    with pytest.raises(IntegrityError, match=f"frame at byte {frame.offset}: damaged"):
        for piece in open_bytes(bytes(damaged)).iter_range(0, len(TAR), idle if is_parallel else None):
            found += piece
    assert found == TAR[: frame.tar_offset]


def test_a_volume_without_members_is_read() -> None:
    file = io.BytesIO()
    VolumeWriter(file).finish()
    volume = open_bytes(file.getvalue())
    assert list(volume.members()) == []
    assert volume.read(0, 1024) == END_OF_ARCHIVE


@pytest.mark.parametrize(("offset", "length"), [(len(TAR), 1), (0, len(TAR) + 1), (1 << 63, 1 << 63)])
def test_a_range_beyond_the_tar_is_refused_at_once(offset: int, length: int) -> None:
    volume = open_bytes(VOLUME)
    calls: list[Callable[[int, int], object]] = [volume.read, volume.iter_range, volume.frames_for]
    for call in calls:
        with pytest.raises(ArchiveFormatError, match=r"test\.tar\.zst: bytes"):
            call(offset, length)
    with pytest.raises(ValueError, match="negative"):
        volume.read(-1, 1)


def test_a_flipped_bit_anywhere_is_an_error_that_names_the_volume() -> None:
    chance = random.Random(3)
    for _ in range(400):
        damaged = bytearray(VOLUME)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            content = open_bytes(bytes(damaged)).read(0, len(TAR))
        except BackupError as error:
            assert "test.tar.zst" in str(error)
        else:
            # What no decoder reads: the unused bits of the table's descriptor.
            assert content == TAR
            assert damaged[:-9] == VOLUME[:-9]


def test_a_volume_cut_anywhere_is_refused() -> None:
    for length in [*range(0, len(VOLUME), 501), *range(len(VOLUME) - 100, len(VOLUME))]:
        with pytest.raises(BackupError, match=r"test\.tar\.zst"):
            open_bytes(VOLUME[:length])


def test_a_volume_cut_at_a_frame_is_refused_though_zstd_takes_it() -> None:
    length = zstandard.frame_content_size(VOLUME)
    assert length > 0
    with pytest.raises(ArchiveFormatError, match="seek table"):
        open_bytes(VOLUME[: open_bytes(VOLUME).frames_for(0, 1)[1]])


A_FRAME = encode_member_header(TarMember(b"a")) + END_OF_ARCHIVE


@pytest.mark.parametrize(
    ("frames", "tar_lens"),
    [
        ([compress(A_FRAME) + compress(A_FRAME)], [len(A_FRAME)]),
        ([compress(A_FRAME)[:-1]], [len(A_FRAME)]),
        ([compress(A_FRAME)], [len(A_FRAME) - 1]),
        ([compress(A_FRAME)], [len(A_FRAME) + 1]),
        ([compress(A_FRAME, write_content_size=False)], [len(A_FRAME)]),
        ([compress(A_FRAME, write_checksum=False)], [len(A_FRAME)]),
        ([b"\x50\x2a\x4d\x18" + (len(A_FRAME)).to_bytes(4, "little") + A_FRAME], [len(A_FRAME)]),
        ([compress(b"")], [1]),
        ([b"noise" * 100], [len(A_FRAME)]),
        ([b"\x28\xb5\x2f\xfd"], [len(A_FRAME)]),
    ],
    ids=[
        "two frames in one entry",
        "cut",
        "table says less",
        "table says more",
        "no content size",
        "no checksum",
        "skippable",
        "empty",
        "noise",
        "magic alone",
    ],
)
def test_a_frame_that_is_not_what_the_table_says_is_refused(frames: list[bytes], tar_lens: list[int]) -> None:
    volume = open_bytes(volume_of(*frames, tar_lens=tar_lens))
    with pytest.raises((ArchiveFormatError, IntegrityError), match=r"test\.tar\.zst: frame at byte 0"):
        volume.read(0, tar_lens[0])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = compress(bytes(256 << 20))
    assert len(bomb) < 20_000
    with pytest.raises(ArchiveFormatError, match="content of 268435456 bytes"):
        open_bytes(volume_of(bomb, tar_lens=[1 << 20])).read(0, 1)


def test_a_frame_that_declares_less_than_it_holds_stops_there() -> None:
    honest = bytearray(compress(bytes(200)))
    assert honest[5] == 200  # the content size of a short frame
    honest[5] = 100
    with pytest.raises(IntegrityError):
        open_bytes(volume_of(bytes(honest), tar_lens=[100])).read(0, 100)


def test_a_dictionary_is_refused() -> None:
    samples = [b"sample %d of some text to train with, again and again" % (i * i) for i in range(2000)]
    dictionary = zstandard.train_dictionary(2000, samples)
    frame = zstandard.ZstdCompressor(dict_data=dictionary, write_checksum=True).compress(A_FRAME)
    with pytest.raises(ArchiveFormatError, match="dictionary"):
        open_bytes(volume_of(frame, tar_lens=[len(A_FRAME)])).read(0, 1)


def test_a_store_that_gives_too_few_bytes_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="expected"):
        VolumeReader(lambda offset, length: VOLUME[offset : offset + length - 1], len(VOLUME), name="short")


def test_errors_of_the_store_come_through() -> None:
    def fail(offset: int, length: int) -> bytes:
        raise ConnectionResetError(f"at {offset} for {length}")

    with pytest.raises(ConnectionResetError):
        VolumeReader(fail, 1000, name="away")


def test_a_broken_tar_in_good_frames_is_an_error_that_names_the_volume() -> None:
    volume = open_bytes(volume_of(compress(b"x" * 1024), tar_lens=[1024]))
    with pytest.raises(ArchiveFormatError, match=r"test\.tar\.zst: member at byte 0"):
        list(volume.members())


def test_a_local_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "v.tar.zst"
    path.write_bytes(VOLUME)
    with open_volume(path) as volume:
        assert volume.read(0, len(TAR)) == TAR
        assert volume.name == str(path)
    path.write_bytes(b"")
    with pytest.raises(ArchiveFormatError, match=r"v\.tar\.zst"), open_volume(path):
        pass


def test_many_ranges_come_in_the_order_asked_for_and_each_frame_is_read_once() -> None:
    chance = random.Random(3)
    starts = [chance.randrange(len(TAR)) for _ in range(200)]
    wanted = [(start, chance.choice([0, 1, 700, min(9000, len(TAR) - start)])) for start in starts]
    wanted = [(start, min(length, len(TAR) - start)) for start, length in wanted]
    ranges = Ranges(VOLUME)
    volume = open_bytes(VOLUME, ranges)
    del ranges.asked[:]
    found = volume.read_many(wanted)
    assert [bytes(content) for content in found] == [TAR[start : start + length] for start, length in wanted]  # type: ignore[arg-type]
    assert sum(length for _, length in ranges.asked) <= len(VOLUME)
    assert volume.read_many([]) == []


def test_of_many_ranges_only_those_in_a_damaged_frame_are_lost() -> None:
    volume = open_bytes(VOLUME)
    wanted = [(start, 100) for start in range(0, len(TAR) - 100, 2000)]
    offset, length = volume.frames_for(*wanted[4])
    damaged = bytearray(VOLUME)
    damaged[offset + length - 2] ^= 1
    in_frame = [volume.frames_for(*one)[0] <= offset < sum(volume.frames_for(*one)) for one in wanted]
    found = open_bytes(bytes(damaged)).read_many(wanted)
    assert [isinstance(content, IntegrityError) for content in found] == in_frame
    for (start, _), content, is_lost in zip(wanted, found, in_frame, strict=True):
        assert is_lost or bytes(content) == TAR[start : start + 100]  # type: ignore[arg-type]


def test_what_cannot_be_read_costs_only_the_frames_it_lies_in() -> None:
    """A disk's bad place lies in the middle of what would be read in one go."""
    bad = len(VOLUME) // 3

    def read_range(offset: int, length: int) -> bytes:
        if offset <= bad < offset + length:
            raise RepositoryError("bad place")
        return VOLUME[offset : offset + length]

    volume = VolumeReader(read_range, len(VOLUME), name="bad")
    wanted = [(start, 100) for start in range(0, len(TAR) - 100, 1000)]
    spans = [volume.frames_for(*one) for one in wanted]
    lost = [offset <= bad < offset + length for offset, length in spans]
    assert [isinstance(content, RepositoryError) for content in volume.read_many(wanted)] == lost
    assert any(lost) and not all(lost)


def test_a_range_beyond_the_tar_is_an_error_in_its_place() -> None:
    first, beyond, last = open_bytes(VOLUME).read_many([(0, 5), (len(TAR) - 1, 2), (5, 5)])
    assert isinstance(beyond, ArchiveFormatError)
    assert (first, last) == (TAR[:5], TAR[5:10])


def test_kept_frames_have_one_bound_for_all_volumes() -> None:
    cache = FrameCache(3 * FRAME_LEN)
    ranges = Ranges(VOLUME)
    volumes = [VolumeReader(ranges.read, len(VOLUME), name=str(number), cache=cache) for number in range(3)]
    for volume in volumes:
        volume.read(0, 1)
    del ranges.asked[:]
    for volume in volumes:
        volume.read(1, 1)
    assert ranges.asked == []
    volumes[0].read(9000, 1)
    volumes[0].read(0, 1)
    volumes[1].read(9000, 1)
    volumes[2].read(2, 1)
    assert len(ranges.asked) >= 3
