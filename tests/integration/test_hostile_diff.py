"""Archives and diffs of strangers: nothing is written outside, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from blake3 import blake3
from support.trees import fingerprint

from incremental_backups_tools import DiffData, DiffIndex, DirIndex, apply_diff
from incremental_backups_tools.archive.tar import SYMLINK, TarMember
from incremental_backups_tools.archive.volume_writer import VolumeWriter
from incremental_backups_tools.exceptions import BackupError
from incremental_backups_tools.tree.diff import Change, Diff
from incremental_backups_tools.tree.entry import Entry


def file_change(path: bytes, data: bytes, op: str = "+") -> Change:
    return Change(op, Entry(path=path, type="file", mode=0o644, size=len(data), digest=blake3(data).digest()))


def archive_of(path: Path, *members: tuple[TarMember, bytes]) -> Path:
    with path.open("w+b") as file:
        writer = VolumeWriter(file)
        for member, data in members:
            writer.add(member, data)
        writer.finish()
    return path


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    path = tmp_path / "dest"
    path.mkdir()
    (path / "mine").write_text("mine")
    return path


@pytest.mark.parametrize("path", [b"../outside", b"/outside", b"a/../../outside", b"", b"."])
def test_a_path_out_of_the_destination(tmp_path: Path, dest: Path, path: bytes) -> None:
    archive = archive_of(tmp_path / "archive", (TarMember(b"created/x", size=4), b"data"))
    with pytest.raises(BackupError):
        apply_diff(dest, Diff("", (file_change(path, b"data"),)), archive)
    assert set(fingerprint(tmp_path)) == {b".", b"archive", b"dest", b"dest/mine"}


def test_a_symlink_and_then_a_file_below_it(tmp_path: Path, dest: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = archive_of(
        tmp_path / "archive",
        (TarMember(b"created/d", type=SYMLINK, link_target=os.fsencode(outside)), b""),
        (TarMember(b"created/d/file", size=4), b"data"),
    )
    link = Change("+", Entry(path=b"d", type="symlink", mode=0o777, target=os.fsencode(outside)))
    with pytest.raises((BackupError, OSError)):
        apply_diff(dest, Diff("", (link, file_change(b"d/file", b"data"))), archive)
    assert list(outside.iterdir()) == []


def test_a_hard_link_to_outside(tmp_path: Path, dest: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    archive = archive_of(tmp_path / "archive")
    link = Change("+", Entry(path=b"link", type="file", mode=0o644, link_of=b"../secret"))
    with pytest.raises(BackupError):
        apply_diff(dest, Diff("", (link,)), archive)
    assert (tmp_path / "secret").stat().st_nlink == 1


@pytest.mark.parametrize("data", [b"", b"dat", b"data!", b"atad"])
def test_other_data_than_the_diff_promises(tmp_path: Path, dest: Path, data: bytes) -> None:
    archive = archive_of(tmp_path / "archive", (TarMember(b"created/mine", size=len(data)), data))
    with pytest.raises(BackupError):
        apply_diff(dest, Diff("", (file_change(b"mine", b"data", "~"),)), archive)
    assert (dest / "mine").read_text() == "mine"
    assert os.listdir(dest) == ["mine"]


def real_diff(tmp_path: Path) -> tuple[Path, Diff, Path]:
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / name).write_bytes(os.urandom(50_000))
    subprocess.run(["cp", "-a", source, tmp_path / "copy"], check=True)
    old = DirIndex(source).data()
    for name in "abc":
        with (source / name).open("r+b") as file:
            file.seek(1000)
            file.write(b"edit")
    diff = DiffIndex(DirIndex(source).data(), old).compute()
    return tmp_path / "copy", diff, Path(DiffData(diff).create_archive(tmp_path / "d.tar.zst"))


def test_a_copy_that_is_not_the_old_tree_loses_nothing(tmp_path: Path) -> None:
    copy, diff, archive = real_diff(tmp_path)
    (copy / "b").write_bytes(b"mine, and newer")
    with pytest.raises(BackupError):
        apply_diff(copy, diff, archive)
    assert (copy / "b").read_bytes() == b"mine, and newer"
    assert sorted(os.listdir(copy)) == ["a", "b", "c"]


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    copy, diff, archive = real_diff(tmp_path)
    data = archive.read_bytes()
    before = fingerprint(copy)
    for length in range(0, len(data), max(1, len(data) // 40)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(BackupError):
            apply_diff(copy, diff, tmp_path / "cut")
        after = fingerprint(copy)
        assert {path: value[5] for path, value in after.items()} == {
            path: value[5] for path, value in before.items()
        }


def test_a_cut_gzip_archive_is_refused(tmp_path: Path) -> None:
    copy, diff, _ = real_diff(tmp_path)
    archive = Path(DiffData(diff).create_archive(tmp_path / "d.tgz"))
    (tmp_path / "cut.tgz").write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(BackupError):
        apply_diff(copy, diff, tmp_path / "cut.tgz")


def test_a_file_that_changed_since_its_index_is_told_of(tmp_path: Path) -> None:
    _, diff, _ = real_diff(tmp_path)
    (tmp_path / "source" / "b").write_bytes(b"changed again")
    with pytest.raises(BackupError, match="changed since"):
        DiffData(diff).create_archive(tmp_path / "again.tar.zst")
    assert not (tmp_path / "again.tar.zst").exists()
