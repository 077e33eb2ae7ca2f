"""Points in time as people write them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.points.when import parse_age, select_backup

IDS = [
    "20260101T000000.000000Z",
    "20260328T120000.000000Z",
    "20260329T003000.000000Z",
    "20260329T013000.000000Z",
    "20261119T230000.000000Z",
    "20261120T072531.123456Z",
    "20261120T072531.923456Z",
]
NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (None, 6),
        ("latest", 6),
        ("20261120T072531.9", 6),
        ("20261120T072531.123456Z", 5),
        ("20260101T", 0),
        ("2026-11-20", 6),
        ("2026-11-19", 3),  # 23:00 UTC is midnight of the 20th in Berlin
        ("2026-03-28", 1),  # ends at 23:00 UTC
        ("2026-03-29", 3),  # the day of the clock change ends at 22:00 UTC
        ("2026-11-20T08:25:31", 4),
        ("2026-11-20T08:25:32", 6),
        ("2026-11-20 08:25:31.5", 5),
        ("2026-11-20T07:25:31.5Z", 5),
        ("2026-11-20T07:25:31.5+00:00", 5),
        ("2026-07-01T00:00", 3),
        ("1h", 4),
        ("30min", 6),
        ("3d", 3),
        ("0d", 6),
        (datetime(2026, 2, 1, tzinfo=UTC), 0),
    ],
)
def test_what_people_mean(when: str | datetime | None, expected: int) -> None:
    assert select_backup(IDS, when, now=NOW, what="key") == IDS[expected]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("20261120T0725", "2 backups begin"),
        ("20251231T", "no backup begins"),
        ("2025-12-31", "no backup at or before"),
        ("10y", "no backup at or before"),
    ],
)
def test_what_is_not_there(when: str, message: str) -> None:
    with pytest.raises(ChainError, match=message):
        select_backup(IDS, when, now=NOW, what="key")


def test_no_backup_at_all() -> None:
    with pytest.raises(ChainError, match="no backup"):
        select_backup([], None, now=NOW, what="key")


@pytest.mark.parametrize("when", ["", "yesterday", "2026-13-01", "3x", "2026", "-1d", "99999999999999y"])
def test_what_nobody_can_mean(when: str) -> None:
    with pytest.raises(ValueError):
        select_backup(IDS, when, now=NOW, what="key")


def test_ages_add_up() -> None:
    assert parse_age("1y6m2w3d4h5min6s") == timedelta(days=365 + 180 + 14 + 3, hours=4, minutes=5, seconds=6)
