"""Completion of the command's arguments, by the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import PACKAGE_PARENT, Place, command_environment, run_ibt, two_backups
from support.disks import Disks

# One word after the other as bash hands them over: broken at '@', which is in its COMP_WORDBREAKS.
BASH = r"""
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9 COMP_KEY=9
shift 2
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
compopt() { :; }
_ibt_completion ibt
printf '%s\n' "${COMPREPLY[@]}"
"""
ZSH = r"""
compdef() { :; }
source "$1"
shift
_path_files() { :; }
_describe() { local -a found; found=("${(@P)3}"); print -l -- ${found%%:*}; }
compadd() { shift 3; [[ $1 == -a ]] && print -l -- "${(@P)2}"; return 0; }
words=("$@") CURRENT=$#
_ibt_completion
"""


@pytest.fixture
def place(source: Path, repository: Path) -> Place:
    return two_backups(source, repository)


@pytest.fixture
def environment(tmp_path: Path, place: Place) -> dict[str, str]:
    """The command ``ibt`` in the path, a repository, and a catalogue of disks."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "ibt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m incremental_backups_tools "$@"\n')
    program.chmod(0o755)
    (tmp_path / "disks").mkdir()
    disks = Disks(tmp_path / "disks", "vault-1", "vault-2", "home")
    return command_environment(
        PATH=f"{programs}:{os.environ['PATH']}",
        IBT_REPOSITORY=str(place.repository),
        IBT_DISK_CATALOGUE=str(disks.catalogue),
        PYTHONPATH=PACKAGE_PARENT,
    )


