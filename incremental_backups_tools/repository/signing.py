"""Signatures of states in OpenSSH's format, which ``ssh-keygen -Y verify`` checks as well.

The format is OpenSSH's PROTOCOL.sshsig: an armoured block with the public key, a namespace and the signature of
a digest of the message. Who may sign is what the reader says: a public key, or a file of allowed signers as in
ssh-keygen(1).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from incremental_backups_tools.exceptions import FormatError, IntegrityError

NAMESPACE: Final = "ibt-state"
SIGNATURE_LEN_MAX: Final = 16 << 10

_MAGIC: Final = b"SSHSIG"
_BEGIN: Final = b"-----BEGIN SSH SIGNATURE-----"
_END: Final = b"-----END SSH SIGNATURE-----"
_COLUMNS: Final = 70
_HASH: Final = b"sha512"
_ED25519: Final = b"ssh-ed25519"
_RSA: Final = b"ssh-rsa"
_RSA_BITS: Final = range(2048, 16385)
_KEY_TYPES: Final = (_ED25519.decode(), _RSA.decode())
_OPTION: Final = re.compile(r'([a-z-]+)(?:="([^"]*)")?(?:,|$)')


class Signer:
    """Signs with a private key.

    Raises:
        FormatError: neither an Ed25519 key nor an RSA key of at least 2048 bits.
    """

    def __init__(self, key: Any, *, what: str) -> None:
        """Take a private key of the library ``cryptography``; *what* names it in messages."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        is_rsa = isinstance(key, RSAPrivateKey) and key.key_size in _RSA_BITS
        if not (is_rsa or isinstance(key, Ed25519PrivateKey)):
            raise FormatError(f"{what}: states are signed with Ed25519 keys, or RSA keys from 2048 bits on")
        self._key = key
        self._is_rsa = is_rsa
        text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        self.public_key: bytes = base64.b64decode(text.split(b" ")[1])

    def sign(self, digest: bytes) -> bytes:
        """The armoured signature of a message whose SHA-512 is *digest*."""
        message = _signed_bytes(NAMESPACE.encode(), _HASH, digest)
        if self._is_rsa:
            from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
            from cryptography.hazmat.primitives.hashes import SHA512

            signature = _string(b"rsa-sha2-512") + _string(self._key.sign(message, PKCS1v15(), SHA512()))
        else:
            signature = _string(_ED25519) + _string(self._key.sign(message))
        blob = _MAGIC + (1).to_bytes(4, "big") + _string(self.public_key)
        blob += _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH) + _string(signature)
        text = base64.b64encode(blob)
        lines = [text[at : at + _COLUMNS] for at in range(0, len(text), _COLUMNS)]
        return b"\n".join([_BEGIN, *lines, _END, b""])


class Verifier(msgspec.Struct, frozen=True):
    """Knows whose signatures count.

    Attributes:
        keys: public keys in SSH's wire format.
    """

    keys: frozenset[bytes]

    def check(self, armored: bytes, digests: Digests, *, what: str) -> None:
        """Make sure that *armored* is a signature of the message with these digests, by one of the keys.

        Raises:
            IntegrityError: it is not.
            FormatError: no signature at all.
        """
        blob = _parse_armor(armored, what)
        if blob.public_key not in self.keys:
            raise _refused(what, "is signed by a key that is not among those to be trusted")
        if blob.namespace != NAMESPACE.encode():
            raise _refused(what, f"is signed as {blob.namespace[:40]!r}, not as a state")
        digest = digests.of(blob.hash_name)
        if digest is None:
            raise FormatError(f"{what}: signed by way of an unknown digest")
        message = _signed_bytes(blob.namespace, blob.hash_name, digest)
        if not _is_right(blob.public_key, blob.signature, message):
            raise _refused(what, "was changed after it was signed")


