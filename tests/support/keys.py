"""Keys for tests: age identities, OpenSSH keys, and repositories that are opened with them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from incremental_backups_tools.repository.identities import (
    generate_identity,
    parse_identities,
    parse_ssh_private_key,
)
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.repository import Repository
from incremental_backups_tools.repository.signing import Signer, Verifier, parse_allowed_signers


@dataclass(frozen=True)
class AgeKey:
    """An age identity in a file."""

    file: Path
    recipient: str

    @property
    def writing(self) -> Protection:
        """What a machine has that only backs up."""
        return Protection(recipients=(self.recipient,))

    @property
    def reading(self) -> Protection:
        """What a machine has that only restores."""
        return Protection(identities=parse_identities(self.file.read_bytes(), what=str(self.file)))

    @property
    def both(self) -> Protection:
        """What a machine has that also merges and prunes."""
        return Protection(recipients=(self.recipient,), identities=self.reading.identities)


def make_age_key(directory: Path, name: str = "identity") -> AgeKey:
    """A new identity in *directory*."""
    identity, recipient = generate_identity()
    file = directory / name
    file.write_text(f"# public key: {recipient}\n{identity}\n")
    file.chmod(0o600)
    return AgeKey(file, recipient)


def make_ssh_key(directory: Path, name: str, *options: str, passphrase: str = "") -> Path:
    """A new key by ssh-keygen, Ed25519 unless *options* say otherwise; its public half is beside it."""
    path = directory / name
    kind = options or ("-t", "ed25519")
    subprocess.run(
        ["ssh-keygen", "-q", *kind, "-N", passphrase, "-C", "somebody@somewhere", "-f", path], check=True
    )
    return path


def signer_of(key: Path) -> Signer:
    """What signs with an OpenSSH key."""
    return Signer(parse_ssh_private_key(key.read_bytes(), what=str(key)), what=str(key))


def verifier_of(*keys: Path) -> Verifier:
    """What trusts the public halves of OpenSSH keys."""
    return Verifier(
        frozenset(
            public
            for key in keys
            for public in parse_allowed_signers(Path(f"{key}.pub").read_bytes(), what=str(key))
        )
    )


def opened(repository: Path, protection: Protection, cache: Path) -> Repository:
    """A repository as a machine opens it that has *protection* and the cache directory *cache*."""
    return Repository.open(repository, protection=protection, cache_root=cache)
