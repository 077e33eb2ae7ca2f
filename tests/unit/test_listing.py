"""Listing a directory, comparing it with cached lines and reading ahead: in C, and the twin alike."""

from __future__ import annotations

import gc
import importlib
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from support.descriptors import open_descriptors
from support.trees import NASTY_NAMES

from incremental_backups_tools.chain.policy import COARSE_SIGNING, FINE_SIGNING, Signing, is_signed
from incremental_backups_tools.delta import choose_block_len, signature
from incremental_backups_tools.tree.entry import Entry, encode_line, line_of_entry
from incremental_backups_tools.tree.listing import FileFields, Listing, Reader, Reading, ReadLimits
from incremental_backups_tools.tree.metadata import capture
from incremental_backups_tools.tree.read_ahead import AHEAD_FILE_LEN, ReadFile
from incremental_backups_tools.tree.walk import Found

MODULES = ["_native", "_listing_twin"]
PREFIX = b"some/d\xc3\xadr/"
LIMITS = ReadLimits(max_files=64, max_len=1 << 16, max_total=1 << 20)


def kind_of(name: str) -> type[Listing]:
    return importlib.import_module(f"incremental_backups_tools.tree.{name}").Listing


def reader_for(listing: Listing) -> Reader:
    return importlib.import_module(type(listing).__module__).Reader(FINE_SIGNING.small_files)


def files_of(reading: Reading) -> list[FileFields]:
    return [reading.file(position) for position in range(len(reading))]


def read_ahead(listing: Listing, first: int, directory: int, limits: ReadLimits = LIMITS) -> Reading:
    with closing(reader_for(listing)) as reader:
        return listing.read_ahead(first, directory, *limits, reader)


@pytest.fixture(params=MODULES)
def kind(request: pytest.FixtureRequest) -> type[Listing]:
    return kind_of(request.param)


@pytest.fixture
def directory(tmp_path: Path, no_open_descriptors: None) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def entry_of(dir_fd: int, name: bytes, prefix: bytes = PREFIX) -> Entry:
    info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return capture(Found(prefix + name, name, dir_fd, info), info)


def line_of(entry: Entry) -> bytes:
    return encode_line(line_of_entry(entry)) + b"\n"


def lines_of(dir_fd: int, listing: Listing) -> bytes:
    return b"".join(line_of(entry_of(dir_fd, name)) for name in listing.names())


def test_names_are_sorted_and_have_their_stats(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    for name in NASTY_NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(name)
    (tmp_path / "sub").mkdir()
    os.utime(tmp_path / "plain", ns=(-1_500_000_000, -1_500_000_000))

    listing = kind(directory)

    assert listing.names() == sorted([*NASTY_NAMES, b"sub"])
    assert len(listing) == len(NASTY_NAMES) + 1
    for number, name in enumerate(listing.names()):
        expected = os.stat(name, dir_fd=directory, follow_symlinks=False)
        found = listing.stat(number)
        assert listing.name(number) == name
        assert listing.is_dir(number) == (name == b"sub")
        for field in ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "blocks", "blksize", "rdev"):
            assert getattr(found, f"st_{field}") == getattr(expected, f"st_{field}")
        assert (found.st_mtime_ns, found.st_ctime_ns) == (expected.st_mtime_ns, expected.st_ctime_ns)
        assert found.st_mtime == expected.st_mtime
    own = os.fstat(directory)
    assert (listing.own_stat().st_ino, listing.own_stat().st_mtime_ns) == (own.st_ino, own.st_mtime_ns)


def test_an_empty_directory_has_no_names(directory: int, kind: type[Listing]) -> None:
    assert kind(directory).names() == []
    assert kind(directory).compare(0, b"", b"{}\n", 0) == (0, 0, 0, 0)


def test_what_cannot_be_listed_is_an_error(tmp_path: Path, kind: type[Listing]) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, pytest.raises(NotADirectoryError):
        kind(file.fileno())


def test_numbers_out_of_range_are_refused(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "file").touch()
    listing = kind(directory)
    for call in (listing.name, listing.stat, listing.is_dir):
        with pytest.raises(IndexError):
            call(1)
    for arguments in ((-1, b"", b"", 0), (0, b"", b"", 1), (0, b"", b"", -1)):
        with pytest.raises(ValueError, match="out of range"):
            listing.compare(*arguments)
    for numbers in ((-1, directory, 1, 1, 1), (0, directory, 0, 1, 1), (0, directory, 1, -1, 1)):
        with pytest.raises(ValueError, match="out of range"):
            listing.read_ahead(*numbers, reader_for(listing))
    with pytest.raises(ValueError, match="for each name"):
        listing.keep(b"\1\1")


