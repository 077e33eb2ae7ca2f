"""Entries: their line of JSON, their order, their digest, and what is refused."""

from __future__ import annotations

import json

import msgspec
import pytest

from incremental_backups_tools.exceptions import StateFormatError, UnsafePathError
from incremental_backups_tools.tree.entry import (
    Acl,
    Entry,
    IndexDigest,
    Location,
    SignatureRef,
    canonical_encoding,
    check_rel_path,
    encode_line,
    entry_digest,
    entry_of_line,
    line_of_entry,
    parse_line,
    path_of_line,
    printable,
    sort_key,
)

EVERYTHING = Entry(
    path=b"dir/file-\xff",
    type="file",
    mode=0o4755,
    uid=1000,
    gid=4_000_000_000,
    user=b"user-\xfe",
    group="gruppe-ü".encode(),
    size=1 << 40,
    mtime_ns=-1,
    flags=("append", "immutable"),
    xattrs=((b"user.a", b"\0\xff"), (b"user.b", b"")),
    acl=Acl("user::rw-,group::r--,other::---", None),
    sparse=((0, 4096), (8192, 1)),
    digest=bytes(range(32)),
    data=Location("v", 512, 1 << 40),
    source=b"old name",
    sig=SignatureRef("s", 1024, 12, "00" * 32),
    unstable=True,
    change_key="etag",
    ctime_ns=5,
    inode=1 << 63,
    dev=7,
)


def round_trip(entry: Entry) -> Entry:
    return entry_of_line(parse_line(encode_line(line_of_entry(entry, "+"))))


def test_a_line_says_everything() -> None:
    assert round_trip(EVERYTHING) == EVERYTHING


@pytest.mark.parametrize(
    "entry",
    [
        Entry(path=b".", type="dir", mode=0),
        Entry(path=b"new\nline", type="symlink", mode=0o777, target=b"to \xff\n"),
        Entry(path=b"dev", type="char", mode=0o600, device=(1, 3)),
        Entry(path=b"b", type="file", mode=0o600, link_of=b"a"),
        Entry(path=b"p", type="fifo", mode=0o600, mtime_ns=-(10**18)),
    ],
)
def test_every_type_survives(entry: Entry) -> None:
    assert round_trip(entry) == entry


def test_a_line_is_json_with_op_and_path_in_front_and_no_spaces() -> None:
    line = encode_line(line_of_entry(Entry(path=b"a b", type="dir", mode=0o755), "+"))
    assert line == b'{"op":"+","path":"a b","type":"dir","mode":493,"uid":0,"gid":0,"mtime_ns":0}'
    assert json.loads(line)["path"] == "a b"


def test_a_name_that_is_not_utf8_stands_in_its_twin_field() -> None:
    line = json.loads(encode_line(line_of_entry(EVERYTHING)))
    assert "path" not in line
    assert line["path_b64"] == "ZGlyL2ZpbGUt/w=="
    assert line["from"] == "old name"


def test_unknown_fields_are_ignored() -> None:
    raw = b'{"op":"+","path":"a","type":"dir","mode":1,"uid":0,"gid":0,"mtime_ns":0,"from_the_future":[1]}'
    assert entry_of_line(parse_line(raw)).path == b"a"


def test_order_is_by_components_and_bytes() -> None:
    paths = [
        b".",
        b"!",
        b"a",
        b"a/b",
        b"a/b/c",
        b"a/b-c",
        b"a\x01",
        b"a-b",
        b"a.b",
        b"a0",
        b"\xc3\xa9",
        b"\xff",
    ]
    assert sorted(set(paths), key=sort_key) == paths


