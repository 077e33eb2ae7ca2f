"""age's file format, for reading at any place: header, payload key, chunks of the payload. No IO.

The format is https://c2sp.org/age: a header of text with one stanza for each recipient, then 16 bytes of nonce,
then the payload in chunks of 64 KiB, each encrypted and authenticated by itself (STREAM). The number of a chunk
and whether it is the last one enter its nonce, so chunks can neither change places nor go missing at the end,
and any one of them can be read alone.

Files are written by pyrage; what is read here comes from strangers, so every length is bounded first.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from typing import Final, Protocol

import msgspec

from incremental_backups_tools.exceptions import DecryptionError, FormatError, IntegrityError

CHUNK_LEN: Final = 64 << 10
TAG_LEN: Final = 16
SEALED_CHUNK_LEN: Final = CHUNK_LEN + TAG_LEN
NONCE_LEN: Final = 16
FILE_KEY_LEN: Final = 16
MAGIC: Final = b"age-encryption.org/v1\n"
ARMOR: Final = b"-----BEGIN AGE ENCRYPTED FILE-----"

# Of memory and time: 2^20 takes 1 GiB. A hostile file may name any power.
SCRYPT_WORK_FACTOR_MAX: Final = 20
# What the command age takes by default.
SCRYPT_WORK_FACTOR: Final = 18
_SCRYPT_LABEL: Final = b"age-encryption.org/v1/scrypt"
_SCRYPT_SALT_LEN: Final = 16

# A stanza for one recipient has some 120 bytes, for an RSA key of 16384 bits 3,000.
HEADER_LEN_MAX: Final = 64 << 10
_STANZAS_MAX: Final = 512
_BODY_COLUMNS: Final = 64
_ARGUMENTS: Final = re.compile(rb"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_MAC_LINE: Final = re.compile(rb"--- ([A-Za-z0-9+/]{43})")


class Stanza(msgspec.Struct, frozen=True):
    """The file key for one recipient, wrapped.

    Attributes:
        kind: how: ``X25519``, ``ssh-ed25519``, ``ssh-rsa``, ``scrypt``; whatever else is somebody else's.
    """

    kind: str
    arguments: tuple[str, ...]
    body: bytes


class Header(msgspec.Struct, frozen=True):
    """A file's header.

    Attributes:
        length: bytes of it in the file.
        authenticated: the bytes that *mac* is of.
    """

    stanzas: tuple[Stanza, ...]
    length: int
    authenticated: bytes
    mac: bytes


class Identity(Protocol):
    """Whatever may open a stanza."""

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """The file key out of *stanza*; None where it is not for this identity."""


def parse_header(start: bytes, *, what: str) -> Header | None:
    """The header out of the first bytes of a file; None where *start* is too short to tell.

    Raises:
        FormatError: not an age file of version 1, or one with more than any honest header has.
    """
    if not start.startswith(MAGIC):
        if len(start) < len(MAGIC) and MAGIC.startswith(start):
            return None
        raise FormatError(f"{what}: not an age file")
    position = len(MAGIC)
    stanzas: list[Stanza] = []
    while True:
        line, end = _line_at(start, position)
        if line is None:
            if len(start) >= HEADER_LEN_MAX:
                raise FormatError(f"{what}: a header of more than {HEADER_LEN_MAX} bytes")
            return None
        if match := _MAC_LINE.fullmatch(line):
            if not stanzas:
                raise FormatError(f"{what}: an age file for nobody")
            authenticated = start[: position + len(b"---")]
            return Header(tuple(stanzas), end, authenticated, _base64(match[1], what))
        if not line.startswith(b"-> ") or not _ARGUMENTS.fullmatch(line[3:]) or len(stanzas) >= _STANZAS_MAX:
            raise FormatError(f"{what}: its age header is damaged")
        body, position_after = _body_at(start, end, what)
        if body is None:
            if len(start) >= HEADER_LEN_MAX:
                raise FormatError(f"{what}: a header of more than {HEADER_LEN_MAX} bytes")
            return None
        kind, *arguments = line[3:].decode("ascii").split(" ")
        stanzas.append(Stanza(kind, tuple(arguments), body))
        position = position_after


def _line_at(data: bytes, position: int) -> tuple[bytes | None, int]:
    end = data.find(b"\n", position)
    return (None, position) if end < 0 else (data[position:end], end + 1)


def _body_at(data: bytes, position: int, what: str) -> tuple[bytes | None, int]:
    """The base64 of a stanza's body: full lines, and a shorter one that ends it."""
    lines = []
    while True:
        line, position = _line_at(data, position)
        if line is None:
            return None, position
        if len(line) > _BODY_COLUMNS:
            raise FormatError(f"{what}: its age header is damaged")
        lines.append(line)
        if len(line) < _BODY_COLUMNS:
            return _base64(b"".join(lines), what), position


