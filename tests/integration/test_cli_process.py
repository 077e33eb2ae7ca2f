"""The command as a process: signals, closed pipes, full disks, missing streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from support.command import PROGRAM, Place, command_environment, content_of, run_ibt, two_backups

from incremental_backups_tools.chain.backup import full_backup
from incremental_backups_tools.repository.local import LocalSpool, LocalStore
from incremental_backups_tools.repository.repository import Repository

MIB = 1 << 20


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, repository: Path, source: Path) -> Place:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))
    return two_backups(source, repository)


def test_where_an_error_came_from_is_shown_on_request(place: Place) -> None:
    for arguments, env in ((["-vv"], {}), ([], {"IBT_DEBUG": "1"})):
        done = subprocess.run(
            [*PROGRAM, "ls", "nosuch", *arguments],
            env=command_environment(**env),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback ")
        assert done.stderr.splitlines()[-1].startswith("ibt: error: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_backup_tidily(place: Place, number: signal.Signals) -> None:
    (place.source / "huge").write_bytes(os.urandom(48 * MIB))
    before = content_of(place.repository)
    slowly = ("--level", "22", "--threads", "1")
    heard = ("env", f"--default-signal={number.name}")  # nohup before all tests, for one, has it ignored
    with subprocess.Popen(
        [*heard, *PROGRAM, "backup", place.source, *slowly],
        env=command_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: any(path.stat().st_size for path in place.repository.rglob("*.created.*.tmp")))
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (130, "ibt: error: interrupted\n")
    assert content_of(place.repository) == before


class InterruptedStore(LocalStore):
    """Ctrl-C comes while a volume is written."""

    def spool(self, name: str) -> LocalSpool:
        spool = super().spool(name)
        if ".full." in name:
            spool.file = InterruptedFile(spool.file)  # type: ignore[assignment]
        return spool


class InterruptedFile:
    """Takes two writes; by the third a big member is in the middle of being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return self._file.write(data)


def test_an_interrupt_while_a_volume_is_written_is_not_taken_for_a_problem_of_one_file(
    place: Place, tmp_path: Path
) -> None:
    repository = Repository.open(InterruptedStore(tmp_path / "other"), create=True)
    (place.source / "big").write_bytes(os.urandom(20 * MIB))
    with pytest.raises(KeyboardInterrupt):
        full_backup(place.source, repository)
    assert repository.backups("source") == []


def test_nohup_is_obeyed(place: Place) -> None:
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from incremental_backups_tools.cli.signals import signals_as_interrupts\n"
        "with signals_as_interrupts(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    subprocess.run([sys.executable, "-c", code], env=command_environment(), check=True)


def test_a_reader_that_goes_away_is_no_error(place: Place) -> None:
    for number in range(2000):
        (place.source / f"{number:0200}").write_text("")
    run_ibt("backup", place.source)
    for arguments in (["ls", "source"], ["ls", "source", "--json"], ["list"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=command_environment(),
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_under_the_output_is_an_error(place: Place) -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["list"], ["ls", "--json"]):
            done = subprocess.run(
                [*PROGRAM, *arguments],
                env=command_environment(),
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr == b"ibt: error: standard output: No space left on device\n"


def test_closed_standard_streams_harm_nothing(place: Place) -> None:
    script = '"$0" "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, *PROGRAM, "backup", place.source], env=command_environment(), check=False
    )
    assert done.returncode == 0
    assert "no fault found" in run_ibt("verify", "--read-data").stdout


def test_no_file_takes_the_place_of_a_closed_standard_stream(tmp_path: Path) -> None:
    code = (
        "import os, sys; from incremental_backups_tools.cli.output import prepare_streams; prepare_streams();"
        "sys.exit(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT) <= 2)"
    )
    script = '"$0" "$@" <&- >&- 2>&-'
    arguments = ["sh", "-c", script, sys.executable, "-c", code, str(tmp_path / "file")]
    subprocess.run(arguments, env=command_environment(), check=True)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so; a minute without it is a failure."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
