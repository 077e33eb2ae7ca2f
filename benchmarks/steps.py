"""The steps of a tool's life on one corpus, every tool in turn: full, two increments, restore, one file, no change."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.corpora import Corpus
from benchmarks.measure import (
    SAME,
    Key,
    Run,
    Sample,
    Samples,
    bytes_below,
    enough_runs,
    let_clocks_tick,
    rotated,
    run,
    settle,
)
from benchmarks.peers import OURS, Place, Tool, remove
from benchmarks.trees import verdict

FULL: Final = "full"
INCREMENTAL: Final = "incremental"
SECOND: Final = "second incremental"
RESTORE: Final = "restore"
ONE_FILE: Final = "one file"
UNCHANGED: Final = "nothing changed"
STEPS: Final = (FULL, INCREMENTAL, SECOND, RESTORE, ONE_FILE, UNCHANGED)

Say = Callable[[str], None]


class ToolError(Exception):
    """A command of a tool failed; the message has its status and the last line that it said."""


@dataclass(slots=True)
class Measuring:
    """One part of the benchmark at work: a tool that fails in it is noted, and left out of what follows.

    Attributes:
        work: a directory in which each tool gets its place.
    """

    part: str
    work: Path
    source: Path
    samples: Samples
    say: Say

    def places(self, tools: Sequence[Tool]) -> list[Place]:
        """A prepared place for each tool whose repository can be made."""
        places = [Place(tool, self.source, self.work / tool.name.replace(" ", "")) for tool in tools]
        for place in places:
            place.prepare()
        return self.each(
            places, "init", 0, lambda place: place.tool.init and checked_run(place, place.tool.init)
        )

    def each(
        self, places: Sequence[Place], step: str, scale: int, work: Callable[[Place], object]
    ) -> list[Place]:
        """Do *work* for each tool; returns the places of those that did it."""
        done = []
        for place in places:
            try:
                work(place)
            except ToolError as error:
                self.say(f"{place.tool.name}: {step}: {error}")
                self.samples.add_failure(Key(self.part, scale, step, place.tool.name), str(error))
            else:
                done.append(place)
        return done

    def back_up(self, places: Sequence[Place], step: str, scale: int = 0) -> list[Place]:
        """One backup more by each tool that makes backups; the others are kept for their restore."""

        def backup(place: Place) -> None:
            if place.tool.backup:
                before = bytes_below(place.repository)
                measured = checked_run(place, place.next_backup())
                kept = place.number == 1 or not place.tool.is_mirror
                added = bytes_below(place.repository) - before if kept else None
                self._add(place, step, scale, Sample(measured, added_bytes=added))

        return self.each(places, step, scale, backup)

    def restore(self, places: Sequence[Place], scale: int = 0) -> list[Place]:
        """Each tool's newest backup, into an empty directory that is then compared with the source."""

        def restore(place: Place) -> None:
            place.empty_out()
            measured = checked_run(place, place.tool.restore)
            restored = verdict(self.source, place.restored())
            place.empty_out()
            self._add(place, RESTORE, scale, Sample(measured, restored=restored))

        return self.each(places, RESTORE, scale, restore)

    def restore_one_file(self, places: Sequence[Place], file: str) -> list[Place]:
        """One small file of the newest backup, by the tools that can."""

        def restore(place: Place) -> None:
            if place.tool.one_file:
                place.empty_out()
                measured = checked_run(place, place.tool.one_file, file)
                same = _same_file(self.source / file, place.restored() / file)
                read = bytes_read(place, place.tool.one_file, file) if place.tool.name == OURS else None
                sample = Sample(measured, read_bytes=read, restored=SAME if same else "WRONG")
                self._add(place, ONE_FILE, 0, sample)

        return self.each(places, ONE_FILE, 0, restore)

    def repeat(self, places: Sequence[Place], step: str, scale: int, rounds: int) -> list[Place]:
        """Run a step that leaves the source as it is again and again, in turn, until there are enough runs.

        Returns:
            The places of those that never failed.
        """
        done: list[Place] = []
        remaining = list(places)
        for number in range(rounds):
            if step == RESTORE:
                remaining = self.restore(rotated(remaining, number), scale)
            else:
                remaining = self.back_up(rotated(remaining, number), step, scale)
            enough = [
                place
                for place in remaining
                if enough_runs(self.samples.runs(Key(self.part, scale, step, place.tool.name)), rounds)
            ]
            done += enough
            remaining = [place for place in remaining if place not in enough]
        return done + remaining

    def _add(self, place: Place, step: str, scale: int, sample: Sample) -> None:
        self.samples.add(Key(self.part, scale, step, place.tool.name), sample)
        self.say(f"{self.part}: {step}: {place.tool.name} {sample.run.wall_seconds:.2f} s")


