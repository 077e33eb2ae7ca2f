"""A year of daily backups of a changing tree, pruned daily, beside backing up only at the points that are kept.

    python -m benchmarks.year [--days N] [--scale X] [--seed N] [--output DIR]

Each day some files of a tree of a few MiB change: logs grow, a database has pages rewritten, documents are edited,
made, renamed and removed. Each is backed up as an increment and then pruned by keep-daily 7, keep-weekly 4 and
keep-monthly 12. Every tenth day, and on the last one, every point that is kept is restored, compared with what the
tree was, and backed up into a repository of its own: what the repository would be, had it never held more.

The bars: the repository is at most 1.1 times as large, over the year's samples and at its end; over the year at
most 12 times as many bytes are written again as are dropped (by which the repository shrank); each point restores.
With --output, the figures are written to DIR as year.json and drawn as year.svg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from incremental_backups_tools import incremental_backup, restore_backup
from incremental_backups_tools.chain.prune import prune_backups
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.layout import parse_backup_id

POLICY = KeepPolicy(keep_daily=7, keep_weekly=4, keep_monthly=12)
MAX_SIZE_RATIO = 1.1
MAX_REWRITE_RATIO = 12.0
SAMPLE_DAYS = 10
FIRST_DAY_NS = 1_704_110_400 * 10**9  # noon of 2024-01-01
DAY_NS = 24 * 3600 * 10**9
KIB = 1 << 10
WORDS = [f"word{number:03x}" for number in range(700)]


@dataclass
class Year:
    """What was measured.

    Attributes:
        days: of the samples, and with it the bytes of the repository, of one that never held more, and of all
            backups added up.
        rewritten, deleted: bytes of the whole year; what was dropped is the difference.
    """

    days: list[int] = field(default_factory=list)
    repository: list[int] = field(default_factory=list)
    ideal: list[int] = field(default_factory=list)
    added: list[int] = field(default_factory=list)
    rewritten: int = 0
    deleted: int = 0
    restored: int = 0

    @property
    def dropped(self) -> int:
        return self.deleted - self.rewritten

    @property
    def ratios(self) -> list[float]:
        return [size / ideal for size, ideal in zip(self.repository, self.ideal, strict=True)]


class Tree:
    """A tree that changes from day to day."""

    def __init__(self, top: Path, *, scale: float, seed: int) -> None:
        self.top = top
        self._rng = random.Random(seed)
        self._count = 0
        for name in ("documents", "logs", "photos"):
            (top / name).mkdir(parents=True)
        for _ in range(round(120 * scale)):
            self._make_document()
        for number in range(4):
            (top / "logs" / f"{number}.log").write_bytes(self._text(round(20 * scale) * KIB))
        for _ in range(round(12 * scale)):
            self._make_photo()
        (top / "database").write_bytes(self._rng.randbytes(round(1024 * scale) * KIB))

    def pass_day(self) -> None:
        """What a day brings."""
        rng = self._rng
        for log in sorted((self.top / "logs").iterdir()):
            with log.open("ab") as file:
                file.write(self._text(rng.randrange(3 * KIB)))
        if rng.random() < 0.05:
            (self.top / "logs" / "0.log").write_bytes(b"")  # rotated
        with (self.top / "database").open("r+b") as file:
            for _ in range(6):
                file.seek(rng.randrange(os.fstat(file.fileno()).st_size // 8192) * 8192)
                file.write(rng.randbytes(8192))
        documents = sorted((self.top / "documents").iterdir())
        for document in rng.sample(documents, 3):
            data = bytearray(document.read_bytes())
            place = rng.randrange(len(data) + 1)
            data[place : place + rng.randrange(200)] = self._text(rng.randrange(300))
            document.write_bytes(data)
        if rng.random() < 0.5:
            self._make_document()
        if rng.random() < 0.4:
            rng.choice(documents).unlink()
        if rng.random() < 0.15:
            self._make_photo()
            rng.choice(sorted((self.top / "photos").iterdir())).unlink()
        if rng.random() < 0.2:
            document = rng.choice(sorted((self.top / "documents").iterdir()))
            self._count += 1
            document.rename(document.with_name(f"{self._count:05}-moved"))

    def _make_document(self) -> None:
        self._count += 1
        (self.top / "documents" / f"{self._count:05}").write_bytes(
            self._text(self._rng.randrange(200, 40 * KIB))
        )

    def _make_photo(self) -> None:
        self._count += 1
        data = self._rng.randbytes(self._rng.randrange(50, 200) * KIB)
        (self.top / "photos" / f"{self._count:05}").write_bytes(data)

    def _text(self, length: int) -> bytes:
        return " ".join(self._rng.choices(WORDS, k=length // 7)).encode()


def main() -> None:
    arguments = parse_arguments()
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)  # if that fails, it is not after a year
    with tempfile.TemporaryDirectory(prefix="ibt-year-") as top:
        year = simulate(Path(top), days=arguments.days, scale=arguments.scale, seed=arguments.seed)
    report(year)
    if arguments.output is not None:
        (arguments.output / "year.json").write_text(json.dumps(asdict(year)) + "\n")
        (arguments.output / "year.svg").write_text(draw(year))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--scale", type=float, default=1.0, help="of the tree; 1 is some 4 MiB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def simulate(top: Path, *, days: int, scale: float, seed: int) -> Year:
    """Let the days pass."""
    print(f"{'day':>4} {'repository':>11} {'kept alone':>11} {'ratio':>6} {'all added up':>13}  (KiB)")
    year = Year()
    tree = Tree(top / "source", scale=scale, seed=seed)
    repository, cache = top / "repository", top / "cache"
    trees: dict[str, str] = {}
    added = 0
    for day in range(days):
        tree.pass_day()
        now_ns = set_clock(FIRST_DAY_NS + day * DAY_NS)
        backup = incremental_backup(tree.top, repository, cache_root=cache)
        added += backup.total
        trees[backup.backup_date] = digest_of(tree.top)
        pruning = prune_backups(
            "source", repository=repository, cache_root=cache, policy=POLICY, now_ns=now_ns + 1
        )
        year.rewritten += pruning.bytes_written
        year.deleted += pruning.bytes_deleted
        trees = {backup_id: trees[backup_id] for backup_id in pruning.plan.kept}
        if day % SAMPLE_DAYS == SAMPLE_DAYS - 1 or day == days - 1:
            year.days.append(day + 1)
            year.repository.append(size_of(repository))
            year.ideal.append(back_up_only(trees, repository, top / "ideal"))
            year.added.append(added)
            year.restored += len(trees)
            print_sample(year)
    return year


def set_clock(now_ns: int) -> int:
    """Let the clock by which backups get their names stand at *now_ns*."""
    time.time_ns = lambda: now_ns
    return now_ns


def back_up_only(trees: dict[str, str], repository: Path, scratch: Path) -> int:
    """Restore and check the points in *trees*, and return the bytes that backing up nothing else comes to."""
    for backup_id, digest in sorted(trees.items()):
        dest = scratch / "source"
        restored = restore_backup(
            "source", dest, at=backup_id, repository=repository, delete=True, durable=False
        )
        assert not restored.problems, restored.problems
        assert digest_of(dest) == digest, f"{backup_id} is not what was backed up"
        set_clock(parse_backup_id(backup_id))
        incremental_backup(dest, scratch / "repository", cache_root=scratch / "cache", max_deleted=1)
    size = size_of(scratch / "repository")
    shutil.rmtree(scratch)
    return size


def digest_of(top: Path) -> str:
    """A digest of a tree's names, modes, times and contents."""
    hasher = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        fields = (path.relative_to(top), info.st_mode, info.st_mtime_ns, hashlib.sha256(content).hexdigest())
        hasher.update(repr(fields).encode())
    return hasher.hexdigest()


