"""Data chosen to make the search slow: bounds on the work, by counters."""

from __future__ import annotations

import importlib
import io
import random

import pytest

from incremental_backups_tools.delta import Signature, SignatureMagic, delta, patch, signature
from incremental_backups_tools.delta.formats import WeakSum


@pytest.fixture(params=["_native", "_twin"])
def kernel(request):
    return importlib.import_module(f"incremental_backups_tools.delta.{request.param}")


# Adding or subtracting a Thue-Morse sequence of 128 signs leaves a rabin-karp sum modulo 2^32 as it was.
SIGNS = [1 if bin(i).count("1") % 2 else -1 for i in range(128)]
FLAT = bytes([100]) * 128
PLUS = bytes(100 + sign for sign in SIGNS)
MINUS = bytes(100 - sign for sign in SIGNS)


def colliding_block(seed: int, block_len: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice((PLUS, MINUS)) for _ in range(block_len // 128))


def stats_of(new: bytes, old: bytes, block_len: int, kernel, threads: int = 1):
    out = io.BytesIO()
    parsed = Signature.from_bytes(signature(old, block_len=block_len, kernel=kernel))
    stats = delta(new, parsed, out, threads=threads, kernel=kernel)
    assert patch(old, out.getvalue()) == new
    return stats


def test_the_blocks_of_these_tests_do_collide(kernel):
    sums = {kernel.weak_sum(data * 4, WeakSum.RABINKARP) for data in (FLAT, PLUS, MINUS)}
    assert len(sums) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_flat_file_against_colliding_blocks_stays_within_the_budget(kernel, threads):
    block_len = 1024
    old = b"".join(colliding_block(seed, block_len) for seed in range(60))
    stats = stats_of(FLAT * 256, old, block_len, kernel, threads)
    assert stats.copied_bytes == 0
    assert stats.false_alarms > 10
    assert stats.strong_bytes <= 4 * 256 * 128


def test_windows_that_collide_at_every_byte_are_not_all_summed():
    block_len, length = 65536, 1 << 22
    old = colliding_block(1, block_len) * 4
    stats = stats_of(FLAT * (length // 128), old, block_len, None)
    assert stats.false_alarms < length // 10_000
    assert stats.strong_bytes <= 4 * length


def test_colliding_blocks_side_by_side_stay_within_the_budget(kernel):
    block_len = 256
    flat = FLAT * 2
    new = b"".join(flat + colliding_block(1000 + seed, block_len) for seed in range(150))
    old = flat + random.Random(5).randbytes(block_len * 8) + colliding_block(1, block_len)
    stats = stats_of(new, old, block_len, kernel)
    assert stats.strong_bytes <= 4 * len(new)
    assert stats.copied_bytes > 0


def test_thousands_of_blocks_with_one_weak_sum_are_told_apart():
    block_len = 2048
    old = b"".join(colliding_block(seed, block_len) for seed in range(2000))
    order = random.Random(6).sample(range(2000), 2000)
    new = b"".join(colliding_block(seed, block_len) for seed in order)
    stats = stats_of(new, old, block_len, None)
    assert stats.copied_bytes == len(new)
    assert stats.strong_bytes == len(new)
    assert stats.false_alarms == 0


def test_true_matches_are_found_again_after_the_budget_was_used_up():
    block_len = 1024
    colliding = b"".join(colliding_block(seed, block_len) for seed in range(50))
    rest = random.Random(8).randbytes(200 * block_len)
    stats = stats_of(FLAT * 1000 + rest, colliding + rest, block_len, None)
    assert stats.copied_bytes == len(rest)


# Bytes in front of which a rabin-karp sum begins anew: the sum of IDENTITY + data is that of data.
IDENTITY = bytes.fromhex("f8d51d3ce08b23ec")
OTHER_IDENTITY = bytes.fromhex("db0cc95b644c1950")


def test_the_tail_is_bounded_too(kernel):
    block_len = 4096
    old = bytes(block_len) + OTHER_IDENTITY * 3 + b"end"
    new = IDENTITY * 500 + b"end"
    assert kernel.weak_sum(new, WeakSum.RABINKARP) == kernel.weak_sum(old[block_len:], WeakSum.RABINKARP)
    stats = stats_of(new, old, block_len, kernel)
    assert stats.false_alarms > 1
    assert stats.strong_bytes <= 4 * len(new)


def test_both_kernels_spend_the_same_on_colliding_data():
    block_len = 256
    rng = random.Random(10)
    old = (
        b"".join(colliding_block(seed, block_len) for seed in range(4)) + rng.randbytes(3000) + IDENTITY * 40
    )
    for _ in range(6):
        new = b"".join(
            rng.choice(
                (old[: rng.randrange(4) * block_len], colliding_block(rng.randrange(99), block_len), FLAT)
            )
            for _ in range(60)
        )
        results = []
        for name in ("_native", "_twin"):
            kernel = importlib.import_module(f"incremental_backups_tools.delta.{name}")
            results.append(stats_of(new, old, block_len, kernel))
        assert results[0] == results[1]
        assert results[0].strong_bytes <= 4 * len(new)


@pytest.mark.parametrize("magic", [SignatureMagic.BLAKE2, SignatureMagic.MD4])
def test_rollsum_collisions_are_bounded_as_well(kernel, magic):
    # The same bytes in another order: equal s1; weighted alike: equal s2.
    first, second = bytes([1, 2, 2, 1]) * 64, bytes([2, 1, 1, 2]) * 64
    assert kernel.weak_sum(first, WeakSum.ROLLSUM) == kernel.weak_sum(second, WeakSum.ROLLSUM)
    parsed = Signature.from_bytes(signature(first * 8, block_len=256, magic=magic, kernel=kernel))
    stats = delta(second * 200, parsed, io.BytesIO(), kernel=kernel)
    assert stats.strong_bytes <= 4 * 256 * 200


def test_a_file_of_zeros_is_summed_once(kernel):
    zeros = bytes(1024 * 100)
    stats = stats_of(zeros, bytes(1024 * 10), 1024, kernel)
    assert stats.copied_bytes == len(zeros)
    assert stats.strong_bytes == len(zeros)
