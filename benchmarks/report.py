"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.bars import DATABASE, TREE, Verdict, judge
from benchmarks.measure import MIB, SAME, Row
from benchmarks.peers import OURS
from benchmarks.scaling import CHAIN, CHAIN_POINTS, FILES
from benchmarks.startup import LIST, START

_ORDER: Final = (TREE, DATABASE, FILES, CHAIN, START)
_HEADING: Final = (
    f"{'step':36} {'tool':13} {'n':>2} {'wall s':>8} {'ibt is':>7} {'cpu s':>8} {'cores':>5}"
    f" {'peak MiB':>8} {'added MiB':>9} {'ibt is':>7}"
)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        floor_bytes: the measuring process's own memory, below which no peak memory can be seen.
        titles: what each part measured.
        tools: the version of each tool that took part.
        missing: the tools that did not, and why.
    """

    machine: str
    floor_bytes: int
    titles: Mapping[str, str]
    tools: Mapping[str, str]
    missing: Mapping[str, str]
    rows: Sequence[Row]

    def document(self) -> dict[str, Any]:
        """The report in JSON's types, with the verdicts on the bars."""
        return {
            "machine": self.machine,
            "floor_bytes": self.floor_bytes,
            "titles": dict(self.titles),
            "tools": dict(self.tools),
            "missing": dict(self.missing),
            "rows": [{**asdict(row), "cores": round(row.cores, 3)} for row in self.rows],
            "bars": [
                {**asdict(verdict.bar), "value": verdict.value, "met": verdict.is_met}
                for verdict in judge(self.rows)
            ],
        }

    def to_file(self, path: Path) -> None:
        path.write_text(json.dumps(self.document(), indent=1) + "\n")

    @classmethod
    def from_file(cls, path: Path) -> Report:
        """Read what :meth:`to_file` wrote. The verdicts are made anew."""
        document = json.loads(path.read_text())
        rows = [
            Row(**{name: value for name, value in row.items() if name != "cores"}) for row in document["rows"]
        ]
        names = ("machine", "floor_bytes", "titles", "tools", "missing")
        return cls(**{name: document[name] for name in names}, rows=rows)

    def wrong_restores(self) -> list[Row]:
        """Our rows whose restore was not the source, to the last byte and mode."""
        return [row for row in self.rows if row.tool == OURS and row.restored not in (None, SAME)]

    def failures(self) -> list[Row]:
        """Our rows with a failure."""
        return [row for row in self.rows if row.tool == OURS and row.failure]

    def text(self) -> str:
        """The tables, a part each. "ibt is" tells our time, or bytes, in proportion to this tool's."""
        lines = [self.machine]
        lines += [f"{name}: {version}" for name, version in self.tools.items()]
        lines += [f"{name}: not measured, {why}" for name, why in self.missing.items()]
        lines.append(f"Peak memory of less than {self.floor_bytes / MIB:.0f} MiB is shown as that much.")
        verdicts = judge(self.rows)
        for part in _ORDER:
            rows = [row for row in self.rows if row.part == part and _is_shown(row)]
            if rows:
                lines += ["", self.titles.get(part, part), "", _HEADING]
                lines += _part_lines(rows, verdicts)
        return "\n".join(lines) + "\n"


def _is_shown(row: Row) -> bool:
    return row.part != CHAIN or row.scale in (0, *CHAIN_POINTS) or bool(row.failure)


def _part_lines(rows: Sequence[Row], verdicts: Sequence[Verdict]) -> Iterator[str]:
    ours = {(row.scale, row.step): row for row in rows if row.tool == OURS and row.runs}
    steps = list(dict.fromkeys((row.scale, row.step) for row in rows))
    tools = list(dict.fromkeys(row.tool for row in rows))
    tools.sort(key=lambda tool: tool != OURS)  # stable: ours first, the others as they were
    for scale, step in steps:
        here = [row for row in rows if (row.scale, row.step) == (scale, step)]
        for row in sorted(here, key=lambda row: tools.index(row.tool)):
            own = [verdict.text for verdict in verdicts if verdict.key == row.key]
            notes = "; ".join([*_notes(row), *own])
            yield f"{_line(row, ours.get((scale, step)))}  {notes}".rstrip()


def _line(row: Row, ours: Row | None) -> str:
    line = f"{_step_name(row):36} {row.tool:13} {row.runs:2}"
    if not row.runs:
        return line
    wall_ratio = "" if ours is None or ours is row else _ratio(ours.wall_seconds, row.wall_seconds)
    line += f" {row.wall_seconds:8.3f} {wall_ratio:7}"
    line += f" {row.cpu_seconds:8.3f} {row.cores:5.2f} {row.peak_rss_bytes / MIB:8.1f}"
    if row.added_bytes is None:
        return f"{line} {'':17}"
    added_ratio = ""
    if ours is not None and ours is not row and ours.added_bytes is not None:
        added_ratio = _ratio(ours.added_bytes, row.added_bytes)
    return f"{line} {row.added_bytes / MIB:9.3f} {added_ratio:7}"


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:7.3f}" if theirs else ""


def _step_name(row: Row) -> str:
    if row.part == FILES:
        return f"{row.step}, {row.scale:,} files"
    if row.part == CHAIN:
        return f"{row.step}, length {row.scale}"
    return f"{row.step} of {row.scale:,} backups" if row.step == LIST else row.step


def _notes(row: Row) -> Iterator[str]:
    if row.failure:
        yield f"FAILED: {row.failure}"
    if row.restored is not None:
        yield f"restored: {row.restored}"
    if row.spread > 2 and row.runs > 1:
        yield f"runs vary by {row.spread:.1f}"
