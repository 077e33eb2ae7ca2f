"""Deltas of two buffers: what they cost, and bounds on the work, by counters. Both kernels alike."""

from __future__ import annotations

import importlib
import mmap
import random

import pytest

from incremental_backups_tools.delta import Delta, exact_delta, patch

rng = random.Random(17)
TEXT = b"".join(b"line %d of %d\n" % (number, number * number) for number in range(2000))


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


def made(old: bytes, new: bytes, kernel) -> bytes:
    """The delta, which was found right."""
    delta = exact_delta(old, new, kernel=kernel)
    assert patch(old, delta) == new
    assert len(delta) <= len(new) + 10
    return delta


@pytest.mark.parametrize("length", [16, 64, 255, 256, 65_535, 65_536, 70_000])
def test_what_is_equal_is_one_copy(kernel, length):
    data = rng.randbytes(length)
    delta = made(data, data, kernel)
    assert len(Delta.from_bytes(delta)) == 1
    assert len(delta) < 16


@pytest.mark.parametrize("length", [1, 15, 64, 65, 255, 256, 65_535, 65_536])
def test_what_is_new_is_one_literal(kernel, length):
    delta = made(b"nothing of this is there" * 10, rng.randbytes(length), kernel)
    assert len(Delta.from_bytes(delta)) == 1


def test_nothing_becomes_something_and_something_nothing(kernel):
    assert made(b"", b"", kernel) == made(TEXT, b"", kernel) == b"rs\x026\0"
    assert Delta.from_bytes(made(b"", TEXT, kernel)).literal_bytes == len(TEXT)


@pytest.mark.parametrize("place", [0, 1, 10_000, len(TEXT) - 1, len(TEXT)])
@pytest.mark.parametrize("gone", [0, 1, 200])
def test_an_edit_costs_the_bytes_that_it_changed(kernel, place, gone):
    new = TEXT[:place] + b"<inserted>" + TEXT[place + gone :]
    assert len(made(TEXT, new, kernel)) < 50


def test_edits_near_each_other_are_each_found(kernel):
    new = bytearray(TEXT)
    for place in range(1000, 20_000, 100):
        new[place] ^= 0xFF
    delta = Delta.from_bytes(made(TEXT, bytes(new), kernel))
    assert delta.literal_bytes == 190


def test_a_moved_part_is_copied_from_where_it_was(kernel):
    old = rng.randbytes(30_000)
    new = old[20_000:25_000] + old[:20_000] + old[25_000:]
    assert len(Delta.from_bytes(made(old, new, kernel))) == 3
    assert Delta.from_bytes(made(old, new, kernel)).literal_bytes == 0


def test_of_several_places_the_one_that_goes_on_longest_is_copied(kernel):
    part = rng.randbytes(64)
    old = b"".join(part + rng.randbytes(100) for _ in range(5)) + part + TEXT[:5000]
    delta = Delta.from_bytes(made(old, rng.randbytes(50) + part + TEXT[:4000] + rng.randbytes(50), kernel))
    assert [command.length for command in delta] == [50, 64 + 4000, 50]


def test_short_coincidences_are_no_copies(kernel):
    old = b"".join(b"key %d = value\n" % rng.randrange(10**9) for _ in range(500))
    new = b"".join(b"KEY %d = value\n" % rng.randrange(10**9) for _ in range(500))
    assert len(Delta.from_bytes(made(old, new, kernel))) == 1


def periodic(length: int, period: int) -> bytes:
    return (random.Random(period).randbytes(period) * (length // period + 1))[:length]


def hostile_pairs(length: int) -> dict[str, tuple[bytes, bytes]]:
    """Old and new, as long as each other, in which windows are found again and again."""
    window = random.Random(1).randbytes(16)
    chance = random.Random(2)
    repeated = b"".join(window + chance.randbytes(8) for _ in range(length // 24))
    differently = b"".join(window + chance.randbytes(7) for _ in range(length // 23))
    spoiled = bytearray(length)
    spoiled[::40] = b"\1" * len(spoiled[::40])
    return {
        "zeros": (bytes(length), bytes(length)),
        "zeros and ones": (bytes(length), b"\1" * length),
        "zeros, spoiled": (bytes(length), bytes(spoiled)),
        "zeros of the spoiled": (bytes(spoiled), bytes(length)),
        "one window, then something else": (repeated, differently),
        "a period of 3": (periodic(length, 3), periodic(length, 3)[1:] + b"!"),
        "periods of 17 and 34": (periodic(length, 17), periodic(length, 34)),
        "a period, spoiled": (periodic(length, 64), periodic(length, 64)[: length // 2] * 2),
        "ever longer beginnings": (
            b"".join(TEXT[:size] for size in range(16, length // 100)),
            b"".join(TEXT[: size - 1] + b"?" for size in range(16, length // 100)),
        ),
    }


@pytest.mark.parametrize("name", hostile_pairs(2400))
def test_whatever_the_bytes_the_work_grows_with_their_number(kernel, name):
    counts = []
    for length in (6_000, 24_000):
        old, new = hostile_pairs(length)[name]
        delta, compared = kernel.exact_delta(old, new)
        assert patch(old, delta) == new
        assert compared <= 150 * len(new)
        counts.append(compared / len(new))
    assert counts[1] <= 1.5 * counts[0] + 1


def test_more_than_a_gibibyte_is_refused_before_it_is_looked_at(kernel):
    with mmap.mmap(-1, (1 << 30) + 1) as long:
        for pair in ((long, b""), (b"", long)):
            with pytest.raises(ValueError, match="more bytes"):
                kernel.exact_delta(*pair)
