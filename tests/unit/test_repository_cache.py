"""Local copies that are never needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from incremental_backups_tools.repository.cache import Cache

ID = "0123456789abcdef" * 2
PACKAGE_PARENT = str(Path(__file__).parents[2])


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, problems: list[str]) -> Cache:
    return Cache(tmp_path / "cache", ID, "key", on_problem=problems.append)


def read(cache: Cache, name: str) -> bytes | None:
    file = cache.open(name)
    if file is None:
        return None
    with file:
        return file.read()


def write(cache: Cache, name: str, data: bytes) -> None:
    with cache.replace(name) as file:
        file.write(data)


def test_what_was_written_is_read_by_the_next_process(cache: Cache, tmp_path: Path) -> None:
    write(cache, "index", b"one")
    write(cache, "index", b"two" * 1_000_000)
    assert read(Cache(tmp_path / "cache", ID, "key"), "index") == b"two" * 1_000_000
    assert cache.names() == ["index"]


def test_repositories_and_keys_do_not_share(cache: Cache, tmp_path: Path) -> None:
    write(cache, "index", b"one")
    assert read(Cache(tmp_path / "cache", ID, "other"), "index") is None
    assert read(Cache(tmp_path / "cache", "f" * 32, "key"), "index") is None


def test_what_is_not_there_is_none_and_no_problem(cache: Cache, problems: list[str]) -> None:
    assert cache.open("index") is None
    assert cache.names() == []
    cache.remove("index")
    cache.clean_temporaries()
    assert problems == []


def test_only_its_owner_can_read_it(cache: Cache) -> None:
    write(cache, "index", b"x")
    assert os.stat(cache.fs_path).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(cache.fs_path, "index")).st_mode & 0o777 == 0o600


def test_a_block_that_raises_leaves_the_older_file(cache: Cache) -> None:
    write(cache, "index", b"old")
    with pytest.raises(RuntimeError, match="stop"), cache.replace("index") as file:
        file.write(b"new" * 1_000_000)
        raise RuntimeError("stop")
    assert read(cache, "index") == b"old"
    assert os.listdir(cache.fs_path) == ["index"]


def test_the_position_is_told(cache: Cache) -> None:
    with cache.replace("index") as file:
        file.write(b"12345")
        assert file.tell() == 5
        file.write(b"x" * 1_000_000)
        assert file.tell() == 1_000_005


def test_a_file_is_removed(cache: Cache) -> None:
    write(cache, "index", b"x")
    cache.remove("index")
    assert cache.open("index") is None


def test_a_cache_that_cannot_be_made_is_told_once_and_stops_nothing(
    tmp_path: Path, problems: list[str]
) -> None:
    (tmp_path / "cache").write_bytes(b"a file in its place")
    cache = Cache(tmp_path / "cache", ID, "key", on_problem=problems.append)
    for _ in range(2):
        write(cache, "index", b"x" * 1_000_000)
        assert cache.open("index") is None
        assert cache.names() == []
        cache.remove("index")
        cache.clean_temporaries()
    assert len(problems) == 1
    assert "cannot write the cache" in problems[0]


def test_a_cache_without_a_listener_fails_as_quietly(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"")
    write(Cache(tmp_path / "cache", ID, "key"), "index", b"x")


def test_a_disk_that_fills_up_is_told_and_leaves_the_older_file(tmp_path: Path) -> None:
    script = f"""
import os, resource, signal
from incremental_backups_tools.repository.cache import Cache
problems = []
cache = Cache({str(tmp_path)!r}, {ID!r}, "key", on_problem=problems.append)
with cache.replace("index") as file:
    file.write(b"old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
with cache.replace("index") as file:
    for _ in range(50):
        file.write(b"x" * 100_000)
    assert file.tell() == 5_000_000
with cache.open("index") as file:
    assert file.read() == b"old"
assert os.listdir(cache.fs_path) == ["index"]
print(problems)
"""
    outcome = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    )
    assert outcome.stdout.count("cannot write the cache") == 1, outcome.stderr
    assert "File too large" in outcome.stdout


def test_something_else_in_the_place_of_a_file_is_none(cache: Cache, tmp_path: Path) -> None:
    write(cache, "index", b"x")
    (tmp_path / "secret").write_bytes(b"secret")
    os.mkfifo(os.path.join(cache.fs_path, "fifo"))
    os.mkdir(os.path.join(cache.fs_path, "directory"))
    os.symlink(tmp_path / "secret", os.path.join(cache.fs_path, "link"))
    assert read(cache, "fifo") is None
    assert read(cache, "directory") is None
    assert read(cache, "link") is None


def test_old_temporaries_are_removed(cache: Cache) -> None:
    write(cache, "index", b"x")
    for name, time in ((".index.0123456789abcdef.tmp", 1), (".index.fedcba9876543210.tmp", None)):
        path = os.path.join(cache.fs_path, name)
        Path(path).write_bytes(b"")
        os.utime(path, None if time is None else (time, time))
    cache.clean_temporaries()
    assert sorted(os.listdir(cache.fs_path)) == [".index.fedcba9876543210.tmp", "index"]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a\n", "n" * 201])
def test_names_stay_in_the_cache(cache: Cache, name: str) -> None:
    with pytest.raises(ValueError, match="cached file"):
        cache.open(name)
    with pytest.raises(ValueError, match="cached file"), cache.replace(name):
        pass


def test_ids_and_keys_stay_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repository's id"):
        Cache(tmp_path, "../x", "key")
    with pytest.raises(ValueError, match="key"):
        Cache(tmp_path, ID, "..")
