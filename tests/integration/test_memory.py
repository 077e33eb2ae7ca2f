"""Memory stays flat: ten times the files take hardly more."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

MEASURE = """
import sys
from incremental_backups_tools import full_backup, incremental_backup, restore_backup
source, repository, action = sys.argv[1:]
if action == "full":
    full_backup(source, repository)
elif action == "incremental":
    incremental_backup(source, repository)
else:
    restore_backup("source", repository + ".out", repository=repository, durable=False)
# Not getrusage(): what it says begins with the peak of whoever started this process.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_kib(source: Path, repository: Path, action: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(repository), action],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def build(root: Path, count: int) -> Path:
    for number in range(count):
        directory = root / f"{number // 100:04}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        (directory / f"{number:06}").write_bytes(b"%d" % number * 20)
    return root


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    few = build(tmp_path / "few" / "source", 1_000)
    many = build(tmp_path / "many" / "source", 20_000)
    for action in ("full", "incremental", "restore"):
        small = peak_kib(few, tmp_path / "few-repository", action)
        large = peak_kib(many, tmp_path / "many-repository", action)
        assert large < small + 24 * 1024, f"{action}: {small} KiB for 1,000 files, {large} KiB for 20,000"
        assert large < 150 * 1024


def test_memory_does_not_grow_with_the_size_of_a_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "large").open("wb") as file:
        block = bytes(range(256)) * 4096
        for number in range(200):
            file.write(number.to_bytes(4, "big") * 1024 + block)
    for action in ("full", "incremental", "restore"):
        assert peak_kib(source, tmp_path / "repository", action) < 150 * 1024
        with (source / "large").open("r+b") as file:
            file.write(b"edited " + action.encode())


def test_memory_does_not_grow_with_how_a_file_was_changed(tmp_path: Path) -> None:
    """A delta of copies from all over the old file: what they were read from must not pile up."""
    source = tmp_path / "source"
    source.mkdir()
    chance = random.Random(1)
    blocks = [number.to_bytes(4, "big") * 1024 + bytes(range(256)) * 240 for number in range(3000)]
    for action in ("full", "incremental"):
        (source / "large").write_bytes(b"".join(blocks))
        assert peak_kib(source, tmp_path / "repository", action) < 150 * 1024
        chance.shuffle(blocks)
    assert peak_kib(source, tmp_path / "repository", "restore") < 150 * 1024
