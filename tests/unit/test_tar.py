"""One member's header: what it is encoded to, and what is refused."""

from __future__ import annotations

import io
import tarfile

import pytest

from incremental_backups_tools.archive.tar import (
    BLOCK,
    BLOCK_LEN,
    CHAR,
    DIR,
    END_OF_ARCHIVE,
    FIFO,
    LINK,
    MAX_EXTENDED_LEN,
    REGULAR,
    SYMLINK,
    TarMember,
    encode_member_header,
    encode_pax_record,
    padding_len,
    parse_header_block,
    parse_pax_records,
    xattr_key,
)
from incremental_backups_tools.exceptions import ArchiveFormatError, LimitExceededError


def read_with_tarfile(member: TarMember) -> tarfile.TarInfo:
    archive = encode_member_header(member) + bytes(member.size + padding_len(member.size)) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(archive), encoding="utf-8", errors="surrogateescape") as tar:
        (info,) = tar.getmembers()
    return info


def with_checksum(block: bytes) -> bytes:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def test_what_fits_takes_one_block() -> None:
    member = TarMember(b"a/b", REGULAR, 5, 0o4755, 1000, 100, b"thomas", b"users", 1_700_000_000)
    header = encode_member_header(member)
    assert len(header) == BLOCK_LEN
    assert header[257:265] == b"ustar\x0000"
    assert parse_header_block(header) == member


@pytest.mark.parametrize(
    "name",
    [
        b"x" * 100,
        b"d" * 155 + b"/" + b"x" * 100,
        b"a/" * 127 + b"z",
        b"\xff\xfe" * 50,
        b"a\nb\x1b[31m",
        b"n" * 99,
    ],
)
def test_a_name_that_ustar_can_split_needs_no_extended_header(name: bytes) -> None:
    header = encode_member_header(TarMember(name))
    assert len(header) == BLOCK_LEN
    parsed = parse_header_block(header)
    assert parsed is not None and parsed.name == name


@pytest.mark.parametrize("length", [98, 99, 100, 101, 254, 255, 256])
def test_a_directory_carries_its_slash(length: int) -> None:
    name = (b"d" * 49 + b"/") * 5 + b"d" * 100
    info = read_with_tarfile(TarMember(name[:length].rstrip(b"/"), DIR, 0, 0o755))
    assert info.isdir() and info.name == name[:length].rstrip(b"/").decode()
    assert encode_member_header(TarMember(b"d", DIR)).startswith(b"d/\0")


def test_the_root_is_a_directory_named_dot() -> None:
    assert encode_member_header(TarMember(b".", DIR, 0, 0o755)).startswith(b"./\0")


@pytest.mark.parametrize(
    ("member", "record"),
    [
        (TarMember(b"p" * 101), b"path=" + b"p" * 101),
        (TarMember(b"l", SYMLINK, link_target=b"t" * 101), b"linkpath=" + b"t" * 101),
        (TarMember(b"l", LINK, link_target=b"t/" * 60 + b"u"), b"linkpath=" + b"t/" * 60 + b"u"),
        (TarMember(b"f", user=b"u" * 33), b"uname=" + b"u" * 33),
        (TarMember(b"f", group=b"g" * 33), b"gname=" + b"g" * 33),
        (TarMember(b"f", uid=1 << 21), b"uid=2097152"),
        (TarMember(b"f", gid=4_294_967_294), b"gid=4294967294"),
        (TarMember(b"f", size=1 << 33), b"size=8589934592"),
        (TarMember(b"f", mtime=-1), b"mtime=-1"),
        (TarMember(b"f", mtime=1 << 33), b"mtime=8589934592"),
    ],
)
def test_what_does_not_fit_stands_in_one_pax_record(member: TarMember, record: bytes) -> None:
    header = encode_member_header(member)
    assert header[156:157] == b"x"
    size = int(header[124:135], 8)
    payload = header[BLOCK_LEN : BLOCK_LEN + size]
    assert payload == b"%d %b\n" % (size, record)
    assert len(header) == 2 * BLOCK_LEN + len(payload) + padding_len(len(payload))


