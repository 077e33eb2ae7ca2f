"""Which lines of an index are of files that may have lost their names: the same in C and in Python."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trees import NASTY_NAMES

from incremental_backups_tools.chain import _lost_names_twin, _native
from incremental_backups_tools.chain.lost_names import LostNames
from incremental_backups_tools.tree.entry import Entry, encode_line, line_of_entry, sort_key

KINDS: list[type[LostNames]] = [_native.LostNames, _lost_names_twin.LostNames]
MAX_LISTED = _lost_names_twin._MAX_LISTED


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type[LostNames]:
    return request.param  # type: ignore[no-any-return]


def lines_of(top: Path) -> list[bytes]:
    """The lines of an index of *top*, as it is."""
    paths = [os.fsencode(path.relative_to(top)) for path in (top, *top.rglob("*"))]
    return [line_of(top, path) for path in sorted(paths, key=sort_key)]


def line_of(top: Path, path: bytes) -> bytes:
    info = os.lstat(os.path.join(os.fsencode(top), path))
    return encode_line(
        line_of_entry(
            Entry(
                path=path,
                type="dir" if os.path.isdir(os.path.join(os.fsencode(top), path)) else "file",
                mode=0o644,
                mtime_ns=info.st_mtime_ns,
                ctime_ns=info.st_ctime_ns,
                inode=info.st_ino,
                dev=info.st_dev,
            )
        )
    )


def block(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def names(lines: Sequence[bytes]) -> list[str]:
    return [re.sub(rb'.*"path":"([^"]*)".*', rb"\1", line).decode() for line in lines]


def make_tree(top: Path) -> Path:
    for name in ("a/b/deep", "a/b/other", "a/c", "a.d/x", "e/f/g/h", "e/z", "i"):
        path = top / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return top / "source"


def test_of_a_tree_as_it_was_nothing_is_lost(tmp_path: Path, kind: type[LostNames]) -> None:
    source = make_tree(tmp_path)
    assert kind(os.fsencode(source)).of(block(lines_of(source))) == []


def test_what_is_gone_what_has_another_inode_and_what_is_no_file_now(
    tmp_path: Path, kind: type[LostNames]
) -> None:
    source = make_tree(tmp_path)
    lines = lines_of(source)
    (source / "a/b/deep").unlink()
    (source / "a/c").rename(source / "a/moved")
    (source / "a/c").write_text("another")
    (source / "e/z").unlink()
    (source / "e/z").mkdir()
    (source / "a.d/new").touch()
    assert names(kind(os.fsencode(source)).of(block(lines))) == ["a/b/deep", "a/c", "e/z"]


def test_of_a_directory_that_is_gone_or_is_none_everything(tmp_path: Path, kind: type[LostNames]) -> None:
    source = make_tree(tmp_path)
    lines = lines_of(source)
    os.rename(source / "a", tmp_path / "elsewhere")
    os.rename(source / "e", source / "e2")
    (source / "e").symlink_to("e2")
    assert names(kind(os.fsencode(source)).of(block(lines))) == ["a/b/deep", "a/b/other", "a/c", "e/z"]


def test_blocks_may_be_cut_between_any_lines(tmp_path: Path, kind: type[LostNames]) -> None:
    source = make_tree(tmp_path)
    lines = [b'{"format":"header"}', *lines_of(source), b'{"identity":[]}']
    for name in ("a/b/deep", "a/c", "e/f/g/h", "i"):
        (source / name).unlink()
    whole = kind(os.fsencode(source)).of(block(lines))
    assert whole[0] == lines[0] and whole[-1] == lines[-1]
    assert names(whole[1:-1]) == ["a/b/deep", "a/c", "e/f/g/h", "i"]
    for first, second in itertools.combinations(range(len(lines) + 1), 2):
        parts = kind(os.fsencode(source))
        cut = (lines[:first], lines[first:second], lines[second:])
        assert [line for part in cut for line in parts.of(block(part))] == whole


def test_names_that_json_writes_otherwise_may_all_be_lost(tmp_path: Path, kind: type[LostNames]) -> None:
    source = tmp_path / "source"
    for parent in ("plain", 'with"quote', b"no-utf-8-\xff"):
        directory = Path(os.fsdecode(os.path.join(os.fsencode(source), os.fsencode(parent))))
        directory.mkdir(parents=True)
        for name in NASTY_NAMES[:20]:
            (directory / os.fsdecode(name)).touch()
    lines = lines_of(source)
    (source / "plain" / "new").touch()
    found = kind(os.fsencode(source)).of(block(lines))
    there = {line for line in lines if b'"type":"file"' in line} - set(found)
    assert there
    assert all(line.startswith(b'{"path":"plain/') and b"\\" not in line for line in there)
    assert found == KINDS[1](os.fsencode(source)).of(block(lines))


@pytest.mark.parametrize(("count", "expected"), [(MAX_LISTED, 0), (MAX_LISTED + 1, MAX_LISTED)])
def test_very_many_names_are_not_listed(
    tmp_path: Path, kind: type[LostNames], count: int, expected: int
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(MAX_LISTED):
        (source / f"{number:05}").touch()
    lines = lines_of(source)
    os.utime(source, ns=(1, 1))
    for number in range(MAX_LISTED, count):
        (source / f"{number:05}").touch()
    assert len(kind(os.fsencode(source)).of(block(lines))) == expected


pieces = st.sampled_from(
    [
        b'{"path":"',
        b'{"path":".","type":"dir",',
        b'{"path":"a","type":"dir",',
        b'{"path":"a/b","type":"dir",',
        b'{"path":"a/c","type":"file"',
        b'{"path_b64":"',
        b'","type":"dir",',
        b'","type":"dir"',
        b'"inode":7,',
        b',"inode":',
        b',"mtime_ns":1',
        b'"',
        b"\\",
        b"a/",
        b"a/b/deep",
        b"../",
        b"\n",
        b"\0",
        b"}",
    ]
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(pieces | st.binary(max_size=3), max_size=12).map(b"".join), max_size=4))
def test_any_bytes_are_the_same_to_both(tmp_path: Path, blocks: list[bytes]) -> None:
    source = tmp_path / "source"
    if not source.exists():
        make_tree(tmp_path)
    results = []
    for kind in KINDS:
        lost = kind(os.fsencode(source))
        results.append([lost.of(block) for block in blocks])
    assert results[0] == results[1]


def test_what_is_no_block_is_refused(kind: type[LostNames]) -> None:
    with pytest.raises((TypeError, AttributeError)):
        kind(b"source").of("text")  # type: ignore[arg-type]
