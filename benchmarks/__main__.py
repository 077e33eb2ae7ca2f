"""Backups beside other tools: ``python -m benchmarks``.

Builds what is to be backed up, runs ``ibt`` and every other tool that is installed on it in turn, and prints medians,
ratios, and which bars are met. Without --quick it takes hours and about 40 GB of disk, and writes benchmark.json,
benchmark.txt and the charts to docs/.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import platformdirs

from benchmarks.bars import DATABASE, TREE
from benchmarks.corpora import CannotFetchError, linux_trees, made_trees, make_corpus
from benchmarks.database import database_versions
from benchmarks.measure import Samples, processor
from benchmarks.peers import PROJECT, TOOLS, Tool, missing_programs, remove, version_of
from benchmarks.report import Report
from benchmarks.scaling import CHAIN, FILES, measure_chain, measure_files
from benchmarks.startup import START, measure_startup
from benchmarks.steps import measure_steps

PARTS: Final = (TREE, DATABASE, FILES, CHAIN, START)
# Option, value, value of a quick run, help.
_SIZES: Final = (
    ("--rounds", 5, 1, "runs of each step, of which the median counts"),
    ("--database-mib", 1024, 8, "size of the database"),
    ("--made-files", 20_000, 400, "files of the made tree, where there are no real ones"),
    ("--most-files", 1_000_000, 10_000, "the largest number of files of 1 KiB"),
    ("--chain-length", 60, 3, "increments of the longest chain"),
    ("--chain-files", 2000, 200, "files of the tree whose chain it is"),
    ("--list-backups", 1000, 30, "backups of the repository that is listed"),
)


def main() -> int:
    options = parse_options()
    if options.redraw is not None:
        report = Report.from_file(options.redraw)
        draw(report, options.output)
        return 0
    tools, missing = choose_tools(options.tools)
    report = Report(
        machine=f"{processor()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        floor_bytes=0,
        titles={},
        tools={tool.name: version_of(tool) for tool in tools},
        missing=missing,
        rows=[],
    )
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="ibt-benchmark-", dir=options.work) as work:
        for part in options.parts:
            title = MEASURES[part](options, tools, Path(work), samples)
            report = replace(
                report,
                floor_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                titles={**report.titles, part: title},
                rows=samples.rows(),
            )
            if options.output is not None:
                write(report, options.output)  # what took hours is not lost with what comes after it
    print(report.text(), end="")
    if options.output is not None:
        draw(report, options.output)
    return 1 if report.wrong_restores() or report.failures() else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round, made trees: two minutes"
    )
    parser.add_argument("--parts", type=names_of(PARTS), default=list(PARTS), help=", ".join(PARTS))
    names = [tool.name for tool in TOOLS]
    parser.add_argument("--tools", type=names_of(names), default=names, help=", ".join(names))
    parser.add_argument("--trees", type=Path, help="where the Linux trees are, or are to be fetched to")
    parser.add_argument("--work", type=Path, help="where the work is done (default: for temporary files)")
    parser.add_argument(
        "--output",
        type=Path,
        help="for JSON and charts (default: docs/, or beside --redraw's; a quick run writes none unless told)",
    )
    parser.add_argument("--redraw", type=Path, metavar="JSON", help="only draw the charts of an earlier run")
    for name, value, quick, help_text in _SIZES:
        parser.add_argument(name, type=int, help=f"{help_text} (default: {value}; quick: {quick})")
    options = parser.parse_args()
    for name, value, quick, _ in _SIZES:
        attribute = name.removeprefix("--").replace("-", "_")
        if getattr(options, attribute) is None:
            setattr(options, attribute, quick if options.quick else value)
    if options.output is None and options.redraw is not None:
        options.output = options.redraw.parent
    elif options.output is None and not options.quick:
        options.output = PROJECT / "docs"
    return options


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of names with commas between."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def choose_tools(names: Sequence[str]) -> tuple[list[Tool], dict[str, str]]:
    """The tools that are installed, and of the others what is missing."""
    tools, missing = [], {}
    for tool in TOOLS:
        if tool.name in names:
            if absent := missing_programs(tool):
                missing[tool.name] = f"{', '.join(absent)} not installed"
                say(f"{tool.name}: {missing[tool.name]}")
            else:
                tools.append(tool)
    return tools, missing


def measure_tree(options: argparse.Namespace, tools: Sequence[Tool], work: Path, samples: Samples) -> str:
    title, versions = find_trees(options, work / "versions")
    say(f"tree: comparing the versions of {title}")
    corpus = make_corpus(TREE, title, versions, work / "source")
    measure_steps(corpus, tools, options.rounds, work / "places", samples, say)
    remove(work / "versions")
    remove(work / "source")
    return corpus.title


def find_trees(options: argparse.Namespace, made: Path) -> tuple[str, list[Path]]:
    """The real trees; made ones for a quick run that names none, or where the real ones cannot be had."""
    if options.trees is not None or not options.quick:
        default = Path(platformdirs.user_cache_dir("ibt-benchmarks", appauthor=False)) / "trees"
        try:
            say("tree: looking for the Linux trees, or fetching them")
            versions = linux_trees(options.trees or default)
        except CannotFetchError as error:
            say(f"tree: no Linux trees: {error}; making some")
        else:
            return f"Linux {', '.join(path.name for path in versions)}", versions
    return "made tree", made_trees(made, options.made_files)


def measure_database(options: argparse.Namespace, tools: Sequence[Tool], work: Path, samples: Samples) -> str:
    say("database: making it")
    versions, updates = database_versions(work / "versions", options.database_mib)
    title = f"SQLite, {updates:,} random rows updated each time"
    corpus = make_corpus(DATABASE, title, versions, work / "source", in_place=True)
    measure_steps(corpus, tools, options.rounds, work / "places", samples, say)
    remove(work / "versions")
    remove(work / "source")
    return corpus.title


def measure_many(options: argparse.Namespace, tools: Sequence[Tool], work: Path, samples: Samples) -> str:
    measure_files(tools, options.most_files, options.rounds, work / "files", samples, say)
    return "Number of files: 1 KiB each, 100 a directory"


def measure_long(options: argparse.Namespace, tools: Sequence[Tool], work: Path, samples: Samples) -> str:
    measure_chain(
        tools, options.chain_length, options.chain_files, options.rounds, work / "chain", samples, say
    )
    return f"Length of the chain: {options.chain_files:,} files, a hundredth of them edited before each increment"


def measure_start(options: argparse.Namespace, tools: Sequence[Tool], work: Path, samples: Samples) -> str:
    measure_startup(tools, options.list_backups, options.rounds, work / "start", samples, say)
    return "Start-up"


Part = Callable[[argparse.Namespace, Sequence[Tool], Path, Samples], str]
MEASURES: Final[dict[str, Part]] = {
    TREE: measure_tree,
    DATABASE: measure_database,
    FILES: measure_many,
    CHAIN: measure_long,
    START: measure_start,
}


def write(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    report.to_file(directory / "benchmark.json")
    (directory / "benchmark.txt").write_text(report.text())


def draw(report: Report, directory: Path) -> None:
    try:
        from benchmarks.charts import draw_charts
    except ModuleNotFoundError as error:
        say(f"no charts: {error.name} is not installed; --redraw draws them elsewhere")
        return
    for path in draw_charts(report, directory):
        say(str(path))


def say(text: str) -> None:
    """A word of progress, on the standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