@pytest.mark.parametrize(
    ("member", "kind", "text"),
    [
        (TarMember(b"\xff" * 101), b"L", b"\xff" * 101),
        (TarMember("ä".encode() * 300), b"L", "ä".encode() * 300),
        (TarMember(b"l", SYMLINK, link_target=b"\xfe" * 120), b"K", b"\xfe" * 120),
    ],
)
def test_long_bytes_outside_ascii_stand_in_a_gnu_header(member: TarMember, kind: bytes, text: bytes) -> None:
    header = encode_member_header(member)
    assert header[156:157] == kind
    assert header[BLOCK_LEN:].startswith(text + b"\0")
    assert b"path=" not in header


def test_a_long_owner_name_outside_ascii_is_left_to_the_number() -> None:
    header = encode_member_header(TarMember(b"f", uid=7, user=b"\xfc" * 40))
    assert len(header) == BLOCK_LEN
    parsed = parse_header_block(header)
    assert parsed is not None and (parsed.uid, parsed.user) == (7, b"")


def test_numbers_at_the_edge_of_their_fields_need_no_pax() -> None:
    edge = TarMember(b"f", size=(1 << 33) - 1, uid=(1 << 21) - 1, gid=(1 << 21) - 1, mtime=(1 << 33) - 1)
    assert parse_header_block(encode_member_header(edge)) == edge


@pytest.mark.parametrize("device", [(8, 1), (4095, 1_048_575), (0, 1 << 24), ((1 << 32) - 1, (1 << 32) - 1)])
@pytest.mark.parametrize("kind", [CHAR, BLOCK])
def test_device_numbers_survive(kind: bytes, device: tuple[int, int]) -> None:
    member = TarMember(b"dev/x", kind, 0, 0o600, device=device)
    assert parse_header_block(encode_member_header(member)) == member


def test_python_reads_extra_records_and_every_type() -> None:
    info = read_with_tarfile(TarMember(b"f", pax=((xattr_key(b"user.a=b%"), b"\0\xff\n"), (b"IBT.x", b""))))
    assert set(info.pax_headers) == {"SCHILY.xattr.user.a%3Db%25", "IBT.x"}
    for kind in (REGULAR, DIR, FIFO, CHAR, BLOCK):
        assert read_with_tarfile(TarMember(b"f", kind)).type == kind


@pytest.mark.parametrize("value_len", range(0, 1100, 7))
def test_a_pax_record_counts_its_own_digits(value_len: int) -> None:
    record = encode_pax_record(b"k", b"v" * value_len)
    assert int(record.split(b" ")[0]) == len(record)
    assert parse_pax_records(record) == {b"k": b"v" * value_len}


@pytest.mark.parametrize(
    "member",
    [
        TarMember(b""),
        TarMember(b"a/"),
        TarMember(b"a\0b"),
        TarMember(b"a", b"9"),
        TarMember(b"a", size=-1),
        TarMember(b"a", DIR, size=1),
        TarMember(b"a", SYMLINK),
        TarMember(b"a", SYMLINK, link_target=b"t\0"),
        TarMember(b"a", REGULAR, link_target=b"t"),
        TarMember(b"a", mode=0o100644),
        TarMember(b"a", uid=-1),
        TarMember(b"a", gid=1 << 63),
        TarMember(b"a", user=b"u\0"),
        TarMember(b"a", mtime=1 << 64),
        TarMember(b"a", CHAR, device=(-1, 0)),
        TarMember(b"a", CHAR, device=(0, 1 << 56)),
        TarMember(b"a", pax=((b"path", b"b"),)),
        TarMember(b"a", pax=((b"k=", b"b"),)),
        TarMember(b"a", pax=((b"", b"b"),)),
    ],
)
def test_an_impossible_member_is_a_mistake_of_the_caller(member: TarMember) -> None:
    with pytest.raises(ValueError, match=r"tar member|pax key|device"):
        encode_member_header(member)


