"""Which process is this, and does that one still run: what a lock says of its owner."""

from __future__ import annotations

import os
from pathlib import Path

PID_MAX = 2**31 - 1

# Fields of /proc/<pid>/stat behind the command's name, counted from 0 (proc(5): state is 3, starttime is 22).
_STATE_FIELD = 0
_START_FIELD = 19
_DEAD_STATES = frozenset({"Z", "X", "x"})


def machine_identity() -> str:
    """Return what this boot of this machine and this space of process numbers have for their own.

    Containers may share a host name and still see other processes. Empty where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None where that cannot be known."""
    fields = _read_stat(pid)
    return int(fields[_START_FIELD]) if fields else None


def is_running(pid: int, started: int | None) -> bool:
    """Whether a process of this machine still runs; when in doubt, it does.

    Args:
        pid: from 1 to :data:`PID_MAX`.
        started: its :func:`process_start`, since numbers are given again; None is not compared.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    fields = _read_stat(pid)
    if fields is None:
        return True
    if fields[_STATE_FIELD] in _DEAD_STATES:
        return False
    return started is None or int(fields[_START_FIELD]) == started


def _read_stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold any character, these too.
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) > _START_FIELD else None
