"""Random histories with backups that are merged and rebased in between: each point that is left comes back."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property.test_random_histories import as_the_script_promises, mutate
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import incremental_backup, restore_backup, verify
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.merge import merge_backups, rebase_backup
from incremental_backups_tools.chain.prune import prune_backups
from incremental_backups_tools.exceptions import ChainError
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.repository import Repository

Points = dict[str, dict[bytes, tuple[object, ...]]]


class Story:
    """A tree, its repository, and what each point in time must be."""

    def __init__(self, top: str, rng: random.Random) -> None:
        self.rng = rng
        self.top = Path(top)
        self.source, self.repository, self.cache = (
            self.top / name for name in ("source", "repository", "cache")
        )
        self.source.mkdir()
        self.points: Points = {}
        self.restores = 0

    def back_up(self) -> None:
        for _ in range(self.rng.randrange(10) if self.points else 40):
            mutate(os.fsencode(self.source), self.rng)
        self.edit_a_large_file()
        report = incremental_backup(self.source, self.repository, cache_root=self.cache, max_deleted=1)
        assert not report.problems
        self.points[report.backup_date] = fingerprint(self.source)

    def edit_a_large_file(self) -> None:
        """One that changes a little each time, so that its deltas are worth keeping."""
        large = self.source / "large"
        if not self.points:
            large.write_bytes(self.rng.randbytes(100_000))
        if large.is_file() and not large.is_symlink() and large.stat().st_size > 50_000:
            with open(large, "r+b") as file:
                file.seek(self.rng.randrange(50_000))
                file.write(self.rng.randbytes(self.rng.choice([1, 500, 3000])))

    def merge(self) -> None:
        ids = sorted(self.points)
        if len(ids) < 3:
            return
        first = self.rng.randrange(len(ids) - 1)
        last = self.rng.randrange(first + 1, len(ids))
        try:
            report = merge_backups(
                "source", ids[first], ids[last], repository=self.repository, cache_root=self.cache
            )
        except ChainError:  # one of them is a full, or stands elsewhere
            return
        assert report.replaced == tuple(ids[first:last])
        for backup_id in report.replaced:
            del self.points[backup_id]

    def rebase(self) -> None:
        backup_id = self.rng.choice(sorted(self.points))
        try:
            rebase_backup("source", backup_id, repository=self.repository, cache_root=self.cache)
        except ChainError:  # it is a full
            return

    def prune(self) -> None:
        count = self.rng.randrange(1, 6)
        report = prune_backups(
            "source",
            repository=self.repository,
            cache_root=self.cache,
            policy=KeepPolicy(keep_last=count),
            max_unused=self.rng.choice([0, 0.1, 1]),
            grace_seconds=0,
        )
        kept = sorted(self.points)[-count:]
        assert list(report.plan.kept) == kept, (report.decisions, kept)
        self.points = {backup_id: self.points[backup_id] for backup_id in kept}

    def lose_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def check(self, backup_ids: list[str]) -> None:
        assert History(Repository.open(self.repository), "source").backup_ids == sorted(self.points)
        for backup_id in backup_ids:
            self.restores += 1
            dest = self.top / "restored" / str(self.restores)
            report = restore_backup("source", dest, at=backup_id, repository=self.repository, durable=False)
            assert not report.problems
            assert_same_tree(self.points[backup_id], dest)
            shutil.rmtree(dest)

    def check_script(self, backup_id: str) -> None:
        dest = self.top / "by-script"
        command = ["sh", self.repository / "RESTORE.sh", f"source@{backup_id}", dest]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        assert (done.returncode, done.stderr) == (0, "")
        expected = as_the_script_promises(self.points[backup_id])
        assert_same_tree(expected, as_the_script_promises(fingerprint(dest)))
        shutil.rmtree(dest)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rounds=st.integers(2, 9))
def test_each_point_comes_back_after_merging_and_rebasing(seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as top:
        story = Story(top, rng)
        story.back_up()
        for _ in range(rounds):
            step = rng.choice(
                [
                    story.back_up,
                    story.back_up,
                    story.back_up,
                    story.merge,
                    story.rebase,
                    story.prune,
                    story.lose_cache,
                ]
            )
            step()
            story.check(rng.sample(sorted(story.points), min(2, len(story.points))))
        story.check(sorted(story.points))
        story.check_script(rng.choice(sorted(story.points)))
        assert not verify(story.repository, read_data=True).faults
