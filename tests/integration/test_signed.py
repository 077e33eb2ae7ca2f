"""Signed states: what somebody else put into the store, or took out of it, is no backup to who knows the key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.command import damage, flip_middle
from support.keys import AgeKey, make_age_key, make_ssh_key, opened, signer_of, verifier_of
from support.trees import assert_same_tree

from incremental_backups_tools.chain.backup import full_backup, incremental_backup
from incremental_backups_tools.chain.history import History
from incremental_backups_tools.chain.look import list_backups
from incremental_backups_tools.chain.merge import merge_backups, rebase_backup
from incremental_backups_tools.chain.newest import describe_rollback, remember_newest
from incremental_backups_tools.chain.report import BackupReport
from incremental_backups_tools.chain.restore import restore_backup
from incremental_backups_tools.chain.verify import verify
from incremental_backups_tools.exceptions import BackupError, IntegrityError, StateFormatError
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.repository import Repository


class Signed:
    """A source, a repository of it, and the key that its states are signed with."""

    def __init__(self, place: Path, source: Path, repository: Path, age: AgeKey | None) -> None:
        self.source = source
        self.repository = repository
        self.cache = place / "cache"
        self.key = make_ssh_key(place, "signing")
        recipients = (age.recipient,) if age is not None else ()
        self.writing = Protection(recipients=recipients, signer=signer_of(self.key))
        identities = age.reading.identities if age is not None else ()
        self.reading = Protection(identities=identities, verifier=verifier_of(self.key))

    def backup(self, protection: Protection | None = None) -> BackupReport:
        return incremental_backup(
            self.source, self.repository, protection=protection or self.writing, cache_root=self.cache
        )

    def open(self, *, writing: bool = False) -> Repository:
        protection = self.reading
        if writing:
            protection = replace(protection, signer=self.writing.signer, recipients=self.writing.recipients)
        return opened(self.repository, protection, self.cache.with_name("other-cache"))

    def states(self) -> list[Path]:
        """The files of all states, oldest first."""
        return sorted(
            path
            for path in (self.repository / "source").iterdir()
            if ".state." in path.name and ".sig" not in path.name
        )

    @staticmethod
    def signature(state: Path) -> Path:
        return state.with_name(f"{state.name.removesuffix('.age')}.sig")


@pytest.fixture(params=["plain", "encrypted"])
def signed(request: pytest.FixtureRequest, tmp_path: Path, source: Path, repository: Path) -> Signed:
    """With a full and an incremental."""
    age = make_age_key(tmp_path) if request.param == "encrypted" else None
    (source / "big").write_bytes(os.urandom(1 << 20))
    made = Signed(tmp_path, source, repository, age)
    made.backup()
    (source / "more").write_text("more")
    made.backup()
    return made


def assert_refused(signed: Signed, error: type[BackupError], match: str) -> None:
    assert any(re.search(match, damaged.message) for damaged in list_backups(signed.open()).damaged)
    with pytest.raises(error, match=match):
        restore_backup("source", signed.repository.with_name("restored"), repository=signed.open())
    report = verify(signed.open())
    assert any(fault.message for fault in report.faults)


def test_what_is_signed_is_read(signed: Signed, tmp_path: Path) -> None:
    restore_backup("source", tmp_path / "restored", repository=signed.open())
    assert_same_tree(signed.source, tmp_path / "restored")
    assert verify(signed.open(), read_data=True).faults == []
    assert len(list_backups(signed.open()).headers) == 2


def test_ssh_keygen_checks_the_unencrypted_state(signed: Signed, tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text(f"me {Path(f'{signed.key}.pub').read_text()}")
    for state in signed.states():
        plain = state.read_bytes()
        if state.suffix == ".age":
            command = ["age", "-d", "-i", tmp_path / "identity", state]
            plain = subprocess.run(command, capture_output=True, check=True).stdout
        command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "me", "-n", "ibt-state"]
        command += ["-s", Signed.signature(state)]
        subprocess.run(command, input=plain, capture_output=True, check=True)


def test_a_state_without_a_signature_is_refused(signed: Signed) -> None:
    Signed.signature(signed.states()[1]).unlink()
    assert_refused(signed, IntegrityError, "is not signed")


def test_an_unsigned_backup_by_somebody_else_is_refused(signed: Signed) -> None:
    signed.backup(Protection(recipients=signed.writing.recipients))
    assert_refused(signed, IntegrityError, "is not signed")


def test_a_backup_signed_by_somebody_else_is_refused(signed: Signed, tmp_path: Path) -> None:
    other = signer_of(make_ssh_key(tmp_path, "other"))
    signed.backup(replace(signed.writing, signer=other))
    assert_refused(signed, IntegrityError, "not among those to be trusted")


def test_a_signature_of_another_state_is_refused(signed: Signed) -> None:
    first, second = signed.states()
    shutil.copy(Signed.signature(first), Signed.signature(second))
    assert_refused(signed, IntegrityError, "changed after it was signed")


def test_a_state_under_another_backups_name_is_refused(signed: Signed) -> None:
    """Put to a later time, with its own signature: what is old must not pass for the newest."""
    state = signed.states()[0]
    for old in (state, Signed.signature(state)):
        shutil.copy(old, old.with_name(old.name.replace(old.name[:23], "29991231T235959.000000Z")))
    later = [path for path in (signed.repository / "source").iterdir() if path.name.startswith("2999")]
    assert len(later) == 2
    assert_refused(signed, StateFormatError, "holds the state of")


def test_a_signed_state_of_another_repository_is_refused(signed: Signed, tmp_path: Path) -> None:
    other = Signed.__new__(Signed)
    other.__dict__.update(signed.__dict__)
    other.repository, other.cache = tmp_path / "elsewhere", tmp_path / "elsewhere-cache"
    full_backup(other.source, other.repository, protection=other.writing, cache_root=other.cache)
    shutil.rmtree(signed.repository / "source")
    shutil.copytree(other.repository / "source", signed.repository / "source")
    assert_refused(signed, IntegrityError, "signed for another repository")


def test_damage_is_refused(signed: Signed) -> None:
    damage(Signed.signature(signed.states()[1]), flip_middle)
    assert_refused(signed, BackupError, "signature|signed|key")


def test_unsigned_reading_takes_no_notice(signed: Signed) -> None:
    for state in signed.states():
        Signed.signature(state).unlink()
    place = opened(signed.repository, replace(signed.reading, verifier=None), signed.cache)
    assert len(list_backups(place).headers) == 2


def test_the_report_names_signatures_before_their_state(signed: Signed) -> None:
    (signed.source / "again").write_text("again")
    report = signed.backup()
    assert [file.role for file in report.files][-2:] == ["state-signature", "state"]


def test_what_is_merged_and_rebased_is_signed_again(signed: Signed, tmp_path: Path) -> None:
    ids = [header.id for header in list_backups(signed.open()).headers]
    for number in range(2):
        (signed.source / f"file-{number}").write_text(str(number))
        ids.append(signed.backup().backup_date)
    merge_backups("source", ids[1], ids[2], repository=signed.open(writing=True))
    rebase_backup("source", ids[3], repository=signed.open(writing=True))
    assert verify(signed.open(), read_data=True).faults == []
    restore_backup("source", tmp_path / "restored", repository=signed.open())
    assert_same_tree(signed.source, tmp_path / "restored")


def test_going_back_in_time_is_reported(signed: Signed, tmp_path: Path) -> None:
    place = signed.open()
    history = History(place, "source")
    remember_newest(place.cache("source"), place, "source", history.newest_point())
    assert describe_rollback(place, history) is None
    newest = signed.states()[1]
    newest.unlink()
    Signed.signature(newest).unlink()
    sentence = describe_rollback(place, History(place, "source"))
    assert sentence is not None and newest.name[:23] in sentence
    assert any(newest.name[:23] in fault.message for fault in verify(place).faults)


def test_a_signature_alone_is_no_backup_and_is_in_nobodys_way(signed: Signed, tmp_path: Path) -> None:
    """A run that was killed between the two."""
    lost = signed.states()[1]
    lost.unlink()
    assert len(list_backups(signed.open()).headers) == 1
    report = signed.backup()
    assert report.backup_date not in lost.name
    restore_backup("source", tmp_path / "restored", repository=signed.open())
    assert_same_tree(signed.source, tmp_path / "restored")
