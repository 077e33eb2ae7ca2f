"""A repository's own key, which a passphrase opens: ``ibt.key.age`` at its top.

It is an age identity, encrypted with the passphrase as ``age -p`` does it, so that ``age -d -i ibt.key.age`` opens
every file. Files are encrypted to the identity's recipient: a passphrase on each of them would cost a second of
scrypt a file. Whoever has the store may try passphrases, and can neither read the key nor put another in its
place: without the passphrase nothing is made that the passphrase opens.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from incremental_backups_tools.exceptions import (
    DecryptionError,
    FormatError,
    ObjectExistsError,
    ObjectNotFoundError,
    RepositoryError,
)
from incremental_backups_tools.repository.age import Passphrase, open_small, seal_with_passphrase
from incremental_backups_tools.repository.identities import (
    generate_identity,
    parse_identities,
    recipient_of,
)
from incremental_backups_tools.repository.layout import KEY_NAME, LOCKS_DIRECTORY
from incremental_backups_tools.repository.protection import Protection
from incremental_backups_tools.repository.store import Store

_KEY_FILE_LEN_MAX = 64 << 10


def with_own_key(store: Store, protection: Protection, *, create: bool) -> Protection:
    """*protection* with the identity and the recipient that its passphrase opens; itself without a passphrase.

    Args:
        create: make the key in a repository that has nothing yet.

    Raises:
        DecryptionError: the passphrase is wrong.
        RepositoryError: there is no such key; the store failed.
    """
    if protection.passphrase is None:
        return protection
    try:
        sealed = store.read(KEY_NAME, max_size=_KEY_FILE_LEN_MAX)
    except ObjectNotFoundError:
        # One that is gone is not made anew: what it opened would be lost without a word.
        if not create or any(name != LOCKS_DIRECTORY for name in store.list_directories()):
            raise RepositoryError(
                f"{store.url} has no {KEY_NAME}: no passphrase opens it, an identity does (--identity)"
            ) from None
        sealed = _create(store, protection.passphrase)
    what = f"{KEY_NAME} in {store.url}"
    try:
        content = open_small(sealed, (Passphrase(protection.passphrase),), what=what)
    except DecryptionError:
        raise DecryptionError(f"{what}: wrong passphrase") from None
    lines = [line for line in content.decode("ascii", "replace").splitlines() if not line.startswith("#")]
    if len(lines) != 1:
        raise FormatError(f"{what}: holds {len(lines)} identities, expected one")
    recipient = recipient_of(lines[0])
    return replace(
        protection,
        recipients=(*protection.recipients, recipient),
        identities=(*parse_identities(content, what=what), *protection.identities),
    )


def _create(store: Store, passphrase: str) -> bytes:
    identity, recipient = generate_identity()
    content = f"# public key: {recipient}\n{identity}\n".encode("ascii")
    # Where another process was faster, its key is this repository's.
    with suppress(ObjectExistsError):
        store.create(KEY_NAME, seal_with_passphrase(content, passphrase))
    return store.read(KEY_NAME, max_size=_KEY_FILE_LEN_MAX)
