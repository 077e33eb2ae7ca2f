"""The history that ``benchmarks/heap.py`` lets a tree go through, and how it counts what is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks.heap import count_kept, plan_versions
from benchmarks.trees import apply_differences, differences


@pytest.fixture
def releases(tmp_path: Path) -> dict[str, Path]:
    """Three releases: little changes from the first to the second, and much to the third."""
    for number, changed in enumerate((0, 3, 40), start=1):
        for name in range(60):
            path = tmp_path / f"6.{number}" / f"directory{name % 20}" / f"file{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number if name < changed else 0}")
    return {f"6.{number}": tmp_path / f"6.{number}" for number in (1, 2, 3)}


@pytest.mark.parametrize("count", [3, 4, 6, 10])
def test_mixtures_lead_from_release_to_release(releases: dict[str, Path], tmp_path: Path, count: int) -> None:
    versions = plan_versions(releases, count)
    assert len(versions) == count
    assert [version.name for version in versions if "+" not in version.name] == ["6.1", "6.2", "6.3"]
    assert plan_versions(releases, count) == versions  # the same every time
    source = tmp_path / "source"
    shutil.copytree(releases["6.1"], source)
    for version in versions:
        apply_differences(version.steps, version.release, source, in_place=False)
        if version.name in releases:
            assert list(differences(source, version.release, times=False)) == []


def test_what_is_left_over_goes_to_where_most_changes(releases: dict[str, Path]) -> None:
    names = [version.name for version in plan_versions(releases, 4)]
    assert names == ["6.1", "6.2", "6.2+1/2", "6.3"]


def test_a_directory_changes_in_one_step(releases: dict[str, Path]) -> None:
    parts = [
        {os.path.dirname(difference.rel_path) for difference in version.steps}
        for version in plan_versions(releases, 7)[-3:]
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    assert all(parts)


def test_of_an_inode_with_several_names_the_bytes_count_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"12345")
    os.link(tmp_path / "d" / "a", tmp_path / "b")
    (tmp_path / "c").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("b")
    kept = count_kept(tmp_path, 0.0)
    assert (kept.bytes, kept.inodes) == (10, 4)
