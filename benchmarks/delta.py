"""The delta engine against rdiff: same files, same block and strong length, interleaved runs, medians.

    python benchmarks/delta.py            1 GiB files; writes docs/delta-benchmark.json, .txt and .svg
    python benchmarks/delta.py --quick    64 MiB files, one run; writes nothing

Times are of the wall; beside them stand the ratios of processor time, which other work on the machine disturbs less.
Both write to files in the same directory, and both have read the input once before (it is in the page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from incremental_backups_tools import delta as engine

MIB = 1 << 20
STRONG_LEN = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: seconds of both, and how much faster the engine must be."""

    name: str
    wanted: float
    rdiff_seconds: float
    seconds: float
    rdiff_cpu: float
    cpu: float
    mib: float
    size_ratio: float | None = None

    @property
    def ratio(self) -> float:
        return self.rdiff_seconds / self.seconds

    @property
    def cpu_ratio(self) -> float:
        return self.rdiff_cpu / self.cpu


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the files lie and how often everything runs."""

    directory: Path
    size: int
    block_len: int
    runs: int

    def path(self, name: str) -> Path:
        return self.directory / name

    def compare(
        self,
        name: str,
        wanted: float,
        theirs: list[str],
        ours: Callable[[], object],
        *,
        out: str,
        runs: int = 0,
    ) -> Row:
        """Run rdiff and the engine in turn; both write *out*, which is removed before each run."""

        def rdiff() -> None:
            subprocess.run(["rdiff", *theirs, str(self.path(out))], check=True)

        times: dict[str, list[tuple[float, float]]] = {"rdiff": [], "ours": []}
        sizes = {}
        for _ in range(runs or self.runs):
            for who, work in (("rdiff", rdiff), ("ours", ours)):
                self.path(out).unlink(missing_ok=True)
                times[who].append(measure(work))
                sizes[who] = self.path(out).stat().st_size
        medians = {
            who: [statistics.median(column) for column in zip(*t, strict=True)] for who, t in times.items()
        }
        row = Row(
            name=name,
            wanted=wanted,
            rdiff_seconds=medians["rdiff"][0],
            seconds=medians["ours"][0],
            rdiff_cpu=medians["rdiff"][1],
            cpu=medians["ours"][1],
            mib=self.size / MIB,
            size_ratio=sizes["ours"] / sizes["rdiff"],
        )
        show(row)
        return row


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of *work*, its child processes included."""
    before, start = processor_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - start, processor_seconds() - before


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


HEADINGS = (
    f"{'':44} {'rdiff s':>8} {'here s':>8} {'MiB/s':>8} {'ratio':>7} {'cpu':>7} {'wanted':>7} {'size':>6}"
)


def line_of(row: Row) -> str:
    verdict = "" if row.ratio >= row.wanted else "  BELOW"
    size = f"{row.size_ratio:6.3f}" if row.size_ratio is not None else "      "
    return (
        f"{row.name:44} {row.rdiff_seconds:8.3f} {row.seconds:8.3f} {row.mib / row.seconds:8.0f}"
        f" {row.ratio:7.1f} {row.cpu_ratio:7.1f} {row.wanted:7.1f} {size}{verdict}"
    )


def show(row: Row) -> None:
    print(line_of(row), flush=True)


def make_random(path: Path, size: int, seed: int) -> None:
    rng = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(rng.randbytes(min(MIB, size - start)))


def make_edited(path: Path, basis: Path, edits: int, seed: int) -> None:
    """A copy with 4 KiB overwritten in *edits* places."""
    rng = random.Random(seed)
    shutil.copyfile(basis, path)
    size = basis.stat().st_size
    with path.open("r+b") as file:
        for _ in range(edits):
            file.seek(rng.randrange(size - 4096))
            file.write(rng.randbytes(4096))


def make_shifted(path: Path, basis: Path, insertions: int, seed: int) -> None:
    """A copy with 37 bytes inserted in *insertions* places."""
    rng = random.Random(seed)
    places = sorted(rng.randrange(basis.stat().st_size) for _ in range(insertions))
    with basis.open("rb") as source, path.open("wb") as target:
        for place in places:
            target.write(source.read(place - source.tell()))
            target.write(rng.randbytes(37))
        shutil.copyfileobj(source, target, MIB)


