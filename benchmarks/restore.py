"""Restoring beside ``cp -a`` and restic, and a long chain beside one full.

    python -m benchmarks.restore [DIR] [--runs N] [--increments N] [--threads N] [--json FILE]

DIR is the tree; without it, the standard library of the running Python. Printed are medians of
interleaved runs, in seconds of wall time and of processor time, each in proportion to the first line of its table:

1. one full into an empty directory, beside ``cp -a`` of the tree, without and with ``sync -f``: ours flushes
   everything to the disk, as always; restic, where it is installed, does not;
2. the newest point after many increments, each of which edited a hundredth of the files, beside a full of that point.

Then, where strace is installed: the system calls that restoring makes for each file, and the bytes of the
repository that are read for one small file of the tree, and for one of 2 bytes in the middle of a volume of 1 GiB.

The bars: the newest point takes at most 1.2 times what the full takes, in wall and in processor time, and the file of
2 bytes reads less than 4 MiB.

What was restored is removed at the end only: ext4 passes over inodes that were deleted within the last minute, one by
one, so that whoever creates files after a removal is slowed down by it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import processor

EDITED_SHARE = 100
MAX_CHAIN_RATIO = 1.2
MAX_READ = 4 << 20
VOLUME_LEN = 1 << 30
Measured = dict[str, list[tuple[float, float]]]


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="ibt-benchmark-") as top:
        bench = Bench(Path(top), arguments.threads)
        source = bench.top / "source"
        shutil.copytree(arguments.directory, source, symlinks=True)
        files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
        size = sum(path.stat().st_size for path in files)
        print(f"{processor()}; {len(files)} files, {size / 2**20:.0f} MiB")
        results = {
            "one full": one_full(bench, source, arguments.runs),
            "many increments": many_increments(bench, source, arguments.runs, arguments.increments),
        }
        if shutil.which("strace"):
            print_calls(bench)
            print_read_of_large_volume(bench)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    standard_library = Path(sysconfig.get_path("stdlib"))
    parser.add_argument("directory", nargs="?", type=Path, default=standard_library)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--increments", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class Bench:
    """A directory to work in, and ways to run what is measured."""

    def __init__(self, top: Path, threads: int | None) -> None:
        self.top = top
        self.repository = top / "repository"
        self._threads = () if threads is None else ("--threads", threads)
        self._count = 0

    def fresh(self) -> Path:
        """A path that is not there."""
        self._count += 1
        return self.top / f"out-{self._count}"

    def ibt(self, command: str, *arguments: object) -> list[str]:
        """The command line of ours."""
        base = (sys.executable, "-m", "incremental_backups_tools", command, "-q", "-r", self.repository)
        return [*map(str, base), *map(str, arguments)]

    def restore(self, key: str, *arguments: object) -> list[str]:
        """The command line of a restore to a fresh directory."""
        return self.ibt("restore", *self._threads, key, self.fresh(), *arguments)

    def run(self, command: Sequence[str]) -> tuple[float, float]:
        """Seconds of wall and of processor time that a command takes."""
        environment = {
            "IBT_CACHE_DIR": str(self.top / "cache"),
            "PATH": "/usr/bin:/bin:/usr/local/bin",
            "PYTHONPATH": str(Path.cwd()),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(self.top / "restic-cache"),
        }
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def one_full(bench: Bench, source: Path, runs: int) -> Measured:
    """Restoring a full, beside copying the tree and beside restic."""
    bench.run(bench.ibt("backup", source, "--key", "full"))
    restic = ["restic", "-q", "-r", str(bench.top / "restic")]
    if shutil.which("restic"):
        bench.run([*restic, "init"])
        bench.run([*restic, "backup", str(source)])
    measured: Measured = {}
    for _ in range(runs):
        out = bench.fresh()
        copy = ["cp", "-a", str(source), str(out)]
        commands = {"cp -a": copy, "cp -a, sync -f": shell(copy, bench.fresh()), "ibt": bench.restore("full")}
        if shutil.which("restic"):
            commands["restic"] = [*restic, "restore", "latest", "--target", str(bench.fresh())]
        measure(bench, commands, measured)
    show(f"restore of a full, {runs} runs", measured)
    return measured


def shell(copy: list[str], out: Path) -> list[str]:
    """The copy to *out*, with everything on the disk when it is done."""
    return ["sh", "-c", 'cp -a "$1" "$2" && sync -f "$2"', "sh", copy[2], str(out)]


def many_increments(bench: Bench, source: Path, runs: int, increments: int) -> Measured:
    """Restoring the newest point of a long chain, beside restoring a full of the same tree."""
    bench.run(bench.ibt("backup", source, "--key", "chain"))
    chance = random.Random(1)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    for _ in range(increments):
        for path in chance.sample(files, max(1, len(files) // EDITED_SHARE)):
            edit(path, chance)
        bench.run(bench.ibt("backup", source, "--key", "chain"))
    bench.run(bench.ibt("backup", source, "--key", "flat"))
    measured: Measured = {}
    for _ in range(runs):
        measure(bench, {"one full": bench.restore("flat"), "chain": bench.restore("chain")}, measured)
    show(f"restore after {increments} increments, {runs} runs", measured)
    chain, full = medians_of(measured["chain"]), medians_of(measured["one full"])
    for name, one, other in zip(("wall", "cpu"), chain, full, strict=True):
        ratio = one / other
        print(
            f"{name}: {ratio:.2f} times one full (bar {MAX_CHAIN_RATIO}): {verdict(ratio <= MAX_CHAIN_RATIO)}"
        )
    return measured


def verdict(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


def edit(path: Path, chance: random.Random) -> None:
    """Change some bytes in the middle of a file."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 10] = chance.randbytes(20)
    path.write_bytes(data)


