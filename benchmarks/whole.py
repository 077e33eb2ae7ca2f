"""Whole runs beside ``tar | zstd``: full, incremental, nothing changed, restore.

    python -m benchmarks.whole [DIR] [--runs N] [--json FILE]

DIR is the tree to back up; without it, the standard library of the running Python, copied eight times. The
tree is copied first and the copy is edited: a fortieth of its files get some bytes changed in the middle. Runs
of both tools are interleaved and medians are printed, with ours in proportion to tar's. Restores go to an empty
directory on the same file system.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

STEPS = ("full", "incremental", "nothing changed", "restore")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="ibt-benchmark-") as top:
        work = Path(top)
        source = copy_corpus(arguments.directory, work / "source")
        seconds: dict[str, dict[str, list[float]]] = {step: {"tar": [], "ibt": []} for step in STEPS}
        sizes: dict[str, dict[str, int]] = {step: {} for step in STEPS[:3]}
        for run in range(arguments.runs):
            for name, tool in (("tar", Tar(work, source)), ("ibt", Ibt(work, source))):
                measure(tool, name, seconds, sizes, edit=lambda run=run: edit(source, seed=run))
        report(source, seconds, sizes, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def copy_corpus(directory: Path | None, dest: Path) -> Path:
    if directory is not None:
        subprocess.run(["cp", "-a", directory, dest], check=True)
        return dest
    ignore = shutil.ignore_patterns("__pycache__", "site-packages")
    for number in range(8):
        shutil.copytree(sysconfig.get_path("stdlib"), dest / str(number), ignore=ignore, symlinks=True)
    return dest


def edit(source: Path, *, seed: int) -> None:
    """Change some bytes in the middle of every fortieth file."""
    rng = random.Random(seed)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    for path in rng.sample(files, len(files) // 40):
        data = bytearray(path.read_bytes())
        if data:
            data[len(data) // 2 : len(data) // 2 + 10] = rng.randbytes(20)
            path.write_bytes(data)


class Tar:
    """``tar --listed-incremental`` through ``zstd -3 -T2``."""

    def __init__(self, work: Path, source: Path) -> None:
        self._source = source
        self.repository = fresh(work / "tar")
        self._out = fresh(work / "tar-out")
        self._count = 0

    def backup(self) -> None:
        self._count += 1
        shell(
            f"cd {self._source} && tar --listed-incremental={self.repository}/snapshot -cf - . "
            f"| zstd -q -3 -T2 -o {self.repository}/{self._count}.tar.zst && sync -f {self.repository}"
        )

    def restore(self) -> None:
        for number in range(1, self._count + 1):
            archive = self.repository / f"{number}.tar.zst"
            shell(f"cd {self._out} && zstd -dcq {archive} | tar --listed-incremental=/dev/null -xf -")
        shell(f"sync -f {self._out}")


class Ibt:
    """The command, as installed beside the running Python."""

    def __init__(self, work: Path, source: Path) -> None:
        self._source = source
        self.repository = fresh(work / "ibt")
        self._out = fresh(work / "ibt-out")
        self._cache = fresh(work / "ibt-cache")

    def backup(self) -> None:
        self._run("backup", self._source, "--key", "source")

    def restore(self) -> None:
        self._run("restore", "source", self._out)

    def _run(self, command: str, *arguments: object) -> None:
        base = [sys.executable, "-m", "incremental_backups_tools", command, "-q", "-r", self.repository]
        environment = {
            "IBT_CACHE_DIR": str(self._cache),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path.cwd()),
        }
        subprocess.run([*map(str, base), *map(str, arguments)], check=True, env=environment)


def fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def shell(command: str) -> None:
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)


def measure(
    tool: Tar | Ibt,
    name: str,
    seconds: dict[str, dict[str, list[float]]],
    sizes: dict[str, dict[str, int]],
    *,
    edit: Callable[[], None],
) -> None:
    size = 0
    for step in STEPS:
        if step == "incremental":
            edit()
        time.sleep(1.1)  # nobody's clock granularity is measured
        start = time.perf_counter()
        if step == "restore":
            tool.restore()
        else:
            tool.backup()
        seconds[step][name].append(time.perf_counter() - start)
        if step != "restore":
            total = sum(path.stat().st_size for path in tool.repository.rglob("*") if path.is_file())
            sizes[step][name] = total - size
            size = total


def report(
    source: Path,
    seconds: dict[str, dict[str, list[float]]],
    sizes: dict[str, dict[str, int]],
    json_path: Path | None,
) -> None:
    files = [path for path in source.rglob("*") if path.is_file() and not path.is_symlink()]
    total = sum(path.stat().st_size for path in files)
    print(f"{processor()}, Python {platform.python_version()}; {len(files)} files, {total / 2**20:.0f} MiB")
    print(f"{'step':16} {'tar+zstd s':>10} {'ibt s':>8} {'ratio':>6} {'tar MiB':>9} {'ibt MiB':>9}")
    for step in STEPS:
        tar, ibt = (statistics.median(seconds[step][name]) for name in ("tar", "ibt"))
        line = f"{step:16} {tar:10.2f} {ibt:8.2f} {ibt / tar:6.2f}"
        if step in sizes:
            line += "".join(f" {sizes[step][name] / 2**20:9.2f}" for name in ("tar", "ibt"))
        print(line)
    if json_path is not None:
        json_path.write_text(
            json.dumps({"processor": processor(), "seconds": seconds, "bytes": sizes}, indent=1)
        )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