def make_repeated(path: Path, size: int, block: bytes) -> None:
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


def warm(path: Path) -> None:
    """Bring a file into the page cache, and let what was written reach the disk before anything is timed."""
    os.sync()
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def write_signature(source: Path, out: Path, block_len: int, threads: int = 1) -> None:
    with out.open("wb", buffering=0) as file:
        engine.signature(source, file, block_len=block_len, strong_len=STRONG_LEN, threads=threads)


def write_delta(source: Path, signature: Path, out: Path, threads: int = 1) -> engine.DeltaStats:
    with out.open("wb", buffering=0) as file:
        return engine.delta(
            source, engine.Signature.from_bytes(signature.read_bytes()), file, threads=threads
        )


def write_patch(basis: Path, delta: Path, out: Path) -> None:
    with out.open("wb", buffering=0) as file:
        engine.patch(basis, delta, file)


def compare_delta(bench: Bench, name: str, wanted: float, new: str, signature: str, *, runs: int = 0) -> Row:
    warm(bench.path(new))
    paths = bench.path(signature), bench.path(new)
    return bench.compare(
        name,
        wanted,
        ["delta", *map(str, paths)],
        lambda: write_delta(paths[1], paths[0], bench.path("delta")),
        out="delta",
        runs=runs,
    )


def compare_all(bench: Bench) -> list[Row]:
    """Every operation, one file at a time so that all of them fit into the page cache."""
    old, signature = bench.path("old"), bench.path("old.sig")
    make_random(old, bench.size, 1)
    warm(old)
    options = ["-b", str(bench.block_len), "-S", str(STRONG_LEN)]
    rows = [
        bench.compare(
            "signature",
            6,
            [*options, "signature", str(old)],
            lambda: write_signature(old, signature, bench.block_len),
            out="old.sig",
        )
    ]
    make_edited(bench.path("new"), old, 1000, 2)
    rows.append(compare_delta(bench, "delta: 1,000 edits of 4 KiB in place", 5, "new", "old.sig"))
    warm(bench.path("new"))
    rows.append(
        bench.compare(
            "patch: 1,000 edits",
            2,
            ["patch", str(old), str(bench.path("delta"))],
            lambda: write_patch(old, bench.path("delta"), bench.path("patched")),
            out="patched",
            runs=bench.runs if bench.runs == 1 else 9,  # short, and mostly the file system's: it varies
        )
    )
    if bench.path("patched").read_bytes() != bench.path("new").read_bytes():
        raise SystemExit("the patched file is not the new file")
    bench.path("patched").unlink()
    make_shifted(bench.path("new"), old, 200, 3)
    rows.append(compare_delta(bench, "delta: 200 insertions of 37 bytes", 5, "new", "old.sig"))
    make_random(bench.path("new"), bench.size, 4)
    rows.append(
        compare_delta(bench, "delta: unrelated random data", 8, "new", "old.sig", runs=min(bench.runs, 3))
    )
    for name, block in (
        ("zeros", bytes(bench.block_len)),
        ("one block repeated", random.Random(5).randbytes(bench.block_len)),
    ):
        make_repeated(bench.path("new"), bench.size, block)
        rows.append(compare_delta(bench, f"delta: {name}, against random data", 1, "new", "old.sig"))
        write_signature(bench.path("new"), bench.path("own.sig"), bench.block_len)
        rows.append(compare_delta(bench, f"delta: {name}, against itself", 1, "new", "own.sig"))
    return rows


def compare_threads(bench: Bench) -> list[Row]:
    """Two threads against one, in the same table: "rdiff" is the single thread."""
    old, new, signature = bench.path("old"), bench.path("new"), bench.path("old.sig")
    make_edited(new, old, 1000, 2)
    warm(old)
    works: dict[str, Callable[[int], object]] = {
        "signature, 2 threads against 1": lambda n: write_signature(old, signature, bench.block_len, n),
        "delta of edits, 2 threads against 1": lambda n: write_delta(new, signature, bench.path("delta"), n),
    }
    return [compare_two(bench, name, work) for name, work in works.items()]


