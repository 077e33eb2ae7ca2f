"""Random histories of snapshots: whatever happens to a tree, each snapshot shows it and restores it as it was."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.snapshots import NAME, Place, assert_snapshot_of, nothing_unfinished
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools.heap.snapshots.depot import Depot
from incremental_backups_tools.heap.snapshots.keeping import collect_garbage, delete_snapshots
from incremental_backups_tools.heap.snapshots.restore import restore_snapshot
from incremental_backups_tools.heap.snapshots.verify import verify_snapshots

NAMES = [b"a", b"b", b"a.b", b"d", b"\xff", b"new\nline"]
CONTENTS = [b"", b"one", b"two", b"x" * 5000, bytes(100_000)]
MODES = [0o644, 0o600, 0o444, 0o755]
TIMES = [10**18, 10**18 + 1_000_000]
ACTIONS = ["write", "write", "write", "link", "symlink", "mkdir", "rename", "delete", "mode", "hole", "fifo"]


def mutate(root: bytes, rng: random.Random) -> None:
    """One random change somewhere below *root*; few contents, modes and times, so that many files agree."""
    directories, files = [root], []
    for directory, subdirs, names in os.walk(root):
        directories += [os.path.join(directory, name) for name in subdirs]
        files += [os.path.join(directory, name) for name in names]
    directories = [path for path in directories if not os.path.islink(path)]
    files = [path for path in files if os.path.isfile(path) and not os.path.islink(path)]
    target = os.path.join(rng.choice(directories), rng.choice(NAMES))
    action = rng.choice(ACTIONS)
    if action == "mode":
        if files:
            os.chmod(rng.choice(files), rng.choice(MODES))
        return
    source = rng.choice(files) if files else None
    if source is not None and (source == target or source.startswith(target + b"/")):
        return
    if os.path.isdir(target) and not os.path.islink(target):
        shutil.rmtree(target)
    elif os.path.lexists(target):
        os.unlink(target)
    if action in ("write", "hole"):
        with open(target, "wb") as file:
            file.write(rng.choice(CONTENTS))
            if action == "hole":
                file.truncate(1 << 20)
        os.chmod(target, rng.choice(MODES))
        os.utime(target, ns=(0, rng.choice(TIMES)))
    elif action == "symlink":
        os.symlink(rng.choice(NAMES), target)
    elif action == "fifo":
        os.mkfifo(target)
    elif action == "mkdir":
        os.mkdir(target)
    elif action == "link" and source is not None:
        os.link(source, target)
    elif action == "rename" and source is not None:
        os.rename(source, target)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 4), max_links=st.sampled_from([None, 2, 4]))
def test_each_snapshot_shows_and_restores_the_tree_as_it_was(
    seed: int, rounds: int, max_links: int | None
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        place = Place(top / NAME, top / "dest")
        place.source.mkdir()
        expected: dict[str, dict[bytes, tuple[object, ...]]] = {}
        for _ in range(rounds):
            for _ in range(rng.randrange(12)):
                mutate(os.fsencode(place.source), rng)
            report = place.create(max_links=max_links, threads=rng.choice([1, 3]), max_deleted=1.0)
            assert not report.problems and not report.warnings
            expected[str(report.id)] = fingerprint(place.source)
        gone = rng.sample(sorted(expected), rng.randrange(rounds))
        depot = Depot.open(place.dest)
        delete_snapshots(depot, NAME, gone)
        for snapshot_id in gone:
            del expected[snapshot_id]
        collect_garbage(depot)
        assert place.ids == sorted(expected)
        for snapshot_id, tree in expected.items():
            assert_snapshot_of(place.dest / NAME / snapshot_id, tree)
            restored = restore_snapshot(depot, NAME, snapshot_id, top / snapshot_id)
            assert not restored.problems
            assert_same_tree(tree, top / snapshot_id)
        verified = verify_snapshots(depot)
        assert not verified.faults, verified.faults
        assert len(place.objects()) == verified.objects
        assert nothing_unfinished(place.dest)
