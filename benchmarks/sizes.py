"""What backups cost in bytes, beside other tools, and the table by which the length of blocks was chosen.

    python -m benchmarks.sizes TREES WORK [--database-mib N] [--updates N] [--tools NAME,…] [--json FILE]
    python -m benchmarks.sizes TREES WORK --sweep

TREES holds directories with successive versions of one tree, such as point releases of Linux, in the order of
their names as versions. Each tool makes a full backup of the first and an increment of each of the others, all at
one source path: going from a version to the next touches only files whose bytes differ. Then the same with an
SQLite database before and after updates of random rows.

Sizes are what the repository's files add up to, bytes as a listing shows them; of ours, the state and everything
else that must be carried away is among them. WORK is emptied first.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.sizes_sweep import sweep

MIB: Final = 1 << 20

# What an increment may be, as a share of what another tool adds for the same step, and what the full's
# signatures may be, as a share of the first archive of tar and zstd.
TREE_BARS: Final = {"restic": 1 / 14, "rdiff-backup": 2 / 3}
DATABASE_BARS: Final = {"restic": 1 / 4}
SIGVAULT_BAR: Final = 0.13


@dataclass(slots=True)
class Added:
    """Bytes that one step added, and of ours, by role."""

    total: int
    roles: dict[str, int] = field(default_factory=dict)


def main() -> None:
    arguments = parse_arguments()
    versions = sorted(
        (path for path in arguments.trees.iterdir() if path.is_dir()),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)],
    )
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    databases = make_databases(arguments.work, arguments.database_mib, arguments.updates)
    if arguments.sweep:
        sweep(versions, databases)
        return
    wanted = arguments.tools.split(",")
    missing = [name for name in wanted if not shutil.which(TOOLS[name][0])]
    for name in missing:
        print(f"{name}: not installed, left out")
    results = {
        corpus: {name: run(name, arguments.work, steps) for name in wanted if name not in missing}
        for corpus, steps in (("tree", versions), ("database", databases))
    }
    for corpus, bars in (("tree", TREE_BARS), ("database", DATABASE_BARS)):
        report(corpus, results[corpus], bars)
    if arguments.json is not None:
        plain = {
            corpus: {
                name: [{"total": step.total, "roles": step.roles} for step in steps]
                for name, steps in of.items()
            }
            for corpus, of in results.items()
        }
        arguments.json.write_text(json.dumps(plain, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("trees", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--database-mib", type=int, default=1024)
    parser.add_argument("--updates", type=int, default=10_000, help="rows")
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sweep", action="store_true", help="compare block lengths instead of tools")
    return parser.parse_args()


def make_databases(work: Path, mib: int, updates: int) -> list[Path]:
    """A database of *mib* MiB in pages of 4 KiB, and the same after *updates* of rows all over it."""
    rng = random.Random(1)
    before, after = work / "database-1", work / "database-2"
    for directory in (before, after):
        directory.mkdir()
    words = [rng.randbytes(rng.randrange(2, 6)).hex() for _ in range(4000)]
    rows = mib * MIB // 450
    with sqlite3.connect(before / "data.sqlite") as connection:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, token BLOB, note TEXT)"
        )
        connection.executemany(
            "INSERT INTO account VALUES (?, ?, ?, ?)", (new_row(n, rng, words) for n in range(rows))
        )
    connection.close()
    shutil.copy(before / "data.sqlite", after)
    with sqlite3.connect(after / "data.sqlite") as connection:
        connection.executemany(
            "UPDATE account SET balance = ?, token = ? WHERE id = ?",
            (
                (rng.randrange(10**9), rng.randbytes(40), number)
                for number in sorted(rng.sample(range(rows), updates))
            ),
        )
    connection.close()
    return [before, after]


def new_row(number: int, rng: random.Random, words: list[str]) -> tuple[int, int, bytes, str]:
    """Some 430 bytes, of which a part does not compress."""
    return number, rng.randrange(10**9), rng.randbytes(40), " ".join(rng.choices(words, k=45))


def switch(version: Path, source: Path) -> None:
    """Make *source* like *version*, touching only what differs."""
    subprocess.run(["rsync", "-rlpc", "--delete", f"{version}/", f"{source}/"], check=True)
    time.sleep(1.1)  # so that no tool takes a file for unchanged, nor looks twice


def size_of(directory: Path) -> int:
    return sum(
        path.lstat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink()
    )


# --- the tools: the program that must be there, what makes a repository, what makes a backup ------------------------

TOOLS: Final[dict[str, tuple[str, str, str]]] = {
    "ibt": (
        sys.executable,
        "true",
        f"{sys.executable} -m incremental_backups_tools backup -q -r {{r}} --key tree {{s}}",
    ),
    "tar+zstd": (
        "zstd",
        "mkdir {r}",
        "cd {s} && tar --listed-incremental={r}/../snapshot -cf - . | zstd -q -3 -T2 -o {r}/$(date +%s%N).tar.zst",
    ),
    "restic": ("restic", "restic init -q --repository-version 2 -r {r}", "restic backup -q -r {r} {s}"),
    "rdiff-backup": ("rdiff-backup", "mkdir {r}", "rdiff-backup backup {s} {r}"),
    "borg": ("borg", "borg init -e none {r}", "borg create -C zstd,3 {r}::$(date +%s%N) {s}"),
}


def run(name: str, work: Path, versions: list[Path]) -> list[Added]:
    """The first version in full, and each other one as an increment."""
    top, source = work / "run", work / "source"
    shutil.rmtree(top, ignore_errors=True)
    top.mkdir()
    source.mkdir(exist_ok=True)
    repository = top / "repository"
    _, make, back_up = TOOLS[name]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(top),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "IBT_CACHE_DIR": str(top / "cache"),
        "RESTIC_PASSWORD": "benchmark",
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }

    def shell(command: str) -> None:
        filled = command.format(r=repository, s=source)
        subprocess.run(
            ["bash", "-eo", "pipefail", "-c", filled], check=True, env=environment, stdout=subprocess.DEVNULL
        )

    switch(versions[0], source)
    shell(make)
    before, roles = size_of(repository) if repository.exists() else 0, Counter[str]()
    steps = []
    for version in versions:
        switch(version, source)
        shell(back_up)
        after, roles_after = size_of(repository), roles_of(repository) if name == "ibt" else Counter[str]()
        steps.append(Added(after - before, dict(roles_after - roles)))
        before, roles = after, roles_after
        print(f"  {name} {version.name}: {steps[-1].total:,} bytes {steps[-1].roles or ''}", file=sys.stderr)
    return steps


def roles_of(repository: Path) -> Counter[str]:
    """Bytes of our files by their role, which is the third part of their names."""
    sizes: Counter[str] = Counter()
    for path in repository.glob("tree/*"):
        sizes[path.name.split(".")[2]] += path.stat().st_size
    return sizes


def report(corpus: str, results: dict[str, list[Added]], bars: dict[str, float]) -> None:
    count = max(len(steps) for steps in results.values())
    names = ["full"] + [f"increment {number}" for number in range(1, count)]
    print(f"\n{corpus}, MiB added")
    print(f"{'':14}" + "".join(f"{name:>14}" for name in names))
    for name, steps in results.items():
        print(f"{name:14}" + "".join(f"{step.total / MIB:14.3f}" for step in steps))
        for role in sorted({role for step in steps for role in step.roles}):
            print(f"  {role:12}" + "".join(f"{step.roles.get(role, 0) / MIB:14.3f}" for step in steps))
    if "ibt" not in results:
        return
    ours = results["ibt"]
    print("ours in proportion, and what it is to be below")
    for name, bar in bars.items():
        if name in results:
            shares = [
                f"{our.total / their.total:14.4f}"
                for our, their in zip(ours[1:], results[name][1:], strict=True)
            ]
            print(f"{name:14}{bar:14.4f}" + "".join(shares))
    if corpus == "tree" and "tar+zstd" in results:
        share = ours[0].roles["sigvault"] / results["tar+zstd"][0].total
        print(f"sigvault of the full, of tar+zstd's full: {share:.4f}, to be below {SIGVAULT_BAR}")


if __name__ == "__main__":
    main()
