"""Signatures that ssh-keygen makes are checked, and those that are made ssh-keygen checks."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from support.keys import make_ssh_key, signer_of, verifier_of

from incremental_backups_tools.exceptions import BackupError, FormatError, IntegrityError
from incremental_backups_tools.repository.signing import (
    NAMESPACE,
    Digests,
    Signer,
    Verifier,
    parse_allowed_signers,
)

MESSAGE = b"a state\n" * 1000


@pytest.fixture(params=["ed25519", "rsa"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    options = ("-t", "rsa", "-b", "2048") if request.param == "rsa" else ()
    return make_ssh_key(tmp_path, "signing", *options)


def digests_of(message: bytes) -> Digests:
    digests = Digests()
    digests.update(message)
    return digests


def sign(key: Path, message: bytes = MESSAGE) -> bytes:
    return signer_of(key).sign(hashlib.sha512(message).digest())


def sign_by_ssh_keygen(key: Path, *options: str, namespace: str = NAMESPACE) -> bytes:
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", namespace, *options]
    return subprocess.run(command, input=MESSAGE, capture_output=True, check=True).stdout


def test_ssh_keygen_takes_it(key: Path, tmp_path: Path) -> None:
    (tmp_path / "signature").write_bytes(sign(key))
    (tmp_path / "allowed").write_text(f"somebody {Path(f'{key}.pub').read_text()}")
    command = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "allowed", "-I", "somebody", "-n", NAMESPACE]
    command += ["-s", tmp_path / "signature"]
    assert subprocess.run(command, input=MESSAGE, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, input=MESSAGE + b"x", capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("options", [(), ("-O", "hashalg=sha256")], ids=["sha512", "sha256"])
def test_what_ssh_keygen_makes_is_taken(key: Path, options: tuple[str, ...]) -> None:
    signature = sign_by_ssh_keygen(key, *options)
    verifier_of(key).check(signature, digests_of(MESSAGE), what="it")
    with pytest.raises(IntegrityError, match="changed after it was signed"):
        verifier_of(key).check(signature, digests_of(MESSAGE + b"x"), what="it")


def test_a_signature_for_something_else_is_refused(key: Path) -> None:
    with pytest.raises(IntegrityError, match="not as a state"):
        verifier_of(key).check(sign_by_ssh_keygen(key, namespace="git"), digests_of(MESSAGE), what="it")


def test_another_key_is_refused(key: Path, tmp_path: Path) -> None:
    other = make_ssh_key(tmp_path, "other")
    with pytest.raises(IntegrityError, match="not among those to be trusted"):
        verifier_of(other).check(sign(key), digests_of(MESSAGE), what="it")
    verifier_of(other, key).check(sign(key), digests_of(MESSAGE), what="it")


def test_no_flipped_bit_is_taken(tmp_path: Path) -> None:
    key = make_ssh_key(tmp_path, "signing")
    verifier, whole = verifier_of(key), sign(key)
    for place in range(len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        if bytes(damaged).split() == whole.split():
            continue
        with pytest.raises(BackupError):
            verifier.check(bytes(damaged), digests_of(MESSAGE), what="it")
    for length in range(0, len(whole) - 2):
        with pytest.raises(BackupError):
            verifier.check(whole[:length], digests_of(MESSAGE), what="it")


def test_allowed_signers_as_ssh_keygen_reads_them(tmp_path: Path) -> None:
    keys = [make_ssh_key(tmp_path, f"key-{number}") for number in range(4)]
    public = [Path(f"{key}.pub").read_text().strip() for key in keys]
    data = "\n".join(
        (
            "# who may sign",
            f"me@here {public[0]}",
            f'me@here,you@there namespaces="git,{NAMESPACE}" {public[1]}',
            f'*@here namespaces="git" {public[2]}',
            public[3],
        )
    )
    trusted = parse_allowed_signers(data.encode(), what="it")
    assert frozenset(trusted) == verifier_of(keys[0], keys[1], keys[3]).keys


@pytest.mark.parametrize(
    "line",
    [
        "",
        "me@here",
        "me@here cert-authority {key}",
        'me@here valid-before="20200101" {key}',
        'me@here namespaces="*" {key}',
        "ssh-ed25519 AAAA",
        "sk-ssh-ed25519@openssh.com AAAA",
        "me@here {key}\nnonsense",
    ],
)
def test_an_allowed_signer_that_would_not_be_heeded_is_refused(tmp_path: Path, line: str) -> None:
    key = Path(f"{make_ssh_key(tmp_path, 'signing')}.pub").read_text().strip()
    with pytest.raises(FormatError):
        parse_allowed_signers(line.replace("{key}", key).encode(), what="it")


def test_keys_of_other_kinds_do_not_sign(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="Ed25519"):
        signer_of(make_ssh_key(tmp_path, "ecdsa", "-t", "ecdsa"))


def test_nobody_trusted_is_nobody(tmp_path: Path) -> None:
    signer: Signer = signer_of(make_ssh_key(tmp_path, "signing"))
    with pytest.raises(IntegrityError):
        Verifier(frozenset()).check(
            signer.sign(hashlib.sha512(MESSAGE).digest()), digests_of(MESSAGE), what="it"
        )