def measure(bench: Bench, commands: dict[str, list[str]], measured: Measured) -> None:
    """Run each command once."""
    for name, command in commands.items():
        subprocess.run(
            ["sync", "-f", str(bench.top)], check=True
        )  # nobody pays for what another left unwritten
        measured.setdefault(name, []).append(bench.run(command))


def show(title: str, measured: Measured) -> None:
    """Print the medians of a table."""
    print(f"\n{title}\n{'':16} {'wall s':>8} {'ratio':>6} {'cpu s':>8} {'ratio':>6}")
    medians = {name: medians_of(runs) for name, runs in measured.items()}
    first = next(iter(medians.values()))
    for name, (wall, cpu) in medians.items():
        print(f"{name:16} {wall:8.2f} {wall / first[0]:6.2f} {cpu:8.2f} {cpu / first[1]:6.2f}")


def medians_of(runs: Sequence[tuple[float, float]]) -> list[float]:
    """Of wall and of processor time."""
    return [statistics.median(column) for column in zip(*runs, strict=True)]


def print_calls(bench: Bench) -> None:
    """Print system calls for each restored file, and what one small file reads."""
    command = bench.restore("full")
    log = bench.top / "strace"
    bench.run(["strace", "-f", "-c", "-U", "name,calls", "-o", str(log), *command])
    files = sum(1 for path in Path(command[-1]).rglob("*") if path.is_file())
    calls = Counter(
        {name: int(count) for name, count in re.findall(r"^ *(\w+) +(\d+)$", log.read_text(), re.M)}
    )
    total = calls.pop("total", sum(calls.values()))
    often = ", ".join(f"{name} {count / files:.2f}" for name, count in calls.most_common(9))
    print(f"\nsystem calls for each of {files} files: {total / files:.2f}; {often}")
    smallest = min(
        (path for path in Path(command[-1]).rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size or 1 << 40,
    )
    read = read_of(bench, bench.restore("full", smallest.relative_to(command[-1])))
    print(f"read of the repository for one file of {smallest.stat().st_size} bytes: {read / 2**20:.2f} MiB")


def print_read_of_large_volume(bench: Bench) -> None:
    """Print what a file of 2 bytes reads that lies in the middle of a volume of 1 GiB."""
    source = bench.fresh()
    source.mkdir()
    chance = random.Random(2)
    count = VOLUME_LEN // (16 << 20) - 1  # the rest is for headers
    for number in range(count):
        (source / f"{'a' if number < count // 2 else 'z'}{number}").write_bytes(chance.randbytes(16 << 20))
    (source / "middle").write_bytes(b"2\n")
    bench.run(bench.ibt("backup", source, "--key", "large"))
    [volume] = (bench.repository / "large").glob("*.full.*")
    read = read_of(bench, bench.restore("large", "middle"))
    print(
        f"read of the repository for one file of 2 bytes out of a volume of {volume.stat().st_size / 2**20:.0f} MiB: "
        f"{read:,} bytes (bar {MAX_READ:,}): {verdict(read < MAX_READ)}"
    )


def read_of(bench: Bench, command: Sequence[str]) -> int:
    """Bytes of the repository that a command reads."""
    log = bench.top / "strace"
    calls = "trace=read,pread64,readv,preadv,preadv2"
    bench.run(["strace", "-f", "-y", "-s", "0", "-e", calls, "-o", str(log), *command])
    read = re.findall(rf"\(\d+<{re.escape(str(bench.repository))}[^)]*\) = (\d+)$", log.read_text(), re.M)
    return sum(map(int, read))


if __name__ == "__main__":
    main()