class Digests:
    """The digests that a signature may be of, as the message goes by."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._hashers = {name: hashlib.new(name.decode()) for name in (b"sha512", b"sha256")}

    def update(self, data: bytes) -> None:
        """More of the message."""
        for hasher in self._hashers.values():
            hasher.update(data)

    def of(self, name: bytes) -> bytes | None:
        """The digest by that name; None for an unknown one."""
        hasher = self._hashers.get(name)
        return hasher.digest() if hasher is not None else None


class _Blob(msgspec.Struct, frozen=True):
    public_key: bytes
    namespace: bytes
    hash_name: bytes
    signature: bytes


def _refused(what: str, why: str) -> IntegrityError:
    return IntegrityError(f"{what}: {why}", path=what, expected="a signature", actual=None)


def _signed_bytes(namespace: bytes, hash_name: bytes, digest: bytes) -> bytes:
    return _MAGIC + _string(namespace) + _string(b"") + _string(hash_name) + _string(digest)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class _Wire:
    """Reads SSH's strings one after the other."""

    def __init__(self, data: bytes, what: str) -> None:
        self._rest = data
        self._what = what

    def take(self, length: int) -> bytes:
        if length > len(self._rest):
            raise FormatError(f"{self._what}: its signature was cut")
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))

    def end(self) -> None:
        if self._rest:
            raise FormatError(f"{self._what}: something follows its signature")


def _parse_armor(armored: bytes, what: str) -> _Blob:
    lines = armored.strip().splitlines()
    if len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        raise FormatError(f"{what}: not a signature in OpenSSH's format")
    text = b"".join(lines[1:-1])
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        data = b""
    if base64.b64encode(data) != text:  # the last letter may have bits that mean nothing
        raise FormatError(f"{what}: not a signature in OpenSSH's format")
    wire = _Wire(data, what)
    if wire.take(len(_MAGIC)) != _MAGIC or wire.take(4) != (1).to_bytes(4, "big"):
        raise FormatError(f"{what}: not a signature in version 1 of OpenSSH's format")
    public_key, namespace, _reserved, hash_name, signature = (wire.string() for _ in range(5))
    wire.end()
    return _Blob(public_key, namespace, hash_name, signature)


def _is_right(public_key: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.hashes import SHA256, SHA512

    wire = _Wire(signature, "signature")
    algorithm, raw = wire.string(), wire.string()
    wire.end()
    kind, key = _load_public_key(public_key)
    try:
        if kind == _ED25519 and algorithm == _ED25519:
            key.verify(raw, message)
            return True
        digests = {b"rsa-sha2-512": SHA512(), b"rsa-sha2-256": SHA256()}
        if kind == _RSA and algorithm in digests:
            key.verify(raw, message, PKCS1v15(), digests[algorithm])
            return True
    except InvalidSignature:
        pass
    return False


def _load_public_key(public_key: bytes) -> tuple[bytes, Any]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    kind = _Wire(public_key, "public key").string()
    try:
        return kind, load_ssh_public_key(kind + b" " + base64.b64encode(public_key))
    except (ValueError, UnsupportedAlgorithm):
        raise FormatError("a public key that cannot be read") from None


# --- who may sign ------------------------------------------------------------------------------------------


def parse_allowed_signers(data: bytes, *, what: str) -> tuple[bytes, ...]:
    """The keys in a file of allowed signers (ssh-keygen(1)) or of public keys, one a line.

    Every principal counts. Of the options only ``namespaces`` is understood.

    Raises:
        FormatError: a line is neither, or has an option that would not be heeded.
    """
    keys = []
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what}: not a text") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.strip().startswith("#"):
            key = _parse_signer(line.split(), f"{what}, line {number}")
            if key is not None:
                keys.append(key)
    if not keys:
        raise FormatError(f"{what}: no key in it")
    return tuple(keys)


def _parse_signer(words: Sequence[str], what: str) -> bytes | None:
    """The key in a line; None where it is for other namespaces."""
    is_ours = True
    if words[0] not in _KEY_TYPES:  # then it is a list of principals, and options may follow
        words = words[1:]
        if words and words[0] not in _KEY_TYPES:
            is_ours = _allows_namespace(words[0], what)
            words = words[1:]
    if len(words) < 2 or words[0] not in _KEY_TYPES:
        raise FormatError(f"{what}: not a public key of the kinds {', '.join(_KEY_TYPES)}")
    try:
        key = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        key = b""
    if not key.startswith(_string(words[0].encode())):
        raise FormatError(f"{what}: not an OpenSSH public key")
    _load_public_key(key)
    return key if is_ours else None


def _allows_namespace(options: str, what: str) -> bool:
    position, allowed = 0, True
    while position < len(options):
        match = _OPTION.match(options, position)
        if match is None or match[1] != "namespaces" or match[2] is None:
            raise FormatError(f"{what}: the options {options!r} are not supported, but namespaces")
        names = match[2].split(",")
        if any("*" in name or "?" in name or "!" in name for name in names):
            raise FormatError(f"{what}: patterns in namespaces are not supported")
        allowed = NAMESPACE in names
        position = match.end()
    return allowed