def measure_steps(
    corpus: Corpus, tools: Sequence[Tool], rounds: int, work: Path, samples: Samples, say: Say
) -> None:
    """All steps, *rounds* times from the beginning; within a step all tools run on the same state of the source."""
    measuring = Measuring(corpus.part, work, corpus.source, samples, say)
    for number in range(rounds):
        say(f"{corpus.part}: round {number + 1} of {rounds}")
        corpus.begin()
        places = measuring.places(rotated(tools, number))
        let_clocks_tick()
        places = measuring.back_up(places, FULL)
        for step, name in enumerate((INCREMENTAL, SECOND)):
            corpus.advance(step)
            let_clocks_tick()
            places = measuring.back_up(places, name)
        places = measuring.restore(places)
        if corpus.small_file:
            places = measuring.restore_one_file(places, corpus.small_file)
        let_clocks_tick()
        measuring.back_up(places, UNCHANGED)
    remove(work)


def checked_run(place: Place, template: str, file: str = "") -> Run:
    """Run a tool's command when the disk is quiet.

    Raises:
        ToolError: its exit status is not 0.
    """
    settle(place.top)
    measured = run(place.line(template, file), env=place.environment(), log=place.log)
    if measured.status:
        lines = place.log.read_text(errors="replace").strip().splitlines()
        raise ToolError(f"exit status {measured.status}: {lines[-1] if lines else 'not a word'}")
    return measured


def _same_file(source: Path, restored: Path) -> bool:
    return restored.is_file() and restored.read_bytes() == source.read_bytes()


# PID read(3</path>, "..", 10) = 5; a call that another thread's call came between stands on two lines.
_CALL: Final = re.compile(
    r"^(\d+) +(?:read|readv|pread64|preadv)\(\d+<([^>]*)>.*?(?:= (\d+)|<unfinished \.\.\.>)$"
)
_RESUMED: Final = re.compile(r"^(\d+) +<\.\.\. (?:read|readv|pread64|preadv) resumed>.*= (\d+)$")
_MAPPED: Final = re.compile(r"^\d+ +mmap\([^,]+, (\d+), [^<]*<([^>]*)>")


def bytes_read(place: Place, template: str, file: str = "") -> int | None:
    """How many bytes of its repository a command reads, counted at the system calls by ``strace``.

    A mapped file counts with all that is mapped of it.

    Returns:
        None where there is no strace, or it may not trace.
    """
    if shutil.which("strace") is None:
        return None
    place.empty_out()
    trace = place.top / "strace"
    calls = "trace=read,readv,pread64,preadv,mmap"
    done = subprocess.run(
        ["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", trace, "bash", "-c", place.line(template, file)],
        env=place.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return None
    with trace.open(errors="replace") as lines:
        return count_read(lines, f"{place.repository}/")


def count_read(lines: Iterable[str], prefix: str) -> int:
    """Bytes that the calls in a trace of ``strace -f -y`` took from files whose path begins with *prefix*."""
    total = 0
    unfinished: dict[str, str] = {}
    for line in map(str.rstrip, lines):
        if call := _CALL.match(line):
            process, path, length = call.groups()
            if length is None:
                unfinished[process] = path
            elif path.startswith(prefix):
                total += int(length)
        elif resumed := _RESUMED.match(line):
            if unfinished.pop(resumed[1], "").startswith(prefix):
                total += int(resumed[2])
        elif (mapped := _MAPPED.match(line)) and mapped[2].startswith(prefix):
            total += int(mapped[1])
    return total