@pytest.mark.parametrize("path", [b"", b"/a", b"a/", b"a//b", b"..", b"a/../b", b"./a", b"a/.", b"a\0b"])
def test_paths_that_lead_elsewhere_are_refused(path: bytes) -> None:
    with pytest.raises(UnsafePathError):
        check_rel_path(path)
    for field in ("path", "link_of", "source"):
        entry = msgspec.structs.replace(Entry(path=b"ok", type="file", mode=0), **{field: path})
        with pytest.raises(UnsafePathError):
            round_trip(entry)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "socket"},
        {"type": None},
        {"mode": -1},
        {"mode": 0o10000},
        {"size": -1},
        {"size": 1 << 63},
        {"mtime_ns": 1 << 64},
        {"uid": -1},
        {"gid": 1 << 32},
        {"digest": "00"},
        {"digest": "zz"},
        {"type": "symlink"},
        {"type": "symlink", "target": ""},
        {"type": "char"},
        {"type": "dir", "link_of": "b"},
        {"link_of": "a"},
        {"data": {"file": "x", "offset": -1, "length": 0}},
        {"sparse": [[5, 5], [0, 1]]},
        {"sparse": [[0, 1 << 62]]},
        {"path_b64": "%%%", "path": None},
        {"user_b64": "=", "user": None},
        {"xattrs": [["?", ""]]},
        {"device": [1]},
        {"size": "1"},
        {"mode": None},
        {"uid": None},
        {"gid": None},
        {"mtime_ns": None},
        {"size": None},
        {"type": "dir"},
        {"type": "dir", "size": None, "digest": "00" * 32},
        {"path_b64": "YQ=="},
        {"path_b64": "YQ==", "path": None},
        {"acl": {}},
        {"flags": ["nodump", "append"]},
        {"flags": ["append", "append"]},
        {"xattrs": [["Yg==", ""], ["YQ==", ""]]},
    ],
)
def test_impossible_entries_are_refused(change: dict[str, object]) -> None:
    line = {"path": "a", "type": "file", "mode": 420, "uid": 0, "gid": 0, "size": 10, "mtime_ns": 0}
    entry_of_line(parse_line(json.dumps(line).encode()))
    line |= change
    with pytest.raises(StateFormatError):
        entry_of_line(parse_line(json.dumps(line).encode()))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"path":1}', b"\xff", b'{"type":"dir"}'])
def test_what_is_no_line_is_refused(raw: bytes) -> None:
    with pytest.raises(StateFormatError):
        path_of_line(parse_line(raw))


def test_the_digest_does_not_depend_on_order_and_can_be_taken_back() -> None:
    entries = [msgspec.structs.replace(EVERYTHING, path=b"%d" % number) for number in range(10)]
    one, other = IndexDigest(), IndexDigest()
    for entry in entries:
        one.add(entry)
    for entry in reversed(entries[1:]):
        other.add(entry)
    assert one.hexdigest() != other.hexdigest()
    resumed = IndexDigest(one.hexdigest())
    resumed.remove(entries[0])
    assert resumed.hexdigest() == other.hexdigest()
    assert len(resumed.hexdigest()) == 64


IN_DIGEST = {
    "path": b"other",
    "type": "fifo",
    "mode": 1,
    "uid": 2,
    "gid": 3,
    "user": None,
    "group": b"g",
    "size": 4,
    "mtime_ns": 5,
    "target": b"t",
    "link_of": b"l",
    "device": (1, 2),
    "flags": (),
    "xattrs": (),
    "acl": None,
    "digest": None,
}
NOT_IN_DIGEST = {
    "sparse": None,
    "data": None,
    "source": None,
    "sig": None,
    "unstable": False,
    "change_key": None,
    "ctime_ns": None,
    "inode": None,
    "dev": None,
}


def test_the_digest_covers_exactly_the_fields_of_format_1() -> None:
    assert IN_DIGEST.keys() | NOT_IN_DIGEST.keys() == set(Entry.__struct_fields__)
    for name, value in IN_DIGEST.items():
        changed = msgspec.structs.replace(EVERYTHING, **{name: value})
        assert entry_digest(changed) != entry_digest(EVERYTHING), name
    for name, value in NOT_IN_DIGEST.items():
        changed = msgspec.structs.replace(EVERYTHING, **{name: value})
        assert entry_digest(changed) == entry_digest(EVERYTHING), name


def test_neighbouring_fields_cannot_be_shifted_into_each_other() -> None:
    one = Entry(path=b"a", type="file", mode=0, user=b"ab", group=b"c")
    other = Entry(path=b"a", type="file", mode=0, user=b"a", group=b"bc")
    assert canonical_encoding(one) != canonical_encoding(other)
    empty = Entry(path=b"a", type="file", mode=0, user=b"")
    absent = Entry(path=b"a", type="file", mode=0)
    assert canonical_encoding(empty) != canonical_encoding(absent)


def test_printable_escapes_what_a_terminal_would_obey() -> None:
    assert printable("plain é".encode()) == "plain é"
    assert printable(b"\x1b[31m\n") == "\\x1b[31m\\n"
    assert printable(b"\xff") == "\\xff"
    assert printable("\u202e\u009b".encode()) == "\\u202e\\x9b"