def test_extended_headers_are_bounded() -> None:
    encode_member_header(TarMember(b"a", pax=((b"k", bytes(MAX_EXTENDED_LEN - 2000)),)))
    with pytest.raises(LimitExceededError, match="extended headers"):
        encode_member_header(TarMember(b"a", pax=((b"k", bytes(MAX_EXTENDED_LEN)),)))


def test_a_block_of_zeros_is_no_member() -> None:
    assert parse_header_block(bytes(BLOCK_LEN)) is None


@pytest.mark.parametrize("position", [0, 50, 105, 130, 150, 156, 260, 300, 500])
def test_a_changed_byte_breaks_the_checksum(position: int) -> None:
    block = bytearray(encode_member_header(TarMember(b"name", user=b"u" * 30)))
    block[position] ^= 1
    with pytest.raises(ArchiveFormatError, match="checksum"):
        parse_header_block(bytes(block))


@pytest.mark.parametrize(
    ("start", "field"),
    [
        (124, b"0000000000x\0"),
        (124, b"-0000000001\0"),
        (124, b"00000_00000\0"),
        (124, b"0x000000000\0"),
        (124, b"00000\0000001"),
        (124, b"00000000009\0"),
        (108, b"+000001\0"),
        (124, b"\x80" + b"\xff" * 11),
        (136, b"\xff" + b"\x00" * 11),
        (124, b"\x81" + b"\x00" * 11),
    ],
)
def test_numbers_are_parsed_strictly(start: int, field: bytes) -> None:
    block = encode_member_header(TarMember(b"name"))
    block = with_checksum(block[:start] + field + block[start + len(field) :])
    with pytest.raises(ArchiveFormatError, match=r"no number|out of range"):
        parse_header_block(block)


def test_base_256_numbers_are_read() -> None:
    block = encode_member_header(TarMember(b"name"))
    block = block[:108] + b"\x80\0\0\0\xff\xff\xff\xfe" + block[116:]
    block = with_checksum(block[:136] + b"\xff" * 11 + b"\xfb" + block[148:])
    parsed = parse_header_block(block)
    assert parsed is not None and (parsed.uid, parsed.mtime) == (0xFFFFFFFE, -5)


def test_what_gnu_tar_keeps_in_place_of_the_prefix_is_no_part_of_the_name() -> None:
    block = bytearray(encode_member_header(TarMember(b"name")))
    block[257:265] = b"ustar  \0"
    block[345:357] = b"14242424242\0"  # the time of access, in an archive of --incremental
    parsed = parse_header_block(with_checksum(bytes(block)))
    assert parsed is not None and parsed.name == b"name"


def test_a_block_that_is_neither_posix_nor_gnu_is_refused() -> None:
    block = encode_member_header(TarMember(b"name"))
    with pytest.raises(ArchiveFormatError, match="magic"):
        parse_header_block(with_checksum(block[:257] + bytes(8) + block[265:]))


@pytest.mark.parametrize(
    "payload",
    [
        b"7 a=b\n",
        b"5 a=b\n",
        b"6 a=b ",
        b"6 a=b\n5 a=b",
        b"06 a=b\n",
        b"-6 a=b\n",
        b"2 \n",
        b"6 abc\n",
        b"5 =b\n",
        b"99999999999999999999 a=b\n",
        b"a=b\n",
        b"\0\0\0\0",
    ],
)
def test_a_broken_pax_record_is_refused(payload: bytes) -> None:
    with pytest.raises(ArchiveFormatError, match="pax record"):
        parse_pax_records(payload)


def test_pax_values_may_hold_anything() -> None:
    payload = encode_pax_record(b"a", b"=\n5 x=y\n\0") + encode_pax_record(b"a", b"last")
    assert parse_pax_records(payload) == {b"a": b"last"}
