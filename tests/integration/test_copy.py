"""Backups that are carried to another repository: they are there byte for byte, or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.chains import KEY, Chain
from support.command import (
    command_environment,
    content_of,
    cut_half,
    damage,
    flip_middle,
    only,
    run_ibt,
    two_backups,
)
from support.keys import AgeKey, make_age_key, make_ssh_key
from support.servers import Server
from support.trees import assert_same_tree, fingerprint

from incremental_backups_tools import KeepPolicy, verify
from incremental_backups_tools.chain.copy import copy_backups
from incremental_backups_tools.exceptions import ChainError, IntegrityError, RepositoryError
from incremental_backups_tools.repository.locks import KeyLock
from incremental_backups_tools.repository.repository import Repository

WRONG_IDENTITY = 12
LOCKED = 11


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    """Four points, of which the third holds a renamed and an edited file."""
    made = Chain.begin(tmp_path)
    (made.source / "big").write_bytes(os.urandom(1 << 20))
    (made.source / "small").write_text("small\n")
    made.back_up()
    (made.source / "new").write_bytes(os.urandom(50_000))
    made.back_up()
    (made.source / "new").rename(made.source / "moved")
    with (made.source / "big").open("r+b") as file:
        file.write(b"changed")
    made.back_up()
    (made.source / "small").unlink()
    made.back_up()
    return made


def ids_of(repository: Path) -> list[str]:
    listed = run_ibt("-r", repository, "list", "--json").document["backups"]
    return [backup["id"] for backup in listed]


def copy_of(chain: Chain, repository: Path) -> Chain:
    """The chain as another repository must have it, seen from another machine."""
    return Chain(chain.top, chain.source, repository, chain.top / "elsewhere", dict(chain.points))


def archives_of(repository: Path) -> dict[str, bytes | None]:
    return content_of(repository / KEY)


# --- what is carried -----------------------------------------------------------------------------------------


def test_all_points_are_there_byte_for_byte(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    report = copy_backups(KEY, other, repository=chain.repository)
    assert report.copied == list(chain.points)
    assert archives_of(other) == archives_of(chain.repository)
    copy_of(chain, other).check(scripted=1)
    assert (other / "RESTORE.sh").read_bytes() == (chain.repository / "RESTORE.sh").read_bytes()
    assert not list((other / "locks").iterdir())
    own, its = Repository.open(chain.repository), Repository.open(other)
    assert own.repository_id != its.repository_id


def test_a_second_run_copies_what_is_new(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_backups(KEY, other, repository=chain.repository)
    before = content_of(other)
    again = copy_backups(KEY, other, repository=chain.repository)
    assert (again.copied, again.files, again.present) == ([], 0, list(chain.points))
    assert content_of(other) == before
    (chain.source / "later").write_text("later")
    latest = chain.back_up().backup_date
    assert copy_backups(KEY, other, repository=chain.repository).copied == [latest]
    assert archives_of(other) == archives_of(chain.repository)


def test_one_point_takes_along_what_it_stands_on(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ids = list(chain.points)
    assert copy_backups(KEY, other, repository=chain.repository, at=ids[1]).copied == ids[:2]
    assert ids_of(other) == ids[:2]
    assert copy_backups(KEY, other, repository=chain.repository, at=ids[3]).present == ids[:2]
    assert ids_of(other) == ids


def test_what_was_forgotten_or_written_again_is_so_there(chain: Chain, tmp_path: Path) -> None:
    ids = list(chain.points)
    chain.merge(1, 2)
    chain.prune(
        policy=KeepPolicy(keep_last=2), max_unused=1.0
    )  # the full is forgotten, and stays for what stands on it
    assert len(list((chain.repository / KEY).glob("*.forgotten"))) == 1
    other = tmp_path / "other"
    copy_backups(KEY, other, repository=chain.repository)
    assert ids_of(other) == ids[2:]
    copy_of(chain, other).check()
    assert archives_of(other) == archives_of(chain.repository)


def test_a_point_in_a_later_generation_there_stays(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_backups(KEY, other, repository=chain.repository)
    copy_of(chain, other).rebase(2)
    before = content_of(other)
    assert copy_backups(KEY, other, repository=chain.repository).copied == []
    assert content_of(other) == before


def test_a_dry_run_changes_nothing(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ran = run_ibt("-r", chain.repository, "copy", "-n", "--json", "--to", other, KEY)
    assert ran.document["copied"] == list(chain.points)
    assert ran.document["bytes_copied"] > 1 << 20
    assert not other.exists()
    copy_backups(KEY, other, repository=chain.repository, at=next(iter(chain.points)))
    before = content_of(other)
    planned = copy_backups(KEY, other, repository=chain.repository, dry_run=True)
    assert (len(planned.present), len(planned.copied)) == (1, 3)
    assert content_of(other) == before


# --- what stands in the way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [flip_middle, cut_half])
def test_a_damaged_archive_is_not_carried(chain: Chain, tmp_path: Path, change: object) -> None:
    ids = list(chain.points)
    damage(only(chain.repository, f"{ids[2]}.updated.*"), change)  # type: ignore[arg-type]
    other = tmp_path / "other"
    with pytest.raises(IntegrityError, match=r"updated.*not what its state promises"):
        copy_backups(KEY, other, repository=chain.repository)
    assert ids_of(other) == ids[:2]
    assert not list(other.rglob(f"{ids[2]}.updated.*"))
    assert not verify(other, read_data=True).faults


def test_a_damaged_state_is_not_carried(chain: Chain, tmp_path: Path) -> None:
    first = next(iter(chain.points))
    state = only(chain.repository, f"{first}.state.*")
    damage(state, lambda data: data.__delitem__(slice(len(data) - 60, None)))
    other = tmp_path / "other"
    ran = run_ibt("-r", chain.repository, "copy", "--to", other, KEY, status=1)
    assert first in ran.error
    assert not list(other.rglob("*.state.*"))


@pytest.mark.parametrize("change", [flip_middle, cut_half])
def test_other_bytes_under_the_name_are_refused(chain: Chain, tmp_path: Path, change: object) -> None:
    other = tmp_path / "other"
    ids = list(chain.points)
    copy_backups(KEY, other, repository=chain.repository, at=ids[0])
    for path in (chain.repository / KEY).glob(f"{ids[2]}.updated.*"):
        shutil.copy(path, other / KEY)
        damage(other / KEY / path.name, change)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="not what its state promises"):
        copy_backups(KEY, other, repository=chain.repository)
    assert ids_of(other) == ids[:2]


def test_a_whole_archive_that_is_missing_there_is_copied_again(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_backups(KEY, other, repository=chain.repository)
    lost = only(other, "*.full.0000.tar.zst")
    lost.unlink()
    assert copy_backups(KEY, other, repository=chain.repository).files == 1
    assert archives_of(other) == archives_of(chain.repository)


def test_another_backup_of_the_same_id_is_refused(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    copy_backups(KEY, other, repository=chain.repository)
    copy_of(chain, other).rebase(2)
    chain.merge(1, 2)  # the next generation of the same backup, in another way
    before = content_of(other)
    with pytest.raises(ChainError, match="has another backup"):
        copy_backups(KEY, other, repository=chain.repository)
    assert content_of(other) == before


def test_a_point_that_was_forgotten_there_is_not_hidden(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    ids = list(chain.points)
    copy_backups(KEY, other, repository=chain.repository, at=ids[0])
    (other / KEY / f"{ids[1]}.forgotten").write_bytes(b"")
    with pytest.raises(ChainError, match="was forgotten in"):
        copy_backups(KEY, other, repository=chain.repository)


def test_a_key_that_is_locked_there_is_left_alone(chain: Chain, tmp_path: Path) -> None:
    other = tmp_path / "other"
    store = Repository.open(other, create=True).store
    with KeyLock.acquire(store, KEY, operation="backup"):
        ran = run_ibt("-r", chain.repository, "copy", "--to", other, KEY, status=LOCKED)
        assert "is locked by" in ran.error
        assert not (other / KEY).exists()


def test_a_repository_is_not_copied_to_itself_or_among_strangers(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="to itself"):
        copy_backups(KEY, chain.repository, repository=chain.repository)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("not a repository")
    with pytest.raises(RepositoryError, match="not empty"):
        copy_backups(KEY, tmp_path / "full", repository=chain.repository)


# --- killed --------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from incremental_backups_tools.cli import main
from incremental_backups_tools.repository import local
real, left = local.LocalSpool.publish, [int(sys.argv[1])]
def publish(self):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self)
local.LocalSpool.publish = publish
main(sys.argv[2:])
"""


