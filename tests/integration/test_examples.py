"""The examples run as they stand, and so do the two usages that must always work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.trees import EDITS, assert_same_tree, build_nasty_tree, edit, fingerprint

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_calls(tmp_path: Path, source: Path) -> None:
    build_nasty_tree(source)
    run_example("backup_in_three_calls.py", source, tmp_path / "restored")
    assert_same_tree(source, tmp_path / "restored")


def test_uploader_restores_on_another_machine(tmp_path: Path, source: Path) -> None:
    build_nasty_tree(source)
    run_example("uploader.py", "backup", source, tmp_path / "store")
    for number in range(len(EDITS)):
        edit(source, number)
        run_example("uploader.py", "backup", source, tmp_path / "store")
    shutil.rmtree(os.environ["HOME"])  # another machine has neither repository nor cache

    run_example("uploader.py", "restore", "source", tmp_path / "store", tmp_path / "restored")

    assert_same_tree(source, tmp_path / "restored")


def test_diff_of_a_directory(tmp_path: Path, source: Path) -> None:
    build_nasty_tree(source)
    for number in range(len(EDITS)):
        copy = tmp_path / f"copy-{number}"
        subprocess.run(["cp", "-a", source, copy], check=True)
        run_example("diff_of_a_directory.py", "index", source, tmp_path / "mydir.index")
        edit(source, number)
        archive = tmp_path / ("mydir.diff.tgz" if number % 2 else "mydir.diff.tar.zst")
        run_example("diff_of_a_directory.py", "diff", source, tmp_path / "mydir.index", archive, copy)
        assert_same_tree(source, copy)


def test_the_two_usages_as_they_were_always_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mydir = tmp_path / "mydir"
    mydir.mkdir()
    build_nasty_tree(mydir)
    subprocess.run(["cp", "-a", mydir, tmp_path / "copy"], check=True)
    monkeypatch.chdir(tmp_path)

    from incremental_backups_tools import full_backup, incremental_backup, restore_backup

    report = full_backup("mydir")
    report = incremental_backup("mydir")
    restore_backup("mydir", "restored")
    assert report.to_dict()["backup_key"] == "mydir"
    assert_same_tree(mydir, tmp_path / "restored")

    from incremental_backups_tools import DiffData, DiffIndex, Dir, DirIndex, apply_diff

    d = Dir("mydir")
    DirIndex(d).to_file("mydir.index")
    old_dir_index_data = DirIndex.from_file("mydir.index")
    edit(mydir, 0)
    edit(mydir, 1)
    dir_index_data = DirIndex(d).data()
    diff_index = DiffIndex(dir_index_data, old_dir_index_data).compute()
    diff_archive = DiffData(diff_index).create_archive("mydir.diff.tgz")
    apply_diff("copy", diff_index, diff_archive)
    assert diff_index.created
    assert diff_index.updated
    assert diff_index.deleted
    assert fingerprint("copy") == fingerprint("mydir")


def test_every_name_of_an_edited_file_has_the_new_content(tmp_path: Path, source: Path) -> None:
    (source / "a").write_bytes(b"old" * 1000)
    os.utime(source / "a", ns=(1, 1))
    os.link(source / "a", source / "z")
    subprocess.run(["cp", "-a", source, tmp_path / "copy"], check=True)
    run_example("diff_of_a_directory.py", "index", source, tmp_path / "index")
    (source / "a").write_bytes(b"new" * 1000)
    os.utime(source / "a", ns=(1, 1))  # only ctime tells

    run_example(
        "diff_of_a_directory.py", "diff", source, tmp_path / "index", tmp_path / "d.tgz", tmp_path / "copy"
    )

    assert_same_tree(source, tmp_path / "copy")
