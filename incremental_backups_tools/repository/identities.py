"""What opens encrypted files: age's own identities and OpenSSH's keys; and whom files are encrypted to.

How each kind wraps a file's key stands in https://c2sp.org/age. Decoding and arithmetic alone: reading key files
and asking for passphrases is for the caller.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from incremental_backups_tools.exceptions import DecryptionError, FormatError
from incremental_backups_tools.repository.age import (
    ARMOR,
    FILE_KEY_LEN,
    MAGIC,
    Identity,
    Passphrase,
    Stanza,
    decode_argument,
    hkdf,
    open_small,
    unseal,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

# Asks a person for the passphrase of what is named; None where nobody can be asked.
AskPassphrase = Callable[[str], str]

KEY_FILE_LEN_MAX: Final = 1 << 20
_SSH_PRIVATE: Final = b"-----BEGIN"
_SECRET_PREFIX: Final = "AGE-SECRET-KEY-"
_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_GENERATOR: Final = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_RSA_BITS_MIN: Final = 2048
_X25519_LABEL: Final = b"age-encryption.org/v1/X25519"
_SSH_ED25519_LABEL: Final = b"age-encryption.org/v1/ssh-ed25519"
_SSH_RSA_LABEL: Final = b"age-encryption.org/v1/ssh-rsa"


@dataclass(frozen=True, slots=True)
class X25519Identity:
    """age's own kind, ``AGE-SECRET-KEY-1…``."""

    secret: bytes = field(repr=False)

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As :meth:`Identity.unwrap`."""
        if stanza.kind != "X25519" or len(stanza.arguments) != 1:
            return None
        share = decode_argument(stanza.arguments[0])
        shared = None if share is None else _exchange(self.secret, share)
        if share is None or shared is None:
            return None
        salt = share + _public(self.secret)
        return unseal(hkdf(shared, salt=salt, info=_X25519_LABEL), stanza.body)


class SshEd25519Identity:
    """An Ed25519 key of OpenSSH, used for Diffie-Hellman over Curve25519."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Take a private key."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        self._secret = hashlib.sha512(seed).digest()[:32]
        self._wire = _wire_of(key.public_key())
        self._tag = hashlib.sha256(self._wire).digest()[:4]

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As :meth:`Identity.unwrap`."""
        if stanza.kind != "ssh-ed25519" or len(stanza.arguments) != 2:
            return None
        tag, share = map(decode_argument, stanza.arguments)
        if tag != self._tag or share is None:
            return None
        inner = _exchange(self._secret, share)
        tweak = hkdf(b"", salt=self._wire, info=_SSH_ED25519_LABEL)
        shared = None if inner is None else _exchange(tweak, inner)
        if shared is None:
            return None
        salt = share + _public(self._secret)
        return unseal(hkdf(shared, salt=salt, info=_SSH_ED25519_LABEL), stanza.body)


class SshRsaIdentity:
    """An RSA key of OpenSSH."""

    def __init__(self, key: RSAPrivateKey) -> None:
        """Take a private key."""
        self._key = key
        self._tag = hashlib.sha256(_wire_of(key.public_key())).digest()[:4]

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As :meth:`Identity.unwrap`."""
        from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
        from cryptography.hazmat.primitives.hashes import SHA256

        if stanza.kind != "ssh-rsa" or len(stanza.arguments) != 1:
            return None
        if decode_argument(stanza.arguments[0]) != self._tag:
            return None
        try:
            file_key = self._key.decrypt(stanza.body, OAEP(MGF1(SHA256()), SHA256(), _SSH_RSA_LABEL))
        except ValueError:
            return None
        return file_key if len(file_key) == FILE_KEY_LEN else None


def parse_identities(data: bytes, *, what: str, ask: AskPassphrase | None = None) -> tuple[Identity, ...]:
    """The identities in a key file: lines of age's, an age file with such lines in it, or an OpenSSH private key.

    Args:
        what: the file, for messages.
        ask: for the passphrase, where one is needed.

    Raises:
        FormatError: none of these, or damaged.
        DecryptionError: it needs a passphrase and *ask* is None, or the passphrase is wrong.
    """
    start = data.lstrip()
    if start.startswith((MAGIC, ARMOR)):
        passphrase = _asked(ask, what)
        try:
            data = open_small(data, (Passphrase(passphrase),), what=what)
        except DecryptionError:
            raise DecryptionError(f"{what}: wrong passphrase") from None
        start = data.lstrip()
    if start.startswith(_SSH_PRIVATE):
        return (_ssh_identity(parse_ssh_private_key(data, what=what, ask=ask), what),)
    found: list[Identity] = []
    for number, line in enumerate(_lines(data, what), 1):
        if line:
            found.append(_x25519_identity(line, f"{what}, line {number}"))
    if not found:
        raise FormatError(f"{what}: no identity in it")
    return tuple(found)


