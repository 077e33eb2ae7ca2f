"""What plain files are in archives and lists: the same bytes that every other way makes of their entries."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.archive.members import file_member, plain_member
from incremental_backups_tools.archive.tar import encode_member_header, padding_len
from incremental_backups_tools.chain.index_cache import encode_resolved
from incremental_backups_tools.chain.plain_files import PlainFiles, Volume, encode_plain
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.state import FULL, StateLine, encode_state_line
from incremental_backups_tools.tree.diff import CREATED
from incremental_backups_tools.tree.entry import Entry, Location, SignatureRef, canonical_encoding
from incremental_backups_tools.tree.metadata import plain_entry
from incremental_backups_tools.tree.read_ahead import ReadFile
from incremental_backups_tools.tree.unchanged import for_next_time

MODULES = ("_native", "_plain_twin")
WHOLE = Volume(b"20261120T072531.123456Z.full.0003.tar.zst", 5120)
SIGVAULT = Volume(b"20261120T072531.123456Z.sigvault.0000.tar.zst", (1 << 40) + 512)
BEGIN_NS = 1_800_000_000_000_000_000


def encode_of(name: str) -> Any:
    return importlib.import_module(f"incremental_backups_tools.chain.{name}").encode_plain


@pytest.fixture(params=MODULES)
def encode(request: pytest.FixtureRequest) -> Any:
    return encode_of(request.param)


def read_file(name: bytes = b"name", content: bytes = b"content", **fields: Any) -> ReadFile:
    plain = ReadFile(
        number=0,
        name=name,
        mode=0o644,
        uid=0,
        gid=0,
        mtime_ns=1_700_000_000_123_456_789,
        ctime_ns=1_700_000_001_000_000_000,
        inode=12345,
        dev=2049,
        content=memoryview(content),
        signature=None,
    )
    return plain._replace(**fields)


def encoded(files: list[ReadFile], encode: Any, *, prefix: bytes = b"") -> PlainFiles:
    digests = [blake3(file.content).digest() for file in files]
    return encode_plain(
        files,
        digests,
        prefix=prefix,
        begin_ns=BEGIN_NS,
        whole=WHOLE,
        sigvault=SIGVAULT,
        encode=encode,
    )


def expected(files: list[ReadFile], prefix: bytes) -> PlainFiles:
    """By the ways for every entry."""
    members, signatures, states, indexes, encodings = b"", b"", b"", [], []
    for file in files:
        entry: Entry = plain_entry(prefix + file.name, file, blake3(file.content).digest())
        members += encode_member_header(file_member(entry))
        data = Location(WHOLE.file.decode(), WHOLE.tar_len + len(members), entry.size)
        members += bytes(file.content) + bytes(padding_len(entry.size))
        sig = None
        if file.signature is not None:
            length = len(file.signature)
            signatures += encode_member_header(plain_member(entry.path, length, mtime_ns=entry.mtime_ns))
            offset = SIGVAULT.tar_len + len(signatures)
            sig = SignatureRef(SIGVAULT.file.decode(), offset, length, blake3(file.signature).hexdigest())
            signatures += file.signature + bytes(padding_len(length))
        fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
        placed = Entry(**fields | {"data": data, "sig": sig})
        states += encode_state_line(StateLine(CREATED, placed), kind=FULL) + b"\n"
        resolved = ResolvedEntry(
            for_next_time(entry, BEGIN_NS),
            (data,),
            (sig.location,) if sig is not None else (),
            sig.digest if sig is not None else None,
            entry.digest,
        )
        indexes.append(encode_resolved(resolved) + b"\n")
        encodings.append(canonical_encoding(entry))
    lens = [len(line) for line in indexes]
    return PlainFiles(len(files), members, signatures, states, b"".join(indexes), lens, encodings)


NAMES = st.text("".join(map(chr, set(range(0x20, 0x7F)) - set(b'"\\/'))), min_size=1, max_size=50)
TIMES = st.one_of(
    st.integers(0, (1 << 63) - 1).map(lambda time: time % (8 * 10**18)),
    st.integers(BEGIN_NS - 3 * 10**9, BEGIN_NS + 10**9),
    st.integers(BEGIN_NS // 10**9 - 3, BEGIN_NS // 10**9 + 1).map(lambda seconds: seconds * 10**9),
)
FILES = st.builds(
    read_file,
    name=NAMES.map(str.encode),
    content=st.binary(max_size=1500),
    mode=st.sampled_from([0o644, 0o600, 0o7777, 0, 0o755]),
    uid=st.sampled_from([0, 1, 65534, 0o7777777]),
    gid=st.sampled_from([0, 5, 65534, 0o7777777]),
    mtime_ns=TIMES,
    ctime_ns=st.one_of(TIMES, st.integers(-(1 << 62), 0)),
    inode=st.integers(0, (1 << 64) - 1),
    dev=st.integers(0, (1 << 64) - 1),
    signature=st.none() | st.binary(min_size=12, max_size=700),
)


@given(files=st.lists(FILES, max_size=6), prefix=st.sampled_from([b"", b"a/", b"some directory/~x/"]))
@pytest.mark.parametrize("module", MODULES)
def test_the_bytes_are_those_of_the_ways_for_every_entry(
    module: str, files: list[ReadFile], prefix: bytes
) -> None:
    made = encoded(files, encode_of(module), prefix=prefix)
    for name in PlainFiles.__struct_fields__:
        assert getattr(made, name) == getattr(expected(files, prefix), name)


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "näme".encode()},
        {"name": b"a\xff"},
        {"name": b'quo"te'},
        {"name": b"back\\slash"},
        {"name": b"new\nline"},
        {"name": b"\x7f"},
        {"name": b"n" * 98},
        {"mtime_ns": -1},
        {"mtime_ns": (0o77777777777 + 1) * 10**9},
        {"uid": 0o7777777 + 1},
        {"gid": (1 << 32) - 1},
    ],
    ids=repr,
)
def test_what_is_not_plain_ends_the_run(odd: dict[str, Any], encode: Any) -> None:
    plain, other = read_file(b"one"), read_file(b"two")
    files = [plain, read_file(**odd), other]
    made = encoded(files, encode, prefix=b"a/b")
    assert made == expected([plain], b"a/b")
    assert encoded(files[1:], encode, prefix=b"a/b").count == 0


def test_the_longest_plain_path_and_the_last_plain_time(encode: Any) -> None:
    files = [read_file(b"n" * 97, mtime_ns=(0o77777777777 + 1) * 10**9 - 1)]
    assert encoded(files, encode, prefix=b"a/b") == expected(files, b"a/b")


def test_no_files_are_nothing(encode: Any) -> None:
    assert encoded([], encode) == PlainFiles(0, b"", b"", b"", b"", [], [])


def test_what_cannot_be_files_is_refused() -> None:
    encode = encode_of("_native")
    good = tuple(read_file(signature=b"signature"))
    digest = bytes(32)
    owner = (bytes(24), bytes(356), 0, b"line", b"encoding")
    rest = (b"", (b"v", 0), (b"s", 0), (bytes(24), bytes(356), 0), lambda *_: owner, (0, 0, 0))
    assert encode([good], [digest], [digest], *rest)[0] == 1
    wrong: list[tuple[list[Any], list[Any], list[Any]]] = [
        ([good], [], [digest]),
        ([good], [digest], []),
        ([good], [b"short"], [digest]),
        ([good], [digest], [None]),
        ([list(good)], [digest], [digest]),
        ([good[:-1]], [digest], [digest]),
        ([(*good[:9], "text", None)], [digest], [digest]),
    ]
    for files, digests, sig_digests in wrong:
        with pytest.raises((TypeError, ValueError)):
            encode(files, digests, sig_digests, *rest)
    for short in ((bytes(23), bytes(356), 0), (bytes(24), bytes(355), 0)):
        with pytest.raises(ValueError, match="pieces of a tar header"):
            encode([good], [digest], [digest], *rest[:3], short, *rest[4:])
        with pytest.raises(ValueError, match="pieces of a tar header"):
            encode([good], [digest], [digest], *rest[:4], lambda *_, short=short: (*short, b"", b""), rest[5])
    with pytest.raises(TypeError):
        encode([good], [digest], [digest], *rest[:4], lambda *_: "no owner", rest[5])
    with pytest.raises(ZeroDivisionError):
        encode([good], [digest], [digest], *rest[:4], lambda *_: 1 // 0, rest[5])


def test_nothing_leaks_where_it_fails(no_open_descriptors: None) -> None:
    """References to what was given are given back, whatever fails."""
    encode = encode_of("_native")
    content = bytearray(os.urandom(100))
    fields = tuple(read_file())
    good = (*fields[:9], memoryview(content), None)
    rest = (b"", (b"v", 0), (b"s", 0), (bytes(24), bytes(356), 0), lambda *_: 1 // 0, (0, 0, 0))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            encode([good], [bytes(32)], [None], *rest)
    del good
    content.clear()  # a BufferError where anybody still holds it
