"""``python -m benchmarks`` does what its page says, on data so small that only its working is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpora import made_trees, make_corpus
from benchmarks.measure import Key, Row, Run, Sample, Samples
from benchmarks.peers import Tool
from benchmarks.report import Report
from benchmarks.steps import STEPS, measure_steps

ROOT = Path(__file__).parents[2]
TINY = ("--made-files=40", "--database-mib=1", "--most-files=100", "--list-backups=2")


def run_benchmarks(*arguments: str | Path, module: str = "benchmarks") -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_quick_run_has_figures_restores_and_bars(tmp_path: Path) -> None:
    printed = run_benchmarks(
        "--quick",
        *TINY,
        "--parts=tree,files,start-up",
        "--tools=ibt,tar+zstd,cp -a",
        "--output",
        tmp_path / "out",
        "--work",
        tmp_path,
    )
    document = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows: dict[tuple[str, str, str], Any] = {
        (row["part"], row["step"], row["tool"]): row for row in document["rows"]
    }
    for step in STEPS:
        assert rows["tree", step, "ibt"]["wall_seconds"] > 0
        assert rows["tree", step, "ibt"]["peak_rss_bytes"] > 1 << 20
    for tool in ("ibt", "tar+zstd", "cp -a"):
        assert rows["tree", "restore", tool]["restored"] == "same"
    assert rows["tree", "one file", "ibt"]["restored"] == "same"
    assert 0 < rows["tree", "one file", "ibt"]["read_bytes"] < 4 << 20
    full, incremental = (rows["tree", step, "ibt"]["added_bytes"] for step in ("full", "incremental"))
    assert 0 < incremental < full
    assert rows["files", "nothing changed", "tar+zstd"]["scale"] == 100
    assert rows["start-up", "ibt list", "ibt"]["scale"] == 2
    assert {(bar["step"], bar["peer"]) for bar in document["bars"]} >= {
        ("full", "tar+zstd"),
        ("nothing changed", "tar+zstd"),
        ("restore", "cp -a"),
        ("one file", ""),
        ("ibt --version", ""),
    }
    assert not any(row["failure"] for row in document["rows"])
    assert "at most 1.3: " in printed
    assert (tmp_path / "out" / "benchmark.txt").read_text() == printed
    for chart in ("benchmark-steps", "benchmark-scaling"):
        assert (tmp_path / "out" / f"{chart}.svg").read_text().startswith("<?xml")
        assert (tmp_path / "out" / f"{chart}.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the work is cleared away


def test_a_history_is_kept_in_every_form_and_restored(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    printed = run_benchmarks(
        *("--quick", "--versions=4", "--forms=chain,snapshot,heap,disk,rsync links"),
        *("--work", tmp_path / "work", "--json", tmp_path / "heap.json"),
        module="benchmarks.heap",
    )
    document = json.loads((tmp_path / "heap.json").read_text())
    forms: dict[str, Any] = document["forms"]
    assert list(forms) == ["chain", "snapshot", "heap", "disk", "rsync links", "plain copies"]
    assert [version["changed_paths"] > 0 for version in document["versions"]] == [False, True, True, True]
    for name, form in forms.items():
        assert form["restored"] == ([] if name == "plain copies" else ["same", "same"])
        sizes = [kept["bytes"] for kept in form["kept"]]
        assert len(sizes) == 4 and sizes == sorted(set(sizes))
    totals = {name: form["kept"][-1]["bytes"] for name, form in forms.items()}
    assert totals["chain"] < totals["heap"] < totals["snapshot"] < totals["plain copies"]
    assert forms["chain"]["kept"][-1]["inodes"] < 30 < forms["heap"]["kept"][-1]["inodes"]
    assert f"{totals['heap'] / totals['chain']:.2f}" in printed
    assert list((tmp_path / "work").iterdir()) == []  # the work is cleared away


def test_charts_are_drawn_again_from_a_report(tmp_path: Path) -> None:
    samples = Samples()
    samples.add(Key("chain", 3, "restore", "ibt"), Sample(Run(0, 2.0, 3.0, 50 << 20)))
    Report("a machine", 0, {}, {"ibt": "1"}, {}, samples.rows()).to_file(tmp_path / "benchmark.json")

    run_benchmarks("--redraw", tmp_path / "benchmark.json")

    assert "ibt: restore" in (tmp_path / "benchmark-scaling.svg").read_text()
    assert not (tmp_path / "benchmark-steps.svg").exists()


_COPIES = "rm -rf {repository}/* && cp -a {source}/. {repository}/"
_FAULTY = (
    Tool("forgetful", ("cp",), backup=_COPIES, restore="cp -a {repository}/part1 {out}/"),
    Tool("careless", ("cp",), backup=_COPIES, restore="cp -r {repository}/. {out}/"),
    Tool("idle", ("cp",), backup=_COPIES, restore="true", restored_at="{out}/nowhere"),
    Tool("tired", ("cp",), backup="[ {number} = 000001 ] || (echo no more; exit 7)", restore="true"),
    Tool("closed", ("cp",), init="exit 1", backup=_COPIES, restore="true"),
)


@pytest.fixture(scope="module")
def faulty_rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What is measured of tools that do not do what they should."""
    top = tmp_path_factory.mktemp("faulty")
    corpus = make_corpus("tree", "made", made_trees(top / "versions", 12), top / "source")
    samples = Samples()
    measure_steps(corpus, _FAULTY, 1, top / "work", samples, lambda text: None)
    return samples.rows()


def test_a_wrong_restore_is_shown(faulty_rows: list[Row]) -> None:
    restored = {row.tool: row.restored or "" for row in faulty_rows if row.step == "restore"}
    assert restored["forgetful"].startswith("WRONG: ")
    assert restored["careless"].endswith(" with other metadata")
    assert restored["idle"] == "WRONG: nothing was restored"


def test_a_tool_that_fails_is_noted_and_left_out_of_what_follows(faulty_rows: list[Row]) -> None:
    seen = [(row.tool, row.step, row.runs, row.failure) for row in faulty_rows]
    assert [row for row in seen if row[0] in ("tired", "closed")] == [
        ("closed", "init", 0, "exit status 1: not a word"),
        ("tired", "full", 1, ""),
        ("tired", "incremental", 0, "exit status 7: no more"),
    ]
