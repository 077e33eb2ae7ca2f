"""The charts, as SVG and PNG: time and bytes by step and tool; time and memory by files and by chain length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.bars import DATABASE, TREE
from benchmarks.measure import MIB, Row
from benchmarks.peers import OURS
from benchmarks.report import Report
from benchmarks.scaling import CHAIN, FILES
from benchmarks.steps import FULL, INCREMENTAL, RESTORE, UNCHANGED

_OURS_COLOR: Final = "#2a6f97"
_PEER_COLOR: Final = "#b0b7bd"
_PANELS: Final = (
    (FULL, "full, s", False),
    (INCREMENTAL, "incremental, s", False),
    (UNCHANGED, "nothing changed, s", False),
    (RESTORE, "restore, s", False),
    (FULL, "full, MiB", True),
    (INCREMENTAL, "incremental, MiB", True),
)
_COLORS: Final = {OURS: _OURS_COLOR, "restic": "#c1666b", "tar+zstd": "#7d8597", "rdiff-backup": "#d4a373"}
_STYLES: Final = {FULL: "--", INCREMENTAL: "-", UNCHANGED: "-", RESTORE: "--"}


def draw_charts(report: Report, directory: Path) -> list[Path]:
    """Write the charts for which the report has figures; returns the files."""
    matplotlib.use("agg")  # no display is needed
    # Text stays text, and a chart of the same figures is the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ibt", "font.size": 8})
    written = []
    for name, figure in (("benchmark-steps", _steps(report)), ("benchmark-scaling", _scaling(report))):
        if figure is not None:
            written += list(_save(figure, directory / name))
    return written


def _save(figure: Figure, stem: Path) -> Iterator[Path]:
    for suffix, metadata in ((".svg", {"Date": None}), (".png", {})):
        path = stem.with_suffix(suffix)
        figure.savefig(path, dpi=150, metadata=metadata)
        yield path
    pyplot.close(figure)


def _steps(report: Report) -> Figure | None:
    parts = [part for part in (TREE, DATABASE) if any(row.part == part for row in report.rows)]
    if not parts:
        return None
    figure = pyplot.figure(figsize=(14, 3.1 * len(parts)), layout="constrained")
    blocks = figure.subfigures(len(parts), 1, squeeze=False)
    for part, block in zip(parts, blocks[:, 0], strict=True):
        block.suptitle(f"{report.titles.get(part, part)}; shorter is better", fontsize=9)
        panels = block.subplots(1, len(_PANELS))
        for axes, (step, title, in_bytes) in zip(panels, _PANELS, strict=True):
            rows = [row for row in report.rows if row.part == part and row.step == step and row.runs]
            _bars(axes, rows, title, in_bytes=in_bytes)
    return figure


def _bars(axes: Axes, rows: Sequence[Row], title: str, *, in_bytes: bool) -> None:
    """One panel: a bar a tool, on a scale of its own that begins at 0."""
    values = {
        row.tool: (row.added_bytes or 0) / MIB if in_bytes else row.wall_seconds
        for row in rows
        if not in_bytes or row.added_bytes is not None
    }
    names = sorted(values, key=lambda name: values[name], reverse=True)
    lengths = [values[name] for name in names]
    drawn = axes.barh(names, lengths, color=[_OURS_COLOR if name == OURS else _PEER_COLOR for name in names])
    axes.bar_label(drawn, labels=[_short(length) for length in lengths], padding=2)
    axes.set_title(title, fontsize=9)
    axes.set_xlim(0, max(lengths, default=1) * 1.3 or 1)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _scaling(report: Report) -> Figure | None:
    rows = [row for row in report.rows if row.part in (FILES, CHAIN) and row.runs]
    if not rows:
        return None
    figure, panels = pyplot.subplots(2, 2, figsize=(13, 7), layout="constrained")
    measures: tuple[tuple[str, Callable[[Row], float]], ...] = (
        ("time, s", lambda row: row.wall_seconds),
        ("peak memory, MiB", lambda row: row.peak_rss_bytes / MIB),
    )
    for line, (label, measure) in zip(panels, measures, strict=True):
        for axes, part, wanted in zip(
            line, (FILES, CHAIN), ((FULL, UNCHANGED), (INCREMENTAL, RESTORE)), strict=True
        ):
            _curves(axes, [row for row in rows if row.part == part and row.step in wanted], measure)
            axes.set_xlabel("files of 1 KiB" if part == FILES else "increments on the full")
            axes.set_ylabel(label)
            if part == CHAIN:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if part == FILES:
                axes.set_xscale("log")
            if part == FILES and label == "time, s":
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
    return figure


def _curves(axes: Axes, rows: Sequence[Row], measure: Callable[[Row], float]) -> None:
    for tool, step in dict.fromkeys((row.tool, row.step) for row in rows):
        points = sorted((row.scale, measure(row)) for row in rows if (row.tool, row.step) == (tool, step))
        scales, values = zip(*points, strict=True)
        axes.plot(
            scales,
            values,
            _STYLES[step],
            color=_COLORS.get(tool, _PEER_COLOR),
            marker="." if len(points) < 20 else None,
            label=f"{tool}: {step}",
        )
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False, handlelength=4)