def _base64(text: bytes, what: str) -> bytes:
    """Decode base64 without padding, of which there is one spelling only."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if base64.b64encode(data).rstrip(b"=") != text:
        raise FormatError(f"{what}: its age header is damaged")
    return data


def decode_argument(text: str) -> bytes | None:
    """The bytes that an argument of a stanza stands for; None where it is no base64."""
    try:
        return _base64(text.encode("ascii"), "argument")
    except FormatError:
        return None


def encode_argument(data: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def open_file_key(header: Header, identities: tuple[Identity, ...], *, what: str) -> bytes:
    """The key of a file.

    Raises:
        DecryptionError: none of the identities opens it.
        IntegrityError: one does, and the header was altered.
    """
    for identity in identities:
        for stanza in header.stanzas:
            file_key = identity.unwrap(stanza)
            if file_key is None:
                continue
            mac = hmac.digest(hkdf(file_key, salt=b"", info=b"header"), header.authenticated, "sha256")
            if not hmac.compare_digest(mac, header.mac):
                raise IntegrityError(
                    f"{what}: its age header was altered", path=what, expected="its MAC", actual=None
                )
            return file_key
    raise DecryptionError(f"{what}: not encrypted to this identity")


def payload_key(file_key: bytes, nonce: bytes) -> bytes:
    """The key of the chunks; *nonce* is what follows the header."""
    return hkdf(file_key, salt=nonce, info=b"payload")


def plain_length(payload_len: int, *, what: str) -> int:
    """The bytes of content in *payload_len* bytes of payload, the nonce not counted.

    Raises:
        FormatError: no payload has that length.
    """
    chunks = -(-payload_len // SEALED_CHUNK_LEN)
    length = payload_len - chunks * TAG_LEN
    # An empty last chunk is the only one of an empty file.
    if chunks < 1 or length < 0 or (chunks > 1 and payload_len % SEALED_CHUNK_LEN in range(1, TAG_LEN + 1)):
        raise FormatError(f"{what}: an age payload of {payload_len} bytes was cut")
    return length


def open_chunk(key: bytes, number: int, sealed: bytes, *, is_last: bool, what: str) -> bytes:
    """The content of one chunk.

    Raises:
        IntegrityError: it is not the chunk of that number, not the last one, or damaged.
    """
    from cryptography.exceptions import InvalidTag  # only who decrypts waits for it
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(_chunk_nonce(number, is_last), sealed, None)
    except InvalidTag:
        raise IntegrityError(
            f"{what}: its encrypted chunk {number} was damaged, altered or cut",
            path=what,
            expected="its tag",
            actual=None,
        ) from None


def _chunk_nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")


def hkdf(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) for one output block of 32 bytes."""
    pseudorandom = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """A file key out of a stanza's body, whose nonce is zero; None where the key is another one."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(sealed) != FILE_KEY_LEN + TAG_LEN:
        return None
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, None)
    except InvalidTag:
        return None


# --- small files that a passphrase opens -----------------------------------------------------------------


class Passphrase(msgspec.Struct, frozen=True):
    """Opens what was encrypted with a passphrase. Each try takes a second and 256 MiB by age's default."""

    text: str

    def unwrap(self, stanza: Stanza) -> bytes | None:
        """As :meth:`Identity.unwrap`.

        Raises:
            FormatError: the stanza asks for more work than is ever needed.
        """
        if stanza.kind != "scrypt" or len(stanza.arguments) != 2:
            return None
        salt, power = decode_argument(stanza.arguments[0]), stanza.arguments[1]
        if salt is None or len(salt) != _SCRYPT_SALT_LEN or not re.fullmatch(r"[1-9][0-9]?", power):
            return None
        if int(power) > SCRYPT_WORK_FACTOR_MAX:
            raise FormatError(
                f"a passphrase with scrypt work factor {power}, at most {SCRYPT_WORK_FACTOR_MAX} is taken"
            )
        return unseal(_scrypt(self.text, salt, int(power)), stanza.body)


