"""Salvage: what is left of a repository that lost states and volumes, and a clear word of what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.trees import assert_same_tree, build_nasty_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup
from incremental_backups_tools.chain.salvage import SalvageReport, salvage
from incremental_backups_tools.exceptions import RepositoryNotFoundError


@pytest.fixture
def history(source: Path, repository: Path) -> list[str]:
    """Ids of a full and three incrementals of a few files that change in every way."""
    for name in ("same", "edited", "rewritten", "deleted", "only-in-full"):
        (source / name).write_bytes(os.urandom(50_000))
    ids = [full_backup(source, repository).backup_date]
    for number in range(3):
        with (source / "edited").open("r+b") as file:
            file.seek(100 * number)
            file.write(b"edit")
        (source / "rewritten").write_bytes(os.urandom(50_000))
        (source / f"created-{number}").write_bytes(os.urandom(10_000))
        if number == 2:
            (source / "deleted").unlink()
        ids.append(incremental_backup(source, repository).backup_date)
    return ids


def notes(report: SalvageReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for note in report.notes:
        found.setdefault(note.path.decode(), []).append(note.status)
    return found


def remove(repository: Path, pattern: str) -> None:
    paths = list(repository.glob(f"source/{pattern}"))
    assert paths, pattern
    for path in paths:
        path.unlink()


def test_a_sound_repository_is_simply_restored(tmp_path: Path, source: Path, repository: Path) -> None:
    build_nasty_tree(source)
    full_backup(source, repository)
    report = salvage(tmp_path / "out", repository=repository)
    assert not report.notes
    assert_same_tree(source, tmp_path / "out" / "source")


def test_a_missing_state_in_the_middle(
    tmp_path: Path, source: Path, repository: Path, history: list[str]
) -> None:
    remove(repository, f"{history[2]}.state*")

    report = salvage(tmp_path / "out", repository=repository)

    out = tmp_path / "out" / "source"
    assert report.points == {"source": history[1]}
    for name in ("same", "rewritten", "only-in-full", "created-0", "created-1", "created-2"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert (out / "deleted").exists()
    assert (out / "edited").read_bytes() != (
        source / "edited"
    ).read_bytes()  # its last deltas stand on nothing
    found = notes(report)
    assert found["edited"] == ["lost"]
    assert found["created-2"] == ["newer"]
    assert found["created-1"] == ["unproved"]
    assert found["deleted"] == ["older"]


def test_a_missing_full_state(tmp_path: Path, source: Path, repository: Path, history: list[str]) -> None:
    remove(repository, f"{history[0]}.state*")

    report = salvage(tmp_path / "out", repository=repository)

    out = tmp_path / "out" / "source"
    assert report.points == {"source": None}
    for name in ("same", "rewritten", "only-in-full", "created-0", "created-1", "created-2"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert notes(report)["same"] == ["unproved"]


def test_a_missing_volume_gives_older_versions(
    tmp_path: Path, source: Path, repository: Path, history: list[str]
) -> None:
    remove(repository, f"{history[3]}.updated.*")
    remove(repository, f"{history[3]}.created.*")

    report = salvage(tmp_path / "out", repository=repository)

    out = tmp_path / "out" / "source"
    assert report.points == {"source": history[3]}
    assert notes(report) == {"edited": ["older"], "rewritten": ["older"], "created-2": ["lost"]}
    assert (out / "edited").stat().st_size == 50_000
    assert (out / "rewritten").exists()
    assert not (out / "created-2").exists()
    older = {note.path: note.backup_id for note in report.notes}
    assert older[b"edited"] == history[2]


def test_nothing_but_volumes(tmp_path: Path, source: Path, repository: Path, history: list[str]) -> None:
    remove(repository, "*.state*")
    report = salvage(tmp_path / "out", repository=repository)
    out = tmp_path / "out" / "source"
    for name in ("same", "rewritten", "only-in-full", "created-0", "created-1", "created-2"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert set(notes(report)) == {path.name for path in out.iterdir()}


def test_a_destination_with_something_in_it_is_refused(
    tmp_path: Path, repository: Path, history: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        salvage(tmp_path / "out", repository=repository)
    assert set(fingerprint(tmp_path / "out")) == {b".", b"mine"}
    with pytest.raises(RepositoryNotFoundError):
        salvage(tmp_path / "other", repository=tmp_path / "nowhere")


def test_the_command_writes_a_report_beside_what_it_saved(
    tmp_path: Path, source: Path, repository: Path, history: list[str]
) -> None:
    remove(repository, f"{history[3]}.created.*")
    command = [
        sys.executable,
        "-m",
        "incremental_backups_tools",
        "salvage",
        "-r",
        repository,
        tmp_path / "out",
    ]

    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)

    assert done.returncode == 3
    assert "rewritten" in (tmp_path / "out" / "salvage-report.txt").read_text()
    report = json.loads((tmp_path / "out" / "salvage-report.json").read_text())
    assert {note["path"] for note in report["notes"]} == {"rewritten", "created-2"}
    assert "Traceback" not in done.stderr

    again = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is not empty" in again.stderr
