"""Whatever a member is, it comes back as it was; whatever the bytes are, nothing but a clear error comes
out."""

from __future__ import annotations

import io

from hypothesis import example, given, settings
from hypothesis import strategies as st

from incremental_backups_tools.archive.tar import (
    BLOCK,
    CHAR,
    DIR,
    END_OF_ARCHIVE,
    FIELD_KEYS,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    TarMember,
    encode_member_header,
    padding_len,
    parse_pax_records,
)
from incremental_backups_tools.archive.tar_parser import TarParser
from incremental_backups_tools.exceptions import ArchiveFormatError, BackupError

no_nul = st.binary(min_size=1, max_size=400).map(lambda raw: raw.replace(b"\0", b"\1"))
ascii_text = st.text("abc/.", min_size=1, max_size=400).map(str.encode)
texts = st.one_of(no_nul, ascii_text)
names = texts.filter(lambda name: not name.endswith(b"/"))
owner_names = st.one_of(
    st.text("abc", max_size=60).map(str.encode),
    st.binary(max_size=31).map(lambda raw: raw.replace(b"\0", b"\1")),
)
keys = no_nul.filter(lambda key: b"=" not in key and key not in FIELD_KEYS)
numbers = st.one_of(st.integers(0, 1 << 40), st.integers(0, (1 << 63) - 1))


@st.composite
def members(draw: st.DrawFn) -> TarMember:
    kind = draw(st.sampled_from([REGULAR, LINK, SYMLINK, CHAR, BLOCK, DIR, FIFO]))
    devices = st.tuples(st.integers(0, 1 << 32), st.integers(0, 1 << 32))
    return TarMember(
        name=draw(names),
        type=kind,
        size=draw(st.integers(0, 3000)) if kind == REGULAR else 0,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(numbers),
        gid=draw(numbers),
        user=draw(owner_names),
        group=draw(owner_names),
        mtime=draw(st.integers(-(1 << 63) + 1, (1 << 63) - 1)),
        link_target=draw(texts) if kind in (LINK, SYMLINK) else b"",
        device=draw(devices) if kind in (CHAR, BLOCK) else (0, 0),
        pax=tuple(draw(st.dictionaries(keys, st.binary(max_size=600), max_size=4)).items()),
    )


@given(st.lists(members(), max_size=4))
@settings(max_examples=200, deadline=None)
def test_members_come_back_as_they_were(wanted: list[TarMember]) -> None:
    data = {index: bytes([index + 1]) * member.size for index, member in enumerate(wanted)}
    archive = b"".join(
        encode_member_header(member) + data[index] + bytes(padding_len(member.size))
        for index, member in enumerate(wanted)
    )
    archive += END_OF_ARCHIVE
    for tar_len in (None, len(archive)):
        found = list(TarParser(io.BytesIO(archive), tar_len=tar_len))
        assert [member for member, _ in found] == wanted
        for index, (member, offset) in enumerate(found):
            assert archive[offset : offset + member.size] == data[index]


@given(members(), st.data())
@settings(max_examples=200, deadline=None)
def test_damage_is_an_error_or_another_member_but_never_a_crash(
    member: TarMember, data: st.DataObject
) -> None:
    archive = bytearray(encode_member_header(member) + bytes(member.size + padding_len(member.size)))
    archive += END_OF_ARCHIVE
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    parser = TarParser(io.BytesIO(archive[: data.draw(st.integers(0, len(archive)))]))
    try:
        for _ in parser:
            parser.read(100)
    except BackupError:
        return


@given(st.binary(max_size=200))
@example(b"11 a=\n5 b=\n\n")
@settings(max_examples=300, deadline=None)
def test_pax_records_of_any_bytes(payload: bytes) -> None:
    try:
        records = parse_pax_records(payload)
    except ArchiveFormatError:
        return
    assert sum(len(key) + len(value) for key, value in records.items()) <= len(payload)
