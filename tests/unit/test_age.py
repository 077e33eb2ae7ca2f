"""age's format as hostile input, and reading at any place."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.keys import make_age_key, make_ssh_key

from incremental_backups_tools.exceptions import (
    BackupError,
    DecryptionError,
    FormatError,
    IntegrityError,
)
from incremental_backups_tools.repository import age
from incremental_backups_tools.repository.encryption import AgeStore
from incremental_backups_tools.repository.identities import (
    decode_bech32,
    generate_identity,
    parse_identities,
    parse_recipient,
    parse_recipients,
    recipient_of,
)
from incremental_backups_tools.repository.local import LocalStore

NAME = "key/20261120T072531.123456Z.full.0000.tar.zst.age"
SIZE = 3 * age.CHUNK_LEN + 1000


@pytest.fixture(scope="module")
def content() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def store(tmp_path: Path, content: bytes) -> AgeStore:
    """With one object of three chunks and a bit."""
    key = make_age_key(tmp_path)
    (tmp_path / "r").mkdir()
    made = AgeStore(
        LocalStore(tmp_path / "r"),
        recipients=[key.recipient],
        identities=key.reading.identities,
        copies=None,
    )
    made.create(NAME, content)
    return made


def stored(store: AgeStore) -> Path:
    return Path(store.url) / NAME


def reopened(store: AgeStore) -> AgeStore:
    return AgeStore(LocalStore(store.url), recipients=[], identities=store.identities, copies=None)


@given(st.data())
def test_any_range_is_the_content_of_that_range(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    place = tmp_path_factory.getbasetemp() / "ranges"
    if not place.exists():
        place.mkdir()
        key = make_age_key(place)
        AgeStore(LocalStore(place), recipients=[key.recipient], identities=(), copies=None).create(
            NAME, content
        )
    identities = parse_identities((place / "identity").read_bytes(), what="identity")
    store = AgeStore(LocalStore(place), recipients=[], identities=identities, copies=None)
    stored_content = store.read(NAME)
    offset = data.draw(st.integers(0, SIZE))
    length = data.draw(st.integers(0, SIZE - offset))
    assert store.read_range(NAME, offset, length) == stored_content[offset : offset + length]


def test_what_lies_there_is_not_the_content(store: AgeStore, content: bytes) -> None:
    assert content[:64] not in stored(store).read_bytes()
    assert store.read(NAME) == content


def test_names_that_are_not_encrypted_pass_through(store: AgeStore) -> None:
    store.create("key/20261120T072531.123456Z.forgotten", b"plain")
    assert (Path(store.url) / "key/20261120T072531.123456Z.forgotten").read_bytes() == b"plain"
    assert store.read("key/20261120T072531.123456Z.forgotten") == b"plain"


def test_a_range_beyond_the_end_is_refused_before_memory_is_taken(store: AgeStore) -> None:
    for offset, length in ((SIZE, 1), (0, SIZE + 1), (0, 1 << 60), (1 << 60, 1)):
        with pytest.raises(IntegrityError):
            store.read_range(NAME, offset, length)


def header_length(data: bytes) -> int:
    return re.search(rb"\n--- [^\n]*\n", data).end()  # type: ignore[union-attr]


def test_every_flipped_bit_is_noticed(store: AgeStore) -> None:
    whole = stored(store).read_bytes()
    header_len = header_length(whole)
    places = [*range(0, header_len + age.NONCE_LEN, 3), header_len + 17, len(whole) - 1, len(whole) // 2]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x04
        stored(store).write_bytes(damaged)
        with pytest.raises(BackupError):
            reopened(store).read(NAME)


def test_a_cut_file_is_noticed_wherever_it_is_cut(store: AgeStore) -> None:
    whole = stored(store).read_bytes()
    start = header_length(whole) + age.NONCE_LEN
    chunk_ends = [start + number * age.SEALED_CHUNK_LEN for number in range(4)]
    for length in {
        0,
        1,
        10,
        start - 20,
        start - 1,
        len(whole) - 1,
        *chunk_ends,
        *(end + 16 for end in chunk_ends),
    }:
        stored(store).write_bytes(whole[:length])
        with pytest.raises(BackupError):
            reopened(store).read(NAME)


def test_chunks_cannot_change_places_or_be_taken_out(store: AgeStore) -> None:
    whole = stored(store).read_bytes()
    start = header_length(whole) + age.NONCE_LEN
    length = age.SEALED_CHUNK_LEN
    first, second = whole[start : start + length], whole[start + length : start + 2 * length]
    rest = whole[start + 2 * length :]
    for payload in (
        second + first + rest,
        first + rest,
        first + first + rest,
        first + second + rest + second,
    ):
        stored(store).write_bytes(whole[:start] + payload)
        with pytest.raises(IntegrityError):
            reopened(store).read(NAME)


def test_what_a_state_promises_is_what_is_read(store: AgeStore) -> None:
    size = stored(store).stat().st_size
    assert store.content_size(NAME, size) == SIZE
    with pytest.raises(IntegrityError):
        again = reopened(store)
        again.content_size(NAME, size + age.SEALED_CHUNK_LEN)
        again.read_range(NAME, SIZE, 1)


def test_without_an_identity_it_says_so(store: AgeStore) -> None:
    blind = AgeStore(LocalStore(store.url), recipients=[], identities=(), copies=None)
    with pytest.raises(DecryptionError, match="--identity"):
        blind.read(NAME)
    with pytest.raises(DecryptionError):
        blind.open(NAME)
    assert blind.exists(NAME)


def test_writing_needs_recipients(store: AgeStore) -> None:
    with pytest.raises(BackupError, match="--recipient"):
        reopened(store).create(NAME.replace("full", "created"), b"x")
    assert [info.name for info in store.list_objects("key/")] == [NAME]


def test_a_failing_store_says_its_own_error(tmp_path: Path, store: AgeStore) -> None:
    class Full(LocalStore):
        def spool(self, name: str):  # type: ignore[no-untyped-def]
            spool = super().spool(name)
            spool.file.write = self._fail  # type: ignore[method-assign]
            return spool

        def _fail(self, data: object) -> int:
            raise BackupError("the disk is full")

    full = AgeStore(Full(tmp_path / "r"), recipients=store.recipients, identities=(), copies=None)
    with pytest.raises(BackupError, match="the disk is full"):
        full.create(NAME.replace("full", "created"), b"x" * 1_000_000)


# --- headers -------------------------------------------------------------------------------------------------

HEADER = age.MAGIC + b"-> X25519 AAAA\nAAAA\n--- " + b"A" * 43 + b"\n"


def test_a_header_is_parsed_from_any_beginning_that_holds_it() -> None:
    header = age.parse_header(HEADER + b"payload", what="it")
    assert header is not None
    assert header.length == len(HEADER)
    assert header.stanzas == (age.Stanza("X25519", ("AAAA",), bytes(3)),)
    for length in range(len(HEADER)):
        assert age.parse_header(HEADER[:length], what="it") is None


@pytest.mark.parametrize(
    "data",
    [
        b"age-encryption.org/v2\n" + HEADER[22:],
        b"-----BEGIN AGE ENCRYPTED FILE-----\n",
        HEADER.replace(b"-> X25519", b"=> X25519"),
        HEADER.replace(b"-> X25519 AAAA", b"->  AAAA"),
        HEADER.replace(b"AAAA\n---", b"A=AA\n---"),
        HEADER.replace(b"AAAA\n---", b"AAB\n---"),  # bits beyond the last byte
        HEADER.replace(b"AAAA\n---", b"A" * 65 + b"\n---"),
        age.MAGIC + HEADER[HEADER.index(b"---") :],
        age.MAGIC + b"-> X25519 AAAA\nAAAA\n" * 600 + b"--- " + b"A" * 43 + b"\n",
        age.MAGIC + b"-> X25519 " + b"A" * age.HEADER_LEN_MAX,
        age.MAGIC + b"-> X25519 AAAA\n" + (b"A" * 64 + b"\n") * 2000,
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        age.parse_header(data, what="it")


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_fail_otherwise(tail: bytes) -> None:
    for data in (tail, age.MAGIC + tail, age.MAGIC + b"-> X25519 AAAA\n" + tail):
        try:
            age.parse_header(data, what="it")
        except FormatError:
            continue


def test_work_factors_are_capped(tmp_path: Path) -> None:
    sealed = age.seal_with_passphrase(b"x", "horse", power=4)
    for power in (b"21", b"30", b"64"):
        hostile = re.sub(rb"(-> scrypt \S+) 4\n", rb"\1 " + power + b"\n", sealed)
        with pytest.raises(FormatError, match="work factor"):
            age.open_small(hostile, (age.Passphrase("horse"),), what="it")
    for power in (b"04", b"-1", b"1e1"):
        hostile = re.sub(rb"(-> scrypt \S+) 4\n", rb"\1 " + power + b"\n", sealed)
        with pytest.raises(DecryptionError):
            age.open_small(hostile, (age.Passphrase("horse"),), what="it")
    with pytest.raises(DecryptionError):
        age.open_small(sealed, (age.Passphrase("battery"),), what="it")


# --- key files -----------------------------------------------------------------------------------------------


def test_bech32_as_its_specification_has_it() -> None:
    assert decode_bech32("A12UEL5L") == ("a", b"")
    prefix, data = decode_bech32("abcdef1qpzry9x8gf2tvdw0s3jn54khce6mua7lmqqqxw")
    assert (prefix, data.hex()) == ("abcdef", "00443214c74254b635cf84653a56d7c675be77df")
    for wrong in ("", "1", "a12uel5m", "A12uEL5L", "li1dgmt3", "10a06t8", "1qzzfhee", "x1b4n0q5v"):
        with pytest.raises(ValueError, match=r"Bech32|case|checksum|padding"):
            decode_bech32(wrong)


def test_identities_are_the_lines_of_a_file_and_a_wrong_one_is_no_secret_in_the_message() -> None:
    first, second = generate_identity()[0], generate_identity()[0]
    assert len(parse_identities(f"# two\n{first}\n\n{second}\r\n".encode(), what="it")) == 2
    assert recipient_of(first).startswith("age1")
    with pytest.raises(FormatError) as caught:
        parse_identities((first[:-1] + ("Q" if first[-1] != "Q" else "P")).encode(), what="it")
    assert first[20:40] not in str(caught.value)
    for wrong in (
        b"",
        b"# nothing\n",
        b"\xff",
        b"age1xyz",
        b"AGE-PLUGIN-YUBIKEY-1QQ",
        b"AGE-SECRET-KEY-PQ-1QQ",
    ):
        with pytest.raises(FormatError):
            parse_identities(wrong, what="it")


def test_keys_that_age_cannot_use_are_refused(tmp_path: Path) -> None:
    path = make_ssh_key(tmp_path, "ecdsa", "-t", "ecdsa")
    with pytest.raises(FormatError, match="Ed25519"):
        parse_identities(path.read_bytes(), what="it")
    with pytest.raises(FormatError, match=r"not a recipient|not an OpenSSH"):
        parse_recipient(Path(f"{path}.pub").read_text())


def test_recipients_are_taken_or_refused_as_a_whole(tmp_path: Path) -> None:
    one = generate_identity()[1]
    ssh = Path(f"{make_ssh_key(tmp_path, 'ssh')}.pub").read_text().strip()
    data = f"# us\n{one}\n\n{ssh}\n".encode()
    assert parse_recipients(data, what="it") == (one, " ".join(ssh.split()[:2]))
    for wrong in (
        "age1xyz",
        "AGE-SECRET-KEY-1QQ",
        "ssh-ed25519 AAAA",
        "ssh-rsa !",
        "age1pq1qqqq",
        "somebody",
    ):
        with pytest.raises(FormatError, match="it, line 2"):
            parse_recipients(f"{one}\n{wrong}\n".encode(), what="it")