def compare_two(bench: Bench, name: str, work: Callable[[int], object]) -> Row:
    """The fastest of several runs each: only where nothing else has a processor can two threads show what they gain."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(bench.runs if bench.runs == 1 else 9):
        for threads, measured in times.items():
            measured.append(measure(lambda threads=threads: work(threads))[0])  # type: ignore[misc]
    row = Row(name, 1.7, min(times[1]), min(times[2]), 1.0, 1.0, bench.size / MIB)
    show(row)
    return row


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def vector_level() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    return "AVX-512" if "avx512bw" in flags else "AVX2" if "avx2" in flags else "no vectors"


def draw(rows: list[Row], title: str) -> str:
    """Throughput of each operation as an SVG of paired bars."""
    width, left, bar, gap = 760, 270, 13, 14
    scale = (width - left - 90) / max(row.mib / row.seconds for row in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{60 + len(rows) * (2 * bar + gap)}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{title}</text>',
        '<rect x="10" y="30" width="12" height="12" fill="#2a6f97"/><text x="27" y="41">this package</text>',
        '<rect x="120" y="30" width="12" height="12" fill="#b0b7bd"/><text x="137" y="41">rdiff, MiB/s</text>',
    ]
    for number, row in enumerate(rows):
        top = 55 + number * (2 * bar + gap)
        parts.append(f'<text x="{left - 8}" y="{top + bar + 4}" text-anchor="end">{row.name}</text>')
        for offset, seconds, color in ((0, row.seconds, "#2a6f97"), (bar, row.rdiff_seconds, "#b0b7bd")):
            speed = row.mib / seconds
            length = max(speed * scale, 1)
            parts.append(
                f'<rect x="{left}" y="{top + offset}" width="{length:.1f}" height="{bar}" fill="{color}"/>'
            )
            parts.append(f'<text x="{left + length + 5:.1f}" y="{top + offset + 11}">{speed:,.0f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the delta engine with rdiff.")
    parser.add_argument("--quick", action="store_true", help="64 MiB files, one run, nothing written")
    parser.add_argument("--mib", type=int, default=1024, help="size of the files (default 1024)")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each, of which the median counts (default 5)"
    )
    parser.add_argument(
        "--directory", help="where the files are made (default: the directory for temporary files)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent.parent / "docs", help="for .json, .svg"
    )
    options = parser.parse_args()
    if options.quick:
        options.mib, options.runs = 64, 1
    if not engine.has_native_kernel():
        print("the C kernel is missing: these are the twin's times", file=sys.stderr)
    version = subprocess.run(["rdiff", "--version"], check=True, capture_output=True, text=True).stdout
    size = options.mib * MIB
    block_len = engine.choose_block_len(size)
    title = f"{options.mib} MiB, blocks of {block_len} bytes; {processor()}, {vector_level()}, one thread"
    heading = f"{title}; {version.splitlines()[0]}\n\n{HEADINGS}"
    print(heading)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        bench = Bench(Path(directory), size, block_len, options.runs)
        rows = compare_all(bench)
        threaded = compare_threads(bench)
    if not options.quick:
        report = {
            "processor": processor(),
            "vectors": vector_level(),
            "rdiff": version.splitlines()[0],
            "mib": options.mib,
            "block_len": block_len,
            "strong_len": STRONG_LEN,
            "runs": options.runs,
            "rows": [{**asdict(row), "ratio": row.ratio, "cpu_ratio": row.cpu_ratio} for row in rows],
            "threads": [{"name": row.name, "ratio": row.ratio} for row in threaded],
        }
        (options.output / "delta-benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
        lines = [heading, *map(line_of, rows + threaded)]
        (options.output / "delta-benchmark.txt").write_text("\n".join(lines) + "\n")
        (options.output / "delta-benchmark.svg").write_text(draw(rows, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
