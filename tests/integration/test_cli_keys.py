"""Sessions with the command on encrypted and signed repositories, and with the cache."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import PROGRAM, command_environment, content_of, run_ibt
from support.keys import AgeKey, make_age_key, make_ssh_key
from support.trees import assert_same_tree

WRONG_IDENTITY = 12


@pytest.fixture(autouse=True)
def in_own_repository(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.setenv("IBT_REPOSITORY", str(repository))


@pytest.fixture
def key(tmp_path: Path) -> AgeKey:
    return make_age_key(tmp_path)


@pytest.fixture
def tree(source: Path) -> Path:
    (source / "big").write_bytes(os.urandom(1 << 20))
    (source / "small").write_text("small\n")
    return source


def forget_cache() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])


def run_and_answer(arguments: list[str | Path], answers: list[str], expected: int = 0) -> str:
    """Run it on a terminal of its own and type each answer when it asks; return all that it showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*PROGRAM, *map(str, arguments)], command_environment())
    shown, left, deadline = "", list(answers), time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 60)[0]:
            break
        try:
            data = os.read(terminal, 4096)
        except OSError:  # the last process on the other side is gone
            break
        if not data:
            break
        shown += data.decode(errors="replace")
        if left and re.search(r"(Passphrase of .*|confirmation): $", shown):
            shown += "\n"
            os.write(terminal, left.pop(0).encode() + b"\n")
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == expected, shown
    assert left == []
    return shown


# --- encrypted -----------------------------------------------------------------------------------------------


def test_a_session_without_a_secret_and_one_with_it(tree: Path, key: AgeKey, tmp_path: Path) -> None:
    assert "full backup" in run_ibt("backup", "--recipient", key.recipient, tree).lines[-1]
    (tree / "more").write_text("more")
    assert "incremental backup" in run_ibt("backup", "--recipient", key.recipient, tree).lines[-1]
    assert len(run_ibt("list", "--json").document["backups"]) == 2
    assert "more" in run_ibt("ls", "source").stdout
    forget_cache()
    refused = run_ibt("list", status=WRONG_IDENTITY)
    assert "--identity" in refused.error
    assert len(run_ibt("list", "--json", "--identity", key.file).document["backups"]) == 2
    assert "more" in run_ibt("ls", "--identity", key.file, "source").stdout
    assert run_ibt("find", "--identity", key.file, "more").lines
    assert run_ibt("diff", "--identity", key.file, "source", tree).stdout == ""
    run_ibt("verify", "--read-data", "--identity", key.file)
    run_ibt("restore", "--identity", key.file, "source", tmp_path / "restored")
    assert_same_tree(tree, tmp_path / "restored")


def test_the_wrong_identity_is_one_line_and_a_status_of_its_own(
    tree: Path, key: AgeKey, tmp_path: Path
) -> None:
    run_ibt("backup", "--recipient", key.recipient, tree)
    other = make_age_key(tmp_path, "other").file
    for arguments in (
        ["list"],
        ["ls", "source"],
        ["verify"],
        ["restore", "source", tmp_path / "restored"],
        ["salvage", tmp_path / "saved"],
        ["key", "rewrap", "--recipient", key.recipient],
    ):
        refused = run_ibt(*arguments, "--identity", other, status=WRONG_IDENTITY)
        assert "not encrypted to this identity" in refused.error
    assert not (tmp_path / "restored").exists()
    forget_cache()
    assert "name an identity" in run_ibt("ls", "source", status=WRONG_IDENTITY).error


def test_what_needs_an_identity_says_so_before_any_work(tree: Path, key: AgeKey, repository: Path) -> None:
    recipient = ("--recipient", key.recipient)
    arguments = ("backup", *recipient, "--keep-last", "1", tree)
    run_ibt(*arguments, status=WRONG_IDENTITY)
    assert not repository.exists()
    run_ibt("backup", *recipient, tree)
    before = content_of(repository)
    for command in (
        arguments,
        ("prune", *recipient, "source"),
        ("rebase", *recipient, "source"),
        ("key", "rewrap", *recipient),
    ):
        assert "needs an identity" in run_ibt(*command, status=WRONG_IDENTITY).error
    assert content_of(repository) == before
    run_ibt(*arguments, "--identity", key.file)


def test_a_run_without_recipients_is_refused(tree: Path, key: AgeKey, repository: Path) -> None:
    run_ibt("backup", "--recipient", key.recipient, tree)
    before = content_of(repository)
    assert "--recipient" in run_ibt("backup", tree, status=1).error
    assert "--recipient" in run_ibt("backup", "--full", tree, status=1).error
    assert content_of(repository) == before


