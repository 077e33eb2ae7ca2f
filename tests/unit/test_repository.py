"""A repository: what identifies it, and the backups in it."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from incremental_backups_tools.exceptions import (
    FormatError,
    LimitExceededError,
    RepositoryError,
    RepositoryNotFoundError,
    UnsupportedVersionError,
)
from incremental_backups_tools.repository.local import LocalStore
from incremental_backups_tools.repository.open import open_store
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.store import ObjectInfo

FIRST = "20261120T072531.123456Z"
SECOND = "20261121T072531.123456Z"
GOOD_CONFIG = {"format": "ibt-repository", "version": 1, "id": "0" * 32, "encryption": "none"}


@pytest.fixture(params=["directory", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "directory":
        yield str(tmp_path / "new" / "repository")
    else:
        yield f"memory://{uuid.uuid4()}/repository"


def test_a_repository_is_made_once_and_keeps_its_id(url: str) -> None:
    made = Repository.open(url, create=True)
    again = Repository.open(url, create=True)
    opened = Repository.open(url)
    assert made.repository_id == again.repository_id == opened.repository_id
    assert len(made.repository_id) == 32
    assert opened.encryption == "none"
    assert [info.name for info in opened.store.list_objects()] == ["ibt.json"]


def test_two_repositories_have_different_ids(tmp_path: Path) -> None:
    ids = {Repository.open(tmp_path / name, create=True).repository_id for name in "abc"}
    assert len(ids) == 3


def test_the_config_is_what_the_format_says(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "r", create=True)
    assert json.loads((tmp_path / "r" / "ibt.json").read_bytes()) == {
        "format": "ibt-repository",
        "version": 1,
        "id": repository.repository_id,
        "encryption": "none",
    }


def test_where_nothing_is_there_is_no_repository_and_none_is_made(url: str) -> None:
    with pytest.raises(RepositoryNotFoundError, match="repository"):
        Repository.open(url)
    with pytest.raises(RepositoryNotFoundError):
        open_store(url).list_objects()


def test_an_empty_directory_becomes_a_repository(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".ibt.json.0123456789abcdef.tmp").write_bytes(b"{")
    Repository.open(tmp_path, create=True)
    assert (tmp_path / "ibt.json").exists()


@pytest.mark.parametrize("stranger", ["photo.jpg", "documents/"])
def test_a_directory_with_other_things_in_it_never_becomes_one(tmp_path: Path, stranger: str) -> None:
    if stranger.endswith("/"):
        (tmp_path / stranger).mkdir()
    else:
        (tmp_path / stranger).write_bytes(b"")
    with pytest.raises(RepositoryError, match="not empty"):
        Repository.open(tmp_path, create=True)
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(tmp_path)
    assert os.listdir(tmp_path) == [stranger.rstrip("/")]


def test_a_file_is_no_place_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(tmp_path / "file")
    with pytest.raises(RepositoryError):
        Repository.open(tmp_path / "file", create=True)
    assert (tmp_path / "file").read_bytes() == b"x"


def test_of_many_who_make_one_repository_at_once_all_get_the_same(url: str) -> None:
    barrier = threading.Barrier(6)

    def make(number: int) -> str:
        barrier.wait()
        return Repository.open(url, create=True).repository_id

    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(make, range(6)))
    assert ids == {Repository.open(url).repository_id}


def test_a_repository_that_another_process_makes_meanwhile_is_opened(tmp_path: Path) -> None:
    class SlowStore(LocalStore):
        """Another process makes the repository just after this one looked for it."""

        other_id = ""

        def list_objects(self, prefix: str = "") -> list[ObjectInfo]:
            if not self.other_id:
                self.other_id = Repository.open(tmp_path / "r", create=True).repository_id
            return super().list_objects(prefix)

    store = SlowStore(tmp_path / "r")
    assert Repository.open(store, create=True).repository_id == store.other_id


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"version": 99, "id": 5, "encryption": None}, {"encryption": "rot13"}]
)
def test_newer_versions_and_unknown_encryption_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "ibt.json").write_text(json.dumps({**GOOD_CONFIG, **change}))
    for create in (False, True):
        with pytest.raises(UnsupportedVersionError, match=r"ibt\.json"):
            Repository.open(tmp_path, create=create)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[1, 2]",
        json.dumps(GOOD_CONFIG).encode()[:-1],
        json.dumps({**GOOD_CONFIG, "format": "something"}).encode(),
        json.dumps({**GOOD_CONFIG, "id": "xyz"}).encode(),
        json.dumps({**GOOD_CONFIG, "id": "../" + "0" * 29}).encode(),
        json.dumps({**GOOD_CONFIG, "version": 0}).encode(),
        json.dumps({**GOOD_CONFIG, "version": "1"}).encode(),
    ],
)
def test_a_damaged_config_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ibt.json").write_bytes(content)
    for create in (False, True):
        with pytest.raises(FormatError, match=r"ibt\.json"):
            Repository.open(tmp_path, create=create)
    assert (tmp_path / "ibt.json").read_bytes() == content


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "ibt.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitExceededError):
        Repository.open(tmp_path)


def test_unknown_fields_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ibt.json").write_text(json.dumps({**GOOD_CONFIG, "later": {"a": 1}}))
    assert Repository.open(tmp_path).repository_id == "0" * 32


def test_keys_are_the_directories_that_may_be_one(url: str) -> None:
    repository = Repository.open(url, create=True)
    for name in ("b/x", "a/x", "locks/a.json", "a b/x", ".hidden/x"):
        repository.store.create(name, b"")
    assert repository.keys() == [".hidden", "a", "b"]


def test_a_backup_is_its_state_of_the_highest_generation(url: str) -> None:
    repository = Repository.open(url, create=True)
    for file_name in (
        f"{SECOND}.state.jsonl.zst",
        f"{FIRST}.full.0000.tar.zst",
        f"{FIRST}.g2.state.jsonl.zst",
        f"{FIRST}.g10.state.jsonl.zst",
        f"{FIRST}.g11.full.0000.tar.zst",
        f"{FIRST}.state.jsonl.zst.sig",
        "20261122T000000.000000Z.full.0000.tar.zst",
        "stranger",
    ):
        repository.store.create(f"k/{file_name}", b"abc")
    backups = repository.backups("k")
    assert [(stored.name.backup_id, stored.name.generation) for stored in backups] == [
        (FIRST, 10),
        (SECOND, 0),
    ]
    assert {stored.size for stored in backups} == {3}
    assert len(repository.objects("k")) == 7
    assert "k/stranger" not in [stored.name.path for stored in repository.objects("k")]


def test_a_key_that_is_not_there_has_no_backups(url: str) -> None:
    repository = Repository.open(url, create=True)
    assert repository.backups("nothing") == []
    with pytest.raises(ValueError, match="key"):
        repository.backups("../x")


def test_a_repository_that_is_gone_is_an_error_and_not_one_without_backups(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "mounted", create=True)
    repository.store.create(f"k/{FIRST}.state.jsonl.zst", b"x")
    (tmp_path / "mounted").rename(tmp_path / "unmounted")
    for look in (repository.keys, lambda: repository.backups("k"), lambda: repository.objects("k")):
        with pytest.raises(RepositoryNotFoundError):
            look()
    with pytest.raises(RepositoryNotFoundError):
        repository.store.create("k/x", b"x")
    assert not (tmp_path / "mounted").exists()


def test_put_once_never_replaces(url: str) -> None:
    repository = Repository.open(url, create=True)
    assert repository.put_once("RESTORE.sh", b"one")
    assert not repository.put_once("RESTORE.sh", b"two")
    assert repository.store.read("RESTORE.sh") == b"one"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuchprotocol://x", "nosuchprotocol"),
        ("", "empty"),
        ("file://relative/path", "absolute"),
        ("memory://x::nosuchprotocol://y", "nosuchprotocol"),
    ],
)
def test_a_url_that_cannot_be_opened_is_one_clear_error(name: str, message: str) -> None:
    with pytest.raises(RepositoryError, match=message) as caught:
        open_store(name)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(RepositoryError) as caught:
        open_store("nosuchprotocol://user:secret@host/path")
    assert "secret" not in str(caught.value)
    store = open_store("memory://user:secret@host/path")
    assert store.url == "memory://user:***@host/path"


def test_a_directory_takes_no_storage_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        open_store(tmp_path, {"endpoint": "x"})


def test_names_with_colons_are_directories(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a::b:c")
    store.make_root()
    assert os.listdir(tmp_path) == ["a::b:c"]


def test_a_memory_repository_is_not_on_the_disk(tmp_path: Path) -> None:
    root = f"memory:/{tmp_path}/memory"
    Repository.open(root, create=True)
    assert os.listdir(tmp_path) == []
    assert MemoryFileSystem().exists(f"{tmp_path}/memory/ibt.json")
