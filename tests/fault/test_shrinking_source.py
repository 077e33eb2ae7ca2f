"""A source that is suddenly empty is most likely not mounted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup
from incremental_backups_tools.exceptions import SourceError


def fill(source: Path) -> None:
    for number in range(20):
        (source / f"{number}").write_text(f"{number}")


@pytest.mark.parametrize("left", [0, 5])
def test_a_source_that_lost_most_of_its_entries_stops_before_anything_is_published(
    source: Path, repository: Path, left: int
) -> None:
    fill(source)
    full_backup(source, repository)
    before = fingerprint(repository)
    for number in range(left, 20):
        (source / f"{number}").unlink()

    with pytest.raises(SourceError, match="mounted"):
        incremental_backup(source, repository)

    after = fingerprint(repository)
    assert {path for path in after if b"source/" in path} == {path for path in before if b"source/" in path}


def test_it_goes_on_when_told_and_when_the_names_only_moved(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    (source / "inside").mkdir()
    fill(source / "inside")
    full_backup(source, repository)
    (source / "inside").rename(source / "renamed")
    assert incremental_backup(source, repository).counts.deleted == 21
    shutil.rmtree(source / "renamed")
    incremental_backup(source, repository, max_deleted=1)
    restore_backup("source", tmp_path / "out", repository=repository)
    assert_same_tree(source, tmp_path / "out")
