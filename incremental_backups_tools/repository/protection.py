"""What of secrets and keys one run has: whom it encrypts to, what it can open, what it signs with, whom it trusts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from incremental_backups_tools.repository.age import Identity
from incremental_backups_tools.repository.signing import Signer, Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """The keys of one run. They come from the client's own configuration, never from the repository.

    Attributes:
        recipients: whom new files are encrypted to: ``age1…``, ``ssh-ed25519 …`` or ``ssh-rsa …``. A repository
            that is made with any, or with a passphrase, is encrypted for good.
        recipients_of: asked for the recipients that were kept for a repository, by its id, None where it is yet to
            be made, and its URL, where there are none here.
        passphrase: opens the repository's own key, ``ibt.key.age``.
        identities: what opens files.
        signer: signs each new state.
        verifier: refuses states that none of its keys has signed.
    """

    recipients: tuple[str, ...] = ()
    recipients_of: Callable[[str | None, str], tuple[str, ...]] | None = None
    passphrase: str | None = field(default=None, repr=False)
    identities: tuple[Identity, ...] = ()
    signer: Signer | None = None
    verifier: Verifier | None = None

    @property
    def wants_encryption(self) -> bool:
        """Whether what is written is to be encrypted."""
        return bool(self.recipients) or self.passphrase is not None


NO_PROTECTION = Protection()
