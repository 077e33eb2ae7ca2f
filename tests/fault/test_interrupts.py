"""Ctrl-C and SIGTERM at any moment: a prompt and tidy end, and the next run goes on."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.command import PROGRAM, Ran, command_environment
from support.faults import KEY, Scene, random_bytes, temporaries_below, wait_for
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup

# Far above the second that it may take, for machines that have other work.
PROMPT_SECONDS = 5.0
INTERRUPTED = 130
MOMENTS = 5
SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A source that keeps a backup busy for seconds: zstd's level 19, which is slow, and many files."""
    top = tmp_path_factory.mktemp("scene")
    source = top / KEY
    source.mkdir()
    for number in range(12):
        (source / f"large-{number}").write_bytes(random_bytes(number, 3_000_000))
    for number in range(100):
        directory = source / f"dir-{number}"
        directory.mkdir()
        for name in range(30):
            (directory / f"small-{name}").write_bytes(random_bytes(number * 100 + name, 3000))
    return Scene(source, top / "repository", top / "cache", now=fingerprint(source))


def interrupt(
    arguments: tuple[str | Path, ...],
    *,
    tmp_dir: Path,
    number: signal.Signals,
    begun: Callable[[], object],
    delay_seconds: float,
) -> Ran:
    """Run the command, send it a signal so long after it has begun, and see that it ends promptly."""
    tmp_dir.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=command_environment(TMPDIR=str(tmp_dir)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        wait_for("the command to begin", lambda: begun() or process.poll() is not None)
        time.sleep(delay_seconds)
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=PROMPT_SECONDS)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not end within {PROMPT_SECONDS} seconds")
    finally:
        process.kill()
        process.wait()
    assert list(tmp_dir.iterdir()) == []
    return Ran(process.returncode, out.decode(), err.decode())


@SIGNALS
def test_an_interrupted_backup_ends_promptly_and_leaves_nothing_unfinished(
    tmp_path: Path, scene: Scene, number: signal.Signals
) -> None:
    moments = random.Random(number)
    start = time.monotonic()
    undisturbed = scene.copy(tmp_path / "undisturbed")
    subprocess.run(
        [*PROGRAM, *undisturbed.backup.arguments, "--level", "19"], env=command_environment(), check=True
    )
    span = 0.6 * (time.monotonic() - start)
    interrupted = 0
    for attempt in range(MOMENTS):
        # A new repository each time: one that goes on with the run before would be done too soon.
        copy = scene.copy(tmp_path / str(attempt))
        ran = interrupt(
            (*copy.backup.arguments, "--level", "19"),
            tmp_dir=tmp_path / "tmp",
            number=number,
            begun=partial(has_a_lock, copy.repository),
            delay_seconds=moments.uniform(0, span),
        )
        assert temporaries_below(copy.repository) == []
        assert list((copy.repository / "locks").iterdir()) == []
        if ran.stdout:
            continue  # it was done before, and has said so
        assert ran.status == INTERRUPTED, ran
        assert ran.error == "interrupted"
        assert copy.backup_ids() == []
        copy.assert_goes_on(tmp_path / f"restored-{attempt}")
        interrupted += 1
    assert interrupted > MOMENTS // 2


def has_a_lock(repository: Path) -> bool:
    return any((repository / "locks").glob("*.json"))


@SIGNALS
def test_an_interrupted_restore_ends_promptly_and_leaves_whole_files_only(
    tmp_path: Path, scene: Scene, number: signal.Signals
) -> None:
    scene = replace(scene, repository=tmp_path / "repository")
    full_backup(scene.source, scene.repository, cache_root=tmp_path / "cache", level=1)
    moments = random.Random(number)
    interrupted = 0
    for attempt in range(MOMENTS):
        dest = tmp_path / f"dest-{attempt}"
        ran = interrupt(
            ("restore", "-r", scene.repository, KEY, dest),
            tmp_dir=tmp_path / "tmp",
            number=number,
            begun=dest.exists,
            delay_seconds=moments.uniform(0, 0.2),
        )
        if not ran.stdout:  # else it was done before, and has said so
            assert ran.status == INTERRUPTED, ran
            assert ran.error == "interrupted"
            interrupted += 1
        assert temporaries_below(dest) == []
        for path in dest.rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (scene.source / path.relative_to(dest)).read_bytes()
        restore_backup(KEY, dest, repository=scene.repository, durable=False)
        assert_same_tree(scene.now, dest)
    assert interrupted, "each restore was done before it was interrupted"


@SIGNALS
def test_an_interrupted_restore_of_one_large_file_leaves_nothing_unfinished(
    tmp_path: Path, number: signal.Signals
) -> None:
    """One thread makes it, and others read ahead and write behind."""
    source, repository = tmp_path / KEY, tmp_path / "repository"
    source.mkdir()
    content = bytearray(random_bytes(1, 1 << 20) * 200)
    for make in (full_backup, incremental_backup):
        (source / "large").write_bytes(content)
        make(source, repository, cache_root=tmp_path / "cache", level=1)
        for start in range(0, len(content), 5 << 20):
            content[start : start + 5000] = random_bytes(start, 5000)
    moments = random.Random(number)
    interrupted = 0
    for attempt in range(2 * MOMENTS):
        dest = tmp_path / f"dest-{attempt}"
        ran = interrupt(
            ("restore", "--threads", "3", "-r", repository, KEY, dest),
            tmp_dir=tmp_path / "tmp",
            number=number,
            begun=dest.exists,
            delay_seconds=moments.uniform(0, 0.2),
        )
        assert temporaries_below(dest) == []
        if (dest / "large").exists():  # it was only to be flushed, or that was done too
            assert (dest / "large").read_bytes() == (source / "large").read_bytes()
        else:
            assert (ran.status, ran.error) == (INTERRUPTED, "interrupted")
            assert list(dest.iterdir()) == []
            interrupted += 1
    assert interrupted, "each restore was done before it was interrupted"