def complete(shell: str, line: str, top: Path, environment: dict[str, str]) -> list[str]:
    """What *shell* offers for the end of *line*."""
    script = top / f"completion.{shell}"
    script.write_text(run_ibt("completion", shell).stdout)
    if shell == "bash":
        words = line.replace("@", " @ ").split(" ")
        words = [word for number, word in enumerate(words) if word or number == len(words) - 1]
        command = ["bash", "-c", BASH, "bash", script, line, *words]
    elif shell == "zsh":
        command = ["zsh", "-f", "-c", ZSH, "zsh", script, *line.split(" ")]
    else:
        command = ["fish", "--no-config", "-c", f"source {script}; complete --do-complete '{line}'"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == "", done
    return [text.partition("\t")[0] for text in done.stdout.splitlines() if text]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_keys_backups_and_disks(
    shell: str, tmp_path: Path, place: Place, environment: dict[str, str]
) -> None:
    assert "restore" in complete(shell, "ibt res", tmp_path, environment)
    assert complete(shell, "ibt ls so", tmp_path, environment) == ["source"]
    offered = complete(shell, "ibt ls source@2", tmp_path, environment)
    kept = "@" if shell == "bash" else "source@"  # bash replaces no more than that
    assert sorted(offered) == [kept + backup_id for backup_id in place.ids]
    assert sorted(complete(shell, "ibt disk backup vault", tmp_path, environment)) == ["vault-1", "vault-2"]
    assert "simulate-drop" in complete(shell, "ibt disk simul", tmp_path, environment)
    assert complete(shell, "ibt completion zs", tmp_path, environment) == ["zsh"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_snapshots_and_what_is_in_a_heap(
    shell: str, tmp_path: Path, source: Path, environment: dict[str, str]
) -> None:
    dest, heap = tmp_path / "dest", tmp_path / "heap"
    run_ibt("snapshot", "create", source, "-d", dest)
    run_ibt("snapshot", "create", source, "-d", dest)
    run_ibt("snapshot", "create", source, "-d", dest, "--name", "mail")
    ids = sorted(path.name for path in (dest / "source").iterdir())
    snapshot = f"ibt snapshot {{}} -d {dest} {{}}"
    for command in ("list", "ls", "restore", "delete", "verify", "prune", "diff"):
        assert "mail" in complete(shell, snapshot.format(command, "ma"), tmp_path, environment), command
    assert complete(shell, snapshot.format("create", "--name so"), tmp_path, environment) == ["source"]
    kept = "@" if shell == "bash" else "source@"
    offered = complete(shell, snapshot.format("restore", "source@2"), tmp_path, environment)
    assert sorted(offered) == [kept + snapshot_id for snapshot_id in ids]
    given = f"source@{ids[0]} source@2"
    assert complete(shell, snapshot.format("delete", given), tmp_path, environment) == [kept + ids[1]]
    assert f"{kept}latest" in complete(shell, snapshot.format("diff", "mail source@l"), tmp_path, environment)

    run_ibt("heap", "snapshot", source, "--heap", heap)
    (tmp_path / "restored").mkdir()
    (tmp_path / "restored" / "removed").write_text("and kept for undoing")
    run_ibt("heap", "restore", tmp_path / "restored", "--delete", "--heap", heap)
    (name,) = (path.name.partition("Z")[0] + "Z" for path in (heap / "snapshots").iterdir())
    (undo,) = (path.name.partition("Z")[0] + "Z" for path in (heap / "undo").iterdir())
    assert complete(shell, f"ibt heap compare --heap {heap} 2", tmp_path, environment) == [name]
    by_variable = {**environment, "IBT_HEAP": str(heap)}
    assert complete(shell, "ibt heap restore x l", tmp_path, by_variable) == ["latest"]
    assert complete(shell, "ibt heap restore x un", tmp_path, by_variable) == [f"undo/{undo}"]
    assert complete(shell, "ibt heap compare latest 2", tmp_path, by_variable) == [name]


def test_directories_are_completed_where_one_is_wanted(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "top" / "directory").mkdir(parents=True)
    (tmp_path / "top" / "document").write_text("")
    for line in (
        "ibt backup",
        "ibt restore source",
        "ibt snapshot create",
        "ibt snapshot restore source",
        "ibt snapshot list -d",
        "ibt sync",
        "ibt heap restore",
        "ibt disk restore",
    ):
        offered = complete("fish", f"{line} {tmp_path}/top/d", tmp_path, environment)
        assert offered == [f"{tmp_path}/top/directory/"], line


def test_bash_completes_through_readline(tmp_path: Path, place: Place, environment: dict[str, str]) -> None:
    """A real interactive bash, the Tab key pressed."""
    script = tmp_path / "script"
    script.write_text(run_ibt("completion", "bash").stdout)
    program = (
        "import os, pty, sys, time, select\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0:\n"
        "    os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])\n"
        "def read(until, seconds=60):\n"
        "    data = b''\n"
        "    end = time.time() + seconds\n"
        "    while until not in data and time.time() < end:\n"
        "        if select.select([fd], [], [], 0.1)[0]:\n"
        "            data += os.read(fd, 65536)\n"
        "    return data\n"
        f"os.write(fd, b'PS1=ready; source {script}; echo loa\"\"ded\\n')\n"
        "read(b'loaded')\n"
        "os.write(fd, b'echo ibt; ibt ls source@lat\\t')\n"
        "data = read(b'latest ')\n"
        "os.write(fd, b'\\x03exit\\n')\n"
        "sys.stdout.write('yes' if data.endswith(b'source@latest ') else repr(data))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "TERM": "dumb", "INPUTRC": "/dev/null"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("yes", 0), done


def test_what_cannot_be_read_offers_nothing_and_says_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    nowhere = {**environment, "IBT_REPOSITORY": "/nowhere", "IBT_DISK_CATALOGUE": "/nowhere"}
    for line in (
        *("ibt ls so", "ibt ls source@", "ibt disk backup va"),
        *("ibt snapshot ls so", "ibt snapshot ls -d /nowhere so", "ibt snapshot restore -d /nowhere source@"),
        *("ibt heap compare 2", "ibt heap compare --heap /nowhere 2", "ibt heap compare --heap x://y 2"),
    ):
        assert complete("fish", line, tmp_path, nowhere) == []
    named = f"ibt -r {environment['IBT_REPOSITORY']} ls so"
    assert complete("fish", named, tmp_path, nowhere) == ["source"]
