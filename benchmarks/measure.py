"""Measuring commands: wall and processor seconds, peak memory, bytes; and what several runs of one step come to."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

MIB: Final = 1 << 20
# The coarsest clock that a tool here compares by: what changed is this much younger than the backup before it.
CLOCK_SECONDS: Final = 1.1
# Where one run takes longer than this, three of them are enough.
LONG_SECONDS: Final = 10.0
RUNS_OF_LONG: Final = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """One command, run to its end.

    Attributes:
        status: its exit status.
        cpu_seconds: user and system time of it and of all that it started and waited for.
        peak_rss_bytes: the largest resident set of any one of these processes. It is never below that of the
            measuring process itself, of which the first of them is a fork.
    """

    status: int
    wall_seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


def run(command: str, *, env: Mapping[str, str], log: Path) -> Run:
    """Run a line of bash; what it prints is appended to *log*."""
    with log.open("ab") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # waited for without Popen, which is to know it
    return Run(process.returncode, wall_seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def bytes_below(directory: Path) -> int:
    """The sizes of all regular files below *directory*, together."""
    return sum(
        os.lstat(os.path.join(parent, name)).st_size
        for parent, _, names in os.walk(directory)
        for name in names
        if not os.path.islink(os.path.join(parent, name))
    )


def settle(directory: Path) -> None:
    """Let what was written to its file system reach the disk, so that nobody pays for what another wrote."""
    subprocess.run(["sync", "-f", str(directory)], check=True)


def let_clocks_tick() -> None:
    """Wait until no clock by which a tool compares shows the time of what was done before."""
    time.sleep(CLOCK_SECONDS)


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The items, each in turn the first: who comes first in a round finds another machine than who comes last."""
    start = number % len(items) if items else 0
    return [*items[start:], *items[:start]]


def enough_runs(done: Sequence[Run], wanted: int) -> bool:
    """Whether a step that can be repeated was run often enough: *wanted* times, less often where it is long."""
    if done and done[0].wall_seconds > LONG_SECONDS:
        wanted = min(wanted, RUNS_OF_LONG)
    return len(done) >= wanted


@dataclass(frozen=True, slots=True)
class Key:
    """What is measured.

    Attributes:
        part: the workload.
        scale: how many files, backups or links of a chain, where the part varies that; 0 where it does not.
        step: what is done.
        tool: by what.
    """

    part: str
    scale: int
    step: str
    tool: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a step, and what is known beside its time.

    Attributes:
        added_bytes: by how much the repository grew.
        read_bytes: how much was read of the repository's files.
        restored: how what was restored compares with the source, in words.
    """

    run: Run
    added_bytes: int | None = None
    read_bytes: int | None = None
    restored: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of all samples of one step by one tool.

    Attributes:
        spread: the longest wall time over the shortest.
        restored: the words of the first sample that has another verdict than "same", else "same".
        failure: what went wrong, empty where nothing did. The figures are of the runs that succeeded.
    """

    part: str
    scale: int
    step: str
    tool: str
    runs: int
    wall_seconds: float
    cpu_seconds: float
    spread: float
    peak_rss_bytes: int
    added_bytes: int | None
    read_bytes: int | None
    restored: str | None
    failure: str

    @property
    def key(self) -> Key:
        return Key(self.part, self.scale, self.step, self.tool)

    @property
    def cores(self) -> float:
        """Processor seconds per second of the wall."""
        return self.cpu_seconds / self.wall_seconds if self.wall_seconds else 0.0


SAME: Final = "same"


@dataclass(slots=True)
class Samples:
    """All that was measured so far, in the order in which it was measured first."""

    _samples: dict[Key, list[Sample]] = field(default_factory=dict)
    _failures: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, sample: Sample) -> None:
        self._samples.setdefault(key, []).append(sample)

    def add_failure(self, key: Key, failure: str) -> None:
        self._samples.setdefault(key, [])
        self._failures[key] = failure

    def runs(self, key: Key) -> list[Run]:
        return [sample.run for sample in self._samples.get(key, [])]

    def rows(self) -> list[Row]:
        return [_row(key, samples, self._failures.get(key, "")) for key, samples in self._samples.items()]


def _row(key: Key, samples: Sequence[Sample], failure: str) -> Row:
    runs = [sample.run for sample in samples]
    walls = [run.wall_seconds for run in runs]
    verdicts = list(_known(sample.restored for sample in samples))
    return Row(
        part=key.part,
        scale=key.scale,
        step=key.step,
        tool=key.tool,
        runs=len(runs),
        wall_seconds=_median(walls),
        cpu_seconds=_median([run.cpu_seconds for run in runs]),
        spread=max(walls) / min(walls) if walls and min(walls) > 0 else 1.0,
        peak_rss_bytes=int(_median([run.peak_rss_bytes for run in runs])),
        added_bytes=_median_or_none(list(_known(sample.added_bytes for sample in samples))),
        read_bytes=_median_or_none(list(_known(sample.read_bytes for sample in samples))),
        restored=next((verdict for verdict in verdicts if verdict != SAME), SAME) if verdicts else None,
        failure=failure,
    )


def _known(values: Iterator[T | None]) -> Iterator[T]:
    return (value for value in values if value is not None)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _median_or_none(values: Sequence[int]) -> int | None:
    return int(statistics.median(values)) if values else None


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
