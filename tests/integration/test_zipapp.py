"""The command as one file, for recovery machines: built from here, run with nothing in the environment."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import content_of, run_ibt

SCRIPT = Path(__file__).parents[2] / "scripts" / "build-zipapp"


@pytest.fixture
def unpacked_is_removed() -> Iterator[None]:
    """Without HOME the file unpacks itself where the system says that the user's home is."""
    directory = Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".shiv"
    before = set(directory.iterdir()) if directory.exists() else None
    yield
    if before is None:
        shutil.rmtree(directory, ignore_errors=True)
        return
    for path in set(directory.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_the_single_file_restores_with_an_empty_environment(
    tmp_path: Path, source: Path, unpacked_is_removed: None
) -> None:
    subprocess.run(
        [SCRIPT, tmp_path / "bin"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHON": sys.executable},
        check=True,
        capture_output=True,
    )
    assert [path.name for path in (tmp_path / "bin").iterdir()] == ["ibt"]
    program = tmp_path / "bin" / "ibt"
    assert os.access(program, os.X_OK)
    (source / "file").write_bytes(os.urandom(100_000))
    run_ibt("backup", source, "-r", tmp_path / "repository")
    run_ibt("snapshot", "create", source, "-d", tmp_path / "dest")

    def run(*arguments: str | Path) -> str:
        # -I: neither the working directory nor the user's own packages.
        command = ["env", "-i", sys.executable, "-I", "-S", program, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    run("restore", "-r", tmp_path / "repository", "source", tmp_path / "one")
    run("snapshot", "restore", "source", tmp_path / "two", "-d", tmp_path / "dest")
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two") == content_of(source)
    assert "no fault found" in run("snapshot", "verify", "-d", tmp_path / "dest")


def test_a_directory_must_be_named(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "usage: build-zipapp DIR\n"
