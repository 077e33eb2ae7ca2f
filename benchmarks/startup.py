"""How long the command takes to say its version, and to list a repository of many backups."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.measure import Key, Sample, Samples
from benchmarks.peers import OURS, Place, Tool, remove
from benchmarks.steps import Say, checked_run

START: Final = "start-up"
VERSION: Final = "ibt --version"
LIST: Final = "ibt list"
# Short runs vary most, and cost least.
_RUNS_PER_ROUND: Final = 3


def measure_startup(
    tools: Sequence[Tool], backups: int, rounds: int, work: Path, samples: Samples, say: Say
) -> None:
    """The version, and the list of a repository of *backups* backups of one small file."""
    for tool in tools:
        if tool.name == OURS:
            place = Place(tool, work / "source", work / "place")
            place.prepare()
            say(f"start-up: making {backups:,} backups")
            # In a process of its own: the memory of what is measured begins with that of its parent.
            maker = multiprocessing.get_context("spawn").Process(
                target=make_backups, args=(place.source, place.repository, work / "cache", backups)
            )
            maker.start()
            maker.join()
            for _ in range(rounds * _RUNS_PER_ROUND):
                for step, scale, line in (
                    (VERSION, 0, "exec {ibt} --version"),
                    (LIST, backups, "exec {ibt} list -r {repository}"),
                ):
                    samples.add(Key(START, scale, step, OURS), Sample(checked_run(place, line)))
    remove(work)


def make_backups(source: Path, repository: Path, cache: Path, count: int) -> None:
    """A full and the rest incrementals, of one file that grows by a line each time."""
    from incremental_backups_tools import incremental_backup

    source.mkdir()
    for number in range(count):
        with (source / "file").open("a") as file:
            file.write(f"line {number}\n")
        incremental_backup(source, repository, key="source", cache_root=cache)
