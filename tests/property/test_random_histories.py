"""Random histories: whatever happens to a tree, each of its points in time comes back."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import incremental_backup, restore_backup, verify
from incremental_backups_tools.chain.index_cache import INDEX_NAME, parse_resolved
from incremental_backups_tools.chain.parent_index import CONTENTS_NAME
from incremental_backups_tools.chain.policy import MIN_SHARED_LEN
from incremental_backups_tools.tree.entry import sort_key
from incremental_backups_tools.tree.records import RecordReader

NAMES = [b"a", b"b", b"a.b", b"a-", b"d", b"\xff", b"new\nline"]
ACTIONS = [
    "write",
    "write",
    "edit",
    "edit",
    "append",
    "truncate",
    "rename",
    "rename",
    "swap",
    "move and edit",
    "move and edit",
    "copy",
    "copy",
    "link",
    "symlink",
    "mkdir",
    "delete",
    "touch",
    "chmod",
]


def mutate(root: bytes, rng: random.Random) -> None:
    """One random change somewhere below *root*."""
    paths = [root]
    for directory, subdirs, files in os.walk(root):
        paths += [os.path.join(directory, name) for name in (*subdirs, *files)]
    directories = [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
    files = [path for path in paths if os.path.isfile(path) and not os.path.islink(path)]
    target = os.path.join(rng.choice(directories), rng.choice(NAMES))
    action = rng.choice(ACTIONS)
    if action in ("write", "symlink", "mkdir", "link", "rename", "copy", "move and edit"):
        if os.path.isdir(target) and not os.path.islink(target):
            shutil.rmtree(target)
        elif os.path.lexists(target):
            os.unlink(target)
        files = [path for path in files if os.path.exists(path)]
    if action == "write":
        Path(os.fsdecode(target)).write_bytes(rng.randbytes(rng.choice([0, 1, 1023, 1024, 5000, 40_000])))
    elif action == "symlink":
        os.symlink(rng.choice(NAMES), target)
    elif action == "mkdir":
        os.mkdir(target)
    elif action == "link" and files:
        os.link(rng.choice(files), target)
    elif action == "copy" and files:
        shutil.copy(rng.choice(files), target)
    elif action == "move and edit" and files:
        victim = rng.choice(files)
        os.rename(victim, target)
        _change_file(target, rng.choice(["edit", "append"]), rng)
    elif action == "swap" and len(files) > 1:
        swap(*rng.sample(files, 2))
    elif action == "rename":
        movable = [path for path in paths[1:] if os.path.lexists(path) and not target.startswith(path)]
        if movable:
            os.rename(rng.choice(movable), target)
    elif action == "delete" and len(paths) > 1:
        victim = rng.choice(paths[1:])
        shutil.rmtree(victim) if victim in directories else os.unlink(victim)
    elif files:
        _change_file(rng.choice(files), action, rng)


def swap(one: bytes, other: bytes) -> None:
    """Let two files change names."""
    os.rename(one, one + b".aside")
    os.rename(other, one)
    os.rename(one + b".aside", other)


def as_the_script_promises(tree: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    """Times in whole seconds, and none of symlinks."""
    promised = {}
    for path, (kind, *parts) in tree.items():
        seconds = 0 if kind == stat.S_IFLNK else int(str(parts[3])) // 10**9
        promised[path] = (kind, *parts[:3], seconds, *parts[4:])
    return promised


def _change_file(path: bytes, action: str, rng: random.Random) -> None:
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        if action == "edit":
            file.seek(rng.randrange(size + 1))
            file.write(rng.randbytes(rng.choice([1, 37, 2000])))
        elif action == "append":
            file.seek(size)
            file.write(rng.randbytes(rng.choice([1, 37, 2000])))
        elif action == "truncate":
            file.truncate(rng.randrange(size + 1))
    if action == "touch":
        os.utime(path, ns=(0, rng.randrange(2**60)))
    elif action == "chmod":
        os.chmod(path, rng.choice([0o600, 0o644, 0o755, 0o4755]))


def assert_table_is_of_its_index(cache: Path) -> None:
    """The table of contents that was carried on is what one made out of the index would be."""
    with (cache / INDEX_NAME).open("rb") as file:
        lines = list(RecordReader(file, what="index"))
    expected = set()
    for raw in lines[:-1]:
        entry = parse_resolved(raw).entry
        if entry.type == "file" and entry.link_of is None and entry.size >= MIN_SHARED_LEN:
            assert entry.digest is not None
            prefix = int.from_bytes(entry.digest[:8], "big", signed=True)
            expected.add((entry.size, prefix, sort_key(entry.path)))
    with closing(sqlite3.connect(cache / CONTENTS_NAME)) as connection:
        assert set(connection.execute("SELECT size, digest, path FROM content")) == expected
        assert not connection.execute("SELECT * FROM gone").fetchall()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 6), lose_cache=st.booleans())
def test_each_point_of_a_random_history_comes_back(seed: int, rounds: int, lose_cache: bool) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as top:
        source, repository, cache = Path(top, "source"), Path(top, "repository"), Path(top, "cache")
        source.mkdir()
        points = {}
        for _ in range(rounds):
            for _ in range(rng.randrange(12)):
                mutate(os.fsencode(source), rng)
            if lose_cache and rng.random() < 0.5:
                shutil.rmtree(cache, ignore_errors=True)
            report = incremental_backup(source, repository, cache_root=cache, max_deleted=1)
            assert not report.problems
            points[report.backup_date] = fingerprint(source)
            assert_table_is_of_its_index(next(cache.glob("*/source")))
        for backup_id, expected in points.items():
            dest = Path(top, "restored", backup_id)
            assert not restore_backup(
                "source", dest, at=backup_id, repository=repository, durable=False
            ).problems
            assert_same_tree(expected, dest)
        script = Path(top, "by-script")
        command = ["sh", repository / "RESTORE.sh", "source", script]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert_same_tree(
            as_the_script_promises(list(points.values())[-1]), as_the_script_promises(fingerprint(script))
        )
        assert not verify(repository, read_data=True).faults
