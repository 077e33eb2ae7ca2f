"""The bars: what each step is to reach, in proportion to a peer in the same run or by itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.measure import MIB, Key, Row
from benchmarks.peers import OURS
from benchmarks.scaling import FILES
from benchmarks.startup import LIST, START, VERSION
from benchmarks.steps import FULL, INCREMENTAL, ONE_FILE, RESTORE, UNCHANGED

TREE: Final = "tree"
DATABASE: Final = "database"

Measure = Literal["wall_seconds", "peak_rss_bytes", "read_bytes", "cores"]


@dataclass(frozen=True, slots=True)
class Bar:
    """What our figure for a step must be.

    Attributes:
        limit: as a ratio to *peer*'s figure; without a peer, in the measure's own unit.
        peer: a tool; or empty.
        base_scale: with no peer: the limit is for the difference to our figure at this scale.
        at_least: the limit is the least, not the most.
        is_goal: the direction to go, not yet a bar.
        needs_processors: it says nothing on a machine with fewer.
    """

    part: str
    step: str
    limit: float
    peer: str = ""
    measure: Measure = "wall_seconds"
    scale: int = 0
    base_scale: int | None = None
    at_least: bool = False
    is_goal: bool = False
    needs_processors: int = 1


BARS: Final = (
    *(
        bar
        for part in (TREE, DATABASE)
        for bar in (
            Bar(part, FULL, 1.3, "tar+zstd"),
            Bar(part, FULL, 0.55, "restic"),
            Bar(part, FULL, 1.7, measure="cores", at_least=True, needs_processors=2),
            Bar(part, UNCHANGED, 0.3, "restic"),
            Bar(part, RESTORE, 0.5, "restic"),
            Bar(part, RESTORE, 1.7, measure="cores", at_least=True, needs_processors=2),
        )
    ),
    Bar(TREE, INCREMENTAL, 0.35, "restic"),
    Bar(TREE, RESTORE, 1.2, "cp -a"),
    Bar(DATABASE, INCREMENTAL, 1.5, "tar+zstd"),
    Bar(TREE, UNCHANGED, 1.5, "tar+zstd", is_goal=True),
    Bar(TREE, ONE_FILE, 0.5),
    Bar(TREE, ONE_FILE, 4 * MIB, measure="read_bytes"),
    Bar(FILES, UNCHANGED, 0.5, "restic", scale=1_000_000),
    Bar(FILES, UNCHANGED, 150 * MIB, measure="peak_rss_bytes", scale=1_000_000),
    Bar(FILES, UNCHANGED, 20 * MIB, measure="peak_rss_bytes", scale=1_000_000, base_scale=100_000),
    Bar(START, VERSION, 0.15),
    Bar(START, LIST, 1.0, scale=1000),
)


_START: Final = Key(START, 0, VERSION, OURS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bar and what was reached. It is shown beside *key*'s row: the peer's, or ours where there is none."""

    bar: Bar
    key: Key
    value: float

    @property
    def is_met(self) -> bool:
        return self.value >= self.bar.limit if self.bar.at_least else self.value <= self.bar.limit

    @property
    def text(self) -> str:
        """Such as ``time 0.48 of restic's, at most 0.55: met``."""
        bar = self.bar
        most = "at least" if bar.at_least else "towards" if bar.is_goal else "at most"
        met = "met" if self.is_met else "not there yet" if bar.is_goal else "NOT met"
        if bar.peer:
            return f"{self.value:.2f} of it, {most} {bar.limit:g}: {met}"
        value, limit = _in_words(bar.measure, self.value), _in_words(bar.measure, bar.limit)
        beyond = "" if bar.base_scale is None else f" more than for {bar.base_scale:,}"
        return f"{value}{beyond}, {most} {limit}: {met}"


def _in_words(measure: Measure, value: float) -> str:
    if measure == "cores":
        return f"{value:.2f} cores at work"
    if measure == "wall_seconds":
        return f"{value:.2f} s"
    what = "of memory" if measure == "peak_rss_bytes" else "read"
    return f"{value / MIB:.1f} MiB {what}"


def judge(rows: Iterable[Row], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """The verdict on every bar for which there are figures; the others are left out."""
    figures = {row.key: row for row in rows if row.runs}
    found = (_judge(bar, figures) for bar in bars)
    return [verdict for verdict in found if verdict is not None]


def _judge(bar: Bar, figures: Mapping[Key, Row]) -> Verdict | None:
    if (os.cpu_count() or 1) < bar.needs_processors:
        return None
    ours = _figure(figures, Key(bar.part, bar.scale, bar.step, OURS), bar.measure)
    key = Key(bar.part, bar.scale, bar.step, bar.peer or OURS)
    if ours is None:
        return None
    if bar.peer:
        theirs = _figure(figures, key, bar.measure)
        return Verdict(bar, key, ours / theirs) if theirs else None
    if bar.base_scale is not None:
        base = _figure(figures, Key(bar.part, bar.base_scale, bar.step, OURS), bar.measure)
        return None if base is None else Verdict(bar, key, ours - base)
    return Verdict(bar, key, ours)


def _figure(figures: Mapping[Key, Row], key: Key, measure: Measure) -> float | None:
    row = figures.get(key)
    if row is None:
        return None
    start = figures.get(_START)
    if measure == "cores" and start is not None and start.wall_seconds < row.wall_seconds:
        # While there is work: as the program starts, there is none for a second one.
        return (row.cpu_seconds - start.cpu_seconds) / (row.wall_seconds - start.wall_seconds)
    value: float | None = getattr(row, measure)
    return value
