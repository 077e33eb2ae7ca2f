"""Local copies of encrypted objects: each is right, or it is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from incremental_backups_tools.exceptions import IntegrityError
from incremental_backups_tools.repository.cache import Cache
from incremental_backups_tools.repository.copies import LocalCopies

ID = "0123456789abcdef" * 2
NAME = "key/20261120T072531.123456Z.state.jsonl.zst.age"
OTHER = "key/20261121T072531.123456Z.state.jsonl.zst.age"
CONTENT = b"content" * 1000


@pytest.fixture
def copies(tmp_path: Path) -> LocalCopies:
    return copies_of(tmp_path, ID)


def copies_of(tmp_path: Path, repository_id: str) -> LocalCopies:
    return LocalCopies(repository_id, lambda key: Cache(tmp_path, repository_id, key))


def keep(copies: LocalCopies, name: str = NAME, content: bytes = CONTENT) -> None:
    with copies.keep(name) as copy:
        copy.write(content)
        copy.seal(123, "d" * 64)


def file_of(tmp_path: Path, name: str = NAME, repository_id: str = ID) -> Path:
    return tmp_path / repository_id / "key" / f"copy-{name.partition('/')[2]}"


def test_a_copy_is_read_as_a_whole_and_by_range(copies: LocalCopies) -> None:
    keep(copies)
    copy = copies.find(NAME)
    assert copy is not None
    assert (copy.length, copy.seal.stored_size, copy.seal.stored_digest) == (len(CONTENT), 123, "d" * 64)
    with copy.open() as file:
        assert file.read() == CONTENT
    assert copy.read_range(7, 7) == b"content"
    assert copy.read_range(len(CONTENT) - 1, 100) == b"t"


def test_an_empty_copy_is_one(copies: LocalCopies) -> None:
    keep(copies, content=b"")
    copy = copies.find(NAME)
    assert copy is not None
    assert copy.read_range(0, 10) == b""


def test_one_that_was_never_sealed_is_none(copies: LocalCopies, tmp_path: Path) -> None:
    keep(copies)
    with copies.keep(NAME) as copy:
        copy.write(b"begun")
    assert copies.find(NAME) is None
    assert not file_of(tmp_path).exists()


def test_every_cut_and_flipped_bit_makes_it_none(copies: LocalCopies, tmp_path: Path) -> None:
    keep(copies, content=b"short")
    whole = file_of(tmp_path).read_bytes()
    for length in range(len(whole)):
        file_of(tmp_path).write_bytes(whole[:length])
        assert copies.find(NAME) is None
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file_of(tmp_path).write_bytes(damaged)
        assert copies.find(NAME) is None
    file_of(tmp_path).write_bytes(whole + b"x")
    assert copies.find(NAME) is None


def test_another_objects_or_another_repositorys_copy_in_its_place_is_none(
    copies: LocalCopies, tmp_path: Path
) -> None:
    keep(copies)
    keep(copies, OTHER, b"other")
    shutil.copy(file_of(tmp_path, OTHER), file_of(tmp_path))
    assert copies.find(NAME) is None
    elsewhere = copies_of(tmp_path, "f" * 32)
    keep(elsewhere)
    shutil.copy(file_of(tmp_path, NAME, "f" * 32), file_of(tmp_path))
    assert copies.find(NAME) is None


def test_one_that_changes_while_it_is_in_use_is_not_read(copies: LocalCopies, tmp_path: Path) -> None:
    keep(copies)
    copy = copies.find(NAME)
    assert copy is not None
    file_of(tmp_path).write_bytes(b"something else")
    with pytest.raises(IntegrityError):
        copy.read_range(0, 1)
    file_of(tmp_path).unlink()
    with pytest.raises(IntegrityError):
        copy.open()


def test_only_named_copies_and_all_other_files_stay(copies: LocalCopies, tmp_path: Path) -> None:
    keep(copies)
    keep(copies, OTHER)
    with Cache(tmp_path, ID, "key").replace("index") as file:
        file.write(b"index")
    copies.retain("key", {OTHER})
    assert copies.find(NAME) is None
    assert copies.find(OTHER) is not None
    assert "index" in Cache(tmp_path, ID, "key").names()


def test_only_its_owner_can_read_it(copies: LocalCopies, tmp_path: Path) -> None:
    keep(copies)
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600
