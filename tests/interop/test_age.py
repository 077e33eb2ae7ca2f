"""Files that age writes are read, and what is written age reads: https://age-encryption.org."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from pathlib import Path

import pytest
from support.keys import make_age_key, make_ssh_key

from incremental_backups_tools.exceptions import DecryptionError
from incremental_backups_tools.repository.age import Identity, Passphrase, open_small, seal_with_passphrase
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.identities import parse_identities, parse_recipient
from incremental_backups_tools.repository.local import LocalStore

NAME = "key/20261120T072531.123456Z.full.0000.tar.zst.age"
CHUNK = 64 << 10
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_000_000)


def identities_of(path: Path) -> tuple[Identity, ...]:
    return parse_identities(path.read_bytes(), what=str(path))


def store_of(place: Path, *, recipients: list[str], identity: Path | None) -> AgeStore:
    place.mkdir(exist_ok=True)
    identities = identities_of(identity) if identity is not None else ()
    return AgeStore(LocalStore(place), recipients=recipients, identities=identities, copies=None)


@pytest.fixture(params=["age", "ssh-ed25519", "ssh-rsa"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """An identity's file and its recipient."""
    if request.param == "age":
        made = make_age_key(tmp_path)
        return made.file, made.recipient
    options = ("-t", "rsa", "-b", "2048") if request.param == "ssh-rsa" else ()
    path = make_ssh_key(tmp_path, "ssh", *options)
    return path, parse_recipient(Path(f"{path}.pub").read_text())


@pytest.mark.parametrize("size", SIZES)
def test_age_opens_what_is_written(key: tuple[Path, str], tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    store_of(tmp_path / "r", recipients=[key[1]], identity=None).create(NAME, content)
    done = subprocess.run(["age", "-d", "-i", key[0], tmp_path / "r" / NAME], capture_output=True, check=True)
    assert done.stdout == content


@pytest.mark.parametrize("size", SIZES)
def test_what_age_writes_is_read_at_any_place(key: tuple[Path, str], tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "r" / "key").mkdir(parents=True)
    other = make_age_key(tmp_path, "other").recipient
    command = ["age", "-r", other, "-r", key[1], "-o", tmp_path / "r" / NAME]
    subprocess.run(command, input=content, check=True)
    store = store_of(tmp_path / "r", recipients=[], identity=key[0])
    assert store.size(NAME) == size
    with store.open(NAME) as file:
        assert file.read() == content
    for offset, length in (
        (0, size),
        (size // 2, size - size // 2),
        (size, 0),
        (max(0, size - 1), size and 1),
    ):
        assert store.read_range(NAME, offset, length) == content[offset : offset + length]


def test_another_identity_opens_nothing(key: tuple[Path, str], tmp_path: Path) -> None:
    store_of(tmp_path / "r", recipients=[key[1]], identity=None).create(NAME, b"secret")
    for other in (make_age_key(tmp_path, "other").file, make_ssh_key(tmp_path, "other-ssh")):
        with pytest.raises(DecryptionError, match="not encrypted to this identity"):
            store_of(tmp_path / "r", recipients=[], identity=other).read(NAME)


def test_several_recipients_each_open_it(tmp_path: Path) -> None:
    keys = [make_age_key(tmp_path, f"identity-{number}") for number in range(3)]
    ssh = make_ssh_key(tmp_path, "ssh")
    recipients = [key.recipient for key in keys] + [parse_recipient(Path(f"{ssh}.pub").read_text())]
    store_of(tmp_path / "r", recipients=recipients, identity=None).create(NAME, b"for four")
    for file in [key.file for key in keys] + [ssh]:
        assert store_of(tmp_path / "r", recipients=[], identity=file).read(NAME) == b"for four"


def test_ssh_keys_with_a_passphrase_are_asked_for_it(tmp_path: Path) -> None:
    path = make_ssh_key(tmp_path, "ssh", passphrase="horse")
    recipient = parse_recipient(Path(f"{path}.pub").read_text())
    store_of(tmp_path / "r", recipients=[recipient], identity=None).create(NAME, b"secret")
    asked = []

    def ask(what: str) -> str:
        asked.append(what)
        return "horse"

    identities = parse_identities(path.read_bytes(), what="my key", ask=ask)
    store = AgeStore(LocalStore(tmp_path / "r"), recipients=[], identities=identities, copies=None)
    assert store.read(NAME) == b"secret"
    assert asked == ["my key"]
    with pytest.raises(DecryptionError, match="my key: wrong passphrase"):
        parse_identities(path.read_bytes(), what="my key", ask=lambda what: "battery")
    with pytest.raises(DecryptionError, match="nobody can be asked"):
        parse_identities(path.read_bytes(), what="my key")


def run_age_with_passphrase(arguments: list[str | Path], answer: str) -> None:
    """Run age, which asks for passphrases on its terminal alone."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("age", ["age", *map(str, arguments)])

    def drain() -> None:
        try:
            while os.read(terminal, 4096):
                pass
        except OSError:  # the last process on the other side is gone
            return

    for _ in range(2):
        os.read(terminal, 4096)
        os.write(terminal, answer.encode() + b"\n")
        if "-d" in arguments:
            break
    reader = threading.Thread(target=drain)
    reader.start()
    _, status = os.waitpid(pid, 0)
    reader.join()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("options", [[], ["-a"]], ids=["binary", "armoured"])
def test_an_identity_that_age_has_encrypted_is_opened(tmp_path: Path, options: list[str | Path]) -> None:
    key = make_age_key(tmp_path)
    sealed = tmp_path / "identity.age"
    run_age_with_passphrase(["-p", *options, "-o", sealed, key.file], "correct horse")
    found = parse_identities(sealed.read_bytes(), what="it", ask=lambda what: "correct horse")
    assert found == identities_of(key.file)
    with pytest.raises(DecryptionError, match="it: wrong passphrase"):
        parse_identities(sealed.read_bytes(), what="it", ask=lambda what: "battery")


def test_age_opens_what_is_sealed_with_a_passphrase(tmp_path: Path) -> None:
    (tmp_path / "sealed").write_bytes(seal_with_passphrase(b"identity", "correct horse", power=10))
    run_age_with_passphrase(["-d", "-o", tmp_path / "opened", tmp_path / "sealed"], "correct horse")
    assert (tmp_path / "opened").read_bytes() == b"identity"
    sealed = (tmp_path / "sealed").read_bytes()
    assert open_small(sealed, (Passphrase("correct horse"),), what="it") == b"identity"
