"""The real command ``ibt`` in a process of its own, as a person or a script runs it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from incremental_backups_tools.chain.backup import full_backup, incremental_backup

PACKAGE_PARENT = str(Path(__file__).parents[2])
PROGRAM = (sys.executable, "-m", "incremental_backups_tools")
# Root reads everything, so a test that needs a file which cannot be read gives that right up.
WITHOUT_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@dataclass(frozen=True)
class Ran:
    """What one run came to."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def document(self) -> Any:
        """The one JSON document on the standard output."""
        return json.loads(self.stdout)

    @property
    def error(self) -> str:
        """The one line that says why it failed."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, self.stderr
        assert lines[0].startswith("ibt: error: "), self.stderr
        return lines[0].removeprefix("ibt: error: ")


def command_environment(**extra: str) -> dict[str, str]:
    """The test's own environment, its directories among it, and nothing of whoever runs the tests."""
    kept = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "IBT_REPOSITORY", "PATH")
    own = {name: os.environ[name] for name in kept if name in os.environ}
    return {**own, "PYTHONPATH": PACKAGE_PARENT, "TZ": "UTC", "LC_ALL": "C.UTF-8", **extra}


def run_ibt(
    *arguments: str | bytes | Path,
    status: int = 0,
    prefix: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
    **options: Any,
) -> Ran:
    """Run it to its end and make sure of its exit status, and that every line about it is one of its own.

    Args:
        prefix: what runs the interpreter, such as :data:`WITHOUT_OVERRIDE`.
        env: variables besides the test's own.
        options: for ``subprocess.run``.
    """
    done = subprocess.run(
        [*prefix, *PROGRAM, *arguments],
        env=command_environment(**(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
        **options,
    )
    ran = Ran(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert ran.status == status, ran
    assert "Traceback" not in ran.stderr
    return ran


def run_on_terminal(
    *arguments: str | Path, terminal: str = "stderr", env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run it with one of its streams on a terminal; return status, what the terminal got, and the other stream."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, terminal: theirs}
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=command_environment(**{"TERM": "xterm-256color", **(env or {})}),
        stdin=subprocess.DEVNULL,
        stdout=streams["stdout"],
        stderr=streams["stderr"],
    )
    os.close(theirs)
    shown = _read_until_closed(ours)
    os.close(ours)
    other = process.stdout if terminal == "stderr" else process.stderr
    assert other is not None
    with other:
        rest = other.read()
    return process.wait(timeout=120), shown.decode(), rest.decode()


def _read_until_closed(descriptor: int) -> bytes:
    data = b""
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except OSError:  # EIO: the last process on the other side is gone
            return data
        if not chunk:
            return data
        data += chunk


@dataclass(frozen=True)
class Place:
    """A repository with a full and an incremental backup of a tree."""

    repository: Path
    source: Path
    ids: tuple[str, str]


def two_backups(source: Path, repository: Path) -> Place:
    """Back up *source*, with a file of 2 MiB that no compressor shrinks and a small one, change it, back it up."""
    (source / "big").write_bytes(os.urandom(2 << 20))
    (source / "small").write_text("small\n")
    first = full_backup(source, repository)
    with (source / "big").open("ab") as big:
        big.write(b"more")
    second = incremental_backup(source, repository)
    return Place(repository, source, (first.backup_date, second.backup_date))


def content_of(root: Path) -> dict[str, bytes | None]:
    """Every path below *root* with its bytes, None for a directory: to see that nothing has changed."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(root.rglob("*"))
    }


def only(root: Path, pattern: str) -> Path:
    """The one path below *root* that matches."""
    (path,) = root.rglob(pattern)
    return path


def damage(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change the bytes of a file in place."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip_middle(data: bytearray) -> None:
    """One bit, in the middle."""
    data[len(data) // 2] ^= 0x10


def cut_half(data: bytearray) -> None:
    """The second half is gone."""
    del data[len(data) // 2 :]