def parse_ssh_private_key(data: bytes, *, what: str, ask: AskPassphrase | None = None) -> Any:
    """A private key as OpenSSH or PEM store it.

    Raises:
        FormatError: none, or damaged.
        DecryptionError: as :func:`parse_identities`.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    load = load_ssh_private_key if b"BEGIN OPENSSH PRIVATE KEY" in data[:256] else load_pem_private_key
    try:
        return load(data, None)
    except TypeError:
        pass  # it is encrypted
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(f"{what}: not a private key that can be read: {error}") from None
    passphrase = _asked(ask, what)
    try:
        return load(data, passphrase.encode())
    except UnsupportedAlgorithm as error:
        raise FormatError(f"{what}: not a private key that can be read: {error}") from None
    except (ValueError, TypeError):
        raise DecryptionError(f"{what}: wrong passphrase") from None


def _asked(ask: AskPassphrase | None, what: str) -> str:
    if ask is None:
        raise DecryptionError(f"{what}: needs a passphrase, and nobody can be asked for it")
    return ask(what)


def _ssh_identity(key: Any, what: str) -> Identity:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    if isinstance(key, Ed25519PrivateKey):
        return SshEd25519Identity(key)
    if isinstance(key, RSAPrivateKey) and key.key_size >= _RSA_BITS_MIN:
        return SshRsaIdentity(key)
    raise FormatError(f"{what}: age takes Ed25519 keys and RSA keys from {_RSA_BITS_MIN} bits on")


def _x25519_identity(line: str, what: str) -> X25519Identity:
    if line.startswith("AGE-PLUGIN-") or line.startswith(f"{_SECRET_PREFIX}PQ-"):
        raise FormatError(f"{what}: identities of plugins and post-quantum ones are not supported")
    try:
        prefix, secret = decode_bech32(line)
    except ValueError as error:
        raise FormatError(f"{what}: not an identity: {error}") from None
    if prefix != _SECRET_PREFIX.lower() or len(secret) != 32:
        raise FormatError(f"{what}: not an identity such as {_SECRET_PREFIX}1…")
    return X25519Identity(secret)


def decode_bech32(text: str) -> tuple[str, bytes]:
    """Prefix and bytes of a Bech32 text (BIP 173, without its limit of length).

    Raises:
        ValueError: it is none. The text is not in the message: it may be a secret.
    """
    if text.lower() != text and text.upper() != text:
        raise ValueError("upper and lower case are mixed")
    prefix, separator, rest = text.lower().rpartition("1")
    if not separator or not prefix or len(rest) < 6 or any(char not in _BECH32 for char in rest):
        raise ValueError("no Bech32")
    values = [_BECH32.index(char) for char in rest]
    expanded = [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]
    if _bech32_checksum(expanded + values) != 1:
        raise ValueError("its checksum is wrong")
    bits = "".join(f"{value:05b}" for value in values[:-6])
    whole, left = bits[: len(bits) // 8 * 8], bits[len(bits) // 8 * 8 :]
    if len(left) > 4 or "1" in left:
        raise ValueError("its padding is wrong")
    return prefix, bytes(int(whole[at : at + 8], 2) for at in range(0, len(whole), 8))


def _bech32_checksum(values: Iterable[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum


def _exchange(secret: bytes, public: bytes) -> bytes | None:
    """X25519; None for a point that gives everybody the same secret."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    try:
        other = X25519PublicKey.from_public_bytes(public)
        return X25519PrivateKey.from_private_bytes(secret).exchange(other)
    except ValueError:
        return None


def _public(secret: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _wire_of(public_key: Any) -> bytes:
    """A public key in SSH's wire format: what stands base64 in ``authorized_keys``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text: bytes = public_key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return base64.b64decode(text.split(b" ")[1])


# --- recipients --------------------------------------------------------------------------------------------


def parse_recipients(data: bytes, *, what: str) -> tuple[str, ...]:
    """The recipients in a file, one a line, ``#`` beginning a comment, as ``age -R`` takes it.

    Raises:
        FormatError: a line is none; nothing is passed over, or a typing error would lock somebody out.
    """
    lines = enumerate(_lines(data, what), 1)
    return tuple(parse_recipient(line, what=f"{what}, line {number}") for number, line in lines if line)


def parse_recipient(text: str, *, what: str = "recipient") -> str:
    """A recipient, checked: ``age1…``, ``ssh-ed25519 …`` or ``ssh-rsa …``; the comment of a key is dropped.

    Raises:
        FormatError: it is none that files can be encrypted to and read back.
    """
    text = text.strip()
    if text.startswith(("ssh-ed25519 ", "ssh-rsa ")):
        text = " ".join(text.split()[:2])
        _check_ssh_recipient(text, what)
    elif text.startswith(_SECRET_PREFIX):
        raise FormatError(f"{what}: is a secret identity; the recipient is its public key, age1…")
    load_recipient(text, what=what)
    return text


def _check_ssh_recipient(text: str, what: str) -> None:
    kind, encoded = text.split(" ")
    try:
        wire = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        wire = b""
    # pyrage reads the key by itself: only what names its own kind is taken.
    if not wire.startswith(len(kind).to_bytes(4, "big") + kind.encode()):
        raise FormatError(f"{what}: not an OpenSSH public key")


def load_recipient(text: str, *, what: str = "recipient") -> Any:
    """pyrage's object for a recipient.

    Raises:
        FormatError: it is none.
    """
    import pyrage

    load = pyrage.ssh.Recipient if text.startswith("ssh-") else pyrage.x25519.Recipient
    try:
        return load.from_str(text)
    except pyrage.RecipientError:
        raise FormatError(
            f"{what}: {text[:40]!r} is not a recipient such as age1… or ssh-ed25519 … "
            "(plugins' and post-quantum ones are not supported)"
        ) from None


def generate_identity() -> tuple[str, str]:
    """A new identity of age's own kind and its recipient, both as text."""
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def recipient_of(identity_text: str) -> str:
    """The recipient that an ``AGE-SECRET-KEY-1…`` opens."""
    import pyrage

    return str(pyrage.x25519.Identity.from_str(identity_text).to_public())


def _lines(data: bytes, what: str) -> list[str]:
    """The lines of a key file, comments emptied."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{what}: not a text") from None
    return ["" if line.strip().startswith("#") else line.strip() for line in text.splitlines()]
