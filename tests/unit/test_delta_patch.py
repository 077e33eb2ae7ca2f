"""Applying and composing deltas, and deltas that lie."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import random

import pytest

from incremental_backups_tools.delta import Copy, Delta, Literal, Signature, compose, delta, patch, signature
from incremental_backups_tools.delta._twin import COPY
from incremental_backups_tools.delta.composition import compose_commands
from incremental_backups_tools.exceptions import DeltaFormatError, FormatError, LimitExceededError

MAGIC = b"rs\x026"


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def made(old: bytes, new: bytes, block_len: int = 64) -> bytes:
    return delta(new, Signature.from_bytes(signature(old, block_len=block_len)))


def copy(offset: int, length: int) -> bytes:
    return b"\x54" + offset.to_bytes(8, "big") + length.to_bytes(8, "big")


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time and cannot seek."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readable(self) -> bool:
        return True

    def readinto(self, buffer):
        data = self._data.read(min(self._step, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def test_all_sources_and_sinks_are_equal(kernel, tmp_path):
    old, new = noise(5000), noise(2000)[:1000] + noise(5000)[500:]
    change = made(old, new)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "delta").write_bytes(change)
    for basis in (old, bytearray(old), io.BytesIO(old), tmp_path / "old", str(tmp_path / "old")):
        for source in (change, io.BytesIO(change), Pipe(change, 3), tmp_path / "delta"):
            assert patch(basis, source, kernel=kernel) == new
    out = io.BytesIO()
    assert patch(old, change, out, kernel=kernel) == len(new) == len(out.getvalue())


def test_a_basis_that_cannot_seek_is_a_value_error(kernel):
    with pytest.raises(ValueError, match="seekable"):
        patch(Pipe(b"old", 1), MAGIC + b"\0", kernel=kernel)


def test_literals_larger_than_any_buffer_pass(kernel):
    new = noise(900_000)
    assert patch(b"", Pipe(made(b"", new), 65536), kernel=kernel) == new
    assert Delta.from_bytes(made(b"", new), kernel=kernel).literal_bytes == 900_000


def test_every_truncation_is_refused(kernel):
    old = noise(400)
    change = made(old, old[:130] + b"inserted" + old[100:300] + noise(100, 1))
    for length in range(len(change)):
        with pytest.raises(DeltaFormatError):
            patch(old, change[:length], kernel=kernel)
        with pytest.raises(DeltaFormatError):
            Delta.from_bytes(change[:length], kernel=kernel)
        with pytest.raises(DeltaFormatError):
            compose(change[:length], change, kernel=kernel)


def test_every_single_byte_change_gives_a_file_or_a_documented_error(kernel):
    old = noise(200)
    change = made(old, old[:70] + b"new" + old[64:], block_len=32)
    for position in range(len(change)):
        for value in (0, 1, 0x40, 0x41, 0x44, 0x45, 0x54, 0x55, 0xFF, change[position] ^ 1):
            damaged = change[:position] + bytes([value]) + change[position + 1 :]
            for attempt in (
                lambda damaged=damaged: patch(old, damaged, max_output=1000, kernel=kernel),
                lambda damaged=damaged: compose(change, damaged, max_output=1000, kernel=kernel),
                lambda damaged=damaged: compose(damaged, change, max_output=1000, kernel=kernel),
                lambda damaged=damaged: Delta.from_bytes(damaged, kernel=kernel),
            ):
                with contextlib.suppress(DeltaFormatError, LimitExceededError):
                    attempt()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no END"),
        (b"\x01", "cut"),
        (b"\x42\x01", "no END"),
        (b"\x41\x05abc", "cut"),
        (b"\x44" + b"\x7f" + bytes(7) + b"abc", "cut"),
        (b"\x00\x00", "after END"),
        (b"\x00more", "after END"),
        (b"\x55", "unknown command"),
        (b"\xff", "unknown command"),
        (b"\x41\x00\x00", "length 0"),
        (copy(0, 0) + b"\0", "length 0"),
        (copy(0, 101) + b"\0", "copies"),
        (copy(100, 1) + b"\0", "copies"),
        (copy(1 << 62, 1) + b"\0", "copies"),
        (copy((1 << 64) - 1, 2) + b"\0", "beyond 2"),
        (copy(1, (1 << 64) - 1) + b"\0", "beyond 2"),
        (copy(1 << 63, 1 << 63) + b"\0", "beyond 2"),
    ],
)
def test_a_delta_that_lies_is_refused(kernel, body, message):
    with pytest.raises(DeltaFormatError, match=message):
        patch(noise(100), MAGIC + body, kernel=kernel)


@pytest.mark.parametrize("start", [b"", b"r", b"rs\x02", b"rs\x027\0", b"rs\x01G", b"\0\0\0\0"])
def test_what_does_not_begin_as_a_delta_is_refused(kernel, start):
    with pytest.raises(DeltaFormatError, match="not a librsync delta"):
        patch(b"basis", start, kernel=kernel)


def test_an_output_bomb_stops_at_the_limit(kernel):
    bomb = MAGIC + copy(0, 100) * 3000 + b"\0"
    out = io.BytesIO()
    with pytest.raises(LimitExceededError, match="5000"):
        patch(noise(100), bomb, out, max_output=5000, kernel=kernel)
    assert len(out.getvalue()) == 5000
    sparse = MAGIC + copy(0, 1 << 40) + b"\0"
    with pytest.raises(FormatError):
        patch(b"", sparse, kernel=kernel)


def test_a_terabyte_out_of_a_sparse_basis_stops_before_it_is_written(kernel, tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    out = io.BytesIO()
    with pytest.raises(LimitExceededError):
        patch(tmp_path / "sparse", MAGIC + copy(0, 1 << 40) + b"\0", out, max_output=1 << 30, kernel=kernel)
    assert out.getvalue() == b""


def test_a_limit_that_is_just_enough_does_no_harm(kernel):
    old = noise(300)
    assert patch(old, made(old, old), max_output=300, kernel=kernel) == old
    with pytest.raises(LimitExceededError):
        patch(old, made(old, old), max_output=299, kernel=kernel)


def test_offsets_beyond_32_bits_work(kernel, tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(5 << 30)
        file.seek((5 << 30) - 10)
        file.write(b"0123456789")
    change = MAGIC + copy((5 << 30) - 5, 5) + b"\x01!" + b"\0"
    assert patch(tmp_path / "sparse", change, kernel=kernel) == b"56789!"


def test_a_parsed_delta_tells_what_it_holds(kernel):
    change = MAGIC + b"\x03abc" + copy(10, 20) + copy(5, 5) + b"\0"
    parsed = Delta.from_file(io.BytesIO(change), kernel=kernel)
    assert list(parsed) == [Literal(5, 3), Copy(10, 20), Copy(5, 5)]
    assert (parsed.output_len, parsed.literal_bytes, parsed.copied_bytes, parsed.basis_len) == (28, 3, 25, 30)
    assert len(parsed) == 3


def test_two_deltas_composed_are_one_that_does_the_same(kernel):
    first = noise(3000)
    second = first[:1000] + b"inserted" + first[900:2500]
    third = second[500:1500] + noise(100, 2) + second[:700] + second[1600:]
    both = compose(made(first, second), made(second, third), kernel=kernel)
    assert patch(first, both) == third
    assert Delta.from_bytes(both).basis_len <= len(first)


def test_composing_reads_the_first_from_where_its_file_stands(kernel):
    first, second, third = noise(500), noise(100, 1) + noise(500), noise(100, 1)[:80] + noise(500)[30:]
    file = io.BytesIO(b"before" + made(first, second))
    file.seek(6)
    assert patch(first, compose(file, made(second, third), kernel=kernel)) == third


def test_composing_joins_what_continues(kernel):
    change = MAGIC + copy(100, 50) + copy(150, 50) + b"\x02ab" + b"\x02cd" + b"\0"
    again = MAGIC + copy(0, 60) + copy(60, 42) + copy(102, 2) + b"\x01!" + b"\0"
    both = compose(change, again, kernel=kernel)
    assert list(Delta.from_bytes(both)) == [Copy(100, 100), Literal(8, 5)]


def test_deltas_that_do_not_fit_together_are_refused(kernel):
    with pytest.raises(DeltaFormatError, match="second delta"):
        compose(MAGIC + b"\x03abc\0", MAGIC + copy(1, 3) + b"\0", kernel=kernel)
    with pytest.raises(DeltaFormatError, match="second delta"):
        compose(MAGIC + b"\0", MAGIC + copy(0, 1) + b"\0", kernel=kernel)


def test_a_delta_of_a_file_that_is_longer_than_any_can_be_is_refused(kernel):
    longer = MAGIC + copy(1, (1 << 63) - 2) * 4 + b"\0"
    change = MAGIC + copy(0, 1) + b"\0"
    with pytest.raises(DeltaFormatError, match="makes a file of"):
        compose(longer, change, kernel=kernel)
    with pytest.raises(DeltaFormatError, match="makes a file of"):
        composed_commands([longer, change], kernel)
    longest = MAGIC + copy(1, (1 << 63) - 2) + copy(0, 1) + b"\0"
    assert list(Delta.from_bytes(compose(longest, change, kernel=kernel))) == [Copy(1, 1)]
    assert composed_commands([longest, change], kernel) == [(COPY, 1, 1)]


def composed_commands(deltas, kernel, *, max_commands=1000):
    """What they come to as a program; a literal as what it holds."""
    buffer = b"between".join(deltas)
    starts = [sum(map(len, deltas[:number])) + 7 * number for number in range(len(deltas))]

    def read_at(offset, view):
        found = buffer[offset : offset + len(view)]
        view[: len(found)] = found
        return len(found)

    places = list(zip(starts, map(len, deltas), strict=True))
    composed = compose_commands(read_at, places, max_commands=max_commands, kernel=kernel)
    if composed is None:
        return None
    return [
        (kind, offset, length) if kind == COPY else buffer[offset : offset + length]
        for batch in composed.batches()
        for kind, offset, length in batch
    ]


def test_composed_commands_name_places_and_join_what_continues(kernel):
    change = MAGIC + copy(100, 50) + copy(150, 50) + b"\x02ab" + b"\x02cd" + b"\0"
    again = MAGIC + copy(0, 60) + copy(60, 42) + copy(102, 2) + b"\x01!" + b"\0"
    assert composed_commands([change, again], kernel) == [(COPY, 100, 100), b"ab", b"cd", b"!"]
    assert composed_commands([MAGIC + b"\0"], kernel) == []
    with pytest.raises(DeltaFormatError, match="second delta"):
        composed_commands([MAGIC + b"\x03abc\0", MAGIC + copy(1, 3) + b"\0"], kernel)
    for deltas in ([change[:-1], again], [change, again + b"\0"], [b"", again]):
        with pytest.raises(DeltaFormatError):
            composed_commands(deltas, kernel)


def test_more_commands_than_may_be_held_are_not(kernel):
    change = MAGIC + (copy(0, 1) + b"\x01!") * 10 + b"\0"
    twice = MAGIC + copy(0, 20) * 2 + b"\0"
    assert composed_commands([change], kernel, max_commands=19) is None
    assert len(composed_commands([change], kernel, max_commands=20)) == 20
    assert composed_commands([change, twice], kernel, max_commands=39) is None
    assert len(composed_commands([change, twice], kernel, max_commands=40)) == 40
    assert composed_commands([change, MAGIC + copy(0, 1) + b"\0"], kernel, max_commands=19) is None


def test_a_literal_repeated_by_the_second_delta_stops_at_the_limit(kernel):
    first = MAGIC + b"\x43" + (50_000).to_bytes(4, "big") + noise(50_000) + b"\0"
    second = MAGIC + copy(0, 50_000) * 1000 + b"\0"
    with pytest.raises(LimitExceededError):
        compose(first, second, max_output=200_000, kernel=kernel)


def test_a_composed_delta_is_no_larger_than_both_where_nothing_repeats(kernel):
    rng = random.Random(9)
    for _ in range(30):
        files = [rng.randbytes(3000)]
        for _ in range(2):
            new = bytearray(files[-1])
            for _ in range(5):
                start = rng.randrange(len(new))
                new[start : start + rng.randrange(90)] = rng.randbytes(rng.randrange(90))
            files.append(bytes(new))
        one, two = made(files[0], files[1]), made(files[1], files[2])
        both = compose(one, two, kernel=kernel)
        assert patch(files[0], both) == files[2]
        assert len(both) <= len(one) + len(two)


@pytest.mark.parametrize("mode", ["wb", "w+b", "r+b", "ab"])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_large_copies_into_files_leave_the_right_bytes_at_the_right_place(tmp_path, mode, buffering):
    old = noise(3 << 20)
    new = old[1 << 20 :] + b"tail"
    (tmp_path / "out").write_bytes(b"head")
    with open(tmp_path / "out", mode, buffering=buffering) as out:
        out.seek(0, 2)
        start = out.tell()
        assert patch(old, made(old, new, block_len=1024), out) == len(new)
        out.write(b"after")
    assert (tmp_path / "out").read_bytes() == b"head"[:start] + new + b"after"


def test_a_compressing_output_is_written_through_its_own_write(tmp_path):
    old = noise(2 << 20)
    with gzip.open(tmp_path / "out.gz", "wb") as out:
        patch(old, made(old, old, block_len=1024), out)
    assert gzip.decompress((tmp_path / "out.gz").read_bytes()) == old
