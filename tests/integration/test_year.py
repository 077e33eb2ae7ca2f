"""A season on a small scale: daily backups, pruned daily, stay close to what is kept, and all of that restores.

``benchmarks/year.py`` is the same on a larger one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.chains import Chain, overwrite

from incremental_backups_tools import incremental_backup, restore_backup
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.layout import parse_backup_id

POLICY = KeepPolicy(keep_daily=7, keep_weekly=4, keep_monthly=12)
DAYS = 75
DAY_NS = 24 * 3600 * 10**9
FIRST_NOON_NS = int(datetime(2024, 1, 1, 12, tzinfo=UTC).timestamp()) * 10**9


def change(source: Path, rng: random.Random, day: int) -> None:
    """What a day brings: a log grows, pages of a database are rewritten, a few files come and go."""
    with (source / "log").open("ab") as log:
        log.write(rng.randbytes(rng.randrange(2000)))
    overwrite(source / "database", rng.randrange(60) * 4096, rng.randbytes(4096))
    (source / f"{day % 30:02}").write_bytes(rng.randbytes(rng.randrange(12_000)))
    if day % 6 == 0:
        files = sorted(source.glob("[0-9]*"))
        rng.choice(files).rename(source / f"moved-{day}")
        rng.choice(sorted(source.iterdir())[:-3]).unlink(missing_ok=True)
        (source / "log").touch()
        if not (source / "database").exists():
            (source / "database").write_bytes(rng.randbytes(250_000))


def fresh_size(chain: Chain, top: Path, set_clock: Callable[[int], None]) -> int:
    """Bytes that backing up the points of *chain*, and no others, comes to."""
    dest = top / "source"
    for backup_id in chain.ids:
        restore_backup("source", dest, at=backup_id, repository=chain.repository, delete=True, durable=False)
        set_clock(parse_backup_id(backup_id))
        incremental_backup(dest, top / "repository", cache_root=top / "cache", max_deleted=1)
    return sum(path.stat().st_size for path in (top / "repository" / "source").iterdir())


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock by which backups get their names."""
    return lambda now_ns: monkeypatch.setattr("time.time_ns", lambda: now_ns)


def test_a_file_that_is_most_of_the_tree_is_stored_whole_no_sooner(
    tmp_path: Path, set_clock: Callable[[int], None]
) -> None:
    """Its deltas are in many backups, of which few stay. One copy more than these need would be a third of all."""
    chain = Chain.begin(tmp_path)
    rng = random.Random(5)
    (chain.source / "database").write_bytes(rng.randbytes(128 * 8192))
    (chain.source / "log").write_bytes(b"")
    for day in range(32):
        with (chain.source / "log").open("ab") as log:
            log.write(rng.randbytes(9000))
        for _ in range(6):
            overwrite(chain.source / "database", rng.randrange(128) * 8192, rng.randbytes(8192))
        now_ns = FIRST_NOON_NS + day * DAY_NS
        set_clock(now_ns)
        chain.back_up()
        chain.prune(policy=POLICY, now_ns=now_ns + 1)
        if day >= 20 and day % 2:
            fresh = tmp_path / f"fresh-{day}"
            fresh.mkdir()
            assert chain.size() <= 1.1 * fresh_size(chain, fresh, set_clock)
    chain.check(scripted=1)


def test_a_season_of_daily_backups_pruned_daily(tmp_path: Path, set_clock: Callable[[int], None]) -> None:
    chain = Chain.begin(tmp_path)
    rng = random.Random(3)
    (chain.source / "database").write_bytes(rng.randbytes(250_000))
    for number in range(30):
        (chain.source / f"{number:02}").write_bytes(rng.randbytes(rng.randrange(12_000)))
    rewritten = deleted = 0
    for day in range(DAYS):
        change(chain.source, rng, day)
        now_ns = FIRST_NOON_NS + day * DAY_NS
        set_clock(now_ns)
        chain.back_up()
        report = chain.prune(policy=POLICY, now_ns=now_ns + 1)
        rewritten += report.bytes_written
        deleted += report.bytes_deleted
        if day % 25 == 24:
            chain.check(scripted=1)
            chain.assert_no_garbage()
            fresh = tmp_path / f"fresh-{day}"
            fresh.mkdir()
            assert chain.size() <= 1.1 * fresh_size(chain, fresh, set_clock)
    days = [(parse_backup_id(backup_id) - FIRST_NOON_NS) // DAY_NS for backup_id in chain.ids]
    # 2024: seven days to 15 March; the Sundays before; the last days of January and February; the oldest of all.
    assert days == [0, 30, 55, 59, 62, *range(68, 75)]
    assert rewritten <= 12 * (deleted - rewritten)
