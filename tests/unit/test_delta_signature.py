"""Signatures: made whole and in pieces, read, and refused."""

from __future__ import annotations

import importlib
import io
import random
import struct

import pytest

from incremental_backups_tools.delta import (
    Signature,
    SignatureBuilder,
    SignatureMagic,
    choose_block_len,
    signature,
)
from incremental_backups_tools.exceptions import SignatureFormatError


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


class Trickle(io.RawIOBase):
    """A pipe that gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer):
        data = self._data.read(min(self._step, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


class ReadOnly:
    """A file object with nothing but read()."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 64 * 8, 64 * 8 + 1, 64 * 100 + 3])
def test_every_source_gives_the_same_signature(kernel, tmp_path, length):
    data = noise(length)
    (tmp_path / "file").write_bytes(data)
    expected = signature(data, block_len=64, kernel=kernel)
    for source in (
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        tmp_path / "file",
        str(tmp_path / "file"),
        Trickle(data, 7),
        ReadOnly(data),
    ):
        assert signature(source, block_len=64, kernel=kernel) == expected
    assert signature(data, block_len=64, threads=3, kernel=kernel) == expected


@pytest.mark.parametrize("step", [1, 63, 64, 65, 511, 512, 5000])
def test_a_builder_fed_in_pieces_gives_the_signature_of_the_whole(kernel, step):
    data = noise(6000)
    builder = SignatureBuilder(block_len=64, kernel=kernel)
    for start in range(0, len(data), step):
        builder.update(data[start : start + step])
    assert builder.finish() == signature(data, block_len=64, kernel=kernel)


def test_large_data_is_hashed_in_chunks_that_do_not_show():
    data = noise(3_000_001)
    builder = SignatureBuilder(block_len=1000)
    builder.update(data[:1_000_000])
    builder.update(data[1_000_000:])
    expected = builder.finish()
    assert signature(data, block_len=1000) == expected
    assert signature(data, block_len=1000, threads=2) == expected
    assert Signature.from_bytes(expected).block_count == 3001


def test_writing_to_a_file_reports_the_bytes_written(kernel):
    out = io.BytesIO()
    assert signature(b"x" * 100, out, block_len=10, kernel=kernel) == len(out.getvalue()) == 12 + 10 * 20


def test_a_signature_is_read_as_it_was_written(kernel):
    data = signature(noise(1000), block_len=64, strong_len=20, magic=SignatureMagic.BLAKE2, kernel=kernel)
    parsed = Signature.from_bytes(data)
    assert (parsed.magic, parsed.block_len, parsed.strong_len) == (SignatureMagic.BLAKE2, 64, 20)
    assert parsed.block_count == len(parsed) == len(list(parsed)) == 16
    assert parsed.to_bytes() == data
    assert Signature.from_file(io.BytesIO(data)) == parsed
    weak, strong = next(iter(parsed))
    assert weak == kernel.weak_sum(noise(1000)[:64], parsed.magic.weak)
    assert strong == kernel.strong_sum(noise(1000)[:64], parsed.magic.strong)[:20]


def test_every_truncation_of_a_signature_is_refused_or_ends_at_a_record():
    data = signature(noise(300), block_len=64)
    for length in range(len(data)):
        if length >= 12 and (length - 12) % 20 == 0:
            assert Signature.from_bytes(data[:length]).block_count == (length - 12) // 20
        else:
            with pytest.raises(SignatureFormatError):
                Signature.from_bytes(data[:length])


@pytest.mark.parametrize("magic", [0, 0x72730236, 0x72730135, 0x72730148, 0xFFFFFFFF])
def test_another_magic_is_refused(magic):
    with pytest.raises(SignatureFormatError, match="not a librsync signature"):
        Signature.from_bytes(struct.pack(">III", magic, 64, 16))


@pytest.mark.parametrize("block_len", [0, (1 << 24) + 1, 1 << 31, (1 << 32) - 1])
def test_an_impossible_block_length_is_refused(block_len):
    with pytest.raises(SignatureFormatError, match="block length"):
        Signature.from_bytes(struct.pack(">III", SignatureMagic.RK_BLAKE2, block_len, 16))


@pytest.mark.parametrize(
    ("magic", "strong_len"),
    [(SignatureMagic.RK_BLAKE2, n) for n in (0, 33, 255, 1 << 31)]
    + [(SignatureMagic.MD4, n) for n in (0, 17, 33)],
)
def test_an_impossible_strong_length_is_refused(magic, strong_len):
    with pytest.raises(SignatureFormatError, match="strong sums"):
        Signature.from_bytes(struct.pack(">III", magic, 64, strong_len))


@pytest.mark.parametrize(
    "options",
    [
        {"block_len": 0},
        {"block_len": -1},
        {"block_len": 1 << 25},
        {"strong_len": 0},
        {"strong_len": 33},
        {"threads": 0},
    ],
)
def test_a_callers_mistake_is_a_value_error(options):
    with pytest.raises(ValueError, match="must be"):
        signature(b"data", **{"block_len": 64, **options})


def test_a_source_of_another_type_is_a_type_error():
    with pytest.raises(TypeError, match="expected a path"):
        signature(42)


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        signature(tmp_path / "missing")


def test_block_length_grows_by_powers_of_two_within_its_bounds():
    kib, gib = 1 << 10, 1 << 30
    steps = [0, 16 * kib, 64 * kib] + [(gib << number) + 1 for number in range(1, 6)]
    assert [choose_block_len(size) for size in steps] == [512 << number for number in range(8)]
    before_steps = [size - 1 for size in steps[1:]] + [1 << 50]
    assert [choose_block_len(size) for size in before_steps] == [512 << number for number in range(8)]
    with pytest.raises(ValueError, match="negative"):
        choose_block_len(-1)


def test_no_signature_has_more_than_a_million_blocks_until_blocks_are_longest():
    for size in range(1, 64 << 30, 999_999_937):
        assert -(-size // choose_block_len(size)) <= 1 << 20


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        (256, 1024),
        (511, 1024),
        (512, 512),
        (1024, 1024),
        (1536, 1536),
        (2048, 2048),
        (2049, 1024),
        (65536, 1024),
    ],
)
def test_a_block_length_is_kept_within_a_step(before, expected):
    assert choose_block_len(50_000) == 1024
    assert choose_block_len(50_000, before=before) == expected


def test_the_block_length_is_chosen_by_what_is_left_of_the_file():
    data = noise(5 << 20)
    file = io.BytesIO(b"head" + data)
    file.seek(4)
    assert signature(file) == signature(data, block_len=choose_block_len(len(data)))
    assert Signature.from_bytes(signature(ReadOnly(b"data"))).block_len == 2048
