"""Writing volumes: the frame rule, streaming, taking back, failures."""

from __future__ import annotations

import io
import os
import queue
import random
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import pytest
import zstandard
from blake3 import blake3

from incremental_backups_tools.archive import volume_writer
from incremental_backups_tools.archive.frame_writer import HARD_FRAMES
from incremental_backups_tools.archive.seek_table import (
    FOOTER_LEN,
    MAX_FRAME_LEN,
    SeekTable,
    parse_seek_table,
    parse_table_len,
)
from incremental_backups_tools.archive.tar import (
    DIR,
    END_OF_ARCHIVE,
    REGULAR,
    TarMember,
    encode_member_header,
    padding_len,
)
from incremental_backups_tools.archive.volume_writer import VolumeInfo, VolumeWriter

FRAME_LEN = 4096


def file_member(name: bytes, data: bytes) -> TarMember:
    return TarMember(name, REGULAR, len(data))


def tar_of(*members: tuple[bytes, bytes]) -> bytes:
    """The tar that these members make, by itself."""
    return b"".join(
        encode_member_header(file_member(name, data)) + data + bytes(padding_len(len(data)))
        for name, data in members
    )


def table_of(volume: bytes) -> SeekTable:
    table_len = parse_table_len(volume[-FOOTER_LEN:])
    return parse_seek_table(volume[-table_len:], file_len=len(volume))


def frames_of(volume: bytes) -> list[bytes]:
    """The uncompressed frames, by the seek table."""
    table = table_of(volume)
    frames = [table.frame(index) for index in range(table.frame_count)]
    return [
        zstandard.ZstdDecompressor().decompress(volume[frame.offset : frame.offset + frame.length])
        for frame in frames
    ]


def add_file(writer: VolumeWriter, name: bytes, data: bytes) -> int:
    return writer.add(file_member(name, data), data)


def stream_file(writer: VolumeWriter, name: bytes, data: bytes, *, chunk_len: int = 1000) -> int:
    offset = writer.begin(file_member(name, data))
    for start in range(0, len(data), chunk_len):
        writer.write(data[start : start + chunk_len])
    writer.end()
    return offset


def test_the_tar_is_the_members_and_two_blocks_of_zeros() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file)
    assert add_file(writer, b"a", b"one") == 512
    assert writer.add(TarMember(b"d", DIR)) == 1536
    assert stream_file(writer, b"b", b"2" * 600) == 2048
    assert writer.tar_len == 2048 + 1024
    info = writer.finish()
    expected = (
        tar_of((b"a", b"one")) + encode_member_header(TarMember(b"d", DIR)) + tar_of((b"b", b"2" * 600))
    )
    assert b"".join(frames_of(file.getvalue())) == expected + END_OF_ARCHIVE
    assert info == VolumeInfo(
        size=len(file.getvalue()),
        digest=blake3(file.getvalue()).digest(),
        tar_len=len(expected) + 1024,
        member_count=3,
    )


def test_every_frame_has_its_length_and_a_checksum() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    add_file(writer, b"big", os.urandom(20_000))
    add_file(writer, b"small", b"x")
    writer.finish()
    table = table_of(file.getvalue())
    for frame in map(table.frame, range(table.frame_count)):
        header = zstandard.get_frame_parameters(file.getvalue()[frame.offset :])
        assert header.has_checksum and header.content_size == frame.tar_len


def test_a_member_that_does_not_fit_begins_a_frame() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    add_file(writer, b"a", b"a" * 1500)  # 2,048 bytes with header and padding
    add_file(writer, b"b", b"b" * 1536)  # 2,048 bytes: exactly full
    add_file(writer, b"c", b"c" * 1000)  # 1,536
    add_file(writer, b"d", b"d" * 2100)  # 3,072: does not fit beside c
    writer.finish()
    assert frames_of(file.getvalue()) == [
        tar_of((b"a", b"a" * 1500), (b"b", b"b" * 1536)),
        tar_of((b"c", b"c" * 1000)),
        tar_of((b"d", b"d" * 2100)),
        END_OF_ARCHIVE,
    ]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_large_member_is_cut_and_its_last_piece_stays_open(streamed: bool) -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=FRAME_LEN)
    add_file(writer, b"a", b"a")
    (stream_file if streamed else add_file)(writer, b"big", b"B" * 9000)
    add_file(writer, b"z", b"z")
    writer.finish()
    big = tar_of((b"big", b"B" * 9000))
    assert frames_of(file.getvalue()) == [
        tar_of((b"a", b"a")),
        big[:4096],
        big[4096:8192],
        big[8192:] + tar_of((b"z", b"z")),
        END_OF_ARCHIVE,
    ]


