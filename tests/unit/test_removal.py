"""Removing trees: all of them, nothing else, and however deep they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from incremental_backups_tools.exceptions import UnsafePathError
from incremental_backups_tools.tree.destination import Destination


@pytest.fixture
def destination(tmp_path: Path, no_open_descriptors: None):
    with Destination(tmp_path / "dest") as made:
        yield made


def fill(root: Path) -> None:
    for path in ("a/b/c", "a/b/d", "e/f", "g"):
        (root / path).mkdir(parents=True)
        (root / path / "file").write_text("x")
        (root / path / "link").symlink_to(root)


def test_all_of_a_tree_goes_and_nothing_else(tmp_path: Path, destination: Destination) -> None:
    fill(tmp_path / "dest" / "victim")
    fill(tmp_path / "dest" / "beside")
    (tmp_path / "dest" / "victim" / "out").symlink_to(tmp_path / "dest" / "beside")
    before = sorted((tmp_path / "dest" / "beside").rglob("*"))
    assert destination.remove(b"victim")
    assert not destination.remove(b"victim")
    assert os.listdir(tmp_path / "dest") == ["beside"]
    assert sorted((tmp_path / "dest" / "beside").rglob("*")) == before


def test_a_deep_tree_goes(tmp_path: Path, destination: Destination) -> None:
    fd = os.open(tmp_path / "dest", os.O_RDONLY)
    for _ in range(2000):
        os.mkdir(b"deep", dir_fd=fd)
        inner = os.open(b"deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert destination.remove(b"deep")
    assert os.listdir(tmp_path / "dest") == []


def test_a_directory_that_is_moved_away_meanwhile_does_not_lead_out(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dest" / "victim" / "inner").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "inner").mkdir(parents=True)
    real = os.open

    def hooked(path, flags, mode=0o777, *, dir_fd=None):
        if path == b"..":
            (tmp_path / "dest" / "victim" / "inner").rename(elsewhere / "moved")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", hooked)
    with pytest.raises(UnsafePathError, match="moved away"):
        destination.remove(b"victim")
    monkeypatch.undo()
    assert sorted(os.listdir(elsewhere)) == ["inner", "moved"]
    assert (tmp_path / "dest" / "victim").is_dir()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path, destination: Destination) -> None:
    fill(tmp_path / "outside")
    (tmp_path / "dest" / "link").symlink_to(tmp_path / "outside")
    assert destination.remove(b"link")
    assert (tmp_path / "outside" / "g" / "file").exists()