def test_killed_before_any_name_is_given_it_goes_on(chain: Chain, tmp_path: Path) -> None:
    for number in range(0, 100, 2):
        other = tmp_path / f"other-{number}"
        arguments = ["-r", chain.repository, "copy", "--to", other, KEY]
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, str(number), *map(str, arguments)],
            env=command_environment(),
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        if (other / "ibt.json").exists():
            assert not verify(other, read_data=True).faults
        before = {name: data for name, data in content_of(other).items() if not name.endswith(".json")}
        run_ibt(*map(str, arguments))
        after = content_of(other)
        assert {name for name in before if not name.endswith(".tmp")} <= after.keys()
        assert archives_of(other) == archives_of(chain.repository)
    assert number > 10


# --- encrypted and signed ------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> AgeKey:
    return make_age_key(tmp_path)


def elsewhere(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "new-machine")}


def back_up_twice(source: Path, repository: Path, *options: str | Path) -> None:
    (source / "big").write_bytes(os.urandom(1 << 20))
    run_ibt("-r", repository, "backup", *options, source)
    (source / "new").write_text("new\n")
    run_ibt("-r", repository, "backup", *options, source)


def test_encrypted_backups_are_carried_as_they_lie_without_a_secret(
    source: Path, repository: Path, key: AgeKey, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    back_up_twice(source, repository, "--recipient", key.recipient)
    run_ibt("-r", repository, "copy", "--to", other, "source")
    assert content_of(other / "source") == content_of(repository / "source")
    assert '"age"' in (other / "ibt.json").read_text()
    again = run_ibt("-r", repository, "copy", "--to", other, "--json", "source")
    assert (len(again.document["present"]), again.document["files"]) == (2, 0)
    unreadable = run_ibt(
        "-r", repository, "copy", "--to", other, "source", status=WRONG_IDENTITY, env=elsewhere(tmp_path)
    )
    assert "--identity" in unreadable.error
    run_ibt(
        *("-r", other, "restore", "--identity", key.file, "source", tmp_path / "restored"),
        env=elsewhere(tmp_path),
    )
    assert_same_tree(source, tmp_path / "restored")
    shutil.rmtree(other / "source")
    run_ibt(
        *("-r", repository, "copy", "--identity", key.file, "--to", other, "source"), env=elsewhere(tmp_path)
    )
    assert content_of(other / "source") == content_of(repository / "source")


def test_the_passphrase_opens_the_copies(source: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    given = ("--passphrase-file", tmp_path / "passphrase")
    back_up_twice(source, repository, *given)
    other = tmp_path / "other"
    run_ibt("-r", repository, "copy", *given, "--to", other, "source")
    run_ibt("-r", other, "restore", *given, "source", tmp_path / "restored", env=elsewhere(tmp_path))
    assert_same_tree(source, tmp_path / "restored")
    third = tmp_path / "third"
    back_up_twice(source, third, *given, "--key", "other")
    refused = run_ibt("-r", repository, "copy", *given, "--to", third, "source", status=1)
    assert "another ibt.key.age" in refused.error
    assert not (third / "source").exists()


def test_plain_and_encrypted_do_not_mix(source: Path, key: AgeKey, tmp_path: Path) -> None:
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    back_up_twice(source, plain)
    back_up_twice(source, sealed, "--recipient", key.recipient)
    for one, other, arguments in (
        (plain, sealed, ()),
        (sealed, plain, ()),
        (plain, tmp_path / "new", ("--recipient", key.recipient)),
    ):
        before = content_of(other) if other.exists() else None
        refused = run_ibt("-r", one, "copy", *arguments, "--to", other, "source", status=1)
        assert "encrypted" in refused.error or "in plain" in refused.error
        assert (content_of(other) if other.exists() else None) == before


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_signed_states_are_checked_and_signed_anew(
    source: Path, repository: Path, key: AgeKey, tmp_path: Path, is_encrypted: bool
) -> None:
    first, second = make_ssh_key(tmp_path, "first"), make_ssh_key(tmp_path, "second")
    sealing: tuple[str | Path, ...] = ("--recipient", key.recipient) if is_encrypted else ()
    opening: tuple[str | Path, ...] = ("--identity", key.file) if is_encrypted else ()
    back_up_twice(source, repository, *sealing, "--sign-key", first)
    other = tmp_path / "other"
    to = ("-r", repository, "copy", "--to", other, *sealing, *opening)
    for options in ((), ("--sign-key", second)):
        assert "is signed for its own repository" in run_ibt(*to, *options, "source", status=1).error
        assert not other.exists()
    wrong = run_ibt(*to, "--sign-key", second, "--verify-key", f"{second}.pub", "source", status=1)
    assert "not among those to be trusted" in wrong.error
    run_ibt(*to, "--sign-key", second, "--verify-key", f"{first}.pub", "source")
    again = run_ibt(*to, "--sign-key", second, "--verify-key", f"{first}.pub", "--json", "source")
    assert (again.document["copied"], len(again.document["present"])) == ([], 2)
    reading = ("-r", other, "restore", *opening, "--verify-key")
    run_ibt(*reading, f"{second}.pub", "source", tmp_path / "restored", env=elsewhere(tmp_path))
    assert_same_tree(source, tmp_path / "restored")
    run_ibt(*reading, f"{first}.pub", "source", tmp_path / "not", status=1, env=elsewhere(tmp_path))


def test_a_signature_that_a_killed_run_left_serves(source: Path, repository: Path, tmp_path: Path) -> None:
    signing = make_ssh_key(tmp_path, "signing")
    back_up_twice(source, repository, "--sign-key", signing)
    other = tmp_path / "other"
    to = ("-r", repository, "copy", "--to", other, "--sign-key", signing, "--verify-key", f"{signing}.pub")
    run_ibt(*to, "source")
    states = sorted((other / "source").glob("*.state.jsonl.zst"))
    states[1].unlink()
    run_ibt(*to, "source")
    run_ibt("-r", other, "verify", "--read-data", "--verify-key", f"{signing}.pub")
    states[1].unlink()
    shutil.copy(f"{states[0]}.sig", f"{states[1]}.sig")
    assert "of something else" in run_ibt(*to, "source", status=1).error


# --- far away ------------------------------------------------------------------------------------------------


def test_copies_travel_to_a_bucket_and_back(seaweedfs: Server, source: Path, tmp_path: Path) -> None:
    two = two_backups(source, tmp_path / "here")
    url = seaweedfs.new_url()
    options = [
        option.replace("--storage-option", "--to-storage-option") for option in seaweedfs.command_options()
    ]
    there = ("-r", url, *seaweedfs.command_options())
    run_ibt("-r", two.repository, "copy", "--to", url, *options, "--limit-upload", "50M", "source")
    assert "no fault found" in run_ibt(*there, "verify", "--read-data").stdout
    run_ibt(*there, "copy", "--to", tmp_path / "back", "--limit-download", "50M", "source")
    assert content_of(tmp_path / "back" / "source") == content_of(two.repository / "source")
    run_ibt("-r", tmp_path / "back", "restore", "source", tmp_path / "restored")
    assert fingerprint(tmp_path / "restored") == fingerprint(source)