def test_a_header_longer_than_a_frame_is_cut_too() -> None:
    file = io.BytesIO()
    writer = VolumeWriter(file, frame_len=1024)
    member = TarMember(b"n" * 3000, REGULAR, 3)
    offset = writer.add(member, b"abc")
    writer.finish()
    tar = b"".join(frames_of(file.getvalue()))
    assert tar[offset : offset + 3] == b"abc"
    assert offset == len(encode_member_header(member))


def test_a_volume_without_members_is_a_tar() -> None:
    file = io.BytesIO()
    info = VolumeWriter(file).finish()
    assert (info.member_count, info.tar_len) == (0, 1024)
    assert frames_of(file.getvalue()) == [END_OF_ARCHIVE]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_a_pool_changes_nothing_in_the_file(workers: int) -> None:
    def write(file: BinaryIO, pool: ThreadPoolExecutor | None) -> VolumeInfo:
        writer = VolumeWriter(file, pool=pool, frame_len=FRAME_LEN, workers=workers)
        for index in range(200):
            add_file(writer, b"%d" % index, bytes([index]) * (index * 37 % 9000))
        return writer.finish()

    alone, pooled = io.BytesIO(), io.BytesIO()
    with ThreadPoolExecutor(workers) as pool:
        assert write(alone, None) == write(pooled, pool)
    assert alone.getvalue() == pooled.getvalue()


class CountingPool(ThreadPoolExecutor):
    """Remembers how many frames were ever waiting or being compressed at once."""

    def __init__(self) -> None:
        super().__init__(1)
        self.lock = threading.Lock()
        self.in_flight = self.most = 0

    def submit(self, call, /, *args, **options):  # type: ignore[no-untyped-def]
        with self.lock:
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        future: Future[bytes] = super().submit(call, *args, **options)
        future.add_done_callback(self.count_done)
        return future

    def count_done(self, _: Future[bytes]) -> None:
        with self.lock:
            self.in_flight -= 1


# At the end what is left of four goes to the workers one by one.
@pytest.mark.parametrize(("level", "most"), [(9, 2 + 1 + 1), (1, 2 + 1 + 3)])
def test_what_is_in_flight_is_bounded(level: int, most: int) -> None:
    with CountingPool() as pool:
        writer = VolumeWriter(io.BytesIO(), pool=pool, frame_len=65536, workers=2, level=level)
        add_file(writer, b"big", os.urandom(65536) * 100)
        writer.finish()
    assert 1 <= pool.most <= most


