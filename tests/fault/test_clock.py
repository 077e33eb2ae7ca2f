"""Clocks that are set back, stand still, or jump: the ids stay unique and come after their parent's."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import run_ibt
from support.faults import KEY, shifted_clock

from incremental_backups_tools import restore_backup, verify
from incremental_backups_tools.repository.repository import Repository

HOUR_NS = 3600 * 10**9
SOME_TIME_NS = 1_795_000_000_123_456_000


class Machine:
    """Backs a directory up with a clock that is wrong."""

    def __init__(self, top: Path) -> None:
        self.source = top / KEY
        self.source.mkdir()
        self.repository = top / "repository"
        self._top = top
        self._edits = 0

    def back_up(self, *, shift_ns: int = 0, frozen_ns: int = 0, **env: str) -> None:
        """Change the source and back it up, by a clock that is off or stands still."""
        self._edits += 1
        (self.source / "file").write_text(f"{self._edits}")
        clock = shifted_clock(self._top / "clock", shift_ns=shift_ns, frozen_ns=frozen_ns)
        run_ibt("backup", "-q", "-r", self.repository, self.source, prefix=clock, env=env)

    def backup_ids(self) -> list[str]:
        return [stored.name.backup_id for stored in Repository.open(self.repository).backups(KEY)]

    def assert_ids_in_order(self, count: int) -> None:
        """So many backups, and by their ids they are in the order in which they were made."""
        ids = self.backup_ids()
        assert len(ids) == len(set(ids)) == count
        for number, backup_id in enumerate(sorted(ids), start=1):
            dest = self._top / backup_id
            restore_backup(KEY, dest, at=backup_id, repository=self.repository)
            assert (dest / "file").read_text() == str(number)
        assert not verify(self.repository, read_data=True).faults


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_clock_that_is_set_back(machine: Machine) -> None:
    machine.back_up()
    machine.back_up(shift_ns=-5 * HOUR_NS)
    machine.back_up(shift_ns=-4 * HOUR_NS)
    machine.back_up()
    machine.assert_ids_in_order(4)


def test_two_backups_in_the_same_microsecond(machine: Machine) -> None:
    for _ in range(3):
        machine.back_up(frozen_ns=SOME_TIME_NS)
    machine.assert_ids_in_order(3)


def test_the_hour_that_the_end_of_summer_time_repeats(machine: Machine) -> None:
    """Berlin, 2026-10-25: 02:30 comes twice. An id is universal time, whatever the clock on the wall says."""
    first_half_past_two_ns = 1_792_888_200 * 10**9
    for number in range(2):
        machine.back_up(frozen_ns=first_half_past_two_ns + number * HOUR_NS, TZ="Europe/Berlin")
    assert machine.backup_ids() == ["20261025T003000.000000Z", "20261025T013000.000000Z"]
    machine.assert_ids_in_order(2)


def test_a_clock_that_was_a_year_ahead_once(machine: Machine) -> None:
    machine.back_up(shift_ns=24 * 365 * HOUR_NS)
    machine.back_up()
    machine.assert_ids_in_order(2)


def test_a_clock_that_stands_still_after_a_run_that_was_not_finished(
    machine: Machine, tmp_path: Path
) -> None:
    """That run's volumes have the names that the next run would give its own, and other content."""
    machine.back_up(frozen_ns=SOME_TIME_NS)
    (state,) = machine.repository.glob(f"{KEY}/*.state.jsonl.zst")
    state.unlink()
    machine.back_up(frozen_ns=SOME_TIME_NS)
    (backup_id,) = machine.backup_ids()
    assert backup_id not in state.name
    restore_backup(KEY, tmp_path / "restored", repository=machine.repository)
    assert (tmp_path / "restored" / "file").read_text() == "2"
