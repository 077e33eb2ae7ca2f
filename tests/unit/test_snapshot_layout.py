"""Names among snapshots, and the index of one: what is written comes back, what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from incremental_backups_tools.exceptions import StateFormatError, UnsupportedVersionError
from incremental_backups_tools.heap.snapshots.index import (
    IndexDraft,
    SnapshotHeader,
    check_index,
    iter_index,
    object_of,
    read_snapshot_header,
    with_object,
)
from incremental_backups_tools.heap.snapshots.layout import (
    MAKING,
    REMOVING,
    ObjectName,
    index_file,
    is_unfinished_name,
    metadata_key,
    parse_damaged_path,
    parse_index_file,
    parse_object_path,
    unfinished_name,
    validate_name,
)
from incremental_backups_tools.tree.entry import Acl, Entry, Location

ID = "20261120T072531.123456Z"
FILE = Entry(path=b"file", type="file", mode=0o644, uid=1, gid=2, size=3, mtime_ns=4, digest=b"\xab" * 32)
ROOT = Entry(path=b".", type="dir", mode=0o755)
HEADER = SnapshotHeader(name="n", id=ID, source="/n", host="h", start_ns=1, end_ns=2, entries=2)


def test_an_object_is_named_by_content_metadata_and_number() -> None:
    name = ObjectName.of(FILE)
    assert name.path == f"ab/{'ab' * 31}.{metadata_key(FILE)}.0"
    assert name.next.next.path.endswith(".2")
    for each in (name, name.next, ObjectName(name.digest, name.metadata, 10)):
        assert parse_object_path(each.path) == each
        assert parse_damaged_path(each.damaged_path) == each
    with pytest.raises(ValueError, match="digest"):
        ObjectName.of(ROOT)


@pytest.mark.parametrize(
    "path", ["", "ab/cd", f"../{'ab' * 31}.{'0' * 32}.0", f"ab/{'ab' * 31}.{'0' * 32}.00"]
)
def test_what_is_no_object_is_none(path: str) -> None:
    assert parse_object_path(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"mode": 0o600},
        {"uid": 9},
        {"gid": 9},
        {"mtime_ns": 9},
        {"xattrs": ((b"user.a", b"b"),)},
        {"acl": Acl(access="u::rw-")},
    ],
)
def test_whatever_an_inode_has_but_once_tells_instances_apart(change: dict[str, object]) -> None:
    assert metadata_key(msgspec.structs.replace(FILE, **change)) != metadata_key(FILE)


def test_names_and_places_do_not_tell_instances_apart() -> None:
    other = msgspec.structs.replace(FILE, path=b"other", inode=7, ctime_ns=8, user=b"somebody", size=9)
    assert metadata_key(other) == metadata_key(FILE)


def test_names_of_files() -> None:
    assert parse_index_file(index_file(ID)) == ID
    assert parse_index_file("x.jsonl.zst") is None
    assert is_unfinished_name(unfinished_name(ID, MAKING)) and is_unfinished_name(
        unfinished_name(ID, REMOVING)
    )
    assert not is_unfinished_name(ID) and not is_unfinished_name(".x.making")
    assert validate_name("a-name.1") == "a-name.1"
    for name in ("", ".", "..", ".ibt-snapshots", "a/b", "a b", "\xe9", "x" * 200):
        with pytest.raises(ValueError, match="cannot be the name of snapshots"):
            validate_name(name)


def write_index(path: Path, *entries: Entry, header: SnapshotHeader = HEADER) -> Path:
    with IndexDraft() as draft:
        for entry in entries:
            draft.add(entry)
        draft.publish(str(path), header)
    return path


def test_an_index_comes_back_as_it_was_written(tmp_path: Path) -> None:
    entry = with_object(FILE, ObjectName.of(FILE))
    path = write_index(tmp_path / "index", ROOT, entry)
    assert list(iter_index(path)) == [ROOT, entry]
    assert object_of(entry) == ObjectName.of(FILE)
    assert read_snapshot_header(path) == HEADER
    check_index(path)
    with pytest.raises(FileExistsError):
        write_index(path)


def test_a_damaged_index_is_refused_to_its_last_byte(tmp_path: Path) -> None:
    path = write_index(tmp_path / "index", ROOT, with_object(FILE, ObjectName.of(FILE)))
    data, entries = path.read_bytes(), list(iter_index(path))
    refused = 0
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1
        for damaged in (data[:position], bytes(flipped)):
            path.write_bytes(damaged)
            # A bit that means nothing to the compressor changes nothing, nor does a cut in its last checksum.
            try:
                assert list(iter_index(path)) == entries
            except StateFormatError:
                refused += 1
    assert refused > 1.9 * len(data)


@pytest.mark.parametrize(
    "entries",
    [
        (with_object(FILE, ObjectName.of(FILE)), ROOT),
        (ROOT, FILE),
        (ROOT, msgspec.structs.replace(FILE, data=Location("../../etc/passwd", 0, 3))),
        (ROOT, msgspec.structs.replace(FILE, data=Location(ObjectName("cd" * 32, "0" * 32).path, 0, 3))),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, entries: tuple[Entry, ...]) -> None:
    with pytest.raises(StateFormatError):
        list(iter_index(write_index(tmp_path / "index", *entries)))


def test_an_index_of_another_format_is_refused(tmp_path: Path) -> None:
    newer = msgspec.structs.replace(HEADER, version=2)
    with pytest.raises(UnsupportedVersionError):
        check_index(write_index(tmp_path / "newer", header=newer))
    with pytest.raises(StateFormatError, match="not a snapshot's index"):
        check_index(
            write_index(tmp_path / "other", header=msgspec.structs.replace(HEADER, format="ibt-index"))
        )