class AnyOrder(Executor):
    """Runs what it was given in another thread, the last first, once nothing more comes for a moment."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future[Any] = Future()
        self._waiting.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        taken: list[tuple[Future[Any], Callable[[], Any]]] = []
        while True:
            try:
                item = self._waiting.get(timeout=0.002)
            except queue.Empty:
                while taken:
                    future, call = taken.pop()
                    try:
                        future.set_result(call())
                    except OSError as error:
                        future.set_exception(error)
                continue
            if item is None:
                return
            taken.append(item)


def test_frames_are_in_order_in_whatever_order_they_are_compressed() -> None:
    file, expected = io.BytesIO(), io.BytesIO()
    with AnyOrder() as pool:
        for out, used in ((file, pool), (expected, None)):
            writer = VolumeWriter(out, frame_len=FRAME_LEN, pool=used, workers=4)
            add_file(writer, b"a", bytes(range(256)) * 200)
            writer.begin(TarMember(b"gone", REGULAR, 60_000))
            writer.write(b"g" * 60_000)
            writer.rollback()
            add_file(writer, b"b", b"b" * 30_000)
            info = writer.finish()
            assert info.digest == blake3(out.getvalue()).digest()
    assert file.getvalue() == expected.getvalue()


@pytest.mark.parametrize("room", [0, 100, 1000, 3000])
def test_after_a_failure_nothing_more_is_written_in_whatever_order(room: int) -> None:
    file = FullDisk(room)
    with AnyOrder() as pool:
        writer = VolumeWriter(file, frame_len=FRAME_LEN, pool=pool, workers=4)
        with pytest.raises(OSError, match="No space left"):
            add_file(writer, b"a", random.Random(1).randbytes(300_000))
        writer.abandon()
        assert len(file.getvalue()) <= room


class TestMembers:
    """Whole members that somebody else has encoded."""

    @pytest.mark.parametrize("sizes", [[10], [100, 200], [3000, 500], [4000, 10, 9000, 0], [0] * 20])
    def test_they_are_what_added_ones_are(self, sizes: list[int]) -> None:
        file, expected = io.BytesIO(), io.BytesIO()
        contents = [(b"%d" % number, bytes([number]) * size) for number, size in enumerate(sizes)]
        writer, other = (VolumeWriter(out, frame_len=FRAME_LEN) for out in (file, expected))
        for each in (writer, other):
            add_file(each, b"before", b"x" * 1000)
        for content in contents:
            add_file(other, *content)
        encoded = [tar_of(content) for content in contents]
        buffer = writer.members_buffer(sum(map(len, encoded)))
        buffer += b"".join(encoded)
        writer.add_members(buffer, [len(member) for member in encoded])
        assert writer.tar_len == other.tar_len
        for each in (writer, other):
            add_file(each, b"after", b"y" * 1000)
        assert writer.finish() == other.finish()
        assert file.getvalue() == expected.getvalue()

    def test_fewer_bytes_than_were_asked_for(self) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=FRAME_LEN)
        member = tar_of((b"a", b"1"))
        for most in (len(member), FRAME_LEN, 10 * FRAME_LEN):
            buffer = writer.members_buffer(most)
            buffer += member
            writer.add_members(buffer, [len(member)])
        assert writer.finish().member_count == 3
        assert b"".join(frames_of(file.getvalue())) == 3 * member + END_OF_ARCHIVE


class TestRollback:
    @pytest.mark.parametrize("pooled", [True, False])
    @pytest.mark.parametrize("size", [0, 1, 500, 3584, 3585, 9000, 100_000])
    @pytest.mark.parametrize("written_share", [0, 0.5, 1])
    def test_the_volume_is_as_if_the_member_never_had_been(
        self, pooled: bool, size: int, written_share: float
    ) -> None:
        def write(file: BinaryIO, with_gone: bool) -> VolumeInfo:
            with ThreadPoolExecutor(2) as pool:
                writer = VolumeWriter(file, frame_len=FRAME_LEN, workers=1, pool=pool if pooled else None)
                add_file(writer, b"before", b"x" * 10_000)
                add_file(writer, b"small", b"y" * 300)
                if with_gone:
                    before = writer.tar_len
                    writer.begin(TarMember(b"gone", REGULAR, size))
                    writer.write(os.urandom(size)[: int(size * written_share)])
                    writer.rollback()
                    assert writer.tar_len == before
                stream_file(writer, b"after", b"z" * 9000)
                add_file(writer, b"last", b"!")
                return writer.finish()

        file, expected_file = io.BytesIO(), io.BytesIO()
        info, expected = write(file, True), write(expected_file, False)
        # A member that did not fit has closed the frame before it, and that stays so.
        assert info.member_count == expected.member_count
        assert b"".join(frames_of(file.getvalue())) == b"".join(frames_of(expected_file.getvalue()))
        assert info.digest == blake3(file.getvalue()).digest()
        assert info.size == len(file.getvalue())

    def test_several_in_a_row(self) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=FRAME_LEN)
        for size in (10_000, 20, 50_000, 5_000):
            add_file(writer, b"kept%d" % size, b"k" * size)
            writer.begin(TarMember(b"gone", REGULAR, size))
            writer.write(b"g" * (size - 1))
            writer.rollback()
        info = writer.finish()
        assert info.digest == blake3(file.getvalue()).digest()
        expected = tar_of(*((b"kept%d" % size, b"k" * size) for size in (10_000, 20, 50_000, 5_000)))
        assert b"".join(frames_of(file.getvalue())) == expected + END_OF_ARCHIVE

    def test_nothing_of_it_stays_in_the_file(self) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=FRAME_LEN)
        add_file(writer, b"kept", b"k")
        writer.begin(TarMember(b"gone", REGULAR, 1 << 20))
        writer.write(os.urandom(1 << 20))
        assert len(file.getvalue()) > 1 << 19
        writer.rollback()
        assert len(file.getvalue()) < 1 << 10


class TestMistakes:
    @pytest.mark.parametrize("written", [b"", b"123", b"12345", b"1" * 10_000])
    def test_a_size_that_does_not_match_is_refused_and_can_be_rolled_back(self, written: bytes) -> None:
        file = io.BytesIO()
        writer = VolumeWriter(file, frame_len=FRAME_LEN)
        writer.begin(TarMember(b"a", REGULAR, 4))
        writer.write(written)
        with pytest.raises(ValueError, match=rf"{len(written)} bytes of data, its header says 4"):
            writer.end()
        writer.rollback()
        add_file(writer, b"b", b"good")
        writer.finish()
        assert frames_of(file.getvalue())[0] == tar_of((b"b", b"good"))

    def test_add_checks_the_size_before_it_writes(self) -> None:
        writer = VolumeWriter(io.BytesIO())
        with pytest.raises(ValueError, match="3 bytes of data"):
            writer.add(TarMember(b"a", REGULAR, 4), b"123")
        assert writer.tar_len == 0
        add_file(writer, b"b", b"")

    def test_a_member_that_cannot_be_encoded_leaves_the_volume_usable(self) -> None:
        writer = VolumeWriter(io.BytesIO())
        with pytest.raises(ValueError, match="name"):
            writer.begin(TarMember(b""))
        add_file(writer, b"b", b"")
        assert writer.finish().member_count == 1

    def test_calls_out_of_order(self) -> None:
        writer = VolumeWriter(io.BytesIO())
        for call in (lambda: writer.write(b""), writer.end, writer.rollback):
            with pytest.raises(ValueError, match=r"without begin"):
                call()
        writer.begin(TarMember(b"a"))
        for call in (
            lambda: writer.begin(TarMember(b"b")),
            lambda: writer.add(TarMember(b"b")),
            writer.finish,
        ):
            with pytest.raises(ValueError, match=r"while b'a' is being written"):
                call()
        writer.end()
        writer.finish()
        for call in (lambda: writer.begin(TarMember(b"b")), writer.finish):
            with pytest.raises(ValueError, match=r"after finish"):
                call()

    @pytest.mark.parametrize("frame_len", [-1, 0, 1023, MAX_FRAME_LEN + 1])
    def test_frame_len_is_bounded(self, frame_len: int) -> None:
        with pytest.raises(ValueError, match="frame_len"):
            VolumeWriter(io.BytesIO(), frame_len=frame_len)

    def test_the_default_frame_is_a_mebibyte(self) -> None:
        assert volume_writer.FRAME_LEN == 1 << 20


class FullDisk(io.BytesIO):
    """Fails once it holds some bytes, and then works again, as a disk may that somebody tidies up."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        if self.tell() + len(data) > self.room:
            self.room = 1 << 40
            raise OSError(28, "No space left on device")
        return super().write(data)


