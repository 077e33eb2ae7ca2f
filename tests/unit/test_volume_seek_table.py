"""The seek table: its bytes as the specification has them, and tables that lie."""

from __future__ import annotations

import struct

import pytest

from incremental_backups_tools.archive.seek_table import (
    FOOTER_LEN,
    MAX_FRAME_LEN,
    MAX_FRAMES,
    Frame,
    SeekTable,
    encode_seek_table,
    parse_seek_table,
    parse_table_len,
)
from incremental_backups_tools.exceptions import ArchiveFormatError, BackupError, LimitExceededError


def raw_table(
    entries: list[tuple[int, ...]],
    *,
    magic: int = 0x184D2A5E,
    length: int | None = None,
    count: int | None = None,
    descriptor: int = 0,
    end: int = 0x8F92EAB1,
) -> bytes:
    body = b"".join(struct.pack(f"<{len(entry)}I", *entry) for entry in entries)
    footer = struct.pack("<IBI", len(entries) if count is None else count, descriptor, end)
    rest_len = len(body) + len(footer) if length is None else length
    return struct.pack("<II", magic, rest_len) + body + footer


def parse(table: bytes, *, frames_len: int) -> SeekTable:
    file_len = frames_len + len(table)
    table_len = parse_table_len(table[-FOOTER_LEN:])
    return parse_seek_table(table[-table_len:], file_len=file_len)


def test_the_bytes_are_those_of_the_specification() -> None:
    assert encode_seek_table([10, 20], [1000, 2000]) == raw_table([(10, 1000), (20, 2000)])
    assert encode_seek_table([], []) == raw_table([])


def test_frames_are_found_by_any_byte_of_theirs() -> None:
    table = parse(raw_table([(10, 1000), (20, 1), (5, 500)]), frames_len=35)
    assert (table.frame_count, table.frames_len, table.tar_len) == (3, 35, 1501)
    assert [table.frame(i) for i in range(3)] == [
        Frame(0, 10, 0, 1000),
        Frame(10, 20, 1000, 1),
        Frame(30, 5, 1001, 500),
    ]
    assert [table.find(offset) for offset in (0, 999, 1000, 1001, 1500)] == [0, 0, 1, 2, 2]


def test_a_table_with_checksums_is_read() -> None:
    table = parse(raw_table([(10, 1000, 7), (20, 1, 8)], descriptor=0x80), frames_len=30)
    assert (table.frame_count, table.frames_len, table.tar_len) == (2, 30, 1001)


@pytest.mark.parametrize(
    "table",
    [
        raw_table([(10, 100)], end=0x8F92EAB2),
        raw_table([(10, 100)], magic=0x184D2A5D),
        raw_table([(10, 100)], length=16),
        raw_table([(10, 100)], descriptor=0x04),
        raw_table([(10, 100)], descriptor=0x40),
        raw_table([(9, 100)]),
        raw_table([(11, 100)]),
        raw_table([(10, 0)]),
        raw_table([(0, 10), (10, 10)]),
        raw_table([]),
        raw_table([(5, 100), (5, 100)], count=1),
    ],
    ids=str,
)
def test_a_table_that_lies_is_refused(table: bytes) -> None:
    with pytest.raises(ArchiveFormatError):
        parse(table, frames_len=10)


def test_absurd_frames_are_over_a_limit() -> None:
    with pytest.raises(LimitExceededError):
        parse(raw_table([(10, MAX_FRAME_LEN + 1)]), frames_len=10)
    with pytest.raises(LimitExceededError):
        parse(raw_table([(MAX_FRAME_LEN * 2, 10)]), frames_len=MAX_FRAME_LEN * 2)
    with pytest.raises(LimitExceededError):
        parse_table_len(struct.pack("<IBI", MAX_FRAMES + 1, 0, 0x8F92EAB1))


def test_a_file_shorter_than_a_footer_has_no_table() -> None:
    for length in range(FOOTER_LEN):
        with pytest.raises(BackupError, match="no seek table"):
            parse_table_len(bytes(length))
