"""What plain files are in archives and lists: the same bytes that every other way makes of their entries."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from incremental_backups_tools.archive.members import file_member, plain_member
from incremental_backups_tools.archive.tar import encode_member_header, padding_len
from incremental_backups_tools.chain.index_cache import encode_resolved
from incremental_backups_tools.chain.plain_files import PlainFiles, Volume, encode_plain, find_seen
from incremental_backups_tools.chain.policy import FINE_SIGNING, MIN_SHARED_LEN
from incremental_backups_tools.chain.resolve import ResolvedEntry
from incremental_backups_tools.chain.seen_filter import add_to_filter, digest_prefix, is_in_filter, new_filter
from incremental_backups_tools.chain.state import FULL, StateLine, encode_state_line
from incremental_backups_tools.tree.diff import CREATED
from incremental_backups_tools.tree.entry import (
    Entry,
    IndexDigest,
    Location,
    SignatureRef,
    sort_key,
)
from incremental_backups_tools.tree.listing import ReadLimits, list_directory, make_reader
from incremental_backups_tools.tree.metadata import plain_entry
from incremental_backups_tools.tree.read_ahead import ReadFile, ReadFiles
from incremental_backups_tools.tree.unchanged import for_next_time
from incremental_backups_tools.tree.walk import Run

WHOLE = b"20261120T072531.123456Z.full.0003.tar.zst", 5120
SIGVAULT = b"20261120T072531.123456Z.sigvault.0000.tar.zst", (1 << 40) + 512
BEGIN_NS = 1_800_000_000_000_000_000
ROOM = 1 << 30
LIMITS = ReadLimits(max_files=64, max_len=1 << 16, max_total=1 << 20)

both = pytest.mark.parametrize("twin", [False, True], ids=["native", "twin"])


@dataclass(frozen=True)
class Spec:
    """A file that is to be made."""

    name: bytes = b"name"
    content: bytes = b"content"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 1_700_000_000_123_456_789

    def make(self, directory: Path) -> None:
        path = os.path.join(os.fsencode(directory), self.name)
        with open(path, "wb") as file:
            file.write(self.content)
        os.chown(path, self.uid, self.gid)
        os.chmod(path, self.mode)
        os.utime(path, ns=(self.mtime_ns, self.mtime_ns))


@contextmanager
def read_files(
    specs: list[Spec], *, prefix: bytes = b"", begin_ns: int = BEGIN_NS, where: Path | None = None
) -> Iterator[ReadFiles]:
    """Files of these kinds, read as a backup does."""
    directory = Path(tempfile.mkdtemp(dir=where))
    fd = os.open(directory, os.O_RDONLY)
    try:
        for spec in specs:
            spec.make(directory)
        listing = list_directory(fd)
        with closing(make_reader(FINE_SIGNING.small_files)) as reader:
            reading = listing.read_ahead(0, fd, *LIMITS, reader)
        count = len(reading)
        assert count == len({spec.name for spec in specs})
        yield ReadFiles(Run(reading, prefix, 0, count, begin_ns, listing, fd), 0, count)
    finally:
        os.close(fd)
        shutil.rmtree(directory)


@dataclass
class Encoded:
    """What was made, with what it added to the members and to the filter."""

    plain: PlainFiles
    members: bytes
    signatures: bytes
    seen: bytearray


def encoded(read: ReadFiles, *, twin: bool, room: int = ROOM, sig_room: int = ROOM) -> Encoded:
    seen = new_filter()
    whole, sigvault = (
        Volume(*WHOLE, room, bytearray(b"members")),
        Volume(*SIGVAULT, sig_room, bytearray(b"s")),
    )
    plain = encode_plain(read, whole=whole, sigvault=sigvault, seen=seen, twin=twin)
    assert whole.out.startswith(b"members")
    assert sigvault.out.startswith(b"s")
    return Encoded(plain, bytes(whole.out[7:]), bytes(sigvault.out[1:]), seen)


def expected(files: list[ReadFile], prefix: bytes, begin_ns: int = BEGIN_NS) -> Encoded:
    """By the ways for every entry."""
    members, signatures, states, indexes = b"", b"", b"", b""
    lens: list[int] = []
    sig_lens: list[int] = []
    rows: list[tuple[int, int, bytes]] = []
    digest, seen = IndexDigest(), new_filter()
    for file in files:
        entry: Entry = plain_entry(prefix + file.name, file, blake3(file.content).digest())
        begin = len(members)
        members += encode_member_header(file_member(entry))
        data = Location(WHOLE[0].decode(), WHOLE[1] + len(members), entry.size)
        members += bytes(file.content) + bytes(padding_len(entry.size))
        lens.append(len(members) - begin)
        sig = None
        if file.signature is not None:
            length, begin = len(file.signature), len(signatures)
            signatures += encode_member_header(plain_member(entry.path, length, mtime_ns=entry.mtime_ns))
            offset = SIGVAULT[1] + len(signatures)
            sig = SignatureRef(SIGVAULT[0].decode(), offset, length, blake3(file.signature).hexdigest())
            signatures += file.signature + bytes(padding_len(length))
            sig_lens.append(len(signatures) - begin)
        fields = {name: getattr(entry, name) for name in entry.__struct_fields__}
        placed = Entry(**fields | {"data": data, "sig": sig})
        states += encode_state_line(StateLine(CREATED, placed), kind=FULL) + b"\n"
        resolved = ResolvedEntry(
            for_next_time(entry, begin_ns),
            (data,),
            (sig.location,) if sig is not None else (),
            sig.digest if sig is not None else None,
            entry.digest,
        )
        indexes += encode_resolved(resolved) + b"\n"
        digest.add(entry)
        if entry.size >= MIN_SHARED_LEN:
            rows.append((entry.size, digest_prefix(file.digest), sort_key(entry.path)))
            add_to_filter(seen, rows[-1][1])
    total = sum(len(file.content) for file in files)
    plain = PlainFiles(
        len(files), total, lens, sig_lens, states, indexes, bytes.fromhex(digest.hexdigest()), rows
    )
    return Encoded(plain, members, signatures, seen)


def all_of(read: ReadFiles) -> list[ReadFile]:
    return [read.file(position) for position in range(read.begin, read.end)]


NAMES = st.text("".join(map(chr, set(range(0x20, 0x7F)) - set(b'"\\/'))), min_size=1, max_size=50)
TIMES = st.one_of(
    st.integers(0, 8 * 10**18),
    st.integers(BEGIN_NS - 3 * 10**9, BEGIN_NS + 10**9),
    st.integers(BEGIN_NS // 10**9 - 3, BEGIN_NS // 10**9 + 1).map(lambda seconds: seconds * 10**9),
)
SPECS = st.builds(
    Spec,
    name=NAMES.filter(lambda name: name not in (".", "..")).map(str.encode),
    content=st.binary(max_size=1500) | st.integers(1000, 9000).map(lambda length: b"x" * length),
    mode=st.sampled_from([0o644, 0o600, 0o7777, 0, 0o755]),
    uid=st.sampled_from([0, 1, 65534, 0o7777777]),
    gid=st.sampled_from([0, 5, 65534, 0o7777777]),
    mtime_ns=TIMES,
)


@both
@given(
    specs=st.lists(SPECS, max_size=6, unique_by=lambda spec: spec.name),
    prefix=st.sampled_from([b"", b"a/", b"some directory/~x/"]),
    clock=st.sampled_from([0, -3 * 10**9, 3 * 10**9, 10**18]),
)
def test_the_bytes_are_those_of_the_ways_for_every_entry(
    twin: bool, specs: list[Spec], prefix: bytes, clock: int
) -> None:
    with read_files(specs, prefix=prefix) as read:
        # The ctime is the present's: whether it vouches for the file depends on when reading began.
        newest = max((file.ctime_ns for file in all_of(read)), default=BEGIN_NS)
        run = msgspec.structs.replace(read.run, begin_ns=newest + clock)
        read = msgspec.structs.replace(read, run=run)
        made, want = encoded(read, twin=twin), expected(all_of(read), prefix, read.begin_ns)
        assert made == want


@both
def test_a_part_of_what_was_read(twin: bool) -> None:
    specs = [Spec(b"%d" % number, b"%d" % number * 1000) for number in range(6)]
    with read_files(specs) as read:
        part = read.since(2).until(5)
        assert len(part) == 3
        assert encoded(part, twin=twin) == expected(all_of(read)[2:5], b"")
        assert encoded(read.until(0), twin=twin) == expected([], b"")


@both
@pytest.mark.parametrize(
    "odd",
    [
        {"name": "näme".encode()},
        {"name": b"m\xff"},
        {"name": b'm"te'},
        {"name": b"m\\slash"},
        {"name": b"m\nline"},
        {"name": b"m\x7f"},
        {"name": b"n" * 98},
        {"mtime_ns": -1},
        {"mtime_ns": (0o77777777777 + 1) * 10**9},
        {"uid": 0o7777777 + 1},
        {"gid": (1 << 32) - 2},
    ],
    ids=repr,
)
def test_what_is_not_plain_ends_the_run(odd: dict[str, Any], twin: bool) -> None:
    specs = [Spec(b"a"), replace(Spec(b"m"), **odd), Spec(b"z")]
    with read_files(specs, prefix=b"a/b", where=Path("/dev/shm")) as read:
        assert [file.name for file in all_of(read)] == sorted(spec.name for spec in specs)
        position = [file.name for file in all_of(read)].index(specs[1].name)
        assert encoded(read, twin=twin) == expected(all_of(read)[:position], b"a/b")
        assert encoded(read.since(position), twin=twin).plain.count == 0


@both
def test_the_longest_plain_path_and_the_last_plain_time(twin: bool) -> None:
    last_ns = (0o77777777777 + 1) * 10**9 - 1
    with read_files([Spec(b"n" * 97, mtime_ns=last_ns)], prefix=b"a/b", where=Path("/dev/shm")) as read:
        assert all_of(read)[0].mtime_ns == last_ns
        assert encoded(read, twin=twin) == expected(all_of(read), b"a/b")


@both
def test_what_a_volume_has_no_room_for_ends_the_run(twin: bool) -> None:
    with read_files([Spec(name, name * 2000) for name in (b"a", b"b", b"c")]) as read:
        files = all_of(read)
        for room, count in ((2559, 0), (2560, 1), (5119, 1), (5120, 2), (7680, 3)):
            assert encoded(read, twin=twin, room=room) == expected(files[:count], b"")
        for sig_room, count in ((1023, 0), (1024, 1), (2048, 2)):
            assert encoded(read, twin=twin, sig_room=sig_room) == expected(files[:count], b"")


@both
def test_contents_that_may_be_held_are_found(twin: bool) -> None:
    contents = {
        b"a": b"1" * 64,
        b"b": b"2" * 64,
        b"c": b"1" * 64,
        b"d": b"3" * 64,
        b"e": b"short",
        b"f": b"short",
    }
    with read_files([Spec(*item) for item in contents.items()]) as read:
        seen = new_filter()
        assert find_seen(read, seen, twin=twin) == [2]
        assert seen == new_filter()
        add_to_filter(seen, digest_prefix(blake3(b"3" * 64).digest()))
        add_to_filter(seen, digest_prefix(blake3(b"short").digest()))
        assert find_seen(read, seen, twin=twin) == [2, 3]
        assert find_seen(read.since(2), seen, twin=twin) == [3]
        encode_plain(
            read,
            whole=Volume(b"v", 0, ROOM, bytearray()),
            sigvault=Volume(b"s", 0, ROOM, bytearray()),
            seen=seen,
            twin=twin,
        )
        assert find_seen(read, seen, twin=twin) == [0, 1, 2, 3]


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=50))
def test_a_filter_knows_all_that_was_added(digests: list[bytes]) -> None:
    bits = new_filter()
    for digest in digests:
        add_to_filter(bits, digest_prefix(digest))
    assert all(is_in_filter(bits, digest_prefix(digest)) for digest in digests)
    assert sum(byte.bit_count() for byte in bits) <= len(digests)


def arguments(read: ReadFiles, **changed: object) -> tuple[object, ...]:
    owner = (bytes(24), bytes(356), 0, b"line", b"encoding")
    given: dict[str, object] = {
        "table": read.run.reading.table,  # type: ignore[attr-defined]
        "begin": 0,
        "end": len(read),
        "prefix": b"",
        "whole": (b"v", 0, ROOM, bytearray()),
        "sigvault": (b"s", 0, ROOM, bytearray()),
        "sig_owner": (bytes(24), bytes(356), 0),
        "owner_of": lambda *_: owner,
        "clock": (0, 0, 0),
        "noted_len": 64,
        "seen": new_filter(),
    }
    return tuple((given | changed).values())


WRONG: dict[str, tuple[dict[str, object], type[Exception]]] = {
    "no table": ({"table": None}, ValueError),
    "begin": ({"begin": -1}, IndexError),
    "end": ({"end": 3}, IndexError),
    "end before begin": ({"begin": 1, "end": 0}, IndexError),
    "no bytearray": ({"whole": (b"v", 0, ROOM, b"")}, TypeError),
    "length of the filter": ({"seen": bytearray(3)}, ValueError),
    "no filter": ({"seen": bytearray()}, ValueError),
    "filter that cannot be written": ({"seen": bytes(4)}, TypeError),
    "header of signatures": ({"sig_owner": (bytes(23), bytes(356), 0)}, ValueError),
    "header": ({"owner_of": lambda *_: (bytes(24), bytes(355), 0, b"", b"")}, ValueError),
    "no owner": ({"owner_of": lambda *_: "no owner"}, TypeError),
    "no function": ({"owner_of": lambda *_: 1 // 0}, ZeroDivisionError),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_encoded_is_refused_and_changes_nothing(wrong: str) -> None:
    encode: Callable[..., Any] = importlib.import_module(
        "incremental_backups_tools.chain._native"
    ).encode_plain
    changed, error = WRONG[wrong]
    with read_files([Spec(b"a", b"1" * 100), Spec(b"b", b"2" * 2000)]) as read:
        out, signatures, seen = bytearray(b"before"), bytearray(b"before"), new_filter()
        changed = {
            "whole": (b"v", 0, ROOM, out),
            "sigvault": (b"s", 0, ROOM, signatures),
            "seen": seen,
        } | changed
        with pytest.raises(error):
            encode(*arguments(read, **changed))
        assert (out, signatures, seen) == (b"before", b"before", new_filter())
        assert encode(*arguments(read))[0] == 2


def test_members_that_cannot_be_appended_leave_both_volumes_as_they_were() -> None:
    encode: Callable[..., Any] = importlib.import_module(
        "incremental_backups_tools.chain._native"
    ).encode_plain
    with read_files([Spec(b"a", b"1" * 2000)]) as read:
        whole, sigvault = bytearray(b"before"), bytearray(b"before")
        volumes = {"whole": (b"v", 0, ROOM, whole), "sigvault": (b"s", 0, ROOM, sigvault)}
        for held in (whole, sigvault):
            with memoryview(held), pytest.raises(BufferError):
                encode(*arguments(read, **volumes))
            assert (whole, sigvault) == (b"before", b"before")
        encode(*arguments(read, **volumes))
        whole.clear()  # a BufferError where anybody still holds it