class ShortWrites(io.BytesIO):
    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        return super().write(data[:10])


class TestFailures:
    @pytest.mark.parametrize("pooled", [True, False])
    def test_a_failed_write_makes_the_volume_unusable(self, pooled: bool) -> None:
        with ThreadPoolExecutor(1) as pool:
            writer = VolumeWriter(FullDisk(10_000), frame_len=FRAME_LEN, pool=pool if pooled else None)
            writer.begin(TarMember(b"a", REGULAR, 1 << 20))
            with pytest.raises(OSError, match="No space left"):
                writer.write(os.urandom(1 << 20))
            with pytest.raises(ValueError, match="failed before"):
                writer.rollback()

    def test_a_failed_end_is_not_a_volume(self) -> None:
        writer = VolumeWriter(FullDisk(100), frame_len=FRAME_LEN)
        add_file(writer, b"a", os.urandom(3000))
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
        with pytest.raises(ValueError, match="after finish"):
            writer.finish()

    def test_a_write_that_is_cut_short_is_a_failure(self) -> None:
        writer = VolumeWriter(ShortWrites())
        add_file(writer, b"a", b"data")
        with pytest.raises(OSError, match="only a part"):
            writer.finish()

    def test_an_error_in_the_pool_comes_out(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            writer = VolumeWriter(io.BytesIO(), level=10_000, pool=pool, frame_len=FRAME_LEN)
            add_file(writer, b"a", b"data")
            with pytest.raises(ValueError, match="level"):
                writer.finish()


def test_the_first_frames_are_compressed_at_a_level_of_their_own() -> None:
    rng = random.Random(1)
    words = [rng.randbytes(4).hex().encode() for _ in range(500)]
    data = b" ".join(rng.choices(words, k=20 * FRAME_LEN // 9))
    volumes = {}
    for levels in ((1, None), (1, 19), (19, 1), (19, None)):
        file = io.BytesIO()
        writer = VolumeWriter(file, level=levels[0], first_level=levels[1], frame_len=FRAME_LEN)
        writer.add(file_member(b"words", data), data)
        writer.finish()
        volumes[levels] = file.getvalue()
        assert b"".join(frames_of(volumes[levels])) == b"".join(frames_of(volumes[1, None]))

    low, hard = table_of(volumes[1, None]), table_of(volumes[19, None])
    for levels, first, rest in (((1, 19), hard, low), ((19, 1), low, hard)):
        table = table_of(volumes[levels])
        expected = [
            (first if index < HARD_FRAMES else rest).frame(index).length for index in range(low.frame_count)
        ]
        assert [table.frame(index).length for index in range(table.frame_count)] == expected
    assert low.frame_count > HARD_FRAMES
    assert len(volumes[19, None]) != len(volumes[1, None])