def test_what_is_not_wanted_is_dropped(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    for name in "abcd":
        (tmp_path / name).touch()
    listing = kind(directory)
    listing.keep(bytes([0, 1, 0, 1]))
    assert listing.names() == [b"b", b"d"]
    assert listing.stat(1).st_ino == (tmp_path / "d").stat().st_ino


# --- comparing --------------------------------------------------------------------------------------------


def test_names_agree_with_their_own_lines(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("nowhere")
    os.mkfifo(tmp_path / "c")
    (tmp_path / "é").write_bytes(b"123")
    listing = kind(directory)
    lines = lines_of(directory, listing)

    assert listing.compare(0, PREFIX, b"xyz" + lines + b"rest", 3) == (4, 3 + len(lines), 2, 8)
    assert listing.compare(2, PREFIX, lines, lines.index(b'{"path":"some/d\xc3\xadr/c')) == (
        2,
        len(lines),
        1,
        3,
    )
    assert listing.compare(4, PREFIX, lines, 0) == (0, 0, 0, 0)
    assert listing.compare(0, b"other/", lines, 0) == (0, 0, 0, 0)
    assert listing.compare(0, PREFIX, lines[:-1], 0)[0] == 3  # the last line is not whole


@pytest.mark.parametrize(
    "name", ["directory", "socket", "linked", 'quo"te', "back\\slash", "new\nline", "\udcff"]
)
def test_a_name_that_needs_a_second_look_ends_the_run(
    tmp_path: Path, directory: int, kind: type[Listing], name: str
) -> None:
    path = tmp_path / name
    if name == "directory":
        path.mkdir()
    elif name == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.touch()
    if name == "linked":
        (tmp_path / "~ other").hardlink_to(path)
    (tmp_path / " first").touch()
    listing = kind(directory)
    names = listing.names()
    entries = [entry_of(directory, item) for item in names if item != b"socket"]
    lines = b"".join(map(line_of, entries))

    assert listing.compare(0, PREFIX, lines, 0)[0] == 1


CHANGES = {
    "size": 6,
    "mtime_ns": 1,
    "ctime_ns": 1,
    "inode": 1,
    "mode": 0o4601,
    "uid": 12345,
    "gid": 12345,
    "type": "fifo",
    "link_of": b"another",
    "unstable": True,
    "path": PREFIX + b"fil",
}


@pytest.mark.parametrize("field", [*CHANGES, "no ctime_ns", "no inode"])
def test_every_mark_of_a_change_ends_the_run(
    tmp_path: Path, directory: int, kind: type[Listing], field: str
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    entry = entry_of(directory, b"file")
    change = {field[3:]: None} if field.startswith("no ") else {field: CHANGES[field]}
    listing = kind(directory)

    assert listing.compare(0, PREFIX, line_of(entry), 0)[0] == 1
    assert listing.compare(0, PREFIX, line_of(msgspec.structs.replace(entry, **change)), 0)[0] == 0


def test_what_else_a_line_says_does_not_matter(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    entry = entry_of(directory, b"file")
    entry = msgspec.structs.replace(
        entry, user=b'a "b" \\ c', xattrs=((b"user.x", b'}]"'),), sparse=((0, 1), (3, 2)), digest=bytes(32)
    )
    assert kind(directory).compare(0, PREFIX, line_of(entry), 0)[0] == 1


@pytest.mark.parametrize(("name", "other"), [(b'a\\"b', b'a"b'), (b"a\\\\b", b"a\\b"), (b"a\\nb", b"a\nb")])
def test_a_name_that_looks_like_another_one_in_json_is_not_that(
    tmp_path: Path, directory: int, kind: type[Listing], name: bytes, other: bytes
) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(b"12345")
    entry = msgspec.structs.replace(entry_of(directory, name), path=PREFIX + other)
    assert b'"' + PREFIX + name + b'"' in line_of(entry)
    assert kind(directory).compare(0, PREFIX, line_of(entry), 0)[0] == 0


@pytest.mark.parametrize("more", [b"x", b"}", b",", b'{"mode":1}'])
def test_a_line_with_something_behind_it_is_none(
    tmp_path: Path, directory: int, kind: type[Listing], more: bytes
) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    line = line_of(entry_of(directory, b"file"))[:-1]
    assert kind(directory).compare(0, PREFIX, line + more + b"\n", 0)[0] == 0


@pytest.mark.parametrize("field", ["size", "ctime_ns", "inode"])
def test_a_field_that_stands_twice_does_not_agree_in_c(tmp_path: Path, directory: int, field: str) -> None:
    """The twin takes the last one, as the rest of the package does: nobody writes such a line."""
    (tmp_path / "file").write_bytes(b"12345")
    line = line_of(entry_of(directory, b"file"))[:-1]
    twice = line[:-1] + b',"%b":%d}' % (field.encode(), msgspec.json.decode(line)[field])
    listing = kind_of("_native")(directory)
    assert listing.compare(0, PREFIX, line + b"\n", 0)[0] == 1
    assert listing.compare(0, PREFIX, twice + b"\n", 0)[0] == 0


def test_a_directory_agrees_with_its_own_line(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "sub").mkdir()
    line = line_of(entry_of(directory, b"sub"))[:-1]
    fd = os.open(tmp_path / "sub", os.O_RDONLY)
    try:
        assert kind(fd).agrees(PREFIX + b"sub", line)
        assert not kind(fd).agrees(PREFIX + b"su", line)
        assert not kind(directory).agrees(PREFIX + b"sub", line)
        (tmp_path / "sub" / "new").touch()
        assert not kind(fd).agrees(PREFIX + b"sub", line)
    finally:
        os.close(fd)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_line_that_was_tampered_with_agrees_for_both_or_for_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """And where it agrees, it still says what it did of all that is compared."""
    path = tmp_path_factory.mktemp("tampered") / "file"
    path.write_bytes(b"12345")
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        entry = entry_of(fd, b"file")
        line = bytearray(line_of(msgspec.structs.replace(entry, digest=bytes(32)))[:-1])
        for _ in range(data.draw(st.integers(1, 3))):
            start = data.draw(st.integers(0, len(line)))
            end = data.draw(st.integers(start, min(len(line), start + 4)))
            line[start:end] = data.draw(
                st.sampled_from([b"", b'"', b"}", b"{", b",", b"\\", b"0", b"[]", b"\0"])
            )
        raw = bytes(line).replace(b"\n", b"") + b"\n"
        native, twin = (kind_of(name)(fd).compare(0, PREFIX, raw, 0)[0] for name in MODULES)
        if native:
            says = msgspec.json.decode(raw)
            assert (says["size"], says["inode"], says["type"]) == (5, entry.inode, "file")
            assert (says["mtime_ns"], says["ctime_ns"]) == (entry.mtime_ns, entry.ctime_ns)
        assert native == twin
    except msgspec.DecodeError:
        assert not twin
    finally:
        os.close(fd)


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=300))
def test_junk_agrees_with_nothing(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "f"
    path.touch()
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        for name in MODULES:
            listing = kind_of(name)(fd)
            assert listing.compare(0, b"", b'{"path":"f"' + junk + b"\n", 0)[0] == 0
            assert not listing.agrees(b"f", b'{"path":"f"' + junk)
    finally:
        os.close(fd)


# --- reading ahead ----------------------------------------------------------------------------------------


def test_small_files_are_read_up_to_the_next_directory(
    tmp_path: Path, directory: int, kind: type[Listing]
) -> None:
    contents = {b"a": b"", b"b": b"1" * 4097, b"c": os.urandom(60_000)}
    for name, content in contents.items():
        (tmp_path / os.fsdecode(name)).write_bytes(content)
    (tmp_path / "d").mkdir()
    (tmp_path / "e").write_bytes(b"behind it")
    listing = kind(directory)

    reading = read_ahead(listing, 0, directory)
    files = files_of(reading)

    assert reading.end == 3
    read = [ReadFile._make(fields) for fields in files]
    assert [(file.name, bytes(file.content)) for file in read] == list(contents.items())
    for file in read:
        info = (tmp_path / os.fsdecode(file.name)).stat()
        assert file.name == listing.name(file.number)
        assert (file.mode, file.uid, file.gid) == (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
        assert (file.mtime_ns, file.ctime_ns) == (info.st_mtime_ns, info.st_ctime_ns)
        assert (file.inode, file.dev) == (info.st_ino, info.st_dev)
    assert [file[0] for file in files_of(read_ahead(listing, 4, directory))] == [4]
    for first in (3, 5):
        reading = read_ahead(listing, first, directory)
        assert (reading.end, files_of(reading)) == (first, [])


def test_files_are_signed_as_they_are_by_themselves(
    tmp_path: Path, directory: int, kind: type[Listing]
) -> None:
    sizes = sorted(
        {0, *(size + more for size in (1 << bits for bits in range(9, 17)) for more in (-1, 0, 1))}
    )
    for number, size in enumerate(sizes):
        (tmp_path / f"{number:02}").write_bytes(os.urandom(size))

    files = files_of(read_ahead(kind(directory), 0, directory))

    read = [ReadFile._make(fields) for fields in files]
    assert [len(file.content) for file in read] == [size for size in sizes if size <= LIMITS[1]]
    for file in read:
        size = len(file.content)
        assert file.digest == blake3(file.content).digest()
        assert (file.signature is not None) == is_signed(size)
        if file.signature is not None:
            assert file.signature == signature(bytes(file.content), block_len=choose_block_len(size))
            assert file.sig_digest == blake3(file.signature).digest()
        else:
            assert file.sig_digest is None


@pytest.mark.parametrize("signing", [FINE_SIGNING, COARSE_SIGNING])
def test_the_block_length_of_small_files_is_the_one_of_all(signing: Signing) -> None:
    for size in range(0, AHEAD_FILE_LEN + 1, 37):
        chosen = signing.block_len(size) if is_signed(size) else 0
        assert signing.small_files.block_lens[size.bit_length()] == chosen


def test_files_have_their_positions_and_numbers(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to("a")
    reading = read_ahead(kind(directory), 0, directory)
    assert len(reading) == 2
    assert [reading.number(position) for position in (0, 1)] == [0, 2]
    assert reading.most_bytes >= 14
    for position in (2, 1 << 40):
        with pytest.raises(IndexError):
            reading.number(position)
        with pytest.raises(IndexError):
            reading.file(position)


def test_what_is_too_long_to_be_hashed_is_refused(directory: int, kind: type[Listing]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        read_ahead(kind(directory), 0, directory, ReadLimits(1, (1 << 20) + 1, 1))


def test_what_is_signed_in_no_known_way_is_refused() -> None:
    reader = importlib.import_module("incremental_backups_tools.tree._native").Reader
    for wrong in ((0, 1, 1, ()), (33, 1, 1, ()), (16, 2, 1, ()), (16, 1, 0, ()), (16, 1, 1, (0,) * 65)):
        with pytest.raises(ValueError, match="cannot be made so"):
            reader((1, *wrong))
    for block_len in (1 << 31, 63):
        with pytest.raises(ValueError, match="too long or too short"):
            reader((1, 16, 1, 1, (0, block_len)))
    for odd in (None, [1, 16, 1, 1, ()], (1, 16, 1, 1, [])):
        with pytest.raises(TypeError):
            reader(odd)
    with pytest.raises(TypeError):
        reader()


def test_only_a_reader_reads(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with pytest.raises(TypeError, match="by a Reader"):
        kind(directory).read_ahead(0, directory, *LIMITS, FINE_SIGNING.small_files)  # type: ignore[arg-type]


def test_a_reader_that_is_closed_reads_at_once(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "a").write_bytes(b"content")
    listing = kind(directory)
    reader = reader_for(listing)
    for _ in range(2):
        reader.close()
        before = len(os.listdir("/proc/self/task"))
        reading = listing.read_ahead(0, directory, *LIMITS, reader)
        assert len(os.listdir("/proc/self/task")) == before
        assert [bytes(file[9]) for file in files_of(reading)] == [b"content"]


def test_many_readings_wait_for_one_thread(tmp_path: Path, directory: int) -> None:
    for number in range(64):
        (tmp_path / f"{number:02}").write_bytes(os.urandom(1 << 14))
    listing = kind_of("_native")(directory)
    before = len(os.listdir("/proc/self/task"))
    with closing(reader_for(listing)) as reader:
        readings = [listing.read_ahead(number, directory, *LIMITS, reader) for number in range(64)]
        assert len(os.listdir("/proc/self/task")) == before + 1
        # In any order, and not all of them.
        for number in (63, 0, 40):
            assert [file[0] for file in files_of(readings[number])] == list(range(number, 64))
            readings[number] = None
    assert [file[0] for file in files_of(readings[1])] == list(range(1, 64))
    assert len(os.listdir("/proc/self/task")) == before


def test_a_reading_that_nobody_asks_for_leaves_nothing(tmp_path: Path, directory: int) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").write_bytes(os.urandom(1 << 15))
    listing = kind_of("_native")(directory)
    before = open_descriptors()
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        reader = reader_for(listing)
        reading = listing.read_ahead(0, directory, *LIMITS, reader)
        with pytest.raises(ValueError, match="being read"):
            listing.keep(b"\1" * 50)
        del reading
        del reader
    assert open_descriptors() - before == set()
    assert len(os.listdir("/proc/self/task")) == threads
    listing.keep(b"\1" * 50)


def test_contents_outlive_what_read_them(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    (tmp_path / "a").write_bytes(b"content" * 1000)
    listing = kind(directory)
    reader = reader_for(listing)
    reading = listing.read_ahead(0, directory, *LIMITS, reader)
    if kind is kind_of("_native"):
        with pytest.raises(BufferError, match="being read"):
            memoryview(reading)  # type: ignore[arg-type]
    content = files_of(reading)[0][9]
    reader.close()
    del reading, reader, listing
    gc.collect()
    assert bytes(content) == b"content" * 1000
    assert content.readonly or kind is not kind_of("_native")


def test_no_more_is_read_than_is_allowed(tmp_path: Path, directory: int, kind: type[Listing]) -> None:
    for name in "abcd":
        (tmp_path / name).write_bytes(b"1" * 100)
    listing = kind(directory)

    for limits, count in (((2, 100, 1000), 2), ((64, 100, 101), 2), ((64, 99, 1000), 0)):
        assert len(files_of(read_ahead(listing, 0, directory, ReadLimits(*limits)))) == count


def make_sparse(path: Path) -> None:
    os.truncate(path, 1 << 15)


ODD = {
    "sparse": make_sparse,
    "with an attribute": lambda path: os.setxattr(path, "user.x", b"1"),
    "linked": lambda path: (path.parent / "z other").hardlink_to(path),
    "long": lambda path: path.write_bytes(bytes(1 << 17)),
    "a symlink": lambda path: (path.unlink(), path.symlink_to("a")),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("moment", ["before", "after"], ids=lambda moment: f"{moment} it was listed")
@pytest.mark.parametrize("what", ODD)
def test_what_needs_a_closer_look_is_left_out(
    tmp_path: Path, directory: int, kind: type[Listing], what: str, moment: str
) -> None:
    for name in ("a", "odd", "y"):
        (tmp_path / name).write_bytes(b"content")
    if moment == "before":
        ODD[what](tmp_path / "odd")
    listing = kind(directory)
    if moment == "after":
        ODD[what](tmp_path / "odd")

    names = [file[1] for file in files_of(read_ahead(listing, 0, directory))]

    assert names == [b"a", b"y"]


def test_a_file_with_a_flag_is_left_out(
    root: None, tmp_path: Path, directory: int, kind: type[Listing]
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"content")
    assert os.system(f"chattr +d {tmp_path / 'a'}") == 0
    files = files_of(read_ahead(kind(directory), 0, directory))
    assert [file[0] for file in files] == [1]


def test_what_went_or_grew_since_it_was_listed_is_left_out(
    tmp_path: Path, directory: int, kind: type[Listing]
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"content")
    (tmp_path / "c").write_bytes(b"content")
    listing = kind(directory)
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_bytes(b"CONTENT")
    (tmp_path / "c").write_bytes(b"new content")
    assert [bytes(file[9]) for file in files_of(read_ahead(listing, 0, directory))] == [b"CONTENT"]


def test_a_file_that_changes_while_it_is_read_is_left_out(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the twin, where a change can be made to come at that moment."""
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").write_bytes(b"content")
    victim = (tmp_path / "a").stat().st_ino
    real = os.read

    def hooked(fd: int, length: int) -> bytes:
        data = real(fd, length)
        if os.fstat(fd).st_ino == victim:
            os.utime(tmp_path / "a", ns=(1, 1))
        return data

    monkeypatch.setattr(os, "read", hooked)
    files = files_of(read_ahead(kind_of("_listing_twin")(directory), 0, directory))
    monkeypatch.undo()
    assert [file[0] for file in files] == [1]
