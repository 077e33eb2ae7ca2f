"""Encrypted repositories from end to end: who backs up needs no secret, who restores needs nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import content_of, damage, flip_middle, only
from support.keys import AgeKey, make_age_key, make_ssh_key, opened
from support.trees import assert_same_tree, build_nasty_tree

from incremental_backups_tools.chain.backup import full_backup, incremental_backup
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.look import list_backups
from incremental_backups_tools.chain.merge import merge_backups, rebase_backup
from incremental_backups_tools.chain.prune import prune_backups
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.chain.restore import restore_backup
from incremental_backups_tools.chain.rewrap import rewrap_backups
from incremental_backups_tools.chain.salvage import salvage
from incremental_backups_tools.chain.verify import verify
from incremental_backups_tools.exceptions import BackupError, ChainError, DecryptionError, RepositoryError
from incremental_backups_tools.points.retention import KeepPolicy
from incremental_backups_tools.repository.identities import parse_recipient
from incremental_backups_tools.repository.protection import NO_PROTECTION, Protection
from incremental_backups_tools.repository.repository import Repository

BIG = 3 << 20


class Client:
    """A machine that backs one tree up, with a cache of its own and public keys alone."""

    def __init__(self, place: Path, source: Path, repository: Path, protection: Protection) -> None:
        self.cache = place / "cache"
        self.source = source
        self.repository = repository
        self.protection = protection

    def backup(self, *, full: bool = False, **options: object) -> BackupReport:
        run = full_backup if full else incremental_backup
        merged = {"protection": self.protection, "cache_root": self.cache, **options}
        return run(self.source, self.repository, **merged)


@pytest.fixture
def key(tmp_path: Path) -> AgeKey:
    return make_age_key(tmp_path)


@pytest.fixture
def client(tmp_path: Path, source: Path, repository: Path, key: AgeKey) -> Client:
    (source / "big").write_bytes(os.urandom(BIG))
    (source / "small").write_text("small\n")
    return Client(tmp_path, source, repository, key.writing)


def append(path: Path, data: bytes = b"more") -> None:
    with path.open("ab") as file:
        file.write(data)


def restored(repository: Path, key: AgeKey, dest: Path, at: str | None = None) -> Path:
    """Restore on a machine that has never seen the repository."""
    place = opened(repository, key.reading, dest.with_name(f"{dest.name}-cache"))
    report = restore_backup("source", dest, repository=place, at=at)
    assert report.problems == []
    return dest


def test_incrementals_without_a_secret_and_a_restore_on_a_new_machine(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    build_nasty_tree(client.source / "nasty")
    first = client.backup()
    assert first.kind == "full"
    append(client.source / "big")
    (client.source / "new").write_text("new")
    second = client.backup()
    assert second.kind == "incremental"
    assert second.total < BIG // 100  # a delta, made from the signature in the cache
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))
    report = verify(opened(client.repository, key.reading, tmp_path / "c"), read_data=True)
    assert (report.faults, report.backups) == ([], 2)


def test_every_file_of_a_backup_is_encrypted_and_listed_as_it_lies(client: Client, key: AgeKey) -> None:
    client.backup()
    append(client.source / "big")
    report = client.backup()
    names = [path.name for path in client.repository.rglob("*") if path.is_file()]
    assert {name for name in names if not name.endswith(".age")} == {"ibt.json", "RESTORE.sh"}
    for file in report.files:
        assert (client.repository / file.path).stat().st_size == file.size
    assert json.loads((client.repository / "ibt.json").read_text())["encryption"] == "age"


def test_volumes_are_smaller_where_they_are_encrypted(client: Client, key: AgeKey, tmp_path: Path) -> None:
    with (client.source / "hole").open("wb") as file:
        file.truncate(10)
    for number in range(3):
        (client.source / f"part-{number}").write_bytes(os.urandom(1 << 20))
    report = client.backup(volume_size=1 << 20)
    assert len([file for file in report.files if file.role == "full"]) > 2
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))


def test_one_file_is_restored_without_reading_whole_volumes(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    for number in range(20):
        (client.source / f"noise-{number:02}").write_bytes(os.urandom(1 << 20))
    client.backup()
    repository = opened(client.repository, key.reading, tmp_path / "c")
    read = 0
    inner = repository.base.read_range

    def counted(name: str, offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return inner(name, offset, length)

    repository.base.read_range = counted  # type: ignore[method-assign]
    restore_backup("source", tmp_path / "one", repository=repository, paths=["noise-07"])
    assert (tmp_path / "one/noise-07").read_bytes() == (client.source / "noise-07").read_bytes()
    assert read < 4 << 20


# --- the kind of a repository is fixed -----------------------------------------------------------------------


def test_a_run_without_recipients_is_refused_before_anything_is_written(
    client: Client, tmp_path: Path
) -> None:
    client.backup()
    before = content_of(client.repository)
    client.protection = NO_PROTECTION
    for full in (False, True):
        with pytest.raises(RepositoryError, match="--recipient"):
            client.backup(full=full)
    assert content_of(client.repository) == before


def test_recipients_for_a_plain_repository_are_refused(client: Client, key: AgeKey) -> None:
    client.protection = NO_PROTECTION
    client.backup()
    before = content_of(client.repository)
    for protection in (key.writing, Protection(passphrase="horse")):
        client.protection = protection
        with pytest.raises(RepositoryError, match="not encrypted and never will be"):
            client.backup()
    assert content_of(client.repository) == before


def test_plain_files_that_somebody_put_beside_are_no_backups(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    client.backup()
    forger = Client(tmp_path / "forger", client.source, tmp_path / "forged", NO_PROTECTION)
    report = forger.backup()
    for file in report.files:
        if file.path.startswith("source/"):
            shutil.copy(tmp_path / "forged" / file.path, client.repository / file.path)
    repository = opened(client.repository, key.reading, tmp_path / "c")
    assert [header.id for header in list_backups(repository).headers] != [report.backup_date]
    assert len(list_backups(repository).headers) == 1
    assert client.backup().parent == list_backups(repository).headers[0].id


# --- the cache is only a cache -------------------------------------------------------------------------------


def test_without_the_cache_the_choice_is_an_identity_or_a_full(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    client.backup()
    shutil.rmtree(client.cache)
    before = content_of(client.repository)
    with pytest.raises(DecryptionError, match=r"--identity.*--full"):
        client.backup()
    assert content_of(client.repository) == before
    append(client.source / "big")
    client.protection = key.both
    rebuilt = client.backup()
    assert (rebuilt.kind, rebuilt.total < BIG // 100) == ("incremental", True)
    client.protection = key.writing
    append(client.source / "big")
    assert client.backup().kind == "incremental"
    shutil.rmtree(client.cache)
    assert client.backup(full=True).kind == "full"
    append(client.source / "big")
    last = client.backup()
    assert (last.kind, last.total < BIG // 100) == ("incremental", True)
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))
    assert verify(opened(client.repository, key.reading, tmp_path / "c"), read_data=True).faults == []


@pytest.mark.parametrize("part", ["copy-*.state.*", "copy-*.sigvault.*", "index", "index-contents", "newest"])
@pytest.mark.parametrize("how", ["gone", "damaged", "cut"])
def test_a_part_of_the_cache_that_is_not_right_is_noticed(
    client: Client, key: AgeKey, tmp_path: Path, part: str, how: str
) -> None:
    client.backup()
    file = only(client.cache, part)
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        damage(file, flip_middle)
    append(client.source / "big")
    try:
        report = client.backup()
    except DecryptionError as error:
        assert part.startswith("copy")
        assert "--identity" in str(error)
        client.protection = key.both
        report = client.backup()
    assert (report.kind, report.total < BIG // 100) == ("incremental", True)
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))


def test_an_older_copy_of_the_cache_is_noticed(client: Client, key: AgeKey, tmp_path: Path) -> None:
    client.backup()
    shutil.copytree(client.cache, tmp_path / "older")
    append(client.source / "big")
    client.backup()
    shutil.rmtree(client.cache)
    shutil.copytree(tmp_path / "older", client.cache)
    append(client.source / "big")
    with pytest.raises(DecryptionError, match="cache of this machine lacks"):
        client.backup()
    client.protection = key.both
    assert client.backup().total < BIG // 100
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))


def test_another_repositorys_cache_in_its_place_is_noticed(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    client.backup()
    other = Client(tmp_path / "other", client.source, tmp_path / "other-repository", key.writing)
    other.backup()
    (mine,) = client.cache.iterdir()
    (theirs,) = other.cache.iterdir()
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    append(client.source / "big")
    with pytest.raises(DecryptionError, match="cache of this machine lacks"):
        client.backup()
    client.backup(full=True)
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))


def test_a_repository_that_moved_keeps_its_cache_and_one_that_was_replaced_does_not(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    client.backup()
    client.repository = client.repository.rename(tmp_path / "moved")
    append(client.source / "big")
    assert client.backup().total < BIG // 100
    shutil.rmtree(client.repository)
    replaced = Client(tmp_path / "other", client.source, client.repository, key.writing)
    replaced.backup()
    with pytest.raises(DecryptionError, match="cache of this machine lacks"):
        client.backup()


def test_signatures_of_an_old_chain_leave_the_cache(client: Client) -> None:
    first = client.backup()
    append(client.source / "big")
    client.backup()
    assert len(list(client.cache.rglob("copy-*.sigvault.*"))) == 2
    client.backup(full=True)
    (left,) = client.cache.rglob("copy-*.sigvault.*")
    assert first.backup_date not in left.name
    assert len(list(client.cache.rglob("copy-*.state.*"))) == 3  # for listing
    assert all(path.stat().st_mode & 0o77 == 0 for path in client.cache.rglob("*"))


def test_looking_needs_no_identity_where_the_cache_is(client: Client, key: AgeKey, tmp_path: Path) -> None:
    ids = [client.backup().backup_date]
    append(client.source / "big")
    ids.append(client.backup().backup_date)
    here = opened(client.repository, NO_PROTECTION, client.cache)
    assert [header.id for header in list_backups(here).headers] == ids
    report = verify(here)
    assert (report.faults, report.backups) == ([], 2)
    elsewhere = opened(client.repository, NO_PROTECTION, tmp_path / "nothing")
    with pytest.raises(DecryptionError, match="--identity"):
        list_backups(elsewhere)


@pytest.mark.parametrize("part", ["*.state.*", "*.full.*", "*.sigvault.*"])
def test_checking_without_an_identity_sees_damage(client: Client, part: str) -> None:
    client.backup()
    damage(only(client.repository, part), flip_middle)
    report = verify(opened(client.repository, NO_PROTECTION, client.cache))
    assert len(report.faults) == 1
    assert part.strip("*.") in report.faults[0].what


def test_a_repository_put_back_in_time_is_reported(client: Client, key: AgeKey, tmp_path: Path) -> None:
    first = client.backup()
    shutil.copytree(client.repository, tmp_path / "older")
    append(client.source / "big")
    second = client.backup()
    shutil.rmtree(client.repository)
    shutil.copytree(tmp_path / "older", client.repository)
    (fault,) = verify(opened(client.repository, key.reading, client.cache)).faults
    assert first.backup_date in fault.message
    assert second.backup_date in fault.message
    notices: list[str] = []
    again = client.backup(on_notice=notices.append)
    assert any(second.backup_date in notice for notice in notices)
    assert again.parent == first.backup_date
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))
    assert verify(opened(client.repository, key.reading, client.cache)).faults == []


# --- what needs an identity ----------------------------------------------------------------------------------


def test_merging_rebasing_and_pruning_need_an_identity_and_say_so_first(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    ids = []
    for _ in range(4):
        append(client.source / "big", os.urandom(5000))
        ids.append(client.backup().backup_date)
    before = content_of(client.repository)
    blind = opened(client.repository, key.writing, client.cache)
    for run in (
        lambda place: merge_backups("source", ids[1], ids[2], repository=place),
        lambda place: rebase_backup("source", ids[3], repository=place),
        lambda place: prune_backups("source", repository=place, policy=KeepPolicy(keep_last=1)),
        lambda place: rewrap_backups("source", repository=place),
    ):
        with pytest.raises(DecryptionError, match="needs an identity"):
            run(blind)
        with pytest.raises(RepositoryError, match="--recipient"):
            run(opened(client.repository, key.reading, client.cache))
    assert content_of(client.repository) == before

    seeing = opened(client.repository, key.both, client.cache)
    merge_backups("source", ids[1], ids[2], repository=seeing)
    rebase_backup("source", ids[3], repository=seeing)
    prune_backups("source", repository=seeing, policy=KeepPolicy(keep_last=2))
    assert verify(opened(client.repository, key.reading, tmp_path / "c"), read_data=True).faults == []
    assert_same_tree(client.source, restored(client.repository, key, tmp_path / "restored"))
    # What was written again is in the cache as well: the next one needs no secret.
    append(client.source / "big")
    after = client.backup()
    assert (after.kind, after.parent, after.total < BIG // 100) == ("incremental", ids[3], True)
    restored(client.repository, key, tmp_path / "again")
    assert_same_tree(client.source, tmp_path / "again")


def test_the_wrong_identity_is_one_error(client: Client, tmp_path: Path) -> None:
    client.backup()
    other = make_age_key(tmp_path, "other")
    place = opened(client.repository, other.reading, tmp_path / "c")
    with pytest.raises(DecryptionError, match="not encrypted to this identity"):
        place.check_identities()
    with pytest.raises(DecryptionError):
        restore_backup("source", tmp_path / "restored", repository=place)
    assert not (tmp_path / "restored").exists() or not any((tmp_path / "restored").iterdir())


def test_salvage_reads_volumes_whose_state_is_lost(client: Client, key: AgeKey, tmp_path: Path) -> None:
    client.backup()
    only(client.repository, "*.state.*").unlink()
    place = opened(client.repository, key.reading, tmp_path / "c")
    salvage(tmp_path / "saved", repository=place)
    assert (tmp_path / "saved/source/big").read_bytes() == (client.source / "big").read_bytes()


# --- passphrases ---------------------------------------------------------------------------------------------


def test_a_passphrase_opens_the_repositorys_own_key(client: Client, tmp_path: Path) -> None:
    client.protection = Protection(passphrase="correct horse")
    report = client.backup()
    assert "ibt.key.age" in [file.path for file in report.files]
    append(client.source / "big")
    assert client.backup().kind == "incremental"
    place = opened(client.repository, client.protection, tmp_path / "c")
    restore_backup("source", tmp_path / "restored", repository=place)
    assert_same_tree(client.source, tmp_path / "restored")
    with pytest.raises(DecryptionError, match="wrong passphrase"):
        opened(client.repository, Protection(passphrase="battery"), tmp_path / "c")


def test_a_repository_key_that_is_gone_is_not_made_anew(client: Client) -> None:
    client.protection = Protection(passphrase="correct horse")
    client.backup()
    (client.repository / "ibt.key.age").unlink()
    with pytest.raises(RepositoryError, match=r"has no ibt\.key\.age"):
        client.backup()
    assert not (client.repository / "ibt.key.age").exists()


def test_a_repository_of_recipients_has_no_key_for_a_passphrase(client: Client) -> None:
    client.backup()
    client.protection = replace(client.protection, passphrase="horse")
    with pytest.raises(RepositoryError, match=r"has no ibt\.key\.age"):
        client.backup()


# --- recipients ----------------------------------------------------------------------------------------------


def test_several_recipients_of_all_kinds_restore(client: Client, key: AgeKey, tmp_path: Path) -> None:
    ssh = make_ssh_key(tmp_path, "ssh")
    rsa = make_ssh_key(tmp_path, "rsa", "-t", "rsa", "-b", "2048")
    others = [parse_recipient(Path(f"{path}.pub").read_text()) for path in (ssh, rsa)]
    client.protection = Protection(recipients=(key.recipient, *others))
    client.backup()
    for number, file in enumerate((key.file, ssh, rsa)):
        dest = restored(client.repository, AgeKey(file, ""), tmp_path / f"restored-{number}")
        assert_same_tree(client.source, dest)


def test_rewrapping_lets_new_recipients_in_and_pruning_leaves_old_ones_out(
    client: Client, key: AgeKey, tmp_path: Path
) -> None:
    ids = [client.backup().backup_date]
    append(client.source / "big")
    ids.append(client.backup().backup_date)
    new = make_age_key(tmp_path, "new")
    with pytest.raises(DecryptionError):
        restored(client.repository, new, tmp_path / "too-early")
    both = Protection(recipients=(new.recipient,), identities=key.reading.identities)
    place = opened(client.repository, both, client.cache)
    report = rewrap_backups("source", repository=place)
    assert list(report.backups) == ids
    assert_same_tree(client.source, restored(client.repository, new, tmp_path / "restored"))
    assert verify(opened(client.repository, new.reading, tmp_path / "c"), read_data=True).faults == []
    assert [path.name for path in client.repository.rglob("*.age") if ".g1." not in path.name]
    prune_backups("source", repository=opened(client.repository, new.both, client.cache))
    assert not [path.name for path in client.repository.rglob("*.age") if ".g1." not in path.name]
    with pytest.raises(DecryptionError):
        restored(client.repository, key, tmp_path / "too-late")
    client.protection = new.writing
    append(client.source / "big")
    assert client.backup().total < BIG // 100
    assert_same_tree(client.source, restored(client.repository, new, tmp_path / "again"))


def test_a_plain_repository_is_not_rewrapped(client: Client, key: AgeKey) -> None:
    client.protection = NO_PROTECTION
    client.backup()
    with pytest.raises(ChainError, match="not encrypted"):
        rewrap_backups("source", repository=client.repository)


def test_rewrapping_what_is_damaged_changes_nothing(client: Client, key: AgeKey) -> None:
    client.backup()
    damage(only(client.repository, "*.full.*"), flip_middle)
    before = content_of(client.repository)
    with pytest.raises(BackupError):
        rewrap_backups("source", repository=opened(client.repository, key.both, client.cache))
    assert content_of(client.repository) == before


def test_a_dry_run_writes_nothing_and_says_what_it_would(client: Client, key: AgeKey) -> None:
    report = client.backup(dry_run=True)
    assert (report.kind, client.repository.exists()) == ("full", False)
    client.backup()
    before = content_of(client.repository)
    append(client.source / "big")
    assert client.backup(dry_run=True).kind == "incremental"
    assert content_of(client.repository) == before


def test_restored_by_age_tar_zstd_and_rdiff_alone(client: Client, key: AgeKey, tmp_path: Path) -> None:
    client.backup()
    append(client.source / "big")
    (client.source / "small").rename(client.source / "renamed")
    client.backup()
    command = ["sh", client.repository / "RESTORE.sh", "-i", key.file, "source", tmp_path / "restored"]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("big", "renamed"):
        assert (tmp_path / "restored" / name).read_bytes() == (client.source / name).read_bytes()
    assert not (tmp_path / "restored/small").exists()


def test_history_of_an_open_repository_reads_what_lies_there_not_the_copies(
    client: Client, key: AgeKey
) -> None:
    """Who has an identity must see damage in the store, whatever this machine still remembers."""
    client.backup()
    damage(only(client.repository, "*.state.*"), flip_middle)
    seeing = Repository.open(client.repository, protection=key.reading, cache_root=client.cache)
    with pytest.raises(BackupError):
        list(History(seeing, "source").lines(History(seeing, "source").backup_ids[0]))
