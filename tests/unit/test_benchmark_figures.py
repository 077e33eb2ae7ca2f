"""How the benchmark turns runs into figures and figures into verdicts."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.bars import Bar, judge
from benchmarks.measure import Key, Row, Run, Sample, Samples, enough_runs, rotated, run
from benchmarks.report import Report
from benchmarks.startup import START, VERSION
from benchmarks.steps import count_read

MIB = 1 << 20


def sample(seconds: float, *, added_bytes: int | None = None, restored: str | None = None) -> Sample:
    return Sample(Run(0, seconds, seconds * 1.5, 50 * MIB), added_bytes=added_bytes, restored=restored)


def row_of(tool: str, seconds: float, *, scale: int = 0, rss: int = 0) -> Row:
    samples = Samples()
    samples.add(Key("tree", scale, "full", tool), Sample(Run(0, seconds, seconds * 1.8, rss)))
    (row,) = samples.rows()
    return row


def test_a_run_is_measured_with_all_its_processes(tmp_path: Path) -> None:
    line = "(head -c 50000000 /dev/zero | md5sum) && echo said >&2 && sleep 0.2 && exit 4"
    measured = run(line, env=dict(os.environ), log=tmp_path / "log")
    assert measured.status == 4
    assert measured.wall_seconds > 0.2
    assert measured.cpu_seconds > 0.01
    assert "said" in (tmp_path / "log").read_text()


def test_peak_memory_is_that_of_the_largest_process(tmp_path: Path) -> None:
    line = f"head -c 1 /dev/zero; {sys.executable} -c 'bytearray(300 << 20)'"
    assert run(line, env=dict(os.environ), log=tmp_path / "log").peak_rss_bytes > 300 * MIB


def test_a_row_has_medians_and_the_worst_restore() -> None:
    samples = Samples()
    key = Key("tree", 0, "restore", "ibt")
    for seconds, restored in ((3.0, "same"), (1.0, "WRONG"), (2.0, "same")):
        samples.add(key, sample(seconds, added_bytes=int(seconds * 100), restored=restored))
    (row,) = samples.rows()
    assert (row.runs, row.wall_seconds, row.added_bytes, row.restored) == (3, 2.0, 200, "WRONG")
    assert row.spread == 3.0
    assert row.cores == pytest.approx(1.5)
    assert row.read_bytes is None


def test_a_step_is_repeated_until_there_are_enough_runs() -> None:
    short, long = Run(0, 9.0, 9.0, 0), Run(0, 11.0, 11.0, 0)
    assert not enough_runs([], 5)
    assert not enough_runs([short] * 4, 5)
    assert enough_runs([short] * 5, 5)
    assert not enough_runs([long] * 2, 5)
    assert enough_runs([long] * 3, 5)
    assert enough_runs([long], 1)


def test_each_tool_in_turn_comes_first() -> None:
    assert [rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert rotated("abc", 2) == ["c", "a", "b"]
    assert rotated([], 3) == []


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (Bar("tree", "full", 0.5, "restic"), 0.4, True),
        (Bar("tree", "full", 0.3, "restic"), 0.4, False),
        (Bar("tree", "full", 2.0), 4.0, False),
        (Bar("tree", "full", 1.7, measure="cores", at_least=True), 1.8, True),
        (Bar("tree", "full", 1.9, measure="cores", at_least=True), 1.8, False),
        (Bar("tree", "full", 70 * MIB, measure="peak_rss_bytes", base_scale=10), 60 * MIB, True),
        (Bar("tree", "full", 50 * MIB, measure="peak_rss_bytes", base_scale=10), 60 * MIB, False),
    ],
)
def test_a_bar_is_judged(bar: Bar, value: float, met: bool) -> None:
    rows = [
        row_of("ibt", 4.0, rss=100 * MIB),
        row_of("restic", 10.0),
        row_of("ibt", 1.0, scale=10, rss=40 * MIB),
    ]
    (verdict,) = judge(rows, [bar])
    assert verdict.value == pytest.approx(value)
    assert verdict.is_met is met
    assert verdict.text.endswith(": met" if met else ": NOT met")
    assert verdict.key.tool == (bar.peer or "ibt")


def test_cores_count_while_there_is_work() -> None:
    """Of 4 s with 7.2 s of processor time, half a second with 0.4 s is the start."""
    bar = Bar("tree", "full", 1.9, measure="cores", at_least=True)
    begun = replace(row_of("ibt", 0.5), part=START, step=VERSION, cpu_seconds=0.4)
    (verdict,) = judge([row_of("ibt", 4.0), begun], [bar])
    assert verdict.value == pytest.approx((7.2 - 0.4) / 3.5)
    assert verdict.is_met


def test_a_bar_without_figures_is_not_judged() -> None:
    bars = [
        Bar("tree", "full", 0.5, "restic"),
        Bar("tree", "restore", 1.0),
        Bar("tree", "full", 9, base_scale=7),
    ]
    assert judge([row_of("ibt", 1.0)], bars) == []
    failed = Samples()
    failed.add_failure(Key("tree", 0, "full", "ibt"), "exit status 1")
    assert judge(failed.rows(), [Bar("tree", "full", 9.0)]) == []


def test_reads_of_the_repository_are_counted_at_the_system_calls() -> None:
    trace = """\
11 read(3</r/key/a>, ""..., 4096) = 100
11 read(3</r/key/a>, "", 4096) = 0
11 read(4</usr/lib/x>, ""..., 4096) = 4000
11 pread64(5</r/key/b>, ""..., 4096, 0) = 20
12 read(5</r/key/b>,  <unfinished ...>
11 read(4</usr/lib/x>,  <unfinished ...>
12 <... read resumed>""..., 9) = 3
11 <... read resumed>""..., 9) = 7
11 mmap(NULL, 1000, PROT_READ, MAP_PRIVATE, 5</r/key/b>, 0) = 0x7f
11 mmap(NULL, 5000, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7f
11 read(6</r/key/c>, 0x7f, 10) = -1 EIO (Input/output error)
11 +++ exited with 0 +++
"""
    assert count_read(trace.splitlines(keepends=True), "/r/") == 1123


def test_a_report_says_what_is_wrong_and_survives_its_file(tmp_path: Path) -> None:
    samples = Samples()
    samples.add(Key("tree", 0, "restore", "ibt"), sample(2.0, restored="WRONG: 1 differ, 'a' first"))
    samples.add(Key("tree", 0, "restore", "restic"), sample(8.0, restored="same"))
    samples.add(Key("tree", 0, "full", "ibt"), sample(3.0, added_bytes=3 * MIB))
    samples.add(Key("tree", 0, "full", "borg"), sample(4.0, added_bytes=4 * MIB))
    samples.add_failure(Key("tree", 0, "full", "bup"), "exit status 1: no space")
    titles, tools, missing = {"tree": "a tree"}, {"ibt": "1", "borg": "2"}, {"rsync": "rsync not installed"}
    report = Report("a machine", 20 * MIB, titles, tools, missing, samples.rows())

    assert [row.step for row in report.wrong_restores()] == ["restore"]
    assert report.failures() == []
    lines = report.text().splitlines()
    assert "rsync: not measured, rsync not installed" in lines
    assert any("ibt" in line and "restored: WRONG: 1 differ" in line for line in lines)
    assert any("bup" in line and "FAILED: exit status 1: no space" in line for line in lines)
    assert any("borg" in line and line.count("0.750") == 2 for line in lines)
    assert any("restic" in line and "0.25 of it, at most 0.5: met" in line for line in lines)
    report.to_file(tmp_path / "report.json")
    assert Report.from_file(tmp_path / "report.json").text() == report.text()
