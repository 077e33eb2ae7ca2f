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
    for line in ("ibt ls so", "ibt ls source@", "ibt disk backup va"):
        assert complete("fish", line, tmp_path, nowhere) == []
    named = f"ibt -r {environment['IBT_REPOSITORY']} ls so"
    assert complete("fish", named, tmp_path, nowhere) == ["source"]
