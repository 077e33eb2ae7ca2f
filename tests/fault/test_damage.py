"""Damage in a repository: verify finds it, and a restore loses exactly what is damaged, never more, never silently."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from support.trees import build_nasty_tree, edit, fingerprint

from incremental_backups_tools import full_backup, incremental_backup, restore_backup, verify
from incremental_backups_tools.exceptions import BackupError


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]:
    """A repository with three points, and what each of them holds."""
    top = tmp_path_factory.mktemp("sound")
    source = top / "source"
    source.mkdir()
    build_nasty_tree(source)
    points = {}
    report = full_backup(source, top / "repository", cache_root=top / "cache")
    points[report.backup_date] = fingerprint(source)
    for number in range(2):
        edit(source, number)
        report = incremental_backup(source, top / "repository", cache_root=top / "cache")
        points[report.backup_date] = fingerprint(source)
    assert not verify(top / "repository", read_data=True).faults
    return top / "repository", points


def archives(repository: Path) -> list[Path]:
    return sorted(path for path in repository.glob("source/*"))


def check(tmp_path: Path, repository: Path, points: dict[str, dict[bytes, tuple[object, ...]]]) -> bool:
    """Whether verify finds fault; and that no restore says it is well and is not."""
    try:
        found = bool(verify(repository).faults)
    except BackupError:
        found = True
    for backup_id, expected in points.items():
        dest = tmp_path / "out" / backup_id
        try:
            report = restore_backup("source", dest, at=backup_id, repository=repository, durable=False)
        except BackupError:
            continue
        finally:
            restored = fingerprint(dest) if dest.exists() else {}
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        lost = {problem.path for problem in report.problems}
        wrong = {path for path in expected if restored.get(path) != expected[path]}
        for path in wrong:
            # The other names of a lost file are no links of it any more.
            assert path in lost or expected[path][6] is not None, f"{path!r} is wrong, and nobody said so"
    return found


def test_every_flipped_byte_is_found(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]
) -> None:
    original, points = sound
    rng = random.Random(2)
    for path in archives(original):
        size = path.stat().st_size
        positions = {
            0,
            1,
            4,
            5,
            6,
            size - 1,
            size - 5,
            size - 9,
            size // 2,
            *(rng.randrange(size) for _ in range(4)),
        }
        for position in sorted(positions):
            repository = tmp_path / "repository"
            shutil.copytree(original, repository)
            damaged = repository / path.relative_to(original)
            data = bytearray(damaged.read_bytes())
            data[position] ^= 1 << rng.randrange(8)
            damaged.write_bytes(data)
            found = check(tmp_path, repository, points)
            shutil.rmtree(repository)
            # A state's frame headers have bits without meaning: its content is the same then.
            assert found or "state" in path.name, f"byte {position} of {path.name}"


def test_every_cut_or_missing_file_is_found(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]
) -> None:
    original, points = sound
    for path in archives(original):
        size = path.stat().st_size
        for length in (None, 0, 1, size // 3, size // 2, size - 5):
            repository = tmp_path / "repository"
            shutil.copytree(original, repository)
            damaged = repository / path.relative_to(original)
            if length is None:
                damaged.unlink()
            else:
                os.truncate(damaged, length)
            found = check(tmp_path, repository, points)
            shutil.rmtree(repository)
            # The newest state alone can be gone without a trace: then the backup before it is the newest.
            newest = path == sorted(original.glob("source/*.state.*"))[-1]
            assert found or (length is None and newest), f"{path.name} cut to {length}"


def test_a_file_that_grew_is_found(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]
) -> None:
    original, points = sound
    for path in archives(original):
        repository = tmp_path / "repository"
        shutil.copytree(original, repository)
        with (repository / path.relative_to(original)).open("ab") as file:
            file.write(b"more")
        assert check(tmp_path, repository, points), path.name
        shutil.rmtree(repository)


def test_one_damaged_volume_loses_the_files_in_it_and_no_others(
    tmp_path: Path, source: Path, repository: Path
) -> None:
    for number in range(30):
        (source / f"{number:02}").write_bytes(os.urandom(200_000))
    full_backup(source, repository, volume_size=1 << 20)
    volumes = sorted(repository.glob("source/*.full.*"))
    assert len(volumes) > 3
    volumes[1].unlink()

    report = restore_backup("source", tmp_path / "out", repository=repository)

    lost = {problem.path.decode() for problem in report.problems}
    assert 0 < len(lost) < 10
    for number in range(30):
        name = f"{number:02}"
        assert (name in lost) != (tmp_path / "out" / name).exists()
        if name not in lost:
            assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_damaged_sigvault_loses_nothing(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]], source: Path
) -> None:
    original, points = sound
    repository = tmp_path / "repository"
    shutil.copytree(original, repository)
    for vault in repository.glob("source/*.sigvault.*"):
        vault.write_bytes(os.urandom(100))
    newest = max(points)

    report = restore_backup("source", tmp_path / "one", repository=repository)
    assert not report.problems
    assert fingerprint(tmp_path / "one") == points[newest]

    edit(tmp_path / "one", 2)
    expected = fingerprint(tmp_path / "one")
    incremental_backup(tmp_path / "one", repository, key="source")  # changed files are stored whole
    restore_backup("source", tmp_path / "two", repository=repository)
    assert fingerprint(tmp_path / "two") == expected


def test_a_state_under_anothers_name_is_refused(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]
) -> None:
    original, _ = sound
    repository = tmp_path / "repository"
    shutil.copytree(original, repository)
    states = sorted(repository.glob("source/*.state.jsonl.zst"))
    states[2].write_bytes(states[1].read_bytes())
    assert verify(repository).faults
    with pytest.raises(BackupError, match="holds the state of"):
        restore_backup("source", tmp_path / "out", repository=repository)


def test_volumes_whose_states_are_all_gone_do_not_pass_for_nothing(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]]
) -> None:
    original, _ = sound
    repository = tmp_path / "repository"
    shutil.copytree(original, repository)
    for state in repository.glob("source/*.state*"):
        state.unlink()
    volumes = [path.name for path in archives(repository)]

    notices = verify(repository).notices

    assert len(volumes) > 3
    assert all(any(name in notice for notice in notices) for name in volumes)
    with pytest.raises(BackupError, match="salvage"):
        restore_backup("source", tmp_path / "out", repository=repository)


@pytest.mark.parametrize("change", ["flipped", "missing"])
def test_another_restore_script_is_told_of(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]], change: str
) -> None:
    original, _ = sound
    assert not verify(original).notices
    repository = tmp_path / "repository"
    shutil.copytree(original, repository)
    script = repository / "RESTORE.sh"
    data = bytearray(script.read_bytes())
    data[100] ^= 1
    script.unlink()
    if change == "flipped":
        script.write_bytes(data)
    assert any("RESTORE.sh" in notice for notice in verify(repository).notices)


@pytest.mark.parametrize("threads", [1, 4])
def test_any_number_of_threads_finds_the_same_faults(
    tmp_path: Path, sound: tuple[Path, dict[str, dict[bytes, tuple[object, ...]]]], threads: int
) -> None:
    shutil.copytree(sound[0], tmp_path / "repository")
    [volume, *_] = [path for path in archives(tmp_path / "repository") if ".full." in path.name]
    data = bytearray(volume.read_bytes())
    data[len(data) // 3] ^= 1
    volume.write_bytes(data)
    progress: list[tuple[str, int]] = []
    report = verify(
        tmp_path / "repository",
        read_data=True,
        threads=threads,
        on_progress=lambda what, size: progress.append((what, size)),
    )
    [whole, *contents] = [fault.what for fault in report.faults]
    assert whole == f"source/{volume.name}"
    assert contents and all(what.startswith("source@") for what in contents)
    sound_report = verify(sound[0], read_data=True, threads=threads)
    assert sound_report.faults == []
    assert report.files_read == sound_report.files_read - len(contents)
    read = sum(size for what, size in progress if what.endswith((".zst", ".sig")))
    assert read == report.bytes_read == sound_report.bytes_read