def test_keys_by_environment(tree: Path, key: AgeKey, tmp_path: Path) -> None:
    second = make_age_key(tmp_path, "second")
    (tmp_path / "recipients").write_text(f"# both\n{key.recipient}\n{second.recipient}\n")
    run_ibt("backup", tree, env={"IBT_RECIPIENTS_FILE": str(tmp_path / "recipients")})
    forget_cache()
    for file in (key.file, second.file):
        run_ibt("verify", env={"IBT_IDENTITY": str(file)})
    other = make_age_key(tmp_path, "other").file
    run_ibt("verify", env={"IBT_IDENTITY": f"{other}:{key.file}"})


def test_no_secret_stands_in_an_error(tree: Path, key: AgeKey, tmp_path: Path) -> None:
    run_ibt("backup", "--recipient", key.recipient, tree)
    secret = key.file.read_text().splitlines()[1]
    (tmp_path / "wrong").write_text(secret[:-1] + ("Q" if secret[-1] != "Q" else "P"))
    refused = run_ibt("verify", "--identity", tmp_path / "wrong", status=1)
    assert secret[20:40] not in refused.stderr
    assert "not an identity" in refused.error
    refused = run_ibt("backup", "--recipient", secret, tree, status=1)
    assert secret[20:40] not in refused.stderr
    assert "cannot read" in run_ibt("verify", "--identity", tmp_path / "missing", status=1).error


