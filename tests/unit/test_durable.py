"""Files that are either not there or whole."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from support.descriptors import open_descriptors

from incremental_backups_tools import durable


def test_a_written_file_holds_what_was_written_and_no_temporary_stays(tmp_path: Path) -> None:
    with durable.atomic_write(tmp_path / "a") as file:
        file.write(b"one")
        file.seek(0)
        file.write(b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_the_name_does_not_exist_before_the_block_ends(tmp_path: Path) -> None:
    with durable.atomic_write(tmp_path / "a") as file:
        file.write(b"one")
        file.flush()
        assert not (tmp_path / "a").exists()


def test_a_block_that_raises_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stop"), durable.atomic_write(tmp_path / "a") as file:
        file.write(b"new" * 100_000)
        raise RuntimeError("stop")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_is_replaced_unless_exclusive(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        with durable.atomic_write(tmp_path / "a") as file:
            file.write(content)
    with pytest.raises(FileExistsError), durable.atomic_write(tmp_path / "a", exclusive=True) as file:
        file.write(b"three")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]


def test_exclusive_does_not_write_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), durable.atomic_write(tmp_path / "a", exclusive=True) as file:
        file.write(b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_the_mode_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with durable.atomic_write(tmp_path / "a", mode=0o666) as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_name_of_255_bytes_and_one_of_raw_bytes_can_be_written(tmp_path: Path) -> None:
    for name in (b"n" * 255, b"\xff\xfe\n"):
        with durable.atomic_write(os.path.join(os.fsencode(tmp_path), name)) as file:
            file.write(b"x")
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted([b"n" * 255, b"\xff\xfe\n"])


def test_a_directory_that_is_renamed_meanwhile_receives_the_file(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with durable.atomic_write(tmp_path / "old" / "a") as file:
        file.write(b"x")
        (tmp_path / "old").rename(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["a"]


def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), durable.atomic_write(tmp_path / "no" / "a"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_pending_file_takes_one_component_only(tmp_path: Path, name: str) -> None:
    directory = durable.open_directory(tmp_path)
    try:
        with pytest.raises(ValueError, match="not a file name"):
            durable.PendingFile(directory, name)
    finally:
        os.close(directory)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with durable.atomic_write(tmp_path / "a") as file:
            file.write(b"x")
        with pytest.raises(FileExistsError), durable.atomic_write(tmp_path / "a", exclusive=True):
            pass
        durable.fsync_directory(tmp_path)
        durable.make_directories(tmp_path / "x" / "y")
    assert open_descriptors() - before == set()


def test_of_many_exclusive_writers_one_succeeds(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[int | None] = []

    def write(number: int) -> None:
        barrier.wait()
        try:
            with durable.atomic_write(tmp_path / "a", exclusive=True) as file:
                file.write(b"%d" % number)
        except FileExistsError:
            outcomes.append(None)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [number for number in outcomes if number is not None]
    assert len(outcomes) == 8
    assert [int((tmp_path / "a").read_bytes())] == winners


def test_directories_are_made_with_their_parents(tmp_path: Path) -> None:
    durable.make_directories(tmp_path / "a" / "b" / "c", mode=0o700)
    durable.make_directories(tmp_path / "a" / "b" / "c")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        durable.make_directories(tmp_path / "a" / "b")


def test_only_old_temporaries_are_removed(tmp_path: Path) -> None:
    old, young = (os.fsdecode(durable.make_temporary_name(b"x")) for _ in range(2))
    for name in (old, young, "x", ".x.tmp", ".x.0123.tmp"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / old, (1, 1))
    directory = durable.open_directory(tmp_path)
    try:
        assert durable.remove_temporaries(directory, min_age_seconds=3600) == [old]
        assert durable.remove_temporaries(directory, min_age_seconds=0) == [young]
    finally:
        os.close(directory)
    assert sorted(os.listdir(tmp_path)) == [".x.0123.tmp", ".x.tmp", "x"]