def size_of(repository: Path) -> int:
    """Bytes of the backups in a repository."""
    return sum(path.stat().st_size for path in (repository / "source").iterdir())


def print_sample(year: Year) -> None:
    """Print the newest sample."""
    size, ideal, added = (sizes[-1] // KIB for sizes in (year.repository, year.ideal, year.added))
    print(f"{year.days[-1]:4} {size:11,} {ideal:11,} {year.ratios[-1]:6.3f} {added:13,}", flush=True)


def report(year: Year) -> None:
    """Print what came of it."""
    worst, rewrites = max(year.ratios), year.rewritten / max(1, year.dropped)
    written, dropped, deleted = (size // KIB for size in (year.rewritten, year.dropped, year.deleted))
    print(
        f"repository: at most {worst:.3f} times its bytes (bar {MAX_SIZE_RATIO}): {verdict(worst, MAX_SIZE_RATIO)}"
    )
    print(
        f"written again: {written:,} KiB, dropped: {dropped:,} KiB (of {deleted:,} KiB deleted): "
        f"{rewrites:.2f} times (bar {MAX_REWRITE_RATIO:g}): {verdict(rewrites, MAX_REWRITE_RATIO)}"
    )
    print(f"restored and compared: {year.restored} points")


def verdict(value: float, bar: float) -> str:
    return "met" if value <= bar else "NOT MET"


def draw(year: Year) -> str:
    """The repository's size over the year, as SVG."""
    width, height, margin = 720, 300, 50
    top = max(*year.repository, *year.ideal) * 1.1
    curves = (("#2a6", "repository", year.repository), ("#888", "only the kept points", year.ideal))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]

    def point(day: int, size: float) -> str:
        x = margin + (width - 2 * margin) * day / year.days[-1]
        return f"{x:.1f},{height - margin - (height - 2 * margin) * size / top:.1f}"

    for mib in range(int(top) // (1 << 20) + 1):
        start, end = point(0, mib << 20), point(year.days[-1], mib << 20)
        parts.append(f'<polyline points="{start} {end}" stroke="#ddd"/>')
        x, y = start.split(",")
        parts.append(f'<text x="{float(x) - 6}" y="{float(y) + 4}" text-anchor="end">{mib} MiB</text>')
    for number, (color, name, sizes) in enumerate(curves):
        points = " ".join(point(day, size) for day, size in zip(year.days, sizes, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{margin + 10 + 150 * number}" y="30" fill="{color}">{name}</text>')
    title = "days, backed up and pruned daily"
    parts.append(f'<text x="{width / 2}" y="{height - 15}" text-anchor="middle">{title}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
