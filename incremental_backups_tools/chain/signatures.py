"""Signing states, and reading only those that were signed by somebody to be trusted."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import BinaryIO, Final, cast

from blake3 import blake3

from incremental_backups_tools.chain.state import ArchiveFile
from incremental_backups_tools.exceptions import IntegrityError, ObjectNotFoundError
from incremental_backups_tools.repository.layout import ObjectName, Role
from incremental_backups_tools.repository.signing import SIGNATURE_LEN_MAX, Digests, Signer, Verifier
from incremental_backups_tools.repository.store import Store

_CHUNK_LEN: Final = 1 << 20
_MEMORY_LEN: Final = 8 << 20


def put_signature(store: Store, state: ObjectName, file: BinaryIO, signer: Signer) -> ArchiveFile:
    """Publish the signature of a state that is about to be published.

    Args:
        state: the state's name.
        file: its bytes, unencrypted.
    """
    digests = Digests()
    file.seek(0)
    while chunk := file.read(_CHUNK_LEN):
        digests.update(chunk)
    signature = signer.sign(digests.of(b"sha512") or b"")
    name = signature_name(state)
    store.create(name.path, signature)
    return ArchiveFile(name.file_name, str(name.role), len(signature), blake3(signature).hexdigest())


def open_verified(store: Store, state: ObjectName, verifier: Verifier) -> BinaryIO:
    """A copy of a state whose signature is right: what is read is what was checked.

    Raises:
        IntegrityError: it is not signed, or not by a key to be trusted, or was changed since.
        FormatError: what stands as its signature is none.
        RepositoryError: it cannot be read.
    """
    try:
        signature = store.read(signature_name(state).path, max_size=SIGNATURE_LEN_MAX)
    except ObjectNotFoundError:
        raise IntegrityError(
            f"{state.path}: is not signed", path=state.path, expected="a signature", actual=None
        ) from None
    digests = Digests()
    file = tempfile.SpooledTemporaryFile(_MEMORY_LEN, prefix="ibt-state-")
    try:
        with store.open(state.path) as stored:
            while chunk := stored.read(_CHUNK_LEN):
                digests.update(chunk)
                file.write(chunk)
        verifier.check(signature, digests, what=state.path)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)


def signature_name(state: ObjectName) -> ObjectName:
    """The name of a state's signature."""
    return replace(state, role=Role.STATE_SIGNATURE, encrypted=False)
