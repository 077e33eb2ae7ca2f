"""Writing below a directory and nowhere else, whole files only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from incremental_backups_tools.exceptions import IntegrityError, UnsafePathError
from incremental_backups_tools.tree.destination import Destination
from incremental_backups_tools.tree.entry import Entry
from incremental_backups_tools.tree.metadata import MetadataApplier
from incremental_backups_tools.tree.writer import TreeWriter

FAILURES: list[tuple[bytes, str]] = []


@pytest.fixture
def destination(tmp_path: Path, no_open_descriptors: None):
    FAILURES.clear()
    with Destination(tmp_path / "dest") as made:
        yield made


@pytest.fixture
def writer(destination: Destination) -> TreeWriter:
    applier = MetadataApplier(
        on_problem=lambda kind, path, message: FAILURES.append((path, f"{kind}: {message}"))
    )
    return TreeWriter(
        destination, applier, on_failed=lambda entry, error: FAILURES.append((entry.path, str(error)))
    )


def file(path: bytes, data: bytes, **more: object) -> Entry:
    return Entry(path=path, type="file", mode=0o640, size=len(data), digest=blake3(data).digest(), **more)  # type: ignore[arg-type]


def directory(path: bytes, mode: int = 0o755, **more: object) -> Entry:
    return Entry(path=path, type="dir", mode=mode, **more)  # type: ignore[arg-type]


def test_files_get_content_mode_and_time(tmp_path: Path, writer: TreeWriter) -> None:
    writer.directory(directory(b".", 0o700, mtime_ns=5))
    writer.directory(directory(b"d", 0o555, mtime_ns=1_000_000_001))
    writer.file(file(b"d/f", b"data", mtime_ns=-7), [b"da", b"ta"])
    writer.finish()

    path = tmp_path / "dest" / "d" / "f"
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_mtime_ns == -7
    assert path.parent.stat().st_mtime_ns == 1_000_000_001
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o555
    assert FAILURES == []


@pytest.mark.parametrize("chunks", [[b"dat"], [b"data!"], [b"Data"], [], [b"x"] * 1000])
def test_wrong_content_is_refused_and_leaves_the_old_file(
    tmp_path: Path, writer: TreeWriter, chunks: list[bytes]
) -> None:
    (tmp_path / "dest" / "f").write_text("old")
    with pytest.raises(IntegrityError):
        writer.file(file(b"f", b"data"), chunks)
    writer.finish()
    assert (tmp_path / "dest" / "f").read_text() == "old"
    assert os.listdir(tmp_path / "dest") == ["f"]


def test_a_reader_that_fails_leaves_the_old_file(tmp_path: Path, writer: TreeWriter) -> None:
    def chunks():
        yield b"da"
        raise IntegrityError("broken", path="", expected=1, actual=2)

    (tmp_path / "dest" / "f").write_text("old")
    with pytest.raises(IntegrityError, match="broken"):
        writer.file(file(b"f", b"data"), chunks())
    assert os.listdir(tmp_path / "dest") == ["f"]
    assert (tmp_path / "dest" / "f").read_text() == "old"


def test_nothing_is_visible_before_it_is_whole_and_nothing_is_left_after_an_abort(
    tmp_path: Path, writer: TreeWriter
) -> None:
    writer.file(file(b"f", b"data"), [b"data"])
    assert not (tmp_path / "dest" / "f").exists()
    writer.abort()
    assert os.listdir(tmp_path / "dest") == []


def test_nothing_is_written_through_a_link(tmp_path: Path, writer: TreeWriter) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    (tmp_path / "dest" / "d").symlink_to(outside)
    (tmp_path / "dest" / "f").symlink_to(outside / "precious")

    with pytest.raises(UnsafePathError):
        writer.file(file(b"d/precious", b"data"), [b"data"])
    with pytest.raises(UnsafePathError):
        writer.remove(b"d/precious")
    writer.file(file(b"f", b"data"), [b"data"])
    writer.finish()

    assert (outside / "precious").read_text() == "precious"
    assert not (tmp_path / "dest" / "f").is_symlink()
    assert os.listdir(outside) == ["precious"]


def test_a_link_in_the_way_of_a_directory_gives_way(tmp_path: Path, writer: TreeWriter) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (tmp_path / "dest" / "d").symlink_to(outside)
    writer.directory(directory(b"d", 0o777))
    writer.file(file(b"d/f", b"data"), [b"data"])
    writer.finish()
    assert (tmp_path / "dest" / "d" / "f").read_bytes() == b"data"
    assert not (tmp_path / "dest" / "d").is_symlink()
    assert os.listdir(outside) == []
    assert stat.S_IMODE(outside.stat().st_mode) == 0o700


@pytest.mark.parametrize("path", [b"../f", b"/f", b"d/../../f", b"", b"d//f", b"d/./f"])
def test_paths_out_of_the_destination_are_refused(tmp_path: Path, writer: TreeWriter, path: bytes) -> None:
    with pytest.raises(UnsafePathError):
        writer.file(file(path, b"data"), [b"data"])
    with pytest.raises(UnsafePathError):
        writer.special(Entry(path=path, type="symlink", mode=0o777, target=b"x"))
    assert os.listdir(tmp_path) == ["dest"]


def test_a_hard_link_replaces_what_was_there_even_another_link(tmp_path: Path, writer: TreeWriter) -> None:
    dest = tmp_path / "dest"
    os.link(_touch(dest / "b"), dest / "c")
    writer.file(file(b"a", b"data"), [b"data"])
    writer.link(Entry(path=b"b", type="file", mode=0o640, link_of=b"a"), b"a")
    writer.link(Entry(path=b"c", type="file", mode=0o640, link_of=b"a"), b"a")
    writer.finish()
    writer.link(Entry(path=b"c", type="file", mode=0o640, link_of=b"a"), b"a")  # as it is already
    writer.finish()
    assert sorted(os.listdir(dest)) == ["a", "b", "c"]
    assert (dest / "a").stat().st_nlink == 3


def _touch(path: Path) -> Path:
    path.write_text("old")
    return path


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path, writer: TreeWriter) -> None:
    outside = tmp_path / "outside"
    outside.write_text("outside")
    writer.special(Entry(path=b"a", type="symlink", mode=0o777, target=os.fsencode(outside)))
    writer.link(Entry(path=b"b", type="symlink", mode=0o777, link_of=b"a"), b"a")
    writer.finish()
    assert (tmp_path / "dest" / "b").is_symlink()
    assert outside.stat().st_nlink == 1


def test_a_full_directory_does_not_give_way_to_a_file_unless_told(
    tmp_path: Path, destination: Destination, writer: TreeWriter
) -> None:
    (tmp_path / "dest" / "f").mkdir()
    _touch(tmp_path / "dest" / "f" / "inside")
    (tmp_path / "dest" / "g").mkdir()
    writer.file(file(b"f", b"data"), [b"data"])
    writer.file(file(b"g", b"data"), [b"data"])
    writer.finish()
    assert [path for path, _ in FAILURES] == [b"f"]
    assert (tmp_path / "dest" / "f" / "inside").read_text() == "old"
    assert (tmp_path / "dest" / "g").read_bytes() == b"data"

    told = TreeWriter(
        destination,
        MetadataApplier(on_problem=lambda kind, path, message: None),
        replace_directories=True,
        on_failed=lambda entry, error: FAILURES.append((entry.path, str(error))),
    )
    told.file(file(b"f", b"data"), [b"data"])
    told.finish()
    assert (tmp_path / "dest" / "f").read_bytes() == b"data"


def test_setuid_is_given_only_together_with_its_owner(tmp_path: Path, destination: Destination) -> None:
    applier = MetadataApplier(as_root=False, on_problem=lambda kind, path, message: None)
    writer = TreeWriter(destination, applier, on_failed=lambda entry, error: None)
    mine = file(b"mine", b"data", uid=os.geteuid(), gid=os.getegid())
    theirs = file(b"theirs", b"data", uid=os.geteuid() + 1, gid=os.getegid())
    for entry in (mine, theirs):
        import msgspec

        writer.file(msgspec.structs.replace(entry, mode=0o4755), [b"data"])
    writer.finish()
    assert stat.S_IMODE((tmp_path / "dest" / "mine").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tmp_path / "dest" / "theirs").stat().st_mode) == 0o755