def _scrypt(passphrase: str, salt: bytes, power: int) -> bytes:
    return hashlib.scrypt(
        passphrase.encode(),
        salt=_SCRYPT_LABEL + salt,
        n=1 << power,
        r=8,
        p=1,
        maxmem=(1 << power) * 8 * 128 + (64 << 20),
        dklen=32,
    )


def open_small(data: bytes, identities: tuple[Identity, ...], *, what: str) -> bytes:
    """The content of a whole age file in memory, armoured or not.

    Raises:
        DecryptionError: none of the identities opens it.
        FormatError, IntegrityError: damaged, or not an age file.
    """
    if data.lstrip().startswith(ARMOR):
        data = _dearmored(data, what)
    header = parse_header(data, what=what)
    if header is None or len(data) < header.length + NONCE_LEN:
        raise FormatError(f"{what}: an age file that was cut")
    # age and rage forbid it: whoever wrote the file could not have known both.
    if any(stanza.kind == "scrypt" for stanza in header.stanzas) and len(header.stanzas) > 1:
        raise FormatError(f"{what}: an age file with a passphrase and other recipients")
    file_key = open_file_key(header, identities, what=what)
    start = header.length + NONCE_LEN
    key = payload_key(file_key, data[header.length : start])
    payload = data[start:]
    plain_length(len(payload), what=what)
    pieces = [payload[at : at + SEALED_CHUNK_LEN] for at in range(0, len(payload), SEALED_CHUNK_LEN)]
    return b"".join(
        open_chunk(key, number, piece, is_last=number == len(pieces) - 1, what=what)
        for number, piece in enumerate(pieces)
    )


def _dearmored(data: bytes, what: str) -> bytes:
    lines = data.strip().splitlines()
    if len(lines) < 3 or lines[0] != ARMOR or lines[-1] != ARMOR.replace(b"BEGIN", b"END"):
        raise FormatError(f"{what}: an armoured age file that was cut")
    try:
        return base64.b64decode(b"".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{what}: an armoured age file that is damaged") from None


def seal_with_passphrase(content: bytes, passphrase: str, *, power: int = SCRYPT_WORK_FACTOR) -> bytes:
    """An age file of at most one chunk that *passphrase* opens.

    pyrage does this too, with a work factor that grows with the machine's speed beyond what a smaller one
    that restores can do.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    if len(content) > CHUNK_LEN:
        raise ValueError(f"{len(content)} bytes, at most {CHUNK_LEN} can be sealed at once")
    file_key, salt, nonce = (secrets.token_bytes(16) for _ in range(3))
    body = ChaCha20Poly1305(_scrypt(passphrase, salt, power)).encrypt(bytes(12), file_key, None)
    lines = f"-> scrypt {encode_argument(salt)} {power}\n{encode_argument(body)}\n---"
    header = MAGIC + lines.encode("ascii")
    mac = hmac.digest(hkdf(file_key, salt=b"", info=b"header"), header, "sha256")
    sealed = ChaCha20Poly1305(payload_key(file_key, nonce)).encrypt(_chunk_nonce(0, True), content, None)
    return header + b" " + encode_argument(mac).encode("ascii") + b"\n" + nonce + sealed
