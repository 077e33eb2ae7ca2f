"""Streams of records: what was written comes back, and nothing else does."""

from __future__ import annotations

import io

import pytest
import zstandard

from incremental_backups_tools.exceptions import StateFormatError
from incremental_backups_tools.tree import records
from incremental_backups_tools.tree.records import RecordReader, RecordWriter, read_header


def written(lines: list[bytes], header: bytes = b'{"h":1}') -> bytes:
    file = io.BytesIO()
    writer = RecordWriter(file, header)
    for line in lines:
        writer.write(line)
    writer.close()
    return file.getvalue()


def read(data: bytes) -> tuple[bytes, list[bytes]]:
    reader = RecordReader(io.BytesIO(data), what="test")
    return reader.header, list(reader)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_what_was_written_is_read(count: int) -> None:
    lines = [b'{"n":%d}' % number for number in range(count)]
    assert read(written(lines)) == (b'{"h":1}', lines)


def test_lines_that_cross_frames_and_chunks_are_whole() -> None:
    lines = [b'"%s"' % (bytes([65 + number]) * 700_000) for number in range(5)]
    assert read(written(lines))[1] == lines


def test_the_header_is_read_from_the_first_frame() -> None:
    data = written([b'"%d"' % number for number in range(1000)])
    assert read_header(data[:100], what="test") == b'{"h":1}'


def test_zstd_and_a_shell_can_read_it() -> None:
    reader = zstandard.ZstdDecompressor().stream_reader(written([b"1", b"2"]), read_across_frames=True)
    lines = reader.read().splitlines()
    assert lines[:3] == [b'{"h":1}', b"1", b"2"]
    assert len(lines) == 4


def test_every_cut_is_noticed() -> None:
    """Also one in the last checksum, where all lines are still whole: zstd's command would refuse it."""
    data = written([b"1", b"22", b"333"])
    for length in range(len(data)):
        with pytest.raises(StateFormatError):
            read(data[:length])


def test_a_skippable_frame_behind_it_is_passed_over() -> None:
    data = written([b"1"])
    assert read(data + bytes.fromhex("5e2a4d18") + b"\3\0\0\0abc") == read(data)
    with pytest.raises(StateFormatError):
        read(data + b"\0")


def test_every_changed_byte_is_noticed() -> None:
    data = bytearray(written([b"1", b"22", b"333"]))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        try:
            outcome = read(bytes(changed))
        except StateFormatError:
            continue
        # A frame's header has bits that mean nothing; then at least the content is the same.
        assert outcome == read(bytes(data))


def frame(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def test_a_stream_cut_between_frames_and_closed_by_another_trailer_is_noticed() -> None:
    long = [b'"%s"' % (b"a" * 600_000), b'"%s"' % (b"b" * 600_000)]
    with pytest.raises(StateFormatError, match=r"altered|promises"):
        read(frame(b'{"h":1}\n') + frame(b"1\n") + written(long)[-200:])


def test_something_after_the_trailer_is_noticed() -> None:
    with pytest.raises(StateFormatError):
        read(written([b"1"]) + frame(b"2\n"))
    with pytest.raises(StateFormatError):
        read(written([b"1"]) + b"garbage")


def test_a_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_LINE_LEN", 1 << 20)
    monkeypatch.setattr(records, "MAX_HEADER_LEN", 1 << 20)
    bomb = frame(b"h\n") + frame(bytes(50 << 20))
    with pytest.raises(StateFormatError, match="longer than"):
        read(bomb)
    with pytest.raises(StateFormatError):
        read_header(frame(bytes(50 << 20)), what="test")


def test_a_window_of_gigabytes_is_refused() -> None:
    # Magic, descriptor without content size, window descriptor for 3.75 TiB.
    hostile = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\xff" + b"\x01\x00\x00"
    with pytest.raises(StateFormatError):
        read(hostile)