def test_a_passphrase_out_of_a_file(tree: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery\n")
    run_ibt("backup", "--passphrase-file", tmp_path / "passphrase", tree)
    (tree / "more").write_text("more")
    assert "incremental" in run_ibt("backup", "--passphrase-file", tmp_path / "passphrase", tree).stdout
    refused = run_ibt("list", "--passphrase-file", tmp_path / "wrong", status=WRONG_IDENTITY)
    assert "wrong passphrase" in refused.error
    forget_cache()
    run_ibt("restore", "--passphrase-file", tmp_path / "passphrase", "source", tmp_path / "restored")
    assert_same_tree(tree, tmp_path / "restored")
    assert "no terminal" in run_ibt("list", "--passphrase", status=1).error


def test_a_person_is_asked_for_the_passphrase_and_a_new_one_twice(tree: Path, tmp_path: Path) -> None:
    run_and_answer(["backup", "--passphrase", tree], ["correct horse", "correct horse"])
    shown = run_and_answer(["list", "--passphrase"], ["correct horse"])
    assert "horse" not in shown
    run_and_answer(["list", "--passphrase"], ["battery"], WRONG_IDENTITY)


def test_an_ssh_key_with_a_passphrase_asks_for_it(tree: Path, tmp_path: Path) -> None:
    ssh = make_ssh_key(tmp_path, "ssh", passphrase="correct horse")
    run_ibt("backup", "--recipients-file", f"{ssh}.pub", tree)
    forget_cache()
    run_and_answer(["restore", "--identity", ssh, "source", tmp_path / "restored"], ["correct horse"])
    assert_same_tree(tree, tmp_path / "restored")
    run_and_answer(["list", "--identity", ssh], ["battery"], WRONG_IDENTITY)
    assert "nobody can be asked" in run_ibt("list", "--identity", ssh, status=WRONG_IDENTITY).error


# --- recipients ----------------------------------------------------------------------------------------------


def test_recipients_are_kept_on_this_machine_and_nowhere_else(
    tree: Path, key: AgeKey, repository: Path, tmp_path: Path
) -> None:
    made = run_ibt("key", "new", tmp_path / "new-identity")
    assert (tmp_path / "new-identity").stat().st_mode & 0o777 == 0o600
    (recipient,) = made.lines
    run_ibt("key", "new", tmp_path / "new-identity", status=1)
    run_ibt("backup", "--recipient", key.recipient, tree)
    before = content_of(repository)
    assert run_ibt("key", "list").lines == []
    run_ibt("key", "add", "--recipient", key.recipient)
    assert run_ibt("key", "add", "--recipient", recipient).lines == [key.recipient, recipient]
    assert content_of(repository) == before
    (tree / "more").write_text("more")
    run_ibt("backup", tree)  # without an option
    run_ibt("key", "remove", "--recipient", key.recipient)
    assert run_ibt("key", "list", "--json").document == {"recipients": [recipient]}
    assert "not among" in run_ibt("key", "remove", "--recipient", key.recipient, status=2).error
    run_ibt("key", "add", status=2)
    done = run_ibt("key", "rewrap", "--identity", key.file)
    assert "2 backups encrypted again" in done.stdout
    run_ibt("prune", "--identity", tmp_path / "new-identity", "source")
    run_ibt("verify", "--read-data", "--identity", tmp_path / "new-identity")
    run_ibt("list", "--identity", key.file, status=WRONG_IDENTITY)
    (tree / "more").write_text("and more")
    assert "incremental" in run_ibt("backup", tree).stdout


def test_a_repository_that_was_encrypted_once_is_never_written_to_in_plain(
    tree: Path, key: AgeKey, repository: Path
) -> None:
    """Its owner may say that it is plain, or put another one, or nothing, in its place."""
    run_ibt("backup", "--recipient", key.recipient, tree)
    run_ibt("key", "add", "--recipient", key.recipient)
    config = (repository / "ibt.json").read_text()
    for changed in (
        config.replace('"age"', '"none"'),
        re.sub('"id":"[0-9a-f]*"', f'"id":"{"0" * 32}"', config).replace('"age"', '"none"'),
    ):
        (repository / "ibt.json").write_text(changed)
        before = content_of(repository)
        assert "is not encrypted" in run_ibt("backup", tree, status=1).error
        assert content_of(repository) == before
    shutil.rmtree(repository)
    run_ibt("backup", tree)
    assert '"age"' in (repository / "ibt.json").read_text()
    run_ibt("verify", "--identity", key.file)


def test_a_plain_repository_has_no_recipients(tree: Path, key: AgeKey) -> None:
    run_ibt("backup", tree)
    assert "not encrypted" in run_ibt("key", "add", "--recipient", key.recipient, status=1).error
    assert "not encrypted" in run_ibt("backup", "--recipient", key.recipient, tree, status=1).error


# --- signatures ----------------------------------------------------------------------------------------------


def test_signing_and_checking(tree: Path, tmp_path: Path, repository: Path) -> None:
    key = make_ssh_key(tmp_path, "signing")
    run_ibt("backup", "--sign-key", key, tree)
    (tmp_path / "allowed").write_text(f'me@here namespaces="ibt-state" {Path(f"{key}.pub").read_text()}')
    run_ibt("verify", "--verify-key", tmp_path / "allowed")
    run_ibt("restore", "--verify-key", f"{key}.pub", "source", tmp_path / "restored")
    run_ibt("list", env={"IBT_VERIFY_KEY": f"{key}.pub"})
    (tree / "more").write_text("more")
    assert "will not be (--sign-key)" in run_ibt("backup", tree).stderr
    refused = run_ibt("restore", "--verify-key", f"{key}.pub", "source", tmp_path / "again", status=1)
    assert "is not signed" in refused.error
    assert not (tmp_path / "again").exists()
    assert "is not signed" in run_ibt("list", "--verify-key", f"{key}.pub", status=1).stderr


def test_a_repository_put_back_in_time_is_warned_of(tree: Path, repository: Path, tmp_path: Path) -> None:
    run_ibt("backup", tree)
    shutil.copytree(repository, tmp_path / "older")
    (tree / "more").write_text("more")
    run_ibt("backup", tree)
    shutil.rmtree(repository)
    shutil.copytree(tmp_path / "older", repository)
    for arguments in (["list"], ["ls", "source"], ["restore", "source", tmp_path / "restored"]):
        assert "put back to an older state" in run_ibt(*arguments).stderr
    assert "put back to an older state" in run_ibt("verify", status=1).stderr
    assert "put back to an older state" in run_ibt("backup", tree).stderr
    assert run_ibt("verify").stderr == ""


# --- the cache -----------------------------------------------------------------------------------------------


def test_the_cache_is_listed_and_removed(tree: Path, repository: Path, tmp_path: Path) -> None:
    assert run_ibt("cache", "ls").stdout == ""
    run_ibt("backup", tree)
    run_ibt("backup", "--key", "other", tree)
    run_ibt("-r", tmp_path / "second", "backup", tree)
    records = run_ibt("cache", "ls", "--json").document["caches"]
    assert sorted(record["key"] for record in records) == ["other", "source", "source"]
    assert all(record["bytes"] > 0 for record in records)
    mine = [record for record in records if record["url"] == str(repository)]
    assert len(mine) == 2
    run_ibt("cache", "rm", f"{mine[0]['repository']}/other")
    assert len(run_ibt("cache", "ls").lines) == 2
    run_ibt("cache", "rm", mine[0]["repository"])
    (line,) = run_ibt("cache", "ls").lines
    assert str(tmp_path / "second") in line
    run_ibt("cache", "rm", status=2)
    run_ibt("cache", "rm", "0" * 32, status=2)
    run_ibt("cache", "rm", "--all")
    assert run_ibt("cache", "ls").stdout == ""
    (tree / "more").write_text("more")
    assert "incremental" in run_ibt("backup", tree).stdout


# --- nobody waits for what he does not use -------------------------------------------------------------------


def test_plain_repositories_load_no_cryptography(tree: Path) -> None:
    run_ibt("backup", tree)
    script = (
        "import sys\nfrom incremental_backups_tools.cli import main\nstatus = main(['list'])\n"
        "assert status == 0\nassert not {'pyrage', 'cryptography'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], env=command_environment(), check=True, capture_output=True)
