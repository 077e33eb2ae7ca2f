"""What the command shows to a person at a terminal, and to nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.command import run_ibt, run_on_terminal


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, repository: Path, source: Path) -> Path:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))
    (source / "big").write_bytes(os.urandom(3 << 20))
    (source / "small").write_text("small\n")
    return source


def test_a_terminal_gets_a_progress_bar_with_bytes_files_and_eta(tree: Path, tmp_path: Path) -> None:
    for title, arguments in (
        ("Backing up", ["backup", tree]),
        ("Restoring", ["restore", "source", tmp_path / "out"]),
        ("Verifying", ["verify", "--read-data"]),
    ):
        status, shown, output = run_on_terminal(*arguments)
        assert status == 0
        assert title in shown
        assert "MiB" in shown
        assert " files" in shown
        assert "ETA" in shown
        assert output.count("\n") == 1, "the summary goes to the standard output, and nothing else does"


def test_the_bar_ends_at_the_whole(tree: Path) -> None:
    _, shown, _ = run_on_terminal("backup", tree)
    assert "3.0/3.0 MiB" in shown
    assert "3/3 files" in shown


def test_the_bar_goes_when_it_is_done(tree: Path) -> None:
    _, shown, _ = run_on_terminal("backup", tree)
    assert shown.rstrip().endswith("\x1b[2K")
    assert "\x1b[?25h" in shown, "the cursor is shown again"


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_who_wants_no_bar_gets_none(tree: Path, option: str) -> None:
    status, shown, _ = run_on_terminal("backup", tree, option)
    assert (status, shown) == (0, "")


def test_a_dumb_terminal_gets_no_bar(tree: Path) -> None:
    assert run_on_terminal("backup", tree, env={"TERM": "dumb"})[1] == ""


def test_a_pipe_gets_no_bar(tree: Path) -> None:
    assert run_ibt("backup", tree).stderr == ""


def test_a_warning_beside_the_bar_is_shown(tree: Path) -> None:
    os.mkfifo(tree / "fifo")
    run_ibt("backup", tree)
    for path in Path(os.environ["IBT_REPOSITORY"]).rglob("*.sigvault.*"):
        path.unlink()
    with (tree / "big").open("ab") as big:
        big.write(b"more")
    status, shown, _ = run_on_terminal("backup", tree)
    assert status == 0
    assert "ibt: warning: " in shown


def test_an_error_leaves_the_terminal_in_order(tree: Path) -> None:
    status, shown, _ = run_on_terminal("backup", tree / "nosuch")
    assert status == 1
    assert "\x1b[?25h" in shown
    assert shown.rstrip().endswith("there is no such directory")


def test_list_on_a_terminal_is_a_table(tree: Path) -> None:
    run_ibt("backup", tree, "--tag", "[bold]")
    status, shown, _ = run_on_terminal("list", terminal="stdout")
    assert status == 0
    assert "3.0 MiB" in shown
    assert "#[bold]" in shown, "a tag is no markup"
    assert "3.0 MiB" not in run_ibt("list").stdout
