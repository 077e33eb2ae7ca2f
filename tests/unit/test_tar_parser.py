"""Reading a tar from front to back, also one that wants to do harm."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import BinaryIO, cast

import pytest

from incremental_backups_tools.archive.tar import (
    BLOCK_LEN,
    DIR,
    END_OF_ARCHIVE,
    LINK,
    MAX_EXTENDED_LEN,
    REGULAR,
    SYMLINK,
    TarMember,
    encode_member_header,
    encode_pax_record,
    padding_len,
)
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.exceptions import ArchiveFormatError, BackupError, LimitExceededError


def padded(data: bytes) -> bytes:
    return data + bytes(padding_len(len(data)))


def extension(kind: bytes, payload: bytes, *, size: int | None = None) -> bytes:
    """An extended header with any content."""
    block = encode_member_header(TarMember(b"ext", size=len(payload) if size is None else size))
    block = block[:156] + kind + block[157:]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:] + padded(payload)


def raw_type(kind: bytes) -> bytes:
    return extension(kind, b"")


def members_of(archive: bytes) -> list[TarMember]:
    return [member for member, _ in TarParser(io.BytesIO(archive), name="test.tar")]


class Unseekable(io.RawIOBase):
    """A pipe: gives few bytes at a time and cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(min(size, 100))


FIRST, SECOND = TarMember(b"first", size=700), TarMember(b"second", size=3)
TWO = (
    encode_member_header(FIRST)
    + padded(b"1" * 700)
    + encode_member_header(SECOND)
    + padded(b"two")
    + END_OF_ARCHIVE
)


@pytest.mark.parametrize("tar_len", [None, len(TWO)])
def test_members_come_with_the_offset_of_their_data(tar_len: int | None) -> None:
    found = list(TarParser(io.BytesIO(TWO), tar_len=tar_len))
    assert found == [(FIRST, 512), (SECOND, 512 + 1024 + 512)]
    assert [TWO[offset : offset + member.size] for member, offset in found] == [b"1" * 700, b"two"]


def test_data_are_read_in_bounded_pieces_or_not_at_all() -> None:
    parser = TarParser(cast(BinaryIO, Unseekable(TWO)))
    pieces = []
    for member, _ in parser:
        if member.name == b"second":
            while piece := parser.read(2):
                pieces.append(piece)
            assert parser.read(10) == b""
    assert pieces == [b"tw", b"o"]


def test_a_member_read_in_part_is_skipped_to_its_end() -> None:
    parser = TarParser(io.BytesIO(TWO))
    names = []
    for member, _ in parser:
        names.append(member.name)
        assert parser.read(1)
    assert names == [b"first", b"second"]


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes_is_read(tar_format: int) -> None:
    buffer = io.BytesIO()
    deep = "d/" * 60 + "n" * 90
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, kind, target in [
            (deep, tarfile.REGTYPE, ""),
            ("dir", tarfile.DIRTYPE, ""),
            ("link", tarfile.SYMTYPE, "../" + "t" * 90),
            ("hard", tarfile.LNKTYPE, deep[-90:]),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime, info.uname = kind, target, 12, "joe"
            tar.addfile(info)
    assert members_of(buffer.getvalue()) == [
        TarMember(deep.encode(), REGULAR, mtime=12, user=b"joe"),
        TarMember(b"dir", DIR, mtime=12, user=b"joe"),
        TarMember(b"link", SYMLINK, mtime=12, user=b"joe", link_target=b"../" + b"t" * 90),
        TarMember(b"hard", LINK, mtime=12, user=b"joe", link_target=deep[-90:].encode()),
    ]


def test_gnu_long_names_and_links_are_read() -> None:
    archive = (
        extension(b"K", b"t" * 3000 + b"\0")
        + extension(b"L", b"n" * 5000 + b"\0")
        + encode_member_header(TarMember(b"short", SYMLINK, link_target=b"x"))
        + END_OF_ARCHIVE
    )
    assert members_of(archive) == [TarMember(b"n" * 5000, SYMLINK, link_target=b"t" * 3000)]


def test_a_global_header_holds_until_a_member_says_otherwise() -> None:
    archive = (
        extension(b"g", encode_pax_record(b"uname", b"all") + encode_pax_record(b"comment", b"c"))
        + encode_member_header(TarMember(b"a"))
        + extension(b"x", encode_pax_record(b"uname", b"one"))
        + encode_member_header(TarMember(b"b"))
        + END_OF_ARCHIVE
    )
    first, second = members_of(archive)
    assert (first.user, first.pax) == (b"all", ((b"comment", b"c"),))
    assert (second.user, second.pax) == (b"one", ((b"comment", b"c"),))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"12", 12), (b"12.9", 12), (b"-1", -1), (b"-1.0", -1), (b"-1.5", -2), (b"-0.5", -1), (b"7.", 7)],
)
def test_fractions_of_a_second_are_rounded_down(text: bytes, seconds: int) -> None:
    archive = extension(b"x", encode_pax_record(b"mtime", text)) + encode_member_header(TarMember(b"a"))
    assert members_of(archive + END_OF_ARCHIVE)[0].mtime == seconds


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"size", b"-1"),
        (b"size", b"1e3"),
        (b"size", b"9" * 19),
        (b"size", b"9" * 400),
        (b"uid", b"0x1"),
        (b"uid", b" 1"),
        (b"mtime", b"1.2.3"),
        (b"mtime", b"nan"),
        (b"mtime", b"9" * 5000),
        (b"path", b"a\0b"),
        (b"path", b"dir/"),
        (b"uname", b"a\0b"),
    ],
)
def test_a_pax_field_that_is_none_is_refused(key: bytes, value: bytes) -> None:
    archive = extension(b"x", encode_pax_record(key, value)) + encode_member_header(TarMember(b"a"))
    with pytest.raises(ArchiveFormatError, match=r"test\.tar: member at byte 0"):
        members_of(archive + END_OF_ARCHIVE)


@pytest.mark.parametrize("seekable", [True, False])
def test_a_tar_cut_anywhere_is_refused(seekable: bool) -> None:
    for length in range(0, len(TWO), 64):
        tar_len = length if seekable else None
        with pytest.raises(ArchiveFormatError, match=r"ends at byte|only \d+ bytes follow"):
            list(TarParser(io.BytesIO(TWO[:length]), tar_len=tar_len))


def test_reading_data_that_are_cut_is_refused() -> None:
    parser = TarParser(io.BytesIO(TWO[:600]), name="cut.tar")
    next(iter(parser))
    assert parser.read(1000) == b"1" * 88
    with pytest.raises(ArchiveFormatError, match=r"cut\.tar: ends at byte 600"):
        parser.read(1000)


def test_one_block_of_zeros_is_no_end() -> None:
    with pytest.raises(ArchiveFormatError, match="single block of zeros"):
        members_of(bytes(BLOCK_LEN) + encode_member_header(TarMember(b"a")) + END_OF_ARCHIVE)


def test_an_extended_header_needs_its_member() -> None:
    with pytest.raises(ArchiveFormatError, match="after an extended header"):
        members_of(extension(b"x", encode_pax_record(b"path", b"p")) + END_OF_ARCHIVE)


def test_what_follows_the_end_is_not_read() -> None:
    assert len(members_of(TWO + b"anything")) == 2


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_a_huge_extended_header_is_refused_before_it_is_read(kind: bytes) -> None:
    class Watched(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            Watched.largest = max(Watched.largest, size)
            return super().read(size)

    archive = extension(kind, b"", size=MAX_EXTENDED_LEN + 1)
    with pytest.raises(LimitExceededError):
        list(TarParser(Watched(archive)))
    assert Watched.largest == BLOCK_LEN


def test_many_extended_headers_for_one_member_are_bounded() -> None:
    one = extension(b"x", encode_pax_record(b"k", bytes(100_000)))
    with pytest.raises(LimitExceededError):
        members_of(one * 11 + encode_member_header(TarMember(b"a")) + END_OF_ARCHIVE)


def test_global_records_do_not_grow_without_bound() -> None:
    archive = b"".join(
        extension(b"g", encode_pax_record(b"k%d" % i, bytes(100_000))) + encode_member_header(TarMember(b"a"))
        for i in range(11)
    )
    with pytest.raises(LimitExceededError, match="global"):
        members_of(archive + END_OF_ARCHIVE)


def test_a_member_longer_than_the_tar_is_refused_at_its_header() -> None:
    archive = encode_member_header(TarMember(b"a", size=1 << 62)) + END_OF_ARCHIVE
    with pytest.raises(ArchiveFormatError, match="only 1024 bytes follow"):
        list(TarParser(io.BytesIO(archive), tar_len=len(archive)))


@pytest.mark.parametrize("kind", [b"S", b"D", b"M", b"V", b"8", b"Z", b"\xff"])
def test_an_unknown_type_is_refused(kind: bytes) -> None:
    with pytest.raises(ArchiveFormatError, match="type"):
        members_of(raw_type(kind) + END_OF_ARCHIVE)


def test_an_old_regular_file_is_read() -> None:
    assert [member.type for member in members_of(raw_type(b"\0") + END_OF_ARCHIVE)] == [REGULAR]


def test_a_directory_or_link_with_data_is_refused() -> None:
    archive = extension(DIR, b"data") + END_OF_ARCHIVE
    with pytest.raises(ArchiveFormatError, match="size 4"):
        members_of(archive)


def test_hostile_names_come_out_as_they_are() -> None:
    names = [b"../up", b"/abs", b"a/../../b", b"\x1b[2J"]
    archive = b"".join(encode_member_header(TarMember(name)) for name in names) + END_OF_ARCHIVE
    assert [member.name for member in members_of(archive)] == names


def test_a_compressed_stream_is_read() -> None:
    with gzip.open(io.BytesIO(gzip.compress(TWO))) as file:
        assert [member.name for member, _ in TarParser(cast(BinaryIO, file))] == [b"first", b"second"]


def test_noise_is_a_clear_error() -> None:
    for noise in (b"", b"\x7fELF" * 300, b"\xff" * 2048, bytes(511)):
        with pytest.raises(BackupError):
            members_of(noise)
